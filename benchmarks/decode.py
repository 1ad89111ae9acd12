"""Decoding: each file in full and then resized, against the cache builder.

    python benchmarks/decode.py [--images DIR] [--size 128]

One core, by size of the source: milliseconds for an image, ratio, and how close the two results are (PSNR). Then the
whole builder, disk and all, with one thread and with one for each core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import timeit
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import os

import numpy as np
from PIL import Image
from synthetic import write_photos

from melanoma.data.cache import build_cache
from melanoma.data.decoding import decode_image, find_images

GENERATED = ((6000, 4000), (4000, 3000), (1872, 1053), (640, 480))
REPEATS = 3


def decode_plain(path: Path, size: int) -> np.ndarray:
    """Decode a file in full and resize it with the builder's own filter."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def seconds(decode: Callable[[Path, int], np.ndarray], paths: list[Path], size: int) -> float:
    """Return the least of a few measurements of the seconds to decode all paths on one core."""
    return min(timeit.repeat(lambda: [decode(path, size) for path in paths], number=1, repeat=REPEATS))


def psnr(paths: list[Path], size: int) -> float:
    """Return the peak signal-to-noise ratio in dB between the two ways to decode."""
    errors = [np.square(decode_plain(path, size).astype(float) - decode_image(path, size)).mean() for path in paths]
    return float(10 * np.log10(255**2 / np.mean(errors))) if np.mean(errors) else float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of image files (default: generated)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels")
    arguments = parser.parse_args()
    size, cores = arguments.size, os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        folders = [arguments.images]
        if not arguments.images:
            folders = [write_photos(Path(scratch) / f"photos{shape[0]}", 4, shape) for shape in GENERATED]
        paths = {f"{folder.name}-{name}": path for folder in folders for name, path in find_images(folder).items()}
        groups: defaultdict[tuple[int, int], list[Path]] = defaultdict(list)
        for path in paths.values():
            with Image.open(path) as image:
                groups[image.size].append(path)
        print("source        files  plain ms  builder ms  ratio  PSNR dB")
        for (width, height), group in sorted(groups.items(), reverse=True):
            plain, own = (1000 * seconds(f, group, size) / len(group) for f in (decode_plain, decode_image))
            print(
                f"{width:>5}×{height:<6} {len(group):>6} {plain:>9.1f} {own:>11.1f} {plain / own:>6.1f} "
                f"{psnr(group, size):>8.1f}"
            )
        many = Path(scratch) / "many"
        many.mkdir()
        for name, path in paths.items():  # enough work to time
            for copy in range(max(1, 400 // len(paths))):
                (many / f"{name}-{copy}{path.suffix}").symlink_to(path.resolve())
        whole = []
        for workers in (1, cores):
            start = time.perf_counter()
            build_cache(find_images(many), size, Path(scratch) / f"cache{workers}", workers)
            whole.append(time.perf_counter() - start)
        print(f"whole builder, {cores} threads against 1: {whole[0] / whole[1]:.2f} × as fast")


if __name__ == "__main__":
    main()
