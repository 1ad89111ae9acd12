"""Score lesions with a trained run and draw the figures: `python predict.py` (paths: config.py, or flags).

Three layers that meet only in `main`: score (on the device) -> predictions.csv; measure (NumPy) -> metrics.json;
draw (arrays to figures) -> graph/*.png. References and threshold are the run's own; test images choose nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.manifold import TSNE

import checkpoint
import dataset
import figures
from classify import choose_threshold, reference_score
from config import Config, InputError, add_flags, from_flags, run_script, with_machine
from device import choose_device, choose_precision, describe_device, keep_freed_memory
from feed import Feed, embed_images
from images import build_cache, find_images, refuse_unreadable
from metrics import auc_interval, evaluate
from modules import SiameseNetwork, build_network

TSNE_IMAGES = 3000  # more are thinned to every melanoma and as many benign as fill this number
PREDICTION_COLUMNS = ["image_name", "patient_id", "label", "score", "predicted"]


@dataclass(frozen=True)
class Run:
    """A trained run on this machine: its settings, network, split and reference embeddings (R, D)."""

    config: Config
    network: SiameseNetwork
    device: torch.device
    dtype: torch.dtype
    table: pd.DataFrame  # image_name, patient_id, label, part
    feed: Feed
    references: np.ndarray
    reference_labels: np.ndarray


def main(
    machine: Config,
    evaluate_image: Path | None = None,
    evaluate_labels: Path | None = None,
    min_sensitivity: float | None = None,
    metrics_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate the run in `machine.run_dir` on its test part, or on another labelled folder; return the metrics."""
    keep_freed_memory()
    run = load_run(machine)
    print(f"predicting on {describe_device(run.device, run.dtype)}")
    validation = run.table[run.table["part"] == "validation"]
    validation_scores, _ = score_images(run, run.feed, validation["image_name"])
    threshold = choose_threshold(validation["label"].to_numpy(), validation_scores, min_sensitivity)

    if evaluate_image is None or evaluate_labels is None:
        lesions, feed = run.table[run.table["part"] == "test"], run.feed
        name, prefix = "test", ""
    else:
        lesions, feed = load_labelled(evaluate_image, evaluate_labels, run.config, run.device)
        name, prefix = evaluate_image.name, checkpoint.EVALUATED
    scores, embeddings = score_images(run, feed, lesions["image_name"])
    labels = lesions["label"].to_numpy()
    predictions = lesions.assign(score=scores, predicted=(scores >= threshold).astype(int))
    predictions = predictions[PREDICTION_COLUMNS]
    path = run.config.run_dir / f"{prefix}predictions.csv"
    checkpoint.replace_file(path, lambda temporary: predictions.to_csv(temporary, index=False))

    rng = np.random.default_rng([run.config.seed, 0])
    interval = auc_interval(labels, scores, lesions["patient_id"].to_numpy(), rng)
    metrics = {"set": name, **evaluate(labels, scores, threshold), "auc_interval": interval}
    metrics_path = metrics_file or run.config.run_dir / f"{prefix}metrics.json"
    metrics_path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(metrics_path, metrics)
    print(describe_metrics(metrics))

    drawn = draw(labels, scores, embeddings, metrics, rng)
    for file_name, figure in drawn.items():
        figures.save_figure(figure, run.config.graph_dir / file_name)
    print(f"wrote {path}, {metrics_path} and {', '.join(drawn)} in {run.config.graph_dir}")
    return metrics


# --- score ---


def load_run(machine: Config) -> Run:
    """Load the best checkpoint of `machine.run_dir` and embed its references, the images of its training part.

    Raises
    ------
    InputError : no run there, a checkpoint that does not fit, images of the run that are missing
    """
    path = machine.run_dir / "best.pt"
    state = checkpoint.load_checkpoint(path)
    config = with_machine(state["config"], machine, str(path))
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    network = build_network(config.backbone, config.image_size, config.embedding_dim)
    checkpoint.load_weights(network, state, path)
    network = network.to(device)

    table = checkpoint.read_split(config.run_dir)
    found = find_images(config.train_image)
    missing = [name for name in table["image_name"] if name not in found]
    if missing:
        raise InputError(
            f"train_image {config.train_image} lacks {len(missing):,} images of the run, {missing[0]} for one: "
            "point it at the folder that the run was trained on"
        )
    cache = build_cache(
        {name: found[name] for name in sorted(table["image_name"])},
        config.image_size,
        config.cache_dir,
        config.workers,
    )
    refuse_unreadable(cache.errors, config.skip_unreadable)
    table = dataset.without_images(table, cache.errors)
    train = table[table["part"] == "train"]
    feed = Feed(cache, device)
    references = embed_images(network, feed, cache.rows(train["image_name"]), dtype)
    return Run(config, network, device, dtype, table, feed, references, train["label"].to_numpy())


def load_labelled(
    folder: Path, labels: Path, config: Config, device: torch.device
) -> tuple[pd.DataFrame, Feed]:
    """Return the images of another labelled folder, those with both file and label, and their feed."""
    table = dataset.read_labels(labels, "evaluate_labels")
    found = find_images(folder, "evaluate_image")
    known = table[table["image_name"].isin(list(found))].reset_index(drop=True)
    print(
        f"{len(known):,} images of {folder} with labels; labels without an image: {len(table) - len(known):,}; "
        f"images without a label: {len(found) - len(known):,}"
    )
    if known.empty:
        raise InputError(f"evaluate_image {folder} has none of the images that {labels} names")
    paths = {name: found[name] for name in sorted(known["image_name"])}
    cache = build_cache(paths, config.image_size, config.cache_dir, config.workers)
    refuse_unreadable(cache.errors, config.skip_unreadable)
    readable = known[~known["image_name"].isin(list(cache.errors))]
    if readable.empty:
        raise InputError(f"evaluate_image {folder} has no image that can be read")
    return readable, Feed(cache, device)


def score_images(run: Run, feed: Feed, names: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return scores (N,), large = melanoma, and embeddings (N, D) of named images.

    Raises
    ------
    InputError : a score is not finite; the message names the images
    """
    embeddings = embed_images(run.network, feed, feed.cache.rows(names), run.dtype)
    scores = reference_score(embeddings, run.references, run.reference_labels)
    bad = names[~np.isfinite(scores)].tolist()
    if bad:
        raise InputError(
            f"{len(bad)} scores are not finite ({', '.join(bad[:5])}): the run is broken, train anew"
        )
    return scores, embeddings


# --- measure ---


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Return the figures as text; rates stand with their counts."""

    def show(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    counts = metrics["counts"]
    interval = metrics["auc_interval"]
    within = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, over patients)" if interval else ""
    return "\n".join(
        [
            f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma; "
            f"threshold {metrics['threshold']:.4f} chosen on validation",
            f"  AUC                {show(metrics['auc'])}{within}",
            f"  average precision  {show(metrics['average_precision'])}",
            f"  sensitivity        {show(metrics['sensitivity'])} ({counts['tp']} of "
            f"{counts['tp'] + counts['fn']} melanomas found)",
            f"  specificity        {show(metrics['specificity'])} ({counts['tn']} of "
            f"{counts['tn'] + counts['fp']} benign left alone)",
            f"  precision          {show(metrics['precision'])}",
            f"  F1                 {show(metrics['f1'])}",
            f"  balanced accuracy  {show(metrics['balanced_accuracy'])}",
            f"  accuracy           {show(metrics['accuracy'])} (always benign: "
            f"{show(metrics['always_benign_accuracy'])})",
        ]
    )


# --- draw ---


def draw(
    labels: np.ndarray,
    scores: np.ndarray,
    embeddings: np.ndarray,
    metrics: dict[str, Any],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Return the figures by file name; those that need both classes, or more images, are left out."""
    what = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    drawn = {"Confusion_matrix.png": figures.confusion_matrix(metrics["counts"], f"Confusion matrix, {what}")}
    if metrics["auc"] is not None:
        drawn["ROC_curve.png"] = figures.roc(
            labels, scores, metrics["auc"], metrics["threshold"], f"ROC curve, {what}"
        )
    if len(labels) >= 10:
        kept = tsne_subset(labels, TSNE_IMAGES, rng)
        points = TSNE(perplexity=min(30, (len(kept) - 1) / 3), random_state=0).fit_transform(embeddings[kept])
        subset = f"t-SNE of the embeddings, {what}"
        if len(kept) < len(labels):
            subset = f"t-SNE of {len(kept):,} embeddings (every melanoma, random benign)\n{what}"
        drawn["t_SNE.png"] = figures.tsne_map(points, labels[kept], subset)
    return drawn


def tsne_subset(labels: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Return the rows to map, sorted: every melanoma, and random benign images up to `most` in all."""
    melanoma, benign = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    benign = rng.permutation(benign)[: max(most - len(melanoma), 0)]
    return np.sort(np.concatenate([melanoma, benign]))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Score lesions with a trained run and draw the figures. What was trained comes from the "
        "run's checkpoint; the flags below are this machine's.",
        allow_abbrev=False,
    )
    add_flags(parser, only_machine=True)
    parser.add_argument("--evaluate-image", type=Path, metavar="DIR", help="evaluate another labelled folder")
    parser.add_argument("--evaluate-labels", type=Path, metavar="CSV", help="labels of --evaluate-image")
    parser.add_argument(
        "--min-sensitivity",
        type=float,
        metavar="SHARE",
        help="threshold: the most specific that finds this share of validation's melanomas (default: Youden's J)",
    )
    parser.add_argument("--metrics-file", type=Path, metavar="FILE", help="write the metrics here")
    return parser


def run() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if (arguments.evaluate_image is None) != (arguments.evaluate_labels is None):
        parser.error("--evaluate-image and --evaluate-labels go together")
    if arguments.min_sensitivity is not None and not 0 < arguments.min_sensitivity <= 1:
        parser.error(f"--min-sensitivity is {arguments.min_sensitivity}: it must be above 0, at most 1")
    main(
        from_flags(arguments),
        arguments.evaluate_image,
        arguments.evaluate_labels,
        arguments.min_sensitivity,
        arguments.metrics_file,
    )


if __name__ == "__main__":
    run_script(run)
