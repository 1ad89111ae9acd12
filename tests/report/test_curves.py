"""Curves and charts show the numbers of the metrics, of the log and of the subgroups."""

from typing import Any

import numpy as np
import pytest
from conftest import points_of, save, titles_of
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from melanoma.evaluation.metrics import evaluate
from melanoma.report import curves, embeddings, style

LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 0])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.02])
WHAT = "test: 8 images, 3 melanoma"
LOG = [
    {"epoch": 1, "train_loss": 0.3, "val_loss": 0.4, "val_auc": 0.6, "like_distance": 0.5, "unlike_distance": 0.6},
    {"epoch": 2, "train_loss": 0.2, "val_loss": 0.25, "val_auc": 0.8, "like_distance": 0.4, "unlike_distance": 0.7},
    {"epoch": 3, "train_loss": 0.1, "val_loss": 0.3, "val_auc": 0.7, "like_distance": 0.3, "unlike_distance": 0.8},
]
BAND = np.array([0, 0.5, 1]), np.array([0, 0.6, 1]), np.array([0.3, 0.9, 1])
ROWS = [
    {"attribute": "sex", "group": "female", "n": 1200, "n_melanoma": 80, "auc": 0.81, "auc_interval": [0.75, 0.86]},
    {"attribute": "sex", "group": "male", "n": 1300, "n_melanoma": 90, "auc": 0.79, "auc_interval": [0.74, 0.84]},
    {
        "attribute": "site",
        "group": "soles $x",
        "n": 40,
        "n_melanoma": 2,
        "auc": None,
        "auc_interval": None,
        "note": "2 melanomas: too few",
    },
    {
        "attribute": "site",
        "group": "oral",
        "n": 3,
        "n_melanoma": 0,
        "auc": None,
        "auc_interval": None,
        "note": "no melanoma",
    },
]

FIGURES = {
    "Precision and recall": lambda y, p: curves.precision_recall(y, p, 0.5, None, (0.5, 0.5), WHAT),
    "Sensitivity and specificity by threshold": lambda y, p: curves.rates_by_threshold(y, p, 0.5, (0.5, 0.5), WHAT),
    "Probabilities by class": lambda y, p: curves.score_histogram(y, p, 0.5, WHAT),
    "Calibration": lambda y, p: curves.calibration(y, p, 0.01, WHAT),
    "Distances of pairs": lambda y, p: embeddings.pair_distances(p, y == 1, 0.5, WHAT),
}
ONE_CLASS_WILL_DO = ["Probabilities by class", "Calibration"]


def legend_texts(owner) -> list[str]:
    """The texts in the legend of axes, or in the one below the axes of a figure."""
    legend = owner.legends[0] if isinstance(owner, Figure) else owner.get_legend()
    return [text.get_text() for text in legend.get_texts()]


def bars_of(axes) -> list:
    return list(axes.patches)


def lines_of(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): points_of(line) for line in axes.lines}


def many(n: int, n_melanoma: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    labels = rng.permutation(np.arange(n) < n_melanoma).astype(int)
    return labels, rng.beta(1, 30, n) * (1 + labels)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows_and_is_of_readable_size(tmp_path, name):
    figure = FIGURES[name](LABELS, SCORES)
    assert titles_of(figure) == [name, WHAT]
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert figure.axes[-1].get_xlabel()
    image = save(figure, tmp_path / "figure.png")
    assert 800 <= min(image.size) <= max(image.size) <= 1200


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("case", ["33,126 images", "equal probabilities", "all 0", "all 1"])
def test_any_set_with_both_classes_is_drawn(name, case):
    labels, probabilities = many(33_126, 584, np.random.default_rng(0))
    if case != "33,126 images":
        labels = labels[:500]
        probabilities = np.full(500, {"equal probabilities": 0.3, "all 0": 0.0, "all 1": 1.0}[case])
    FIGURES[name](labels, probabilities).draw_without_rendering()


@pytest.mark.parametrize("name", ONE_CLASS_WILL_DO)
@pytest.mark.parametrize("labels", [[0], [1], [0, 0, 0]])
def test_a_class_may_be_absent(name, labels):
    labels = np.array(labels)
    FIGURES[name](labels, np.full(len(labels), 0.4)).draw_without_rendering()


def test_precision_recall_shows_curve_prevalence_and_point(monkeypatch):
    at = evaluate(LABELS, SCORES, 0.5)
    point = at["sensitivity"], at["precision"]
    monkeypatch.setattr(curves, "LEAST_CALLED", 1)
    figure = curves.precision_recall(LABELS, SCORES, at["average_precision"], [0.5, 0.9], point, WHAT)
    curve, drawn, prevalence = figure.axes[0].lines
    assert points_of(prevalence)[:, 1].tolist() == [3 / 8, 3 / 8]
    # the area under the steps is the average precision
    recall, precision = points_of(curve).T
    assert curve.get_drawstyle() == "steps-pre"
    assert np.diff(np.append(0, recall)) @ precision == pytest.approx(average_precision_score(LABELS, SCORES))
    np.testing.assert_allclose(points_of(drawn), [[2 / 3, 2 / 3]])
    assert np.isclose(points_of(curve), points_of(drawn)).all(axis=1).any()  # it lies on the curve
    assert legend_texts(figure) == [
        "average precision 0.756 (0.500 to 0.900)",
        "threshold: recall 66.7%, precision 66.7%",
        "prevalence, the precision of chance: 37.5%",
    ]


def test_precision_recall_begins_where_five_images_are_called_melanoma():
    curve = curves.precision_recall(LABELS, SCORES, 0.7, None, None, WHAT).axes[0].lines[0]
    # called are 0.7 (melanoma), 0.65, 0.6 (melanoma), 0.4 and 0.3 (melanoma)
    assert points_of(curve)[0].tolist() == [1, 3 / 5]
    few = curves.precision_recall(LABELS[:4], SCORES[:4], 0.7, None, None, WHAT).axes[0].lines[0]
    assert points_of(few).tolist() == [[1, 1 / 4]]


def test_precision_recall_has_no_point_where_nothing_is_called_melanoma():
    figure = curves.precision_recall(LABELS, SCORES, 0.7, None, None, WHAT)
    assert legend_texts(figure) == [
        "average precision 0.700 (no interval: too few patients)",
        "prevalence, the precision of chance: 37.5%",
    ]


def test_rates_at_every_threshold_are_those_of_the_metrics():
    at = evaluate(LABELS, SCORES, 0.5)
    figure = curves.rates_by_threshold(LABELS, SCORES, 0.5, (at["sensitivity"], at["specificity"]), WHAT)
    lines = lines_of(figure.axes[0])
    sensitivity, specificity = lines["sensitivity (curve)"], lines["specificity (curve)"]
    np.testing.assert_array_equal(sensitivity[1:-1, 0], np.sort(SCORES))
    for (threshold, found), (_, spared) in zip(sensitivity[1:-1], specificity[1:-1], strict=True):
        own = evaluate(LABELS, SCORES, threshold)
        assert (found, spared) == pytest.approx((own["sensitivity"], own["specificity"]))
    assert (sensitivity[0, 1], specificity[0, 1]) == (1, 0)  # below all
    assert (sensitivity[-1, 1], specificity[-1, 1]) == (0, 1)  # above all
    # between two probabilities the rates are those at the upper one
    assert {line.get_drawstyle() for line in figure.axes[0].lines[:2]} == {"steps-pre"}
    assert lines["threshold 0.5"][:, 0].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(lines["sensitivity 66.7%"], [[0.5, 2 / 3]])
    np.testing.assert_allclose(lines["specificity 80.0%"], [[0.5, 0.8]])
    assert legend_texts(figure) == list(lines)
    assert "log-odds scale" in figure.axes[0].get_xlabel()


def test_thresholds_of_folds_are_all_marked_and_the_point_stands_at_their_mean():
    thresholds = np.array([0.3, 0.5] * 4)
    axes = curves.rates_by_threshold(LABELS, SCORES, thresholds, (0.7, 0.8), WHAT).axes[0]
    marks = [line for line in axes.lines if line.get_linestyle() == ":"]
    assert [points_of(line)[0, 0] for line in marks] == [0.3, 0.5]
    assert "thresholds of 2 folds" in lines_of(axes)
    assert lines_of(axes)["sensitivity 70.0%"].tolist() == [[0.4, 0.7]]


def test_score_histogram_counts_every_image_of_its_class():
    melanoma, benign = curves.score_histogram(LABELS, SCORES, 0.5, WHAT).axes
    assert (melanoma.get_ylabel(), benign.get_ylabel()) == ("melanoma images", "benign images")
    for axes, label, colour in ((melanoma, 1, style.MELANOMA), (benign, 0, style.BENIGN)):
        own = SCORES[label == LABELS]
        filled = [bar for bar in bars_of(axes) if bar.get_height()]
        assert sum(bar.get_height() for bar in filled) == len(own)
        for value in own:
            assert any(bar.get_x() <= value <= bar.get_x() + bar.get_width() for bar in filled)
        assert same_color(filled[0].get_facecolor(), colour)
    assert legend_texts(melanoma) == ["melanoma: 2 of 3 called melanoma", "threshold 0.5"]
    assert legend_texts(benign) == ["benign: 1 of 5 called melanoma", "threshold 0.5"]


def test_score_histogram_judges_each_image_by_its_own_threshold():
    thresholds = np.where(np.arange(8) < 5, 0.05, 0.68)
    melanoma, benign = curves.score_histogram(LABELS, SCORES, thresholds, WHAT).axes
    assert legend_texts(melanoma) == ["melanoma: 3 of 3 called melanoma", "thresholds of 2 folds"]
    assert legend_texts(benign)[0] == "benign: 3 of 5 called melanoma"


def test_probabilities_of_0_and_1_are_counted_at_the_edge():
    melanoma, benign = curves.score_histogram(np.array([0, 0, 1]), np.array([0.0, 0.5, 1.0]), 0.5, WHAT).axes
    assert sum(bar.get_height() for bar in bars_of(melanoma)) == 1
    assert sum(bar.get_height() for bar in bars_of(benign)) == 2


def test_calibration_shows_the_shares_of_equally_large_groups_with_wilson_intervals():
    labels, probabilities = many(2005, 300, np.random.default_rng(1))
    figure = curves.calibration(labels, probabilities, 0.0123, WHAT)
    axes = figure.axes[0]
    perfect, observed = axes.lines[:2]
    assert points_of(perfect).tolist() == [[0, 0], [1, 1]]
    assert observed.get_linestyle() == "None"  # groups are not joined
    order = np.argsort(probabilities)
    sizes = [201] * 5 + [200] * 5
    groups = np.split(order, np.cumsum(sizes)[:-1])
    expected = [[probabilities[own].mean(), labels[own].mean()] for own in groups]
    np.testing.assert_allclose(points_of(observed), expected)
    assert legend_texts(figure)[1] == "10 groups of 200 images, with Wilson's 95 % interval (ECE 0.012)"
    [bars] = axes.collections
    assert isinstance(bars, LineCollection)
    for own, bar in zip(groups, bars.get_segments(), strict=True):
        wilson = binomtest(int(labels[own].sum()), len(own)).proportion_ci(method="wilson")
        np.testing.assert_allclose(bar[:, 1], [wilson.low, wilson.high], atol=1e-12)
        assert wilson.high <= axes.get_ylim()[1]
    assert axes.get_xlim() == axes.get_ylim()


@pytest.mark.parametrize(("n", "groups"), [(1, 1), (9, 1), (25, 2), (5000, 10)])
def test_small_sets_have_fewer_calibration_groups(n, groups):
    observed = curves.calibration(np.arange(n) % 2, np.linspace(0.1, 0.6, n), 0.1, WHAT).axes[0].lines[1]
    assert len(points_of(observed)) == groups


# --- training ---


def test_learning_curves_show_losses_auc_distances_and_the_best_epoch():
    figure = curves.learning_curves(LOG, 2, WHAT)
    upper, middle, lower = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["average loss", "ROC AUC", "mean distance"]
    assert lower.get_xlabel() == "epoch"
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
                "same-class training pairs": [[1, 0.5], [2, 0.4], [3, 0.3]],
                "different-class training pairs": [[1, 0.6], [2, 0.7], [3, 0.8]],
            },
        ),
    ):
        *own, best = axes.lines
        assert {line.get_label(): points_of(line).tolist() for line in own} == expected
        assert points_of(best)[:, 0].tolist() == [2, 2]
        values = np.concatenate([points_of(line)[:, 1] for line in own])
        low, high = axes.get_ylim()
        assert (high - low) < 1.2 * np.ptp(values)  # the axis fits the data
        assert not any(line.get_clip_on() for line in own)  # no marker is cut
    auc, best = middle.lines
    assert points_of(auc).tolist() == [[1, 0.6], [2, 0.8], [3, 0.7]]
    assert legend_texts(middle) == ["validation images", "best epoch: 2"]


def test_a_run_of_one_epoch_has_learning_curves(tmp_path):
    save(curves.learning_curves(LOG[:1], 1, WHAT), tmp_path / "one.png")


# --- confusion matrix and ROC curve ---


def test_confusion_matrix_shows_count_and_share_of_each_cell():
    axes = curves.confusion_matrix({"tp": 90, "fp": 1509, "tn": 5000, "fn": 27}, WHAT).axes[0]
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
    axes = curves.confusion_matrix({"tp": 0, "fp": 1, "tn": 3, "fn": 0}, "benign alone").axes[0]
    assert [text.get_text() for text in axes.texts] == ["3\n75.0%", "1\n25.0%", "0\n0.0%", "0\n0.0%"]


def test_roc_shows_the_curve_its_auc_and_the_operating_point():
    auc, at = roc_auc_score(LABELS, SCORES), evaluate(LABELS, SCORES, 0.5)
    point = (1 - at["specificity"], at["sensitivity"])
    figure = curves.roc(LABELS, SCORES, auc, [0.5, 0.95], point, WHAT, BAND)
    curve, drawn, chance = figure.axes[0].lines
    assert points_of(chance).tolist() == [[0, 0], [1, 1]]
    false_rate, true_rate, _ = roc_curve(LABELS, SCORES, drop_intermediate=False)
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([false_rate, true_rate], axis=1))
    np.testing.assert_allclose(points_of(drawn), [[1 / 5, 2 / 3]])
    assert np.isclose(points_of(curve), points_of(drawn)).all(axis=1).any()  # it lies on the curve
    assert legend_texts(figure) == [
        "AUC 0.800 (0.500 to 0.950)",
        "95 % of bootstrap samples",
        "threshold: sensitivity 66.7%, specificity 80.0%",
        "chance",
    ]
    [band] = figure.axes[0].collections
    corners = {tuple(corner) for corner in np.asarray(band.get_paths()[0].vertices).tolist()}
    assert corners >= {(0, 0), (0.5, 0.6), (1, 1), (0.5, 0.9), (0, 0.3)}


def test_roc_over_too_few_groups_has_no_band_and_says_so():
    figure = curves.roc(LABELS, SCORES, 0.8, None, (0.2, 0.6), WHAT, None)
    assert len(figure.axes[0].collections) == 0
    assert legend_texts(figure)[0] == "AUC 0.800 (no interval: too few patients)"


@pytest.mark.parametrize("name", ["ROC curve", "Precision and recall", "Calibration", "Distances of pairs"])
def test_the_legend_hides_nothing(name):
    drawings = FIGURES | {"ROC curve": lambda y, p: curves.roc(y, p, 0.8, [0.6, 0.9], (0.2, 0.6), WHAT, BAND)}
    figure = drawings[name](LABELS, SCORES)
    figure.draw_without_rendering()
    [legend] = figure.legends
    drawn: Any = figure.axes[0].get_tightbbox()
    assert not legend.get_window_extent().overlaps(drawn)
    assert figure.bbox.fully_contains(*legend.get_window_extent().min)


# --- forest ---


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_forest_shows_each_group_with_its_interval_and_counts():
    figure = curves.forest(ROWS, 0.8, WHAT)
    axes, table = figure.axes
    assert titles_of(figure) == ["ROC AUC of subgroups", WHAT]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "sex",
        "female",
        "male",
        "site",
        "soles $x",
        "oral",
    ]
    chance, overall, female, interval, male, _ = axes.lines
    assert (points_of(chance)[0, 0], points_of(overall)[0, 0]) == (0.5, 0.8)
    assert points_of(female).tolist() == [[0.81, 1]]
    assert points_of(interval).tolist() == [[0.75, 1], [0.86, 1]]
    assert points_of(male).tolist() == [[0.79, 2]]
    assert texts_of(table)[2:] == [
        "1,200 / 80",
        "0.81 (0.75 to 0.86)",
        "1,300 / 90",
        "0.79 (0.74 to 0.84)",
        "40 / 2",
        "2 melanomas: too few",
        "3 / 0",
        "no melanoma",
    ]
    assert legend_texts(figure) == ["chance", "all images: 0.800"]


def test_groups_too_small_are_named_in_grey_with_the_reason_and_empty_ones_left_out():
    rows: list[Any] = [
        *ROWS,
        {"attribute": "age", "group": "under 30", "n": 0, "n_melanoma": 0, "auc": None, "auc_interval": None},
    ]
    axes, table = curves.forest(rows, 0.8, WHAT).axes
    assert texts_of(axes) == []  # the lines cross no text
    labels = axes.get_yticklabels()
    assert [label.get_text() for label in labels][-1] == "oral"
    assert [label.get_color() for label in labels] == ["black"] * 4 + [style.GREY] * 2
    grey = [text.get_text() for text in table.texts if text.get_color() == style.GREY]
    assert grey == ["40 / 2", "2 melanomas: too few", "3 / 0", "no melanoma"]


def test_the_texts_of_a_forest_are_within_the_figure_and_do_not_overlap():
    counts = {"n": 26_033, "n_melanoma": 4_610, "auc_interval": None}
    rows = [{**ROWS[0], **counts}, {**ROWS[1], **counts, "auc": None, "note": "fewer than 5 benign lesions"}]
    figure = curves.forest(rows, 0.8, WHAT)
    figure.draw_without_rendering()
    axes, table = figure.axes
    for images, shown in zip(table.texts[::2], table.texts[1::2], strict=True):
        assert axes.bbox.x1 < images.get_window_extent().x0
        assert images.get_window_extent().x1 < shown.get_window_extent().x0
        assert shown.get_window_extent().x1 < figure.bbox.x1


def test_a_long_name_of_one_word_is_shortened_in_its_middle():
    row = {**ROWS[0], "attribute": "source", "group": "ISIC_2020_Training_GroundTruth"}
    labels = [label.get_text() for label in curves.forest([row], None, WHAT).axes[0].get_yticklabels()]
    assert labels[0] == "source"
    assert labels[1].startswith("ISIC_2020") and labels[1].endswith("GroundTruth") and len(labels[1]) <= 26


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[2:], ROWS * 8])
def test_forest_of_any_length_is_drawn(tmp_path, rows):
    image = save(curves.forest(rows, None, WHAT), tmp_path / "forest.png")
    assert image.width == 960
    assert image.height == pytest.approx(150 * (2.1 + 0.26 * (len(rows) + len(rows) // 2 + len(rows) % 2)), abs=1)


def test_a_group_without_an_interval_has_its_auc_in_grey_and_no_bar():
    axes, table = curves.forest([{**ROWS[0], "auc": 0.3, "auc_interval": None}, ROWS[1]], None, WHAT).axes
    few, male, interval = axes.lines[1:]
    assert [points_of(few).tolist(), points_of(male).tolist()] == [[[0.3, 1]], [[0.79, 2]]]
    assert points_of(interval).tolist() == [[0.74, 2], [0.84, 2]]
    assert texts_of(table)[2:4] == ["1,200 / 80", "0.30 (too few patients)"]
    assert (few.get_color(), male.get_color()) == (style.GREY, style.BENIGN)
    assert axes.get_xlim()[0] < 0.3


def test_an_interval_below_chance_is_within_the_axes():
    row = {**ROWS[0], "auc": 0.4, "auc_interval": [0.2, 0.6]}
    assert curves.forest([row], None, WHAT).axes[0].get_xlim()[0] < 0.2
