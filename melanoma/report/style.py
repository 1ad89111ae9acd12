"""Figures: pure functions of arrays, each returns a matplotlib Figure; the caller saves it.

Here are the style of all figures and the outline's four; curves.py and galleries.py draw the others. `what` names the
set and its number of images, for the second line of a title. `roc` needs melanomas and benign lesions and raises
ValueError without; the others are drawn with what is there.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from melanoma.common.errors import brief
from melanoma.common.files import replace_file

# The colours of Okabe and Ito (2008), safe for colour blindness.
BENIGN, MELANOMA = "#0072b2", "#d55e00"
LIKE, UNLIKE = "#009e73", "#cc79a7"
GREY = "#777777"
CLASSES = ("benign", "melanoma")
SIZE = (6.4, 5.6)  # inches; 960 × 840 pixels in the file
EDGE = 1e-4  # probabilities nearer to 0 or 1 are drawn there on axes of log odds
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.facecolor": "white",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.9,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically, making its folder."""
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def learning_curves(log: Sequence[Mapping[str, Any]], best_epoch: int, what: str) -> Figure:
    """Draw loss, validation AUC and, where the log has them, the mean distances of trained pairs, by epoch.

    Parameters
    ----------
    log : for each epoch its epoch, train_loss, val_loss, val_auc, and if measured like_distance and unlike_distance
    """
    epochs = [entry["epoch"] for entry in log]
    distances = all("like_distance" in entry and "unlike_distance" in entry for entry in log)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], 7.6 if distances else SIZE[1]), layout="constrained")
        panels = figure.subplots(2 + distances, 1, sharex=True, height_ratios=(3, 2, 2)[: 2 + distances])

        def draw(axes: Axes, key: str, line: str, colour: str, label: str) -> None:
            values = [entry[key] for entry in log]
            axes.plot(epochs, values, line, color=colour, markersize=4, label=label)

        draw(panels[0], "train_loss", "-o", GREY, "training pairs (augmented)")
        draw(panels[0], "val_loss", "-s", BENIGN, "validation pairs")
        panels[0].set(ylabel="average loss", ylim=(0, None))
        set_title(panels[0], "Average loss per epoch", what)
        draw(panels[1], "val_auc", "-s", BENIGN, "")
        panels[1].axvline(best_epoch, color=MELANOMA, linestyle="--", label=f"best: epoch {best_epoch}")
        panels[1].set(ylabel="validation AUC")
        if distances:
            draw(panels[2], "unlike_distance", "-o", UNLIKE, "unlike training pairs")
            draw(panels[2], "like_distance", "-s", LIKE, "like training pairs")
            panels[2].set(ylabel="mean distance", ylim=(0, None))
        for axes in panels:
            axes.legend()
        panels[-1].set(xlabel="epoch")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def describe_parts(parts: Mapping[str, np.ndarray]) -> str:
    """Return how many images and melanomas each part has, a line for each, of its labels (N,) by its name."""
    return "\n".join(
        f"{name}: {len(labels):,} images, {labels.sum():,} melanoma" for name, labels in parts.items()
    )


def confusion_matrix(counts: Mapping[str, int], what: str) -> Figure:
    """Draw the confusion matrix {tp, fp, tn, fn}, each cell with its count and its share of the true class."""
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    texts = [
        [f"{count:,}\n{share:.1%}" for count, share in zip(*rows, strict=True)]
        for rows in zip(table, shares, strict=True)
    ]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = one_panel()
        sns.heatmap(
            shares,
            ax=axes,
            annot=texts,
            fmt="",
            cmap="Blues",
            vmin=0,
            vmax=1,
            xticklabels=CLASSES,
            yticklabels=CLASSES,
            annot_kws={"size": 16},
            cbar_kws={"label": "share of the true class"},
        )
        axes.set(xlabel="predicted", ylabel="true")
        set_title(axes, "Confusion matrix", what)
    return figure


def roc(
    labels: np.ndarray,
    scores: np.ndarray,
    auc: float,
    point: tuple[float, float],
    what: str,
    band: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Figure:
    """Draw the ROC curve of labels (N,) and scores (N,) with the operating point (1 - specificity, sensitivity).

    Parameters
    ----------
    band : where the curve lies in 95 % of bootstrap samples: 1 - specificity, and the lowest and highest sensitivity
        there, each of shape (G,), see `bootstrap.roc_band`
    """
    need_both(labels, "a ROC curve")
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    with matplotlib.rc_context(STYLE):
        figure, axes = one_panel()
        axes.plot([0, 1], [0, 1], "--", color=GREY, label="chance")
        axes.fill_between(*band, color=BENIGN, alpha=0.2, linewidth=0, label="95 % of bootstrap samples")
        axes.plot(false_rate, true_rate, color=BENIGN, linewidth=2, label=f"AUC {auc:.3f}")
        sensitivity, specificity = point[1], 1 - point[0]
        mark_point(axes, *point, f"threshold: sensitivity {sensitivity:.1%}, specificity {specificity:.1%}")
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        axes.legend(loc="lower right")
        set_title(axes, "ROC curve", what)
    return figure


def tsne_map(points: np.ndarray, labels: np.ndarray, what: str) -> Figure:
    """Draw embeddings mapped to the plane, points (N, 2), coloured by labels (N,), melanomas on top."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure, axes = one_panel()
        scatter_classes(axes, points, labels)
        axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
        set_title(axes, "t-SNE of the embeddings", what)
    return figure


def scatter_classes(axes: Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Draw points (N, 2) in the colours of their classes, melanomas last and larger."""
    for label, colour, size, alpha in ((0, BENIGN, 10, 0.5), (1, MELANOMA, 22, 0.9)):
        own = points[labels == label]
        name = f"{CLASSES[label]} ({len(own):,})"
        axes.scatter(own[:, 0], own[:, 1], s=size, color=colour, alpha=alpha, linewidths=0, label=name)
    axes.set(xticks=[], yticks=[])
    # below, where it hides no point
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.04), ncols=2, markerscale=2)


def one_panel() -> tuple[Figure, Axes]:
    """Return a figure of the usual size and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    return figure, figure.subplots()


def drawable(text: str) -> str:
    """Return text with ? for each character that the font does not have, of which matplotlib would warn."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if c == "\n" or (c.isprintable() and font.get_char_index(ord(c))) else "?" for c in text)


def one_line(text: str, most: int) -> str:
    """Return text as one line that can be drawn, shortened in its middle to at most so many characters."""
    return brief(drawable(text.replace("\n", "?")), most)


def set_title(axes: Axes, name: str, what: str) -> None:
    """Name what is drawn, and below it the set; long lines are wrapped."""
    lines = [textwrap.fill(drawable(line), 62) for line in what.splitlines()]
    axes.set_title("\n".join([name, *lines]), parse_math=False)  # a folder's name may hold a $


def mark_point(axes: Axes, x: float, y: float, label: str) -> None:
    """Draw the operating point."""
    axes.plot(x, y, "o", color=MELANOMA, markersize=9, label=label)


def need_both(labels: np.ndarray, name: str) -> None:
    """Refuse labels (N,) of one class alone with a ValueError."""
    melanomas = int((labels == 1).sum())
    if not 0 < melanomas < len(labels):
        raise ValueError(
            f"{name} needs melanomas and benign lesions, got {melanomas} of {len(labels)} images"
        )
