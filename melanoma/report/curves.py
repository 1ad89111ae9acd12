"""Curves of what a network says of a set of lesions: labels, probabilities, thresholds, distances of pairs.

Labels are 1 melanoma, 0 benign, probabilities of melanoma in 0..1. `precision_recall` and `rates_by_threshold` need
both classes and raise ValueError without; the others are drawn with what is there.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve

from melanoma.report.style import (
    BENIGN,
    CLASSES,
    EDGE,
    GREY,
    LIKE,
    MELANOMA,
    SIZE,
    STYLE,
    UNLIKE,
    mark_point,
    need_both,
    one_panel,
    set_title,
)


def precision_recall(
    labels: np.ndarray,
    scores: np.ndarray,
    average_precision: float,
    point: tuple[float, float] | None,
    what: str,
) -> Figure:
    """Draw precision against recall of labels (N,) and scores (N,), and the prevalence, a blind guess's precision.

    Parameters
    ----------
    point : recall and precision at the operating point; None where nothing is called melanoma
    """
    need_both(labels, "a precision-recall curve")
    precision, recall, _ = precision_recall_curve(labels, scores)
    prevalence = float(np.mean(labels == 1))
    with matplotlib.rc_context(STYLE):
        figure, axes = one_panel()
        axes.axhline(prevalence, linestyle="--", color=GREY, label=f"prevalence {prevalence:.2%}")
        axes.plot(
            recall[:-1],  # the last point, precision 1 at recall 0, belongs to no threshold
            precision[:-1],
            drawstyle="steps-post",
            color=BENIGN,
            linewidth=2,
            label=f"average precision {average_precision:.3f}",
        )
        if point is not None:
            mark_point(axes, *point, f"threshold: recall {point[0]:.1%}, precision {point[1]:.1%}")
        axes.set(
            xlabel="recall (sensitivity)",
            ylabel="precision (PPV)",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
        )
        axes.legend(loc="upper right")
        set_title(axes, "Precision and recall", what)
    return figure


def rates_by_threshold(
    labels: np.ndarray,
    probabilities: np.ndarray,
    threshold: float | np.ndarray,
    point: tuple[float, float],
    what: str,
) -> Figure:
    """Draw sensitivity and specificity (share called melanoma; share left alone) against the threshold.

    Parameters
    ----------
    labels, probabilities : arrays of shape (N,)
    threshold : the one in use, or those of pooled folds, each image's own, (N,)
    point : sensitivity and specificity with it; of several thresholds, they lie near the curves, not on them
    """
    need_both(labels, "sensitivity and specificity")
    melanoma, benign = np.sort(probabilities[labels == 1]), np.sort(probabilities[labels == 0])
    levels = np.unique(probabilities)
    sensitivity = 1 - np.searchsorted(melanoma, levels) / len(melanoma)
    specificity = np.searchsorted(benign, levels) / len(benign)
    with matplotlib.rc_context(STYLE):
        figure, axes = one_panel()
        low, high = _log_odds_axis(axes, np.append(levels, threshold))
        places = np.concatenate([[low], np.clip(levels, EDGE, 1 - EDGE), [high]])
        for rate, end, colour, line, name in (
            (sensitivity, 0, MELANOMA, "-", "sensitivity"),
            (specificity, 1, BENIGN, "--", "specificity"),
        ):
            drawn = np.concatenate([rate[:1], rate, [end]])
            axes.plot(
                places, drawn, line, drawstyle="steps-pre", color=colour, linewidth=2, label=f"{name} (curve)"
            )
        _mark_thresholds(axes, threshold)
        place = np.mean(threshold)
        axes.plot(place, point[0], "o", color=MELANOMA, markersize=12, label=f"sensitivity {point[0]:.1%}")
        axes.plot(place, point[1], "s", color=BENIGN, markersize=7, label=f"specificity {point[1]:.1%}")
        axes.set(
            ylabel="share of the class", ylim=(-0.02, 1.02), xlabel="threshold on the probability of melanoma"
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
        set_title(axes, "Sensitivity and specificity by threshold", what)
    return figure


def score_histogram(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, what: str
) -> Figure:
    """Draw how many melanomas and benign lesions have which probability, and the threshold.

    Parameters
    ----------
    labels, probabilities : arrays of shape (N,)
    threshold : the one in use, or those of pooled folds, each image's own, (N,)
    """
    called = probabilities >= threshold
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout="constrained")
        panels = figure.subplots(2, 1, sharex=True)
        low, high = _log_odds_axis(panels[1], np.append(probabilities, threshold))
        bins = expit(np.linspace(logit(low), logit(high), 51))
        for axes, label, colour in ((panels[0], 1, MELANOMA), (panels[1], 0, BENIGN)):
            own = labels == label
            axes.hist(
                np.clip(probabilities[own], EDGE, 1 - EDGE),
                bins,
                color=colour,
                label=f"{CLASSES[label]}: {int(called[own].sum()):,} of {int(own.sum()):,} called melanoma",
            )
            _mark_thresholds(axes, threshold)
            axes.set(ylabel=f"{CLASSES[label]} images")
            axes.margins(y=0.45)  # room for the legend
            axes.yaxis.get_major_locator().set_params(integer=True)
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.legend(loc="upper left")
        panels[1].set(xlabel="probability of melanoma")
        set_title(panels[0], "Probabilities by class", what)
    return figure


def calibration(
    labels: np.ndarray, probabilities: np.ndarray, ece: float, what: str, bins: int = 10
) -> Figure:
    """Draw the reliability diagram: share of melanomas against mean probability in bins of equal width over 0..1.

    Below stands how many images each bin has; bars are Wilson's 95 % intervals.

    Parameters
    ----------
    labels, probabilities : arrays of shape (N,)
    ece : expected calibration error over the same bins
    """
    place = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    melanomas = np.bincount(place, labels == 1, bins).astype(int)
    filled = np.flatnonzero(images)
    share = melanomas[filled] / images[filled]
    mean = np.bincount(place, probabilities, bins)[filled] / images[filled]
    wilson = np.array([binomtest(melanomas[i], images[i]).proportion_ci(method="wilson")[:] for i in filled])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 6.8), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], "--", color=GREY, label="perfect")
        upper.errorbar(
            mean,
            share,
            np.abs(wilson - share[:, None]).T,
            fmt="o-",
            color=BENIGN,
            capsize=3,
            label=f"observed, ECE {ece:.3f}",
        )
        upper.set(ylabel="share of melanomas", ylim=(-0.02, 1.02), xlim=(0, 1))
        upper.legend(loc="upper left")
        bars = lower.bar((np.arange(bins) + 0.5) / bins, images, 0.9 / bins, color=GREY)
        lower.bar_label(bars, [f"{count:,}" if count else "" for count in images], fontsize=9, padding=1)
        lower.set(xlabel="probability of melanoma", ylabel="images", yscale="log")
        lower.set_ylim(0.7, 8 * images.max())
        lower.yaxis.set_major_formatter("{x:,.0f}")
        set_title(upper, "Calibration", what)
    return figure


def pair_distances(distances: np.ndarray, same: np.ndarray, margin: float | None, what: str) -> Figure:
    """Draw how the embedding distances (P,) of like and unlike pairs, same (P,) bool, are distributed.

    Parameters
    ----------
    margin : distance past which unlike pairs add no loss; None draws no line
    """
    top = max(distances.max(initial=0.0), margin or 0.0) or 1.0
    bins = np.linspace(0, 1.02 * top, 61).tolist()
    with matplotlib.rc_context(STYLE):
        figure, axes = one_panel()
        for own, colour, hatch, name in ((same, LIKE, "", "like"), (~same, UNLIKE, "//", "unlike")):
            values = distances[own]
            median = f", median {np.median(values):.3f}" if len(values) else ""
            axes.hist(
                values,
                bins,
                weights=np.full(len(values), 1 / max(len(values), 1)),
                histtype="stepfilled",
                facecolor=(colour, 0.35),
                edgecolor=colour,
                hatch=hatch,
                linewidth=1.5,
                label=f"{name} pairs ({len(values):,}{median})",
            )
        if margin is not None:
            axes.axvline(margin, color="black", linestyle="--", label=f"margin {margin:g}")
        axes.set(xlabel="embedding distance", ylabel="share of the pairs of its kind", xlim=(0, bins[-1]))
        axes.margins(y=0.3)
        axes.legend(loc="upper right")
        set_title(axes, "Distances of like and unlike pairs", what)
    return figure


def _mark_thresholds(axes: Axes, threshold: float | np.ndarray) -> None:
    values = np.unique(threshold)
    name = f"threshold {values[0]:.3g}" if len(values) == 1 else f"thresholds of {len(values)} folds"
    for i, value in enumerate(values):
        place = np.clip(value, EDGE, 1 - EDGE)
        axes.axvline(place, color="black", linestyle=":", linewidth=1.5, label=None if i else name)


def _log_odds_axis(axes: Axes, values: np.ndarray) -> tuple[float, float]:
    """Lay probabilities out by their log odds, since most are near 0 where melanomas are rare; return the ends."""
    log_odds = logit(np.clip(values, EDGE, 1 - EDGE))
    low, high = log_odds.min() - 0.4, log_odds.max() + 0.4
    if high - low < 8:
        ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99]
    else:
        ticks = [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999]
    low, high = expit(low), expit(high)
    axes.set_xscale("logit", nonpositive="clip")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    return low, high
