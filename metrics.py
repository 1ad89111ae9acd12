"""Figures of merit: pure functions of labels (1 melanoma, 0 benign), scores (large = melanoma) and a threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve


def evaluate(labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray) -> dict[str, Any]:
    """Return the figures of one set of lesions as JSON values; those that cannot be computed are None.

    Parameters
    ----------
    labels : int array of shape (N,), N >= 1
    scores : finite float array of shape (N,); probabilities, if Brier score and calibration error are to mean something
    threshold : a lesion is called melanoma where score >= threshold; one for all, or an array of shape (N,)
    """
    melanoma = labels == 1
    n, n_melanoma = len(labels), int(melanoma.sum())
    both = 0 < n_melanoma < n
    counts = count_outcomes(labels, scores, threshold)
    tp, fp, tn, fn = (counts[key] for key in ("tp", "fp", "tn", "fn"))
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "auc": float(roc_auc_score(melanoma, scores)) if both else None,
        "average_precision": float(average_precision_score(melanoma, scores)) if n_melanoma else None,
        "accuracy": (tp + tn) / n,
        "always_benign_accuracy": (n - n_melanoma) / n,
        "balanced_accuracy": None
        if sensitivity is None or specificity is None
        else (sensitivity + specificity) / 2,
        "precision": _ratio(tp, tp + fp),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "sensitivity_at_specificity": {
            f"{share:.0%}": sensitivity_at(labels, scores, share) for share in (0.8, 0.9, 0.95)
        },
        "brier": float(np.mean((scores - melanoma) ** 2)),
        "ece": calibration_error(labels, scores),
        "threshold": float(np.mean(threshold)),
        "counts": counts,
        "n": n,
        "n_melanoma": n_melanoma,
    }


def sensitivity_at(labels: np.ndarray, scores: np.ndarray, specificity: float) -> float | None:
    """Return the largest sensitivity among thresholds of at least this specificity; None where a class is absent."""
    melanoma = labels == 1
    if melanoma.all() or not melanoma.any():
        return None
    false_rate, true_rate, _ = roc_curve(melanoma, scores, drop_intermediate=False)
    return float(true_rate[false_rate <= 1 - specificity + 1e-12].max())


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = 10) -> float:
    """Return the expected calibration error (Naeini et al. 2015): bins of equal width over 0..1.

    The mean over images of how far the share of melanomas in their bin is from their bin's mean probability.
    """
    place = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    gap = np.bincount(place, labels - probabilities, bins)  # (share - mean probability) × count of each bin
    return float(np.abs(gap).sum() / len(labels))


def count_outcomes(labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray) -> dict[str, int]:
    """Return how many lesions are true and false positives and negatives: {tp, fp, tn, fn}."""
    melanoma, called = labels == 1, scores >= threshold
    return {
        "tp": int((called & melanoma).sum()),
        "fp": int((called & ~melanoma).sum()),
        "tn": int((~called & ~melanoma).sum()),
        "fn": int((~called & melanoma).sum()),
    }


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = 2000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Return a bootstrap percentile interval of the ROC AUC, whole patients drawn with replacement.

    Parameters
    ----------
    labels, scores : arrays of shape (N,)
    groups : array of shape (N,), the patient of each image
    rng : source of the draws
    draws : resamplings; those that lack a class are left out
    level : coverage of the interval

    Returns
    -------
    (low, high), or None where a class is absent
    """
    melanoma = labels == 1
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1
    level_of, place = np.unique(scores, return_inverse=True)  # equal scores count half
    aucs = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(0, n_groups, n_groups), minlength=n_groups)[group]
        positive = np.bincount(place, weight * melanoma, len(level_of))
        negative = np.bincount(place, weight * ~melanoma, len(level_of))
        wins = positive @ (np.cumsum(negative) - negative / 2)
        total = positive.sum() * negative.sum()
        if total:
            aucs.append(wins / total)
    if not aucs:
        return None
    low, high = np.quantile(aucs, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
