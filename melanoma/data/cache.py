"""Decode each image file once into a cache on disk, from which batches are gathered.

The cache of one folder at one size is two files that only grow:

    pixels.bin   a uint8 (S, S, 3) block for each row
    index.jsonl  a header line, then a line for each row: its number, name, bytes and mtime_ns of the file, and width
                 and height of the image and a hash of the row's pixels, or error if it could not be decoded

A row counts once its line in the index is complete, and that line is written after the row's pixels have reached the
disk. A build that is killed loses at most the rows of its last commit, and the next build resumes there. A source file
that has changed gets a new row, which replaces the old one. Each line ends in its CRC-32, so that damage to the index
is detected; damage to the pixels is not.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b, sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from filelock import FileLock
from PIL import Image
from tqdm import tqdm

from melanoma.common.errors import InputError, brief
from melanoma.common.files import cannot_write, make_folder, need_room
from melanoma.common.threads import map_ahead
from melanoma.data.decoding import UnreadableImage, count_links, decode_with_size, hidden_warnings

FORMAT = "lesion-cache-4"
COMMIT_ROWS = 256  # rows between two waits for the disk: a kill loses at most these
SPARE_BYTES = 64 * 2**20  # left free on the cache's disk


@dataclass(frozen=True)
class Source:
    """The file that an image was decoded from: its size in bytes, and its stored size in pixels."""

    bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageCache:
    """Decoded images at one size.

    pixels : uint8 of shape (rows, S, S, 3), read-only where they are on the disk
    row_of : row of each readable image, by name
    errors : what was wrong with each unreadable image, by name
    sources : the file of each readable image, by name
    hash_of : hash of the pixels of each readable image, by name: equal pictures have equal ones
    """

    pixels: np.ndarray
    row_of: Mapping[str, int]
    errors: Mapping[str, str]
    sources: Mapping[str, Source] = field(default_factory=dict)
    hash_of: Mapping[str, str] = field(default_factory=dict)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of images by row, uint8 (B, S, S, 3).

        The pages read are released at once, so that a pass over the data set does not fill the memory of the process.
        """
        images = self.pixels[rows]
        if isinstance(self.pixels.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self.pixels.base.madvise(mmap.MADV_DONTNEED)
        return images

    def rows(self, names: Iterable[str]) -> np.ndarray:
        """Return the rows of named images, int64 of shape (len(names),)."""
        return np.array([self.row_of[name] for name in names], dtype=np.int64)

    def hashes(self, names: Iterable[str]) -> list[str]:
        """Return the hashes of the pixels of named images."""
        return [self.hash_of[name] for name in names]


def build_cache(paths: Mapping[str, Path], size: int, cache_dir: Path, workers: int = 0) -> ImageCache:
    """Return the cache of these image files, decoding only those that are new or have changed.

    Parameters
    ----------
    paths : image file of each name; each folder that holds them all, and each size, has its own cache
    size : side S in pixels
    cache_dir : where caches are kept; made if it does not exist
    workers : decoding threads (Pillow decodes outside Python's lock); 0: one for each core

    Raises
    ------
    InputError : too little room on the disk, images on several drives, or the cache cannot be written
    """
    if not paths:
        raise InputError("no images to decode: check train_image and train_labels")
    try:
        folder = Path(os.path.commonpath([path.parent for path in paths.values()])).resolve()
    except ValueError as error:  # Windows has no folder above its drives
        raise InputError("the images lie on several drives: put them on one") from error
    where = cache_dir / f"{folder.name}-{sha256(str(folder).encode()).hexdigest()[:8]}-{size}px"
    stats = {name: _stat(path) for name, path in paths.items()}
    entries, _ = _read_index(where, size)
    if _missing(entries, stats):
        make_folder(where)
        try:
            with FileLock(where / "lock"):
                _append_missing(where, paths, stats, size, workers)
        except (OSError, NotImplementedError) as error:
            raise cannot_write(where, error) from error
        entries, _ = _read_index(where, size)
    latest = {entry["name"]: entry for entry in entries}
    errors = {name: latest[name]["error"] for name in paths if "error" in latest[name]}
    readable = [latest[name] for name in paths if name not in errors]
    row_of = {entry["name"]: entry["row"] for entry in readable}
    sources = {entry["name"]: Source(entry["bytes"], entry["width"], entry["height"]) for entry in readable}
    pixels = np.memmap(where / "pixels.bin", np.uint8, "r", shape=(len(entries), size, size, 3))
    return ImageCache(pixels, row_of, errors, sources, {entry["name"]: entry["hash"] for entry in readable})


def decode_photos(paths: Mapping[str, Path | Image.Image], size: int, workers: int = 0) -> ImageCache:
    """Return a cache in memory of image files from any folders, or of PIL images; arguments as `build_cache`."""
    decoded = list(decode_each(paths, size, workers))
    pixels = np.stack([block for _, block, _ in decoded])
    errors = {name: found["error"] for name, _, found in decoded if "error" in found}
    row_of = {name: row for row, (name, _, _) in enumerate(decoded) if name not in errors}
    hash_of = {name: found["hash"] for name, _, found in decoded if name in row_of}
    return ImageCache(pixels, row_of, errors, hash_of=hash_of)


def refuse_unreadable(errors: Mapping[str, str], skip: bool) -> None:
    """Raise InputError if images could not be decoded, unless they are to be skipped."""
    if errors and not skip:
        each = "; ".join(f"{brief(name)}: {error}" for name, error in sorted(errors.items()))
        raise InputError(f"{len(errors)} images cannot be read, replace them or pass --skip-unreadable: {each}")


def _read_index(where: Path, size: int) -> tuple[list[dict[str, Any]], int]:
    """Return the entries of the index up to its first damaged line, one for each row, and at which byte they end."""
    try:
        whole_rows = (where / "pixels.bin").stat().st_size // (size * size * 3)
        header, *lines = (where / "index.jsonl").read_bytes().splitlines(keepends=True)
    except (OSError, ValueError):  # no such files, or an empty index
        return [], 0
    if header != _line({"format": FORMAT, "size": size}):  # of another format
        return [], 0
    entries: list[dict[str, Any]] = []
    end = len(header)
    for line in lines[:whole_rows]:
        text, _, checksum = line.rpartition(b"\t")
        if checksum != b"%08x\n" % crc32(text):
            break
        entry = json.loads(text)
        if entry["row"] != len(entries):  # a line above is missing
            break
        entries.append(entry)
        end += len(line)
    return entries, end


def _missing(entries: Iterable[Mapping[str, Any]], stats: Mapping[str, tuple[int, int]]) -> list[str]:
    """Return the names without an entry, whose file has changed, or that the system refused to read."""
    known = {}
    for entry in entries:
        known[entry["name"]] = None if entry.get("passing") else (entry["bytes"], entry["mtime_ns"])
    return [name for name, stat in stats.items() if known.get(name) != stat]


def _append_missing(
    where: Path, paths: Mapping[str, Path], stats: Mapping[str, tuple[int, int]], size: int, workers: int
) -> None:
    """Decode what is missing into new rows after the last valid one. The caller holds the lock."""
    entries, index_bytes = _read_index(where, size)
    missing = {name: paths[name] for name in _missing(entries, stats)}
    if not missing:  # another process has decoded them while this one waited for the lock
        return
    row, row_bytes = len(entries), size * size * 3
    need_room(where, len(missing) * row_bytes + SPARE_BYTES, f"cache_dir {where.parent}", "pass --cache-dir")
    start = time.monotonic()
    with (where / "pixels.bin").open("ab") as pixels, (where / "index.jsonl").open("ab") as index:
        # First drop what is invalid: else its lines could become valid again once there are more rows.
        pixels.truncate(row * row_bytes)
        index.truncate(index_bytes)
        _commit(index, b"" if index_bytes else _line({"format": FORMAT, "size": size}))
        bar = tqdm(decode_each(missing, size, workers), "decoding", total=len(missing), unit="image", disable=None)
        decoded = iter(bar)
        while batch := list(islice(decoded, COMMIT_ROWS)):
            lines = []
            for name, _, found in batch:
                entry = {"name": name, "bytes": stats[name][0], "mtime_ns": stats[name][1], "row": row}
                lines.append(_line(entry | found))
                row += 1
            _commit(pixels, b"".join(block.tobytes() for _, block, _ in batch))
            _commit(index, b"".join(lines))
    seconds, links = time.monotonic() - start, count_links(missing.values())
    told = f"; {links:,} of the images are links" if links else ""
    print(f"decoded {len(missing):,} images in {seconds:.1f} s ({len(missing) / seconds:,.0f} images/s){told}")


def decode_each(
    paths: Mapping[str, Path | Image.Image], size: int, workers: int
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Yield (name, pixels, {width, height, hash} or {error}) in the order of `paths`, few images in memory."""
    workers = workers or os.cpu_count() or 1
    black = np.zeros((size, size, 3), np.uint8)  # the row of an unreadable file; never used

    def decode(name: str) -> tuple[str, np.ndarray, dict[str, Any]]:
        try:
            pixels, (width, height) = decode_with_size(paths[name], size)
            found = {"width": width, "height": height, "hash": blake2b(pixels.tobytes(), digest_size=16).hexdigest()}
            return name, pixels, found
        except UnreadableImage as error:
            return name, black, {"error": error.reason} | ({"passing": True} if error.passing else {})

    with hidden_warnings():
        yield from map_ahead(decode, paths, workers, 4 * workers)


def _commit(file: BinaryIO, data: bytes) -> None:
    """Append data to a file and wait for the disk."""
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _stat(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change; -1 and 0 if it is gone, which decoding will report."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry).encode()
    return b"%b\t%08x\n" % (text, crc32(text))
