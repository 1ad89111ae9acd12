"""Figures say what they show: titles, axes, and the numbers they were given."""

from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

import figures
from metrics import evaluate

LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 0])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.0])
POINTS = np.arange(16.0).reshape(8, 2)

FIGURES = {
    "loss": lambda: figures.loss_curves([1, 2, 3], [0.3, 0.2, 0.1], [0.4, 0.25, 0.3], [0.6, 0.8, 0.7], 2),
    "confusion": lambda: figures.confusion_matrix(
        {"tp": 90, "fp": 1509, "tn": 5000, "fn": 27}, "Confusion of test"
    ),
    "roc": lambda: figures.roc(LABELS, SCORES, 0.7333, (0.2, 2 / 3), "ROC of test"),
    "tsne": lambda: figures.tsne_map(POINTS, LABELS, "Map of test"),
}


@pytest.fixture(autouse=True)
def no_global_state() -> Iterator[None]:
    """No figure is left with pyplot, and matplotlib's settings stay as they were."""
    settings = dict(matplotlib.rcParams)
    yield
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings


def legend_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("name", "title", "x", "y"),
    [
        ("confusion", "Confusion of test", "predicted", "true"),
        ("roc", "ROC of test", "1 - specificity", "sensitivity"),
        ("tsne", "Map of test", "t-SNE 1", "t-SNE 2"),
    ],
)
def test_a_figure_has_its_title_and_axis_labels(name, title, x, y):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (title, x, y)


def test_loss_curves_show_both_losses_the_auc_and_the_best_epoch():
    upper, lower = FIGURES["loss"]().axes
    assert upper.get_title() == "Average loss per epoch"
    assert (upper.get_ylabel(), lower.get_ylabel()) == ("average loss", "validation AUC")
    assert lower.get_xlabel() == "epoch"
    drawn = {line.get_label(): line.get_xydata().tolist() for line in upper.lines}
    assert drawn == {
        "training pairs (augmented)": [[1, 0.3], [2, 0.2], [3, 0.1]],
        "validation pairs": [[1, 0.4], [2, 0.25], [3, 0.3]],
    }
    assert upper.get_ylim()[0] == 0
    auc, best = lower.lines
    assert auc.get_xydata().tolist() == [[1, 0.6], [2, 0.8], [3, 0.7]]
    assert list(best.get_xdata()) == [2, 2]
    assert legend_texts(lower) == ["best: epoch 2"]


def test_a_run_of_one_epoch_has_a_loss_curve(tmp_path):
    figures.save_figure(figures.loss_curves([1], [0.3], [0.4], [0.6], 1), tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()


def test_confusion_matrix_shows_count_and_share_of_each_cell():
    axes = FIGURES["confusion"]().axes[0]
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    columns = [label.get_text() for label in axes.get_xticklabels()]
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert columns == rows == ["benign", "melanoma"]
    assert cells == {  # (predicted, true)
        (0.5, 0.5): "5,000\n76.8%",
        (1.5, 0.5): "1,509\n23.2%",
        (0.5, 1.5): "27\n23.1%",
        (1.5, 1.5): "90\n76.9%",
    }
    assert axes.yaxis_inverted()  # benign on top


def test_confusion_matrix_of_one_class_has_no_share_of_nothing():
    axes = figures.confusion_matrix({"tp": 0, "fp": 1, "tn": 3, "fn": 0}, "benign alone").axes[0]
    assert [text.get_text() for text in axes.texts] == ["3\n75.0%", "1\n25.0%", "0\n0.0%", "0\n0.0%"]


def test_roc_shows_the_curve_its_auc_and_the_operating_point():
    auc, at = roc_auc_score(LABELS, SCORES), evaluate(LABELS, SCORES, 0.5)
    point = (1 - at["specificity"], at["sensitivity"])
    axes = figures.roc(LABELS, SCORES, auc, point, "ROC").axes[0]
    chance, curve, drawn = axes.lines
    assert chance.get_xydata().tolist() == [[0, 0], [1, 1]]
    false_rate, true_rate, _ = roc_curve(LABELS, SCORES, drop_intermediate=False)
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([false_rate, true_rate], axis=1))
    np.testing.assert_allclose(drawn.get_xydata(), [[1 / 5, 2 / 3]])
    assert np.isclose(curve.get_xydata(), drawn.get_xydata()).all(axis=1).any()  # it lies on the curve
    assert legend_texts(axes) == ["chance", "AUC 0.800", "threshold: sensitivity 66.7%, specificity 80.0%"]


def test_tsne_draws_melanomas_last_and_counts_both():
    benign, melanoma = FIGURES["tsne"]().axes[0].collections
    assert benign.get_offsets().tolist() == POINTS[LABELS == 0].tolist()
    assert melanoma.get_offsets().tolist() == POINTS[LABELS == 1].tolist()
    assert melanoma.get_zorder() >= benign.get_zorder()  # equal ones are drawn in their order
    assert same_color(benign.get_facecolor()[0, :3], figures.BENIGN)
    assert same_color(melanoma.get_facecolor()[0, :3], figures.MELANOMA)
    assert legend_texts(FIGURES["tsne"]().axes[0]) == ["benign (5)", "melanoma (3)"]


def test_tsne_of_one_class_is_drawn():
    axes = figures.tsne_map(POINTS, np.zeros(8, int), "benign alone").axes[0]
    assert legend_texts(axes) == ["benign (8)", "melanoma (0)"]


@pytest.mark.parametrize("name", FIGURES)
def test_save_figure_makes_the_folder_and_a_picture_of_readable_size(tmp_path, name):
    path = tmp_path / "new" / "graph" / f"{name}.png"
    figures.save_figure(FIGURES[name](), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 <= min(image.size) <= max(image.size) <= 1200
        low, high = image.convert("L").getextrema()
        assert (low < 100, high) == (True, 255)  # neither blank nor transparent black
