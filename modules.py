"""The networks: a backbone sees an image, a linear layer embeds it, and the same two see both images of a pair."""

from __future__ import annotations

import math
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from config import Config
from melanoma.common.errors import InputError, shown
from melanoma.common.files import is_file

# Mean and standard deviation of the colour channels of ImageNet, torchvision's convention
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)
_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # declares operators, see import_torchvision
HEAD_SCALE = 16.0  # of a unit-length embedding before the head: else its logit could hardly leave -1..1


class Normalize(nn.Module):
    """Shift and scale the colour channels of images in 0..1, by default to about zero mean and unit spread."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, ...] | list[float] = CHANNEL_MEAN,
        std: tuple[float, ...] | list[float] = CHANNEL_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images, float (B, 3, S, S), normalised."""
        return (images - self.mean) / self.std


class Backbone(nn.Module):
    """What every backbone has: images, float (B, 3, S, S) in 0..1, become features (B, `features`)."""

    features: int

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output, so that the first of them can be frozen."""
        raise NotImplementedError

    def last_map(self) -> nn.Module | None:
        """Return the part whose output is the last map of features, (B, C, height, width); None: there is no map."""
        raise NotImplementedError


class Conv3(Backbone):
    """The outline's backbone: three 3×3 convolutions (16, 32, 64 channels) and a linear layer to 512 features.

    Each convolution is followed by 2×2 max pooling and ReLU; ReLU and maximum commute, and pooling first leaves a
    quarter of the values to rectify and to keep for the backward pass.

    Parameters
    ----------
    image_size : side S of the input in pixels, 32 or more (7 or less would pool to nothing)
    """

    features = 512

    def __init__(self, image_size: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        self.normalize = Normalize()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel_size=3, padding=1) for inner, outer in pairwise(channels)
        )
        self.fc1 = nn.Linear(channels[-1] * (image_size // 8) ** 2, self.features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, 512), of images, float (B, 3, S, S) in 0..1."""
        images = self.normalize(images)
        for convolution in self.convolutions:
            images = F.relu(F.max_pool2d(convolution(images), 2))
        return F.relu(self.fc1(images.flatten(1)))

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output."""
        return [*self.convolutions, self.fc1]

    def last_map(self) -> nn.Module:
        """Return the last convolution; its map, (B, 64, S/4, S/4), is not yet pooled and rectified."""
        return self.convolutions[-1]


class Conv3Norm(Backbone):
    """Three 3×3 convolutions with batch normalisation (32, 64, 128 channels), then the means of grid × grid fields.

    The grid in place of the outline's linear layer (8.4 million weights at 128 px) leaves 0.1 million weights in
    all, and an input of any size.
    """

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.features = 128 * grid**2
        channels = (3, 32, 64, 128)
        self.normalize = Normalize()
        self.convolutions = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(inner, outer, kernel_size=3, padding=1, bias=False), nn.BatchNorm2d(outer)
            )
            for inner, outer in pairwise(channels)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, 128 grid²), of images, float (B, 3, S, S) in 0..1."""
        images = self.normalize(images)
        for convolution in self.convolutions:
            images = F.relu(F.max_pool2d(convolution(images), 2))
        return field_means(images, self.grid)

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output."""
        return list(self.convolutions)

    def last_map(self) -> nn.Module:
        """Return the last convolution; its map, (B, 128, S/4, S/4), is not yet pooled and rectified."""
        return self.convolutions[-1]


def field_means(features: Tensor, grid: int) -> Tensor:
    """Return the means of grid × grid fields of a map, (B, C grid²), of features (B, C, height, width)."""
    height, width = features.shape[2:]
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(features, (height // grid, width // grid)).flatten(1)
    # adaptive pooling, whose own gradient is not deterministic on CUDA and which MPS has not
    rows = torch.stack([features[:, :, field].mean(dim=2) for field in _fields(height, grid)], dim=2)
    return torch.stack([rows[..., field].mean(dim=3) for field in _fields(width, grid)], dim=3).flatten(1)


def _fields(side: int, grid: int) -> list[slice]:
    """Return where the fields of a side lie; of sides that do not divide, neighbours share a pixel."""
    return [slice(side * i // grid, -(-side * (i + 1) // grid)) for i in range(grid)]


class FoldingSequential(nn.Sequential):
    """A sequence in which batch normalisation with fixed statistics is folded into the convolution before it.

    Where the normalisation is in evaluation mode (`SiameseNetwork.freeze`, or any model that is not being trained) it
    is one factor and one offset for each channel: conv(x, w) · a + b = conv(x, w · a) + b. To scale the weights rather
    than the map leaves one pass less over every map, forwards and backwards (benchmarks/fold.py measures what it
    saves). It is done on the CPU alone until it is measured on a GPU, which may lose more by twice as many operations
    than it saves. Parameters, their names and their gradients are those of `nn.Sequential`.
    """

    folded_on = ("cpu",)  # types of device

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the last part."""
        if images.device.type not in self.folded_on:
            return super().forward(images)
        parts = list(self)
        while parts:
            part = parts.pop(0)
            norm = parts[0] if parts else None
            if isinstance(part, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and _is_fixed(norm):
                images = _folded(part, norm, images)
                parts.pop(0)
            else:
                images = part(images)
        return images


def _is_fixed(norm: nn.BatchNorm2d) -> bool:
    return norm.affine and norm.track_running_stats and not norm.training


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d, images: Tensor) -> Tensor:
    """Return norm(convolution(images)); torch's own fuse_conv_bn_weights cuts the gradient off."""
    assert norm.running_mean is not None and norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    before = norm.running_mean if convolution.bias is None else norm.running_mean - convolution.bias
    weight = convolution.weight * factor[:, None, None, None]
    return convolution._conv_forward(images, weight, norm.bias - before * factor)


def _fold_sequences(model: nn.Module) -> None:
    """Make every plain sequence within a model a `FoldingSequential` of the same parts and names."""
    for name, child in list(model.named_children()):
        _fold_sequences(child)
        if isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward:
            setattr(model, name, FoldingSequential(OrderedDict(child.named_children())))


class TorchvisionBackbone(Backbone):
    """A classifier of torchvision without its last linear layer.

    Parameters
    ----------
    name : as torchvision.models.list_models() has it
    image_size : side S of the input; vision transformers are built for it
    weights : imagenet, none, or the path of a state dict in torchvision's names, with or without the classifier
    grid : 1 keeps the model's own pooling; above, the features are the means of grid × grid fields of its last
        convolution, so that an embedding knows what is in the lesion's middle and what around it

    Raises
    ------
    InputError : no such model or weights; weights that cannot be fetched, read, or do not fit; no convolutions
        for a grid; images of this size are not for this model
    """

    def __init__(self, name: str, image_size: int, weights: str, grid: int = 1) -> None:
        super().__init__()
        models = import_torchvision().models
        names = models.list_models(module=models)
        if name not in names:
            raise InputError(
                f"backbone is {shown(name)}: it must be conv3, conv3_norm or one of torchvision's {', '.join(names)}"
            )
        published = models.get_model_weights(name).DEFAULT
        options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        try:
            model = models.get_model(name, weights=None, **options)
        except AssertionError as error:
            raise _wrong_size(name, image_size, error) from error
        _cut_classifier(model, name)
        self.grid = grid
        if weights != "none":
            state = _published_state(published, name) if weights == "imagenet" else _read_state(Path(weights))
            _fill(model, state, f"backbone_weights {weights}", name)
        transforms = published.transforms()
        self.normalize = Normalize(transforms.mean, transforms.std)
        self.model = model if grid == 1 else _convolutions(model, name)
        _fold_sequences(self)
        try:
            with torch.no_grad():
                self.features = self.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (AssertionError, RuntimeError) as error:
            raise _wrong_size(name, image_size, error) from error

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, F), of images, float (B, 3, S, S) in 0..1."""
        features = self.model(self.normalize(images))
        return features if self.grid == 1 else field_means(features, self.grid)

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output."""
        parts = getattr(self.model, "features", self.model)
        return list(parts.children())

    def last_map(self) -> nn.Module | None:
        """Return what stands before the pooling; None for a vision transformer, which keeps a list of patches."""
        if self.grid > 1:
            return self.model
        children = dict(self.model.named_children())
        if "encoder" in children:
            return None
        names = list(children)
        before = names[: names.index("avgpool") if "avgpool" in names else -1]
        last = children[before[-1]]
        return last[-1] if isinstance(last, nn.ModuleList) else last


class SharedDropout(nn.Dropout):
    """Dropout that hides the same of an image whichever process embeds it.

    `share` names what the process has of a batch: its number of images, and where its own lie among them. The mask is
    then drawn for the whole batch; torch's generator has to be in one state in all processes.
    """

    share: tuple[int, slice] | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return features, (B, F), of which in training the share `p` is 0 and the rest is scaled by 1 / (1 - p)."""
        if self.share is None or not self.training:
            return super().forward(features)
        size, own = self.share
        mask = super().forward(features.new_ones(size, features.shape[1]))
        return features * mask[own]


class SiameseNetwork(nn.Module):
    """One embedding network for both images of a pair: backbone, linear layer, and if wanted a unit length and a head.

    Parameters
    ----------
    backbone : takes images, gives features (B, backbone.features), and lists its blocks
    embedding_dim : D, length of the embedding
    normalize : scale every embedding to length 1
    dropout : share of the features hidden in training
    head : give each embedding a logit as well, large = melanoma
    """

    def __init__(
        self,
        backbone: Backbone,
        embedding_dim: int,
        normalize: bool = False,
        dropout: float = 0.0,
        head: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = SharedDropout(dropout)
        self.fc_embedding = nn.Linear(backbone.features, embedding_dim)
        self.unit_length = normalize
        self.head: nn.Linear | None = None
        if head:
            self.head = nn.Linear(embedding_dim, 1)
            nn.init.zeros_(self.head.weight)  # every lesion starts at even odds
            nn.init.zeros_(self.head.bias)
        self.still: list[nn.Module] = []
        self.parts = 1  # above 1 a batch is embedded in parts, each computed anew on the way back

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (B, D), of images, float (B, 3, S, S) in 0..1."""
        embeddings = self.fc_embedding(self.dropout(self.backbone(images))).float()
        return F.normalize(embeddings, dim=1) if self.unit_length else embeddings

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the head's log odds of melanoma, float32 (B,), of embeddings (B, D); zeros without a head.

        The odds are those of the training batches, of which half are melanomas.
        """
        if self.head is None:
            return embeddings.new_zeros(len(embeddings))
        return self.head(embeddings * HEAD_SCALE if self.unit_length else embeddings).float().squeeze(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings, (B, D), and logits, (B,).

        In several `parts` the gradient is that of the whole batch, while the memory holds the activations of one part
        (Chen et al. 2016, training deep nets with sublinear memory cost): for a third more time, each part is embedded
        twice. Batch normalisation that is not fixed sees a part as its batch.
        """
        if self.parts > 1 and torch.is_grad_enabled():
            parts = [checkpoint(self.embed, part, use_reentrant=False) for part in images.chunk(self.parts)]
            embeddings = torch.cat(parts)
        else:
            embeddings = self.embed(images)
        return embeddings, self.logits(embeddings)

    def freeze(self, blocks: int | None, norm: bool) -> None:
        """Keep the first blocks of the backbone (None: all of it) from being trained, and let go of the others.

        `norm` keeps all batch normalisation of the backbone in evaluation mode; so do frozen blocks their own.
        """
        parts = self.backbone.blocks()
        frozen = [self.backbone] if blocks is None else parts[:blocks]
        self.backbone.requires_grad_(True)
        for part in frozen:
            part.requires_grad_(False)
        self.still = list(frozen)
        if norm:
            self.still += [
                m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
            ]
        self.train(self.training)

    def train(self, mode: bool = True) -> SiameseNetwork:
        """Go to training or evaluation mode; what is frozen stays in the latter."""
        super().train(mode)
        for part in self.still:
            part.eval()
        return self


def build_network(
    backbone: str,
    image_size: int,
    embedding_dim: int,
    *,
    weights: str = "none",
    grid: int = 1,
    normalize: bool = False,
    dropout: float = 0.0,
    head: bool = False,
) -> SiameseNetwork:
    """Return the Siamese network around a backbone by name, weights drawn from torch's global generator.

    It is in channels-last memory, the layout in which pixels are stored and convolutions are fastest.

    Parameters
    ----------
    weights, grid : of a torchvision backbone, see `TorchvisionBackbone`; conv3_norm has a grid too
    normalize, dropout, head : see `SiameseNetwork`

    Raises
    ------
    InputError : unknown backbone, or weights that are missing or do not fit
    """
    body: Backbone
    if backbone == "conv3":
        body = Conv3(image_size)
    elif backbone == "conv3_norm":
        body = Conv3Norm(grid)
    else:
        body = TorchvisionBackbone(backbone, image_size, weights, grid)
    network = SiameseNetwork(body, embedding_dim, normalize, dropout, head)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def network_of(config: Config, weights: str = "none") -> SiameseNetwork:
    """Return the network that the settings describe."""
    return build_network(
        config.backbone,
        config.image_size,
        config.embedding_dim,
        weights=weights,
        grid=config.grid,
        normalize=config.normalize,
        dropout=config.dropout,
        head=config.head != "none",
    )


def import_torchvision() -> ModuleType:
    """Import torchvision, which conv3 does without.

    Its compiled operators are built for one build of torch; with another (the CPU build beside PyPI's wheel) they do
    not load, which torchvision tolerates but for two lines that name nms and qnms. The backbones need neither, so
    the two are declared and the import is tried again.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def _wrong_size(name: str, image_size: int, error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(
        f"backbone {name} takes no images of {image_size} px ({reason}): choose another --image-size or backbone"
    )


def _cut_classifier(model: nn.Module, name: str) -> None:
    """Replace a classifier's last linear layer by nothing, and switch its dropout off."""
    path, last = next(
        ((p, m) for p, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear)), ("", None)
    )
    top = path.partition(".")[0]
    if last is None or top != list(dict(model.named_children()))[-1]:
        raise InputError(f"backbone {name} does not end in a linear layer: choose another")
    model.set_submodule(path, nn.Identity())
    for inner_path, inner in list(model.named_modules()):
        if inner_path.partition(".")[0] in (top, "dropout") and isinstance(inner, nn.Dropout):
            model.set_submodule(inner_path, nn.Identity())


def _convolutions(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a model that ends in a map of features (B, C, height, width)."""
    children = dict(model.named_children())
    features = children.get("features")
    if isinstance(features, nn.Sequential) and "permute" not in children:  # swin's have the channels last
        return features
    if "avgpool" not in children:
        raise InputError(f"backbone {name} has no convolutions to lay a grid over: pass --grid 1")
    before = list(children)[: list(children).index("avgpool")]
    return nn.Sequential(OrderedDict((part, children[part]) for part in before))


def _published_state(published: Any, name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights that torchvision publishes, from its cache or the network."""
    try:
        return published.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a download that broke off
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"the ImageNet weights of {name} could not be fetched ({error}): download {published.url} to {folder} "
            "or pass --backbone-weights FILE, or none to start without"
        ) from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict in a file; nothing in the file can run code."""
    if not is_file(path):
        raise InputError(
            f"backbone_weights {path} does not exist: pass imagenet, none, or a state dict's file"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"backbone_weights {path} is damaged or no state dict: pass another") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"backbone_weights {path} is no state dict: it must map names to tensors, pass another"
        )
    return state


def _fill(model: nn.Module, state: dict[str, Tensor], source: str, name: str) -> None:
    """Load a state dict; its classifier may be there or not, everything else must."""
    classifier = list(dict(model.named_children()))[-1]
    own = model.state_dict()
    missing = [key for key in own if key not in state and key.partition(".")[0] != classifier]
    odd = [
        key
        for key in own
        if key in state and (state[key].shape, state[key].is_complex()) != (own[key].shape, False)
    ]
    if missing or odd:
        what = f"lacks {missing[0]}" if missing else f"has another shape of {odd[0]}"
        raise InputError(
            f"{source} does not fit {name}: it {what} ({len(missing)} missing, {len(odd)} of another shape)"
        )
    model.load_state_dict({key: value for key, value in state.items() if key in own}, strict=False)


# --- losses ---

FOCUS = 2.0  # gamma of the focal loss: the value that Lin et al. 2017 found best
COLLAPSED = (
    0.01  # unlike pairs nearer than this share of the margin, on average: nothing is told apart any more
)
MEASURES = ("like_distance", "unlike_distance", "active_share", "spread")


def pair_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair, (P,), of embeddings (P, D); its gradient at 0 is 0."""
    return torch.linalg.vector_norm(first - second, dim=1)


def contrastive_terms(distance: Tensor, same: Tensor, margin: float, positive_margin: float = 0.0) -> Tensor:
    """Return the contrastive loss of each pair, (P,) (Hadsell et al. 2006, eq. 4; same=True is their Y=0).

    Like pairs cost ½ max(0, d - positive_margin)², unlike pairs ½ max(0, margin - d)².

    Parameters
    ----------
    distance : float tensor of shape (P,), >= 0
    same : bool tensor of shape (P,)
    margin : distance past which unlike pairs add nothing
    positive_margin : distance below which like pairs add nothing (0 in the paper; tuned in Musgrave et al. 2020)
    """
    far = F.relu(distance - positive_margin) if positive_margin else distance
    return 0.5 * torch.where(same, far, F.relu(margin - distance)).square()


def triplet_terms(distance: Tensor, labels: Tensor, is_pair: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return the loss of each triplet of a batch (Schroff et al. 2015, eq. 2, on distances that are not squared).

    Every ordered like pair (anchor, positive) meets every image of the other class as its negative and costs
    max(0, d(anchor, positive) - d(anchor, negative) + margin).

    Parameters
    ----------
    distance : float tensor of shape (B, B)
    labels : int tensor of shape (B,), 1 melanoma, 0 benign
    is_pair : bool tensor of shape (B, B), symmetric, False for an image with itself
    margin : by which the negative has to be farther than the positive

    Returns
    -------
    terms : float tensor of shape (T,)
    anchor : int64 tensor of shape (T,), the anchor of each
    """
    same = labels[:, None] == labels
    anchor, positive = (same & is_pair).nonzero(as_tuple=True)
    triplet, negative = (~same)[anchor].nonzero(as_tuple=True)
    anchor, positive = anchor[triplet], positive[triplet]
    return F.relu(distance[anchor, positive] - distance[anchor, negative] + margin), anchor


def hardest(terms: Tensor, groups: Tensor, share: float) -> Tensor:
    """Return which terms to train on, bool (P,): of either group the costliest, `share` of it, rounded up.

    Equal costs at the border are all kept.

    Parameters
    ----------
    terms : float tensor of shape (P,), the losses
    groups : bool tensor of shape (P,): like pairs and unlike ones, mined apart lest one crowd out the other
    share : above 0, at most 1
    """
    kept = torch.zeros_like(groups)
    for group in (groups, ~groups):
        own = terms.detach()[group]
        if len(own):
            kept[group] = own >= own.topk(math.ceil(share * len(own))).values[-1]
    return kept


def weighted_mean(terms: Tensor, weights: Tensor | None = None, active_only: bool = False) -> Tensor:
    """Return the mean of terms (T,), weighted by (T,) or plain; `active_only` counts only terms above 0.

    The mean of no terms is 0, with a gradient of 0.
    """
    weights = torch.ones_like(terms) if weights is None else weights
    counted = weights * (terms > 0) if active_only else weights
    return (weights * terms).sum() / counted.sum().clamp(min=torch.finfo(terms.dtype).tiny)


def head_loss(logits: Tensor, labels: Tensor, kind: str, melanoma_weight: float = 1.0) -> Tensor:
    """Return the head's mean loss: binary cross-entropy, or with `kind` focal the focal loss (Lin et al. 2017, eq. 4).

    Parameters
    ----------
    logits : float tensor of shape (B,), log odds of melanoma
    labels : int tensor of shape (B,)
    kind : bce or focal
    melanoma_weight : weight of a melanoma against a benign image's 1
    """
    truth = labels.to(logits.dtype)
    if kind == "focal":
        terms = import_torchvision().ops.sigmoid_focal_loss(logits, truth, alpha=-1, gamma=FOCUS)
    else:
        terms = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return weighted_mean(terms, 1 + (melanoma_weight - 1) * truth)


@dataclass(frozen=True)
class SiameseLoss:
    """The loss of one batch: that of its pairs or triplets, and that of the head.

    loss : contrastive or triplet
    margin, positive_margin : see `contrastive_terms` and `triplet_terms`
    active_only : the mean is over the pairs that still have a loss
    melanoma_weight : weight of a melanoma in the head's loss, and of a pair or triplet that one is the first of
    pair_weight : weight of the pairs' loss
    head : none, bce or focal, whose weight is 1
    """

    loss: str = "contrastive"
    margin: float = 0.5
    positive_margin: float = 0.0
    active_only: bool = False
    melanoma_weight: float = 1.0
    pair_weight: float = 1.0
    head: str = "none"

    def __call__(
        self,
        embeddings: Tensor,
        logits: Tensor,
        labels: Tensor,
        first: Tensor,
        second: Tensor,
        mined_share: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, a scalar, and what the embedding looks like, float (4,), in the order of MEASURES.

        Parameters
        ----------
        embeddings : float tensor of shape (B, D)
        logits : float tensor of shape (B,)
        labels : int tensor of shape (B,), 1 melanoma, 0 benign
        first, second : int64 tensors of shape (P,), the images of each pair
        mined_share : share of the pairs or triplets, the costliest, that count
        """
        loss, measures = self.of_pairs(embeddings, labels, first, second, mined_share)
        return loss + self.of_head(logits, labels), measures

    def of_head(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the head alone, a scalar; 0 where there is none. Arguments as of a call."""
        if self.head == "none":
            return logits.new_zeros(())
        return head_loss(logits, labels, self.head, self.melanoma_weight)

    def of_pairs(
        self, embeddings: Tensor, labels: Tensor, first: Tensor, second: Tensor, mined_share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of the pairs or triplets alone, with its weight; arguments and returns as of a call."""
        distance = pair_distance(embeddings[first], embeddings[second])
        same = labels[first] == labels[second]
        terms = contrastive_terms(distance, same, self.margin, self.positive_margin)
        with_melanoma = (labels[first] | labels[second]).bool()
        groups = same
        if self.loss == "triplet":
            apart = torch.cdist(embeddings, embeddings, compute_mode="donot_use_mm_for_euclid_dist")
            is_pair = torch.zeros_like(apart, dtype=torch.bool)
            is_pair[first, second] = is_pair[second, first] = True
            terms, anchor = triplet_terms(apart, labels, is_pair, self.margin)
            groups = with_melanoma = labels[anchor].bool()
        measures = torch.stack(
            [
                weighted_mean(distance, same.to(distance.dtype)),
                weighted_mean(distance, (~same).to(distance.dtype)),
                weighted_mean((terms > 0).to(distance.dtype)),
                embeddings.std(dim=0, correction=0).square().sum().sqrt(),
            ]
        ).detach()
        weights = 1 + (self.melanoma_weight - 1) * with_melanoma.to(terms.dtype)
        if mined_share < 1:
            weights = weights * hardest(terms, groups, mined_share)
        return self.pair_weight * weighted_mean(terms, weights, self.active_only), measures

    def collapsed(self, unlike_distance: float) -> bool:
        """Say whether the embedding has collapsed: on average unlike images lie all but on one point."""
        return self.pair_weight > 0 and unlike_distance < COLLAPSED * self.margin
