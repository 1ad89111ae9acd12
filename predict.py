"""Score lesions with a trained run and draw the figures: `python predict.py` (paths: config.py, or flags).

Three layers that meet only in `main`: score (panel.py, on the device) -> predictions.csv; measure (NumPy) ->
metrics.json; draw (arrays to figures) -> graph/*.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.manifold import TSNE

import checkpoint
import figures
from bootstrap import auc_interval
from classify import CALIBRATIONS, SCORERS
from config import Config, add_flags, from_flags, run_script
from device import describe_device, keep_freed_memory
from metrics import evaluate
from panel import (
    Choices,
    Scored,
    by_split,
    describe_panel,
    describe_run,
    load_run,
    make_panel,
    refuse_overlap,
    score_folder,
    score_part,
)

TSNE_IMAGES = 3000  # more are thinned to every melanoma and as many benign as fill this number


def main(
    machine: Config,
    run_dirs: Sequence[Path] = (),
    evaluate_image: Path | None = None,
    evaluate_labels: Path | None = None,
    choices: Choices = Choices(),
    metrics_file: Path | None = None,
) -> dict[str, Any]:
    """Evaluate runs on their test parts, or on another labelled folder; return the metrics.

    Runs with one split are averaged; runs with different splits, the folds of a cross-validation, are pooled: each
    judges its own test part. `run_dirs` defaults to the machine's one.
    """
    keep_freed_memory()
    runs = [load_run(replace(machine, run_dir=path), choices) for path in run_dirs or [machine.run_dir]]
    print(f"predicting on {describe_device(runs[0].device, runs[0].dtype)}")
    panels = [make_panel(members, choices) for members in by_split(runs)]
    for panel in panels:
        print(describe_panel(panel))

    if evaluate_image is None or evaluate_labels is None:
        name, prefix = "test", ""
        parts = [score_part(panel) for panel in panels]
        refuse_overlap(parts)
        scored = Scored(pd.concat([part.table for part in parts], ignore_index=True), parts[0].embeddings)
    else:
        name, prefix = evaluate_image.name, checkpoint.EVALUATED
        scored = score_folder(panels, evaluate_image, evaluate_labels)
    out = machine.graph_dir if len(runs) > 1 else runs[0].config.run_dir
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{prefix}predictions.csv"
    checkpoint.replace_file(path, lambda temporary: scored.table.to_csv(temporary, index=False))

    rng = np.random.default_rng([runs[0].config.seed, 0])
    metrics = {
        "set": name,
        "runs": [describe_run(panel, i) for panel in panels for i in range(len(panel.runs))],
    }
    metrics |= measure(scored.table, rng)
    metrics_path = metrics_file or out / f"{prefix}metrics.json"
    metrics_path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(metrics_path, metrics)
    print(describe_metrics(metrics))

    drawn = draw(scored, metrics, rng)
    for file_name, figure in drawn.items():
        figures.save_figure(figure, machine.graph_dir / file_name)
    print(f"wrote {path}, {metrics_path} and {', '.join(drawn)} in {machine.graph_dir}")
    return metrics


# --- measure ---


def measure(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the figures of judged lesions, as `judged` gives them."""
    labels, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    interval = auc_interval(labels, probability, table["patient_id"].to_numpy(), rng)
    return {**evaluate(labels, probability, table["threshold"].to_numpy()), "auc_interval": interval}


def describe_metrics(metrics: dict[str, Any]) -> str:
    """Return the figures as text; rates stand with their counts."""

    def show(value: float | None) -> str:
        return "n/a" if value is None else f"{value:.3f}"

    at = metrics["sensitivity_at_specificity"]
    counts = metrics["counts"]
    interval = metrics["auc_interval"]
    within = f" (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, over patients)" if interval else ""
    return "\n".join(
        [
            f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma",
            f"  AUC                {show(metrics['auc'])}{within}",
            f"  average precision  {show(metrics['average_precision'])}",
            "  sensitivity at     "
            + ", ".join(f"{show(value)} ({share} specificity)" for share, value in at.items()),
            f"  calibration error  {show(metrics['ece'])} (ECE), Brier score {show(metrics['brier'])}",
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


def draw(scored: Scored, metrics: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Return the figures by file name; those that need both classes, or more images, are left out."""
    labels, probability = (scored.table[name].to_numpy() for name in ("label", "probability"))
    what = f"{metrics['set']}: {metrics['n']:,} images, {metrics['n_melanoma']:,} melanoma"
    drawn = {"Confusion_matrix.png": figures.confusion_matrix(metrics["counts"], f"Confusion matrix, {what}")}
    if metrics["auc"] is not None:
        drawn["ROC_curve.png"] = figures.roc(
            labels,
            probability,
            metrics["auc"],
            (1 - metrics["specificity"], metrics["sensitivity"]),
            f"ROC curve, {what}",
        )
    embeddings, labels = scored.embeddings, labels[: len(scored.embeddings)]  # of several folds, the first
    if len(labels) >= 10:
        kept = tsne_subset(labels, TSNE_IMAGES, rng)
        points = TSNE(perplexity=min(30, (len(kept) - 1) / 3), random_state=0).fit_transform(embeddings[kept])
        title = (
            f"t-SNE of the embeddings, {metrics['set']}: {len(labels):,} images, {labels.sum():,} melanoma"
        )
        if len(kept) < len(labels):
            title = f"t-SNE of {len(kept):,} embeddings (every melanoma, random benign)\n{what}"
        drawn["t_SNE.png"] = figures.tsne_map(points, labels[kept], title)
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
        conflict_handler="resolve",  # --run-dir takes several here
    )
    add_flags(parser, only_machine=True)
    parser.add_argument(
        "--run-dir",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="one run, or several: runs of one split are averaged, the folds of a cross-validation pooled "
        f"(default: {Config().run_dir}; the results of several go to graph_dir)",
    )
    parser.add_argument("--evaluate-image", type=Path, metavar="DIR", help="evaluate another labelled folder")
    parser.add_argument("--evaluate-labels", type=Path, metavar="CSV", help="labels of --evaluate-image")
    parser.add_argument(
        "--min-sensitivity",
        type=partial(_share, most=1.0),
        metavar="SHARE",
        help="threshold: the most specific that finds this share of validation's melanomas (default: the one whose "
        "smaller of sensitivity and specificity is largest)",
    )
    parser.add_argument(
        "--calibration",
        choices=CALIBRATIONS,
        default="platt",
        help="how scores become probabilities (default: platt)",
    )
    parser.add_argument(
        "--prevalence",
        type=_share,
        metavar="SHARE",
        help="share of melanomas where the probabilities shall hold, 0.0176 in ISIC 2020 (default: validation's)",
    )
    parser.add_argument(
        "--scorer", choices=SCORERS, help="how embeddings are scored (default: best on validation)"
    )
    parser.add_argument(
        "--test-views",
        dest="views",
        type=int,
        choices=(1, 8),
        help="views of a lesion (default: the run's own)",
    )
    parser.add_argument("--metrics-file", type=Path, metavar="FILE", help="write the metrics here")
    return parser


def _share(text: str, most: float = 0.999) -> float:
    value = float(text)
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"{text}: it must be above 0, at most {most:g}")
    return value


def run() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if (arguments.evaluate_image is None) != (arguments.evaluate_labels is None):
        parser.error("--evaluate-image and --evaluate-labels go together")
    run_dirs = vars(arguments).pop("run_dir", ())
    main(
        from_flags(arguments),
        run_dirs,
        arguments.evaluate_image,
        arguments.evaluate_labels,
        Choices(**{item.name: getattr(arguments, item.name) for item in fields(Choices)}),
        arguments.metrics_file,
    )


if __name__ == "__main__":
    run_script(run)
