"""Colours, sizes, titles and legends: what all figures have in common.

A figure is a function of arrays that returns a matplotlib Figure; the caller saves it. `what` is its subtitle: the set
with its number of images, and in the next line the run.
"""

from __future__ import annotations

import textwrap
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from melanoma.common.errors import brief

# Colours of Okabe and Ito (2008), safe for colour blindness.
BENIGN, MELANOMA = "#0072b2", "#d55e00"
SAME, DIFFERENT = "#009e73", "#cc79a7"
GREY, SOFT = "#777777", "#444444"
CLASSES = ("benign", "melanoma")
SIZE = (6.4, 6.8)  # inches; 960 × 1020 pixels in the file
EDGE = 1e-4  # on axes of log odds, probabilities are clipped to EDGE..1 - EDGE
# The style of a figure: decorate the function with rc_context(STYLE), or rc_context(NO_GRID).
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
NO_GRID = STYLE | {"axes.grid": False}


def one_panel(name: str, what: str) -> tuple[Figure, Axes]:
    """Return a figure of the usual size with its title, see `set_title`, and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    set_title(figure, name, what)
    return figure, axes


def drawable(text: str) -> str:
    """Return text with ? for each character that the font lacks (matplotlib would warn of it)."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if c == "\n" or (c.isprintable() and font.get_char_index(ord(c))) else "?" for c in text)


def one_line(text: str, most: int) -> str:
    """Return text as one line that can be drawn, shortened in the middle to at most `most` characters."""
    return brief(drawable(text.replace("\n", "?")), most)


def set_title(figure: Figure, name: str, what: str) -> None:
    """Write a figure's name above its axes, and below it what it shows of which run; long lines are wrapped."""
    width, height = figure.get_size_inches()
    lines = [line for text in what.splitlines() for line in textwrap.wrap(drawable(text), int(13.5 * width))]
    style: dict[str, Any] = {"va": "top", "linespacing": 1.25, "parse_math": False}  # a folder's name may hold a $
    figure.text(0.1 / width, 1 - 0.1 / height, drawable(name), fontsize=13, fontweight="bold", **style)
    figure.text(0.1 / width, 1 - 0.37 / height, "\n".join(lines), fontsize=9.5, color=SOFT, **style)
    room = 0.45 + 0.165 * len(lines)  # inches
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - room / height))  # type: ignore[union-attr, call-arg]


def legend_below(figure: Figure, axes: Axes, ncols: int = 2) -> None:
    """Draw the legend of axes below them, where it hides nothing."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=ncols, fontsize=9.5)
