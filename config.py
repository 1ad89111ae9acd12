"""All settings. Edit the lines below, then run `python train.py` and `python predict.py`."""

# Paths: text or pathlib.Path; ~ is the home folder.
train_image = "data/train"  # folder of the images, or a list
train_labels = "data/ISIC_2020_Training_GroundTruth.csv"  # CSV of labels, or a list (none: class folders)
run_dir = "runs/siamese"  # folder of this run: checkpoints, log, predictions, metrics
graph_dir = "graph"  # folder of the figures

# What is trained. None leaves a setting to the recipe; RECIPES below has their values.
recipe = "scratch"  # scratch: conv3 at its best; strong: ImageNet weights; baseline: the outline's; demo
image_size = None  # side in pixels to which every image is resized
batch_size = None  # pairs in a training step (pairs batch: images)
epochs = None  # passes over the training part
learning_rate = None  # step size of AdamW
device = "auto"  # cuda, cuda:1, mps or cpu; auto takes the first one available

# The other settings, in the same form.
test_image = "data/test"  # folder of the challenge's test images (no labels)
test_labels = "data/ISIC_2020_Test_Metadata.csv"  # CSV naming the test images
duplicates = None  # list of duplicates, one image of each set is kept (none: ISIC 2020's, if beside the labels)
train_metadata = None  # CSV with further columns of the images, such as lesion_id and age; several: a list
image_column = None  # column of the image names, if it is not detected
label_column = None  # column of the labels or diagnoses, if it is not detected
melanoma_values = None  # values of the label column that mean melanoma (none: by the table of diagnoses)
group_columns = None  # columns whose equal values are not split (none: patient_id and lesion_id)
cache_dir = "cache"  # folder of the decoded images
workers = 0  # threads that decode images (0: one for each core)
deterministic = False  # on CUDA, give bitwise equal results each time, more slowly
skip_unreadable = False  # leave out images that cannot be decoded

split = "patient"  # patient: 5 folds, no patient in two parts; published: by image, as published figures
fold = 0  # fold k tests, fold k+1 validates, the other three train (0 to 4); none: none tests, four train
validation_fold = None  # the fold that validates (none: the one after fold, or 0 if none tests)
split_seed = 0  # seed of the split
seed = 0  # seed of weights, pairs and views

backbone = None  # conv3, or a network of timm: tf_efficientnet_lite0, convnext_tiny, vit_small_patch14_dinov2.lvd142m
backbone_weights = "imagenet"  # of a timm backbone: imagenet (its pretrained weights), none, or a file of weights
grid = None  # features are the means of grid × grid fields of the last feature map or patch tokens (not conv3)
frozen_blocks = None  # number of first blocks of the backbone that stay fixed; above 0 all batch normalisation does too
embedding_dim = None  # length of the embedding
normalize = None  # scale every embedding to length 1
dropout = None  # dropout probability of the backbone's features
head = None  # classification head on the embedding, trained jointly: none, bce, or focal

pairs = None  # independent: each image meets one other; batch: all images of a batch meet
epoch_share = None  # share of the larger class shown in an epoch, drawn again for each epoch
pairs_within_source = True  # both images of a pair from one source: recognising the camera does not lower the loss
colour_constancy = None  # correct the colour of an image's light (shades of grey), for photos of other cameras
views = None  # random views (augmentation) of both classes: none, mild, wide or wider
margin = None  # distance past which unlike pairs add no loss
positive_margin = None  # distance below which like pairs add no loss
average = None  # the loss is the mean over all pairs, or over the active ones, those with a loss
hardest = None  # hard-pair mining after the first epoch: share of the pairs, those of largest loss, that count
pair_weight = None  # weight of the pair loss beside the head's

backbone_rate = None  # learning rate of the backbone, as a share of learning_rate
schedule = None  # learning rate: constant, or cosine (warm-up in the first 5 % of the steps, then down to 0)
weight_decay = None  # decoupled weight decay of AdamW
ema = None  # decay of the exponential moving average of the weights, which is kept (0: off)
precision = "auto"  # float32 or bfloat16 (autocast); auto: bfloat16 where the device computes it natively
test_views = None  # views in which a lesion is scored: 1, as it is, or 8, all flips and quarter turns

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from melanoma.common.errors import InputError, shown
from melanoma.common.settings import POSITIVE, SHARE, SHARE_BELOW_1, ZERO_OR_MORE, at_least, between, complete, opt

# The published outline's own hyperparameters. All recipes set the same names.
BASELINE: dict[str, Any] = {
    "image_size": 128,
    "batch_size": 256,
    "epochs": 12,
    "learning_rate": 1e-4,
    "backbone": "conv3",
    "grid": 1,
    "frozen_blocks": 0,
    "embedding_dim": 128,
    "normalize": False,
    "dropout": 0.0,
    "head": "none",
    "pairs": "independent",
    "epoch_share": 1.0,
    "colour_constancy": False,
    "views": "mild",
    "margin": 0.5,
    "positive_margin": 0.0,
    "average": "all",
    "hardest": 1.0,
    "pair_weight": 1.0,
    "backbone_rate": 1.0,
    "schedule": "constant",
    "weight_decay": 0.0,
    "ema": 0.0,
    "test_views": 1,
}

# The best found without downloaded weights: all pairs of a balanced batch, on the unit sphere, and a joint head.
SCRATCH: dict[str, Any] = {
    **BASELINE,
    "batch_size": 128,
    "epochs": 20,
    "learning_rate": 1e-3,
    "normalize": True,
    "dropout": 0.4,
    "head": "bce",
    "pairs": "batch",
    "views": "wide",
    "margin": 0.8,
    "positive_margin": 0.2,
    "average": "active",
    "schedule": "cosine",
    "weight_decay": 0.01,
    "ema": 0.99,
    "test_views": 8,
}

RECIPES: dict[str, dict[str, Any]] = {
    "scratch": SCRATCH,
    # The best found with ImageNet weights. Its first blocks and all normalisation stay as they are, which holds
    # overfitting back and saves time. The wider the views, the longer it learns without overfitting.
    "strong": {
        **SCRATCH,
        "batch_size": 64,
        "epochs": 12,
        "learning_rate": 2e-3,
        "backbone": "tf_efficientnet_lite0",
        "grid": 4,
        "frozen_blocks": 6,
        "embedding_dim": 64,
        "dropout": 0.5,
        "epoch_share": 0.4,
        "views": "wider",
        "backbone_rate": 0.2,
        "weight_decay": 0.02,
    },
    "baseline": BASELINE,
    # Small pictures, few of them, a fast start: for generated images (`make demo`).
    "demo": {**BASELINE, "image_size": 64, "batch_size": 64, "learning_rate": 1e-3, "epochs": 20},
}


FOLD = ("from 0 to 4, or none", lambda value: value is None or 0 <= value <= 4)


@dataclass(frozen=True)
class Config:
    """The settings of one run: types and ranges. Values are edited above, not here."""

    # Settings of earlier versions, and the value at which they changed nothing.
    RETIRED: ClassVar = {"melanoma_weight": 1.0}

    train_image: tuple[Path, ...] = opt(train_image, group="paths", machine=True)
    train_labels: tuple[Path, ...] = opt(train_labels, machine=True)
    run_dir: Path = opt(run_dir, machine=True)
    graph_dir: Path = opt(graph_dir, machine=True)
    cache_dir: Path = opt(cache_dir, machine=True)
    duplicates: Path | None = opt(duplicates, machine=True)
    test_image: Path = opt(test_image, machine=True, rare=True)
    test_labels: Path = opt(test_labels, machine=True, rare=True)
    train_metadata: tuple[Path, ...] = opt(train_metadata, machine=True, rare=True)
    image_column: str | None = opt(image_column, machine=True, rare=True)
    label_column: str | None = opt(label_column, machine=True, rare=True)
    melanoma_values: tuple[str, ...] = opt(melanoma_values, machine=True, rare=True)
    group_columns: tuple[str, ...] = opt(group_columns, machine=True, rare=True)

    recipe: str = opt(recipe, tuple(RECIPES), group="what is trained")
    image_size: int = opt(image_size, between(32, 1024))
    batch_size: int = opt(batch_size, at_least(1))
    epochs: int = opt(epochs, at_least(1))
    learning_rate: float = opt(learning_rate, POSITIVE)
    seed: int = opt(seed, between(0, 2**63 - 1))
    device: str = opt(device, group="this machine", machine=True)
    precision: str = opt(precision, ("auto", "float32", "bfloat16"), rare=True)
    workers: int = opt(workers, at_least(0, 1024), machine=True, rare=True)
    deterministic: bool = opt(deterministic, machine=True, rare=True)
    skip_unreadable: bool = opt(skip_unreadable, machine=True)

    split: str = opt(split, ("patient", "published"), group="split")
    fold: int | None = opt(fold, FOLD)
    validation_fold: int | None = opt(validation_fold, FOLD, rare=True)
    split_seed: int = opt(split_seed, between(0, 2**32 - 1), rare=True)

    backbone: str = opt(backbone, group="network")
    backbone_weights: str = opt(backbone_weights)
    grid: int = opt(grid, between(1, 32), rare=True)
    frozen_blocks: int = opt(frozen_blocks, at_least(0), rare=True)
    embedding_dim: int = opt(embedding_dim, at_least(2, 4096))
    normalize: bool = opt(normalize, rare=True)
    dropout: float = opt(dropout, SHARE_BELOW_1, rare=True)
    head: str = opt(head, ("none", "bce", "focal"))

    pairs: str = opt(pairs, ("independent", "batch"), group="pairs and loss")
    pairs_within_source: bool = opt(pairs_within_source, rare=True)
    epoch_share: float = opt(epoch_share, SHARE, rare=True)
    colour_constancy: bool = opt(colour_constancy, rare=True)
    views: str = opt(views, ("none", "mild", "wide", "wider"))
    margin: float = opt(margin, POSITIVE)
    positive_margin: float = opt(positive_margin, ZERO_OR_MORE, rare=True)
    average: str = opt(average, ("all", "active"), rare=True)
    hardest: float = opt(hardest, SHARE, rare=True)
    pair_weight: float = opt(pair_weight, ZERO_OR_MORE, rare=True)

    backbone_rate: float = opt(backbone_rate, SHARE, group="learning and scoring", rare=True)
    schedule: str = opt(schedule, ("constant", "cosine"), rare=True)
    weight_decay: float = opt(weight_decay, ZERO_OR_MORE, rare=True)
    ema: float = opt(ema, SHARE_BELOW_1, rare=True)
    test_views: int = opt(test_views, ("1 or 8", lambda value: value in (1, 8)), rare=True)

    def __post_init__(self) -> None:
        known = isinstance(self.recipe, str) and self.recipe in RECIPES
        problems = complete(self, RECIPES[self.recipe] if known else BASELINE)
        if problems:
            raise InputError("; ".join(problems))
        if self.split == "published" and self.fold != 0:
            problems.append(f"fold is {self.fold!r}: it must be 0 with the published split")
        if self.validation_fold is not None:
            told = f"validation_fold is {shown(self.validation_fold)}"
            if self.split == "published":
                problems.append(f"{told}: it must be none with the published split")
            elif self.validation_fold == self.fold:
                problems.append(f"{told}: that fold tests, choose another")
        if not self.train_image:
            problems.append("train_image is none: it must name a folder")
        if self.pairs == "batch" and self.batch_size == 1:
            problems.append("batch_size is 1: with pairs batch it must be 2 or more, to make a pair")
        if self.head == "none" and self.pair_weight == 0:
            problems.append("pair_weight is 0 and head is 'none': nothing would be trained, change one")
        if problems:
            raise InputError("; ".join(problems))
