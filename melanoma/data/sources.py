"""Read one data set or several as one label table with its image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma.common.errors import InputError, shown
from melanoma.common.files import is_folder
from melanoma.data.decoding import find_images
from melanoma.data.duplicates import drop_duplicates, read_duplicates
from melanoma.data.labels import Columns, Labels, labels_of_folders, read_labels, read_metadata

MISSING_SHARE = 0.01  # of the labels without an image, above which a warning says so


@dataclass(frozen=True)
class Sources:
    """The label tables of all sources as one, and their image files.

    table : as `labels.Labels.table`, with a column source
    groups : columns of the table whose equal values belong together
    paths : image file of each name; empty if the folders are not there and were not needed
    reports : how each source was read, with its counts, as JSON values
    """

    table: pd.DataFrame
    groups: tuple[str, ...]
    paths: dict[str, Path]
    reports: list[dict[str, Any]]


def read_sources(
    images: Sequence[Path],
    labels: Sequence[Path],
    metadata: Sequence[Path] = (),
    columns: Columns = Columns(),
    duplicates: Sequence[Path] = (),
    need_images: bool = True,
) -> Sources:
    """Read sources, match labels with image files, and drop duplicates.

    Parameters
    ----------
    images, labels : a folder and a label CSV for each source, or several folders for one CSV; without a CSV each folder
        is a source whose folders are the classes
    metadata, columns : see `read_labels`
    duplicates : lists of duplicates, see `duplicates.lists_in_use`
    need_images : False works from the CSVs alone where the folders are not there

    Raises
    ------
    InputError : other numbers of folders and CSVs, or a source without a known diagnosis or without any of its images
    """
    names = source_names(labels or images)
    there = need_images or not labels or all(map(is_folder, images))
    if labels and len(labels) not in (1, len(images)):
        raise InputError(
            f"train_labels names {len(labels)} files and train_image {len(images)} folders: name a file for each "
            "folder, or one for all"
        )
    tables = read_tables(labels, metadata, columns) if labels else []
    files = _files_by_source(images, names) if there else {}
    if not labels:
        tables = _unique_names([labels_of_folders(files[name], columns) for name in names], names)
    kept, reports, paths = [], [], dict[str, Path]()
    for i, (name, found) in enumerate(zip(names, tables, strict=True)):
        path, table = labels[i] if labels else None, found.table
        if table.empty:
            raise InputError(f"{path or name} has no image with a known diagnosis: check train_labels and train_image")
        report = {"source": name, "layout": found.layout, "values": found.values, "left_out": found.left_out}
        report["labels"] = len(table)
        if there:
            table, own, counts = _match(table, files[name], name, path)
            paths |= own
            report |= counts
        report["duplicates"] = ", ".join(map(str, duplicates))
        reports.append(report)
        kept.append(table)
    every = pd.concat(kept, ignore_index=True)
    pairs = [pair for path in duplicates for pair in read_duplicates(path)]
    table = drop_duplicates(every, pairs)
    dropped = every["source"].value_counts().sub(table["source"].value_counts(), fill_value=0)
    for report in reports:
        report["duplicates_dropped"] = int(dropped.get(report["source"], 0))
    paths = {name: paths[name] for name in sorted(table["image_name"]) if there}
    return Sources(table, tables[0].groups, paths, reports)


def read_tables(labels: Sequence[Path], metadata: Sequence[Path] = (), columns: Columns = Columns()) -> list[Labels]:
    """Read the label CSV of each source; a name that several have is preceded by its source and a colon."""
    further = [read_metadata(path) for path in metadata]
    tables = [read_labels(path, "train_labels", columns, further) for path in labels]
    for path, extra in zip(metadata, further, strict=True):
        if not any(found.table["image_name"].isin(extra.index).any() for found in tables):
            raise InputError(
                f"train_metadata {path} has none of the labelled images: it names {extra.index[0]}, {labels[0]} names "
                f"{next(iter(tables[0].table['image_name']), 'none')}: check both"
            )
    return _unique_names(tables, source_names(labels))


def _unique_names(tables: Sequence[Labels], sources: Sequence[str]) -> list[Labels]:
    """Return the tables with a column source, and with names that differ between them."""
    times = Counter(name for found in tables for name in found.table["image_name"])
    unique = []
    for source, found in zip(sources, tables, strict=True):
        names = [name if times[name] == 1 else f"{source}:{name}" for name in found.table["image_name"]]
        unique.append(replace(found, table=found.table.assign(image_name=names, source=source)))
    return unique


def source_names(paths: Sequence[Path]) -> list[str]:
    """Return a name for each path: its own, with as many folders before it as tell it from the others."""
    parts = [(*path.parent.parts, path.name.removesuffix(".csv")) for path in paths]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{paths[0]} is named twice: a source counts once")


def describe_folders(folders: Sequence[Path]) -> str:
    """Return folders of images as text: each with the name of the one that holds it."""
    return ", ".join("/".join(folder.parts[-2:]) for folder in folders)


def find_source_images(images: Sequence[Path], sources: Sequence[str], names: Container[str]) -> dict[str, Path]:
    """Return the image files of all sources by their names in a table, among which are these names.

    Raises
    ------
    InputError : no folder for each source, see `find_images`
    """
    return {
        f"{source}:{name}" if f"{source}:{name}" in names else name: path
        for source, files in _files_by_source(images, sources).items()
        for name, path in files.items()
    }


def _files_by_source(images: Sequence[Path], sources: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Return the image files of each source by name, without its source."""
    if len(sources) == 1:
        return {sources[0]: find_images(images)}
    if len(images) != len(sources):
        raise InputError(
            f"train_image names {len(images)} folders, but there are {len(sources)} sources: name one for each"
        )
    return {source: find_images(folder) for source, folder in zip(sources, images, strict=True)}


def _match(
    table: pd.DataFrame, files: dict[str, Path], source: str, labels: Path | None
) -> tuple[pd.DataFrame, dict[str, Path], dict[str, Any]]:
    """Return the rows that have an image, their image files by name, and how many labels and images match none."""
    plain = table["image_name"].str.removeprefix(f"{source}:")
    has_image = plain.isin(list(files))
    absent, used = plain[~has_image], set(plain)
    rest = [path for name, path in files.items() if name not in used]
    example = ""
    if len(absent):
        there = f"there is {shown(rest[0].name)} without a label" if rest else "each image has a label"
        example = f"looked for {shown(absent.iloc[0])} and an extension, {there}"
    if not has_image.any():
        raise InputError(
            f"train_image has none of the {len(table):,} images that {labels or source} names: "
            f"{example}: check both in config.py"
        )
    counts = {"labels_without_image": len(absent), "images_without_label": len(rest), "example": example}
    paths = {name: files[own] for name, own in zip(table["image_name"], plain, strict=True) if own in files}
    return table[has_image].reset_index(drop=True), paths, {**counts, "missing": absent.tolist()}


def describe_source(report: dict[str, Any]) -> list[str]:
    """Return how a source was read as lines of text; a warning if more than 1 % of its labels have no image."""
    lines = [f"{report['source']}: {report['layout']}"]
    distinct = [f"{value} ({count:,}) {read_as}" for value, read_as, count in report["values"]]
    lines.append(
        f"  values: {'; '.join(distinct[:8])}" + (f"; and {len(distinct) - 8} more" if len(distinct) > 8 else "")
    )
    if report["left_out"]:
        lines.append(f"  left out, diagnosis unknown or indeterminate: {report['left_out']:,}")
    missing = report.get("labels_without_image")
    if missing is None:
        lines.append(f"  {report['labels']:,} labels; image folder not there: files not checked")
    else:
        counts = f"labels without an image: {missing:,}; images without a label: {report['images_without_label']:,}"
        lines.append(f"  {report['labels']:,} labels; {counts}")
        if missing > MISSING_SHARE * report["labels"]:
            share = missing / report["labels"]
            lines.append(f"  warning: {share:.0%} of the labels have no image: {report['example']}: check train_image")
    if report["duplicates"]:
        lines.append(f"  duplicates dropped, by {report['duplicates']}: {report['duplicates_dropped']:,}")
    return lines
