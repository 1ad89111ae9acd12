"""All settings, in one place: edit the paths below, then run `python train.py` and `python predict.py`.

Every field is also a flag (`train_image` is `--train-image`), so a setting can be changed for one run without
an edit; `python train.py --help` lists them with their defaults. Precedence, weakest first: the defaults below,
`--config FILE`, `--recipe NAME`, the other flags.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import math
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from melanoma.common.errors import InputError, listed, shown
from melanoma.common.files import read_json

LONGEST_TEXT = 4096  # characters of a path, as Linux has it

Allowed = tuple[str, Callable[[Any], bool]]  # in words for the error message, and as a test


def between(low: float, high: float) -> Allowed:
    """Allow numbers from low to high, both included."""
    return f"from {low} to {high}", lambda value: low <= value <= high


def at_least(low: int, most: int = 10**6) -> Allowed:
    """Allow counts from low on, up to a number beyond which nobody means it."""
    return f"{low} or more, at most {most:,}", lambda value: low <= value <= most


POSITIVE: Allowed = ("a finite number above 0", lambda value: 0 < value < math.inf)
ZERO_OR_MORE: Allowed = ("0 or more, and finite", lambda value: 0 <= value < math.inf)
SHARE: Allowed = ("above 0, at most 1", lambda value: 0 < value <= 1)
SHARE_OR_0: Allowed = between(0, 1)
SHARE_BELOW_1: Allowed = ("0 or more, below 1", lambda value: 0 <= value < 1)


def opt(
    default: Any,
    help: str,
    *,
    machine: bool = False,
    choices: Sequence[str] | None = None,
    allowed: Allowed | None = None,
) -> Any:
    """Return a dataclass field whose help text is also the text of its flag.

    `machine` marks a field that belongs to this machine (paths, device) rather than to the experiment:
    `predict.py` takes the experiment from the checkpoint and only the machine's fields from here.
    """
    if choices:
        allowed = ("one of " + ", ".join(choices), lambda value: value in choices)
    metadata = {"help": help, "machine": machine, "choices": choices, "allowed": allowed}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of one run.

    With the defaults (recipe `baseline`, the published outline's hyperparameters) and ISIC 2020, an epoch has
    52,066 pairs; README.md states what the recipes reach and how long they take.
    """

    # Where things are on this machine: edit these.
    train_image: Path = opt(Path("data/train"), "folder holding <image_name>.jpg", machine=True)
    train_labels: Path = opt(
        Path("data/ISIC_2020_Training_GroundTruth.csv"),
        "CSV with image_name and target or diagnosis",
        machine=True,
    )
    test_image: Path = opt(
        Path("data/test"), "folder of the challenge's test images (no labels)", machine=True
    )
    test_labels: Path = opt(
        Path("data/ISIC_2020_Test_Metadata.csv"), "CSV naming the test images", machine=True
    )
    duplicates: Path | None = opt(
        None,
        "ISIC_2020_Training_Duplicates.csv: one image of each pair is kept (none: all are kept)",
        machine=True,
    )
    cache_dir: Path = opt(Path("cache"), "decoded images are kept here", machine=True)
    run_dir: Path = opt(Path("runs/siamese"), "checkpoints, log and predictions of this run", machine=True)
    graph_dir: Path = opt(Path("graph"), "figures are written here", machine=True)

    # How this machine is used.
    device: str = opt(
        "auto", "cuda, cuda:1, mps or cpu; auto takes the first of these that is there", machine=True
    )
    workers: int = opt(
        0, "threads that decode images (0: one for each core)", machine=True, allowed=at_least(0, 1024)
    )
    deterministic: bool = opt(
        False, "on CUDA too, compute the same bits each time, more slowly (the CPU always does)", machine=True
    )
    fit_memory: bool = opt(
        False,
        "if the device's memory is too small for a batch, embed it in 2, 4, 8 ... parts: same batch, more time "
        "(batch normalisation that is trained sees a part)",
        machine=True,
    )
    skip_unreadable: bool = opt(False, "leave images out that cannot be decoded", machine=True)
    follow_links: bool = opt(False, "read images that are links out of their folder", machine=True)

    # What is trained: the experiment, stored in its checkpoint.
    image_size: int = opt(128, "side in pixels to which every image is resized", allowed=between(32, 1024))
    split: str = opt(
        "patient",
        "patient: 5 folds with no patient on two sides; published: by image, to reproduce published figures",
        choices=("patient", "published"),
    )
    fold: int = opt(
        0,
        "patient split: fold k tests, fold k+1 validates, the other three train (0 to 4)",
        allowed=between(0, 4),
    )
    validation_fold: int | None = opt(
        None,
        "patient split: the fold that validates (0 to 4; none: the one after fold)",
        allowed=("from 0 to 4, or none", lambda value: value is None or 0 <= value <= 4),
    )
    split_seed: int = opt(
        0, "seed of the split, apart from the seed of the training", allowed=between(0, 2**32 - 1)
    )
    seed: int = opt(0, "seed of weights, pairs and views", allowed=between(0, 2**63 - 1))

    # The network.
    backbone: str = opt(
        "conv3",
        "conv3, conv3_norm, or a classifier of torchvision: resnet18, mobilenet_v2, convnext_tiny, ...",
    )
    backbone_weights: str = opt(
        "imagenet",
        "weights a torchvision backbone starts from: imagenet, none, or a file with its state dict",
    )
    grid: int = opt(
        1,
        "features are the means of grid × grid fields of the last convolution (conv3: all of it, always)",
        allowed=between(1, 32),
    )
    embedding_dim: int = opt(128, "length of the embedding vector", allowed=at_least(2, 4096))
    normalize: bool = opt(False, "scale every embedding to length 1")
    dropout: float = opt(0.0, "share of the backbone's features hidden in a step", allowed=SHARE_BELOW_1)
    head: str = opt(
        "none",
        "classification head on the embedding, trained jointly: none, bce, or focal (Lin et al. 2017)",
        choices=("none", "bce", "focal"),
    )
    frozen_blocks: int = opt(0, "first blocks of the backbone that are never trained", allowed=at_least(0))
    frozen_epochs: int = opt(0, "first epochs in which no block of the backbone is", allowed=at_least(0))
    frozen_norm: bool = opt(False, "keep the backbone's batch normalisation as its weights brought it")

    # Who meets whom, and what a pair costs.
    pairs: str = opt(
        "independent",
        "independent: each image meets one other; batch: batch_size images, half of them melanoma, all meet",
        choices=("independent", "batch"),
    )
    batch_size: int = opt(256, "pairs in a training step (pairs batch: images)", allowed=at_least(1))
    epoch_share: float = opt(1.0, "share of the larger class shown in an epoch, drawn anew", allowed=SHARE)
    loss: str = opt(
        "contrastive",
        "contrastive, or triplet (pairs batch only)",
        choices=("contrastive", "triplet"),
    )
    margin: float = opt(0.5, "distance past which unlike pairs add no loss", allowed=POSITIVE)
    positive_margin: float = opt(0.0, "distance below which like pairs add no loss", allowed=ZERO_OR_MORE)
    average: str = opt(
        "all",
        "the loss is the mean over all pairs, or over the active ones, those that have a loss",
        choices=("all", "active"),
    )
    melanoma_weight: float = opt(
        1.0, "weight of a melanoma in the head's loss and of its pairs in the pair loss", allowed=POSITIVE
    )
    pair_weight: float = opt(1.0, "weight of the pair loss beside the head's", allowed=ZERO_OR_MORE)
    hardest: float = opt(1.0, "mining: share of the pairs, the costliest, that are trained on", allowed=SHARE)
    mining_epochs: int = opt(1, "epochs before mining begins", allowed=at_least(0))

    # How it learns.
    epochs: int = opt(12, "passes over all pairs", allowed=at_least(1))
    learning_rate: float = opt(1e-4, "step size of AdamW", allowed=POSITIVE)
    backbone_rate: float = opt(
        1.0, "step size below the embedding layer, as a share of the learning rate", allowed=SHARE
    )
    schedule: str = opt(
        "constant", "course of the learning rate; cosine falls to 0", choices=("constant", "cosine")
    )
    warmup: float = opt(
        0.0, "share of all steps in which the learning rate rises from 0", allowed=SHARE_BELOW_1
    )
    weight_decay: float = opt(0.0, "AdamW's decoupled weight decay", allowed=ZERO_OR_MORE)
    ema: float = opt(
        0.0,
        "decay of the running mean of the weights that is validated and kept (0: off)",
        allowed=SHARE_BELOW_1,
    )
    precision: str = opt(
        "auto",
        "float32 (CUDA's convolutions: TF32, as torch has it), or bfloat16 autocast; auto: bfloat16 where the device "
        "computes it natively",
        choices=("auto", "float32", "bfloat16"),
    )

    # Random views (augmentation), the same for both classes; 0 switches one off.
    augment: bool = opt(True, "show each image through a random view (false: none of the below)")
    view_flip: bool = opt(True, "flips and quarter turns, in every view")
    view_share: float = opt(
        0.5, "share of the views that are turned and scaled; that are coloured", allowed=SHARE
    )
    view_turn: float = opt(
        45.0, "largest turn each way in degrees, beside the quarters", allowed=between(0, 180)
    )
    view_scale: float = opt(1.1, "largest factor of the lesion's size, up or down", allowed=between(1, 4))
    view_shift: float = opt(0.05, "largest shift each way, as a share of the side", allowed=between(0, 1))
    view_light: float = opt(
        0.1, "largest change of brightness and of contrast, as a share", allowed=SHARE_BELOW_1
    )
    view_colour: float = opt(
        0.03, "largest change of each colour channel (white balance)", allowed=SHARE_BELOW_1
    )
    view_blur: float = opt(0.0, "share of the views that are blurred", allowed=SHARE_OR_0)
    view_noise: float = opt(0.0, "share with noise in 8×8 blocks, as JPEG leaves it", allowed=SHARE_OR_0)
    view_hair: float = opt(0.0, "share with drawn hairs", allowed=SHARE_OR_0)
    view_cutout: float = opt(0.0, "share with a square hidden", allowed=SHARE_OR_0)
    view_corners: float = opt(0.0, "share with the dark corners of a round lens", allowed=SHARE_OR_0)

    # How it is judged.
    test_views: int = opt(
        1,
        "views a lesion is scored in: 1, as it is, or 8, all flips and quarter turns",
        allowed=("1 or 8", lambda value: value in (1, 8)),
    )

    def __post_init__(self) -> None:
        problems = []
        kinds = _types()
        for item in dataclasses.fields(self):
            value, allowed = getattr(self, item.name), item.metadata["allowed"]
            if not _is_a(value, kinds[item.name]):
                problems.append(
                    f"{item.name} is {shown(value)}: it must be of type {_name(kinds[item.name])}"
                )
            elif allowed and not allowed[1](value):
                problems.append(f"{item.name} is {shown(value)}: it must be {allowed[0]}")
            elif isinstance(value, (str, Path)) and not _can_name(str(value)):
                problems.append(f"{item.name} is {shown(value)}: no file or device can have that name")
        if self.split == "published" and self.fold != 0:
            problems.append(f"fold is {self.fold!r}: it must be 0 with the published split")
        if self.validation_fold is not None:
            told = f"validation_fold is {shown(self.validation_fold)}"
            if self.split == "published":
                problems.append(f"{told}: it must be none with the published split")
            elif self.validation_fold == self.fold:
                problems.append(f"{told}: that fold tests, choose another")
        if self.pairs == "batch" and self.batch_size == 1:
            problems.append("batch_size is 1: with pairs batch it must be 2 or more, whose images meet")
        if self.loss == "triplet" and self.pairs != "batch":
            problems.append("loss is 'triplet': it needs pairs batch, in which all images of a batch meet")
        if self.head == "none" and self.pair_weight == 0:
            problems.append("pair_weight is 0 and head is 'none': nothing would be trained, change one")
        if problems:
            raise InputError("; ".join(problems))


# What `scratch` and `strong` have in common.
_IN_BATCH: dict[str, Any] = {
    "pairs": "batch",
    "normalize": True,
    "margin": 0.8,
    "positive_margin": 0.2,
    "average": "active",
    "head": "bce",
    "schedule": "cosine",
    "warmup": 0.05,
    "ema": 0.99,
    "view_share": 0.7,
    "view_scale": 1.3,
    "view_light": 0.2,
    "view_colour": 0.05,
    "view_cutout": 0.5,
    "test_views": 8,
}

# A recipe is a named set of overrides. `baseline` is the published outline's own hyperparameters.
RECIPES: dict[str, dict[str, Any]] = {
    "baseline": {
        "image_size": 128,
        "embedding_dim": 128,
        "margin": 0.5,
        "batch_size": 256,
        "learning_rate": 1e-4,
        "epochs": 12,
        "backbone": "conv3",
    },
    # The best found without downloaded weights: every pair of a balanced batch, on the unit sphere, and a joint head.
    "scratch": {
        **_IN_BATCH,
        "image_size": 128,
        "backbone": "conv3",
        "dropout": 0.4,
        "batch_size": 128,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "epochs": 20,
    },
    # The best found with ImageNet weights. Its first blocks and all normalisation stay as ImageNet left them, which
    # holds overfitting back and halves the time. The wider the views, the longer it learns without overfitting.
    "strong": {
        **_IN_BATCH,
        "image_size": 128,
        "backbone": "mobilenet_v2",
        "backbone_weights": "imagenet",
        "grid": 4,
        "dropout": 0.5,
        "frozen_blocks": 3,
        "frozen_norm": True,
        "batch_size": 64,
        "learning_rate": 2e-3,
        "backbone_rate": 0.2,
        "weight_decay": 0.02,
        "epochs": 14,
        "epoch_share": 0.5,
        "view_share": 0.8,
        "view_scale": 1.4,
        "view_light": 0.25,
        "view_colour": 0.08,
        "view_blur": 0.2,
        "view_noise": 0.2,
        "view_hair": 0.2,
    },
    # Small pictures, few of them, a fast start: for generated images (`make demo`).
    "demo": {"image_size": 64, "batch_size": 64, "learning_rate": 1e-3, "epochs": 20},
}


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web, and what is published of it.

    entries : images in a zip, rows below the header in a CSV
    size, sha256 : bytes, and hexadecimal digest of them
    """

    address: str
    entries: int | None = None
    size: int | None = None
    sha256: str | None = None


# What `python dataset.py --download` fetches, by the field above that it is for: the addresses and counts of the
# challenge's page. It rounds the sizes (JPEGs of 23 and 6.7 GB) and publishes no checksums.
DOWNLOAD_PAGE = "https://challenge2020.isic-archive.com/"
_ISIC_2020 = "https://isic-challenge-data.s3.amazonaws.com/2020/ISIC_2020_"
DOWNLOADS: dict[str, RemoteFile] = {
    "train_labels": RemoteFile(_ISIC_2020 + "Training_GroundTruth.csv", entries=33_126),
    "duplicates": RemoteFile(_ISIC_2020 + "Training_Duplicates.csv", entries=425),
    "train_image": RemoteFile(_ISIC_2020 + "Training_JPEG.zip", entries=33_126),
    "test_labels": RemoteFile(_ISIC_2020 + "Test_Metadata.csv", entries=10_982),
    "test_image": RemoteFile(_ISIC_2020 + "Test_JPEG.zip", entries=10_982),
}


def is_machine(name: str) -> bool:
    """Whether a field belongs to the machine (True) or to the experiment (False)."""
    return bool(Config.__dataclass_fields__[name].metadata["machine"])


def to_dict(config: Config) -> dict[str, Any]:
    """Return the settings as JSON values (paths as text)."""
    return {
        name: str(value) if isinstance(value, Path) else value
        for name, value in dataclasses.asdict(config).items()
    }


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """Return the settings that `to_dict` or a JSON file gave; `source` names it in errors.

    Text stands for a path where a path is wanted, and a whole number for a float; nothing else is converted.

    Raises
    ------
    InputError : a name that is no setting, or a value of the wrong type or range
    """
    kinds = _types()
    unknown = sorted(map(str, set(values) - set(kinds)))
    if unknown:
        raise InputError(f"{source}: unknown settings {listed(unknown)}")
    parsed = {}
    for name, value in values.items():
        if isinstance(value, str) and Path in _members(kinds[name]):
            value = Path(value)
        elif kinds[name] is float and type(value) is int and abs(value) < 2**53:
            value = float(value)  # JSON has one kind of number
        parsed[name] = value
    try:
        return Config(**parsed)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def experiment(config: Config) -> dict[str, Any]:
    """Return the fields that define the experiment, as JSON values."""
    return {name: value for name, value in to_dict(config).items() if not is_machine(name)}


def with_machine(stored: Mapping[str, Any], machine: Config, source: str) -> Config:
    """Return the stored experiment on this machine: its paths and device come from `machine`."""
    here = {name: value for name, value in to_dict(machine).items() if is_machine(name)}
    return from_dict({**stored, **here}, source)


def add_flags(parser: argparse.ArgumentParser, only_machine: bool = False) -> None:
    """Add a flag for each field (`only_machine`: for the machine's fields alone), `--config` and `--recipe`."""
    if not only_machine:
        parser.add_argument("--recipe", choices=sorted(RECIPES), help="named set of overrides")
        parser.add_argument("--config", type=Path, metavar="FILE", help="config.json of an earlier run")
    kinds = _types()
    for item in dataclasses.fields(Config):
        if only_machine and not item.metadata["machine"]:
            continue
        settings: dict[str, Any] = {
            "default": argparse.SUPPRESS,
            "help": f"{item.metadata['help']} (default: {_text(item.default)})".replace("%", "%%"),
        }
        if kinds[item.name] is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = _reader(kinds[item.name])
            settings["choices"] = item.metadata["choices"]
            settings["metavar"] = None if item.metadata["choices"] else _name(kinds[item.name]).upper()
        parser.add_argument(f"--{item.name.replace('_', '-')}", **settings)


def from_flags(arguments: argparse.Namespace) -> Config:
    """Return the settings that the parsed command line asks for."""
    kinds = _types()
    flags = {name: value for name, value in vars(arguments).items() if name in kinds}
    base: dict[str, Any] = {}
    for name in ("config", "recipe"):
        if getattr(arguments, name, None) == []:  # some versions of argparse make this of `--recipe=--`
            raise InputError(f"--{name} has no value: give it one")
    if getattr(arguments, "config", None):
        base = _read_json(arguments.config)
    if getattr(arguments, "recipe", None):
        base |= RECIPES[arguments.recipe]
    merged = from_dict(base, str(arguments.config)) if base else Config()
    return dataclasses.replace(merged, **flags)


def _read_json(path: Path) -> dict[str, Any]:
    advice = "pass a run's config.json"
    values = read_json(path, f"--config {path}", advice)
    if not isinstance(values, dict):
        raise InputError(f"--config {path} holds no settings: {advice}")
    return values


@functools.cache
def _types() -> dict[str, Any]:
    return typing.get_type_hints(Config)


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _is_a(value: Any, annotation: Any) -> bool:
    for kind in _members(annotation):
        if kind is Path and isinstance(value, Path):
            return True
        if type(value) is kind:  # exactly: True is no int here
            return True
    return False


def _can_name(text: str) -> bool:
    """Whether a file can have this path: not too long, no NUL, no half of a character."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return len(text) <= LONGEST_TEXT and "\0" not in text


def _name(annotation: Any) -> str:
    names = [kind.__name__.replace("NoneType", "none") for kind in _members(annotation)]
    return " or ".join(names).lower()


def _reader(annotation: Any) -> Callable[[str], Any]:
    if type(None) not in _members(annotation):
        return annotation
    [kind] = set(_members(annotation)) - {type(None)}

    def read(text: str) -> Any:
        return None if text.lower() in ("", "none") else kind(text)

    read.__name__ = _name(kind)  # argparse tells of an invalid one
    return read


def _text(default: Any) -> str:
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)
