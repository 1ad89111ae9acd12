"""Figures of single images: the card of a judged lesion with its nearest training lesions, and the worst errors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from melanoma.common.errors import counted
from melanoma.report.style import BENIGN, GREY, MELANOMA, NO_GRID, one_line, set_title

HEAT = LinearSegmentedColormap.from_list("heat", [BENIGN, "white", MELANOMA])
SIGN = ListedColormap([BENIGN, MELANOMA])
NAME_LENGTH = 19  # characters of a name that fit above an image of a card's lower rows
ERROR_NAME_LENGTH = 17  # and above an image of the errors
TITLE_LENGTH, ORIGIN_LENGTH = 70, 100
VERDICT_WIDTH = 36  # characters of a line of the verdict
ERRORS = 6  # of either kind in the gallery
NEIGHBOURS = 5  # of each class on a card, in a row
WIDTH, HEIGHT, ROWS = 10.0, 3.9, 5.5  # inches; the rows of neighbours stand below the height

Neighbour = tuple[str, np.ndarray, float]  # name, pixels and distance, see `model.Model.neighbours`


@rc_context(NO_GRID | {"axes.titlesize": 11})
def lesion_card(
    name: str,
    origin: str,
    pixels: np.ndarray,
    heat: np.ndarray,
    verdict: Sequence[str],
    melanomas: Sequence[Neighbour],
    benign: Sequence[Neighbour],
) -> Figure:
    """Draw a lesion, its heat map, the verdict, and its nearest melanomas and benign lesions.

    Parameters
    ----------
    name, pixels : of the lesion, uint8 array of shape (S, S, 3)
    origin : what judged it, one line
    heat : float array of shape (H, H) over the same square, > 0 where evidence is for melanoma, < 0 for benign
    verdict : sentences, each begins a line; the first leads in bold, the others are grey
    melanomas, benign : the nearest first, at most `NEIGHBOURS` each; without any the card has no rows of them
    """
    rows = ROWS if melanomas or benign else 0.0
    height = HEIGHT + rows
    figure = Figure(figsize=(WIDTH, height))
    title, subtitle = one_line(name, TITLE_LENGTH), one_line(origin, ORIGIN_LENGTH)
    figure.text(0.015, 1 - 0.14 / height, title, va="top", fontsize=13, fontweight="bold", parse_math=False)
    figure.text(0.015, 1 - 0.38 / height, subtitle, va="top", fontsize=10, color=GREY, parse_math=False)
    _picture(_axes(figure, 0.15, rows + 0.15, 2.95, 2.95), pixels, "lesion", "black")
    heated, bar = _axes(figure, 3.3, rows + 0.15, 2.95, 2.95), _axes(figure, 6.35, rows + 0.15, 0.14, 2.95)
    _heat_map(heated, bar, pixels, heat)
    headline = textwrap.fill(verdict[0], VERDICT_WIDTH - 8)
    body = "\n".join(textwrap.fill(sentence, VERDICT_WIDTH) for sentence in verdict[1:])
    figure.text(6.9 / WIDTH, (rows + 3.1) / height, headline, va="top", fontsize=12, fontweight="bold", linespacing=1.3)
    top = rows + 3.0 - 0.24 * len(headline.splitlines())
    figure.text(6.9 / WIDTH, top / height, body, va="top", fontsize=11, color=GREY, linespacing=1.3)
    for bottom, kind, colour, row in (
        (2.9, "melanomas", MELANOMA, melanomas),
        (0.15, "benign lesions", BENIGN, benign),
    ):
        if not row:
            continue
        heading = f"nearest {kind} of the training part"
        explained = "by distance in the embedding: small = alike"
        y = (bottom + 2.37) / height
        figure.text(0.015, y, heading, color=colour, fontsize=12, fontweight="bold")
        figure.text(0.985, y, explained, color=GREY, fontsize=11, ha="right")
        for i, (own, picture, distance) in enumerate(row):
            axes = _axes(figure, 0.15 + i * (WIDTH - 0.2) / NEIGHBOURS, bottom, 1.84, 1.84)
            label = f"{one_line(own, NAME_LENGTH)}\ndistance {distance:.3f}"
            _picture(axes, picture, label, colour)
    return figure


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """Add axes at a place given in inches."""
    x, y = figure.get_size_inches()
    return figure.add_axes((left / x, bottom / y, width / x, height / y))


def _picture(axes: Axes, pixels: np.ndarray, title: str, colour: str) -> None:
    axes.imshow(pixels)
    axes.set_title(title, fontsize=10 if "\n" in title else 11, parse_math=False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=1.5)


def heat_overlay(pixels: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Return a lesion in grey under its heat map: colour shows the sign, opacity the strength.

    Both are as in `lesion_card`; the map is resized to the pixels, and uint8 (S, S, 3) is returned.
    """
    resized = Image.fromarray(heat.astype(np.float32)).resize(pixels.shape[1::-1], Image.Resampling.BILINEAR)
    heat = np.asarray(resized)[..., None]
    opacity = 0.85 * np.abs(heat) / (np.abs(heat).max() or 1.0)
    colours = 255 * SIGN((heat[..., 0] > 0).astype(int))[..., :3]
    return np.rint(opacity * colours + (1 - opacity) * pixels.mean(axis=2, keepdims=True)).astype(np.uint8)


def _heat_map(axes: Axes, bar: Axes, pixels: np.ndarray, heat: np.ndarray) -> None:
    """Draw a heat map over the lesion in grey, with its colour bar."""
    _picture(axes, heat_overlay(pixels, heat), "evidence (integrated gradients)", "black")
    axes.figure.colorbar(ScalarMappable(Normalize(-1, 1), HEAT), cax=bar, ticks=[])
    for y, text, va in ((0.0, "for benign", "bottom"), (1.0, "for melanoma", "top")):
        bar.text(1.5, y, text, rotation=90, va=va, color=GREY, transform=bar.transAxes)


def confident_errors(labels: np.ndarray, probabilities: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return the most confident errors: false negatives of lowest, then false positives of highest probability.

    Labels and probabilities are (N,), the threshold too or one for all; indices (E,) are returned, at most
    `ERRORS` of either kind.
    """
    order = np.argsort(probabilities, kind="stable")
    called = (probabilities >= threshold)[order]
    false_negatives = order[(labels[order] == 1) & ~called]
    false_positives = order[(labels[order] == 0) & called][::-1]
    return np.concatenate([false_negatives[:ERRORS], false_positives[:ERRORS]])


@rc_context(NO_GRID)
def error_gallery(
    images: Sequence[np.ndarray],
    labels: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    counts: Mapping[str, int],
    what: str,
) -> Figure:
    """Draw misclassified images with their probabilities, false negatives above, false positives below.

    The images, uint8 (H, W, 3), are those of `confident_errors`; `counts` {fn, fp} are of the whole set.
    """
    figure = Figure(figsize=(1.6 * ERRORS, 5.6), layout="constrained")
    set_title(figure, "Most confident errors", what)
    upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for row, label, key, name, meaning, end, colour in (
        (upper, 1, "fn", "false negative", "melanomas called benign", "lowest", MELANOMA),
        (lower, 0, "fp", "false positive", "benign lesions called melanoma", "highest", BENIGN),
    ):
        own = np.flatnonzero(labels == label)
        shown = f"; the {len(own)} of {end} probability" if len(own) else ""
        row.suptitle(f"{counted(counts[key], name)} ({meaning}){shown}", fontsize=12, color=colour, fontweight="bold")
        panels = row.subplots(1, ERRORS)
        for axes in panels:
            axes.set_axis_off()
        for axes, i in zip(panels, own.tolist(), strict=False):
            axes.imshow(images[i])
            text = f"{one_line(names[i], ERROR_NAME_LENGTH)}\np = {probabilities[i]:.3g}"
            axes.set_title(text, fontsize=10, parse_math=False)
    return figure
