"""Decode each image file once into a cache on disk, from which batches are gathered.

The cache of one folder at one size is two files that only grow:

    pixels.bin   a uint8 (S, S, 3) block for each row
    index.jsonl  a header line, then a line for each row: its number, name, bytes and mtime_ns of the file, and width
                 and height of the image, or error if it could not be decoded

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
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from melanoma.common.errors import InputError, brief
from melanoma.common.files import cannot_write, make_folder, need_room
from melanoma.common.threads import map_ahead
from melanoma.data.decoding import UnreadableImage, count_links, decode_with_size, hidden_warnings

FORMAT = "lesion-cache-3"
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
    """Decoded images of one folder at one size.

    pixels : uint8 of shape (rows, S, S, 3), read-only where they are on the disk
    row_of : row of each readable image, by name
    errors : what was wrong with each unreadable image, by name
    sources : the file of each readable image, by name
    memory : the memory map that the pixels are in, if they are on the disk
    """

    pixels: np.ndarray
    row_of: Mapping[str, int]
    errors: Mapping[str, str]
    sources: Mapping[str, Source] = field(default_factory=dict)
    memory: mmap.mmap | None = None

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of images by row, uint8 (B, S, S, 3).

        The pages read are released at once, so that a pass over the data set does not fill the memory of the process;
        they stay in the system's file cache. That costs 2 ms for 512 images of 128 px.
        """
        images = self.pixels[rows]
        if self.memory is not None and hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)
        return images

    def rows(self, names: Iterable[str]) -> np.ndarray:
        """Return the rows of named images, int64 of shape (len(names),)."""
        return np.array([self.row_of[name] for name in names], dtype=np.int64)


def build_cache(paths: Mapping[str, Path], size: int, cache_dir: Path, workers: int = 0) -> ImageCache:
    """Return the cache of these image files, decoding only those that are new or have changed.

    Parameters
    ----------
    paths : image file of each name, all in one folder; each folder and size has its own cache
    size : side S in pixels
    cache_dir : where caches are kept; made if it does not exist
    workers : decoding threads (Pillow decodes outside Python's lock); 0: one for each core

    Raises
    ------
    InputError : too little room on the disk, or the cache cannot be written
    """
    where = _cache_folder(paths, size, cache_dir)
    stats = {name: _stat(path) for name, path in paths.items()}
    state = _State.read(where, size)
    if state.missing(stats):
        make_folder(where)
        try:
            with FileLock(where / "lock"):  # a second process waits here and then finds nothing missing
                state = _State.read(where, size)
                missing = state.missing(stats)
                if missing:
                    _append(state, where, {name: paths[name] for name in missing}, stats, size, workers)
                    state = _State.read(where, size)
        except OSError as error:
            raise cannot_write(where, error) from error
    entries = {name: state.entries[name] for name in paths}
    errors = {name: entry["error"] for name, entry in entries.items() if "error" in entry}
    readable = {name: entry for name, entry in entries.items() if "error" not in entry}
    row_of = {name: entry["row"] for name, entry in readable.items()}
    sources = {name: Source(entry["bytes"], entry["width"], entry["height"]) for name, entry in readable.items()}
    with (where / "pixels.bin").open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pixels = np.frombuffer(memory, np.uint8, state.rows * size * size * 3)
    return ImageCache(pixels.reshape(state.rows, size, size, 3), row_of, errors, sources, memory)


def decode_photos(paths: Mapping[str, Path], size: int, workers: int = 0) -> ImageCache:
    """Return a cache in memory of image files from any folders; arguments as `build_cache`."""
    decoded = list(_decode_all(paths, size, workers))
    pixels = np.stack([block for _, block, _ in decoded])
    errors = {name: found["error"] for name, _, found in decoded if "error" in found}
    row_of = {name: row for row, (name, _, _) in enumerate(decoded) if name not in errors}
    return ImageCache(pixels, row_of, errors)


def refuse_unreadable(errors: Mapping[str, str], skip: bool) -> None:
    """Raise InputError if images could not be decoded, unless they are to be skipped."""
    if errors and not skip:
        listed = "; ".join(f"{brief(name)}: {error}" for name, error in sorted(errors.items()))
        raise InputError(f"{len(errors)} images cannot be read, replace them or pass --skip-unreadable: {listed}")


@dataclass
class _State:
    """What the files of a cache hold: the latest entry of each name, and up to where the files are valid."""

    entries: dict[str, dict[str, Any]]
    rows: int
    index_bytes: int

    @staticmethod
    def read(where: Path, size: int) -> _State:
        """Read the index up to its first invalid line; nothing of one that is absent or of another format."""
        state = _State({}, 0, 0)
        try:
            with (where / "pixels.bin").open("rb") as file:
                whole_rows = os.fstat(file.fileno()).st_size // (size * size * 3)
            header, *lines = (where / "index.jsonl").read_bytes().splitlines(keepends=True)
            if header != _line({"format": FORMAT, "size": size}):
                return state
            state.index_bytes = len(header)
            for line in lines[:whole_rows]:
                text = line.rpartition(b"\t")[0]
                if line != _with_checksum(text):
                    break
                entry = json.loads(text)
                if entry["row"] != state.rows:  # a line above is missing
                    break
                state.entries[entry["name"]] = entry
                state.rows += 1
                state.index_bytes += len(line)
        except (OSError, ValueError):  # no such files, or an empty index
            pass
        return state

    def missing(self, stats: Mapping[str, tuple[int, int]]) -> list[str]:
        """Return the names without an entry, whose file has changed, or that the system refused to read."""
        entries = self.entries
        return [
            name
            for name, stat in stats.items()
            if name not in entries
            or (entries[name]["bytes"], entries[name]["mtime_ns"]) != stat
            or entries[name].get("passing")
        ]


def _append(
    state: _State, where: Path, paths: Mapping[str, Path], stats: Mapping[str, tuple[int, int]], size: int, workers: int
) -> None:
    """Decode files into new rows after the last valid one. The caller holds the lock."""
    need = len(paths) * size * size * 3 + SPARE_BYTES
    need_room(where, need, f"cache_dir {where.parent}", "pass --cache-dir")
    start = time.monotonic()
    with _open(where / "pixels.bin") as pixels, _open(where / "index.jsonl") as index:
        # First drop what is invalid: else its lines could become valid again once there are more rows.
        header = b"" if state.index_bytes else _line({"format": FORMAT, "size": size})
        index_end = _commit(index, header, state.index_bytes)
        pixels_end, row = state.rows * size * size * 3, state.rows
        bar = tqdm(_decode_all(paths, size, workers), "decoding", total=len(paths), unit="image", disable=None)
        decoded = iter(bar)
        while batch := list(islice(decoded, COMMIT_ROWS)):
            lines = []
            for name, _, found in batch:
                entry = {"name": name, "bytes": stats[name][0], "mtime_ns": stats[name][1], "row": row}
                lines.append(_line(entry | found))
                row += 1
            pixels_end = _commit(pixels, b"".join(block.tobytes() for _, block, _ in batch), pixels_end)
            index_end = _commit(index, b"".join(lines), index_end)
    seconds = time.monotonic() - start
    links = count_links(paths.values())
    print(
        f"decoded {len(paths):,} images in {seconds:.1f} s ({len(paths) / seconds:,.0f} images/s)"
        + (f"; {links:,} of the images are links" if links else "")
    )


def _decode_all(paths: Mapping[str, Path], size: int, workers: int) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Yield (name, pixels, {width, height} or {error}) in the order of `paths`, few images in memory at a time."""
    workers = workers or os.cpu_count() or 1
    black = np.zeros((size, size, 3), np.uint8)  # the row of an unreadable file; never used

    def decode(name: str) -> tuple[str, np.ndarray, dict[str, Any]]:
        try:
            pixels, (width, height) = decode_with_size(paths[name], size)
            return name, pixels, {"width": width, "height": height}
        except UnreadableImage as error:
            return name, black, {"error": error.reason} | ({"passing": True} if error.passing else {})

    with hidden_warnings():
        yield from map_ahead(decode, paths, workers, 4 * workers)


def _commit(file: BinaryIO, data: bytes, position: int) -> int:
    """Write data at a position, cut the file behind it, wait for the disk; return the end."""
    file.seek(position)
    file.write(data)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _cache_folder(paths: Mapping[str, Path], size: int, cache_dir: Path) -> Path:
    if not paths:
        raise InputError("no images to decode: check train_image and train_labels")
    folders = {path.parent for path in paths.values()}
    if len(folders) > 1:
        raise ValueError(f"one cache holds one folder, got {len(folders)}")
    folder = folders.pop().resolve()
    return cache_dir / f"{folder.name}-{sha256(str(folder).encode()).hexdigest()[:8]}-{size}px"


def _stat(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change; -1 and 0 if it is gone, which decoding will report."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _open(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _line(entry: Mapping[str, Any]) -> bytes:
    return _with_checksum(json.dumps(entry).encode())


def _with_checksum(text: bytes) -> bytes:
    return text + f"\t{crc32(text):08x}\n".encode()
