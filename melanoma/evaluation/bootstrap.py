"""Intervals by bootstrap over groups: they are drawn with replacement, each with all its lesions.

A group is a patient, or a lesion or image where nothing else is known, see `split.group_images`. Lesions of one patient
resemble each other and carry less information than lesions of different patients; intervals that assume independent
lesions are too narrow. Over a few groups the draws show hardly any of the variation: there is no interval then, see
`too_few`. The draws of a block are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator

from melanoma.evaluation.metrics import absent_class, auc, evaluate, nested, roc_counts, weighted_metrics

DRAWS = 2000
INTERVAL = ((1 - 0.95) / 2, (1 + 0.95) / 2)  # quantiles at its ends
LEAST_GROUPS, LEAST_OF_CLASS = 10, 5  # that an interval needs, in all and with a lesion of each class
BLOCK = 2**17  # weights at a time, 1 MB: intermediate arrays fit the processor's cache


def too_few(labels: np.ndarray, groups: np.ndarray) -> str | None:
    """Return why the groups (N,) of labels (N,) are too few for an interval, or None.

    It needs 10 groups, 5 with a melanoma and 5 with a benign lesion.
    """
    n, melanoma, benign = (len(pd.unique(own)) for own in (groups, groups[labels == 1], groups[labels == 0]))
    if n >= LEAST_GROUPS and min(melanoma, benign) >= LEAST_OF_CLASS:
        return None
    return (
        f"only {n:,} patients (groups), {melanoma:,} with a melanoma and {benign:,} with a benign lesion: an interval "
        f"needs {LEAST_GROUPS}, {LEAST_OF_CLASS} and {LEAST_OF_CLASS}"
    )


def intervals(
    labels: np.ndarray,
    scores: np.ndarray,
    threshold: float | np.ndarray,
    groups: np.ndarray,
    rng: Generator,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return a 95 % percentile interval, [low, high], of every metric of `metrics.evaluate`, nested as there.

    An interval is None if the groups are `too_few` or the metric cannot be computed; draws in which it cannot (a class
    is absent, for example) are left out. The calibration error is never negative and grows with the noise of the draws:
    its interval is biased upwards, and can lie above the value itself if calibration is very good.

    Parameters
    ----------
    labels, scores, threshold : see `metrics.evaluate`
    groups : array of shape (N,), the group of each lesion
    rng : source of the draws
    draws : number of bootstrap samples
    """
    if too_few(labels, groups):
        return nested(dict.fromkeys(weighted_metrics(labels, scores, threshold, np.ones((1, len(labels))))))
    blocks = [weighted_metrics(labels, scores, threshold, weights) for weights in weightings(groups, rng, draws)]
    return nested({name: percentiles(np.concatenate([own[name] for own in blocks])) for name in blocks[0]})


def auc_interval(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, rng: Generator, draws: int = DRAWS
) -> list[float] | None:
    """Return the interval of the ROC AUC alone, [low, high]; None if the groups are `too_few`. See `intervals`."""
    if too_few(labels, groups):
        return None
    return percentiles(_draw(lambda weights: auc(*roc_counts(labels, scores, weights)), groups, rng, draws))


def roc_band(
    labels: np.ndarray, scores: np.ndarray, groups: np.ndarray, rng: Generator, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the pointwise 95 % interval of the ROC curve's sensitivity at 101 false positive rates.

    It is None if the groups are `too_few`. Draws that lack a class are left out.

    Returns
    -------
    1 - specificity, and the lowest and the highest sensitivity, float64 (101,) each
    """
    if too_few(labels, groups):
        return None
    grid = np.linspace(0, 1, 101)

    def sensitivities(weights: np.ndarray) -> np.ndarray:
        tp, fp = roc_counts(labels, scores, weights)
        both = (tp[:, -1] > 0) & (fp[:, -1] > 0)
        curves = zip(tp[both], fp[both], strict=True)
        drawn = [np.interp(grid, false / false[-1], true / true[-1]) for true, false in curves]
        return np.reshape(drawn, (-1, len(grid)))  # a block may have no such draw

    drawn = _draw(sensitivities, groups, rng, draws)
    low, high = np.quantile(drawn, INTERVAL, axis=0)
    return grid, low, high


def compare(
    labels: np.ndarray,
    scores_a: np.ndarray,
    scores_b: np.ndarray,
    groups: np.ndarray,
    rng: Generator,
    draws: int = DRAWS,
) -> dict[str, Any]:
    """Return the difference of two AUCs on the same lesions, by a paired bootstrap over groups.

    Parameters
    ----------
    labels : int array of shape (N,)
    scores_a, scores_b : finite float arrays of shape (N,), each of any scale
    groups, rng, draws : see `intervals`

    Returns
    -------
    {auc_a, auc_b, difference, interval, p, not_computed}. difference : a minus b. interval : 95 %, of the difference.
    p : two-sided, of no difference: twice the smaller share of draws on either side of 0, with one added to both counts
    (Davison and Hinkley 1997, eq. 4.11); except for rounding, p < 0.05 if and only if the interval excludes 0.
    not_computed : the reason if a class is absent, all others are then None; or if the groups are `too_few`, interval
    and p are then None
    """
    reason = absent_class(len(labels), int(labels.sum()))
    if reason:
        return dict.fromkeys(("auc_a", "auc_b", "difference", "interval", "p")) | {"not_computed": reason}

    def difference_of(weights: np.ndarray) -> np.ndarray:
        return auc(*roc_counts(labels, scores_a, weights)) - auc(*roc_counts(labels, scores_b, weights))

    once = np.ones((1, len(labels)))
    a, b = (float(auc(*roc_counts(labels, scores, once))[0]) for scores in (scores_a, scores_b))
    found = {"auc_a": a, "auc_b": b, "difference": a - b}
    few = too_few(labels, groups)
    if few:
        return found | {"interval": None, "p": None, "not_computed": few}
    differences = _draw(difference_of, groups, rng, draws)
    differences = differences[~np.isnan(differences)]
    sides = [(differences <= 0).sum(), (differences >= 0).sum()]
    p = min(1.0, float(2 * (min(sides) + 1) / (len(differences) + 1)))
    return found | {"interval": percentiles(differences), "p": p, "not_computed": None}


def brief_metrics(table: pd.DataFrame, rng: Generator, draws: int = DRAWS) -> dict[str, Any]:
    """Return {n, n_melanoma, auc, auc_interval, sensitivity, specificity, note} of a fold or subgroup.

    table : judged lesions: columns label, probability, threshold and group
    sensitivity, specificity : as `metrics.rate`
    note : why auc or auc_interval is None, or ""
    """
    labels, scores, threshold, groups = (
        table[name].to_numpy() for name in ("label", "probability", "threshold", "group")
    )
    metrics = evaluate(labels, scores, threshold)
    return {
        "n": metrics["n"],
        "n_melanoma": metrics["n_melanoma"],
        "auc": metrics["auc"],
        "auc_interval": auc_interval(labels, scores, groups, rng, draws),
        "sensitivity": metrics["rates"]["sensitivity"],
        "specificity": metrics["rates"]["specificity"],
        "note": metrics["not_computed"].get("auc") or too_few(labels, groups) or "",
    }


def fold_metrics(table: pd.DataFrame, rng: Generator, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return {fold, ...} as `brief_metrics` for each value of the column `fold`, in ascending order."""
    return [{"fold": int(fold), **brief_metrics(own, rng, draws)} for fold, own in table.groupby("fold")]


# --- draws ---


def weightings(groups: np.ndarray, rng: Generator, draws: int) -> Iterator[np.ndarray]:
    """Yield blocks of draws, float64 (B, N): how often each lesion was drawn."""
    _, group = np.unique(groups, return_inverse=True)
    n_groups = int(group.max()) + 1
    size = max(1, BLOCK // len(group))
    for start in range(0, draws, size):
        block = min(size, draws - start)
        drawn = rng.integers(0, n_groups, (block, n_groups)) + n_groups * np.arange(block)[:, None]
        times = np.bincount(drawn.ravel(), minlength=block * n_groups).reshape(block, n_groups)
        yield times[:, group].astype(float)


def percentiles(values: np.ndarray) -> list[float] | None:
    """Return the percentile interval [low, high] of a metric's draws (B,), without NaNs; None if all are NaN."""
    values = values[~np.isnan(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, INTERVAL)
    return [float(low), float(high)]


def _draw(metric: Callable[[np.ndarray], np.ndarray], groups: np.ndarray, rng: Generator, draws: int) -> np.ndarray:
    """Return a metric of weights (B, N) in every draw: (draws, ...)."""
    return np.concatenate([metric(weights) for weights in weightings(groups, rng, draws)])
