"""Check that the image files of a data set are there and can be decoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from tqdm import tqdm

from melanoma.common.errors import InputError, listed
from melanoma.common.files import is_folder
from melanoma.data.cache import decode_each
from melanoma.data.decoding import count_links, find_images
from melanoma.data.labels import read_test_names


def unreadable_images(paths: Mapping[str, Path], workers: int = 0) -> list[str]:
    """Return the names of image files that cannot be decoded, for example because they are cut, sorted.

    All of a file is read, a JPEG at an eighth of its size.

    workers : threads that decode (0: one for each core)
    """
    decoded = tqdm(decode_each(paths, 1, workers), desc="checking", total=len(paths), unit="image", disable=None)
    return sorted(name for name, _, found in decoded if "error" in found)


def check_files(
    train: Mapping[str, Path], missing: Collection[str], test_image: Path, test_labels: Path, workers: int
) -> None:
    """Check the images of the training set, and of the test set if it is there, and print what is found.

    Parameters
    ----------
    train, missing : image files by name, and the names of labels without one
    workers : see `unreadable_images`

    Raises
    ------
    InputError : an image that a CSV names is missing, or one cannot be decoded
    """
    # files of the training set that no label names are counted with its labels
    parts: list[tuple[str, Mapping[str, Path], set[str], set[str]]] = [("train_image", train, set(missing), set())]
    if is_folder(test_image):
        names, found = set(read_test_names(test_labels)), find_images(test_image, "test_image")
        parts.append(("test_image", found, names - found.keys(), found.keys() - names))
    problems = []
    for argument, paths, absent, extra in parts:
        print(f"{argument}: {len(paths):,} images, {count_links(paths.values()):,} of them links")
        for what, images in (("missing", sorted(absent)), ("unreadable", unreadable_images(paths, workers))):
            if images:
                print(f"  {len(images):,} {what}: {listed(images)}")
                problems.append(f"{argument}: {len(images):,} {what}")
        if extra:
            print(f"  {len(extra):,} not in {test_labels} and not used: {listed(sorted(extra))}")
    if problems:
        raise InputError(f"{'; '.join(problems)}: delete what is unreadable, then get what is missing with --download")
    print("all images are complete")
