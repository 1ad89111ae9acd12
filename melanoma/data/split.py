"""The split of a data set into train, validation and test: by group, or by image as published."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from melanoma.common.errors import InputError

PARTS = ("train", "validation", "test")
LESIONS = ["image_name", "source", "patient_id", "group", "label"]  # columns of a split, before the part
N_FOLDS = 5
PUBLISHED_TEST_SHARE = 0.2
PUBLISHED_VALIDATION_SHARE = 0.125  # of the training part: a tenth of all images
PUBLISHED_LEAST = 20  # of each class: two in validation
ALONE = "image:"  # begins the group of an image that has no patient and no lesion
LARGE_SHARE, LARGE_COUNT = 0.02, 50  # of the images; a patient with more than both may be a value for "missing"


def connected(links: Sequence[tuple[np.ndarray, np.ndarray]], n: int) -> np.ndarray:
    """Return the component of each of n nodes, int (n,), that links between nodes (K,) and nodes (K,) connect."""
    from scipy.sparse import coo_array  # slow to import
    from scipy.sparse.csgraph import connected_components

    first, second = (np.concatenate(ends) for ends in zip(*links, strict=True))
    return connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)[1]


def group_images(table: pd.DataFrame, keys: Sequence[str], equal: Sequence[str] | None = None) -> pd.Series:
    """Return the group of each image: images are in one group if they are connected by equal values of any key.

    Parameters
    ----------
    table : image_name, and columns of str, "" where missing, by name in `keys`, such as patient_id and lesion_id
    equal : hash of each image's pixels, if known: images with equal pixels are in one group

    Returns
    -------
    str (N,): the group's first patient_id, or another key with its column's name before it, or "image:" and the name
    """
    name = "99" + ALONE + table["image_name"]  # the digits in front put ids first
    for place, key in reversed(list(enumerate(keys))):
        prefix = f"{place:02}" if key == "patient_id" else f"{place:02}{key}:"
        name = name.where(table[key] == "", prefix + table[key])
    links, nodes = [], len(table)
    for cells in [*(table[key] for key in keys), *([pd.Series(equal, table.index)] if equal is not None else [])]:
        known = np.flatnonzero(cells != "")
        codes, values = pd.factorize(cells.iloc[known])
        links.append((known, nodes + codes))
        nodes += len(values)
    component = connected(links, nodes)[: len(table)]
    return name.groupby(component).transform("min").str[2:]


def large_patients(table: pd.DataFrame) -> list[str]:
    """Return the patients with more than 2 % of all images and more than 50: each may be a value for "missing"."""
    counts = table.loc[table["patient_id"] != "", "patient_id"].value_counts()
    return counts[counts > max(LARGE_COUNT, LARGE_SHARE * len(table))].index.tolist()


def split_groups(table: pd.DataFrame, fold: int | None, seed: int, validation_fold: int) -> np.ndarray:
    """Split by group: of 5 folds, stratified by label and source, `fold` tests, another validates, the others train.

    fold : None holds no fold back, so four train

    Returns
    -------
    part of each row, str of shape (N,): train, validation or test; no group is in two parts

    Raises
    ------
    InputError : a class with fewer than 5 groups; no source with 5 images of a class
    """
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    for label, name in ((1, "melanoma"), (0, "benign")):
        groups = table.loc[table["label"] == label, "group"].nunique()
        if groups < N_FOLDS:
            raise InputError(f"{groups} patients (groups) have {name} images: a split by patient needs {N_FOLDS}")
    strata = table["source"] + table["label"].astype(str)
    if strata.value_counts().max() < N_FOLDS:
        raise InputError(f"no source has {N_FOLDS} images of one class: a split by patient needs {N_FOLDS}")
    # StratifiedGroupKFold(shuffle=True), done here: before scikit-learn 1.8 it shuffled without stratifying
    names, group = np.unique(table["group"], return_inverse=True)
    place = np.argsort(np.random.RandomState(seed).permutation(len(names)))
    held_out = [test for _, test in StratifiedGroupKFold(N_FOLDS).split(table, strata, groups=place[group])]
    parts = np.full(len(table), "train", dtype="<U10")
    if fold is not None:
        parts[held_out[fold]] = "test"
    parts[held_out[validation_fold]] = "validation"
    return parts


def split_published(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Split by image as the published outline did: 80 % train, 20 % test, stratified by class.

    One patient can be on both sides, so this reproduces published figures and estimates nothing. Validation is
    cut from the training part, an eighth of it. Returns and raises as `split_groups`.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    fewest = int(min((table["label"] == 0).sum(), (table["label"] == 1).sum()))
    if fewest < PUBLISHED_LEAST:
        raise InputError(f"one class has {fewest} images: a split by image needs {PUBLISHED_LEAST} of each class")
    rows = np.arange(len(table))
    labels = table["label"].to_numpy()
    train, test = train_test_split(rows, test_size=PUBLISHED_TEST_SHARE, stratify=labels, random_state=seed)
    _, validation = train_test_split(
        train, test_size=PUBLISHED_VALIDATION_SHARE, stratify=labels[train], random_state=seed
    )
    parts = np.full(len(table), "train", dtype="<U10")
    parts[test] = "test"
    parts[validation] = "validation"
    return parts


def check_parts(table: pd.DataFrame) -> None:
    """Raise InputError unless train and validation have two images of each class, and test, if there is one, one."""
    tested = int((table["part"] == "test").any())
    for part, least in zip(PARTS, (2, 2, tested), strict=True):
        own = table.loc[table["part"] == part, "label"]
        _check_classes(own, least, f"the {part} part", "there are too few images or patients to split")


def check_sources(table: pd.DataFrame) -> None:
    """Raise InputError unless each source has two images of each class in train and in validation, to pair."""
    for source in table.loc[table["part"] != "test", "source"].unique():
        for part in PARTS[:2]:
            own = table.loc[(table["source"] == source) & (table["part"] == part), "label"]
            advice = "pass --no-pairs-within-source or leave the source out"
            _check_classes(own, 2, f"the {part} part of source {source}", advice)


def _check_classes(labels: pd.Series, least: int, where: str, advice: str) -> None:
    for label, name in ((1, "melanoma"), (0, "benign")):
        n = int((labels == label).sum())
        if n < least:
            raise InputError(f"{where} has {n} {name} images, it needs {least}: {advice}")


def without_images(table: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    """Return a split table without some images, the others in the parts they were in; checks the parts."""
    kept = table[~table["image_name"].isin(list(names))].reset_index(drop=True)
    check_parts(kept)
    return kept
