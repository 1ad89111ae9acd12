"""Whether the image files of a folder are whole: each is read once, all of it, and decoded."""

from __future__ import annotations

import os
import zlib
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from config import Config
from melanoma.common.errors import InputError, listed
from melanoma.common.files import is_folder
from melanoma.data.archive import RECORD, Recorded, read_record
from melanoma.data.decoding import UnreadableImage, decode_image, find_images
from melanoma.data.labels import read_duplicates, read_labels, read_test_names

MISSING = "missing"
SIZE = "of another size than recorded"
CONTENTS = "of the recorded size, with other bytes in it"
UNREADABLE = "not readable as an image"


@dataclass(frozen=True)
class Findings:
    """What a check of a folder found.

    images : image files in the folder
    recorded : how many of them have a recorded size
    faults : names of images by what is wrong with them, sorted; without the kinds that did not occur
    unnamed : images that the CSV does not name, which is no fault: nothing will use them
    """

    images: int
    recorded: int
    faults: dict[str, list[str]]
    unnamed: list[str]


def check_images(
    names: Collection[str], paths: Mapping[str, Path], record: Mapping[str, Recorded], workers: int = 0
) -> Findings:
    """Read every image file of a folder and compare the folder with the names that a CSV gives.

    Parameters
    ----------
    names : of the images in the CSV
    paths : image file of each name in the folder
    record : size and CRC-32 by file name, empty if they were not recorded
    workers : decoding threads (Pillow decodes outside Python's lock); 0: one for each core
    """
    faults: dict[str, list[str]] = {}
    missing = {*names, *(Path(file).stem for file in record)} - paths.keys()
    if missing:
        faults[MISSING] = sorted(missing)
    for name, fault in _read_all(paths, record, workers or os.cpu_count() or 1):
        if fault:
            faults.setdefault(fault, []).append(name)
    recorded = sum(path.name in record for path in paths.values())
    return Findings(len(paths), recorded, faults, sorted(paths.keys() - set(names)))


def _read_all(
    paths: Mapping[str, Path], record: Mapping[str, Recorded], workers: int
) -> Iterable[tuple[str, str | None]]:
    """Yield (name, fault or None) in the order of `paths`."""
    pool = ThreadPoolExecutor(workers)
    try:
        found = pool.map(lambda path: image_fault(path, record.get(path.name)), paths.values())
        bar = tqdm(found, desc="checking", total=len(paths), unit="image", disable=None)
        yield from zip(paths, bar, strict=True)
    finally:
        pool.shutdown(cancel_futures=True)  # Ctrl-C does not wait for the rest of the folder


def image_fault(path: Path, recorded: Recorded | None) -> str | None:
    """Return what is wrong with an image file, or None."""
    try:
        data = path.read_bytes()
        if recorded and len(data) != recorded.bytes:
            return SIZE
        if recorded and zlib.crc32(data) != recorded.crc32:
            return CONTENTS
        decode_image(
            path, 1
        )  # a JPEG at an eighth of its size: every byte is still decoded, fewer pixels computed
    except (OSError, UnreadableImage):
        return UNREADABLE
    return None


def describe_check(folder: Path, csv: Path, findings: Findings) -> list[str]:
    """Return the findings of a folder as lines."""
    lines = [f"{folder}: {findings.images:,} images, {findings.recorded:,} of them with a recorded size"]
    if not findings.recorded:
        lines[0] += f" (no {RECORD}, which a download leaves: sizes are not compared)"
    for fault, names in findings.faults.items():
        lines.append(f"  {len(names):,} {fault}: {listed(names)}")
    if findings.unnamed:
        lines.append(
            f"  {len(findings.unnamed):,} not named by {csv}, and not used: {listed(findings.unnamed)}"
        )
    return lines


def check_files(config: Config) -> None:
    """Read every image file that config.py points at and print what is wrong with the download.

    Raises
    ------
    InputError : an image that a CSV names is missing, or one is damaged
    """
    labelled = read_labels(config.train_labels)["image_name"].tolist()
    parts = [("train_image", config.train_image, config.train_labels, labelled)]
    if is_folder(config.test_image):
        parts.append(
            ("test_image", config.test_image, config.test_labels, read_test_names(config.test_labels))
        )
    problems = []
    for argument, folder, labels, names in parts:
        paths = find_images(folder, argument, config.follow_links)
        findings = check_images(names, paths, read_record(folder), config.workers)
        print("\n".join(describe_check(folder, labels, findings)))
        problems += [f"{folder}: {len(images):,} {fault}" for fault, images in findings.faults.items()]
    if config.duplicates is not None:
        pairs = read_duplicates(config.duplicates)
        unknown = {name for pair in pairs for name in pair} - set(labelled)
        print(f"{config.duplicates}: {len(pairs):,} pairs, {len(unknown):,} of their images without a label")
        if unknown:
            problems.append(f"{config.duplicates}: {len(unknown):,} images that {config.train_labels} lacks")
    if problems:
        raise InputError(
            f"{'; '.join(problems)}: delete what is damaged, and run --download again for what is then missing"
        )
    print("all whole")
