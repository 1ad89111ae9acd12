"""Check that the image files of a data set are there and can be decoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from melanoma.common.errors import InputError, listed
from melanoma.common.files import is_folder
from melanoma.data.cache import decode_each
from melanoma.data.decoding import count_links, find_images
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


def check_images(names: Collection[str], paths: Mapping[str, Path], workers: int = 0) -> Findings:
    """Decode every image file of a folder, by name in `paths`, and compare the folder with the names in a CSV.

    All of a file is read, a JPEG at an eighth of its size.

    workers : threads that decode (0: one for each core)
    """
    decoded = tqdm(decode_each(paths, 1, workers), desc="checking", total=len(paths), unit="image", disable=None)
    unreadable = [name for name, _, found in decoded if "error" in found]
    return Findings(sorted(set(names) - paths.keys()), sorted(unreadable), sorted(paths.keys() - set(names)))


def check_files(
    train: Mapping[str, Path], missing: Collection[str], test_image: Path, test_labels: Path, workers: int
) -> None:
    """Check the images of the training set, and of the test set if it is there, and print what is found.

    Parameters
    ----------
    train, missing : image files by name, and the names of labels without one
    workers : see `check_images`

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
        findings = check_images(names, paths, workers)
        for what, images in (("missing", findings.missing), ("unreadable", findings.unreadable)):
            if images:
                print(f"  {len(images):,} {what}: {listed(images)}")
                problems.append(f"{argument}: {len(images):,} {what}")
        if findings.extra:  # of the test set: those of the training set are counted with its labels
            print(f"  {len(findings.extra):,} not in {test_labels} and not used: {listed(findings.extra)}")
    if problems:
        raise InputError(f"{'; '.join(problems)}: delete what is unreadable, then get what is missing with --download")
    print("all images are complete")
