"""Intervals by bootstrap over patients: whole patients are drawn with replacement, all their lesions with them.

Lesions of one patient resemble each other, so they are less evidence than as many lesions of different patients: an
interval that took them for independent would be too narrow. All draws of a block are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from melanoma.evaluation.metrics import (
    absent_class,
    auc,
    check_scores,
    count_outcomes,
    nested,
    rate,
    roc_counts,
    weighted_figures,
)

DRAWS = 2000
LEVEL = 0.95  # share of the draws within an interval
BLOCK = 2**17  # weights at a time, 1 MB: what is computed from them stays in the processor's cache


def intervals(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float | np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return a 95 % percentile interval, [low, high], of every figure of `metrics.evaluate`, nested as there.

    An interval is None where the figure cannot be computed; draws in which it cannot (they lack a class, say) are left
    out. A calibration error is never negative and grows with the noise of the draws: its interval lies high, and may
    even lie above the figure where calibration is very good.

    Parameters
    ----------
    labels, scores, threshold : see `metrics.evaluate`
    groups : array of shape (N,), the patient of each lesion
    rng : source of the draws
    draws : resamplings
    """
    check_scores(labels, scores)
    blocks = [
        weighted_figures(labels, scores, threshold, weights) for weights in weightings(groups, rng, draws)
    ]
    return nested(
        {name: percentiles(np.concatenate([block[name] for block in blocks])) for name in blocks[0]}
    )


def auc_interval(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> list[float] | None:
    """Return the interval of the ROC AUC alone, [low, high]; None where a class is absent. See `intervals`."""
    check_scores(labels, scores)
    return percentiles(
        _draw(lambda weights: auc(*roc_counts(labels, scores, weights)), groups, rng, draws), level
    )


def roc_band(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the ROC curve lies: at each of 101 false positive rates, the interval of sensitivity there.

    Pointwise, and vertical: by the draws of `intervals`, those left out that lack a class. Both classes must occur.

    Returns
    -------
    1 - specificity, and the lowest and the highest sensitivity, float64 (101,) each
    """
    check_scores(labels, scores)
    grid = np.linspace(0, 1, 101)

    def sensitivities(weights: np.ndarray) -> np.ndarray:
        tp, fp = roc_counts(labels, scores, weights)
        both = (tp[:, -1] > 0) & (fp[:, -1] > 0)
        curves = zip(tp[both], fp[both], strict=True)
        drawn = [np.interp(grid, false / false[-1], true / true[-1]) for true, false in curves]
        return np.reshape(drawn, (-1, len(grid)))  # a block may have no such draw

    low, high = np.quantile(
        _draw(sensitivities, groups, rng, draws), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0
    )
    return grid, low, high


def compare(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return by how much the AUC of a exceeds that of b on the same lesions, with a paired bootstrap over patients.

    Both are computed on the same draws, so what they have in common, easy and hard patients, cancels.

    Parameters
    ----------
    labels : int array of shape (N,)
    scores_a, scores_b : finite float arrays of shape (N,), each of any scale
    groups, rng, draws : see `intervals`

    Returns
    -------
    {auc_a, auc_b, difference, interval, p, not_computed}. interval : 95 %, of the difference. p : two-sided, of no
    difference: twice the smaller share of draws on either side of 0, one draw added to both counts (Davison and
    Hinkley 1997, eq. 4.11); but for rounding it is below 0.05 just when the interval leaves out 0. not_computed : why
    the others are None, where a class is absent
    """
    check_scores(labels, scores_a)
    check_scores(labels, scores_b)

    def both(weights: np.ndarray) -> np.ndarray:
        return np.stack(
            [auc(*roc_counts(labels, scores, weights)) for scores in (scores_a, scores_b)], axis=1
        )

    reason = absent_class(labels)
    if reason:
        return dict.fromkeys(("auc_a", "auc_b", "difference", "interval", "p")) | {"not_computed": reason}
    a, b = both(np.ones((1, len(labels))))[0]
    drawn = _draw(both, groups, rng, draws)
    differences = drawn[:, 0] - drawn[:, 1]
    differences = differences[~np.isnan(differences)]
    sides = [(differences <= 0).sum(), (differences >= 0).sum()]
    return {
        "auc_a": float(a),
        "auc_b": float(b),
        "difference": float(a - b),
        "interval": percentiles(differences),
        "p": min(1.0, float(2 * (min(sides) + 1) / (len(differences) + 1))),
        "not_computed": None,
    }


def brief_figures(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float | np.ndarray,
    groups: np.ndarray,
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return what a row of a table says of some lesions; arguments as `intervals`.

    Returns
    -------
    {n, n_melanoma, auc, auc_interval, sensitivity, specificity}, the last two as `metrics.rate`
    """
    check_scores(labels, scores)
    counts = count_outcomes(labels, scores, threshold)
    tp, fp, tn, fn = (counts[key] for key in ("tp", "fp", "tn", "fn"))
    value = auc(*roc_counts(labels, scores, np.ones((1, len(labels)))))[0]
    return {
        "n": len(labels),
        "n_melanoma": tp + fn,
        "auc": None if np.isnan(value) else float(value),
        "auc_interval": auc_interval(labels, scores, groups, rng, draws),
        "sensitivity": rate(tp, tp + fn),
        "specificity": rate(tn, tn + fp),
    }


def fold_figures(table: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return a row for each fold of judged lesions, {fold, ...} as `brief_figures`, in order of the folds.

    table : columns label, probability, threshold, patient_id and fold
    """
    return [{"fold": int(fold), **table_figures(own, rng, draws)} for fold, own in table.groupby("fold")]


def table_figures(table: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS) -> dict[str, Any]:
    """Return `brief_figures` of judged lesions: columns label, probability, threshold and patient_id."""
    label, probability, threshold, patient = (
        table[name].to_numpy() for name in ("label", "probability", "threshold", "patient_id")
    )
    return brief_figures(label, probability, threshold, patient, rng, draws)


# --- draws ---


def weightings(groups: np.ndarray, rng: np.random.Generator, draws: int) -> Iterator[np.ndarray]:
    """Yield blocks of draws of as many patients as there are, float64 (B, N): how often each lesion was drawn."""
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1
    size = max(1, BLOCK // len(group))
    for start in range(0, draws, size):
        block = min(size, draws - start)
        drawn = rng.integers(0, n_groups, (block, n_groups)) + n_groups * np.arange(block)[:, None]
        times = np.bincount(drawn.ravel(), minlength=block * n_groups).reshape(block, n_groups)
        yield times[:, group].astype(float)


def percentiles(values: np.ndarray, level: float = LEVEL) -> list[float] | None:
    """Return the percentile interval of draws (B,) of a figure, [low, high], NaNs left out; None if all are."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [float(low), float(high)]


def _draw(
    figure: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, rng: np.random.Generator, draws: int
) -> np.ndarray:
    """Return a figure of weights (B, N) in every draw: (draws, ...)."""
    return np.concatenate([figure(weights) for weights in weightings(groups, rng, draws)])
