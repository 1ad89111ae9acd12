"""What a batch costs: contrastive or triplet loss of its pairs, mining, the head's loss, and a watch on collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modules import import_torchvision

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
