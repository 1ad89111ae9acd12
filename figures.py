"""Figures: pure functions of arrays, each returns a matplotlib Figure; the caller saves it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

BENIGN, MELANOMA = (
    "#0072b2",
    "#d55e00",
)  # blue and vermilion of Okabe and Ito (2008), safe for colour blindness
GREY = "#777777"
CLASSES = ("benign", "melanoma")
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def loss_curves(
    epochs: Sequence[int],
    train_loss: Sequence[float],
    validation_loss: Sequence[float],
    validation_auc: Sequence[float],
    best_epoch: int,
) -> Figure:
    """Draw average loss on training and validation pairs, and validation AUC, against the epoch."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7, 6), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        upper.plot(epochs, train_loss, "-o", color=GREY, markersize=4, label="training pairs (augmented)")
        upper.plot(epochs, validation_loss, "-s", color=BENIGN, markersize=4, label="validation pairs")
        upper.set(ylabel="average loss", title="Average loss per epoch", ylim=(0, None))
        upper.legend()
        lower.plot(epochs, validation_auc, "-s", color=BENIGN, markersize=4)
        lower.axvline(best_epoch, color=MELANOMA, linestyle="--", label=f"best: epoch {best_epoch}")
        lower.set(xlabel="epoch", ylabel="validation AUC")
        lower.xaxis.get_major_locator().set_params(integer=True)
        lower.legend()
    return figure


def confusion_matrix(counts: dict[str, int], title: str) -> Figure:
    """Draw the confusion matrix {tp, fp, tn, fn}, each cell with its count and its share of the true class."""
    table = np.array([[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]])
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    texts = [
        [f"{count:,}\n{share:.1%}" for count, share in zip(*rows, strict=True)]
        for rows in zip(table, shares, strict=True)
    ]
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(5.6, 4.8), layout="constrained")
        axes = figure.subplots()
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
            annot_kws={"size": 14},
            cbar_kws={"label": "share of the true class"},
        )
        axes.set(xlabel="predicted", ylabel="true", title=title)
    return figure


def roc(labels: np.ndarray, scores: np.ndarray, auc: float, point: tuple[float, float], title: str) -> Figure:
    """Draw the ROC curve of labels (N,) and scores (N,) with the operating point (1 - specificity, sensitivity)."""
    false_rate, true_rate, _ = roc_curve(labels, scores, drop_intermediate=False)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], "--", color=GREY, label="chance")
        axes.plot(false_rate, true_rate, color=BENIGN, linewidth=2, label=f"AUC {auc:.3f}")
        axes.plot(
            *point,
            "o",
            color=MELANOMA,
            markersize=9,
            label=f"threshold: sensitivity {point[1]:.1%}, specificity {1 - point[0]:.1%}",
        )
        axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=title, aspect="equal")
        axes.legend(loc="lower right")
    return figure


def tsne_map(points: np.ndarray, labels: np.ndarray, title: str) -> Figure:
    """Draw embeddings mapped to the plane, points (N, 2), coloured by labels (N,), melanomas on top."""
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(6.4, 5.6), layout="constrained")
        axes = figure.subplots()
        for label, colour, size in ((0, BENIGN, 10), (1, MELANOMA, 22)):
            own = points[labels == label]
            axes.scatter(
                own[:, 0],
                own[:, 1],
                s=size,
                color=colour,
                alpha=0.5 if label == 0 else 0.9,
                linewidths=0,
                label=f"{CLASSES[label]} ({len(own):,})",
            )
        axes.set(xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2", title=title)
        axes.legend()
    return figure
