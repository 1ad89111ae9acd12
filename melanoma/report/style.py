"""Colours, sizes, titles and saving: what all figures have in common.

A figure is a function of arrays that returns a matplotlib Figure; the caller saves it. `what` names the set and its
number of images, for the second line of the title.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from melanoma.common.errors import brief
from melanoma.common.files import remove_file, replace_file

# Colours of Okabe and Ito (2008), safe for colour blindness.
BENIGN, MELANOMA = "#0072b2", "#d55e00"
SAME, DIFFERENT = "#009e73", "#cc79a7"
GREY = "#777777"
CLASSES = ("benign", "melanoma")
SIZE = (6.4, 5.6)  # inches; 960 × 840 pixels in the file
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


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically; its folder is made if needed."""
    replace_file(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def save_drawn(drawn: Mapping[str, Figure | None], folder: Path) -> dict[str, bytes | None]:
    """Save figures by file name, and remove those that are None; return what was written."""
    for name, figure in drawn.items():
        if figure:
            save_figure(figure, folder / name)
        else:
            remove_file(folder / name)
    return {name: (folder / name).read_bytes() if figure else None for name, figure in drawn.items()}


def one_panel(name: str, what: str) -> tuple[Figure, Axes]:
    """Return a figure of the usual size with its title, see `set_title`, and its axes."""
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    set_title(axes, name, what)
    return figure, axes


def drawable(text: str) -> str:
    """Return text with ? for each character that the font lacks (matplotlib would warn of it)."""
    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return "".join(c if c == "\n" or (c.isprintable() and font.get_char_index(ord(c))) else "?" for c in text)


def one_line(text: str, most: int) -> str:
    """Return text as one line that can be drawn, shortened in the middle to at most `most` characters."""
    return brief(drawable(text.replace("\n", "?")), most)


def set_title(axes: Axes, name: str, what: str) -> None:
    """Set the title of one panel: the figure's name, then the set; long lines are wrapped."""
    lines = [textwrap.fill(drawable(line), 62) for line in what.splitlines()]
    axes.set_title("\n".join([name, *lines]), parse_math=False)  # a folder's name may hold a $


def set_suptitle(figure: Figure, name: str, what: str) -> None:
    """Set the title of a figure of several panels: its name, then the set."""
    figure.suptitle(f"{name}\n{drawable(what)}", fontsize=13, parse_math=False)
