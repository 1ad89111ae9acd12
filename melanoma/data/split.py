"""The split of a data set into train, validation and test, by patient or as published."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, train_test_split
from sklearn.utils import check_random_state

from melanoma.common.errors import InputError

PARTS = ("train", "validation", "test")
N_FOLDS = 5
PUBLISHED_TEST_SHARE = 0.2
PUBLISHED_VALIDATION_SHARE = 0.125  # of the training part: a tenth of all images
PUBLISHED_LEAST = 20  # of each class: two in validation


def split_patients(table: pd.DataFrame, fold: int, seed: int, validation_fold: int) -> np.ndarray:
    """Split by patient: of 5 stratified folds, `fold` tests, another validates, the other three train.

    Returns
    -------
    part of each row, str of shape (N,): train, validation or test; no patient is in two parts

    Raises
    ------
    InputError : a class with fewer than 5 patients, or a part that one class is absent from
    """
    for label, name in ((1, "melanoma"), (0, "benign")):
        patients = table.loc[table["label"] == label, "patient_id"].nunique()
        if patients < N_FOLDS:
            raise InputError(f"{patients} patients have {name} images: a split by patient needs {N_FOLDS}")
    # StratifiedGroupKFold(shuffle=True), done here: before scikit-learn 1.8 it shuffled without stratifying
    names, patient = np.unique(table["patient_id"], return_inverse=True)
    place = np.argsort(check_random_state(seed).permutation(len(names)))
    folds = StratifiedGroupKFold(N_FOLDS).split(table, table["label"], groups=place[patient])
    held_out = [test for _, test in folds]
    parts = np.full(len(table), "train", dtype="<U10")
    parts[held_out[fold]] = "test"
    parts[held_out[validation_fold]] = "validation"
    return parts


def split_published(table: pd.DataFrame, seed: int) -> np.ndarray:
    """Split by image as the published outline did: 80 % train, 20 % test, stratified by class.

    One patient can be on both sides, so this reproduces published figures and estimates nothing. Validation is
    cut from the training part, an eighth of it. Returns and raises as `split_patients`.
    """
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
    """Raise InputError unless train and validation have two images of each class, test one."""
    for part, least in zip(PARTS, (2, 2, 1), strict=True):
        counts = table.loc[table["part"] == part, "label"].value_counts()
        for label, name in ((1, "melanoma"), (0, "benign")):
            if counts.get(label, 0) < least:
                raise InputError(
                    f"the {part} part has {counts.get(label, 0)} {name} images, it needs {least}: "
                    "there are too few images or patients to split"
                )


def without_images(table: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    """Return a split table without some images, the others in the parts they were in; checks the parts."""
    kept = table[~table["image_name"].isin(list(names))].reset_index(drop=True)
    check_parts(kept)
    return kept
