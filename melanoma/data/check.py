"""Check that the image files of a data set are there and can be decoded."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from melanoma.common.errors import InputError, listed
from melanoma.common.files import is_folder
from melanoma.common.threads import map_ahead
from melanoma.data.decoding import UnreadableImage, count_links, decode_with_size, find_images, hidden_warnings
from melanoma.data.labels import read_test_names


@dataclass(frozen=True)
class Findings:
    """Names of images, sorted.

    missing : in the CSV, without a file
    unreadable : files that cannot be decoded, for example because they are cut
    extra : files that the CSV does not name; they are not used
    """

    missing: list[str]
    unreadable: list[str]
    extra: list[str]


def check_images(names: Collection[str], paths: Mapping[str, Path]) -> Findings:
    """Decode every image file of a folder, by name in `paths`, and compare the folder with the names in a CSV."""
    threads = os.cpu_count() or 1
    with hidden_warnings():
        found = map_ahead(is_readable, paths.values(), threads, 4 * threads)
        bar = tqdm(found, desc="checking", total=len(paths), unit="image", disable=None)
        unreadable = [name for name, readable in zip(paths, bar, strict=True) if not readable]
    return Findings(sorted(set(names) - paths.keys()), sorted(unreadable), sorted(paths.keys() - set(names)))


def is_readable(path: Path) -> bool:
    """Return whether an image file can be decoded; all of it is read, a JPEG at an eighth of its size."""
    try:
        decode_with_size(path, 1)
    except UnreadableImage:
        return False
    return True


def check_files(train: Mapping[str, Path], missing: Collection[str], test_image: Path, test_labels: Path) -> None:
    """Check the images of the training set, and of the test set if it is there, and print what is found.

    Parameters
    ----------
    train, missing : image files by name, and the names of labels without one

    Raises
    ------
    InputError : an image that a CSV names is missing, or one cannot be decoded
    """
    parts = [("train_image", [*train, *missing], train)]
    if is_folder(test_image):
        parts.append(("test_image", read_test_names(test_labels), find_images(test_image, "test_image")))
    problems = []
    for argument, names, paths in parts:
        print(f"{argument}: {len(paths):,} images, {count_links(paths.values()):,} of them links")
        findings = check_images(names, paths)
        for what, images in (("missing", findings.missing), ("unreadable", findings.unreadable)):
            if images:
                print(f"  {len(images):,} {what}: {listed(images)}")
                problems.append(f"{argument}: {len(images):,} {what}")
        if findings.extra:
            print(f"  {len(findings.extra):,} not in {test_labels} and not used: {listed(findings.extra)}")
    if problems:
        raise InputError(f"{'; '.join(problems)}: delete what is unreadable, then get what is missing with --download")
    print("all images are complete")
