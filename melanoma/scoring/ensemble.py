"""Trained runs judge lesions: each embeds and scores them, and a panel of runs turns scores into probabilities.

References, scorers, calibration and threshold are the runs' own, from their training and validation parts: the images
that are judged choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit, logit

import dataset
from config import Config, with_machine
from melanoma.common.device import choose_device, choose_precision, describe_device
from melanoma.common.errors import InputError, printable
from melanoma.data.cache import ImageCache, build_cache, refuse_unreadable
from melanoma.data.decoding import find_images
from melanoma.data.feed import Feed, embed_images
from melanoma.data.labels import read_labels
from melanoma.scoring.scores import Judge, Platt, best_scorer, score_all
from melanoma.training import run_folder
from modules import SiameseNetwork, network_of


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
    """A trained run on this machine: its settings, network, split and reference embeddings (R, D).

    `epoch` is the one whose weights are judged by, the best on validation.
    """

    config: Config
    epoch: int
    network: SiameseNetwork
    device: torch.device
    dtype: torch.dtype
    table: pd.DataFrame  # image_name, patient_id, label, part
    feed: Feed
    references: np.ndarray
    reference_labels: np.ndarray


@dataclass(frozen=True)
class Panel:
    """Runs with one test part, which judge a lesion together: by the mean of their log odds.

    Each run scores in its own best way, chosen on its validation part, on a logistic curve of its own. Where other
    folds validate in other runs, the judge is fitted on all of their images, each judged by the runs that it validates:
    no run speaks of what it has learnt from. Such a score is of one run or a few, that of a new lesion the mean of all:
    where runs differ by chance its probability comes out too moderate, which the calibration slope tells.
    `validation` holds the embeddings (V, D) of the first run's validation part, by that run.
    """

    runs: list[Run]
    scorers: list[str]
    curves: list[Platt]
    judge: Judge
    validation: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """The split as the panel has it: the runs' common test part, and as train what any of them learnt from."""
        table = self.runs[0].table
        learnt = np.logical_or.reduce([run.table["part"] == "train" for run in self.runs])
        return table.assign(part=table["part"].mask(learnt, "train"))


@dataclass(frozen=True)
class Scored:
    """Lesions and what a panel says of them: a table of image_name, patient_id, label, score, probability, threshold,
    predicted and fold, the embeddings (N, D) of the panel's first run, and the cache that has their pixels.

    Of several folds pooled, the embeddings are those of the first fold's lesions, the first rows of the table.
    `notes` says what a reader must know of how the lesions were taken, a sentence each.
    """

    table: pd.DataFrame
    embeddings: np.ndarray
    cache: ImageCache
    notes: Sequence[str] = ()


def load_run(machine: Config, choices: Choices = Choices()) -> Run:
    """Load the best checkpoint of `machine.run_dir` and embed its references, the images of its training part.

    References are seen as they are, whatever the views of a lesion that is judged: they are many, and their number
    evens them out.

    Raises
    ------
    InputError : no run there, a checkpoint that does not fit, images of the run that are missing
    """
    path = machine.run_dir / "best.pt"
    state = run_folder.load_checkpoint(path)
    with run_folder.fitting(path):
        epoch = int(run_folder.best_entry(state["log"])["epoch"])
    config = with_machine(state["config"], machine, str(path))
    if choices.views is not None:
        config = replace(config, test_views=choices.views)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    try:
        network = network_of(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    run_folder.load_weights(network, state, path)
    network = network.to(device)

    table = run_folder.read_split(config.run_dir)
    found = find_images(config.train_image, follow_links=config.follow_links)
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
    return Run(config, epoch, network, device, dtype, table, feed, references, train["label"].to_numpy())


def load_panels(machine: Config, run_dirs: Sequence[Path], choices: Choices = Choices()) -> list[Panel]:
    """Load runs, by default the machine's one, as a panel for each test part, and print what they are."""
    runs = [load_run(replace(machine, run_dir=path), choices) for path in run_dirs or [machine.run_dir]]
    print(f"predicting on {describe_device(runs[0].device, runs[0].dtype)}")
    panels = [make_panel(members, choices) for members in by_test_part(runs)]
    for panel in panels:
        print(describe_panel(panel))
    return panels


def runs_of(panels: Sequence[Panel]) -> list[Run]:
    """Return the runs of all panels, in their order."""
    return [run for panel in panels for run in panel.runs]


def by_test_part(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that have one test part of the same lesions, in the order in which they come."""
    tested = [run.table.assign(part=run.table["part"] == "test") for run in runs]
    groups: list[list[int]] = []
    for i, table in enumerate(tested):
        for group in groups:
            if tested[group[0]].equals(table):
                group.append(i)
                break
        else:
            groups.append([i])
    return [[runs[i] for i in group] for group in groups]


def make_panel(runs: list[Run], choices: Choices = Choices()) -> Panel:
    """Choose each run's scorer and fit its curve on its validation part, then the judge of all on those of all."""
    scorers, curves, log_odds, embeddings = [], [], [], []
    for run in runs:
        validation = run.table[run.table["part"] == "validation"]
        labels = validation["label"].to_numpy()
        scores, own = score_images(run, run.feed, validation["image_name"])
        embeddings.append(own)
        scorers.append(choices.scorer or best_scorer(labels, scores))
        if scorers[-1] not in scores:
            raise InputError(f"--scorer {scorers[-1]}: {run.config.run_dir} has only {', '.join(scores)}")
        curves.append(Platt.fit(labels, scores[scorers[-1]]))
        log_odds.append(pd.Series(curves[-1].log_odds(scores[scorers[-1]]), validation.index))
    mean = pd.concat(log_odds, axis=1).mean(axis=1).sort_index()  # of the runs that an image validates
    labels = runs[0].table["label"][mean.index].to_numpy()
    judge = Judge(labels, mean.to_numpy(), choices.calibration, choices.prevalence, choices.min_sensitivity)
    return Panel(runs, scorers, curves, judge, embeddings[0])


def score_part(panel: Panel, part: str = "test") -> Scored:
    """Return the judgement of the panel on a part of its split."""
    run = panel.runs[0]
    lesions = run.table[run.table["part"] == part]
    scores, embeddings = panel_score(panel, [own.feed for own in panel.runs], lesions["image_name"])
    probability = panel.judge.probability(scores)
    table = judged(lesions, scores, probability, panel.judge.threshold).assign(fold=run.config.fold)
    return Scored(table, embeddings, run.feed.cache)


def score_tests(panels: Sequence[Panel]) -> Scored:
    """Return the judgement of each panel on its own test part, pooled.

    Raises
    ------
    InputError : two test parts share an image
    """
    parts = [score_part(panel) for panel in panels]
    refuse_overlap(parts)
    table = pd.concat([part.table for part in parts], ignore_index=True)
    return Scored(table, parts[0].embeddings, parts[0].cache)


def score_folder(panels: list[Panel], folder: Path, labels: Path) -> Scored:
    """Return the judgement of all panels, the mean of their log odds, on another labelled folder.

    Raises
    ------
    InputError : no image there that has a label, can be read, and is new to all runs
    """
    feeds: dict[int, Feed] = {}
    for run in runs_of(panels):
        if run.config.image_size not in feeds:
            lesions, feeds[run.config.image_size] = load_labelled(folder, labels, run.config, run.device)
    lesions, notes = new_to_all(panels, lesions)
    if lesions.empty:
        raise InputError(f"evaluate_image {folder} has nothing to judge: {notes[0]}")
    score, embeddings = score_together(panels, feeds, lesions["image_name"])
    table = judged(lesions, score, expit(score), common_threshold(panels))
    return Scored(table, embeddings, feeds[panels[0].runs[0].config.image_size].cache, notes)


def new_to_all(panels: list[Panel], lesions: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the lesions that a run has learnt from or been chosen by, told by image_name, and say so.

    Other images of patients that a run knows are kept: two data sets may give one number to two patients.

    Returns
    -------
    the lesions that are left; what was left out, and how many of the others are of such patients, a sentence each
    """
    tables = [run.table[run.table["part"] != "test"] for run in runs_of(panels)]
    names, patients = (set(pd.concat([own[key] for own in tables])) for key in ("image_name", "patient_id"))
    seen = lesions["image_name"].isin(names)
    left = lesions[~seen].reset_index(drop=True)
    akin = int(left["patient_id"].isin(patients).sum())
    notes = []
    if seen.any():
        first = lesions.loc[seen, "image_name"].iloc[0]
        notes.append(
            f"{int(seen.sum()):,} images are left out, since a run was trained on images of these names or chosen by "
            f"them ({printable(first)} is one)"
        )
    if akin:
        notes.append(f"{akin:,} images are of patients, by patient_id, that a run has other images of")
    return left, notes


def score_together(
    panels: list[Panel], feeds: Mapping[int, Feed], names: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of all panels' log odds of melanoma, (N,), and the first run's embeddings (N, D).

    feeds : of the named images, by their side in pixels
    """
    log_odds, embeddings = [], []
    for panel in panels:
        own_feeds = [feeds[run.config.image_size] for run in panel.runs]
        scores, own = panel_score(panel, own_feeds, names)
        log_odds.append(panel.judge.log_odds(scores))
        embeddings.append(own)
    return np.mean(log_odds, axis=0), embeddings[0]


def common_threshold(panels: list[Panel]) -> float:
    """Return the probability from which on all panels together call a lesion melanoma: the mean in log odds."""
    return float(expit(np.mean([logit(panel.judge.threshold) for panel in panels])))


def image_sizes(panels: list[Panel]) -> list[int]:
    """Return the sides in pixels at which the runs see a lesion, each once."""
    return list(dict.fromkeys(run.config.image_size for run in runs_of(panels)))


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
    table = read_labels(labels, "evaluate_labels")
    found = find_images(folder, "evaluate_image", config.follow_links)
    known = table[table["image_name"].isin(list(found))].reset_index(drop=True)
    print(
        f"{len(known):,} images of {printable(str(folder))} with labels; "
        f"labels without an image: {len(table) - len(known):,}; "
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


def results_folder(panels: Sequence[Panel], machine: Config) -> Path:
    """Return where tables go: the run's folder, or that of the graphs if there are several runs."""
    runs = runs_of(panels)
    return machine.graph_dir if len(runs) > 1 else runs[0].config.run_dir


def describe_run(panel: Panel, index: int) -> dict[str, Any]:
    """Return what was chosen on validation for one run of a panel, as JSON values."""
    run = panel.runs[index]
    return {
        "run_dir": str(run.config.run_dir),
        "fold": run.config.fold,
        "validation_fold": dataset.validating_fold(run.config),
        "seed": run.config.seed,
        "epoch": run.epoch,
        "scorer": panel.scorers[index],
        "test_views": run.config.test_views,
        "threshold": panel.judge.threshold,
    }


def describe_method(panels: Sequence[Panel], choices: Choices) -> str:
    """Return how the runs were trained and how they judge, for a model card."""
    configs = [run.config for run in runs_of(panels)]
    losses = sorted({config.loss for config in configs if config.pair_weight})
    taught = [f"{' and '.join(losses)} loss"] if losses else []
    if any(config.head != "none" for config in configs):
        taught.append("a classification head")
    scorers = {scorer for panel in panels for scorer in panel.scorers}
    ways = ["where it lies among the training lesions"] if scorers - {"head"} else []
    if "head" in scorers:
        ways.append("the classification head's logit")
    several = ", and of several runs' log odds the mean is taken" if len(configs) > len(panels) else ""
    curve = "logistic curve" if choices.calibration == "platt" else "rising curve of steps (isotonic)"
    moved = "" if choices.prevalence is None else f", moved to a prevalence of {100 * choices.prevalence:g} %"
    return (
        "A Siamese network: one embedding network for both images of a pair, trained with "
        f"{' and '.join(taught)} so that melanomas and benign lesions lie apart. A lesion is judged by "
        f"{' or '.join(ways)}{several}; a {curve} fitted on validation makes the score a probability{moved}."
    )


def describe_panel(panel: Panel) -> str:
    """Return what was chosen on validation as a line."""
    runs = ", ".join(
        f"{run.config.run_dir} ({scorer})" for run, scorer in zip(panel.runs, panel.scorers, strict=True)
    )
    return (
        f"fold {panel.runs[0].config.fold}: {runs}; melanoma from probability {panel.judge.threshold:.3f} on"
    )
