"""The card of a judged lesion: the image, what speaks for melanoma in it, and the training lesions that are like it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure

from melanoma.report.style import BENIGN, GREY, MELANOMA, STYLE, one_line

HEAT = LinearSegmentedColormap.from_list("heat", [BENIGN, "white", MELANOMA])
SIGN = ListedColormap([BENIGN, MELANOMA])
NAME_LENGTH = 20  # characters of a name that fit over an image of the lower rows
TITLE_LENGTH = 80
WIDTH, HEIGHT = 10.0, 9.4  # inches


@dataclass(frozen=True)
class Neighbour:
    """A training lesion beside the one that is judged.

    pixels : uint8 array of shape (S, S, 3)
    distance : of the two embeddings, >= 0
    """

    name: str
    pixels: np.ndarray
    distance: float


def lesion_card(
    name: str,
    pixels: np.ndarray,
    heat: np.ndarray | None,
    verdict: Sequence[str],
    melanomas: Sequence[Neighbour],
    benign: Sequence[Neighbour],
) -> Figure:
    """Draw a lesion, its heat map, the verdict, and its nearest melanomas and benign lesions.

    Parameters
    ----------
    name : of the lesion, the card's title
    pixels : uint8 array of shape (S, S, 3)
    heat : float array of shape (H, H) over the same square, above 0 speaks for melanoma, below 0 for benign; None:
        there is none
    verdict : lines of text; the first is set in bold
    melanomas, benign : one or more each, the nearest first
    """
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlesize": 11}):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        title = one_line(name, TITLE_LENGTH)
        figure.text(0.015, 0.985, title, va="top", fontsize=12, fontweight="bold", parse_math=False)
        lesion, mapped, bar = (
            _axes(figure, left, 5.65, width, 2.95)
            for left, width in ((0.15, 2.95), (3.3, 2.95), (6.35, 0.14))
        )
        _picture(lesion, pixels, "the lesion", "black")
        _heat_map(mapped, bar, pixels, heat)
        for i, line in enumerate(verdict):
            weight = "bold" if i == 0 else "normal"
            y = (8.6 - 0.26 * i) / HEIGHT
            figure.text(7.0 / WIDTH, y, line, va="top", fontsize=11, fontweight=weight)
        columns = max(len(melanomas), len(benign))
        side = min(1.85, (WIDTH - 0.3) / columns - 0.1)
        for bottom, heading, colour, row in (
            (2.9, "nearest melanomas of the training part", MELANOMA, melanomas),
            (0.15, "nearest benign lesions of the training part", BENIGN, benign),
        ):
            figure.text(
                0.015, (bottom + 2.35) / HEIGHT, heading, color=colour, fontsize=12, fontweight="bold"
            )
            for i, neighbour in enumerate(row):
                axes = _axes(figure, 0.15 + i * (WIDTH - 0.2) / columns, bottom, side, side)
                label = f"{one_line(neighbour.name, NAME_LENGTH)}\ndistance {neighbour.distance:.3f}"
                _picture(axes, neighbour.pixels, label, colour)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches."""
    return figure.add_axes((left / WIDTH, bottom / HEIGHT, width / WIDTH, height / HEIGHT))


def _picture(axes: Axes, pixels: np.ndarray, title: str, colour: str) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(0, 1, 1, 0))
    axes.set_title(title, fontsize=9 if "\n" in title else 11, parse_math=False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)


def _heat_map(axes: Axes, bar: Axes, pixels: np.ndarray, heat: np.ndarray | None) -> None:
    """Draw a heat map over the lesion in grey: the colour tells its sign, how opaque it is how strong it is."""
    if heat is None:
        _picture(axes, pixels.mean(axis=2), "no heat map: the backbone has no map", "black")
        bar.axis("off")
        return
    _picture(axes, pixels.mean(axis=2), "what speaks for which (Grad-CAM)", "black")
    strength = np.abs(heat) / (np.abs(heat).max() or 1.0)
    colours = SIGN((heat > 0).astype(int))  # (H, H, 4)
    colours[..., 3] = 0.85 * strength
    axes.imshow(colours, interpolation="bilinear", extent=(0, 1, 1, 0))
    axes.figure.colorbar(ScalarMappable(Normalize(-1, 1), HEAT), cax=bar, ticks=[])
    for y, text, va in ((0.0, "benign", "bottom"), (1.0, "melanoma", "top")):
        bar.text(1.5, y, text, rotation=90, va=va, color=GREY, transform=bar.transAxes)
