"""Every figure of an evaluation by its file name in graph/, or the reason why it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from melanoma.data.cache import ImageCache
from melanoma.evaluation.bootstrap import roc_band
from melanoma.report import curves
from melanoma.report.embeddings import pair_distances, tsne_map, tsne_panels
from melanoma.report.lesions import confident_errors, error_gallery

TSNE_IMAGES = 3000  # larger sets are reduced to every melanoma and random benign images, this many in all
TSNE_LEAST = 10


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
    metrics : contents of metrics.json
    cache : has the pixels of the lesions
    embeddings : float (M, D), by the first run, of the first M rows of `table`: where folds are pooled, of the first
    pairs : of `embeddings`, see `dataset.sample_pairs`; None if a class has less than two images
    margin : of the contrastive loss
    rng : source of the benign images in the t-SNE map and of the ROC band's bootstrap samples
    """
    from sklearn.manifold import TSNE  # slow to import

    names, labels, probability, threshold, megapixels = (
        table[name].to_numpy() for name in ("image_name", "label", "probability", "threshold", "megapixels")
    )
    drawn: dict[str, Figure | None] = {}
    missing: dict[str, str] = {}

    # of the embeddings
    known, first = labels[: len(embeddings)], metrics["runs"][0]
    fold = f", fold {first['fold']}" if len(known) < len(labels) else ""
    alone = f"; by {Path(first['run_dir']).name} alone" if len(metrics["runs"]) > 1 else ""
    whose = f"{alone}\n{metrics['origin']}"
    what = f"{metrics['set']}{fold}: {curves.describe_images(known)}"
    if pairs is None:
        missing["Pair_distances.png"] = "pairs need two images of each class"
    else:
        (one, other), same = pairs[0].T, pairs[1]
        distances = np.linalg.norm(embeddings[one] - embeddings[other], axis=1)
        drawn["Pair_distances.png"] = pair_distances(distances, same, margin, what + whose)
    if len(known) < TSNE_LEAST:
        reason = f"a map needs {TSNE_LEAST} images, there are {len(known)}"
        missing |= dict.fromkeys(("t_SNE.png", "t_SNE_panels.png"), reason)
    else:
        kept = tsne_subset(known, TSNE_IMAGES, rng)
        points = TSNE(perplexity=min(30, (len(kept) - 1) / 3), random_state=0).fit_transform(embeddings[kept])
        if len(kept) < len(known):
            what = f"{what}; shown {len(kept):,}: every melanoma, random benign"
        what += whose
        drawn["t_SNE.png"] = tsne_map(points, known[kept], what)
        drawn["t_SNE_panels.png"] = tsne_panels(points, known[kept], probability[kept], megapixels[kept], what)

    # of the judgements
    what = f"{metrics['set']}: {curves.describe_images(labels)}\n{metrics['origin']}"
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
        missing |= dict.fromkeys(("ROC_curve.png", "Precision_recall.png", "Threshold.png"), reason)
    else:
        sensitivity, specificity, precision = (metrics[key] for key in ("sensitivity", "specificity", "precision"))
        band = roc_band(labels, probability, table["group"].to_numpy(), rng)
        on_roc, both = (1 - specificity, sensitivity), (sensitivity, specificity)
        on_curve = None if precision is None else (sensitivity, precision)
        auc, average = ((metrics[key], metrics["intervals"][key]) for key in ("auc", "average_precision"))
        drawn |= {
            "ROC_curve.png": curves.roc(labels, probability, *auc, on_roc, what, band),
            "Precision_recall.png": curves.precision_recall(labels, probability, *average, on_curve, what),
            "Threshold.png": curves.rates_by_threshold(labels, probability, threshold, both, what),
        }
    return drawn | dict.fromkeys(missing), missing


def tsne_subset(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows to map, sorted: every melanoma, and random benign images up to `most` in all."""
    melanoma, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    benign = rng.permutation(benign)[: max(most - len(melanoma), 0)]
    return np.sort(np.concatenate([melanoma, benign]))
