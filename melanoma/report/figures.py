"""What is drawn of judged lesions: every figure of graph/ by its file name, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from dataset import sample_pairs
from melanoma.evaluation.bootstrap import roc_band
from melanoma.report import curves, galleries, style
from melanoma.scoring.ensemble import Run, Scored
from melanoma.training import run_folder

TSNE_IMAGES = 3000  # more are thinned to every melanoma and as many benign as fill this number
TSNE_LEAST = 10


def draw_all(
    lesions: pd.DataFrame, scored: Scored, metrics: Mapping[str, Any], run: Run, rng: np.random.Generator
) -> tuple[dict[str, Figure | None], dict[str, str]]:
    """Return the figures by file name, and for each that is None the reason.

    Parameters
    ----------
    lesions : the scored table with its context, see `measure.add_context`
    metrics : as `measure.measure`, with the set's name, the runs and subgroups
    run : the panel's first, whose embeddings are drawn
    rng : source of the pairs, of the benign images that t-SNE maps, and of the band's bootstrap
    """
    embedded = _embedding_figures(lesions, scored, metrics, run, rng)
    labels, probability, threshold = (
        lesions[name].to_numpy() for name in ("label", "probability", "threshold")
    )
    what = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    drawn: dict[str, Figure | None] = {
        "Confusion_matrix.png": style.confusion_matrix(metrics["counts"], what),
        "Score_histogram.png": curves.score_histogram(labels, probability, threshold, what),
        "Calibration.png": curves.calibration(labels, probability, metrics["ece"], what),
        "Subgroups.png": galleries.forest(metrics["subgroups"], metrics["auc"], what),
        "Errors.png": _errors(lesions, scored, metrics, what),
        **dict.fromkeys(("ROC_curve.png", "Precision_recall.png", "Threshold.png")),
    }
    missing = {}
    sensitivity, specificity = metrics["sensitivity"], metrics["specificity"]
    if metrics["auc"] is not None:
        point = (1 - specificity, sensitivity)
        band = roc_band(labels, probability, lesions["patient_id"].to_numpy(), rng)
        drawn["ROC_curve.png"] = style.roc(labels, probability, metrics["auc"], point, what, band)
        precision = metrics["precision"]
        drawn["Precision_recall.png"] = curves.precision_recall(
            labels,
            probability,
            metrics["average_precision"],
            None if precision is None else (sensitivity, precision),
            what,
        )
        drawn["Threshold.png"] = curves.rates_by_threshold(
            labels, probability, threshold, (sensitivity, specificity), what
        )
    else:
        reason = metrics["not_computed"]["auc"]
        missing = {name: reason for name, figure in drawn.items() if figure is None}
    for name, (figure, reason) in embedded.items():
        drawn[name] = figure
        if figure is None:
            missing[name] = reason
    return drawn, missing


def learning_curves(log: Sequence[Mapping[str, Any]], run: Run, one_of_several: bool = False) -> Figure:
    """Draw the learning curves of a run's log, as train.py does after each epoch.

    one_of_several : runs have judged: the figure names the one it shows
    """
    labels = {
        name: run.table.loc[run.table["part"] == part, "label"].to_numpy()
        for name, part in (("training", "train"), ("validation", "validation"))
    }
    best = run_folder.best_entry(log)
    parts = style.describe_parts(labels)
    what = f"{parts}\n{run.config.run_dir} alone" if one_of_several else parts
    return style.learning_curves(log, best["epoch"], what)


def _errors(lesions: pd.DataFrame, scored: Scored, metrics: Mapping[str, Any], what: str) -> Figure:
    labels, probability = lesions["label"].to_numpy(), lesions["probability"].to_numpy()
    worst = galleries.confident_errors(labels, probability, lesions["threshold"].to_numpy())
    names = lesions["image_name"].to_numpy()[worst]
    pixels = list(scored.cache.gather(scored.cache.rows(names)))
    return galleries.error_gallery(
        pixels, labels[worst], probability[worst], list(names), metrics["counts"], what
    )


def _embedding_figures(
    lesions: pd.DataFrame, scored: Scored, metrics: Mapping[str, Any], run: Run, rng: np.random.Generator
) -> dict[str, tuple[Figure | None, str]]:
    """Return the figures of the embeddings, or None with the reason: of several folds, those of the first."""
    embeddings = scored.embeddings
    own = lesions.iloc[: len(embeddings)]
    labels = own["label"].to_numpy()
    what = f"{metrics['set']}: {len(own):,} images, {labels.sum():,} melanoma"
    if len(own) < len(lesions):
        what = f"{metrics['set']}, fold {run.config.fold}: {len(own):,} images, {labels.sum():,} melanoma"
    if len(metrics["runs"]) > 1:
        what = f"{what}; by {run.config.run_dir} alone"
    result: dict[str, tuple[Figure | None, str]] = {}
    if min(np.bincount(labels, minlength=2)) >= 2:
        pairs, same = sample_pairs(labels, rng)
        distances = np.linalg.norm(embeddings[pairs[:, 0]] - embeddings[pairs[:, 1]], axis=1)
        margin = run.config.margin if run.config.loss == "contrastive" else None
        result["Pair_distances.png"] = (curves.pair_distances(distances, same, margin, what), "")
    else:
        result["Pair_distances.png"] = (None, "pairs need two images of each class")
    if len(own) < TSNE_LEAST:
        reason = f"a map needs {TSNE_LEAST} images, there are {len(own)}"
        return result | {"t_SNE.png": (None, reason), "t_SNE_panels.png": (None, reason)}
    kept = tsne_subset(labels, TSNE_IMAGES, rng)
    points = TSNE(perplexity=min(30, (len(kept) - 1) / 3), random_state=0).fit_transform(embeddings[kept])
    if len(kept) < len(own):
        what = f"{what}; shown {len(kept):,}: every melanoma, random benign"
    shown = own.iloc[kept]
    pixels = shown["megapixels"].to_numpy() * 1e6
    result["t_SNE.png"] = (style.tsne_map(points, labels[kept], what), "")
    result["t_SNE_panels.png"] = (
        galleries.tsne_panels(points, labels[kept], shown["probability"].to_numpy(), pixels, what),
        "",
    )
    return result


def tsne_subset(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows to map, sorted: every melanoma, and random benign images up to `most` in all."""
    melanoma, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    benign = rng.permutation(benign)[: max(most - len(melanoma), 0)]
    return np.sort(np.concatenate([melanoma, benign]))
