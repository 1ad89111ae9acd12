"""Near-duplicates: which changes of a photograph are found, the pairs in a folder, and the time.

    python benchmarks/duplicates.py [--images DIR] [--size 128] [--changed 500]

Recall is the share of changed copies that are listed with their originals, with the right flip and turn if there was
one. For ISIC 2020's 33,126 images the time to decode is scaled, the time to search is that of as many images of noise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
from PIL import Image
from synthetic import alone, peak_memory, write_photos

from melanoma.data.cache import ImageCache, build_cache, decode_photos
from melanoma.data.decoding import find_images
from melanoma.data.duplicates import ALIKE, PAIR, find_duplicates

ISIC_2020 = 33126
LEAST = 0.9  # similarity
FILTERS = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
# JPEG quality, factors of width and height, and whether turned or flipped; None: drawn for each image
CHANGES: dict[str, tuple[int | None, tuple[float, float] | None, bool]] = {
    "JPEG quality 95": (95, (1, 1), False),
    "JPEG quality 75": (75, (1, 1), False),
    "JPEG quality 50": (50, (1, 1), False),
    "JPEG quality 30": (30, (1, 1), False),
    "half size": (95, (0.5, 0.5), False),
    "double size": (95, (2, 2), False),
    "other aspect": (95, (1, 0.75), False),
    "turned or flipped": (95, (1, 1), True),
    "all, at random": (None, None, True),
    "all, half, quality 30": (30, (0.5, 0.5), True),
}


def write_changed(source: Path, target: Path, change: str, rng: np.random.Generator) -> tuple[int, int]:
    """Write a changed copy of a photograph; return whether it was flipped, and by how many degrees it was turned."""
    quality, factors, turns = CHANGES[change]
    flipped, quarters = divmod(int(rng.integers(1, 8)), 4) if turns else (0, 0)
    with Image.open(source) as image:
        size = [max(1, round(s * f)) for s, f in zip(image.size, factors or rng.uniform(0.5, 2, 2), strict=True)]
        resized = image.convert("RGB").resize((size[0], size[1]), FILTERS[rng.integers(len(FILTERS))])
    seen = np.rot90(np.asarray(resized)[:, :: -1 if flipped else 1], quarters)
    Image.fromarray(np.ascontiguousarray(seen)).save(target, quality=quality or int(rng.integers(30, 96)))
    return flipped, 90 * quarters


def recall(originals: Mapping[str, Path], change: str, size: int) -> tuple[float, float, float]:
    """Return the shares of changed copies that are found, and that are seen as turned, and their least similarity.

    The least similarity is LEAST if it is below.
    """
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        copies = {f"{name} changed": Path(folder, f"{i}.jpg") for i, name in enumerate(originals)}
        done = [write_changed(*paths, change, rng) for paths in zip(originals.values(), copies.values(), strict=True)]
        found = find_duplicates(decode_photos({**originals, **copies}, size), [*originals, *copies], LEAST)
    pairs = found.set_index([*PAIR]).reindex(list(zip(originals, copies, strict=True)))
    alike = pairs["similarity"].fillna(LEAST)
    right = (pairs[["flipped", "turned"]].fillna(-1).to_numpy() == done).all(axis=1) & (alike > ALIKE)
    return float((alike > ALIKE).mean()), float(right.mean()), float(alike.min())


def search(paths: Mapping[str, Path], size: int, cache_dir: Path) -> tuple[pd.DataFrame, tuple[float, float], float]:
    """Return the pairs, the seconds to decode and to search all images, and the peak memory in GB."""
    start = time.perf_counter()
    cache = build_cache(paths, size, cache_dir)
    decoded = time.perf_counter()
    found = find_duplicates(cache, list(cache.row_of), LEAST)
    return found, (decoded - start, time.perf_counter() - decoded), peak_memory()


def search_noise(n: int) -> tuple[float, float]:
    """Return the seconds to search n images of noise, 32 pixels wide, and the peak memory in GB."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), np.uint8)
    row_of = {str(i): i for i in range(n)}
    start = time.perf_counter()
    find_duplicates(ImageCache(pixels, row_of, {}), list(row_of))
    return time.perf_counter() - start, peak_memory()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of image files (default: generated)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels of the decoded images")
    parser.add_argument("--changed", type=int, default=500, help="images that are changed, of each kind")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        paths = find_images(arguments.images or write_photos(Path(scratch, "photos"), 200, (640, 480), 200))
        names = np.random.default_rng(0).permutation(list(paths))[: arguments.changed]
        print(f"{len(names):,} images changed      found  as turned  least similarity")
        for change in CHANGES:
            found, right, least = recall({name: paths[name] for name in names}, change, arguments.size)
            print(f"  {change:<22} {found:8.1%} {right:10.1%} {least:17.3f}")
        pairs, (decoding, searching), memory = alone(search, paths, arguments.size, Path(scratch, "cache"))
    counts = (
        f"{(pairs['similarity'] > least).sum():,} above {least}" for least in (0.99, 0.98, 0.97, ALIKE, 0.95, LEAST)
    )
    print(f"pairs among {len(paths):,} images: {', '.join(counts)}")
    print(f"decoding {decoding:.1f} s, search {searching:.1f} s, {memory:.2f} GB")
    noise, memory = alone(search_noise, ISIC_2020)
    scaled = decoding * ISIC_2020 / len(paths)
    print(f"{ISIC_2020:,} images: decoding {scaled:.0f} s (scaled), search {noise:.0f} s, {memory:.2f} GB (of noise)")


if __name__ == "__main__":
    main()
