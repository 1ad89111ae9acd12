"""Intervals by bootstrap over groups: by hand, against a slow loop, and in simulated sets whose truth is known."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn import metrics as sk
from test_metrics import random_lesions

from melanoma.evaluation import bootstrap
from melanoma.evaluation.bootstrap import (
    auc_interval,
    brief_metrics,
    compare,
    fold_metrics,
    intervals,
    percentiles,
    roc_band,
    too_few,
    weightings,
)
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


def test_a_metric_that_cannot_be_computed_has_no_interval():
    lesions = np.arange(20) % 2, np.linspace(0, 0.9, 20), 1.0  # none is called melanoma
    figures = leaves(evaluate(*lesions))
    found = leaves(intervals(*lesions, np.arange(20), np.random.default_rng(0), 50))
    assert (
        {name for name in found if found[name] is None}
        == {name for name in found if figures[name] is None}
        == {("precision",), ("mcc",), ("at_prevalence", "1.76%", "precision")}
    )


# --- too few groups ---


def of_groups(n: int, melanoma: int, benign: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, scores and groups of n groups of 10 lesions: the first have a melanoma, the last a benign lesion."""
    group, place = np.divmod(np.arange(10 * n), 10)
    labels = ((group < melanoma) & ((place < 3) | (group < n - benign))).astype(int)
    return labels, (2 * np.random.default_rng(0).random(10 * n) + labels) / 3, np.char.add("IP_", group.astype(str))


FEW = [(1, 1, 1), (9, 9, 9), (9, 5, 9), (10, 4, 10), (12, 12, 4)]


@pytest.mark.parametrize("numbers", FEW)
def test_over_too_few_groups_there_is_no_interval_and_no_p(numbers):
    labels, scores, groups = of_groups(*numbers)
    reason = "only {} patients (groups), {} with a melanoma and {} with a benign lesion: an interval needs 10, 5 and 5"
    reason = reason.format(*numbers)
    assert too_few(labels, groups) == reason
    rng = np.random.default_rng(0)
    found = leaves(intervals(labels, scores, 0.5, groups, rng, 50))
    assert set(found.values()) == {None}
    enough = leaves(intervals(*of_groups(10, 5, 10)[:2], 0.5, np.arange(100), rng, 5))
    assert set(found) == set(enough)
    assert auc_interval(labels, scores, groups, rng, 50) is None
    assert roc_band(labels, scores, groups, rng, 50) is None
    compared = compare(labels, scores, -scores, groups, rng, 50)
    a = sk.roc_auc_score(labels, scores)
    assert compared == {
        "auc_a": pytest.approx(a),
        "auc_b": pytest.approx(1 - a),
        "difference": pytest.approx(2 * a - 1),
        "interval": None,
        "p": None,
        "not_computed": reason,
    }
    table = pd.DataFrame({"label": labels, "probability": scores, "threshold": 0.5, "group": groups})
    brief = brief_metrics(table, rng, 50)
    assert (brief["auc"], brief["auc_interval"], brief["note"]) == (pytest.approx(a), None, reason)


@pytest.mark.parametrize("numbers", [(10, 5, 10), (10, 10, 5), (10, 5, 5), (12, 6, 12)])
def test_ten_groups_with_five_of_each_class_have_every_interval(numbers):
    labels, scores, groups = of_groups(*numbers)
    rng = np.random.default_rng(0)
    assert too_few(labels, groups) is None
    low, high = interval_of(labels, scores, groups, rng, 200)
    assert low < sk.roc_auc_score(labels, scores) < high
    assert roc_band(labels, scores, groups, rng, 50) is not None
    compared = compare(labels, scores, -scores, groups, rng, 50)
    assert compared["interval"] is not None and compared["p"] is not None and compared["not_computed"] is None
    table = pd.DataFrame({"label": labels, "probability": scores, "threshold": 0.5, "group": groups})
    assert brief_metrics(table, rng, 50)["note"] == ""


def test_scores_that_are_not_finite_are_refused_everywhere():
    labels, scores, threshold, patients = judged(60)
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
    band = roc_band(labels, scores, patients, np.random.default_rng(1), 40)
    assert band is not None
    grid, low, high = band
    curves = []
    for weights in np.concatenate(list(weightings(patients, np.random.default_rng(1), 40))):
        false_rate, true_rate, _ = sk.roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
        curves.append(np.interp(grid, false_rate, true_rate))
    np.testing.assert_allclose(low, np.quantile(curves, 0.025, axis=0), atol=1e-12)
    np.testing.assert_allclose(high, np.quantile(curves, 0.975, axis=0), atol=1e-12)
    assert grid[0] == 0 and grid[-1] == 1 and (high - low).max() > 0.1


def test_draws_that_lack_a_class_are_no_part_of_the_band():
    labels, groups = np.array([1] * 5 + [0] * 5), np.arange(10)
    draws = np.concatenate(list(weightings(groups, np.random.default_rng(0), 5000)))
    assert (draws @ labels == 0).any()
    band = roc_band(labels, np.arange(10.0), groups, np.random.default_rng(0), 5000)
    assert band is not None
    _, low, high = band
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
    table = pd.DataFrame({"label": labels, "probability": scores, "threshold": threshold, "group": patients})
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
    assert [row["note"] for row in rows] == ["", "", "there is no melanoma among 40 images"]
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


# --- the AUC ---


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
    labels = np.array([0] * 5 + [1] * 5)
    assert auc_interval(labels, labels * 1.0, np.arange(10), np.random.default_rng(0), draws=5000) == [1.0, 1.0]
    assert percentiles(np.array([np.nan, 1.0, np.nan])) == [1.0, 1.0]
    assert percentiles(np.full(3, np.nan)) is None
