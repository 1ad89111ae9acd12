"""From embeddings to melanoma scores (large = melanoma), and from scores to a threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

# Of the references of either class, the nearest ones that a score by distance counts: all, a share, or so many at most
COUNTED: dict[str, dict[str, Any]] = {
    "distance": {},
    "nearest": {"share": 0.25},
    "neighbours": {"most": 20},
    "prototype": {},
}
SCORERS = (*COUNTED, "head")
BLOCK = 1024  # images scored at a time: bounds memory at BLOCK × references distances


def mean_distance(embeddings: Tensor, references: Tensor, nearest: int | None = None) -> Tensor:
    """Return the mean Euclidean distance of embeddings (N, D) to references (R, D), or to the nearest, (N,)."""
    centre = references.mean(dim=0)  # near the origin little is lost to cancellation
    means = []
    for block in embeddings.split(BLOCK):
        distance = torch.cdist(block - centre, references - centre)
        if nearest is not None and nearest < len(references):
            distance = distance.topk(nearest, largest=False, sorted=False).values
        means.append(distance.mean(dim=1))
    return torch.cat(means)


def reference_score(
    embeddings: Tensor, references: Sequence[Tensor], share: float = 1.0, most: int | None = None
) -> Tensor:
    """Score images by how much nearer they lie to the melanoma references than to the benign ones.

    Parameters
    ----------
    embeddings : float tensor of shape (N, D), the images to score
    references : float tensors of shape (R, D), the benign ones and the melanomas
    share : of either class, the nearest references count, one at least
    most : as many of either class at most

    Returns
    -------
    float tensor of shape (N,): mean distance to the benign references minus mean distance to the melanomas
    """
    benign, melanoma = (
        mean_distance(embeddings, own, min(max(1, round(share * len(own))), most or len(own))) for own in references
    )
    return benign - melanoma


def references_of(scorer: str, references: np.ndarray, labels: np.ndarray) -> list[Tensor]:
    """Return what a way of scoring compares a lesion with: benign references and melanomas, (R, D) each.

    For `prototype` it is the mean embedding of each class, (1, D) (Snell et al. 2017).

    Parameters
    ----------
    references : float array of shape (R, D), the training images
    labels : int array of shape (R,), 1 melanoma, 0 benign; both must occur
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("references of both classes are needed")
    classes = [references[labels == label] for label in (0, 1)]
    if scorer == "prototype":
        classes = [own.mean(axis=0, keepdims=True) for own in classes]
    return [torch.from_numpy(own) for own in classes]


def nearest_references(embeddings: np.ndarray, references: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest references of each image.

    Parameters
    ----------
    embeddings : float array of shape (N, D)
    references : float array of shape (R, D)
    count : K, of fewer references all are found

    Returns
    -------
    distances : float64 array of shape (N, K), Euclidean, the nearest first
    places : int64 array of shape (N, K), rows of `references`
    """
    # in float64, so that an image that is a reference itself lies at 0 to 7 digits
    search = NearestNeighbors(n_neighbors=min(count, len(references)), algorithm="brute")
    return search.fit(references.astype(np.float64)).kneighbors(embeddings.astype(np.float64))


def familiarity(distance: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return how usual it is to lie as far from the nearest reference.

    Parameters
    ----------
    distance : float array of shape (N,), of each image to its nearest reference
    usual : float array of shape (V,), the same of images that are like the references but not among them

    Returns
    -------
    float64 array of shape (N,): share of `usual` that is as far or farther; 1 nearer than all, 0 farther than all
    """
    return 1 - np.searchsorted(np.sort(usual), distance) / len(usual)


def score_all(
    embeddings: np.ndarray, logits: np.ndarray | None, references: np.ndarray, labels: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the scores, float64 (N,), of every way to judge a lesion, by its name; large means melanoma in each.

    Parameters
    ----------
    embeddings : float array of shape (N, D), the images to score
    logits : float array of shape (N,), the head's; None where the network has none
    references, labels : see `references_of`
    """
    points = torch.from_numpy(embeddings)
    scores = {
        name: reference_score(points, references_of(name, references, labels), **counted).double().numpy()
        for name, counted in COUNTED.items()
    }
    if logits is not None:
        scores["head"] = logits.astype(np.float64)
    return scores


@dataclass(frozen=True)
class Platt:
    """A line from scores to the log odds of melanoma (Platt 1999): slope, above 0, times score, plus intercept."""

    slope: float
    intercept: float

    @staticmethod
    def fit(labels: np.ndarray, scores: np.ndarray) -> Platt:
        """Fit the curve to labels (N,), both classes, and scores (N,), by maximum likelihood.

        Scores that rank the wrong way round get a slope of nearly 0: calibration must not turn a wrong sign right.
        """
        centre, spread = scores.mean(), scores.std() or 1.0
        model = LogisticRegression(C=1e4).fit(((scores - centre) / spread)[:, None], labels)
        slope = max(float(model.coef_[0, 0]) / spread, 1e-6 / spread)
        prior = float(np.log(labels.mean() / (1 - labels.mean())))
        turned = model.coef_[0, 0] <= 0
        return Platt(slope, prior if turned else float(model.intercept_[0] - slope * centre))

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """Return the log odds of melanoma, float64 (N,), of scores (N,)."""
        return self.slope * scores + self.intercept


class Judge:
    """Turns scores into probabilities of melanoma and these into a decision; fitted on validation, never on test.

    The training batches were half melanomas, validation has the prevalence of the data: the fit corrects for the
    oversampling too.

    Parameters
    ----------
    labels : int array of shape (N,), of validation, both classes
    scores : float array of shape (N,)
    prevalence : share of melanomas where the probabilities are to hold, and the threshold with them; None takes that
        of validation. The odds are shifted by the ratio of the prior odds (Saerens et al. 2002)
    min_sensitivity : see `choose_threshold`
    """

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        prevalence: float | None = None,
        min_sensitivity: float | None = None,
    ) -> None:
        own = float(labels.mean())
        self.prevalence = own if prevalence is None else prevalence
        self.shift = float(logit(self.prevalence) - logit(own))
        self.platt = Platt.fit(labels, scores)
        self.threshold = choose_threshold(labels, self.probability(scores), min_sensitivity)

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """Return the log odds of melanoma, float64 (N,), of scores (N,)."""
        return self.platt.log_odds(scores) + self.shift

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of melanoma, float64 (N,) in 0..1, of scores (N,)."""
        return expit(self.log_odds(scores))


def best_scorer(labels: np.ndarray, scores: Mapping[str, np.ndarray]) -> str:
    """Return the name of the scores (N,) with the highest AUC on labels (N,), the first of equals."""
    return max(scores, key=lambda name: roc_auc_score(labels, scores[name]))


def choose_threshold(labels: np.ndarray, scores: np.ndarray, min_sensitivity: float | None = None) -> float:
    """Choose the score from which on a lesion is called melanoma.

    Call it on validation, never on test.

    Parameters
    ----------
    labels : int array of shape (N,), both classes
    scores : float array of shape (N,)
    min_sensitivity : None takes the threshold whose smaller one of sensitivity and specificity is largest: it serves
        both classes alike, and moves less from sample to sample than Youden's maximum of their sum. A share in 0..1
        takes the most specific threshold that still finds at least that share of the melanomas

    Returns
    -------
    a threshold halfway between two neighbouring scores (or the lowest score); melanoma is score >= threshold
    """
    false_rate, true_rate, cuts = roc_curve(labels, scores, drop_intermediate=False)
    false_rate, true_rate, cuts = false_rate[1:], true_rate[1:], cuts[1:]  # the first calls nothing melanoma
    if min_sensitivity is None:
        smaller = np.minimum(true_rate, 1 - false_rate)
        best = int(np.lexsort((true_rate - false_rate, smaller))[-1])  # of equals, the larger rate decides
    else:
        best = int(np.argmax(true_rate >= min_sensitivity))  # rates rise: the first is the most specific
    below = cuts[best + 1] if best + 1 < len(cuts) else cuts[best]
    middle = float((cuts[best] + below) / 2)
    return middle if middle > below else float(cuts[best])  # no number fits between, or there is none below
