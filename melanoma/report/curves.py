"""Curves and charts of labels, probabilities and thresholds: training, ROC, calibration, subgroups and the rest.

Labels (N,) are 1 melanoma, 0 benign; probabilities (N,) in 0..1; `threshold` is the one in use, or each image's own,
(N,) if folds are pooled. `roc`, `precision_recall` and `rates_by_threshold` need both classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scipy.special import expit, logit

from melanoma.common.errors import counted
from melanoma.evaluation.metrics import rate, roc_counts
from melanoma.report import style

NO_INTERVAL = "no interval: too few patients"
PROBABILITY = "probability of melanoma (log-odds scale)"
LEAST_CALLED = 5  # images called melanoma where the precision-recall curve begins
GROUPS, LEAST_OF_GROUP = 10, 10  # of the reliability diagram: groups at most, images of each at least
Point = tuple[float, float]  # of a curve, at the threshold in use


@rc_context(style.STYLE)
def learning_curves(log: Sequence[Mapping[str, Any]], best_epoch: int, what: str) -> Figure:
    """Draw loss, validation AUC and mean distances of training pairs by epoch.

    log : entries of epochs: epoch, train_loss, val_loss, val_auc, like_distance, unlike_distance
    """
    figure = Figure(figsize=(style.SIZE[0], 7.6), layout="constrained")
    loss, auc, distance = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 2))
    epochs = [entry["epoch"] for entry in log]
    for axes, key, line, colour, label in (
        (loss, "train_loss", "-o", style.GREY, "training pairs (augmented)"),
        (loss, "val_loss", "-s", style.BENIGN, "validation pairs"),
        (auc, "val_auc", "-s", style.BENIGN, "validation images"),
        (distance, "unlike_distance", "-o", style.DIFFERENT, "different-class training pairs"),
        (distance, "like_distance", "-s", style.SAME, "same-class training pairs"),
    ):
        values = [entry[key] for entry in log]
        axes.plot(epochs, values, line, color=colour, markersize=4, label=label, clip_on=False)
    for axes, name in ((loss, "average loss"), (auc, "ROC AUC"), (distance, "mean distance")):
        best = f"best epoch: {best_epoch}" if axes is auc else None
        axes.axvline(best_epoch, color=style.MELANOMA, linestyle="--", linewidth=1, label=best)
        axes.set_ylabel(name)
        _legend_above(axes)
    distance.set_xlabel("epoch")
    distance.xaxis.get_major_locator().set_params(integer=True)
    figure.align_ylabels()
    style.set_title(figure, "Average loss per epoch", what)
    return figure


def describe_parts(parts: Mapping[str, np.ndarray]) -> str:
    """Return the numbers of images and melanomas of each part, from its labels (N,) by its name, as a line."""
    return "; ".join(f"{name}: {describe_images(labels)}" for name, labels in parts.items())


def describe_images(labels: np.ndarray) -> str:
    """Return the numbers of images and melanomas of labels (N,) as text."""
    return f"{counted(len(labels), 'image')}, {counted(int(labels.sum()), 'melanoma')}"


@rc_context(style.NO_GRID)
def confusion_matrix(counts: Mapping[str, int], what: str) -> Figure:
    """Draw the confusion matrix {tp, fp, tn, fn}, each cell with its count and its share of the true class."""
    import seaborn as sns  # slow to import

    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cells = zip(table.ravel(), shares.ravel(), strict=True)
    figure, axes = style.one_panel("Confusion matrix", what)
    sns.heatmap(
        shares,
        ax=axes,
        annot=np.reshape([f"{count:,}\n{share:.1%}" for count, share in cells], (2, 2)),
        fmt="",
        cmap="Blues",
        vmin=0,
        vmax=1,
        xticklabels=style.CLASSES,
        yticklabels=style.CLASSES,
        annot_kws={"size": 16},
        cbar_kws={"label": "share of the true class"},
    )
    axes.set(xlabel="predicted", ylabel="true")
    return figure


@rc_context(style.STYLE)
def roc(
    labels: np.ndarray,
    scores: np.ndarray,
    auc: float,
    interval: Sequence[float] | None,
    point: Point,
    what: str,
    band: Sequence[np.ndarray] | None,
) -> Figure:
    """Draw the ROC curve of labels (N,) and scores (N,).

    `interval` is that of the AUC; `point` is 1 - specificity and sensitivity; `band` the curve's pointwise 95 %
    interval, see `bootstrap.roc_band`. Both intervals are None where there are too few groups.
    """
    (tp,), (fp,) = roc_counts(labels, scores, np.ones((1, len(labels))))
    figure, axes = style.one_panel("ROC curve", what)
    axes.plot(fp / fp[-1], tp / tp[-1], color=style.BENIGN, linewidth=2, label=f"AUC {with_interval(auc, interval)}")
    if band is not None:
        shade: dict[str, Any] = {"color": style.BENIGN, "alpha": 0.2, "linewidth": 0}
        grid, lowest, highest = band
        axes.fill_between(grid, lowest, highest, label="95 % of bootstrap samples", **shade)
    label = f"threshold: sensitivity {point[1]:.1%}, specificity {1 - point[0]:.1%}"
    axes.plot(*point, "o", color=style.MELANOMA, markersize=9, label=label)
    axes.plot([0, 1], [0, 1], "--", color=style.GREY, label="chance")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    style.legend_below(figure, axes)
    return figure


def with_interval(value: float, interval: Sequence[float] | None) -> str:
    """Return a metric with its 95 % interval, or why there is none, as text."""
    return f"{value:.3f} " + (f"({interval[0]:.3f} to {interval[1]:.3f})" if interval else f"({NO_INTERVAL})")


@rc_context(style.STYLE)
def precision_recall(
    labels: np.ndarray,
    scores: np.ndarray,
    average_precision: float,
    interval: Sequence[float] | None,
    point: Point | None,
    what: str,
) -> Figure:
    """Draw precision against recall of labels (N,) and scores (N,), and the prevalence (the precision of chance).

    The curve begins where `LEAST_CALLED` images are called melanoma: the precision of fewer jumps between 0 and 1.
    `interval` is that of the average precision; `point` is recall and precision, None if no lesion is called melanoma.
    """
    (tp,), (fp,) = roc_counts(labels, scores, np.ones((1, len(labels))))
    shown = tp + fp >= min(LEAST_CALLED, len(labels))
    recall, precision = tp[shown] / tp[-1], tp[shown] / (tp + fp)[shown]
    prevalence = float(np.mean(labels == 1))
    figure, axes = style.one_panel("Precision and recall", what)
    label = f"average precision {with_interval(average_precision, interval)}"
    axes.plot(recall, precision, drawstyle="steps-pre", color=style.BENIGN, linewidth=2, label=label)
    if point is not None:
        label = f"threshold: recall {point[0]:.1%}, precision {point[1]:.1%}"
        axes.plot(*point, "o", color=style.MELANOMA, markersize=9, label=label)
    axes.axhline(
        prevalence, linestyle="--", color=style.GREY, label=f"prevalence, the precision of chance: {prevalence:.1%}"
    )
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    style.legend_below(figure, axes, ncols=1)
    return figure


@rc_context(style.STYLE)
def rates_by_threshold(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, point: Point, what: str
) -> Figure:
    """Draw sensitivity and specificity against the threshold.

    `point` is sensitivity and specificity; with several thresholds they need not lie on the curves.
    """
    (tp,), (fp,) = roc_counts(labels, probabilities, np.ones((1, len(labels))))
    levels = np.unique(probabilities)
    figure, axes = style.one_panel("Sensitivity and specificity by threshold", what)
    low, high = _log_odds_axis(axes, np.append(levels, threshold))
    places = np.concatenate([[low], np.clip(levels, style.EDGE, 1 - style.EDGE), [high]])
    sensitivity, specificity = np.append(tp, tp[-1])[::-1] / tp[-1], 1 - np.append(fp, fp[-1])[::-1] / fp[-1]
    steps: dict[str, Any] = {"drawstyle": "steps-pre", "linewidth": 2}
    axes.plot(places, sensitivity, "-", color=style.MELANOMA, label="sensitivity (curve)", **steps)
    axes.plot(places, specificity, "--", color=style.BENIGN, label="specificity (curve)", **steps)
    _mark_thresholds(axes, threshold)
    mean = np.mean(threshold)
    axes.plot(mean, point[0], "o", color=style.MELANOMA, markersize=12, label=f"sensitivity {point[0]:.1%}")
    axes.plot(mean, point[1], "s", color=style.BENIGN, markersize=7, label=f"specificity {point[1]:.1%}")
    axes.set(ylabel="rate", ylim=(-0.02, 1.02), xlabel=f"threshold on the {PROBABILITY}")
    style.legend_below(figure, axes, ncols=3)
    return figure


@rc_context(style.STYLE)
def score_histogram(labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, what: str) -> Figure:
    """Draw a histogram of the probabilities of each class, and the threshold."""
    called = probabilities >= threshold
    figure = Figure(figsize=style.SIZE, layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    low, high = _log_odds_axis(lower, np.append(probabilities, threshold))
    bins = expit(np.linspace(logit(low), logit(high), 51))
    for axes, label, colour in ((upper, 1, style.MELANOMA), (lower, 0, style.BENIGN)):
        own = labels == label
        text = f"{style.CLASSES[label]}: {int(called[own].sum()):,} of {int(own.sum()):,} called melanoma"
        axes.hist(np.clip(probabilities[own], style.EDGE, 1 - style.EDGE), bins, color=colour, label=text)
        _mark_thresholds(axes, threshold)
        axes.set(ylabel=f"{style.CLASSES[label]} images")
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _legend_above(axes)
    lower.set(xlabel=PROBABILITY)
    style.set_title(figure, "Probabilities by class", what)
    return figure


@rc_context(style.STYLE)
def calibration(labels: np.ndarray, probabilities: np.ndarray, ece: float, what: str) -> Figure:
    """Draw the reliability diagram: share of melanomas against mean probability, in groups of equally many images.

    Bars are Wilson's 95 % intervals. Both axes are scaled by the square root, since most probabilities are near 0 where
    melanomas are rare. `ece` is the expected calibration error.
    """
    order = np.argsort(probabilities, kind="stable")
    groups = np.array_split(order, np.clip(len(order) // LEAST_OF_GROUP, 1, GROUPS))
    mean = [probabilities[own].mean() for own in groups]
    rates = [rate(int(labels[own].sum()), len(own)) for own in groups]
    share = np.array([own["value"] for own in rates])
    errors = np.abs([own["wilson"] for own in rates] - share[:, None]).T
    top = min(1.0, 1.1 * max(*mean, *(share + errors[1])))
    figure, axes = style.one_panel("Calibration", what)
    axes.plot([0, 1], [0, 1], "--", color=style.GREY, label="perfect calibration")
    name = f"{counted(len(groups), 'group')} of {counted(len(groups[-1]), 'image')}, with Wilson's 95 % interval"
    dots: dict[str, Any] = {"fmt": "o", "color": style.BENIGN, "capsize": 3, "clip_on": False}
    axes.errorbar(mean, share, errors, label=f"{name} (ECE {ece:.3f})", **dots)
    ticks = [0.0]
    for tick in (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1):
        if tick <= top and np.sqrt(tick) - np.sqrt(ticks[-1]) >= 0.1 * np.sqrt(top):  # room for its number
            ticks.append(tick)
    for scale in (axes.set_xscale, axes.set_yscale):
        scale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    axes.set(xlim=(0, top), ylim=(0, top), xticks=ticks, yticks=ticks, aspect="equal")
    axes.set(xlabel="mean probability of melanoma (square-root scale)", ylabel="share of melanomas (square-root scale)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    style.legend_below(figure, axes, ncols=1)
    return figure


@rc_context(style.STYLE | {"axes.spines.left": False})
def forest(rows: Sequence[Mapping[str, Any]], auc: float | None, what: str) -> Figure:
    """Draw the AUC of each subgroup with its interval; groups without an AUC are grey, with the reason.

    `rows` are as `subgroups.subgroup_table`, the groups of an attribute consecutive; those without an image are left
    out. `auc`, of all images, may be None.
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for attribute, own in groupby((row for row in rows if row["n"]), lambda row: row["attribute"]):
        lines += [(attribute, None), *((row["group"], row) for row in own)]
    low = min([0.45, *(min(row["auc_interval"] or [row["auc"]]) - 0.02 for row in rows if row["auc"] is not None)])
    figure = Figure(figsize=(style.SIZE[0], 2.1 + 0.26 * len(lines)), layout="constrained")
    axes, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.35))
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(low, 1.01), ylim=(len(lines) - 0.4, -1.7), xlabel="ROC AUC")
    axes.axvline(0.5, color=style.GREY, linestyle="--", linewidth=1, label="chance")
    if auc is not None:
        axes.axvline(auc, color=style.BENIGN, linestyle=":", label=f"all images: {auc:.3f}")
    names = [style.one_line(name, 26) for name, _ in lines]
    axes.set_yticks(range(len(lines)), names, parse_math=False)
    axes.tick_params(axis="y", length=0, labelsize=10)
    right.set_axis_off()
    columns: list[tuple[float, str, str, str]] = [(-1.1, "images /\nmelanomas", "AUC\n(95 % interval)", "black")]
    for y, (label, (_, row)) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
        if row is None:
            label.set_fontweight("bold")
            continue
        interval, small = row["auc_interval"], row["auc_interval"] is None
        colour = style.GREY if small else "black"
        if row["auc"] is None:
            shown = style.one_line(row["note"], 30)
        else:
            face = "white" if small else style.BENIGN
            axes.plot(row["auc"], y, "s", color=style.GREY if small else style.BENIGN, markerfacecolor=face)
            shown = f"{row['auc']:.2f} (too few patients)"
        if interval:
            shown = "{:.2f} ({:.2f} to {:.2f})".format(row["auc"], *interval)
            axes.plot(interval, [y, y], color=style.BENIGN, linewidth=2, solid_capstyle="butt")
        label.set_color(colour)
        columns.append((y, f"{row['n']:,} / {row['n_melanoma']:,}", shown, colour))
    for height, images, shown, colour in columns:
        right.text(0, height, images, color=colour, va="center", fontsize=9.5)
        right.text(0.43, height, shown, color=colour, va="center", fontsize=9.5, parse_math=False)
    style.legend_below(figure, axes)
    style.set_title(figure, "ROC AUC of subgroups", what)
    return figure


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.1, fontsize=9.5)


def _mark_thresholds(axes: Axes, threshold: float | np.ndarray) -> None:
    values = np.unique(threshold)
    name = f"threshold {values[0]:.3g}" if len(values) == 1 else f"thresholds of {len(values)} folds"
    for i, value in enumerate(np.clip(values, style.EDGE, 1 - style.EDGE)):
        axes.axvline(value, color="black", linestyle=":", linewidth=1.5, label=None if i else name)


def _log_odds_axis(axes: Axes, values: np.ndarray) -> tuple[float, float]:
    """Scale the x axis by log odds, since most probabilities are near 0 where melanomas are rare; return its ends."""
    log_odds = logit(np.clip(values, style.EDGE, 1 - style.EDGE))
    low, high = log_odds.min() - 0.4, log_odds.max() + 0.4
    if high - low < 8:
        ticks = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.99]
    else:
        ticks = [0.0001, 0.001, 0.01, 0.05, 0.2, 0.5, 0.8, 0.95, 0.99, 0.999, 0.9999]
    low, high = expit(low), expit(high)
    axes.set_xscale("logit", nonpositive="clip")
    axes.set_xlim(low, high)
    ticks = [tick for tick in ticks if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    return low, high
