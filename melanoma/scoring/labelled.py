"""Ensembles judge labelled lesions that they have not learnt from: a part of their own split, or another folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from melanoma.common.errors import InputError, printable
from melanoma.data.cache import ImageCache
from melanoma.data.decoding import find_images
from melanoma.data.feed import Feed
from melanoma.data.labels import Labels
from melanoma.data.split import LESIONS, group_images
from melanoma.scoring.ensemble import (
    Decode,
    Ensemble,
    common_threshold,
    decode_all,
    ensemble_score,
    known_pictures,
    runs_of,
    score_together,
)

Find = Callable[[Sequence[str], set[str]], Mapping[str, Path]]  # sources and image names: the image files by name


@dataclass(frozen=True)
class Scored:
    """Judged lesions. Of several folds pooled, the embeddings are those of the first rows, the first fold's lesions."""

    table: pd.DataFrame  # names, ids, label, score, probability, threshold, predicted and fold: see `judged`
    embeddings: np.ndarray  # (N, D), of the ensemble's first run
    cache: ImageCache  # has their pixels
    notes: Sequence[str] = ()  # what a reader must know of how the lesions were taken, a sentence each


def score_part(ensembles: Sequence[Ensemble], find: Find, decode: Decode, part: str = "test") -> Scored:
    """Return the judgement of each ensemble on a part of its own split, pooled.

    Parameters
    ----------
    find : gives the files of the images
    decode : see `ensemble.Decode`

    Raises
    ------
    InputError : the parts of two ensembles share an image, which would count twice; runs of an ensemble have
        different parts
    """
    if part != "test" and any(ensemble.mixed for ensemble in ensembles):
        raise InputError(
            "--split-part validation: the runs have one test part but other validation parts: name one run"
        )
    parts = [ensemble.runs[0].part(part) for ensemble in ensembles]
    lesions = pd.concat(parts)
    shared = int(lesions["image_name"].duplicated().sum())
    if shared:
        raise InputError(
            f"the runs have different splits, whose {part} parts share {shared:,} images: pool the folds of one "
            "--split-seed, or average runs of one fold"
        )
    paths = find(ensembles[0].runs[0].sources, set(lesions["image_name"]))
    feeds, errors = decode_all(ensembles, {name: paths[name] for name in sorted(lesions["image_name"])}, decode)
    cache = feeds[ensembles[0].runs[0].image_size].cache
    there = lesions[lesions["image_name"].isin(list(cache.sources))]
    others = there[there["bytes"] != [cache.sources[name].bytes for name in there["image_name"]]]["image_name"]
    notes = []
    if len(others):
        notes.append(
            f"{len(others):,} images, {others.iloc[0]} for one, are not the files that the run was split with: they "
            "have another size in bytes"
        )
    tables, embeddings = [], []
    for ensemble, own in zip(ensembles, parts, strict=True):
        readable, judge = own[~own["image_name"].isin(list(errors))], ensemble.judge
        scores, found = ensemble_score(ensemble, readable["image_name"], feeds)
        table = judged(readable, scores, judge.probability(scores), judge.threshold, judge.specific_threshold)
        tables.append(table.assign(fold=ensemble.runs[0].fold))
        embeddings.append(found)
    return Scored(pd.concat(tables, ignore_index=True), embeddings[0], cache, notes)


def score_folder(
    ensembles: list[Ensemble], folder: Path, labels: Labels, decode: Decode, duplicates: Sequence[tuple[str, str]] = ()
) -> Scored:
    """Return the judgement of all ensembles, the mean of their log odds, on another labelled folder.

    duplicates : pairs of names of one picture, of which the runs may know the other

    Raises
    ------
    InputError : no image there that has a label, can be read, and is new to all runs
    """
    table, found = labels.table, find_images(folder, "evaluate_image")
    lesions = table[table["image_name"].isin(list(found))].reset_index(drop=True)
    print(
        f"{len(lesions):,} images of {printable(str(folder))} with labels ({labels.layout}); "
        f"labels without an image: {len(table) - len(lesions):,}; "
        f"images without a label: {len(found) - len(lesions):,}"
    )
    if lesions.empty:
        there = f"there is {next(iter(found.values())).name}" if found else "it has no image"
        raise InputError(
            f"evaluate_image {folder} has none of the images that evaluate_labels names: looked for "
            f"{table['image_name'].iloc[0] if len(table) else 'nothing'}, {there}"
        )
    feeds, errors = decode_all(ensembles, {name: found[name] for name in sorted(lesions["image_name"])}, decode)
    lesions = lesions[~lesions["image_name"].isin(list(errors))]
    if lesions.empty:
        raise InputError(f"evaluate_image {folder} has no image that can be read")
    lesions, notes = new_to_all(ensembles, lesions, feeds, duplicates)
    if lesions.empty:
        raise InputError(f"evaluate_image {folder} has nothing to judge: {notes[0]}")
    pictures = next(iter(feeds.values())).cache.hashes(lesions["image_name"])
    lesions = lesions.assign(source=folder.name, group=group_images(lesions, labels.groups, pictures))
    score, embeddings = score_together(ensembles, feeds, lesions["image_name"])
    judges = [ensemble.judge for ensemble in ensembles]
    thresholds = ([judge.threshold for judge in judges], [judge.specific_threshold for judge in judges])
    table = judged(lesions, score, expit(score), *map(common_threshold, thresholds))
    return Scored(table, embeddings, feeds[ensembles[0].runs[0].image_size].cache, notes)


def judged(
    lesions: pd.DataFrame, score: np.ndarray, probability: np.ndarray, threshold: float, specific_threshold: float
) -> pd.DataFrame:
    """Return names, ids and labels of lesions with what was found; scores, probabilities are (N,)."""
    return lesions[LESIONS].assign(
        score=score,
        probability=probability,
        threshold=threshold,
        predicted=(probability >= threshold).astype(int),
        specific_threshold=specific_threshold,
    )


def new_to_all(
    ensembles: list[Ensemble],
    lesions: pd.DataFrame,
    feeds: Mapping[int, Feed],
    duplicates: Sequence[tuple[str, str]] = (),
) -> tuple[pd.DataFrame, list[str]]:
    """Leave out the lesions that a run has learnt from or been chosen by, and say so.

    They are recognized by their pixels, by image_name, or by a list of duplicates, pairs of names. Other images of
    patients that a run knows are kept: two data sets may give one number to two patients.

    Returns
    -------
    the lesions that are left; what was left out, and how many of the others are of such patients, a sentence each
    """
    runs = runs_of(ensembles)
    tables = [run.lesions.query("part != 'test'") for run in runs if run.lesions is not None]
    patients = {patient for own in tables for patient in own["patient_id"]}
    stored = [pair for own in tables for pair in zip(own["image_name"], own["source"], strict=True)]
    names = {text for name, source in stored for text in (name, name.removeprefix(f"{source}:"))}
    pictures = known_pictures(ensembles, feeds, lesions["image_name"].tolist())
    names |= {other for pair in duplicates for other in pair if names & set(pair)}
    seen = pictures | lesions["image_name"].isin(names)
    left = lesions[~seen].reset_index(drop=True)
    akin = int(left["patient_id"].isin(patients - {""}).sum())
    notes = []
    if seen.any():
        first = lesions.loc[seen, "image_name"].iloc[0]
        notes.append(
            f"{int(seen.sum()):,} images are left out, since a run was trained on them or chosen by them: "
            f"{int(pictures.sum()):,} by their pixels, the others by their names ({printable(first)} is one)"
        )
    if len(tables) < len(runs):
        notes.append(
            "A slim model knows its training images by their pixels alone: copies that were saved anew are kept"
        )
    if akin:
        notes.append(f"{akin:,} images are of patients, by patient_id, that a run has other images of")
    return left, notes
