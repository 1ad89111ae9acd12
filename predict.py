"""Score lesions with a trained run and draw the figures: `python predict.py` (paths: config.py, or flags).

Three layers that meet only in `main`: score (on the device) -> predictions.csv; measure (NumPy) -> metrics.json;
draw (arrays to figures) -> graph/*.png. References and threshold are the run's own; test images choose nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit
from sklearn.manifold import TSNE

import checkpoint
import dataset
import figures
from classify import CALIBRATIONS, SCORERS, Judge, Platt, best_scorer, score_all
from config import Config, InputError, add_flags, from_flags, run_script, with_machine
from device import choose_device, choose_precision, describe_device, keep_freed_memory
from feed import Feed, embed_images
from images import build_cache, find_images, refuse_unreadable
from metrics import auc_interval, evaluate
from modules import SiameseNetwork, network_of

TSNE_IMAGES = 3000  # more are thinned to every melanoma and as many benign as fill this number


@dataclass(frozen=True)
class Choices:
    """What the command line leaves to validation unless it is said: see the flags of these names."""

    min_sensitivity: float | None = None
    calibration: str = "platt"
    prevalence: float | None = None
    scorer: str | None = None
    views: int | None = None


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


@dataclass(frozen=True)
class Panel:
    """Runs with one split, which judge a lesion together: by the mean of their log odds.

    Each run scores in its own best way, chosen on validation, on a logistic curve of its own; the judge is fitted on
    the mean.
    """

    runs: list[Run]
    scorers: list[str]
    curves: list[Platt]
    judge: Judge


@dataclass(frozen=True)
class Scored:
    """Lesions and what a panel says of them: a table of image_name, patient_id, label, score, probability, threshold,
    predicted and fold, and the embeddings (N, D) of the panel's first run.
    """

    table: pd.DataFrame
    embeddings: np.ndarray


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


# --- score ---


def load_run(machine: Config, choices: Choices = Choices()) -> Run:
    """Load the best checkpoint of `machine.run_dir` and embed its references, the images of its training part.

    References are seen as they are, whatever the views of a lesion that is judged: they are many, and their number
    evens them out.

    Raises
    ------
    InputError : no run there, a checkpoint that does not fit, images of the run that are missing
    """
    path = machine.run_dir / "best.pt"
    state = checkpoint.load_checkpoint(path)
    config = with_machine(state["config"], machine, str(path))
    if choices.views is not None:
        config = replace(config, test_views=choices.views)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    network = network_of(config)
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
    references, _ = embed_images(network, feed, cache.rows(train["image_name"]), dtype)
    return Run(config, network, device, dtype, table, feed, references, train["label"].to_numpy())


def by_split(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that have one split, in the order in which they come."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if group[0].table.equals(run.table):
                group.append(run)
                break
        else:
            groups.append([run])
    return groups


def make_panel(runs: list[Run], choices: Choices = Choices()) -> Panel:
    """Choose each run's scorer and fit its curve, then the judge of all, on the validation part of their split."""
    validation = runs[0].table[runs[0].table["part"] == "validation"]
    labels = validation["label"].to_numpy()
    scorers, curves, log_odds = [], [], []
    for run in runs:
        scores, _ = score_images(run, run.feed, validation["image_name"])
        scorers.append(choices.scorer or best_scorer(labels, scores))
        if scorers[-1] not in scores:
            raise InputError(f"--scorer {scorers[-1]}: {run.config.run_dir} has only {', '.join(scores)}")
        curves.append(Platt.fit(labels, scores[scorers[-1]]))
        log_odds.append(curves[-1].log_odds(scores[scorers[-1]]))
    mean = np.mean(log_odds, axis=0)
    judge = Judge(labels, mean, choices.calibration, choices.prevalence, choices.min_sensitivity)
    return Panel(runs, scorers, curves, judge)


def score_part(panel: Panel, part: str = "test") -> Scored:
    """Return the judgement of the panel on a part of its split."""
    run = panel.runs[0]
    lesions = run.table[run.table["part"] == part]
    scores, embeddings = panel_score(panel, [own.feed for own in panel.runs], lesions["image_name"])
    probability = panel.judge.probability(scores)
    return Scored(
        judged(lesions, scores, probability, panel.judge.threshold).assign(fold=run.config.fold), embeddings
    )


def score_folder(panels: list[Panel], folder: Path, labels: Path) -> Scored:
    """Return the judgement of all panels, the mean of their log odds, on another labelled folder."""
    feeds: dict[int, Feed] = {}
    for run in (run for panel in panels for run in panel.runs):
        if run.config.image_size not in feeds:
            lesions, feeds[run.config.image_size] = load_labelled(folder, labels, run.config, run.device)
    log_odds, embeddings = [], []
    for panel in panels:
        own_feeds = [feeds[run.config.image_size] for run in panel.runs]
        scores, own = panel_score(panel, own_feeds, lesions["image_name"])
        log_odds.append(panel.judge.log_odds(scores))
        embeddings.append(own)
    score = np.mean(log_odds, axis=0)
    threshold = expit(np.mean([logit(panel.judge.threshold) for panel in panels]))
    return Scored(judged(lesions, score, expit(score), float(threshold)), embeddings[0])


def judged(
    lesions: pd.DataFrame, score: np.ndarray, probability: np.ndarray, threshold: float
) -> pd.DataFrame:
    """Return image_name, patient_id and label of lesions with what was found; scores, probabilities are (N,)."""
    return lesions[["image_name", "patient_id", "label"]].assign(
        score=score,
        probability=probability,
        threshold=threshold,
        predicted=(probability >= threshold).astype(int),
    )


def refuse_overlap(parts: list[Scored]) -> None:
    """Refuse to pool test parts that share an image: it would count twice.

    Raises
    ------
    InputError
    """
    names = pd.concat([part.table["image_name"] for part in parts])
    if names.duplicated().any():
        raise InputError(
            f"the runs have different splits, whose test parts share {int(names.duplicated().sum()):,} images: pool "
            "the folds of one --split-seed, or average runs of one fold"
        )


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


def panel_score(panel: Panel, feeds: list[Feed], names: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean log odds (N,) of the panel's runs, each with its feed, and the first run's embeddings (N, D)."""
    log_odds, embeddings = [], []
    for run, feed, scorer, curve in zip(panel.runs, feeds, panel.scorers, panel.curves, strict=True):
        scores, own = score_images(run, feed, names)
        log_odds.append(curve.log_odds(scores[scorer]))
        embeddings.append(own)
    return np.mean(log_odds, axis=0), embeddings[0]


def score_images(run: Run, feed: Feed, names: pd.Series) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the scores (N,), large = melanoma, by way of scoring, and embeddings (N, D) of named images.

    Raises
    ------
    InputError : a score is not finite; the message names the images
    """
    rows = feed.cache.rows(names)
    embeddings, logits = embed_images(run.network, feed, rows, run.dtype, run.config.test_views)
    bad = names[~np.isfinite(embeddings).all(axis=1)].tolist()
    if bad:
        raise InputError(
            f"{len(bad)} scores are not finite ({', '.join(bad[:5])}): the run is broken, train anew"
        )
    head = logits if run.network.head is not None else None
    return score_all(embeddings, head, run.references, run.reference_labels), embeddings


# --- measure ---


def measure(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the figures of judged lesions, as `judged` gives them."""
    labels, probability = table["label"].to_numpy(), table["probability"].to_numpy()
    interval = auc_interval(labels, probability, table["patient_id"].to_numpy(), rng)
    return {**evaluate(labels, probability, table["threshold"].to_numpy()), "auc_interval": interval}


def describe_run(panel: Panel, index: int) -> dict[str, Any]:
    """Return what was chosen on validation for one run of a panel, as JSON values."""
    run = panel.runs[index]
    return {
        "run_dir": str(run.config.run_dir),
        "fold": run.config.fold,
        "seed": run.config.seed,
        "scorer": panel.scorers[index],
        "test_views": run.config.test_views,
        "threshold": panel.judge.threshold,
    }


def describe_panel(panel: Panel) -> str:
    """Return what was chosen on validation as a line."""
    runs = ", ".join(
        f"{run.config.run_dir} ({scorer})" for run, scorer in zip(panel.runs, panel.scorers, strict=True)
    )
    return (
        f"fold {panel.runs[0].config.fold}: {runs}; melanoma from probability {panel.judge.threshold:.3f} on"
    )


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
