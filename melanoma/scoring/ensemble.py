"""Trained runs and ensembles of them: each run embeds and scores images, an ensemble turns scores into probabilities.

References, calibration and threshold are the runs' own, from their training and validation parts: the images
that are judged choose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from scipy.special import expit, logit

from melanoma.common.errors import InputError
from melanoma.data.cache import ImageCache
from melanoma.data.feed import Feed
from melanoma.data.split import LESIONS
from melanoma.scoring.embedding import embed_images
from melanoma.scoring.scores import Judge, Platt, nearest_references, score_all, usual_scorer

Decode = Callable[[Mapping[str, Path], int], ImageCache]  # image files by name, and their side in pixels

BENIGN_PICTURES = 4000  # references that a run keeps a picture of: all melanomas, and this many of the others
PICTURE_SIDE = 160  # pixels, at most


@dataclass(frozen=True)
class Choices:
    """How lesions are judged; None leaves each to its default."""

    min_sensitivity: float | None = None
    prevalence: float | None = None
    scorer: str | None = None

    def __post_init__(self) -> None:
        for name, most in (("min_sensitivity", 1.0), ("prevalence", 0.999)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= most:
                raise InputError(f"{name} is {value}: it must be above 0, at most {most:g}")


@dataclass(frozen=True)
class Run:
    """A trained run: its network, its references, and its scores of validation. It needs no image but those it judges.

    The index of `validation` counts the lesions of the split: runs with one test part share it.
    """

    name: str  # its folder
    settings: Mapping[str, Any]  # of the experiment, as JSON values
    validation_fold: int | None
    epoch: int  # whose weights are used, the best on validation
    log: Sequence[Mapping[str, Any]]  # of the training, an entry for each epoch
    starts: Sequence[Mapping[str, Any]]  # when and how it was started and resumed
    data: str  # the folders that it was trained on
    synthetic: bool  # they hold generated images
    network: Any  # Siamese network that returns embeddings (B, D) and logits (B,)
    dtype: torch.dtype  # of its matrix arithmetic
    references: np.ndarray  # embeddings (R, D) of the training part
    reference_labels: np.ndarray  # (R,)
    validation: pd.DataFrame  # label, distance to the nearest reference, and the score of each way of scoring
    curves: Mapping[str, Platt]  # fitted to these scores, by way of scoring
    known: frozenset[str]  # hashes of the pictures that it has learnt from or been chosen by
    tested: str  # hash of the lesions, and of which of them are tested
    lesions: pd.DataFrame | None = None  # LESIONS, part, and what controls and subgroups need; a slim model has none
    pictures: Mapping[int, bytes] = field(default_factory=dict)  # JPEG files of references, by row

    @property
    def fold(self) -> int | None:
        """The fold that tests, if one does."""
        fold: int | None = self.settings["fold"]
        return fold

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the network takes."""
        return int(self.settings["image_size"])

    @property
    def test_views(self) -> int:
        """Views in which a lesion is scored."""
        return int(self.settings["test_views"])

    @property
    def fingerprint(self) -> str:
        """What tells the run from others: a hash of its references; those of a slim file are rounded."""
        return sha256(self.references.tobytes()).hexdigest()[:16]

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    def part(self, name: str) -> pd.DataFrame:
        """Return the lesions of a split part.

        Raises
        ------
        InputError : a slim model, which has none; no fold tests
        """
        if self.lesions is None:
            raise InputError(
                f"{self.name} is a slim model, which does not know its {name} part: pass --evaluate-image and "
                "--evaluate-labels, or photos"
            )
        own = self.lesions[self.lesions["part"] == name]
        if own.empty:
            raise InputError(
                f"{self.name} has no {name} part (--fold none leaves none to test): evaluate its validation part, "
                "or other images"
            )
        return own

    @property
    def sources(self) -> list[str]:
        """The sources of the lesions; a slim model knows none."""
        return [] if self.lesions is None else self.lesions["source"].unique().tolist()

    @property
    def reference_names(self) -> np.ndarray:
        """The image names of the references, (R,); blank in a slim model."""
        if self.lesions is None:
            return np.full(len(self.references), "", object)
        return self.part("train")["image_name"].to_numpy(object)

    def picture(self, row: int) -> np.ndarray:
        """Return the picture of a reference that has one, uint8 (S, S, 3)."""
        return np.asarray(Image.open(BytesIO(self.pictures[row]), formats=["JPEG"]).convert("RGB"))


@dataclass(frozen=True)
class Ensemble:
    """Runs with one test part, which judge a lesion together: by the mean of their log odds.

    Each run scores in its usual way (`usual_scorer`), on a logistic curve of its own. Where other folds validate in
    other runs, the judge is fitted on all of their images, each judged by the runs that it validates: no run judges
    images it has learnt from. Such a score is of one run or a few, that of a new lesion the mean of all (`mixed`):
    where runs differ by chance its probability comes out too moderate, which the calibration slope shows.
    """

    runs: list[Run]
    scorers: list[str]
    judge: Judge
    mixed: bool  # some validation images are judged by a part of the runs

    @property
    def lesions(self) -> pd.DataFrame | None:
        """The split as the ensemble has it: the runs' common test part, and as train what any of them learnt from."""
        tables = [run.lesions for run in self.runs if run.lesions is not None]
        if len(tables) < len(self.runs):
            return None
        learnt = np.logical_or.reduce([table["part"] == "train" for table in tables])
        return tables[0].assign(part=tables[0]["part"].mask(learnt, "train"))

    @property
    def fold_name(self) -> str:
        """The fold that tests, in words."""
        fold = self.runs[0].fold
        return "no fold tested" if fold is None else f"fold {fold}"

    @property
    def learnt(self) -> np.ndarray:
        """The labels, (N,), of the images that the runs learnt from; of slim models, those of the first run."""
        lesions = self.lesions
        return (
            self.runs[0].reference_labels if lesions is None else lesions.query("part == 'train'")["label"].to_numpy()
        )


def runs_of(ensembles: Sequence[Ensemble]) -> list[Run]:
    """Return the runs of all ensembles, in their order."""
    return [run for ensemble in ensembles for run in ensemble.runs]


def by_test_part(runs: Sequence[Run]) -> list[list[Run]]:
    """Group the runs that have one test part of the same lesions, in the order in which they come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.tested, []).append(run)
    return list(groups.values())


def make_run(network: Any, feed: Feed, lesions: pd.DataFrame, dtype: torch.dtype, **about: Any) -> Run:
    """Return a run: embed its references, the training part, and score its validation part.

    References are embedded in one view, whatever the views of a lesion that is judged: they are many, and their number
    evens out the views.

    Parameters
    ----------
    network, dtype : see `Run`
    feed : of the images of training and validation part, on the device of the network
    lesions : see `Run`
    about : name, settings, validation_fold, epoch, log, starts, data, synthetic, as in `Run`
    """
    train, validation = (lesions[lesions["part"] == part] for part in ("train", "validation"))
    labels, rows = train["label"].to_numpy(), feed.cache.rows(train["image_name"])
    references, _ = embed_images(network, feed, rows, dtype)
    benign = np.random.default_rng(0).permutation(np.flatnonzero(labels == 0))[:BENIGN_PICTURES]
    pictured = np.concatenate([np.flatnonzero(labels == 1), benign]).tolist()
    run = Run(
        network=network,
        dtype=dtype,
        references=references,
        reference_labels=labels,
        validation=pd.DataFrame(),
        curves={},
        known=frozenset(feed.cache.hashes(pd.concat([train, validation])["image_name"])),
        tested=sha256(lesions[LESIONS].assign(tested=lesions["part"] == "test").to_csv().encode()).hexdigest(),
        lesions=lesions,
        pictures={row: _jpeg(feed.cache.pixels[rows[row]]) for row in pictured},
        **about,
    )
    scores, embeddings = score_images(run, feed, validation["image_name"])
    distances, _ = nearest_references(embeddings, references, 1)
    found = pd.DataFrame({"label": validation["label"], "nearest_distance": distances[:, 0], **scores})
    truth = found["label"].to_numpy()
    return replace(run, validation=found, curves={name: Platt.fit(truth, own) for name, own in scores.items()})


def _jpeg(pixels: np.ndarray) -> bytes:
    """Return a small picture of an image, uint8 (S, S, 3), as a JPEG file."""
    image, buffer = Image.fromarray(pixels), BytesIO()
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def make_ensemble(runs: list[Run], choices: Choices = Choices()) -> Ensemble:
    """Return runs of one test part with a judge, which is fitted on the validation parts of all."""
    scorers, log_odds = [], []
    for run in runs:
        scorer = choices.scorer or usual_scorer(run.network.head is not None)
        if scorer not in run.curves:
            raise InputError(f"--scorer {scorer}: {run.name} has only {', '.join(run.curves)}")
        scorers.append(scorer)
        log_odds.append(pd.Series(run.curves[scorer].log_odds(run.validation[scorer].to_numpy()), run.validation.index))
    by_run = pd.concat(log_odds, axis=1).sort_index()
    mean = by_run.mean(axis=1)  # of the runs that an image validates
    known = pd.concat([run.validation["label"] for run in runs])
    labels = known[~known.index.duplicated()][mean.index].to_numpy()
    one = len(runs) == 1
    judge = Judge(labels, mean.to_numpy(), choices.prevalence, choices.min_sensitivity, calibrated=one)
    return Ensemble(runs, scorers, judge, bool(by_run.isna().any(axis=None)))


def ensemble_notes(ensembles: Sequence[Ensemble]) -> list[str]:
    """Return what a reader must know of how the runs judge and were split, a sentence each."""
    notes = []
    if any(ensemble.mixed for ensemble in ensembles):
        notes.append(
            "The runs validate on different folds: curve and threshold rest on validation images that some of the runs "
            "judge, the lesions are judged by all, so probabilities may be too moderate (see the calibration slope)"
        )
    for ensemble in ensembles:
        lesions = ensemble.lesions
        if lesions is None:
            continue
        train, test = (set(lesions.loc[lesions["part"] == part, "group"]) for part in ("train", "test"))
        sides = len(train & test)
        if sides:
            notes.append(f"{sides:,} patients (groups) have images in training and in test: figures are too good")
    return notes


def known_pictures(ensembles: Sequence[Ensemble], feeds: Mapping[int, Feed], names: Sequence[str]) -> np.ndarray:
    """Return whether a run has learnt from, or been chosen by, an image with the pixels of a named one, bool (N,).

    feeds : of the named images, by their side in pixels
    """
    known = np.zeros(len(names), bool)
    for run in runs_of(ensembles):
        hashes = feeds[run.image_size].cache.hashes(names)
        known |= np.array([picture in run.known for picture in hashes], bool)
    return known


def decode_all(
    ensembles: Sequence[Ensemble], paths: Mapping[str, Any], decode: Decode
) -> tuple[dict[int, Feed], dict[str, str]]:
    """Decode image files, by name, at each side in pixels that a run needs.

    Returns
    -------
    feeds by side; the error of each image that cannot be read, by its name
    """
    sizes = dict.fromkeys(run.image_size for run in runs_of(ensembles))
    feeds = {size: Feed(decode(paths, size), ensembles[0].runs[0].device) for size in sizes}
    return feeds, {name: error for feed in feeds.values() for name, error in feed.cache.errors.items()}


def score_together(
    ensembles: Sequence[Ensemble], feeds: Mapping[int, Feed], names: pd.Series
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of all ensembles' log odds of melanoma, (N,), and the first run's embeddings (N, D).

    feeds : of the named images, by their side in pixels
    """
    log_odds, embeddings = [], []
    for ensemble in ensembles:
        scores, own = ensemble_score(ensemble, names, feeds)
        log_odds.append(ensemble.judge.log_odds(scores))
        embeddings.append(own)
    return np.mean(log_odds, axis=0), embeddings[0]


def common_threshold(thresholds: Sequence[float]) -> float:
    """Return the threshold of several ensembles together, a probability: the mean of theirs in log odds."""
    return float(expit(np.mean(logit(thresholds))))


def ensemble_score(ensemble: Ensemble, names: pd.Series, feeds: Mapping[int, Feed]) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean log odds (N,) of the runs, and the first run's embeddings (N, D).

    feeds : of the named images, by their side in pixels
    """
    log_odds, embeddings = [], []
    for run, scorer in zip(ensemble.runs, ensemble.scorers, strict=True):
        scores, own = score_images(run, feeds[run.image_size], names)
        log_odds.append(run.curves[scorer].log_odds(scores[scorer]))
        embeddings.append(own)
    return np.mean(log_odds, axis=0), embeddings[0]


def score_images(run: Run, feed: Feed, names: pd.Series) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the scores (N,), large = melanoma, by way of scoring, and embeddings (N, D) of named images.

    Raises
    ------
    InputError : a score is not finite
    """
    embeddings, logits = embed_images(run.network, feed, feed.cache.rows(names), run.dtype, run.test_views)
    if not np.isfinite(embeddings).all():
        raise InputError(f"scores of {run.name} are not finite: the run is broken, train again")
    head = None if run.network.head is None else logits
    return score_all(embeddings, head, run.references, run.reference_labels), embeddings


def describe_runs(ensembles: Sequence[Ensemble]) -> list[dict[str, Any]]:
    """Return each run with what was chosen for it on validation, as JSON values."""
    return [
        {
            "run_dir": run.name,
            "fingerprint": run.fingerprint,
            "fold": run.fold,
            "validation_fold": run.validation_fold,
            "seed": run.settings["seed"],
            "epoch": run.epoch,
            "scorer": scorer,
            "test_views": run.test_views,
            "threshold": ensemble.judge.threshold,
        }
        for ensemble in ensembles
        for run, scorer in zip(ensemble.runs, ensemble.scorers, strict=True)
    ]


def describe_ensemble(ensemble: Ensemble) -> str:
    """Return what was chosen on validation as a line."""
    runs = ", ".join(f"{run.name} ({scorer})" for run, scorer in zip(ensemble.runs, ensemble.scorers, strict=True))
    return f"{ensemble.fold_name}: {runs}; melanoma from probability {ensemble.judge.threshold:.3f} on"
