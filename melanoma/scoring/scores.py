"""From embeddings to melanoma scores (large = melanoma), and from scores to a threshold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, logit
from torch import Tensor

from melanoma.scoring import SCORERS

SPECIFICITY = 0.9  # at which a second threshold is chosen
BLOCK = 1024  # images scored at a time: bounds memory at BLOCK × references distances


def usual_scorer(head: bool) -> str:
    """Return the way of scoring of a network with or without a trained head; it is fixed: no image chooses it."""
    return "head" if head else "neighbours"


def mean_distances(embeddings: Tensor, references: Tensor, counts: Sequence[int]) -> Tensor:
    """Return the mean Euclidean distance of embeddings (N, D) to their nearest references of (R, D).

    Returns
    -------
    a row for each count of nearest references, (len(counts), N); of fewer references all count
    """
    centre = references.mean(dim=0)  # near the origin little is lost to cancellation
    blocks = []
    for block in embeddings.split(BLOCK):
        distance = torch.cdist(block - centre, references - centre)
        means = []
        for count in counts:
            some = count < len(references)
            nearest = distance.topk(count, largest=False, sorted=False).values if some else distance
            means.append(nearest.mean(dim=1))
        blocks.append(torch.stack(means))
    return torch.cat(blocks, dim=1)


def reference_scores(embeddings: Tensor, references: np.ndarray, labels: np.ndarray) -> dict[str, Tensor]:
    """Score images by how much nearer they lie to the melanoma references than to the benign ones.

    The distance to a class is the mean over all its references, over the nearest quarter, over the nearest 20, or that
    to the mean of its references (Snell et al. 2017).

    Parameters
    ----------
    embeddings : float tensor of shape (N, D), the images to score
    references : float array of shape (R, D), the training images
    labels : int array of shape (R,), 1 melanoma, 0 benign; both occur

    Returns
    -------
    distance to the benign references minus distance to the melanomas, (N,), by the names of SCORERS but head
    """
    distances = []
    for label in (0, 1):
        own = references[labels == label]
        everyone = torch.from_numpy(own).to(embeddings)
        prototype = torch.from_numpy(own.mean(axis=0, keepdims=True)).to(embeddings)
        counts = [len(own), max(1, round(0.25 * len(own))), 20]
        to_class = [mean_distances(embeddings, everyone, counts), mean_distances(embeddings, prototype, [1])]
        distances.append(torch.cat(to_class))
    benign, melanoma = distances
    return dict(zip(SCORERS[:-1], benign - melanoma, strict=True))


def nearest_references(embeddings: np.ndarray, references: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest K references (R, D), all of fewer than `count`, of each embedding (N, D).

    Returns
    -------
    Euclidean distances, float64 (N, K), the nearest first; their rows of `references`, int64 (N, K)
    """
    # in float64, so that an image that is a reference itself lies at 0 to 7 digits
    points, others = torch.from_numpy(embeddings).double(), torch.from_numpy(references).double()
    nearest = []
    for block in points.split(BLOCK):
        distances = torch.cdist(block, others, compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.topk(min(count, len(references)), largest=False))
    values, rows = (torch.cat(parts).numpy() for parts in zip(*nearest, strict=True))
    return values, rows


def familiarity(distance: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """Return how usual distances (N,) to the nearest reference are: the share of others (V,) as far or farther, (N,).

    usual : distances of images that are like the references but not among them
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
    references, labels : see `reference_scores`
    """
    by_distance = reference_scores(torch.from_numpy(embeddings), references, labels)
    scores = {name: score.double().numpy() for name, score in by_distance.items()}
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
        from sklearn.linear_model import LogisticRegression  # slow to import

        centre, spread = float(scores.mean()), float(scores.std()) or 1.0
        model = LogisticRegression(C=1e4).fit(((scores - centre) / spread)[:, None], labels)
        coefficient = float(model.coef_[0, 0])
        slope = max(coefficient, 1e-6) / spread
        prior = float(np.log(labels.mean() / (1 - labels.mean())))
        return Platt(slope, float(model.intercept_[0] - slope * centre) if coefficient > 0 else prior)

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """Return the log odds of melanoma, float64 (N,), of scores (N,)."""
        return self.slope * scores + self.intercept


class Judge:
    """Turns scores into probabilities of melanoma and these into a decision; fitted on validation, never on test.

    The training batches were half melanomas, validation has the prevalence of the data: the fit corrects for the
    oversampling too.

    Parameters
    ----------
    labels, scores : of validation, (N,); both classes
    prevalence : share of melanomas that probabilities and threshold are for (None: that of validation). The odds are
        shifted by the ratio of the prior odds (Saerens et al. 2002)
    min_sensitivity : see `choose_threshold`
    calibrated : the scores are log odds already, of one run's own curve

    Attributes
    ----------
    threshold : probability from which on a lesion is called melanoma
    specific_threshold : the lowest one with a specificity of 90 % on validation, for comparison
    """

    def __init__(
        self,
        labels: np.ndarray,
        scores: np.ndarray,
        prevalence: float | None = None,
        min_sensitivity: float | None = None,
        calibrated: bool = False,
    ) -> None:
        own = float(labels.mean())
        self.prevalence = own if prevalence is None else prevalence
        self.shift = float(logit(self.prevalence) - logit(own))
        self.platt = Platt(1.0, 0.0) if calibrated else Platt.fit(labels, scores)
        probability = self.probability(scores)
        self.threshold = choose_threshold(labels, probability, min_sensitivity)
        self.specific_threshold = -choose_threshold(1 - labels, -probability, SPECIFICITY)

    def log_odds(self, scores: np.ndarray) -> np.ndarray:
        """Return the log odds of melanoma, float64 (N,), of scores (N,)."""
        return self.platt.log_odds(scores) + self.shift

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return the probability of melanoma, float64 (N,) in 0..1, of scores (N,)."""
        return expit(self.log_odds(scores))


def choose_threshold(labels: np.ndarray, scores: np.ndarray, min_sensitivity: float | None = None) -> float:
    """Choose the score from which on a lesion is called melanoma, on validation, never on test.

    Parameters
    ----------
    labels, scores : (N,); both classes
    min_sensitivity : None takes the threshold whose smaller one of sensitivity and specificity is largest: it serves
        both classes alike, and moves less from sample to sample than Youden's maximum of their sum. A share in 0..1
        takes the most specific threshold that still finds at least that share of the melanomas

    Returns
    -------
    a threshold halfway between two neighbouring scores (or the lowest score); melanoma is score >= threshold
    """
    cuts = np.unique(scores)[::-1]
    sides = [np.sort(scores[labels == label]) for label in (0, 1)]
    false_rate, true_rate = ((len(own) - np.searchsorted(own, cuts)) / len(own) for own in sides)
    if min_sensitivity is None:
        smaller = np.minimum(true_rate, 1 - false_rate)
        best = int(np.lexsort((true_rate - false_rate, smaller))[-1])  # of equals, the larger rate decides
    else:
        best = int(np.argmax(true_rate >= min_sensitivity))  # rates rise: the first is the most specific
    below = cuts[best + 1] if best + 1 < len(cuts) else cuts[best]
    middle = float((cuts[best] + below) / 2)
    return middle if middle > below else float(cuts[best])  # no number fits between, or there is none below
