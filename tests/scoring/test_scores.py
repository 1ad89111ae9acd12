"""Scores from distances to references, and thresholds from scores; each against brute force."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, logit
from sklearn.metrics import roc_auc_score

from melanoma.scoring import scores as module
from melanoma.scoring.scores import (
    SCORERS,
    Judge,
    Platt,
    choose_threshold,
    familiarity,
    mean_distances,
    nearest_references,
    score_all,
    usual_scorer,
)


def random_embeddings(n: int, seed: int, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def score_of(scorer: str, embeddings: np.ndarray, references: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return score_all(embeddings, None, references, labels)[scorer]


def slow_score(
    embeddings: np.ndarray, references: np.ndarray, labels: np.ndarray, counts: tuple[int, int] | None = None
) -> list[float]:
    """The score from the nearest `counts` references of either class, benign first, or from all."""
    scores = []
    for point in embeddings.tolist():
        distances: list[list[float]] = [[], []]
        for reference, label in zip(references.tolist(), labels.tolist(), strict=True):
            distances[label].append(math.dist(point, reference))
        if counts:
            distances = [sorted(own)[:count] for own, count in zip(distances, counts, strict=True)]
        scores.append(math.fsum(distances[0]) / len(distances[0]) - math.fsum(distances[1]) / len(distances[1]))
    return scores


# --- score ---


def test_score_is_positive_nearer_the_melanomas():
    references, labels = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]]), np.array([0, 0, 1, 1])
    scores = score_of("distance", np.array([[9.0, 1.0], [5.0, 1.0], [1.0, 1.0]]), references, labels)
    expected = math.hypot(9, 1) - math.hypot(1, 1)
    np.testing.assert_allclose(scores, [expected, 0, -expected], atol=1e-5)


def test_score_equals_a_slow_double_loop():
    embeddings, references = random_embeddings(30, 0), random_embeddings(40, 1)
    labels = (np.arange(40) % 5 == 0).astype(int)
    scores = score_of("distance", embeddings, references, labels)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, slow_score(embeddings, references, labels), atol=1e-5)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_score_keeps_its_digits_far_from_the_origin(offset):
    embeddings, references = random_embeddings(30, 0) + offset, random_embeddings(40, 1) + offset
    labels = np.arange(40) % 2
    np.testing.assert_allclose(
        score_of("distance", embeddings, references, labels), slow_score(embeddings, references, labels), atol=1e-3
    )


@pytest.mark.parametrize("block", [1, 7, 30, 31])
def test_score_does_not_depend_on_the_block(monkeypatch, block):
    embeddings, references = random_embeddings(30, 0), random_embeddings(40, 1)
    labels = np.arange(40) % 2
    whole = score_of("distance", embeddings, references, labels)
    monkeypatch.setattr(module, "BLOCK", block)
    np.testing.assert_allclose(score_of("distance", embeddings, references, labels), whole, rtol=1e-4, atol=1e-5)


def test_distance_to_oneself_is_a_number():
    points = torch.from_numpy(np.repeat(random_embeddings(1, 0), 50, axis=0)).requires_grad_()
    distance = mean_distances(points, points.detach(), [50])[0]
    np.testing.assert_allclose(distance.detach(), 0, atol=1e-6)
    distance.sum().backward()
    assert points.grad is not None and torch.isfinite(points.grad).all()


@pytest.mark.parametrize("block", [7, 1024])
def test_distances_to_the_nearest_references_equal_a_slow_loop(block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    embeddings, references = random_embeddings(30, 0), random_embeddings(40, 1)
    counts = [1, 3, 20, 40, 50]
    means = mean_distances(torch.from_numpy(embeddings), torch.from_numpy(references), counts)
    for point, found in zip(embeddings.tolist(), means.T, strict=True):
        distances = sorted(math.dist(point, reference) for reference in references.tolist())
        np.testing.assert_allclose(found, [np.mean(distances[:count]) for count in counts], atol=1e-5)


@pytest.mark.parametrize(("n", "nearest", "neighbours"), [(3, (1, 1), (2, 1)), (40, (8, 2), (20, 8))])
def test_of_few_references_one_counts_at_least_and_all_at_most(n, nearest, neighbours):
    embeddings, references = random_embeddings(30, 0), random_embeddings(n, 1)
    labels = (np.arange(n) % 5 == 0).astype(int)
    scores = score_all(embeddings, None, references, labels)
    for name, counts in (("nearest", nearest), ("neighbours", neighbours)):
        np.testing.assert_allclose(scores[name], slow_score(embeddings, references, labels, counts), atol=1e-5)


def test_prototype_score_by_hand():
    references = np.array([[0.0, 0.0], [0.0, 2.0], [6.0, 1.0], [10.0, 0.0], [8.0, 2.0]])
    # the means are (0, 1) and (8, 1)
    scores = score_of(
        "prototype", np.array([[8.0, 1.0], [4.0, 5.0], [0.0, 4.0]]), references, np.array([0, 0, 1, 1, 1])
    )
    np.testing.assert_allclose(scores, [8 - 0, 0, 3 - math.hypot(8, 3)], atol=1e-6)


@pytest.mark.parametrize(("count", "block"), [(1, 1024), (5, 7), (40, 20)])
def test_the_nearest_references_equal_a_slow_loop(count, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    embeddings, references = random_embeddings(20, 0), random_embeddings(30, 1)
    distances, places = nearest_references(embeddings, references, count)
    assert distances.shape == places.shape == (20, min(count, 30))
    for i, embedding in enumerate(embeddings):
        found = sorted(
            (math.dist(embedding.tolist(), reference.tolist()), place) for place, reference in enumerate(references)
        )
        assert places[i].tolist() == [place for _, place in found[:count]]
        np.testing.assert_allclose(distances[i], [distance for distance, _ in found[:count]], rtol=1e-6)


def test_no_more_distances_are_held_than_those_of_a_block(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 8)
    real, held = torch.cdist, []

    def cdist(block, *others, **how):
        held.append(len(block))
        return real(block, *others, **how)

    monkeypatch.setattr(torch, "cdist", cdist)
    nearest_references(random_embeddings(20, 0), random_embeddings(30, 1), 3)
    assert held == [8, 8, 4]


def test_a_reference_is_nearest_to_itself_at_0_far_from_the_origin_too():
    references = random_embeddings(30, 1) + 1000
    distances, places = nearest_references(references, references, 1)
    assert places[:, 0].tolist() == list(range(30))
    np.testing.assert_allclose(distances, 0, atol=1e-4)


def test_familiarity_is_the_share_of_usual_distances_as_far_or_farther():
    usual = np.array([3.0, 1.0, 2.0, 2.0])
    np.testing.assert_allclose(familiarity(np.array([0, 1, 1.5, 2, 3, 3.1]), usual), [1, 1, 0.75, 0.75, 0.25, 0])


def test_every_scorer_is_the_one_of_its_name():
    embeddings, references = random_embeddings(30, 0), random_embeddings(240, 1)
    labels, logits = (np.arange(240) % 4 == 0).astype(int), np.arange(30, dtype=np.float32)
    scores = score_all(embeddings, logits, references, labels)
    assert tuple(scores) == SCORERS
    expected: dict[str, Any] = {
        "distance": slow_score(embeddings, references, labels),
        "nearest": slow_score(embeddings, references, labels, (45, 15)),  # a quarter of 180 and of 60
        "neighbours": slow_score(embeddings, references, labels, (20, 20)),
        "prototype": np.linalg.norm(embeddings - references[labels == 0].mean(axis=0), axis=1)
        - np.linalg.norm(embeddings - references[labels == 1].mean(axis=0), axis=1),
        "head": logits,
    }
    for name, values in expected.items():
        np.testing.assert_allclose(scores[name], values, atol=1e-5)
    assert list(score_all(embeddings, None, references, labels)) == list(SCORERS[:-1])


def test_the_way_of_scoring_is_fixed_by_the_network():
    assert (usual_scorer(True), usual_scorer(False)) == ("head", "neighbours")


# --- probability ---


def simulated(n: int, slope: float, intercept: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels whose log odds are slope × score + intercept, and the scores."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(3.0, 0.5, n)
    return (rng.random(n) < expit(slope * scores + intercept)).astype(int), scores


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, -7.0), (0.5, -1.0), (8.0, -24.0)])
@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e3])
def test_platt_recovers_the_line_whatever_the_scores_unit(slope, intercept, unit):
    labels, scores = simulated(40_000, slope, intercept)
    curve = Platt.fit(labels, unit * scores)
    assert curve.slope * unit == pytest.approx(slope, rel=0.1)
    np.testing.assert_allclose(curve.log_odds(unit * scores), slope * scores + intercept, atol=0.1 + 0.05 * slope)
    assert expit(curve.log_odds(unit * scores)).mean() == pytest.approx(labels.mean(), abs=1e-4)


@pytest.mark.parametrize("scores", [-np.arange(40.0), np.zeros(40), np.tile([1.0, -1.0], 20)])
def test_scores_that_rank_the_wrong_way_keep_their_order_and_say_next_to_nothing(scores):
    labels = np.tile([0, 1], 20) if scores[0] == 1 else (np.arange(40) >= 30).astype(int)
    curve = Platt.fit(labels, scores)
    assert curve.slope > 0
    odds = curve.log_odds(scores)
    np.testing.assert_allclose(odds, logit(labels.mean()), atol=1e-4)
    np.testing.assert_array_equal(np.argsort(odds, kind="stable"), np.argsort(scores, kind="stable"))


def test_scores_of_classes_that_lie_apart_have_a_curve_of_finite_slope():
    labels, scores = np.repeat([0, 1], 50), np.concatenate([np.linspace(0, 1, 50), np.linspace(2, 3, 50)])
    odds = Platt.fit(labels, scores).log_odds(scores)
    assert np.isfinite(odds).all()
    assert (odds[:50] < 0).all() and (odds[50:] > 0).all()
    assert expit(odds).mean() == pytest.approx(0.5, abs=0.01)


def test_calibration_and_prevalence_give_the_probability_of_bayes():
    # benign scores are N(0, 1), melanoma ones N(1.5, 1): the likelihood ratio is exp(1.5 x - 1.125)
    rng = np.random.default_rng(0)
    labels = (rng.random(60_000) < 0.3).astype(int)
    scores = rng.normal(1.5 * labels, 1.0)
    points = np.linspace(-1, 2.5, 15)
    for prevalence in (None, 0.3, 0.02, 0.8):
        judge = Judge(labels, scores, prevalence)
        prior = 0.3 if prevalence is None else prevalence
        expected = expit(1.5 * points - 1.125 + logit(prior))
        np.testing.assert_allclose(judge.probability(points), expected, atol=0.02)
        np.testing.assert_allclose(expit(judge.log_odds(points)), judge.probability(points))

    # and with that prevalence as many melanomas are found as are there
    rare = (rng.random(60_000) < 0.02).astype(int)
    chance = Judge(labels, scores, 0.02).probability(rng.normal(1.5 * rare, 1.0))
    assert chance.mean() == pytest.approx(rare.mean(), rel=0.1)


def test_a_prevalence_moves_the_threshold_with_the_probabilities():
    labels, scores = random_scores(1, None)
    calls = []
    for prevalence in (None, 0.02, 0.6):
        judge = Judge(labels, scores, prevalence=prevalence)
        calls.append((judge.probability(scores) >= judge.threshold).tolist())
    assert calls[0] == calls[1] == calls[2]
    assert 0 < sum(calls[0]) < 60


def test_the_judges_threshold_is_chosen_on_the_probabilities_it_was_fitted_on():
    labels, scores = random_scores(1, None)
    for share in (None, 0.9):
        judge = Judge(labels, scores, min_sensitivity=share)
        assert judge.threshold == choose_threshold(labels, judge.probability(scores), share)
    assert rates(labels, judge.probability(scores), judge.threshold)[0] >= 0.9


def test_a_wrong_sign_is_not_turned_right():
    labels, scores = random_scores(1, None)
    auc = roc_auc_score(labels, scores)
    assert auc > 0.7
    assert roc_auc_score(labels, Judge(labels, -scores).probability(-scores)) == pytest.approx(1 - auc)


# --- threshold ---


def rates(labels: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity."""
    called = scores >= threshold
    return called[labels == 1].mean(), (~called[labels == 0]).mean()


def random_scores(seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores that follow them a little; `levels` rounds them, which makes ties."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(60) % 4 == 0).astype(int)
    scores = rng.normal(size=60) + labels
    return labels, scores if levels is None else np.round(scores * levels) / levels


CASES = [(seed, levels) for seed in range(4) for levels in (None, 4, 1)]


@pytest.mark.parametrize(("seed", "levels"), CASES)
def test_the_threshold_has_the_best_smaller_rate_of_all_cuts_and_of_equals_the_best_larger_one(seed, levels):
    labels, scores = random_scores(seed, levels)
    best = max(sorted(rates(labels, scores, cut)) for cut in np.unique(scores))
    assert sorted(rates(labels, scores, choose_threshold(labels, scores))) == pytest.approx(best)


def test_a_threshold_that_another_one_beats_is_not_taken():
    # cuts at 8, 7, 6 leave 3 of 4 benign alone and find 2, 3, 4 of 4 melanomas
    labels, scores = np.array([0, 1, 1, 1, 1, 0, 0, 0]), np.array([10, 9, 8, 7, 6, 2, 1, 0])
    assert rates(labels, scores, choose_threshold(labels, scores)) == (1, 0.75)


@pytest.mark.parametrize(("seed", "levels"), CASES)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 1.0])
def test_min_sensitivity_takes_the_most_specific_cut_that_keeps_the_share(seed, levels, share):
    labels, scores = random_scores(seed, levels)
    allowed = [cut for cut in np.unique(scores) if rates(labels, scores, cut)[0] >= share]
    best = max(rates(labels, scores, cut)[1] for cut in allowed)
    sensitivity, specificity = rates(labels, scores, choose_threshold(labels, scores, share))
    assert sensitivity >= share
    assert specificity == best


@pytest.mark.parametrize("min_sensitivity", [None, 1.0, 0.9])
def test_classes_that_lie_apart_are_cut_halfway(min_sensitivity):
    labels, scores = np.array([0, 1, 0, 1, 0]), np.array([0.1, 0.8, 0.4, 0.7, 0.2])
    assert choose_threshold(labels, scores, min_sensitivity) == pytest.approx((0.4 + 0.7) / 2)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.75), (0.51, 0.25), (0.0, 0.95)])
def test_threshold_lies_halfway_between_neighbouring_scores(share, expected):
    labels, scores = np.array([0, 1, 0, 1, 0]), np.array([0.2, 0.3, 0.7, 0.8, 1.1])
    assert choose_threshold(labels, scores, share) == pytest.approx(expected)


@pytest.mark.parametrize("min_sensitivity", [None, 0.9])
def test_constant_scores_call_everything_melanoma(min_sensitivity):
    labels, scores = np.array([0, 1, 0, 1]), np.full(4, 0.3)
    threshold = choose_threshold(labels, scores, min_sensitivity)
    assert math.isfinite(threshold)
    assert (scores >= threshold).all()


@pytest.mark.parametrize("min_sensitivity", [None, 1.0])
def test_the_last_score_can_be_the_cut(min_sensitivity):
    labels, scores = np.array([1, 0, 1, 1]), np.array([0.1, 0.9, 0.5, 0.6])
    assert rates(labels, scores, choose_threshold(labels, scores, min_sensitivity)) == (1, 0)


def test_scores_with_no_number_between_them_are_still_parted():
    benign, melanoma = 1.0, np.nextafter(1.0, 2.0)
    labels, scores = np.array([0, 0, 1, 1]), np.array([benign, benign, melanoma, melanoma])
    assert rates(labels, scores, choose_threshold(labels, scores)) == (1, 1)
