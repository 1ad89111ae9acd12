"""Scores from distances to references, and thresholds from scores; each against brute force."""

import math

import numpy as np
import pytest

import classify
from classify import choose_threshold, mean_distance, reference_score


def random_embeddings(n: int, seed: int, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


def slow_score(embeddings: np.ndarray, references: np.ndarray, labels: np.ndarray) -> list[float]:
    scores = []
    for point in embeddings.tolist():
        distances = [[], []]
        for reference, label in zip(references.tolist(), labels.tolist(), strict=True):
            distances[label].append(math.dist(point, reference))
        scores.append(
            math.fsum(distances[0]) / len(distances[0]) - math.fsum(distances[1]) / len(distances[1])
        )
    return scores


# --- score ---


def test_score_is_positive_nearer_the_melanomas():
    references, labels = np.array([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0], [10.0, 2.0]]), np.array([0, 0, 1, 1])
    scores = reference_score(np.array([[9.0, 1.0], [5.0, 1.0], [1.0, 1.0]]), references, labels)
    expected = math.hypot(9, 1) - math.hypot(1, 1)
    np.testing.assert_allclose(scores, [expected, 0, -expected], atol=1e-5)


def test_score_equals_a_slow_double_loop():
    embeddings, references = random_embeddings(30, 0), random_embeddings(40, 1)
    labels = (np.arange(40) % 5 == 0).astype(int)
    scores = reference_score(embeddings, references, labels)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, slow_score(embeddings, references, labels), atol=1e-5)


@pytest.mark.parametrize("offset", [1e3, 1e5])
def test_score_keeps_its_digits_far_from_the_origin(offset):
    embeddings, references = random_embeddings(30, 0) + offset, random_embeddings(40, 1) + offset
    labels = np.arange(40) % 2
    np.testing.assert_allclose(
        reference_score(embeddings, references, labels), slow_score(embeddings, references, labels), atol=1e-3
    )


@pytest.mark.parametrize("block", [1, 7, 30, 31])
def test_score_does_not_depend_on_the_block(monkeypatch, block):
    embeddings, references = random_embeddings(30, 0), random_embeddings(40, 1)
    whole = mean_distance(embeddings, references)
    monkeypatch.setattr(classify, "BLOCK", block)
    np.testing.assert_allclose(mean_distance(embeddings, references), whole, rtol=1e-6)


def test_distance_to_oneself_is_a_number():
    points = np.repeat(random_embeddings(1, 0), 50, axis=0)
    np.testing.assert_allclose(mean_distance(points, points), 0, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_references_of_one_class_are_refused(label):
    with pytest.raises(ValueError, match="both classes"):
        reference_score(random_embeddings(3, 0), random_embeddings(4, 1), np.full(4, label))


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
def test_youdens_threshold_has_the_best_sum_of_all_cuts(seed, levels):
    labels, scores = random_scores(seed, levels)
    best = max(sum(rates(labels, scores, cut)) for cut in np.unique(scores))
    assert sum(rates(labels, scores, choose_threshold(labels, scores))) == pytest.approx(best)


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
