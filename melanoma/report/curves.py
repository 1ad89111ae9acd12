"""Curves and charts of labels, probabilities and thresholds: training, ROC, calibration, subgroups and the rest.

Labels (N,) are 1 melanoma, 0 benign; probabilities (N,) in 0..1; `threshold` is the one in use, or each image's own,
(N,) if folds are pooled. `roc`, `precision_recall` and `rates_by_threshold` need both classes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit, logit
from sklearn.metrics import precision_recall_curve, roc_curve

from melanoma.evaluation.metrics import BINS, rate
from melanoma.report import style

NO_INTERVAL = "no interval: too few patients"
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
        (auc, "val_auc", "-s", style.BENIGN, ""),
        (distance, "unlike_distance", "-o", style.DIFFERENT, "different-class training pairs"),
        (distance, "like_distance", "-s", style.SAME, "same-class training pairs"),
    ):
        axes.plot(epochs, [entry[key] for entry in log], line, color=colour, markersize=4, label=label)
    auc.axvline(best_epoch, color=style.MELANOMA, linestyle="--", label=f"best: epoch {best_epoch}")
    loss.set(ylabel="average loss", ylim=(0, None))
    auc.set(ylabel="validation AUC")
    distance.set(xlabel="epoch", ylabel="mean distance", ylim=(0, None))
    for axes in (loss, auc, distance):
        axes.legend()
    distance.xaxis.get_major_locator().set_params(integer=True)
    style.set_title(loss, "Average loss per epoch", what)
    return figure


def describe_parts(parts: Mapping[str, np.ndarray]) -> str:
    """Return the numbers of images and melanomas of each part, a line each, from its labels (N,) by its name."""
    return "\n".join(f"{name}: {len(labels):,} images, {labels.sum():,} melanoma" for name, labels in parts.items())


@rc_context(style.NO_GRID)
def confusion_matrix(counts: Mapping[str, int], what: str) -> Figure:
    """Draw the confusion matrix {tp, fp, tn, fn}, each cell with its count and its share of the true class."""
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
    labels: np.ndarray, scores: np.ndarray, auc: float, point: Point, what: str, band: Sequence[np.ndarray] | None
) -> Figure:
    """Draw the ROC curve of labels (N,) and scores (N,).

    `point` is 1 - specificity and sensitivity; `band` the curve's pointwise 95 % interval, see `bootstrap.roc_band`,
    None where there are too few groups.
    """
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    figure, axes = style.one_panel("ROC curve", what)
    axes.plot([0, 1], [0, 1], "--", color=style.GREY, label="chance")
    if band is not None:
        shade: dict[str, Any] = {"color": style.BENIGN, "alpha": 0.2, "linewidth": 0}
        grid, lowest, highest = band
        axes.fill_between(grid, lowest, highest, label="95 % of bootstrap samples", **shade)
    axes.plot(false_rate, true_rate, color=style.BENIGN, linewidth=2, label=f"AUC {auc:.3f}")
    label = f"threshold: sensitivity {point[1]:.1%}, specificity {1 - point[0]:.1%}"
    axes.plot(*point, "o", color=style.MELANOMA, markersize=9, label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right", title=NO_INTERVAL if band is None else None)
    return figure


@rc_context(style.STYLE)
def precision_recall(
    labels: np.ndarray, scores: np.ndarray, average_precision: float, point: Point | None, what: str
) -> Figure:
    """Draw precision against recall of labels (N,) and scores (N,), and the prevalence (the precision of chance).

    `point` is recall and precision; None if no lesion is called melanoma.
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point, precision 1 at recall 0, has no threshold
    prevalence = float(np.mean(labels == 1))
    figure, axes = style.one_panel("Precision and recall", what)
    axes.axhline(prevalence, linestyle="--", color=style.GREY, label=f"prevalence {prevalence:.2%}")
    label = f"average precision {average_precision:.3f}"
    axes.plot(recall, precision, drawstyle="steps-post", color=style.BENIGN, linewidth=2, label=label)
    if point is not None:
        label = f"threshold: recall {point[0]:.1%}, precision {point[1]:.1%}"
        axes.plot(*point, "o", color=style.MELANOMA, markersize=9, label=label)
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper right")
    return figure


@rc_context(style.STYLE)
def rates_by_threshold(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, point: Point, what: str
) -> Figure:
    """Draw sensitivity and specificity against the threshold.

    `point` is sensitivity and specificity; with several thresholds they need not lie on the curves.
    """
    false_rate, true_rate, levels = roc_curve(labels, probabilities, drop_intermediate=False)
    figure, axes = style.one_panel("Sensitivity and specificity by threshold", what)
    low, high = _log_odds_axis(axes, np.append(levels[1:], threshold))  # the first level is infinite
    places = np.concatenate([[low], np.clip(levels[:0:-1], style.EDGE, 1 - style.EDGE), [high]])
    sensitivity, specificity = np.append(true_rate, 1)[::-1], 1 - np.append(false_rate, 1)[::-1]
    steps: dict[str, Any] = {"drawstyle": "steps-pre", "linewidth": 2}
    axes.plot(places, sensitivity, "-", color=style.MELANOMA, label="sensitivity (curve)", **steps)
    axes.plot(places, specificity, "--", color=style.BENIGN, label="specificity (curve)", **steps)
    _mark_thresholds(axes, threshold)
    mean = np.mean(threshold)
    axes.plot(mean, point[0], "o", color=style.MELANOMA, markersize=12, label=f"sensitivity {point[0]:.1%}")
    axes.plot(mean, point[1], "s", color=style.BENIGN, markersize=7, label=f"specificity {point[1]:.1%}")
    axes.set(ylabel="rate", ylim=(-0.02, 1.02), xlabel="threshold on the probability of melanoma")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
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
        axes.margins(y=0.45)  # room for the legend
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")
    lower.set(xlabel="probability of melanoma")
    style.set_title(upper, "Probabilities by class", what)
    return figure


@rc_context(style.STYLE)
def calibration(labels: np.ndarray, probabilities: np.ndarray, ece: float, what: str) -> Figure:
    """Draw the reliability diagram: share of melanomas against mean probability in bins of equal width over 0..1.

    Bars are Wilson's 95 % intervals; the lower panel has the number of images of each bin. `ece` is the expected
    calibration error over the same bins.
    """
    place = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    images = np.bincount(place, minlength=BINS)
    filled = np.flatnonzero(images)
    mean = np.bincount(place, probabilities)[filled] / images[filled]
    melanomas = np.bincount(place[labels == 1], minlength=BINS)
    rates = [rate(int(melanomas[i]), int(images[i])) for i in filled]
    share = np.array([own["value"] for own in rates])
    errors = np.abs([own["wilson"] for own in rates] - share[:, None]).T
    figure = Figure(figsize=(style.SIZE[0], 6.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color=style.GREY, label="perfect")
    upper.errorbar(mean, share, errors, fmt="o-", color=style.BENIGN, capsize=3, label=f"observed, ECE {ece:.3f}")
    upper.set(ylabel="share of melanomas", ylim=(-0.02, 1.02), xlim=(0, 1))
    upper.legend(loc="upper left")
    bars = lower.bar((np.arange(BINS) + 0.5) / BINS, images, 0.9 / BINS, color=style.GREY)
    lower.bar_label(bars, [f"{count:,}" if count else "" for count in images], fontsize=9, padding=1)
    lower.set(xlabel="probability of melanoma", ylabel="images", yscale="log", ylim=(0.7, 8 * images.max()))
    lower.yaxis.set_major_formatter("{x:,.0f}")
    style.set_title(upper, "Calibration", what)
    return figure


@rc_context(style.STYLE | {"axes.spines.left": False})
def forest(rows: Sequence[Mapping[str, Any]], auc: float | None, what: str) -> Figure:
    """Draw the AUC of each subgroup with its interval; groups without an AUC are grey, with the reason.

    `rows` are as `subgroups.subgroup_table`, the groups of an attribute consecutive; `auc`, of all images, may be None.
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for attribute, own in groupby(rows, lambda row: row["attribute"]):
        lines += [(attribute, None), *((row["group"], row) for row in own)]
    low = min([0.45, *(min(row["auc_interval"] or [row["auc"]]) - 0.02 for row in rows if row["auc"] is not None)])
    figure = Figure(figsize=(9.6, 1.9 + 0.3 * len(lines)), layout="constrained")
    axes, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(low, 1.01), ylim=(len(lines) - 0.4, -2), xlabel="AUC (bars: 95 % interval)")
    axes.axvline(0.5, color=style.GREY, linestyle="--", linewidth=1, label="chance")
    if auc is not None:
        axes.axvline(auc, color=style.BENIGN, linestyle=":", label=f"all images: {auc:.3f}")
    names = [textwrap.shorten(style.drawable(name), 30, placeholder=" …") for name, _ in lines]
    axes.set_yticks(range(len(lines)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    right.set_axis_off()
    columns: list[tuple[float, str, str, str]] = [(-1.2, "images /\nmelanomas", "AUC\n(95 % interval)", "black")]
    for y, (label, (_, row)) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
        if row is None:
            label.set_fontweight("bold")
            continue
        if row["auc"] is None:
            shown, colour = "not computed", style.GREY
            reason = textwrap.shorten(style.drawable(row["note"]), 50, placeholder=" …")
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the lines
            font: dict[str, Any] = {"color": style.GREY, "style": "italic", "fontsize": 10, "bbox": white}
            axes.text(low + 0.01, y, reason, va="center", parse_math=False, **font)
        else:
            axes.plot(row["auc"], y, "s", color=style.BENIGN, markersize=7)
            shown, colour = f"{row['auc']:.3f} (too few patients)", "black"
            if row["auc_interval"]:
                shown = "{:.3f} ({:.3f} to {:.3f})".format(row["auc"], *row["auc_interval"])
                axes.plot(row["auc_interval"], [y, y], color=style.BENIGN, linewidth=2, solid_capstyle="butt")
        label.set_color(colour)
        columns.append((y, f"{row['n']:,} / {row['n_melanoma']:,}", shown, colour))
    for height, images, shown, colour in columns:
        right.text(0, height, images, color=colour, va="center", fontsize=10)
        right.text(0.46, height, shown, color=colour, va="center", fontsize=10)
    figure.legend(loc="outside lower right", ncols=2)
    style.set_suptitle(figure, "AUC of subgroups", what)
    return figure


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
