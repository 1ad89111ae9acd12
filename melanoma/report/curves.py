"""Curves and charts of labels, probabilities and thresholds: training, ROC, calibration, subgroups and the rest.

Labels (N,) are 1 melanoma, 0 benign; probabilities (N,) in 0..1; `threshold` is the one in use, or each image's own,
(N,) if folds are pooled. `roc`, `precision_recall` and `rates_by_threshold` raise ValueError unless both classes occur.
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
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.metrics import precision_recall_curve, roc_curve

from melanoma.report import style


@rc_context(style.STYLE)
def learning_curves(log: Sequence[Mapping[str, Any]], best_epoch: int, what: str) -> Figure:
    """Draw loss, validation AUC and, where the log has them, mean distances of training pairs, by epoch.

    Parameters
    ----------
    log : entries of epochs: epoch, train_loss, val_loss, val_auc, and if measured like_distance and unlike_distance
    """
    epochs = [entry["epoch"] for entry in log]
    distances = all("like_distance" in entry and "unlike_distance" in entry for entry in log)
    figure = Figure(figsize=(style.SIZE[0], 7.6 if distances else style.SIZE[1]), layout="constrained")
    panels = figure.subplots(2 + distances, 1, sharex=True, height_ratios=(3, 2, 2)[: 2 + distances])

    def draw(axes: Axes, key: str, line: str, colour: str, label: str) -> None:
        axes.plot(epochs, [entry[key] for entry in log], line, color=colour, markersize=4, label=label)

    draw(panels[0], "train_loss", "-o", style.GREY, "training pairs (augmented)")
    draw(panels[0], "val_loss", "-s", style.BENIGN, "validation pairs")
    panels[0].set(ylabel="average loss", ylim=(0, None))
    style.set_title(panels[0], "Average loss per epoch", what)
    draw(panels[1], "val_auc", "-s", style.BENIGN, "")
    panels[1].axvline(best_epoch, color=style.MELANOMA, linestyle="--", label=f"best: epoch {best_epoch}")
    panels[1].set(ylabel="validation AUC")
    if distances:
        draw(panels[2], "unlike_distance", "-o", style.DIFFERENT, "different-class training pairs")
        draw(panels[2], "like_distance", "-s", style.SAME, "same-class training pairs")
        panels[2].set(ylabel="mean distance", ylim=(0, None))
    for axes in panels:
        axes.legend()
    panels[-1].set(xlabel="epoch")
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
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
    figure, axes = style.one_panel()
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
    style.set_title(axes, "Confusion matrix", what)
    return figure


@rc_context(style.STYLE)
def roc(
    labels: np.ndarray,
    scores: np.ndarray,
    auc: float,
    point: tuple[float, float],
    what: str,
    band: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Figure:
    """Draw the ROC curve of labels (N,) and scores (N,).

    Parameters
    ----------
    point : operating point, (1 - specificity, sensitivity)
    band : pointwise 95 % bootstrap interval of the curve, as `bootstrap.roc_band`: 1 - specificity, and the lowest
        and highest sensitivity there, each of shape (G,)
    """
    _need_both(labels, "a ROC curve")
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    figure, axes = style.one_panel()
    axes.plot([0, 1], [0, 1], "--", color=style.GREY, label="chance")
    axes.fill_between(*band, color=style.BENIGN, alpha=0.2, linewidth=0, label="95 % of bootstrap samples")
    axes.plot(false_rate, true_rate, color=style.BENIGN, linewidth=2, label=f"AUC {auc:.3f}")
    _mark_point(axes, *point, f"threshold: sensitivity {point[1]:.1%}, specificity {1 - point[0]:.1%}")
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axes.legend(loc="lower right")
    style.set_title(axes, "ROC curve", what)
    return figure


@rc_context(style.STYLE)
def precision_recall(
    labels: np.ndarray, scores: np.ndarray, average_precision: float, point: tuple[float, float] | None, what: str
) -> Figure:
    """Draw precision against recall of labels (N,) and scores (N,), and the prevalence (the precision of chance).

    `point` is recall and precision at the operating point; None if no lesion is called melanoma.
    """
    _need_both(labels, "a precision-recall curve")
    precision, recall, _ = precision_recall_curve(labels, scores)
    prevalence = float(np.mean(labels == 1))
    figure, axes = style.one_panel()
    axes.axhline(prevalence, linestyle="--", color=style.GREY, label=f"prevalence {prevalence:.2%}")
    axes.plot(
        recall[:-1],  # the last point, precision 1 at recall 0, belongs to no threshold
        precision[:-1],
        drawstyle="steps-post",
        color=style.BENIGN,
        linewidth=2,
        label=f"average precision {average_precision:.3f}",
    )
    if point is not None:
        _mark_point(axes, *point, f"threshold: recall {point[0]:.1%}, precision {point[1]:.1%}")
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (PPV)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.legend(loc="upper right")
    style.set_title(axes, "Precision and recall", what)
    return figure


@rc_context(style.STYLE)
def rates_by_threshold(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, point: tuple[float, float], what: str
) -> Figure:
    """Draw sensitivity and specificity against the threshold.

    `point` is sensitivity and specificity at the threshold; with several thresholds they need not lie on the curves.
    """
    _need_both(labels, "sensitivity and specificity")
    levels = np.unique(probabilities)
    below = [
        np.searchsorted(np.sort(own), levels) / len(own)
        for own in (probabilities[labels == 1], probabilities[labels == 0])
    ]
    figure, axes = style.one_panel()
    low, high = _log_odds_axis(axes, np.append(levels, threshold))
    places = np.concatenate([[low], np.clip(levels, style.EDGE, 1 - style.EDGE), [high]])
    for name, rate, end, colour, line in (
        ("sensitivity", 1 - below[0], 0, style.MELANOMA, "-"),
        ("specificity", below[1], 1, style.BENIGN, "--"),
    ):
        drawn = np.concatenate([rate[:1], rate, [end]])
        label = f"{name} (curve)"
        axes.plot(places, drawn, line, drawstyle="steps-pre", color=colour, linewidth=2, label=label)
    _mark_thresholds(axes, threshold)
    for name, value, marker, size, colour in (
        ("sensitivity", point[0], "o", 12, style.MELANOMA),
        ("specificity", point[1], "s", 7, style.BENIGN),
    ):
        label = f"{name} {value:.1%}"
        axes.plot(np.mean(threshold), value, marker, color=colour, markersize=size, label=label)
    axes.set(ylabel="rate", ylim=(-0.02, 1.02), xlabel="threshold on the probability of melanoma")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=10)
    style.set_title(axes, "Sensitivity and specificity by threshold", what)
    return figure


@rc_context(style.STYLE)
def score_histogram(labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, what: str) -> Figure:
    """Draw a histogram of the probabilities of each class, and the threshold."""
    called = probabilities >= threshold
    figure = Figure(figsize=style.SIZE, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    low, high = _log_odds_axis(panels[1], np.append(probabilities, threshold))
    bins = expit(np.linspace(logit(low), logit(high), 51))
    for axes, label, colour in ((panels[0], 1, style.MELANOMA), (panels[1], 0, style.BENIGN)):
        own = labels == label
        text = f"{style.CLASSES[label]}: {int(called[own].sum()):,} of {int(own.sum()):,} called melanoma"
        axes.hist(np.clip(probabilities[own], style.EDGE, 1 - style.EDGE), bins, color=colour, label=text)
        _mark_thresholds(axes, threshold)
        axes.set(ylabel=f"{style.CLASSES[label]} images")
        axes.margins(y=0.45)  # room for the legend
        axes.yaxis.get_major_locator().set_params(integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.legend(loc="upper left")
    panels[1].set(xlabel="probability of melanoma")
    style.set_title(panels[0], "Probabilities by class", what)
    return figure


@rc_context(style.STYLE)
def calibration(labels: np.ndarray, probabilities: np.ndarray, ece: float, what: str, bins: int = 10) -> Figure:
    """Draw the reliability diagram: share of melanomas against mean probability in bins of equal width over 0..1.

    Bars are Wilson's 95 % intervals; the lower panel has the number of images of each bin. `ece` is the expected
    calibration error over the same bins.
    """
    place = np.clip((probabilities * bins).astype(int), 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    melanomas = np.bincount(place, labels == 1, bins).astype(int)
    filled = np.flatnonzero(images)
    share = melanomas[filled] / images[filled]
    mean = np.bincount(place, probabilities, bins)[filled] / images[filled]
    wilson = np.array([binomtest(melanomas[i], images[i]).proportion_ci(method="wilson")[:] for i in filled])
    figure = Figure(figsize=(style.SIZE[0], 6.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], "--", color=style.GREY, label="perfect")
    errors = np.abs(wilson - share[:, None]).T
    upper.errorbar(mean, share, errors, fmt="o-", color=style.BENIGN, capsize=3, label=f"observed, ECE {ece:.3f}")
    upper.set(ylabel="share of melanomas", ylim=(-0.02, 1.02), xlim=(0, 1))
    upper.legend(loc="upper left")
    bars = lower.bar((np.arange(bins) + 0.5) / bins, images, 0.9 / bins, color=style.GREY)
    lower.bar_label(bars, [f"{count:,}" if count else "" for count in images], fontsize=9, padding=1)
    lower.set(xlabel="probability of melanoma", ylabel="images", yscale="log")
    lower.set_ylim(0.7, 8 * images.max())
    lower.yaxis.set_major_formatter("{x:,.0f}")
    style.set_title(upper, "Calibration", what)
    return figure


@rc_context(style.STYLE | {"axes.spines.left": False})
def forest(rows: Sequence[Mapping[str, Any]], auc: float | None, what: str) -> Figure:
    """Draw the AUC of each subgroup with its interval; groups without an AUC are grey, with the reason.

    Parameters
    ----------
    rows : for each group its attribute, group, n, n_melanoma, auc (None if not computed), auc_interval [low, high] or
        None, and note, the reason; the groups of an attribute are consecutive
    auc : of all images, drawn as a line; None draws none
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for attribute, own in groupby(rows, lambda row: row["attribute"]):
        lines += [(str(attribute), None), *((str(row["group"]), row) for row in own)]
    ends = [end for row in rows for end in row.get("auc_interval") or [] if row["auc"] is not None]
    low = min([0.45, *(end - 0.02 for end in ends)])
    figure = Figure(figsize=(9.6, 1.9 + 0.3 * len(lines)), layout="constrained")
    axes, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(low, 1.01), ylim=(len(lines) - 0.4, -2), xlabel="AUC (bars: 95 % interval)")
    axes.axvline(0.5, color=style.GREY, linestyle="--", linewidth=1, label="chance")
    if auc is not None:
        axes.axvline(auc, color=style.BENIGN, linestyle=":", label=f"all images: {auc:.3f}")
    right.set_axis_off()

    def columns(y: float, images: str, shown: str, colour: str) -> None:
        for x, text in ((0, images), (0.46, shown)):
            right.text(x, y, text, color=colour, va="center", fontsize=10)

    columns(-1.2, "images /\nmelanomas", "AUC\n(95 % interval)", "black")
    names = [textwrap.shorten(style.drawable(name), 30, placeholder=" …") for name, _ in lines]
    axes.set_yticks(range(len(lines)), names, parse_math=False)
    axes.tick_params(axis="y", length=0)
    for y, (label, (_, row)) in enumerate(zip(axes.get_yticklabels(), lines, strict=True)):
        if row is None:
            label.set_fontweight("bold")
            continue
        shown, colour = "not computed", style.GREY
        if row["auc"] is None:
            reason = style.drawable(str(row.get("note") or "too few images"))
            white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the lines
            font: dict[str, Any] = {"color": style.GREY, "style": "italic", "fontsize": 10, "bbox": white}
            reason = textwrap.shorten(reason, 50, placeholder=" …")
            axes.text(low + 0.01, y, reason, va="center", parse_math=False, **font)
        else:
            shown, colour = f"{row['auc']:.3f}", "black"
            axes.plot(row["auc"], y, "s", color=style.BENIGN, markersize=7)
            if row.get("auc_interval"):
                axes.plot(row["auc_interval"], [y, y], color=style.BENIGN, linewidth=2, solid_capstyle="butt")
                shown += " ({:.3f} to {:.3f})".format(*row["auc_interval"])
        label.set_color(colour)
        columns(y, f"{row['n']:,} / {row['n_melanoma']:,}", shown, colour)
    figure.legend(loc="outside lower right", ncols=2)
    style.set_suptitle(figure, "AUC of subgroups", what)
    return figure


def _need_both(labels: np.ndarray, name: str) -> None:
    """Raise ValueError unless labels (N,) has both classes."""
    melanomas = int((labels == 1).sum())
    if not 0 < melanomas < len(labels):
        raise ValueError(
            f"{name} needs melanomas and benign lesions, got {melanomas} melanomas in {len(labels)} images"
        )


def _mark_point(axes: Axes, x: float, y: float, label: str) -> None:
    """Draw the operating point."""
    axes.plot(x, y, "o", color=style.MELANOMA, markersize=9, label=label)


def _mark_thresholds(axes: Axes, threshold: float | np.ndarray) -> None:
    values = np.unique(threshold)
    name = f"threshold {values[0]:.3g}" if len(values) == 1 else f"thresholds of {len(values)} folds"
    for i, value in enumerate(values):
        place = np.clip(value, style.EDGE, 1 - style.EDGE)
        axes.axvline(place, color="black", linestyle=":", linewidth=1.5, label=None if i else name)


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
    axes.xaxis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    return low, high
