"""Curves of labels and probabilities show the numbers that the metrics have."""

import numpy as np
import pytest
from conftest import points_of, save
from matplotlib.collections import LineCollection
from matplotlib.colors import same_color
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve

from melanoma.evaluation.metrics import calibration_error, evaluate
from melanoma.report import curves
from melanoma.report import style as figures

LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 0])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.02])
WHAT = "test: 8 images, 3 melanoma"

FIGURES = {
    "Precision and recall": lambda y, p: curves.precision_recall(y, p, 0.5, (0.5, 0.5), WHAT),
    "Sensitivity and specificity by threshold": lambda y, p: curves.rates_by_threshold(
        y, p, 0.5, (0.5, 0.5), WHAT
    ),
    "Probabilities by class": lambda y, p: curves.score_histogram(y, p, 0.5, WHAT),
    "Calibration": lambda y, p: curves.calibration(y, p, 0.01, WHAT),
    "Distances of like and unlike pairs": lambda y, p: curves.pair_distances(p, y == 1, 0.5, WHAT),
}
NEED_BOTH = ["Precision and recall", "Sensitivity and specificity by threshold"]
ONE_CLASS_WILL_DO = [name for name in FIGURES if name not in NEED_BOTH]


def legend_texts(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


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
    assert figure.axes[0].get_title() == f"{name}\n{WHAT}"
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


@pytest.mark.parametrize("name", NEED_BOTH)
@pytest.mark.parametrize("label", [0, 1])
def test_what_needs_both_classes_refuses_one(name, label):
    with pytest.raises(ValueError, match=f"needs melanomas and benign lesions, got {8 * label} of 8"):
        FIGURES[name](np.full(8, label), SCORES)


def test_precision_recall_shows_curve_prevalence_and_point():
    at = evaluate(LABELS, SCORES, 0.5)
    axes = curves.precision_recall(
        LABELS, SCORES, at["average_precision"], (at["sensitivity"], at["precision"]), WHAT
    ).axes[0]
    prevalence, curve, point = axes.lines
    assert points_of(prevalence)[:, 1].tolist() == [3 / 8, 3 / 8]
    precision, recall, _ = precision_recall_curve(LABELS, SCORES)
    np.testing.assert_array_equal(curve.get_xydata(), np.stack([recall, precision], axis=1)[:-1])
    # the area under the steps is the average precision
    area = -np.diff(np.append(curve.get_xdata(), 0)) @ curve.get_ydata()
    assert curve.get_drawstyle() == "steps-post"
    assert area == pytest.approx(average_precision_score(LABELS, SCORES))
    np.testing.assert_allclose(points_of(point), [[2 / 3, 2 / 3]])
    assert legend_texts(axes) == [
        "prevalence 37.50%",
        "average precision 0.756",
        "threshold: recall 66.7%, precision 66.7%",
    ]


def test_precision_recall_has_no_point_where_nothing_is_called_melanoma():
    axes = curves.precision_recall(LABELS, SCORES, 0.7, None, WHAT).axes[0]
    assert legend_texts(axes) == ["prevalence 37.50%", "average precision 0.700"]


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
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)


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
    for axes, label, colour in ((melanoma, 1, figures.MELANOMA), (benign, 0, figures.BENIGN)):
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


def test_calibration_shows_shares_counts_and_wilson_intervals():
    labels, probabilities = many(2000, 300, np.random.default_rng(1))
    probabilities = np.clip(probabilities * 8, 0, 1)
    ece = calibration_error(labels, probabilities, np.ones((1, 2000)))[0]
    upper, lower = curves.calibration(labels, probabilities, ece, WHAT).axes
    perfect, observed = upper.lines[:2]
    assert points_of(perfect).tolist() == [[0, 0], [1, 1]]
    counts = np.array([bar.get_height() for bar in bars_of(lower)])
    np.testing.assert_allclose(
        [bar.get_x() + bar.get_width() / 2 for bar in bars_of(lower)], np.arange(10) / 10 + 0.05
    )
    assert counts.sum() == 2000
    assert [text.get_text() for text in lower.texts] == [
        f"{int(count):,}" if count else "" for count in counts
    ]
    gaps = np.abs(np.diff(points_of(observed)))[:, 0]
    assert gaps @ counts[counts > 0] / 2000 == pytest.approx(ece)  # the metrics' bins
    assert legend_texts(upper) == ["perfect", f"observed, ECE {ece:.3f}"]
    own = probabilities < 0.1
    wilson = binomtest(int(labels[own].sum()), int(own.sum())).proportion_ci(method="wilson")
    [bars] = upper.collections
    assert isinstance(bars, LineCollection)
    np.testing.assert_allclose(bars.get_segments()[0][:, 1], [wilson.low, wilson.high])


def test_pair_distances_are_shares_of_their_kind_with_the_margin():
    same = np.array([True, True, True, False, False])
    axes = curves.pair_distances(np.array([0.1, 0.2, 0.3, 0.6, 0.8]), same, 0.5, WHAT).axes[0]
    for patch, values, colour in zip(
        bars_of(axes), ([0.1, 0.2, 0.3], [0.6, 0.8]), (figures.LIKE, figures.UNLIKE), strict=True
    ):
        corners = patch.get_xy()
        assert corners[:, 1].max() == pytest.approx(1 / len(values))
        high = corners[corners[:, 1] > 0][:, 0]
        assert all(np.abs(high - value).min() < 0.02 for value in values)
        assert same_color(patch.get_edgecolor(), colour)
    [margin] = axes.lines
    assert points_of(margin)[:, 0].tolist() == [0.5, 0.5]
    assert legend_texts(axes) == [
        "like pairs (3, median 0.200)",
        "unlike pairs (2, median 0.700)",
        "margin 0.5",
    ]


def test_pairs_without_a_margin_or_of_no_distance_are_drawn(tmp_path):
    figure = curves.pair_distances(np.zeros(3), np.ones(3, bool), None, WHAT)
    assert figure.axes[0].lines[:] == []
    assert legend_texts(figure.axes[0]) == ["like pairs (3, median 0.000)", "unlike pairs (0)"]
    save(figure, tmp_path / "figure.png")
