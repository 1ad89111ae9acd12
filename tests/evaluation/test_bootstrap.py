"""Intervals by bootstrap over patients: by hand, against a slow loop, and in simulated sets whose truth is known."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics as sk
from test_metrics import random_lesions

from melanoma.evaluation import bootstrap
from melanoma.evaluation.bootstrap import auc_interval, compare, fold_metrics, intervals, roc_band, weightings
from melanoma.evaluation.metrics import evaluate

# --- all figures ---


def interval_of(*arguments: Any) -> list[float]:
    interval = auc_interval(*arguments)
    assert interval is not None
    return interval


def leaves(figures: dict, *words: str) -> dict:
    """The numbers of nested figures by their full names."""
    found: dict[tuple[str, ...], Any] = {}
    for word, value in figures.items():
        found |= leaves(value, *words, word) if isinstance(value, dict) else {(*words, word): value}
    return found


def judged(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities with ties, a threshold for each lesion, and patients of one to many lesions."""
    labels, scores = random_lesions(n, seed)
    rng = np.random.default_rng(seed)
    patients = np.array([f"IP_{i}" for i in np.minimum(rng.geometric(0.06, n), n // 3)])
    return labels, 1 / (1 + np.exp(-scores)), np.where(np.arange(n) % 2, 0.5, 0.6), patients


@pytest.mark.parametrize("block", [1, 70 * 16, 2**17])
def test_intervals_equal_a_slow_loop_over_resampled_sets(monkeypatch, block):
    labels, scores, threshold, patients = judged(70)
    names, rng = np.unique(patients), np.random.default_rng(3)
    draws = []
    for _ in range(50):
        drawn = names[rng.integers(0, len(names), len(names))]
        rows = np.concatenate([np.flatnonzero(patients == name) for name in drawn])
        draws.append(leaves(evaluate(labels[rows], scores[rows], threshold[rows])))
    monkeypatch.setattr(bootstrap, "BLOCK", block)
    found = leaves(intervals(labels, scores, threshold, patients, np.random.default_rng(3), 50))
    for name, interval in found.items():
        values = [draw[name] for draw in draws if draw[name] is not None]
        assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist()), name


def test_every_figure_has_an_interval_that_holds_it():
    labels, scores, threshold, patients = judged(400)
    figures = leaves(evaluate(labels, scores, threshold))
    found = leaves(intervals(labels, scores, threshold, patients, np.random.default_rng(0), 300))
    beside = ("rates", "counts", "counts_at_specificity", "counts_at_sensitivity", "not_computed")
    expected = {name for name in figures if name[0] not in (*beside, "threshold", "n", "n_melanoma")}
    assert set(found) == expected
    for name, (low, high) in found.items():
        assert low <= figures[name] <= high or name == ("ece",), name


def test_intervals_are_json_and_their_auc_is_the_one_that_auc_interval_finds():
    labels, scores, threshold, patients = judged(100)
    found = intervals(labels, scores, threshold, patients, np.random.default_rng(0), 100)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["auc"] == auc_interval(labels, scores, patients, np.random.default_rng(0), 100)
    again = intervals(labels, scores, threshold, patients, np.random.default_rng(0), 100)
    other = intervals(labels, scores, threshold, patients, np.random.default_rng(1), 100)
    assert again == found != other


@pytest.mark.parametrize("label", [0, 1])
def test_what_one_class_alone_cannot_tell_has_no_interval(label):
    lesions = np.full(20, label), np.linspace(0, 1, 20), 0.5
    figures = leaves(evaluate(*lesions))
    found = leaves(intervals(*lesions, np.arange(20), np.random.default_rng(0), 50))
    assert (
        {name for name in found if found[name] is None}
        == {name for name in found if figures[name] is None}
        > {("auc",)}
    )


def test_scores_that_are_not_finite_are_refused_everywhere():
    labels, scores, threshold, patients = judged(20)
    scores[4] = np.nan
    rng = np.random.default_rng(0)
    for call in (
        lambda: intervals(labels, scores, threshold, patients, rng, 5),
        lambda: auc_interval(labels, scores, patients, rng, 5),
        lambda: roc_band(labels, scores, patients, rng, 5),
        lambda: compare(labels, scores, labels * 1.0, patients, rng, 5),
        lambda: compare(labels, labels * 1.0, scores, patients, rng, 5),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()


def test_the_band_holds_the_roc_curves_of_the_draws():
    labels, scores, _, patients = judged(60)
    grid, low, high = roc_band(labels, scores, patients, np.random.default_rng(1), 40)
    curves = []
    for weights in np.concatenate(list(weightings(patients, np.random.default_rng(1), 40))):
        false_rate, true_rate, _ = sk.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
        curves.append(np.interp(grid, false_rate, true_rate))
    np.testing.assert_allclose(low, np.quantile(curves, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(high, np.quantile(curves, 0.975, axis=0), atol=1e-12)
    assert grid[0] == 0 and grid[-1] == 1 and (high - low).max() > 0.1


def test_draws_that_lack_a_class_are_no_part_of_the_band():
    labels = np.array([1, 0, 0, 0, 0])  # a third of the draws has no melanoma
    _, low, high = roc_band(labels, np.arange(5.0), np.arange(5), np.random.default_rng(0), 200)
    assert np.isfinite(low).all() and np.isfinite(high).all() and low[-1] == high[-1] == 1


# --- coverage ---

PATIENTS, SPREAD, SHIFT = 300, 1.5, 1.2
TRUE_AUC = norm.cdf(SHIFT / np.sqrt(2 * (SPREAD**2 + 1)))  # of two patients' scores, a normal difference


def simulated_set(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and patients of 300 patients with 1 to 4 lesions each; a third of the patients have melanomas.

    The score of a lesion is its class's mean, plus what its patient has in common, plus its own noise.
    """
    patients = np.repeat(np.arange(PATIENTS), rng.integers(1, 5, PATIENTS))
    ill = rng.random(PATIENTS) < 1 / 3
    own = SPREAD * rng.normal(size=PATIENTS)
    labels = ill[patients].astype(int)
    return labels, SHIFT * labels + own[patients] + rng.normal(size=len(patients)), patients


@pytest.mark.slow
def test_a_95_percent_interval_covers_the_true_auc_in_95_percent_of_sets():
    rng = np.random.default_rng(0)
    covered, covered_by_image = [], []
    for i in range(500):
        labels, scores, patients = simulated_set(rng)
        low, high = interval_of(labels, scores, patients, rng, 400)
        covered.append(low <= TRUE_AUC <= high)
        if i < 100:  # lesions of one patient taken for independent
            low, high = interval_of(labels, scores, np.arange(len(labels)), rng, 400)
            covered_by_image.append(low <= TRUE_AUC <= high)
    assert 0.92 <= np.mean(covered) <= 0.98
    assert np.mean(covered_by_image) < 0.87


# --- two runs ---


def test_a_difference_equals_a_slow_loop():
    labels, a = random_lesions(60)
    b = np.round(a + np.random.default_rng(1).normal(size=60), 1)
    patients = np.array([f"IP_{i % 17}" for i in range(60)])
    names, rng = np.unique(patients), np.random.default_rng(3)
    differences = []
    for _ in range(200):
        drawn = names[rng.integers(0, 17, 17)]
        rows = np.concatenate([np.flatnonzero(patients == name) for name in drawn])
        differences.append(sk.roc_auc_score(labels[rows], a[rows]) - sk.roc_auc_score(labels[rows], b[rows]))
    found = compare(labels, a, b, patients, np.random.default_rng(3), draws=200)
    fewer = min(np.sum(np.array(differences) <= 0), np.sum(np.array(differences) >= 0))
    assert found == {
        "auc_a": pytest.approx(sk.roc_auc_score(labels, a)),
        "auc_b": pytest.approx(sk.roc_auc_score(labels, b)),
        "difference": pytest.approx(sk.roc_auc_score(labels, a) - sk.roc_auc_score(labels, b)),
        "interval": pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist()),
        "p": pytest.approx(2 * (fewer + 1) / 201),
        "not_computed": None,
    }


def test_a_difference_turns_with_its_runs_and_is_surer_than_two_intervals():
    labels, a = random_lesions(300)
    b = a + 0.5 * np.random.default_rng(1).normal(size=300)
    patients, rng = np.arange(300), np.random.default_rng
    there, back = compare(labels, a, b, patients, rng(0), 400), compare(labels, b, a, patients, rng(0), 400)
    assert there["difference"] == -back["difference"]
    assert there["interval"] == pytest.approx([-back["interval"][1], -back["interval"][0]])
    assert there["p"] == back["p"]
    assert np.ptp(there["interval"]) < np.ptp(interval_of(labels, a, patients, rng(0), 400))


def test_runs_of_one_order_do_not_differ():
    labels, scores = random_lesions(80)
    found = compare(labels, scores, 3 * scores - 7, np.arange(80), np.random.default_rng(0), 100)
    assert (found["difference"], found["interval"], found["p"]) == (0, [0, 0], 1)


@pytest.mark.slow
def test_a_p_value_keeps_its_promise_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    ps, excluded = [], []
    for _ in range(300):
        labels, scores, patients = simulated_set(rng)
        a, b = (scores + rng.normal(size=len(scores)) for _ in range(2))
        found = compare(labels, a, b, patients, rng, 199)
        ps.append(found["p"])
        excluded.append(not found["interval"][0] <= 0 <= found["interval"][1])
    assert 0.02 <= np.mean(np.array(ps) <= 0.05) <= 0.08
    assert 0.4 <= np.mean(np.array(ps) <= 0.5) <= 0.6
    assert np.mean((np.array(ps) <= 0.05) == excluded) > 0.98


def test_runs_on_one_class_cannot_be_compared():
    found = compare(np.zeros(5), np.arange(5.0), np.arange(5.0), np.arange(5), np.random.default_rng(0))
    assert found == {
        **dict.fromkeys(("auc_a", "auc_b", "difference", "interval", "p")),
        "not_computed": "there is no melanoma among 5 images",
    }


# --- folds ---


def test_each_fold_is_measured_by_itself():
    labels, scores, threshold, patients = judged(120)
    table = pd.DataFrame({"label": labels, "probability": scores, "threshold": threshold, "patient_id": patients})
    table["fold"] = np.arange(120) % 3 + 1
    table.loc[table["fold"] == 3, "label"] = 0
    rows = fold_metrics(table.sample(frac=1, random_state=0), np.random.default_rng(0), 50)
    assert [row["fold"] for row in rows] == [1, 2, 3]
    for row in rows:
        own = table[table["fold"] == row["fold"]]
        figures = evaluate(*(own[name].to_numpy() for name in ("label", "probability", "threshold")))
        assert (row["n"], row["n_melanoma"]) == (40, own["label"].sum())
        assert row["auc"] == figures["auc"]
        assert row["sensitivity"] == figures["rates"]["sensitivity"]
        assert row["specificity"] == figures["rates"]["specificity"]
    assert rows[0]["auc_interval"][0] < rows[0]["auc"] < rows[0]["auc_interval"][1]
    assert rows[2]["auc"] is rows[2]["auc_interval"] is rows[2]["sensitivity"]["value"] is None
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


# --- the AUC ---


def test_interval_equals_resampling_patients_by_hand():
    labels, scores = random_lesions(60)
    patients = np.array([f"IP_{i % 17}" for i in range(60)])
    names, rng = np.unique(patients), np.random.default_rng(3)
    aucs = []
    for _ in range(200):
        drawn = names[rng.integers(0, 17, 17)]
        rows = np.concatenate([np.flatnonzero(patients == name) for name in drawn])
        aucs.append(sk.roc_auc_score(labels[rows], scores[rows]))
    interval = auc_interval(labels, scores, patients, np.random.default_rng(3), draws=200)
    assert interval == pytest.approx(np.quantile(aucs, [0.025, 0.975]).tolist())


def test_interval_covers_the_auc():
    labels, scores = random_lesions(200)
    low, high = interval_of(labels, scores, np.arange(200), np.random.default_rng(0), 500)
    assert low < sk.roc_auc_score(labels, scores) < high


def test_more_images_of_the_same_patients_are_no_more_evidence():
    labels, scores = random_lesions(40)
    once = interval_of(labels, scores, np.arange(40), np.random.default_rng(0), 500)
    labels, scores, patients = (np.repeat(array, 9) for array in (labels, scores, np.arange(40)))
    assert auc_interval(labels, scores, patients, np.random.default_rng(0), 500) == pytest.approx(once)

    as_if_independent = interval_of(labels, scores, np.arange(360), np.random.default_rng(0), 500)
    assert np.ptp(as_if_independent) < 0.5 * np.ptp(once)


def test_equal_scores_count_half():
    labels = np.arange(50) % 2
    assert auc_interval(labels, np.zeros(50), np.arange(50), np.random.default_rng(0), 50) == [0.5, 0.5]


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_interval(label):
    assert auc_interval(np.full(5, label), np.arange(5.0), np.arange(5), np.random.default_rng(0)) is None


def test_draws_that_lack_a_class_are_left_out():
    lesions = np.array([0, 1]), np.array([0.2, 0.7]), np.array(["a", "b"])
    one_draw = [auc_interval(*lesions, np.random.default_rng(seed), draws=1) for seed in range(20)]
    assert None in one_draw and [1.0, 1.0] in one_draw
    assert all(interval in (None, [1.0, 1.0]) for interval in one_draw)
    assert auc_interval(*lesions, np.random.default_rng(0), draws=50) == [1.0, 1.0]
