"""Titles and saved pictures of all figures."""

from typing import Any

import numpy as np
import pytest
from conftest import save, titles_of
from matplotlib.figure import Figure
from test_curves import BAND, LABELS, LOG, WHAT
from test_embeddings import POINTS

from melanoma.report import curves, embeddings

SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.0])

FIGURES = {
    "learning": lambda: curves.learning_curves(LOG, 2, WHAT),
    "confusion": lambda: curves.confusion_matrix({"tp": 90, "fp": 1509, "tn": 5000, "fn": 27}, WHAT),
    "roc": lambda: curves.roc(LABELS, SCORES, 0.7333, [0.6, 0.8], (0.2, 2 / 3), WHAT, BAND),
    "tsne": lambda: embeddings.tsne_map(POINTS, LABELS, WHAT),
}


@pytest.mark.parametrize(
    ("name", "title", "x", "y"),
    [
        ("learning", "Average loss per epoch", "", "average loss"),
        ("confusion", "Confusion matrix", "predicted", "true"),
        ("roc", "ROC curve", "1 - specificity", "sensitivity"),
        ("tsne", "t-SNE of the embeddings", "t-SNE 1", "t-SNE 2"),
    ],
)
def test_a_figure_says_what_it_shows_of_which_set(name, title, x, y):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert (*titles_of(figure), axes.get_xlabel(), axes.get_ylabel()) == (title, WHAT, x, y)


@pytest.mark.parametrize("name", FIGURES)
def test_the_title_is_above_the_axes_and_within_the_figure(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    title, subtitle = (text.get_window_extent() for text in figure.texts)
    assert figure.bbox.contains(*title.max) and figure.bbox.contains(*subtitle.max)
    boxes: list[Any] = [axes.get_tightbbox() for axes in figure.axes]
    top = max(box.y1 for box in boxes)
    assert title.y0 > subtitle.y1 and subtitle.y0 > top


def test_a_long_title_is_wrapped_and_a_dollar_is_a_dollar(tmp_path):
    figure = embeddings.tsne_map(POINTS, LABELS, "a$^$b$\\frac$: 8 images\n" + "word " * 30)
    name, subtitle = titles_of(figure)
    first, *rest = subtitle.splitlines()
    assert (name, first) == ("t-SNE of the embeddings", "a$^$b$\\frac$: 8 images")
    assert len(rest) == 2
    figure.draw_without_rendering()
    assert figure.texts[1].get_window_extent().x1 < figure.bbox.x1
    save(figure, tmp_path / "dollar.png")  # as mathematics it would be an error


@pytest.mark.parametrize("name", FIGURES)
def test_save_figure_makes_the_folder_and_a_picture_of_readable_size(tmp_path, name):
    image = save(FIGURES[name](), tmp_path / "new" / "graph" / f"{name}.png")
    assert image.format == "PNG"
    assert 600 <= min(image.size) <= max(image.size) <= 1200
    grey = np.asarray(image.convert("L"))
    assert (grey.min() < 100, grey.max()) == (True, 255)  # neither blank nor transparent black
