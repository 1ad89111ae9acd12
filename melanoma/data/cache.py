"""Pixels: each image file is decoded once into a cache on disk, and batches are gathered from there.

`python images.py` builds the cache of the folders that config.py points at; train.py builds it too if need be.

The cache of one folder at one size is two files that only ever grow:

    pixels.bin   64 bytes of header, then one uint8 (S, S, 3) block for each row
    index.jsonl  a header line, then one line for each row: its number, name, bytes and mtime_ns of the file, and either
                 its width and height or, if it could not be decoded, error

A row counts once its index line is whole, and that line is written after the row's pixels have reached the disk.
So a build killed at any moment has lost at most the rows of its last commit, and the next build goes on from
there; a changed source file gets a new row, which hides the old one. Each line ends in a tab and its CRC-32, so that
an index in which a byte has changed ends there too; a byte that has changed in the pixels is not noticed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np
from filelock import FileLock
from tqdm import tqdm

from config import add_flags, from_flags
from melanoma.common.errors import InputError, brief
from melanoma.common.files import cannot_write, is_folder, make_folder, need_room
from melanoma.common.script import run_script
from melanoma.data.decoding import UnreadableImage, decode_with_size, find_images

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

FORMAT = "lesion-cache-2"
HEADER_BYTES = 64
COMMIT_ROWS = 256  # rows between two waits for the disk: a kill loses at most these
SPARE_BYTES = 64 * 2**20  # left free on the cache's disk


@dataclass(frozen=True)
class Source:
    """The file that an image was decoded from: its size on the disk in bytes, and in pixels as it is stored."""

    bytes: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageCache:
    """Decoded images of one folder at one size.

    memory : the mapped file
    pixels : the images in it, uint8 of shape (rows, S, S, 3), read-only
    row_of : row of each readable image, by name
    errors : what was wrong with each unreadable image, by name
    sources : the file of each readable image, by name
    """

    memory: mmap.mmap
    pixels: np.ndarray
    row_of: Mapping[str, int]
    errors: Mapping[str, str]
    sources: Mapping[str, Source] = field(default_factory=dict)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return a copy of images by row, uint8 (B, S, S, 3).

        The pages read are handed back at once: they stay in the system's file cache, but a run over the whole set
        does not come to hold it in its own memory. That costs 2 ms for 512 images of 128 px.
        """
        images = self.pixels[rows]
        if hasattr(mmap, "MADV_DONTNEED"):
            self.memory.madvise(mmap.MADV_DONTNEED)
        return images

    def rows(self, names: Iterable[str]) -> np.ndarray:
        """Return the rows of named images, int64 of shape (len(names),)."""
        return np.array([self.row_of[name] for name in names], dtype=np.int64)


def build_cache(paths: Mapping[str, Path], size: int, cache_dir: Path, workers: int = 0) -> ImageCache:
    """Return the cache of these image files, decoding only those that are new or have changed.

    Parameters
    ----------
    paths : image file of each name, all in one folder; a cache is kept for each folder and size
    size : side S in pixels
    cache_dir : where caches are kept; made if it is not there
    workers : decoding threads (Pillow decodes outside Python's lock); 0: one for each core

    Raises
    ------
    InputError : too little room on the disk, the message says how much is needed; or the cache cannot be written
    """
    where = _cache_folder(paths, size, cache_dir)
    stats = {name: _stat(path) for name, path in paths.items()}
    state = _State.read(where, size)
    if state.missing(stats):
        make_folder(where)
        try:
            with FileLock(where / "lock"):  # a second process waits here and finds the work done
                state = _State.read(where, size)
                missing = state.missing(stats)
                if missing:
                    _append(state, where, {name: paths[name] for name in missing}, stats, size, workers)
                    state = _State.read(where, size)
        except OSError as error:
            raise cannot_write(where, error) from error
    errors = {name: state.entries[name]["error"] for name in paths if "error" in state.entries[name]}
    row_of = {name: state.entries[name]["row"] for name in paths if name not in errors}
    memory, pixels = _map_pixels(where, state.rows, size)
    sources = {
        name: Source(*(state.entries[name][key] for key in ("bytes", "width", "height"))) for name in row_of
    }
    return ImageCache(memory, pixels, row_of, errors, sources)


def decode_photos(paths: Mapping[str, Path], size: int, workers: int = 0) -> ImageCache:
    """Return a cache of image files from anywhere that is kept in memory alone; arguments as `build_cache`."""
    decoded = list(_decode_all(paths, size, workers or os.cpu_count() or 1))
    pixels = np.stack([block for _, block, _ in decoded])
    errors = {name: found["error"] for name, _, found in decoded if "error" in found}
    row_of = {name: row for row, (name, _, _) in enumerate(decoded) if name not in errors}
    return ImageCache(mmap.mmap(-1, 1), pixels, row_of, errors)


def refuse_unreadable(errors: Mapping[str, str], skip: bool) -> None:
    """Raise InputError if images could not be decoded, unless they are left out on purpose (`skip`)."""
    if errors and not skip:
        listed = "; ".join(f"{brief(name)}: {error}" for name, error in sorted(errors.items()))
        raise InputError(
            f"{len(errors)} images cannot be read, replace them or pass --skip-unreadable: {listed}"
        )


@dataclass
class _State:
    """What the files of a cache hold: the latest entry of each name, and how far the files are whole."""

    identity: str
    entries: dict[str, dict[str, Any]]
    rows: int
    index_bytes: int

    @staticmethod
    def read(where: Path, size: int) -> _State:
        """Read the index as far as it is whole; an absent, foreign or truncated cache ends where it is wrong."""
        empty = _State(os.urandom(16).hex(), {}, 0, 0)
        try:
            lines = (where / "index.jsonl").read_bytes().splitlines(keepends=True)
            header = _parse(lines[0])
            with (where / "pixels.bin").open("rb") as file:
                whole_rows = (os.fstat(file.fileno()).st_size - HEADER_BYTES) // (size * size * 3)
                if file.read(HEADER_BYTES) != _header(header["identity"]):
                    return empty
            if (header["format"], header["size"]) != (FORMAT, size):
                return empty
        except (OSError, ValueError, LookupError, TypeError, RecursionError):
            return empty
        state = _State(header["identity"], {}, 0, len(lines[0]))
        for line in lines[1 : whole_rows + 1]:
            try:
                entry = _parse(line)
                wanted = {"error": str} if "error" in entry else {"width": int, "height": int}
                for key, kind in ({"name": str, "bytes": int, "mtime_ns": int} | wanted).items():
                    if type(entry[key]) is not kind:  # an entry without them is not whole
                        raise TypeError(key)
                if entry.setdefault("row", state.rows) != state.rows:  # a line above it is missing
                    break
            except (ValueError, LookupError, TypeError, RecursionError):
                break
            state.entries[entry["name"]] = entry
            state.rows += 1
            state.index_bytes += len(line)
        return state

    def missing(self, stats: Mapping[str, tuple[int, int]]) -> list[str]:
        """Return the names that have no entry, whose file has changed since, or that the system refused to read."""
        entries = self.entries
        return [
            name
            for name, stat in stats.items()
            if name not in entries
            or (entries[name]["bytes"], entries[name]["mtime_ns"]) != stat
            or entries[name].get("passing")
        ]


def _append(
    state: _State,
    where: Path,
    paths: Mapping[str, Path],
    stats: Mapping[str, tuple[int, int]],
    size: int,
    workers: int,
) -> None:
    """Decode the files into rows after the last whole one. The caller holds the lock."""
    need = len(paths) * size * size * 3 + SPARE_BYTES
    need_room(where, need, f"cache_dir {where.parent}", "pass --cache-dir")
    start = time.monotonic()
    with _open(where / "pixels.bin") as pixels, _open(where / "index.jsonl") as index:
        if state.index_bytes == 0:
            header = {"format": FORMAT, "size": size, "identity": state.identity}
            _commit(pixels, _header(state.identity), 0)
            _commit(index, _line(header), 0)
            state.index_bytes = index.tell()
        pixels_end = HEADER_BYTES + state.rows * size * size * 3
        index_end, row = state.index_bytes, state.rows
        decoded = _decode_all(paths, size, workers or os.cpu_count() or 1)
        with tqdm(total=len(paths), desc="decoding", unit="image", disable=None) as bar:
            while True:
                blocks, lines = [], []
                for name, block, found in islice(decoded, COMMIT_ROWS):
                    entry = {"name": name, "bytes": stats[name][0], "mtime_ns": stats[name][1], "row": row}
                    lines.append(_line(entry | found))
                    row += 1
                    blocks.append(block.tobytes())
                    bar.update()
                if not lines:
                    break
                pixels_end = _commit(pixels, b"".join(blocks), pixels_end)
                index_end = _commit(index, b"".join(lines), index_end)
    seconds = time.monotonic() - start
    print(f"decoded {len(paths):,} images in {seconds:.1f} s ({len(paths) / seconds:,.0f} images/s)")


def _decode_all(
    paths: Mapping[str, Path], size: int, workers: int
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Yield (name, pixels, {width, height} or {error}) in the order of `paths`, few images in memory at a time."""
    black = np.zeros((size, size, 3), np.uint8)  # the row of an unreadable file; never handed out

    def decode(name: str) -> tuple[str, np.ndarray, dict[str, Any]]:
        try:
            pixels, (width, height) = decode_with_size(paths[name], size)
            return name, pixels, {"width": width, "height": height}
        except UnreadableImage as error:
            return name, black, {"error": error.reason} | ({"passing": True} if error.passing else {})

    window: deque = deque()
    with ThreadPoolExecutor(workers) as pool:
        for name in paths:
            window.append(pool.submit(decode, name))
            if len(window) >= 4 * workers:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _commit(file: BinaryIO, data: bytes, position: int) -> int:
    """Write data at a position, drop what stood after it, wait for the disk; return the end."""
    file.seek(position)
    file.write(data)
    file.truncate()
    file.flush()
    os.fsync(file.fileno())
    return file.tell()


def _map_pixels(where: Path, rows: int, size: int) -> tuple[mmap.mmap, np.ndarray]:
    with (where / "pixels.bin").open("rb") as file:
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    flat = np.frombuffer(memory, np.uint8, rows * size * size * 3, HEADER_BYTES)
    return memory, flat.reshape(rows, size, size, 3)


def _cache_folder(paths: Mapping[str, Path], size: int, cache_dir: Path) -> Path:
    if not paths:
        raise InputError("no images to decode: check train_image and train_labels")
    folders = {path.parent for path in paths.values()}
    if len(folders) > 1:
        raise ValueError(f"one cache holds one folder, got {len(folders)}")
    folder = folders.pop().resolve()
    return cache_dir / f"{folder.name}-{sha256(str(folder).encode()).hexdigest()[:8]}-{size}px"


def _stat(path: Path) -> tuple[int, int]:
    """Return a file's size and time of change; -1 and 0 if it is gone, which decoding will say."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _open(path: Path) -> BinaryIO:
    path.touch()
    return path.open("r+b")


def _header(identity: str) -> bytes:
    return f"{FORMAT} {identity}\n".encode().ljust(HEADER_BYTES, b"\0")


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(entry).encode()
    return text + f"\t{crc32(text):08x}\n".encode()


def _parse(line: bytes) -> dict[str, Any]:
    """Return what `_line` wrote; ValueError if a byte is missing or has changed."""
    whole = re.fullmatch(rb"(\{.*\})(?:\t([0-9a-f]{8}))?\n", line)  # earlier caches have no checksum
    if not whole or (whole[2] is not None and int(whole[2], 16) != crc32(whole[1])):
        raise ValueError("not as it was written")
    return json.loads(whole[1])


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Decode the images of train_image, and of test_image if it is there, into the cache.",
        allow_abbrev=False,
    )
    add_flags(parser)
    return parser


def main() -> None:
    config = from_flags(make_parser().parse_args())
    folders = {"train_image": config.train_image}
    if is_folder(config.test_image):
        folders["test_image"] = config.test_image
    for argument, folder in folders.items():
        start = time.monotonic()
        cache = build_cache(
            find_images(folder, argument, config.follow_links),
            config.image_size,
            config.cache_dir,
            config.workers,
        )
        seconds = time.monotonic() - start
        n = len(cache.row_of) + len(cache.errors)
        print(
            f"{folder}: {n:,} images of {config.image_size} px, {len(cache.errors):,} unreadable, ready in "
            f"{seconds:.1f} s ({n / seconds:,.0f} images/s), peak memory {peak_memory():.2f} GB"
        )
        refuse_unreadable(cache.errors, config.skip_unreadable)


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in GB (10⁹ bytes); NaN where it isn't known."""
    status = Path("/proc/self/status")
    if (
        status.is_file()
    ):  # Linux, whose ru_maxrss also counts what the parent held when this process was forked
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    run_script(main)
