"""Figures of the embedding space: distances of pairs, and t-SNE maps of points (N, 2)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from scipy.special import expit, logit

from melanoma.report import style


@rc_context(style.STYLE)
def pair_distances(distances: np.ndarray, same: np.ndarray, margin: float, what: str) -> Figure:
    """Draw histograms of the embedding distances (P,) of same-class and different-class pairs, same (P,) bool.

    margin : distance beyond which different-class pairs add no loss
    """
    bins = np.linspace(0, 1.02 * max(distances.max(), margin), 61).tolist()
    figure, axes = style.one_panel("Distances of pairs", what)
    for own, colour, hatch, name in (
        (same, style.SAME, "", "same-class"),
        (~same, style.DIFFERENT, "//", "different-class"),
    ):
        values = distances[own]
        axes.hist(
            values,
            bins,
            weights=np.full(len(values), 1 / len(values)),
            histtype="stepfilled",
            facecolor=(colour, 0.35),
            edgecolor=colour,
            hatch=hatch,
            linewidth=1.5,
            label=f"{name} pairs ({len(values):,}, median {np.median(values):.3f})",
        )
    axes.axvline(margin, color="black", linestyle="--", label=f"margin {margin:g}")
    axes.set(xlabel="embedding distance", ylabel="share of the pairs of its kind", xlim=(0, bins[-1]))
    style.legend_below(figure, axes, ncols=1)
    return figure


@rc_context(style.NO_GRID)
def tsne_map(points: np.ndarray, labels: np.ndarray, what: str) -> Figure:
    """Draw points (N, 2) coloured by labels (N,), melanomas on top."""
    figure, axes = style.one_panel("t-SNE of the embeddings", what)
    _scatter_classes(axes, points, labels)
    axes.set(xlabel="t-SNE 1", ylabel="t-SNE 2")
    figure.legend(loc="outside lower center", ncols=2, markerscale=2)
    return figure


@rc_context(style.NO_GRID)
def tsne_panels(
    points: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, megapixels: np.ndarray, what: str
) -> Figure:
    """Draw the map three times: coloured by class, by probability and by the size of the source image.

    Points are (N, 2), the others (N,). Melanomas are on top; in the second and third panel they have a black outline.
    """
    log_odds = logit(np.clip(probabilities, style.EDGE, 1 - style.EDGE))
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    (by_class, by_probability, by_size), below = figure.subplots(2, 3, height_ratios=(24, 1))
    _scatter_classes(by_class, points, labels)
    by_class.set_title("class")
    below[0].set_axis_off()
    below[0].legend(*by_class.get_legend_handles_labels(), loc="upper center", ncols=2, markerscale=2, fontsize=10)
    _scatter_values(by_probability, below[1], points, labels, log_odds, expit)
    by_probability.set_title("probability of melanoma")
    _scatter_values(by_size, below[2], points, labels, np.log10(megapixels), lambda x: 10**x)
    by_size.set_title("source image, megapixels")
    style.set_title(figure, "t-SNE of the embeddings in three colourings", what)
    return figure


def _scatter_classes(axes: Axes, points: np.ndarray, labels: np.ndarray) -> None:
    """Draw points in the colours of their classes, melanomas last and larger."""
    for label, colour, size, alpha in ((0, style.BENIGN, 10, 0.5), (1, style.MELANOMA, 22, 0.9)):
        own = points[labels == label]
        name = f"{style.CLASSES[label]} ({len(own):,})"
        axes.scatter(own[:, 0], own[:, 1], s=size, color=colour, alpha=alpha, linewidths=0, label=name)
    axes.set(xticks=[], yticks=[])


def _scatter_values(
    axes: Axes, below: Axes, points: np.ndarray, labels: np.ndarray, values: np.ndarray, shown: Callable[[float], float]
) -> None:
    """Draw points coloured by values (N,), and their scale into the axes below, unless all are equal.

    shown : turns a value into the number on the colour bar
    """
    axes.set(xticks=[], yticks=[])
    low, high = values.min(), values.max()
    norm = Normalize(low, high)
    for label, size, width, edge in ((0, 10, 0.0, "none"), (1, 26, 0.8, "black")):
        own = labels == label
        x, y = points[own].T
        drawn = axes.scatter(x, y, size, values[own], norm=norm, cmap="viridis", linewidths=width, edgecolors=edge)
    if low == high:
        below.set_axis_off()
        below.text(0.5, 0.5, f"all images: {shown(low):.2g}", ha="center", va="center", fontsize=10)
        return
    bar = axes.figure.colorbar(drawn, cax=below, orientation="horizontal")
    ticks = np.linspace(low, high, 5).tolist()
    bar.set_ticks(ticks, labels=[f"{shown(tick):.2g}" for tick in ticks])
