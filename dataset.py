"""The data set of a run: label table, split, and the balanced pairs of each epoch.

`python dataset.py` prints the summary of the data that config.py names. Its flags fetch ISIC 2020, check or decode all
images, or write generated lesions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from config import RECIPES, Config
from melanoma.common.errors import InputError, listed
from melanoma.common.script import run_script
from melanoma.common.settings import Parser, add_flags, from_flags
from melanoma.data.cache import ImageCache, build_cache, refuse_unreadable
from melanoma.data.check import check_files
from melanoma.data.duplicates import list_duplicates, lists_in_use
from melanoma.data.labels import Columns
from melanoma.data.sources import Sources, describe_source, read_sources
from melanoma.data.split import (
    ALONE,
    N_FOLDS,
    PARTS,
    check_parts,
    check_sources,
    group_images,
    large_patients,
    split_groups,
    split_published,
    without_images,
)
from melanoma.data.synthetic import write_demo


def validating_fold(config: Config) -> int | None:
    """Return the fold of the patient split that validates; the published split has none."""
    if config.split == "published" or config.validation_fold is not None:
        return config.validation_fold
    return 0 if config.fold is None else (config.fold + 1) % N_FOLDS


def columns_of(config: Config) -> Columns:
    """Return how the settings say that a label table of an unknown layout is read."""
    return Columns(config.image_column, config.label_column, config.melanoma_values, config.group_columns)


def duplicate_lists(config: Config) -> list[Path]:
    """Return the lists of duplicates in use; the published split keeps what ISIC 2020's own list would drop."""
    return lists_in_use(config.duplicates, () if config.split == "published" else config.train_labels)


def read_data(config: Config, need_images: bool = True) -> Sources:
    """Read the labels of all sources and match them with the image files; see `sources.read_sources`."""
    columns, duplicates = columns_of(config), duplicate_lists(config)
    return read_sources(
        config.train_image, config.train_labels, config.train_metadata, columns, duplicates, need_images
    )


def decode(config: Config, paths: Mapping[str, Path], size: int) -> ImageCache:
    """Return the cache of image files at a side in pixels; unreadable ones stop it unless they are to be left out."""
    cache = build_cache(paths, size, config.cache_dir, config.workers)
    refuse_unreadable(cache.errors, config.skip_unreadable)
    return cache


def load_lesions(config: Config, need_images: bool = True) -> Sources:
    """Read the labels, match them with the image files, drop duplicates, group and split: columns group and part.

    need_images : False works from the CSVs alone where the image folder is not there
    """
    lesions = read_data(config, need_images)
    table = lesions.table.assign(group=group_images(lesions.table, lesions.groups))
    return replace(lesions, table=split_table(table, config))


def join_equal_pictures(lesions: Sources, cache: ImageCache, config: Config) -> tuple[pd.DataFrame, str]:
    """Split again if some images of different groups have equal pixels.

    Returns
    -------
    the table of the lesions that could be decoded; what was joined, as a sentence, or ""
    """
    table = without_images(lesions.table, cache.errors)
    if config.pairs_within_source:
        check_sources(table)
    pictures = cache.hashes(table["image_name"])
    group = group_images(table, lesions.groups, pictures)
    joined = int(table.groupby(group)["group"].nunique().sub(1).sum())
    if not joined or config.split == "published":  # a split by image knows no groups
        return table.assign(group=group), ""
    labels = table.groupby(pictures)["label"].nunique()
    odd = f"; {(labels > 1).sum():,} pictures have two labels" if (labels > 1).any() else ""
    return split_table(table.assign(group=group), config), (
        f"images with equal pixels joined {joined:,} groups to others, and the split was made again{odd}"
    )


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
        parts = split_groups(table, config.fold, config.split_seed, validation_fold)
    result = table.assign(part=parts)
    check_parts(result)
    if config.pairs_within_source:
        check_sources(result)
    return result


def count_images(table: pd.DataFrame) -> dict[str, int]:
    """Return the numbers of images, melanomas, benign lesions, patients, groups, and images without an id."""
    known = table.loc[table["patient_id"] != "", "patient_id"]
    return {
        "images": len(table),
        "melanoma": int(table["label"].sum()),
        "benign": int((table["label"] == 0).sum()),
        "patients": known.nunique(),
        "groups": table["group"].nunique(),
        "images_without_id": int(table["group"].str.startswith(ALONE).sum()),
    }


def summarise(lesions: Sources, config: Config) -> dict[str, Any]:
    """Return the counts of a run's lesions as JSON values."""
    table = lesions.table
    train = table[table["part"] == "train"]
    parts = {part: count_images(table[table["part"] == part]) for part in PARTS}
    sides = table.groupby("group")["part"].nunique()
    return {
        **count_images(table),
        "sources": lesions.reports,
        "large_patients": large_patients(table),
        "split": config.split,
        "grouped_by": [key for key in lesions.groups if (table[key] != "").any()],
        "fold": config.fold,
        "splits": parts,
        "groups_in_two_parts": int((sides > 1).sum()),
        "oversampling_factor": round(parts["train"]["benign"] / parts["train"]["melanoma"], 3),
        **_per_epoch(train, config),
    }


def _per_epoch(train: pd.DataFrame, config: Config) -> dict[str, int | None]:
    """Return how many images an epoch shows, and in how many independent pairs; None if they meet in batches."""
    source = train["source"].to_numpy(str) if config.pairs_within_source else None
    larger = [max(map(len, members)) for members in _members(train["label"].to_numpy(), source)]
    if config.pairs == "batch":
        return {"images_per_epoch": sum(2 * math.ceil(config.epoch_share * n) for n in larger), "pairs_per_epoch": None}
    pairs = math.ceil(config.epoch_share * 2 * sum(larger))
    return {"images_per_epoch": 2 * pairs, "pairs_per_epoch": pairs}


def describe(summary: dict[str, Any]) -> str:
    """Return a summary as text, a line for each count."""
    lines = [line for report in summary["sources"] for line in describe_source(report)]
    lines.append(
        f"{summary['images']:,} images of {summary['patients']:,} patients, {summary['groups']:,} groups: "
        f"{summary['melanoma']:,} melanoma, {summary['benign']:,} benign"
    )
    if summary["images_without_id"]:
        lines.append(
            f"images without a patient or lesion id, each a group of its own: {summary['images_without_id']:,}; "
            "several may be of one patient, on both sides of the split"
        )
    if summary["large_patients"]:
        lines.append(
            f"warning: {listed(summary['large_patients'])} has more than 2 % of all images: if it stands for a missing "
            "patient, leave the cell empty"
        )
    by = "image" if summary["split"] == "published" else " and ".join(summary["grouped_by"]) or "image alone"
    lines.append(f"split {summary['split']!r}, by {by}:")
    lines += [
        f"  {part:<10} {c['images']:>7,} images  {c['melanoma']:>5,} melanoma  {c['benign']:>7,} benign  "
        f"{c['patients']:>6,} patients  {c['groups']:>6,} groups"
        for part, c in summary["splits"].items()
    ]
    if summary["groups_in_two_parts"]:
        lines.append(f"  {summary['groups_in_two_parts']:,} groups have images in two parts or more")
    pairs = summary["pairs_per_epoch"]
    epoch = (
        f"{summary['images_per_epoch']:,} images an epoch, paired within their batches"
        if pairs is None
        else f"{pairs:,} pairs an epoch"
    )
    lines.append(f"oversampling factor {summary['oversampling_factor']:.1f} (benign : melanoma in train), {epoch}")
    return "\n".join(lines)


# --- pairs ---


def sample_pairs(
    labels: np.ndarray, rng: np.random.Generator, source: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the pairs of one epoch, balanced in both senses.

    The larger class appears once each as the first of a pair; the smaller class as often in total, each image
    equally often but for the remainder. Half of the pairs of each class (to within one) are of one label. The
    second image is drawn uniformly from its class and is never the first. The order is random.

    Parameters
    ----------
    labels : int array of shape (N,), 1 melanoma, 0 benign; two or more of each, in each source
    rng : source of every draw
    source : of each image, (N,), if pairs are drawn within each source, as if it were alone

    Returns
    -------
    pairs : int64 array of shape (P, 2), rows of `labels`; P = 2 max(benign, melanoma), the sum over the sources
    same : bool array of shape (P,), True where both have one label
    """
    firsts, seconds, sames = [], [], []
    for members in _members(labels, source):
        if min(map(len, members)) < 2:
            raise ValueError(f"pairs need 2 images of each class, got {[len(m) for m in members]}")
        each = max(map(len, members))
        for own, other in (members, members[::-1]):
            place = _spread(len(own), each, rng)  # place within the class, so that a partner can skip it
            same = rng.permutation(each) < each // 2
            alike = rng.integers(0, len(own) - 1, each)
            alike += alike >= place  # uniform over the class without the image itself
            unlike = rng.integers(0, len(other), each)
            firsts.append(own[place])
            seconds.append(np.where(same, own[alike], other[unlike]))
            sames.append(same)
    pairs, same = np.stack([np.concatenate(firsts), np.concatenate(seconds)], axis=1), np.concatenate(sames)
    order = rng.permutation(len(pairs))
    return pairs[order], same[order]


def sample_balanced(
    labels: np.ndarray, rng: np.random.Generator, share: float = 1.0, source: np.ndarray | None = None
) -> np.ndarray:
    """Draw the images of one epoch of in-batch pairs, melanomas and benign images in turn.

    As in `sample_pairs`, the larger class appears once each and the smaller class as often in total; with a share
    below 1 that many of the larger class, drawn without replacement. Any run of neighbours is half melanoma, to
    within one image. With a `source` of each image, (N,), each source is balanced by itself.

    Returns
    -------
    rows of `labels`, int64, 2 ceil(share max(benign, melanoma)) of each source
    """
    turns = []
    for benign, melanoma in _members(labels, source):
        each = math.ceil(share * max(len(benign), len(melanoma)))
        turns.append(
            np.stack([own[rng.permutation(_spread(len(own), each, rng))] for own in (melanoma, benign)], axis=1)
        )
    order = np.concatenate(turns)
    return (order if len(turns) == 1 else rng.permutation(order)).ravel()


def _members(labels: np.ndarray, source: np.ndarray | None) -> list[list[np.ndarray]]:
    """Return the rows of the benign images and of the melanomas, int64 arrays, of each source or of all together."""
    parts = [np.ones(len(labels), bool)] if source is None else [source == name for name in np.unique(source)]
    return [[np.flatnonzero(part & (labels == label)) for label in (0, 1)] for part in parts]


def _spread(n: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return 0..n-1 repeated to `total`, the remainder drawn without replacement; int64 of shape (total,)."""
    whole = np.tile(np.arange(n), total // n)
    return np.concatenate([whole, rng.permutation(n)[: total % n]])


@dataclass(frozen=True)
class Batch:
    """The images of one training step and which of them are compared.

    rows : int64 array of shape (B,), cache rows of the images
    labels : int64 array of shape (B,), 1 melanoma, 0 benign
    same : bool array, True where both images of a pair have one label; of shape (B/2,) for independent pairs, whose
        first images are the first half of `rows`; of shape (B, B) where each image meets each
    met : bool array of shape (B, B), the pairs of these that count, each of them twice; None for independent pairs
    """

    rows: np.ndarray
    labels: np.ndarray
    same: np.ndarray
    met: np.ndarray | None = None


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
            batches.append(Batch(self.rows[images], self.labels[images], self.same[part]))
        return batches


def in_batch_batches(
    order: np.ndarray, labels: np.ndarray, rows: np.ndarray, batch_size: int, source: np.ndarray | None = None
) -> list[Batch]:
    """Return the batches of an epoch of in-batch pairs: each image is compared with all others of its batch.

    Two views of one picture are not a pair. A last batch of a single image is left out. With a `source` of each image,
    (N,), only images of one source are compared.

    Parameters
    ----------
    order : int64 array from `sample_balanced`
    labels, rows : int arrays of shape (N,), label and cache row of each image
    batch_size : B, images in a batch, with B(B - 1)/2 pairs
    """
    batches = []
    for start in range(0, len(order), batch_size):
        images = order[start : start + batch_size]
        own = labels[images]
        met = images[:, None] != images
        if source is not None:
            met &= source[images][:, None] == source[images]
        if met.any():
            batches.append(Batch(rows[images], own, own[:, None] == own, met))
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
    other.add_argument(
        "--find-duplicates",
        type=Path,
        metavar="CSV",
        help="list near-duplicate images in this new CSV, for --duplicates: re-compressed, resized, turned or flipped",
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
    others = ("download", "check", "find_duplicates", "cache", "generate")
    if arguments.json and any(getattr(arguments, name) for name in others):
        parser.error("--json goes with the summary alone")
    config = from_flags(Config, RECIPES, arguments)
    if arguments.download:
        from melanoma.data.download import download_isic  # slow to import

        download_isic(arguments.download, arguments.with_test)
    elif arguments.generate:
        write_demo(arguments.generate, arguments.images, config.seed)
    elif arguments.check:
        data = read_data(config)
        print("\n".join(line for report in data.reports for line in describe_source(report)))
        missing = [name for report in data.reports for name in report["missing"]]
        check_files(data.paths, missing, config.test_image, config.test_labels, config.workers)
    elif arguments.find_duplicates:
        data = read_data(config)
        cache = decode(config, data.paths, config.image_size)
        table = data.table.assign(group=group_images(data.table, data.groups))
        list_duplicates(cache, table, duplicate_lists(config), arguments.find_duplicates)
    elif arguments.cache:
        cache = decode(config, read_data(config).paths, config.image_size)
        print(f"{len(cache.pixels):,} images of {config.image_size} px in {config.cache_dir}")
    else:
        summary = summarise(load_lesions(config, need_images=False), config)
        print(json.dumps(summary, indent=2) if arguments.json else describe(summary))


if __name__ == "__main__":
    run_script(main)
