"""Every figure of an evaluation by its file name in graph/, or the reason why it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from melanoma.data.cache import ImageCache
from melanoma.evaluation.bootstrap import roc_band
from melanoma.report import curves
from melanoma.report.embeddings import pair_distances, tsne_map, tsne_panels
from melanoma.report.lesions import confident_errors, error_gallery

TSNE_IMAGES = 3000  # larger sets are reduced to every melanoma and random benign images, this many in all
TSNE_LEAST = 10

Drawn = dict[str, Figure | str]  # by file name; a text is the reason why there is no figure


def draw_all(
    table: pd.DataFrame,
    metrics: Mapping[str, Any],
    cache: ImageCache,
    embeddings: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    margin: float,
    rng: np.random.Generator,
) -> tuple[dict[str, Figure | None], dict[str, str]]:
    """Return the figures by file name, and the reason for each that is None.

    Parameters
    ----------
    table : the judged lesions, see `evaluate.add_context`
    metrics : contents of metrics.json, with the set's name, the runs and subgroups
    cache : has the pixels of the lesions
    embeddings : float array of shape (M, D), of the first M rows of `table`, by the first run; M is less than the
        number of rows where several folds are pooled: only those of the first fold are drawn
    pairs : rows (P, 2) of `embeddings` and `same` (P,) bool, as `dataset.sample_pairs` returns them; None if a class
        has less than two images
    margin : of the contrastive loss
    rng : source of the benign images in the t-SNE map and of the ROC band's bootstrap samples
    """
    drawn = _embedding_figures(table.iloc[: len(embeddings)], metrics, embeddings, pairs, margin, rng)
    names, labels, probability, threshold = (
        table[name].to_numpy() for name in ("image_name", "label", "probability", "threshold")
    )
    what = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    worst = confident_errors(labels, probability, threshold)
    pixels = list(cache.gather(cache.rows(names[worst])))
    errors = labels[worst], probability[worst], names[worst].tolist()
    drawn |= {
        "Confusion_matrix.png": curves.confusion_matrix(metrics["counts"], what),
        "Score_histogram.png": curves.score_histogram(labels, probability, threshold, what),
        "Calibration.png": curves.calibration(labels, probability, metrics["ece"], what),
        "Subgroups.png": curves.forest(metrics["subgroups"], metrics["auc"], what),
        "Errors.png": error_gallery(pixels, *errors, metrics["counts"], what),
    }
    if metrics["auc"] is None:
        reason = metrics["not_computed"]["auc"]
        drawn |= dict.fromkeys(("ROC_curve.png", "Precision_recall.png", "Threshold.png"), reason)
    else:
        sensitivity, specificity, precision, ap = (
            metrics[key] for key in ("sensitivity", "specificity", "precision", "average_precision")
        )
        band = roc_band(labels, probability, table["patient_id"].to_numpy(), rng)
        on_roc, both = (1 - specificity, sensitivity), (sensitivity, specificity)
        on_curve = None if precision is None else (sensitivity, precision)
        drawn |= {
            "ROC_curve.png": curves.roc(labels, probability, metrics["auc"], on_roc, what, band),
            "Precision_recall.png": curves.precision_recall(labels, probability, ap, on_curve, what),
            "Threshold.png": curves.rates_by_threshold(labels, probability, threshold, both, what),
        }
    return (
        {name: None if isinstance(found, str) else found for name, found in drawn.items()},
        {name: found for name, found in drawn.items() if isinstance(found, str)},
    )


def _embedding_figures(
    table: pd.DataFrame,
    metrics: Mapping[str, Any],
    embeddings: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray] | None,
    margin: float,
    rng: np.random.Generator,
) -> Drawn:
    labels, first = table["label"].to_numpy(), metrics["runs"][0]
    fold = f", fold {first['fold']}" if len(table) < metrics["n"] else ""
    what = f"{metrics['set']}{fold}: {len(table):,} images, {labels.sum():,} melanoma"
    if len(metrics["runs"]) > 1:
        what = f"{what}; by {first['run_dir']} alone"
    drawn: Drawn = {"Pair_distances.png": "pairs need two images of each class"}
    if pairs is not None:
        (one, other), same = pairs[0].T, pairs[1]
        distances = np.linalg.norm(embeddings[one] - embeddings[other], axis=1)
        drawn["Pair_distances.png"] = pair_distances(distances, same, margin, what)
    if len(table) < TSNE_LEAST:
        reason = f"a map needs {TSNE_LEAST} images, there are {len(table)}"
        return drawn | {"t_SNE.png": reason, "t_SNE_panels.png": reason}
    kept = tsne_subset(labels, TSNE_IMAGES, rng)
    points = TSNE(perplexity=min(30, (len(kept) - 1) / 3), random_state=0).fit_transform(embeddings[kept])
    if len(kept) < len(table):
        what = f"{what}; shown {len(kept):,}: every melanoma, random benign"
    probability, megapixels = (table[name].to_numpy()[kept] for name in ("probability", "megapixels"))
    drawn["t_SNE.png"] = tsne_map(points, labels[kept], what)
    drawn["t_SNE_panels.png"] = tsne_panels(points, labels[kept], probability, megapixels, what)
    return drawn


def tsne_subset(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows to map, sorted: every melanoma, and random benign images up to `most` in all."""
    melanoma, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    benign = rng.permutation(benign)[: max(most - len(melanoma), 0)]
    return np.sort(np.concatenate([melanoma, benign]))
