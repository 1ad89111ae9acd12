"""The networks and losses: one embedding network for both images of a pair, and losses of their distance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import Config
from melanoma.backbones import Backbone, TimmBackbone, import_torchvision
from melanoma.common.device import autocast
from melanoma.common.settings import from_dict
from melanoma.data.augment import Normalize

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of its colour channels
HEAD_SCALE = 16.0  # of a unit-length embedding before the head: else its logit could hardly leave -1..1
FOCUS = 2.0  # gamma of the focal loss: the value that Lin et al. 2017 found best
COLLAPSED = 0.01  # mean distance of unlike pairs, as a share of the margin, below which the embedding has collapsed
DIVERGED = 1e6  # times the loss of all images on one point: like pairs lie some 1000 margins apart
SETTLED = 100  # training steps before the running statistics of batch normalisation are reliable
MEASURES = ("like_distance", "unlike_distance", "active_share", "spread")


# --- network ---


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
        self.normalize = Normalize(*IMAGENET)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel_size=3, padding=1) for inner, outer in pairwise(channels)
        )
        self.fc1 = nn.Linear(channels[-1] * (image_size // 8) ** 2, self.features)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, 512), of images, float (B, 3, S, S), normalised."""
        for convolution in self.convolutions:
            images = F.relu_(F.max_pool2d(convolution(images), 2))
        return F.relu(self.fc1(images.flatten(1)))

    def blocks(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each layer."""
        return [list(layer.parameters()) for layer in (*self.convolutions, self.fc1)]


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
        self, backbone: Backbone, embedding_dim: int, normalize: bool = False, dropout: float = 0.0, head: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.fc_embedding = nn.Linear(backbone.features, embedding_dim)
        self.unit_length = normalize
        self.head: nn.Linear | None = None
        if head:
            self.head = nn.Linear(embedding_dim, 1)
            nn.init.zeros_(self.head.weight)  # every lesion starts at even odds
            nn.init.zeros_(self.head.bias)
        self.norms_frozen = False

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (B, D), of images, float (B, 3, S, S), normalised: see `show`.

        They and the logits are computed in float32 whatever the backbone computes in: in bfloat16 many would be equal.
        """
        features = self.dropout(self.backbone(images))
        with autocast(images.device, torch.float32):
            embeddings = self.fc_embedding(features.float())
        return F.normalize(embeddings, dim=1) if self.unit_length else embeddings

    def logits(self, embeddings: Tensor) -> Tensor:
        """Return the head's log odds of melanoma, float32 (B,), of embeddings (B, D); zeros without a head.

        The odds are those of the training batches, of which half are melanomas.
        """
        if self.head is None:
            return embeddings.new_zeros(len(embeddings))
        with autocast(embeddings.device, torch.float32):
            return self.head(embeddings * HEAD_SCALE if self.unit_length else embeddings).squeeze(1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return embeddings, (B, D), and logits, (B,), of images, float (B, 3, S, S), normalised: see `show`."""
        embeddings = self.embed(images)
        return embeddings, self.logits(embeddings)

    def freeze(self, blocks: int) -> None:
        """Keep the first blocks of the backbone from being trained; 0 trains all.

        Above 0 all batch normalisation of the backbone stays in evaluation mode, with its present statistics.
        """
        for parameter in chain.from_iterable(self.backbone.blocks()[:blocks]):
            parameter.requires_grad_(False)
        self.norms_frozen = blocks > 0
        self.train(self.training)

    @property
    def settled(self) -> bool:
        """Whether trained batch normalisation, if there is any, has been trained for SETTLED steps.

        Before that the statistics of evaluation mode are not yet those of the network. A deep one without pretrained
        weights then embeds all images alike, or far apart, in evaluation mode alone.
        """
        steps = [norm.num_batches_tracked for norm in self._norms()]
        return self.norms_frozen or all(int(taken) >= SETTLED for taken in steps if taken is not None)

    def train(self, mode: bool = True) -> SiameseNetwork:
        """Set training or evaluation mode; batch normalisation that `freeze` keeps stays in evaluation mode."""
        super().train(mode)
        if self.norms_frozen:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        return [m for m in self.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def network_of(config: Config, weights: str = "none") -> SiameseNetwork:
    """Return the network that the settings describe, its weights drawn from torch's global generator.

    It is in channels-last memory, the layout in which pixels are stored and convolutions are fastest.

    weights : of a backbone of timm, see `TimmBackbone`

    Raises
    ------
    InputError : unknown backbone, or weights that are missing or do not fit
    """
    if config.backbone == "conv3":
        backbone: Backbone = Conv3(config.image_size)
    else:
        backbone = TimmBackbone(config.backbone, config.image_size, weights, config.grid)
    backbone.normalize.grey = config.colour_constancy
    head = config.head != "none"
    network = SiameseNetwork(backbone, config.embedding_dim, config.normalize, config.dropout, head)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def stored_network(settings: Mapping[str, Any]) -> SiameseNetwork:
    """Return the network that settings stored with a model describe; see `network_of`."""
    return network_of(from_dict(Config, settings, "its settings"))


# --- loss ---


def pair_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair, (..., P), of embeddings (..., P, D); its gradient at 0 is 0."""
    return torch.linalg.vector_norm(first - second, dim=-1)


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
    return 0.5 * torch.where(same, F.relu(distance - positive_margin), F.relu(margin - distance)).square()


def hardest(terms: Tensor, groups: tuple[Tensor, Tensor], share: float) -> Tensor:
    """Return which terms to train on, bool (P,): of each group the costliest, `share` of it, rounded up.

    Equal costs at the border are all kept. Nothing waits for a GPU: no shape depends on how large a group is.

    Parameters
    ----------
    terms : float tensor of shape (P,), the losses, >= 0
    groups : bool tensors of shape (P,): like pairs and unlike ones, mined apart so that neither crowds out the other
    share : above 0, at most 1
    """
    kept = torch.zeros_like(groups[0])
    for group in groups:
        own = torch.where(group, terms.detach(), -1.0)
        last = (share * group.sum()).ceil().long().clamp(min=1) - 1
        kept |= group & (own >= own.sort(descending=True).values.gather(0, last.view(1)))
    return kept


def masked_mean(terms: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the terms (T,) that a bool mask (T,) marks; of none it is 0, with a gradient of 0."""
    return (mask * terms).sum() / mask.sum().clamp(min=1)


@dataclass(frozen=True)
class SiameseLoss:
    """The loss of a batch: contrastive loss of its pairs, and the head's.

    Parameters
    ----------
    margin, positive_margin : see `contrastive_terms`
    active_only : the mean is over the pairs whose loss is above 0
    pair_weight : weight of the pair loss
    head : none, bce or focal, whose weight is 1
    """

    margin: float = 0.5
    positive_margin: float = 0.0
    active_only: bool = False
    pair_weight: float = 1.0
    head: str = "none"

    def __call__(
        self,
        embeddings: Tensor,
        logits: Tensor,
        labels: Tensor,
        same: Tensor,
        met: Tensor | None = None,
        mined_share: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss of pairs and head, a scalar, and measures, (4,); arguments as of the two methods below."""
        loss, measures = self.of_pairs(embeddings, same, met, mined_share)
        return loss + self.of_head(logits, labels), measures

    def of_head(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the head's mean loss, a scalar: binary cross-entropy, or focal loss (Lin et al. 2017, eq. 4).

        logits : float tensor of shape (B,), log odds of melanoma; without a head their loss is 0
        labels : int tensor of shape (B,), 1 melanoma, 0 benign
        """
        if self.head == "none":
            return logits.new_zeros(())
        truth = labels.to(logits.dtype)
        if self.head == "focal":
            focal = import_torchvision().ops.sigmoid_focal_loss
            return focal(logits, truth, alpha=-1, gamma=FOCUS, reduction="mean")
        return F.binary_cross_entropy_with_logits(logits, truth)

    def of_pairs(
        self, embeddings: Tensor, same: Tensor, met: Tensor | None = None, mined_share: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted loss of the pairs, a scalar, and measures of the embedding, (4,), as MEASURES names them.

        Parameters
        ----------
        embeddings : float tensor of shape (B, D)
        same, met : bool tensors, which images meet and whether they have one label: see `dataset.Batch`
        mined_share : share of the pairs, the costliest, that count
        """
        if met is None:
            first, second = embeddings.chunk(2)
            met = torch.ones_like(same)
        else:  # all with all: pairs that do not count are masked out, so that shapes never change
            first, second = embeddings[:, None], embeddings
        distance = pair_distance(first, second).flatten()
        same, met = same.flatten(), met.flatten()
        like, unlike = met & same, met & ~same
        terms = contrastive_terms(distance, same, self.margin, self.positive_margin)
        measures = torch.stack(
            [
                masked_mean(distance, like),
                masked_mean(distance, unlike),
                masked_mean((terms > 0).to(terms.dtype), met),
                embeddings.var(dim=0, correction=0).sum().sqrt(),
            ]
        ).detach()
        counted = hardest(terms, (like, unlike), mined_share) if mined_share < 1 else met
        if self.active_only:
            counted = counted & (terms > 0)
        return self.pair_weight * masked_mean(terms, counted), measures

    @property
    def on_one_point(self) -> float:
        """The most that the loss can be if all images lie on one point, at even odds: all pairs are unlike."""
        return self.pair_weight * self.margin**2 / 2 + (math.log(2) if self.head != "none" else 0.0)

    def diverged(self, value: float) -> bool:
        """Return whether a training has diverged: its loss is far above that of an embedding that tells nothing."""
        return value > DIVERGED * self.on_one_point

    def collapsed(self, unlike_distance: float) -> bool:
        """Return whether the embedding has collapsed: unlike images lie on almost one point on average."""
        return self.pair_weight > 0 and unlike_distance < COLLAPSED * self.margin


def loss_of(config: Config) -> SiameseLoss:
    """Return the loss that the settings describe."""
    return SiameseLoss(
        margin=config.margin,
        positive_margin=config.positive_margin,
        active_only=config.average == "active",
        pair_weight=config.pair_weight,
        head=config.head,
    )
