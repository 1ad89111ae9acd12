"""The data set of a run: label table, split, and the balanced pairs of each epoch.

`python dataset.py` prints the summary of the data that config.py names. Its flags fetch ISIC 2020, check or decode all
images, or write generated lesions.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import RECIPES, Config
from melanoma.common.errors import InputError
from melanoma.common.files import is_file, is_folder
from melanoma.common.script import run_script
from melanoma.common.settings import Parser, add_flags, from_flags
from melanoma.data.cache import ImageCache, build_cache, refuse_unreadable
from melanoma.data.check import check_files
from melanoma.data.decoding import find_images
from melanoma.data.download import DOWNLOADS, download_isic
from melanoma.data.labels import NO_PATIENT, drop_duplicates, read_duplicates, read_labels
from melanoma.data.split import N_FOLDS, PARTS, check_parts, split_patients, split_published
from melanoma.data.synthetic import write_demo


def validating_fold(config: Config) -> int | None:
    """Return the fold of the patient split that validates; the published split has none."""
    if config.split == "published":
        return None
    return (config.fold + 1) % N_FOLDS if config.validation_fold is None else config.validation_fold


def split_table(table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """Return the table with a column `part`, as the settings split it, each part with enough of both classes.

    Raises
    ------
    InputError : one class only, or too few images of a class in a part
    """
    for label, name in ((1, "melanoma"), (0, "benign")):
        if not (table["label"] == label).any():
            raise InputError(f"there is no {name} image: pairs need both classes")
    validation_fold = validating_fold(config)
    if validation_fold is None:
        parts = split_published(table, config.split_seed)
    else:
        parts = split_patients(table, config.fold, config.split_seed, validation_fold)
    result = table.assign(part=parts)
    check_parts(result)
    return result


@dataclass(frozen=True)
class Lesions:
    """The label table of a run, split, and what was found on the way to it."""

    table: pd.DataFrame  # as read_labels, plus part
    paths: dict[str, Path]  # image file of each name; empty when only the CSV was looked at
    counts: dict[str, int | None]  # labels, images without a label, labels without an image, duplicates dropped


def load_lesions(config: Config, need_images: bool = True) -> Lesions:
    """Read the labels, match them with the image files, drop duplicates, split.

    need_images : False works from the CSV alone where the image folder is not there
    """
    table = read_labels(config.train_labels)
    counts: dict[str, int | None] = {"labels": len(table)}
    paths: dict[str, Path] = {}
    if need_images or is_folder(config.train_image):
        paths = find_images(config.train_image)
        has_image = table["image_name"].isin(list(paths))
        counts["labels_without_image"] = int((~has_image).sum())
        counts["images_without_label"] = len(paths) - int(has_image.sum())
        if not has_image.any():
            raise InputError(
                f"train_image {config.train_image} has none of the {len(table):,} images that "
                f"{config.train_labels} names: check both in config.py"
            )
        table = table[has_image].reset_index(drop=True)
        paths = {name: paths[name] for name in sorted(table["image_name"])}
    else:
        counts["labels_without_image"] = counts["images_without_label"] = None  # not looked at
    before = len(table)
    if config.duplicates is not None:
        table = drop_duplicates(table, read_duplicates(config.duplicates))
    counts["duplicates_dropped"] = before - len(table)
    table = split_table(table, config)
    return Lesions(table, {name: paths[name] for name in sorted(table["image_name"]) if paths}, counts)


def summarise(lesions: Lesions, config: Config) -> dict[str, Any]:
    """Return the counts of a run's lesions as JSON values."""
    table = lesions.table

    def count(rows: pd.DataFrame) -> dict[str, int]:
        melanoma = int(rows["label"].sum())
        return {
            "images": len(rows),
            "melanoma": melanoma,
            "benign": len(rows) - melanoma,
            "patients": rows["patient_id"].nunique(),
        }

    train = table[table["part"] == "train"]
    summary: dict[str, Any] = {
        "train_labels": str(config.train_labels),
        **count(table),
        **lesions.counts,
        "split": config.split,
        "fold": config.fold,
        "splits": {part: count(table[table["part"] == part]) for part in PARTS},
        "oversampling_factor": round(oversampling_factor(train["label"].to_numpy()), 3),
        **_per_epoch(train["label"].to_numpy(), config),
        "images_without_patient": int(table["patient_id"].str.startswith(NO_PATIENT).sum()),
        "duplicates_not_used": _duplicates_beside(config),
    }
    if config.split == "published":  # as published, before validation is cut from the training part
        summary["published_split"] = {
            "training": count(table[table["part"] != "test"]),
            "test": count(table[table["part"] == "test"]),
        }
    return summary


def _per_epoch(labels: np.ndarray, config: Config) -> dict[str, int | None]:
    """Return how many images an epoch shows, and in how many independent pairs; None if they meet in batches."""
    larger = int(np.bincount(labels, minlength=2).max())
    if config.pairs == "batch":
        return {"images_per_epoch": 2 * math.ceil(config.epoch_share * larger), "pairs_per_epoch": None}
    pairs = math.ceil(config.epoch_share * 2 * larger)
    return {"images_per_epoch": 2 * pairs, "pairs_per_epoch": pairs}


def _duplicates_beside(config: Config) -> str | None:
    """Return the list of duplicates that lies beside the labels, if none is used."""
    path = config.train_labels.with_name(DOWNLOADS["duplicates"].address.rpartition("/")[2])
    return str(path) if config.duplicates is None and is_file(path) else None


def describe(summary: dict[str, Any]) -> str:
    """Return a summary as text, a line for each count."""
    missing = summary["labels_without_image"]
    listed = summary["duplicates_not_used"]
    alone = summary["images_without_patient"]
    unused = f" (--duplicates {listed} drops those that are listed there)" if listed else ""
    pairs = summary["pairs_per_epoch"]
    if pairs is None:
        epoch = f"{summary['images_per_epoch']:,} images an epoch, which meet in batches"
    else:
        epoch = f"{pairs:,} pairs an epoch"
    lines = [
        f"{summary['images']:,} images of {summary['patients']:,} patients: {summary['melanoma']:,} melanoma, "
        f"{summary['benign']:,} benign (from {summary['labels']:,} labels)",
        f"duplicates dropped: {summary['duplicates_dropped']:,}{unused}",
        "image folder not there: files not checked"
        if missing is None
        else f"labels without an image: {missing:,}; images without a label: {summary['images_without_label']:,}",
    ]
    if alone:
        lines.append(f"images without a patient_id, each taken for a patient of its own: {alone:,}")
    rows = [(f"split {summary['split']!r}", summary["splits"])]
    if "published_split" in summary:
        rows.append(("as published, validation still in training", summary["published_split"]))
    for title, parts in rows:
        lines.append(f"{title}:")
        lines += [
            f"  {part:<10} {c['images']:>7,} images  {c['melanoma']:>5,} melanoma  {c['benign']:>7,} benign  "
            f"{c['patients']:>6,} patients"
            for part, c in parts.items()
        ]
    lines.append(f"oversampling factor {summary['oversampling_factor']:.1f} (benign : melanoma in train), {epoch}")
    return "\n".join(lines)


# --- pairs ---


def oversampling_factor(labels: np.ndarray) -> float:
    """Return benign : melanoma, how often each melanoma is shown for each benign image."""
    return float((labels == 0).sum() / (labels == 1).sum())


def sample_pairs(labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pairs of one epoch, balanced in both senses.

    The larger class appears once each as the first of a pair; the smaller class as often in total, each image
    equally often but for the remainder. Half of the pairs of each class (to within one) are of one label. The
    second image is drawn uniformly from its class and is never the first. The order is random.

    Parameters
    ----------
    labels : int array of shape (N,), 1 melanoma, 0 benign; two or more of each
    rng : source of every draw

    Returns
    -------
    pairs : int64 array of shape (P, 2), rows of `labels`; P = 2 max(benign, melanoma)
    same : bool array of shape (P,), True where both have one label
    """
    members = [np.flatnonzero(labels == label) for label in (0, 1)]
    if min(map(len, members)) < 2:
        raise ValueError(f"pairs need 2 images of each class, got {[len(m) for m in members]}")
    each = max(map(len, members))
    firsts, seconds, sames = [], [], []
    for own, other in (members, members[::-1]):
        place = _spread(len(own), each, rng)  # place within the class, so that a partner can skip it
        same = rng.permutation(each) < each // 2
        alike = rng.integers(0, len(own) - 1, each)
        alike += alike >= place  # uniform over the class without the image itself
        unlike = rng.integers(0, len(other), each)
        firsts.append(own[place])
        seconds.append(np.where(same, own[alike], other[unlike]))
        sames.append(same)
    order = rng.permutation(2 * each)
    pairs = np.stack([np.concatenate(firsts), np.concatenate(seconds)], axis=1)
    return pairs[order], np.concatenate(sames)[order]


def sample_balanced(labels: np.ndarray, rng: np.random.Generator, share: float = 1.0) -> np.ndarray:
    """Draw the images of one epoch of in-batch pairs, melanomas and benign images in turn.

    As in `sample_pairs`, the larger class appears once each and the smaller class as often in total; with a share
    below 1 that many of the larger class, drawn without replacement. Any run of neighbours is half melanoma, to
    within one image.

    Returns
    -------
    int64 array of shape (2 max(benign, melanoma) share,), rows of `labels`
    """
    members = [np.flatnonzero(labels == label) for label in (1, 0)]
    each = math.ceil(share * max(map(len, members)))
    order = np.empty(2 * each, dtype=np.int64)
    for turn, own in enumerate(members):
        order[turn::2] = own[rng.permutation(_spread(len(own), each, rng))]
    return order


def _spread(n: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return 0..n-1 repeated to `total`, the remainder drawn without replacement; int64 of shape (total,)."""
    whole = np.tile(np.arange(n), total // n)
    return np.concatenate([whole, rng.permutation(n)[: total % n]])


@dataclass(frozen=True)
class Batch:
    """The images of one training step and which of them are compared.

    rows : int64 array of shape (B,), cache rows of the images
    labels : int64 array of shape (B,), 1 melanoma, 0 benign
    first, second : int64 arrays of shape (P,), the images of each pair, places in `rows`
    same : bool array of shape (P,), True where both have one label
    """

    rows: np.ndarray
    labels: np.ndarray
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


class PairDataset:
    """The pairs of one epoch, as a map-style data set and as the batches of a training.

    It looks pairs up and never draws: item i is always the same.

    Parameters
    ----------
    cache : decoded images
    rows : int64 array of shape (N,), cache row of each image
    labels : int array of shape (N,), 1 melanoma, 0 benign
    pairs, same : as from `sample_pairs`, indices into `rows`
    """

    def __init__(
        self, cache: ImageCache, rows: np.ndarray, labels: np.ndarray, pairs: np.ndarray, same: np.ndarray
    ) -> None:
        self.cache = cache
        self.rows = rows
        self.labels = labels
        self.pairs = pairs
        self.same = same

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return (first, second, same) of pair i: uint8 (S, S, 3) twice and a bool."""
        first, second = self.cache.gather(self.rows[self.pairs[i]])
        return first, second, bool(self.same[i])

    def batches(self, batch_size: int) -> list[Batch]:
        """Return the pairs as batches in their order: all first images, then all second ones."""
        batches = []
        for start in range(0, len(self), batch_size):
            part = slice(start, start + batch_size)
            images = self.pairs[part].T.ravel()
            first = np.arange(len(images) // 2)
            batches.append(Batch(self.rows[images], self.labels[images], first, len(first) + first, self.same[part]))
        return batches


def in_batch_batches(order: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch_size: int) -> list[Batch]:
    """Return the batches of an epoch of in-batch pairs: each image is compared with all others of its batch.

    Two views of one picture are no pair. A last batch of a single image is left out.

    Parameters
    ----------
    order : int64 array from `sample_balanced`
    labels, rows : int arrays of shape (N,), label and cache row of each image
    batch_size : B, images in a batch, with B(B - 1)/2 pairs
    """
    batches = []
    for start in range(0, len(order), batch_size):
        images = order[start : start + batch_size]
        first, second = np.triu_indices(len(images), 1)
        different = images[first] != images[second]
        first, second = first[different], second[different]
        if len(first):
            own = labels[images]
            batches.append(Batch(rows[images], own, first, second, own[first] == own[second]))
    return batches


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("Print a summary of the data, fetch, check or decode them.", "python dataset.py [--FLAG VALUE ...]")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--download",
        type=Path,
        metavar="DIR",
        help="fetch ISIC 2020's training images, labels and duplicates into this folder (needs 46 GB); the "
        "same command resumes a download that was stopped",
    )
    parser.add_argument("--with-test", action="store_true", help="download the test images and metadata too (6.7 GB)")
    other.add_argument(
        "--check", action="store_true", help="read every image file and compare the folders with the CSVs"
    )
    other.add_argument("--cache", action="store_true", help="decode all images into the cache now")
    other.add_argument(
        "--generate", type=Path, metavar="DIR", help="write generated lesions in ISIC 2020's layout into this folder"
    )
    parser.add_argument(
        "--images", type=int, default=900, metavar="N", help="number of generated training images (900)"
    )
    add_flags(parser, Config, RECIPES)
    return parser


def main() -> None:
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.with_test and not arguments.download:
        parser.error("--with-test goes with --download DIR")
    if arguments.json and (arguments.download or arguments.check or arguments.cache or arguments.generate):
        parser.error("--json goes with the summary alone")
    config = from_flags(Config, RECIPES, arguments)
    if arguments.download:
        download_isic(arguments.download, arguments.with_test)
    elif arguments.generate:
        write_demo(arguments.generate, arguments.images, config.seed)
    elif arguments.check:
        check_files(config.train_image, config.train_labels, config.duplicates, config.test_image, config.test_labels)
    elif arguments.cache:
        cache = build_cache(find_images(config.train_image), config.image_size, config.cache_dir, config.workers)
        refuse_unreadable(cache.errors, config.skip_unreadable)
        print(f"{len(cache.pixels):,} images of {config.image_size} px in {config.cache_dir}")
    else:
        summary = summarise(load_lesions(config, need_images=False), config)
        print(json.dumps(summary, indent=2) if arguments.json else describe(summary))


if __name__ == "__main__":
    run_script(main)
