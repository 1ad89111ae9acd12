"""From embeddings to melanoma scores (large = melanoma), and from scores to a threshold."""

from __future__ import annotations

import numpy as np
from sklearn.metrics import roc_curve

BLOCK = 1024  # images scored at a time: bounds memory at BLOCK × references distances


def mean_distance(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the mean Euclidean distance of each embedding (N, D) to the references (R, D), float64 (N,)."""
    # |a - b|² = |a|² + |b|² - 2ab, about a common centre so that little is lost to cancellation
    centre = references.mean(axis=0)
    a, b = (embeddings - centre).astype(np.float32), (references - centre).astype(np.float32)
    b_squared = np.square(b).sum(axis=1)
    result = np.empty(len(a))
    for start in range(0, len(a), BLOCK):
        block = a[start : start + BLOCK]
        squared = np.square(block).sum(axis=1)[:, None] + b_squared - 2 * block @ b.T
        result[start : start + BLOCK] = np.sqrt(np.maximum(squared, 0, out=squared), out=squared).mean(axis=1)
    return result


def reference_score(embeddings: np.ndarray, references: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score images by how much nearer they lie to the melanoma references than to the benign ones.

    Parameters
    ----------
    embeddings : float array of shape (N, D), the images to score
    references : float array of shape (R, D), the training images
    labels : int array of shape (R,), 1 melanoma, 0 benign; both must occur

    Returns
    -------
    float64 array of shape (N,): mean distance to the benign references minus mean distance to the melanomas
    """
    melanoma = labels == 1
    if melanoma.all() or not melanoma.any():
        raise ValueError("references of both classes are needed")
    return mean_distance(embeddings, references[~melanoma]) - mean_distance(embeddings, references[melanoma])


def choose_threshold(labels: np.ndarray, scores: np.ndarray, min_sensitivity: float | None = None) -> float:
    """Choose the score from which on a lesion is called melanoma.

    Call it on validation, never on test.

    Parameters
    ----------
    labels : int array of shape (N,), both classes
    scores : float array of shape (N,)
    min_sensitivity : None takes the largest sensitivity + specificity - 1 (Youden 1950); a share in 0..1 takes
        the most specific threshold that still finds at least that share of the melanomas

    Returns
    -------
    a threshold halfway between two neighbouring scores (or the lowest score); melanoma is score >= threshold
    """
    false_rate, true_rate, cuts = roc_curve(labels, scores, drop_intermediate=False)
    false_rate, true_rate, cuts = false_rate[1:], true_rate[1:], cuts[1:]  # the first calls nothing melanoma
    if min_sensitivity is None:
        best = int(np.argmax(true_rate - false_rate))
    else:
        best = int(np.argmax(true_rate >= min_sensitivity))  # rates rise: the first is the most specific
    below = cuts[best + 1] if best + 1 < len(cuts) else cuts[best]
    middle = float((cuts[best] + below) / 2)
    return middle if middle > below else float(cuts[best])  # no number fits between, or there is none below
