"""Figures of single images and of groups of them: subgroups, errors, the map of embeddings in several colours."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import expit, logit

from melanoma.report.style import BENIGN, EDGE, GREY, MELANOMA, STYLE, drawable, one_line, scatter_classes

LONGEST_NAME = 17  # characters of an image's name that fit over it


def forest(rows: Sequence[Mapping[str, Any]], auc: float | None, what: str) -> Figure:
    """Draw the AUC of each subgroup with its interval; groups without one are named in grey, with the reason.

    Parameters
    ----------
    rows : for each group its attribute, group, n, n_melanoma, auc (None if it cannot be computed), auc_interval
        (low, high) or None, and note, the reason; those of one attribute stand together
    auc : of all images, drawn as a line; None draws none
    """
    lines: list[tuple[str, Mapping[str, Any] | None]] = []
    for attribute, own in groupby(rows, lambda row: row["attribute"]):
        lines += [(str(attribute), None), *((str(row["group"]), row) for row in own)]
    ends = [end for row in rows for end in row.get("auc_interval") or [] if row["auc"] is not None]
    low = min([0.45, *(end - 0.02 for end in ends)])
    with matplotlib.rc_context(STYLE | {"axes.spines.left": False}):
        figure = Figure(figsize=(9.6, 1.9 + 0.3 * len(lines)), layout="constrained")
        axes, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(low, 1.01), ylim=(len(lines) - 0.4, -2), xlabel="AUC (bars: 95 % interval)")
        axes.axvline(0.5, color=GREY, linestyle="--", linewidth=1, label="chance")
        if auc is not None:
            axes.axvline(auc, color=BENIGN, linestyle=":", label=f"all images: {auc:.3f}")
        right.set_axis_off()
        _columns(right, -1.2, "images /\nmelanomas", "AUC\n(95 % interval)", "black")
        for y, (_, row) in enumerate(lines):
            if row is None:
                continue
            if row["auc"] is None:
                _draw_reason(axes, low + 0.01, y, str(row.get("note") or "too few images"))
                shown, colour = "not computed", GREY
            else:
                shown, colour = f"{row['auc']:.3f}", "black"
                axes.plot(row["auc"], y, "s", color=BENIGN, markersize=7)
                if row.get("auc_interval"):
                    axes.plot(row["auc_interval"], [y, y], color=BENIGN, linewidth=2, solid_capstyle="butt")
                    shown += " ({:.3f} to {:.3f})".format(*row["auc_interval"])
            _columns(right, y, f"{row['n']:,} / {row['n_melanoma']:,}", shown, colour)
        names = [textwrap.shorten(drawable(name), 30, placeholder=" …") for name, _ in lines]
        axes.set_yticks(range(len(lines)), names, parse_math=False)
        axes.tick_params(axis="y", length=0)
        for label, (_, row) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if row is None else "normal")
            label.set_color(GREY if row is not None and row["auc"] is None else "black")
        figure.legend(loc="outside lower right", ncols=2)
        figure.suptitle(f"AUC of subgroups\n{drawable(what)}", fontsize=13, parse_math=False)
    return figure


def _draw_reason(axes: Axes, x: float, y: float, reason: str) -> None:
    shown = textwrap.shorten(drawable(reason), 50, placeholder=" …")
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # over the lines
    axes.text(x, y, shown, color=GREY, va="center", style="italic", fontsize=10, bbox=white, parse_math=False)


def _columns(axes: Axes, y: float, images: str, auc: str, colour: str) -> None:
    for x, text in ((0, images), (0.46, auc)):
        axes.text(x, y, text, color=colour, va="center", fontsize=10)


def confident_errors(
    labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray, most: int = 6
) -> np.ndarray:
    """Return which images to show as errors: first the missed melanomas of lowest probability, then the benign
    lesions called melanoma of highest probability, at most `most` of each.

    Parameters
    ----------
    labels, probabilities : arrays of shape (N,)
    threshold : a lesion is called melanoma where probability >= threshold; one for all, or an array of shape (N,)

    Returns
    -------
    int array of shape (E,), indices into labels, E <= 2 * most
    """
    order = np.argsort(probabilities, kind="stable")
    called = (probabilities >= threshold)[order]
    missed = order[(labels[order] == 1) & ~called]
    alarms = order[(labels[order] == 0) & called][::-1]
    return np.concatenate([missed[:most], alarms[:most]])


def error_gallery(
    images: Sequence[np.ndarray],
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    counts: Mapping[str, int],
    what: str,
) -> Figure:
    """Draw images that were judged wrongly, missed melanomas above, false alarms below, with their probabilities.

    Parameters
    ----------
    images : of the errors, each uint8 of shape (H, W, 3), in the order of `confident_errors`
    labels, probabilities, names : of the same images, each of length E
    counts : {fn, fp}, the errors of the whole set, tp and tn are not used
    """
    columns = max(6, *((labels == label).sum() for label in (0, 1)))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(1.6 * columns, 5.3), layout="constrained")
        figure.suptitle(f"Most confident errors\n{drawable(what)}", fontsize=13, parse_math=False)
        rows = figure.subfigures(2, 1, squeeze=False)[:, 0]
        for row, label, total, name, end in (
            (rows[0], 1, counts["fn"], "melanomas missed", "lowest"),
            (rows[1], 0, counts["fp"], "benign lesions called melanoma", "highest"),
        ):
            own = np.flatnonzero(labels == label)
            shown = f"{total:,} {name}" + (f"; the {len(own)} of {end} probability" if len(own) else "")
            row.suptitle(shown, fontsize=12, color=MELANOMA if label else BENIGN, fontweight="bold")
            for axes in row.subplots(1, columns):
                axes.set_axis_off()
            for axes, i in zip(row.axes, own.tolist(), strict=False):
                axes.imshow(images[i])
                axes.set_title(
                    f"{one_line(names[i], LONGEST_NAME)}\np = {probabilities[i]:.3g}",
                    fontsize=10,
                    parse_math=False,
                )
    return figure


def tsne_panels(
    points: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, pixels: np.ndarray | None, what: str
) -> Figure:
    """Draw the map three times: coloured by class, by probability and by the size of the source image.

    Melanomas lie on top; where colour says something else, they are ringed.

    Parameters
    ----------
    points : float array of shape (N, 2)
    labels, probabilities : arrays of shape (N,)
    pixels : width × height of each source image, (N,), NaN where unknown; None if none is known
    """
    megapixels = np.full(len(points), np.nan) if pixels is None else np.asarray(pixels, float) / 1e6
    log_odds = logit(np.clip(probabilities, EDGE, 1 - EDGE))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(12, 4.8), layout="constrained")
        panels = figure.subplots(1, 3)
        scatter_classes(panels[0], points, labels)
        panels[0].set_title("by class")
        for axes, values, name, show in (
            (panels[1], log_odds, "probability of melanoma", lambda value: f"{expit(value):.2g}"),
            (panels[2], np.log10(megapixels), "source size, megapixels", lambda value: f"{10**value:.2g}"),
        ):
            axes.set_title(f"by {name}")
            _scatter_values(axes, points, labels, values, name, show)
        for axes in panels:
            axes.set(xticks=[], yticks=[])
        figure.suptitle(f"t-SNE of the embeddings\n{drawable(what)}", fontsize=13, parse_math=False)
    return figure


def _scatter_values(
    axes: Axes, points: np.ndarray, labels: np.ndarray, values: np.ndarray, name: str, show: Any
) -> None:
    known = np.isfinite(values)
    if not known.all():
        x, y = points[~known].T
        axes.scatter(x, y, s=10, color="#bbbbbb", linewidths=0, label="not known")
        axes.legend()
    if not known.any():
        return
    low, high = values[known].min(), values[known].max()
    ticks = np.linspace(low, high, 5).tolist() if high > low else [low]
    if low == high:  # one colour for all, from the middle of the bar
        low, high = low - 0.5, high + 0.5
    for label, size, ring in ((0, 10, 0), (1, 26, 0.8)):
        own = known & (labels == label)
        x, y = points[own].T
        drawn = axes.scatter(
            x,
            y,
            c=values[own],
            s=size,
            cmap="viridis",
            vmin=low,
            vmax=high,
            linewidths=ring,
            edgecolors="black" if ring else "none",
        )
    bar = axes.figure.colorbar(drawn, ax=axes, location="bottom", shrink=0.9, label=name)
    bar.set_ticks(ticks, labels=[show(tick) for tick in ticks])
