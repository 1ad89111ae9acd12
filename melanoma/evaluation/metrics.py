"""Metrics: pure functions of labels (1 melanoma, 0 benign), scores (large = melanoma) and a threshold.

Every metric is computed for many weightings of the lesions at once, shape (B, N) to (B,). `evaluate` uses one, each
lesion once; the bootstrap (bootstrap.py) uses thousands, in which a weight is how often a lesion was drawn. So a metric
and its interval come from one formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import expit, logit

LEVELS = (0.8, 0.9, 0.95)  # of specificity or sensitivity, at which the other one is given
PREVALENCE = 0.0176  # share of melanomas in ISIC 2020: 584 of 33,126
BINS = 10  # of the calibration error
EXTREME = 1e-9  # probabilities are clipped to EXTREME..1 - EXTREME: the log odds of 0 and 1 are infinite
NEWTON_STEPS = 25  # maximum, of the calibration slope's fit
CONVERGED = 1e-8  # length of its last step

Metrics = dict[tuple[str, ...], np.ndarray]  # (B,) by name; a name of several words is nested in JSON


def evaluate(labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray) -> dict[str, Any]:
    """Return the metrics of one set of lesions as JSON values; those that cannot be computed are None.

    Precision (PPV), NPV and flag rate (share called melanoma) are those of the data; `at_prevalence` converts them to
    the prevalence of ISIC 2020, at the same sensitivity and specificity. `rates` has rates with their counts and Wilson
    intervals; `not_computed` has the reason for each None.

    Parameters
    ----------
    labels : int array of shape (N,), N >= 1
    scores : finite float array of shape (N,); Brier score and calibration need probabilities
    threshold : a lesion is called melanoma where score >= threshold; one for all, or an array of shape (N,)

    Raises
    ------
    ValueError : scores that are not finite
    """
    weighted = weighted_metrics(labels, scores, threshold, np.ones((1, len(labels))))
    values = {name: None if np.isnan(value[0]) else float(value[0]) for name, value in weighted.items()}
    metrics = nested(values)
    counts = count_outcomes(labels, scores, threshold)
    n, n_melanoma = len(labels), counts["tp"] + counts["fn"]
    return {
        **metrics,
        "rates": rates(counts),
        "counts_at_specificity": _counts_at(metrics["sensitivity_at_specificity"], n_melanoma),
        "counts_at_sensitivity": _counts_at(metrics["specificity_at_sensitivity"], n - n_melanoma),
        "threshold": float(np.mean(threshold) if np.ptp(threshold) else np.max(threshold)),  # one is kept exactly
        "counts": counts,
        "n": n,
        "n_melanoma": n_melanoma,
        "not_computed": {name[0]: _reason(name[0], counts) for name, value in values.items() if value is None},
    }


def rates(counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    """Return the rates of `count_outcomes` by name, each as `rate`."""
    tp, fp, tn, fn = counts.values()
    n = tp + fp + tn + fn
    return {
        "sensitivity": rate(tp, tp + fn),
        "specificity": rate(tn, tn + fp),
        "precision": rate(tp, tp + fp),
        "npv": rate(tn, tn + fn),
        "accuracy": rate(tp + tn, n),
        "flag_rate": rate(tp + fp, n),
    }


def rate(hits: int, of: int) -> dict[str, Any]:
    """Return a rate with its counts and its 95 % interval (Wilson 1927): {value, hits, of, wilson}.

    Value and interval are None if `of` is 0. The interval assumes independent lesions; the bootstrap over groups
    does not.
    """
    from scipy.stats import binomtest  # slow to import

    if not of:
        return {"value": None, "hits": hits, "of": of, "wilson": None}
    interval = binomtest(hits, of).proportion_ci(method="wilson")
    wilson = [float(interval.low), float(interval.high)]
    return {"value": hits / of, "hits": hits, "of": of, "wilson": wilson}


def count_outcomes(labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray) -> dict[str, int]:
    """Return the numbers of true and false positives and negatives, in this order: {tp, fp, tn, fn}."""
    return dict(zip(("tp", "fp", "tn", "fn"), _outcomes(labels, scores, threshold).sum(axis=0).tolist(), strict=True))


def _outcomes(labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return whether each lesion is a true or false positive, a true or false negative: bool (N, 4)."""
    melanoma, called = labels == 1, scores >= threshold
    return np.stack([called & melanoma, called & ~melanoma, ~called & ~melanoma, ~called & melanoma], axis=1)


def absent_class(n: int, n_melanoma: int) -> str | None:
    """Return in words which class is absent from n images, or None."""
    if n_melanoma == 0:
        return f"there is no melanoma among {n:,} images"
    if n_melanoma == n:
        return f"there is no benign lesion among {n:,} images"
    return None


# --- metrics of many weightings ---


def weighted_metrics(
    labels: np.ndarray, scores: np.ndarray, threshold: float | np.ndarray, weights: np.ndarray
) -> Metrics:
    """Return every metric of B weightings of N lesions, float64 (B,) by name; NaN where it cannot be computed.

    Parameters
    ----------
    labels, scores, threshold : see `evaluate`
    weights : float array of shape (B, N), >= 0: how often each lesion counts
    """
    tp_curve, fp_curve = roc_counts(labels, scores, weights)
    tp, fp, tn, fn = (weights @ _outcomes(labels, scores, threshold).astype(float)).T
    n = tp + fp + tn + fn
    sensitivity, specificity = divide(tp, tp + fn), divide(tn, tn + fp)
    metrics: Metrics = {
        ("auc",): auc(tp_curve, fp_curve),
        ("average_precision",): average_precision(tp_curve, fp_curve),
        ("partial_auc",): partial_auc(tp_curve, fp_curve),
        ("accuracy",): divide(tp + tn, n),
        ("always_benign_accuracy",): divide(tn + fp, n),
        ("balanced_accuracy",): (sensitivity + specificity) / 2,
        ("precision",): divide(tp, tp + fp),
        ("npv",): divide(tn, tn + fn),
        ("flag_rate",): divide(tp + fp, n),
        ("sensitivity",): sensitivity,
        ("specificity",): specificity,
        ("f1",): divide(2 * tp, 2 * tp + fp + fn),
        # the correlation of labels and decisions (Matthews 1975)
        ("mcc",): divide(tp * tn - fp * fn, np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))),
    }
    for level in LEVELS:
        name = f"{level:.0%}"
        metrics["sensitivity_at_specificity", name] = sensitivity_at(tp_curve, fp_curve, level)
        metrics["specificity_at_sensitivity", name] = specificity_at(tp_curve, fp_curve, level)
    true_positive, false_positive = PREVALENCE * sensitivity, (1 - PREVALENCE) * (1 - specificity)
    true_negative, false_negative = (1 - PREVALENCE) * specificity, PREVALENCE * (1 - sensitivity)
    here = f"{PREVALENCE:.2%}"
    metrics["at_prevalence", here, "precision"] = divide(true_positive, true_positive + false_positive)
    metrics["at_prevalence", here, "npv"] = divide(true_negative, true_negative + false_negative)
    metrics["at_prevalence", here, "flag_rate"] = true_positive + false_positive
    metrics["brier",] = divide(weights @ np.square(scores - labels), n)
    metrics["ece",] = calibration_error(labels, scores, weights)
    metrics["calibration_slope",] = calibration_slope(labels, scores, weights)
    return metrics


def nested(metrics: dict[tuple[str, ...], Any]) -> dict[str, Any]:
    """Return metrics by name as JSON nests them: {("a", "b"): 1} becomes {"a": {"b": 1}}."""
    result: dict[str, Any] = {}
    for (*groups, last), value in metrics.items():
        place = result
        for name in groups:
            place = place.setdefault(name, {})
        place[last] = value
    return result


def roc_counts(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the true and false positives at each threshold, for each weighting.

    Returns
    -------
    tp, fp : float64 arrays of shape (B, L + 1), rising: 0 first, then one value for each of the L distinct scores from
        the highest down; the last is the total of the class. Equal scores enter together, so that ties count half

    Raises
    ------
    ValueError : scores that are not finite
    """
    if not np.isfinite(scores).all():
        raise ValueError("there are scores that are not finite")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)  # the last place of each score
    weights = weights[:, order]
    melanoma = labels[order] == 1
    tp, fp = (np.zeros((len(weights), len(last) + 1)) for _ in range(2))
    tp[:, 1:] = np.cumsum(weights * melanoma, axis=1)[:, last]
    fp[:, 1:] = np.cumsum(weights * ~melanoma, axis=1)[:, last]
    return tp, fp


def auc(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return the area under ROC curves of `roc_counts`, float64 (B,)."""
    area = ((tp[:, 1:] + tp[:, :-1]) / 2 * np.diff(fp)).sum(axis=1)
    return divide(area, tp[:, -1] * fp[:, -1])


def partial_auc(tp: np.ndarray, fp: np.ndarray, least: float = 0.8) -> np.ndarray:
    """Return the area right of ROC curves above a sensitivity of `least`, float64 (B,) in 0..1 - least.

    This is the score of the ISIC 2024 challenge (Kurtansky et al. 2024): the partial area up to a false positive rate
    of 0.2, after flipping labels and scores. Chance reaches 0.02, a perfect ranking 0.2.
    """
    y, x = divide(tp, tp[:, -1:]), divide(fp, fp[:, -1:])
    rise = np.diff(np.maximum(y, least))  # the part of each step above `least`
    run = np.diff(x)
    share = np.nan_to_num(divide(rise, np.diff(y)))
    area = (rise * (1 - x[:, 1:] + run * share / 2)).sum(axis=1)
    return np.where(np.isnan(x[:, -1] + y[:, -1]), np.nan, area)


def average_precision(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Return the average precision of ROC curves of `roc_counts`, float64 (B,): the mean precision at each melanoma."""
    precision = np.nan_to_num(divide(tp[:, 1:], tp[:, 1:] + fp[:, 1:]))
    return divide((precision * np.diff(tp)).sum(axis=1), tp[:, -1])


def sensitivity_at(tp: np.ndarray, fp: np.ndarray, specificity: float) -> np.ndarray:
    """Return the largest sensitivity of all thresholds with at least this specificity, float64 (B,)."""
    allowed = fp <= (1 - specificity) * fp[:, -1:] + 1e-9
    best = np.take_along_axis(tp, allowed.sum(axis=1, keepdims=True) - 1, axis=1)[:, 0]
    return np.where(fp[:, -1] > 0, divide(best, tp[:, -1]), np.nan)


def specificity_at(tp: np.ndarray, fp: np.ndarray, sensitivity: float) -> np.ndarray:
    """Return the largest specificity of all thresholds with at least this sensitivity, float64 (B,)."""
    short = tp < sensitivity * tp[:, -1:] - 1e-9
    least = np.take_along_axis(fp, short.sum(axis=1, keepdims=True), axis=1)[:, 0]
    return np.where(tp[:, -1] > 0, 1 - divide(least, fp[:, -1]), np.nan)


def calibration_error(
    labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray, bins: int = BINS
) -> np.ndarray:
    """Return the expected calibration error (Naeini et al. 2015), float64 (B,), with bins of equal width over 0..1.

    It is the mean over lesions of |share of melanomas - mean probability| of their bin.
    """
    place = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    gap = np.zeros((len(labels), bins))
    gap[np.arange(len(labels)), place] = labels - probabilities
    return divide(np.abs(weights @ gap).sum(axis=1), weights.sum(axis=1))


def calibration_slope(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the slope of a logistic regression of labels on the probabilities' log odds (Cox 1958), float64 (B,).

    1 is perfect; probabilities are too extreme below 1, too moderate above (Van Calster et al. 2019). NaN where the
    slope is unbounded: a class is absent, all probabilities are equal, or they separate the classes. Newton's method
    fits all weightings at once.
    """
    log_odds = logit(np.clip(probabilities, EXTREME, 1 - EXTREME))
    spread = log_odds.std()
    if spread == 0:
        return np.full(len(weights), np.nan)
    x, y = (log_odds - log_odds.mean()) / spread, labels == 1
    intercept, slope = np.zeros((2, len(weights), 1))
    for _ in range(NEWTON_STEPS):
        p = expit(intercept + slope * x)
        gradient, curvature = weights * (y - p), weights * p * (1 - p)
        g0, g1 = np.stack([gradient.sum(axis=1), gradient @ x])[..., None]
        h0, h1, h2 = np.stack([curvature.sum(axis=1), curvature @ x, curvature @ x**2])[..., None]
        whole = h0 * h2 - h1**2
        moved = np.stack([divide(h2 * g0 - h1 * g1, whole), divide(h0 * g1 - h1 * g0, whole)])
        intercept, slope = intercept + moved[0], slope + moved[1]
        if not (np.abs(moved) > CONVERGED).any():
            break
    found = (np.abs(moved) <= CONVERGED).all(axis=0)
    return np.where(found, slope / spread, np.nan)[:, 0]


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole, float64, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole != 0)


def _counts_at(rates: dict[str, float | None], of: int) -> dict[str, dict[str, int] | None]:
    """Return the counts behind rates at fixed levels: {"80%": {hits, of}}."""
    return {name: None if value is None else {"hits": round(value * of), "of": of} for name, value in rates.items()}


def _reason(name: str, counts: dict[str, int]) -> str:
    """Return why a metric cannot be computed."""
    tp, fp, tn, fn = counts.values()
    absent = absent_class(tp + fp + tn + fn, tp + fn)
    called = "no lesion is called melanoma" if tp + fp == 0 else "every lesion is called melanoma"
    if name in ("precision", "npv"):
        return called
    if name == "calibration_slope":
        return absent or "the scores are all equal, or separate the classes"
    return absent or called
