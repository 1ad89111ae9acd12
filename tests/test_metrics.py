"""Figures of merit, by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from metrics import auc_interval, calibration_error, count_outcomes, evaluate, sensitivity_at

LABELS = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0])
SCORES = np.array([0.9, 0.5, 0.1, 0.8, 0.6, 0.3, 0.3, 0.2, 0.0, 0.0])


def random_lesions(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores with ties that follow them a little."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    return labels, np.round(rng.normal(size=n) + labels, 1)


# --- evaluate ---


def test_figures_by_hand():
    # at 0.5: melanomas 0.9 and 0.5 found, 0.1 missed; benign 0.8 and 0.6 called melanoma, five left alone
    assert evaluate(LABELS, SCORES, 0.5) == {
        "auc": pytest.approx((7 + 5 + 2) / 21),  # benign below each melanoma, of 3 × 7 pairs
        "average_precision": pytest.approx((1 / 1 + 2 / 4 + 3 / 8) / 3),
        "accuracy": pytest.approx(7 / 10),
        "always_benign_accuracy": pytest.approx(7 / 10),
        "balanced_accuracy": pytest.approx((2 / 3 + 5 / 7) / 2),
        "precision": pytest.approx(2 / 4),
        "sensitivity": pytest.approx(2 / 3),
        "specificity": pytest.approx(5 / 7),
        "f1": pytest.approx(4 / 7),
        # of 7 benign one may be called melanoma at 80 %, 0.8, and none at 90 %: 0.9 is found, 0.5 is not
        "sensitivity_at_specificity": pytest.approx({"80%": 1 / 3, "90%": 1 / 3, "95%": 1 / 3}),
        "brier": pytest.approx((0.1**2 + 0.5**2 + 0.9**2 + 0.8**2 + 0.6**2 + 2 * 0.3**2 + 0.2**2) / 10),
        "ece": pytest.approx((0.9 + 0.2 + 2 * 0.3 + 0.5 + 0.6 + 0.8 + 0.1) / 10),  # a bin to each value
        "threshold": 0.5,
        "counts": {"tp": 2, "fp": 2, "tn": 5, "fn": 1},
        "n": 10,
        "n_melanoma": 3,
    }


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
    assert sensitivity_at(labels, scores, specificity) == pytest.approx(best)


def test_sensitivity_at_a_specificity_by_hand():
    labels = np.array([0] * 10 + [1] * 4)
    scores = np.array([*range(10), 2.5, 7.5, 8.5, 20])
    for benign_called, found in enumerate((1, 2, 3, 3)):
        assert sensitivity_at(labels, scores, 1 - benign_called / 10) == found / 4
    assert sensitivity_at(labels, scores, 0.85) == 2 / 4  # one benign may be called, a second one not


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_sensitivity_at_a_specificity(label):
    assert sensitivity_at(np.full(4, label), np.arange(4.0), 0.9) is None


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
            {"auc", "average_precision", "balanced_accuracy", "sensitivity"},
            {"specificity": 0.5, "precision": 0},
        ),
        (1, {"auc", "balanced_accuracy", "specificity"}, {"sensitivity": 0.5, "precision": 1}),
    ],
)
def test_one_class_alone_leaves_out_only_what_needs_both(label, absent, present):
    figures = evaluate(np.full(4, label), np.array([0.1, 0.2, 0.8, 0.9]), 0.5)
    assert {name for name, value in figures.items() if value is None} == absent
    assert present.items() <= figures.items()
    assert (figures["accuracy"], figures["n"], figures["n_melanoma"]) == (0.5, 4, 4 * label)


@pytest.mark.parametrize("labels", [LABELS, np.zeros(10, int), np.ones(10, int)])
@pytest.mark.parametrize("threshold", [-1.0, np.float32(0.5), 2.0])
def test_figures_are_json(labels, threshold):
    figures = evaluate(labels, SCORES, threshold)
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


# --- interval ---


def test_interval_equals_resampling_patients_by_hand():
    labels, scores = random_lesions(60)
    patients = np.array([f"IP_{i % 17}" for i in range(60)])
    names, rng = np.unique(patients), np.random.default_rng(3)
    aucs = []
    for _ in range(200):
        drawn = names[rng.integers(0, 17, 17)]
        rows = np.concatenate([np.flatnonzero(patients == name) for name in drawn])
        aucs.append(sk.roc_auc_score(labels[rows], scores[rows]))
    interval = auc_interval(labels, scores, patients, np.random.default_rng(3), draws=200, level=0.9)
    assert interval == pytest.approx(tuple(np.quantile(aucs, [0.05, 0.95])))


def test_interval_covers_the_auc_and_narrows_with_the_level():
    labels, scores = random_lesions(200)
    wide, narrow = (
        auc_interval(labels, scores, np.arange(200), np.random.default_rng(0), 500, level)
        for level in (0.95, 0.5)
    )
    assert wide[0] < narrow[0] < sk.roc_auc_score(labels, scores) < narrow[1] < wide[1]


def test_more_images_of_the_same_patients_are_no_more_evidence():
    labels, scores = random_lesions(40)
    once = auc_interval(labels, scores, np.arange(40), np.random.default_rng(0), 500)
    nine_times = [np.repeat(array, 9) for array in (labels, scores, np.arange(40))]
    assert auc_interval(*nine_times, np.random.default_rng(0), 500) == pytest.approx(once)

    as_if_independent = auc_interval(*nine_times[:2], np.arange(360), np.random.default_rng(0), 500)
    assert np.ptp(as_if_independent) < 0.5 * np.ptp(once)


def test_equal_scores_count_half():
    labels = np.arange(50) % 2
    assert auc_interval(labels, np.zeros(50), np.arange(50), np.random.default_rng(0), 50) == (0.5, 0.5)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_interval(label):
    assert auc_interval(np.full(5, label), np.arange(5.0), np.arange(5), np.random.default_rng(0)) is None


def test_draws_that_lack_a_class_are_left_out():
    lesions = np.array([0, 1]), np.array([0.2, 0.7]), np.array(["a", "b"])
    one_draw = {auc_interval(*lesions, np.random.default_rng(seed), draws=1) for seed in range(20)}
    assert one_draw == {None, (1.0, 1.0)}
    assert auc_interval(*lesions, np.random.default_rng(0), draws=50) == (1.0, 1.0)
