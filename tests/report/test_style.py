"""The outline's figures say what they show: titles, axes, and the numbers they were given."""

import matplotlib
import numpy as np
import pytest
from conftest import points_of
from matplotlib import pyplot as plt
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from PIL import Image
from sklearn.metrics import roc_auc_score, roc_curve

from melanoma.evaluation.metrics import evaluate
from melanoma.report import style as figures

LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 0])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.0])
POINTS = np.arange(16.0).reshape(8, 2)
WHAT = "test: 8 images, 3 melanoma"
BAND = np.array([0, 0.5, 1]), np.array([0, 0.6, 1]), np.array([0.3, 0.9, 1])
LOG = [
    {
        "epoch": 1,
        "train_loss": 0.3,
        "val_loss": 0.4,
        "val_auc": 0.6,
        "like_distance": 0.5,
        "unlike_distance": 0.6,
    },
    {
        "epoch": 2,
        "train_loss": 0.2,
        "val_loss": 0.25,
        "val_auc": 0.8,
        "like_distance": 0.4,
        "unlike_distance": 0.7,
    },
    {
        "epoch": 3,
        "train_loss": 0.1,
        "val_loss": 0.3,
        "val_auc": 0.7,
        "like_distance": 0.3,
        "unlike_distance": 0.8,
    },
]

FIGURES = {
    "learning": lambda: figures.learning_curves(LOG, 2, WHAT),
    "confusion": lambda: figures.confusion_matrix({"tp": 90, "fp": 1509, "tn": 5000, "fn": 27}, WHAT),
    "roc": lambda: figures.roc(LABELS, SCORES, 0.7333, (0.2, 2 / 3), WHAT, BAND),
    "tsne": lambda: figures.tsne_map(POINTS, LABELS, WHAT),
}


def legend_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


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
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (f"{title}\n{WHAT}", x, y)


def test_a_long_title_is_wrapped_and_a_dollar_is_a_dollar(tmp_path):
    figure = figures.tsne_map(POINTS, LABELS, "a$^$b$\\frac$: 8 images\n" + "word " * 30)
    name, first, *rest = figure.axes[0].get_title().splitlines()
    assert (name, first) == ("t-SNE of the embeddings", "a$^$b$\\frac$: 8 images")
    assert len(rest) == 3
    assert max(map(len, rest)) <= 62
    figures.save_figure(figure, tmp_path / "dollar.png")  # as mathematics it would be an error


def test_learning_curves_show_losses_auc_distances_and_the_best_epoch():
    figure = FIGURES["learning"]()
    upper, middle, lower = figure.axes
    assert (middle.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == (
        "validation AUC",
        "mean distance",
        "epoch",
    )
    for axes, expected in (
        (
            upper,
            {
                "training pairs (augmented)": [[1, 0.3], [2, 0.2], [3, 0.1]],
                "validation pairs": [[1, 0.4], [2, 0.25], [3, 0.3]],
            },
        ),
        (
            lower,
            {
                "like training pairs": [[1, 0.5], [2, 0.4], [3, 0.3]],
                "unlike training pairs": [[1, 0.6], [2, 0.7], [3, 0.8]],
            },
        ),
    ):
        assert {line.get_label(): points_of(line).tolist() for line in axes.lines} == expected
        assert axes.get_ylim()[0] == 0
    auc, best = middle.lines
    assert points_of(auc).tolist() == [[1, 0.6], [2, 0.8], [3, 0.7]]
    assert points_of(best)[:, 0].tolist() == [2, 2]
    assert legend_texts(middle) == ["best: epoch 2"]


def test_a_log_without_distances_has_learning_curves():
    log = [{key: entry[key] for key in ("epoch", "train_loss", "val_loss", "val_auc")} for entry in LOG]
    axes = figures.learning_curves(log, 2, WHAT).axes
    assert [one.get_ylabel() for one in axes] == ["average loss", "validation AUC"]
    assert axes[-1].get_xlabel() == "epoch"


def test_a_run_of_one_epoch_has_learning_curves(tmp_path):
    figures.save_figure(figures.learning_curves(LOG[:1], 1, WHAT), tmp_path / "one.png")
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
    axes = figures.roc(LABELS, SCORES, auc, point, WHAT, BAND).axes[0]
    chance, curve, drawn = axes.lines
    assert points_of(chance).tolist() == [[0, 0], [1, 1]]
    false_rate, true_rate, _ = roc_curve(LABELS, SCORES, drop_intermediate=False)
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([false_rate, true_rate], axis=1))
    np.testing.assert_allclose(points_of(drawn), [[1 / 5, 2 / 3]])
    assert np.isclose(points_of(curve), points_of(drawn)).all(axis=1).any()  # it lies on the curve
    assert legend_texts(axes) == [
        "chance",
        "95 % of bootstrap samples",
        "AUC 0.800",
        "threshold: sensitivity 66.7%, specificity 80.0%",
    ]
    [band] = axes.collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert corners >= {(0, 0), (0.5, 0.6), (1, 1), (0.5, 0.9), (0, 0.3)}


@pytest.mark.parametrize("label", [0, 1])
def test_roc_of_one_class_is_refused(label):
    with pytest.raises(ValueError, match=rf"a ROC curve needs .*, got {8 * label} of 8 images"):
        figures.roc(np.full(8, label), SCORES, 0.8, (0.2, 0.6), WHAT, BAND)


def test_tsne_draws_melanomas_last_and_counts_both():
    benign, melanoma = FIGURES["tsne"]().axes[0].collections
    assert points_of(benign).tolist() == POINTS[LABELS == 0].tolist()
    assert points_of(melanoma).tolist() == POINTS[LABELS == 1].tolist()
    assert melanoma.get_zorder() >= benign.get_zorder()  # equal ones are drawn in their order
    assert same_color(np.asarray(benign.get_facecolor()).tolist()[0][:3], figures.BENIGN)
    assert same_color(np.asarray(melanoma.get_facecolor()).tolist()[0][:3], figures.MELANOMA)
    assert legend_texts(FIGURES["tsne"]().axes[0]) == ["benign (5)", "melanoma (3)"]


def test_the_legend_hides_no_point_of_a_tsne_map():
    figure = FIGURES["tsne"]()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    [legend] = (child.get_window_extent() for child in axes.get_children() if isinstance(child, Legend))
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    assert figure.bbox.contains(*legend.min) and figure.bbox.contains(*legend.max)


def test_tsne_of_one_class_is_drawn():
    axes = figures.tsne_map(POINTS, np.zeros(8, int), "benign alone").axes[0]
    assert legend_texts(axes) == ["benign (8)", "melanoma (0)"]


@pytest.mark.parametrize("name", FIGURES)
def test_save_figure_makes_the_folder_and_a_picture_of_readable_size(tmp_path, name):
    path = tmp_path / "new" / "graph" / f"{name}.png"
    settings = dict(matplotlib.rcParams)
    figures.save_figure(FIGURES[name](), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert 600 <= min(image.size) <= max(image.size) <= 1200
        low, high = image.convert("L").getextrema()
        assert (low < 100, high) == (True, 255)  # neither blank nor transparent black
    assert plt.get_fignums() == []  # no figure is left with pyplot
    assert dict(matplotlib.rcParams) == settings
