"""Figures of merit, by hand and against scikit-learn."""

import json
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logit
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression

from melanoma.evaluation import metrics
from melanoma.evaluation.metrics import calibration_slope, count_outcomes, evaluate, rate, roc_counts

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
SCORES = np.array([0.9, 0.5, 0.1, 0.8, 0.6, 0.3, 0.3, 0.2, 0.0, 0.0])


def random_lesions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores with ties that follow them a little."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    return labels, np.round(rng.normal(size=n) + labels, 1)


def once(labels: np.ndarray) -> np.ndarray:
    """The weights (1, N) of a set in which each lesion counts once."""
    return np.ones((1, len(labels)))


def of_curve(figure: Callable[..., np.ndarray], labels: np.ndarray, scores: np.ndarray, *level: float) -> float:
    """A figure of the ROC curve of one set."""
    return figure(*roc_counts(labels, scores, once(labels)), *level)[0]


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = metrics.BINS) -> float:
    return metrics.calibration_error(labels, probabilities, once(labels), bins)[0]


def isic_2024_score(labels: np.ndarray, scores: np.ndarray, least: float = 0.80) -> float:
    """The challenge's own scoring, as its organisers published it: flip, partial AUC, undo McClish's scaling."""
    most = 1 - least
    scaled = sk.roc_auc_score(np.abs(labels - 1), -scores, max_fpr=most)
    return 0.5 * most**2 + (most - 0.5 * most**2) / (1.0 - 0.5) * (scaled - 0.5)


# --- evaluate ---


def test_figures_by_hand():
    # at 0.5: melanomas 0.9 and 0.5 found, 0.1 missed; benign 0.8 and 0.6 called melanoma, five left alone
    figures = evaluate(LABELS, SCORES, 0.5)
    del figures["rates"]  # see below
    assert figures == {
        "auc": pytest.approx((7 + 5 + 2) / 21),  # benign below each melanoma, of 3 × 7 pairs
        "average_precision": pytest.approx((1 / 1 + 2 / 4 + 3 / 8) / 3),
        # above 80 % lies nothing but a piece of the third melanoma's step; two of the benign lesions score below it
        "partial_auc": pytest.approx(0.2 * 2 / 7),
        "accuracy": pytest.approx(7 / 10),
        "always_benign_accuracy": pytest.approx(7 / 10),
        "balanced_accuracy": pytest.approx((2 / 3 + 5 / 7) / 2),
        "precision": pytest.approx(2 / 4),
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(5 / 7),
        "npv": pytest.approx(5 / 6),
        "flag_rate": pytest.approx(4 / 10),
        "f1": pytest.approx(4 / 7),
        "mcc": pytest.approx((2 * 5 - 2 * 1) / (4 * 3 * 7 * 6) ** 0.5),
        # of 10,000 lesions 176 are melanomas, 2/3 of them found; of the others 2/7 are called and 5/7 left alone
        "at_prevalence": {
            "1.76%": pytest.approx(
                {
                    "precision": (176 * 2 / 3) / (176 * 2 / 3 + 9824 * 2 / 7),
                    "npv": (9824 * 5 / 7) / (9824 * 5 / 7 + 176 / 3),
                    "flag_rate": (176 * 2 / 3 + 9824 * 2 / 7) / 10000,
                }
            )
        },
        # of 7 benign one may be called melanoma at 80 %, 0.8, and none at 90 %: 0.9 is found, 0.5 is not
        "sensitivity_at_specificity": pytest.approx({"80%": 1 / 3, "90%": 1 / 3, "95%": 1 / 3}),
        "counts_at_specificity": {level: {"hits": 1, "of": 3} for level in ("80%", "90%", "95%")},
        # all three melanomas are needed: from 0.1 on, where two benign lesions are left alone
        "specificity_at_sensitivity": pytest.approx({"80%": 2 / 7, "90%": 2 / 7, "95%": 2 / 7}),
        "counts_at_sensitivity": {level: {"hits": 2, "of": 7} for level in ("80%", "90%", "95%")},
        "brier": pytest.approx((0.1**2 + 0.5**2 + 0.9**2 + 0.8**2 + 0.6**2 + 2 * 0.3**2 + 0.2**2) / 10),
        "ece": pytest.approx((0.9 + 0.2 + 2 * 0.3 + 0.5 + 0.6 + 0.8 + 0.1) / 10),  # a bin to each value
        "calibration_slope": pytest.approx(0.2179, abs=1e-4),  # scikit-learn's, see below
        "threshold": 0.5,
        "counts": {"tp": 2, "fp": 2, "tn": 5, "fn": 1},
        "n": 10,
        "n_melanoma": 3,
        "not_computed": {},
    }


def test_rates_stand_with_their_counts():
    rates = evaluate(LABELS, SCORES, 0.5)["rates"]
    assert {name: (row["hits"], row["of"]) for name, row in rates.items()} == {
        "sensitivity": (2, 3),
        "specificity": (5, 7),
        "precision": (2, 4),
        "npv": (5, 6),
        "accuracy": (7, 10),
        "flag_rate": (4, 10),
    }
    figures = evaluate(LABELS, SCORES, 0.5)
    for name, row in rates.items():
        assert row == rate(row["hits"], row["of"])
        assert row["value"] == pytest.approx(figures[name])


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_those_of_the_literature(hits, of, low, high):
    assert rate(hits, of) == {
        "value": hits / of,
        "hits": hits,
        "of": of,
        "wilson": pytest.approx([low, high], abs=5e-5),
    }


def test_a_rate_of_nothing_has_no_value():
    assert rate(0, 0) == {"value": None, "hits": 0, "of": 0, "wilson": None}


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_scikit_learns(seed):
    labels, scores = random_lesions(200, seed)
    called = (scores >= 0.4).astype(int)
    figures = evaluate(labels, scores, 0.4)
    (tn, fp), (fn, tp) = sk.confusion_matrix(labels, called)
    assert figures["counts"] == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    expected = {
        "auc": sk.roc_auc_score(labels, scores),
        "average_precision": sk.average_precision_score(labels, scores),
        "accuracy": sk.accuracy_score(labels, called),
        "balanced_accuracy": sk.balanced_accuracy_score(labels, called),
        "precision": sk.precision_score(labels, called),
        "sensitivity": sk.recall_score(labels, called),
        "specificity": sk.recall_score(labels, called, pos_label=0),
        "f1": sk.f1_score(labels, called),
        "always_benign_accuracy": sk.accuracy_score(labels, np.zeros(200)),
        "partial_auc": isic_2024_score(labels, scores),
        "npv": sk.precision_score(labels, called, pos_label=0),
        "mcc": sk.matthews_corrcoef(labels, called),
        "brier": sk.mean_squared_error(labels, scores),
        "flag_rate": called.mean(),
    }
    assert {name: figures[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("specificity", [0.0, 0.5, 0.8, 0.9, 0.95, 1.0])
def test_sensitivity_at_a_specificity_is_the_best_of_all_cuts(seed, specificity):
    labels, scores = random_lesions(80, seed)
    best = 0.0
    for cut in [*np.unique(scores), np.inf]:
        outcome = count_outcomes(labels, scores, cut)
        if outcome["tn"] >= specificity * (labels == 0).sum():
            best = max(best, outcome["tp"] / labels.sum())
    assert of_curve(metrics.sensitivity_at, labels, scores, specificity) == pytest.approx(best)


def test_sensitivity_at_a_specificity_by_hand():
    labels = np.array([0] * 10 + [1] * 4)
    scores = np.array([*range(10), 2.5, 7.5, 8.5, 20])
    for benign_called, found in enumerate((1, 2, 3, 3)):
        assert of_curve(metrics.sensitivity_at, labels, scores, 1 - benign_called / 10) == found / 4
    assert of_curve(metrics.sensitivity_at, labels, scores, 0.85) == 2 / 4  # one benign may be called, a second one not


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sensitivity", [0.0, 0.5, 0.8, 0.9, 0.95, 1.0])
def test_specificity_at_a_sensitivity_is_that_of_the_flipped_problem(seed, sensitivity):
    labels, scores = random_lesions(80, seed)
    flipped = of_curve(metrics.sensitivity_at, 1 - labels, -scores, sensitivity)
    assert of_curve(metrics.specificity_at, labels, scores, sensitivity) == pytest.approx(flipped)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("least", [0.5, 0.8, 0.95])
def test_the_partial_auc_is_that_of_isic_2024(seed, least):
    labels, scores = random_lesions(60, seed)
    assert of_curve(metrics.partial_auc, labels, scores, least) == pytest.approx(isic_2024_score(labels, scores, least))


def test_the_partial_auc_of_known_orders():
    labels = np.arange(1000) % 2
    assert of_curve(metrics.partial_auc, labels, labels.astype(float)) == pytest.approx(0.2)
    assert of_curve(metrics.partial_auc, labels, np.zeros(1000)) == pytest.approx(0.02)  # a triangle
    assert of_curve(metrics.partial_auc, labels, -labels.astype(float)) == 0


def test_calibration_error_by_hand():
    labels = np.array([0, 0, 1, 1, 1, 0])
    probabilities = np.array([0.0, 0.2, 0.2, 1.0, 0.6, 0.95])
    # of two bins the lower has a third of melanomas and a mean of 0.4/3, the upper two thirds and 2.55/3
    expected = (3 * (1 / 3 - 0.4 / 3) + 3 * (2.55 / 3 - 2 / 3)) / 6
    assert calibration_error(labels, probabilities, bins=2) == pytest.approx(expected)
    assert calibration_error(np.array([1, 0, 0, 1]), np.full(4, 0.5)) == 0  # half of them, as it says
    assert calibration_error(np.array([0, 0]), np.array([1.0, 0.0])) == 0.5


@pytest.mark.parametrize("bins", [1, 5, 10, 15])
def test_calibration_error_equals_a_slow_loop(bins):
    rng = np.random.default_rng(bins)
    probabilities = rng.random(300)
    # low ones are too high, high ones too low
    labels = (rng.random(300) < (probabilities > 0.45)).astype(int)
    total = 0.0
    for low in range(bins):
        own = [i for i in range(300) if low <= probabilities[i] * bins < low + 1]
        if own:
            total += len(own) / 300 * abs(labels[own].mean() - probabilities[own].mean())
    assert calibration_error(labels, probabilities, bins) == pytest.approx(total)


def test_each_lesion_may_have_its_own_threshold():
    # the melanomas 0.9 and 0.1 are found, 0.5 is not; of the benign ones 0.2 alone is called
    threshold = np.array([0.9, 0.6, 0.1, 0.81, 0.7, 0.4, 0.4, 0.1, 0.5, 0.5])
    figures = evaluate(LABELS, SCORES, threshold)
    assert figures["counts"] == {"tp": 2, "fp": 1, "tn": 6, "fn": 1}
    assert figures["threshold"] == pytest.approx(threshold.mean())
    assert evaluate(LABELS, SCORES, np.full(10, 0.5)) == evaluate(LABELS, SCORES, 0.5)


def test_a_score_at_the_threshold_is_called_melanoma():
    assert count_outcomes(np.array([1, 0]), np.array([0.5, 0.5]), 0.5) == {"tp": 1, "fp": 1, "tn": 0, "fn": 0}


def test_always_benign_finds_nothing_and_is_as_accurate_as_it_says():
    figures = evaluate(LABELS, SCORES, 2.0)
    assert figures["accuracy"] == figures["always_benign_accuracy"] == 0.7
    assert (figures["sensitivity"], figures["specificity"], figures["balanced_accuracy"]) == (0, 1, 0.5)
    assert (figures["precision"], figures["f1"]) == (None, 0)


@pytest.mark.parametrize(
    ("label", "absent", "present"),
    [
        (
            0,
            {"auc", "average_precision", "partial_auc", "balanced_accuracy", "sensitivity", "mcc", "calibration_slope"},
            {"specificity": 0.5, "precision": 0, "npv": 1, "flag_rate": 0.5},
        ),
        (
            1,
            {"auc", "partial_auc", "balanced_accuracy", "specificity", "mcc", "calibration_slope"},
            {"sensitivity": 0.5, "precision": 1, "npv": 0, "flag_rate": 0.5, "average_precision": 1},
        ),
    ],
)
def test_one_class_alone_leaves_out_only_what_needs_both(label, absent, present):
    figures = evaluate(np.full(4, label), np.array([0.1, 0.2, 0.8, 0.9]), 0.5)
    assert {name for name, value in figures.items() if value is None} == absent
    assert present.items() <= figures.items()
    assert (figures["accuracy"], figures["n"], figures["n_melanoma"]) == (0.5, 4, 4 * label)
    nested = {"sensitivity_at_specificity", "specificity_at_sensitivity", "at_prevalence"}
    for name in nested - {"at_prevalence"}:
        assert figures[name] == {"80%": None, "90%": None, "95%": None}
    assert set(figures["at_prevalence"]["1.76%"].values()) == {None}
    reason = f"there is no {'benign lesion' if label else 'melanoma'} among 4 images"
    assert figures["not_computed"] == dict.fromkeys(absent | nested, reason)


@pytest.mark.parametrize(
    ("threshold", "figure", "reason"),
    [(2.0, "precision", "no lesion is called melanoma"), (-1.0, "npv", "every lesion is called melanoma")],
)
def test_a_decision_that_never_varies_is_named_as_the_reason(threshold, figure, reason):
    figures = evaluate(LABELS, SCORES, threshold)
    assert figures["not_computed"] == dict.fromkeys([figure, "mcc", "at_prevalence"], reason)
    assert figures["at_prevalence"]["1.76%"][figure] is None
    assert figures["at_prevalence"]["1.76%"]["flag_rate"] == (threshold < 0)


@pytest.mark.parametrize(
    ("label", "threshold", "figure", "absent", "decision"),
    [
        (0, 2.0, "precision", "there is no melanoma among 4 images", "no lesion is called melanoma"),
        (1, -1.0, "npv", "there is no benign lesion among 4 images", "every lesion is called melanoma"),
    ],
)
def test_each_figure_has_its_own_reason(label, threshold, figure, absent, decision):
    reasons = evaluate(np.full(4, label), np.array([0.1, 0.2, 0.8, 0.9]), threshold)["not_computed"]
    assert reasons[figure] == decision
    assert {reason for name, reason in reasons.items() if name != figure} == {absent}


@pytest.mark.parametrize("seed", range(3))
def test_the_calibration_slope_is_that_of_scikit_learns_regression(seed):
    labels, scores = random_lesions(200, seed)
    probabilities = 1 / (1 + np.exp(-3 * scores))  # too extreme
    weights = np.stack([np.ones(200), np.random.default_rng(seed).integers(0, 4, 200)]).astype(float)
    found = calibration_slope(labels, probabilities, weights)
    for own, slope in zip(weights, found, strict=True):
        model = LogisticRegression(C=1e12, tol=1e-9).fit(3 * scores[:, None], labels, own)
        assert slope == pytest.approx(model.coef_[0, 0], rel=1e-4)
    model = LogisticRegression(C=1e12, tol=1e-9).fit(logit(np.maximum(SCORES, 1e-9))[:, None], LABELS)
    assert calibration_slope(LABELS, SCORES, once(LABELS))[0] == pytest.approx(model.coef_[0, 0], rel=1e-4)


def test_probabilities_that_are_right_have_a_slope_of_1():
    rng = np.random.default_rng(0)
    probabilities = rng.beta(1, 9, 40_000)
    labels = (rng.random(40_000) < probabilities).astype(int)
    assert calibration_slope(labels, probabilities, once(labels))[0] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]), ([0, 0, 1, 1], [0.1, 0.2, 0.2, 0.9]), ([0, 1, 0, 1], [0.3] * 4)],
    ids=["told apart", "but for a tie", "all alike"],
)
def test_where_nothing_limits_the_slope_there_is_none(labels, scores):
    figures = evaluate(np.array(labels), np.array(scores), 0.25)
    assert figures["calibration_slope"] is None
    reason = "the scores are all equal, or separate the classes"
    assert figures["not_computed"]["calibration_slope"] == reason


@pytest.mark.parametrize("score", [np.nan, -np.inf, np.inf])
def test_scores_that_are_not_finite_are_refused(score):
    with pytest.raises(ValueError, match="not finite"):
        evaluate(LABELS, np.where(np.arange(10) == 2, score, SCORES), 0.5)


@pytest.mark.parametrize("labels", [LABELS, np.zeros(10, int), np.ones(10, int)])
@pytest.mark.parametrize("threshold", [-1.0, np.float32(0.5), 2.0])
def test_figures_are_json(labels, threshold):
    figures = evaluate(labels, SCORES, threshold)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


# --- weights ---


@pytest.mark.parametrize("seed", range(4))
def test_figures_of_weights_are_those_of_a_set_that_holds_each_lesion_as_often(seed):
    labels, scores = random_lesions(50, seed)
    probabilities, threshold = 1 / (1 + np.exp(-scores)), np.linspace(0.3, 0.7, 50)
    weights = np.random.default_rng(seed).integers(0, 4, (6, 50))
    weights[1] *= labels == 0  # one draw without a melanoma
    figures = metrics.weighted_metrics(labels, probabilities, threshold, weights.astype(float))
    for draw, row in enumerate(weights):
        rows = np.repeat(np.arange(50), row)
        slow = evaluate(labels[rows], probabilities[rows], threshold[rows])
        for name, value in figures.items():
            expected = slow
            for word in name:
                expected = expected[word]
            assert value[draw] == pytest.approx(np.nan if expected is None else expected, nan_ok=True), name
