"""Controls: what can be said of a lesion without looking at it. A network worth its while beats them.

Each control is learnt on the training part of a split and judges its test part, as a network does: nothing at all
(always benign), age, sex and site, the size of the image, the size of its file, its mean colour. `python controls.py`
prints them over the five test folds of the patient split; without the images, those that the CSV alone gives.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from threadpoolctl import threadpool_limits

import dataset
from config import Config, add_flags, from_flags
from melanoma.common.script import run_script
from melanoma.data.cache import ImageCache, build_cache, refuse_unreadable
from melanoma.evaluation.bootstrap import DRAWS, auc_interval, compare
from melanoma.evaluation.metrics import auc, average_precision, roc_counts, sensitivity_at

METADATA = ["age", "sex", "site"]
COLOURS = [f"{channel}_{what}" for channel in ("red", "green", "blue") for what in ("mean", "spread")]
# What each control knows of a lesion: columns of the label table or of `image_features`.
CONTROLS: dict[str, list[str]] = {
    "always benign": [],
    "metadata": METADATA,
    "image size": ["width", "height"],
    "file size": ["bytes"],
    "mean colour": COLOURS,
}
UNEVEN = 0.05  # difference of the classes' shares of blanks from which on it is said
SPECIFICITY = 0.9  # at which sensitivity is stated
BLOCK = 64  # images at a time


def fit_and_score(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Learn melanoma from some columns of one table and return the scores (N,) of another, large = melanoma.

    By gradient-boosted trees, which take blanks and categories as they are. A column that is blank throughout training
    is left out; without any column all scores are 0.

    Parameters
    ----------
    train, test : tables with the columns; train has `label` too
    """
    columns = [name for name in columns if (train[name].notna() & (train[name] != "")).any()]
    if not columns:
        return np.zeros(len(test))
    features = pd.concat([train[columns], test[columns]], ignore_index=True)
    for name in features.select_dtypes(exclude="number"):
        features[name] = pd.Categorical(features[name].where(features[name] != ""))
    trees = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        class_weight="balanced",
        random_state=0,
        categorical_features="from_dtype",
    )
    with threadpool_limits(1):  # threads that wait for each other cost more than such small tables do
        trees.fit(features.iloc[: len(train)], train["label"])
        scores = trees.decision_function(features.iloc[len(train) :])
    return np.round(scores, 6)  # so that lesions that are alike to it tie, in several folds too


def image_features(cache: ImageCache, names: Iterable[str]) -> pd.DataFrame:
    """Return what the controls know of named images: a table with the names as its index.

    Columns width, height (pixels) and bytes of the source file; mean and spread (standard deviation) of each colour of
    the cached image, in 0..255.
    """
    names = list(names)
    rows = cache.rows(names)
    colours = np.empty((len(rows), 3, 2))
    for start in range(0, len(rows), BLOCK):
        pixels = cache.gather(rows[start : start + BLOCK]).reshape(-1, cache.pixels[0].size // 3, 3)
        colours[start : start + BLOCK] = np.stack([pixels.mean(axis=1), pixels.std(axis=1)], axis=2)
    sources = pd.DataFrame([dataclasses.asdict(cache.sources[name]) for name in names], index=names)
    return sources.join(pd.DataFrame(colours.reshape(-1, 6), columns=COLOURS, index=names))


def control_scores(folds: Sequence[pd.DataFrame], features: pd.DataFrame | None = None) -> pd.DataFrame:
    """Let each control judge the test parts of some folds, learnt on the training part of each.

    The scores of several folds are pooled as they are: log odds of a model for equally many melanomas.

    Parameters
    ----------
    folds : a table for each split: image_name, patient_id, label, part, and as far as known age, sex, site
    features : as `image_features`, of all images of the folds; None leaves out the controls that need it

    Returns
    -------
    a row for each test image: image_name, patient_id, label, age, sex, site, and the score of each control whose
    columns are there, by its name
    """
    parts = []
    for fold in folds:
        table = fold if features is None else fold.join(features, on="image_name")
        train, test = (table[table["part"] == part] for part in ("train", "test"))
        scores = {
            name: fit_and_score(train, test, columns)
            for name, columns in CONTROLS.items()
            if set(columns) <= set(table)
        }
        known = [name for name in METADATA if name in test]
        parts.append(test[["image_name", "patient_id", "label", *known]].assign(**scores))
    return pd.concat(parts, ignore_index=True)


def control_table(scores: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return the figures of the controls as JSON values, a row for each, those that could not judge among them.

    Parameters
    ----------
    scores : as `control_scores`
    rng, draws : of the intervals, see `bootstrap.intervals`

    Returns
    -------
    rows {name, auc, auc_interval, average_precision, sensitivity_at_specificity: {"90%"}, note}
    """
    labels, patients = scores["label"].to_numpy(), scores["patient_id"].to_numpy()
    rows = []
    for name, columns in CONTROLS.items():
        figures: list[float | None] = [None] * 3
        interval, note = None, f"not computed: needs {', '.join(columns)}"
        if name in scores:
            own = scores[name].to_numpy()
            curve = roc_counts(labels, own, np.ones((1, len(own))))
            values = [auc(*curve), average_precision(*curve), sensitivity_at(*curve, SPECIFICITY)]
            figures = [None if np.isnan(value[0]) else float(value[0]) for value in values]
            interval = auc_interval(labels, own, patients, rng, draws)
            note = _note(name, scores)
        rows.append(
            {
                "name": name,
                "auc": figures[0],
                "auc_interval": interval,
                "average_precision": figures[1],
                "sensitivity_at_specificity": {f"{SPECIFICITY:.0%}": figures[2]},
                "note": note,
            }
        )
    return rows


def beaten(
    judged: pd.DataFrame, scores: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS
) -> list[dict[str, Any]]:
    """Compare a network with each control on the images that both have judged, by a paired bootstrap over patients.

    Parameters
    ----------
    judged : columns image_name and probability, the network's
    scores : as `control_scores`
    rng, draws : see `bootstrap.compare`

    Returns
    -------
    rows {name, n, auc_network, auc_control, difference, interval, p, beaten, verdict}. beaten : the whole 95 % interval
    of the difference, network minus control, is above 0; None where there is no AUC. verdict : the same in words

    Raises
    ------
    ValueError : no image that both have judged
    """
    both = scores.merge(judged[["image_name", "probability"]], on="image_name", validate="one_to_one")
    if both.empty:
        raise ValueError("the network and the controls have judged no image in common")
    labels, patients = both["label"].to_numpy(), both["patient_id"].to_numpy()
    rows = []
    for name in (name for name in CONTROLS if name in both):
        found = compare(labels, both["probability"].to_numpy(), both[name].to_numpy(), patients, rng, draws)
        won = None if found["interval"] is None else found["interval"][0] > 0
        if won is None:
            verdict = f"not compared with {name}: {found['not_computed']}"
        else:
            low, high = found["interval"]
            verdict = (
                f"{'beats' if won else 'does not beat'} {name}: AUC {found['auc_a']:.3f} against "
                f"{found['auc_b']:.3f}, difference {found['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
            )
        rows.append(
            {
                "name": name,
                "n": len(both),
                "auc_network": found["auc_a"],
                "auc_control": found["auc_b"],
                "difference": found["difference"],
                "interval": found["interval"],
                "p": found["p"],
                "beaten": won,
                "verdict": verdict,
            }
        )
    return rows


def _note(name: str, scores: pd.DataFrame) -> str:
    """Return what a reader must know of a control to judge its figures."""
    if name == "always benign":
        return f"accuracy {(scores['label'] != 1).mean():.3f}, finds no melanoma"
    if np.ptp(scores[name]) == 0:
        return f"{name} is one for all images"
    if name == "metadata":
        blank = (scores[METADATA].isna() | (scores[METADATA] == "")).any(axis=1)
        melanoma, benign = (blank[scores["label"] == label].mean() for label in (1, 0))
        if abs(melanoma - benign) > UNEVEN:
            return (
                f"age, sex or site is blank for {melanoma:.0%} of the melanomas and {benign:.0%} of the benign "
                "lesions, which by itself tells one from the other"
            )
    return ""


def run_controls(config: Config, rng: np.random.Generator, draws: int = DRAWS) -> dict[str, Any]:
    """Return the controls over the five test folds of the patient split, or the test part of the published one.

    Without a folder of images, those that need them are not computed.
    """
    numbers = range(dataset.N_FOLDS) if config.split == "patient" else [config.fold]
    lesions = [
        dataset.load_lesions(
            dataclasses.replace(config, fold=number, validation_fold=None), need_images=False
        )
        for number in numbers
    ]
    folds, features = [one.table for one in lesions], None
    if lesions[0].paths:
        cache = build_cache(lesions[0].paths, config.image_size, config.cache_dir, config.workers)
        refuse_unreadable(cache.errors, config.skip_unreadable)
        features = image_features(cache, cache.row_of)
        folds = [fold[fold["image_name"].isin(features.index)] for fold in folds]
    scores = control_scores(folds, features)
    return {
        "images": len(scores),
        "melanomas": int(scores["label"].sum()),
        "controls": control_table(scores, rng, draws),
    }


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Figures of always benign, metadata, image size, file size and mean colour alone.",
        allow_abbrev=False,
    )
    add_flags(parser)
    return parser


def main() -> None:
    config = from_flags(make_parser().parse_args())
    print(json.dumps(run_controls(config, np.random.default_rng([config.split_seed, 0])), indent=2))


if __name__ == "__main__":
    run_script(main)
