"""Scaling: how build time, epoch time, memory and disk grow with the number of images.

    python benchmarks/scaling.py [--images 1000 4000 16000 33126] [--steps 40]

Sources are generated files of 256×256, one image in 57 a melanoma as in ISIC 2020. An epoch has as many pairs as
twice the benign images; --steps times that many of its steps and takes the rest to be like them (0: all of them).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from synthetic import alone, peak_memory, write_photos
from trial import Trial

from config import Config
from melanoma.common.device import choose_device, choose_precision, describe_device, keep_freed_memory
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images


def measure(folder: Path, cache_dir: Path, steps: int) -> dict[str, float | str]:
    """Build the cache of a folder and train on it; return what it took."""
    keep_freed_memory()
    config = Config(recipe="baseline")
    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    start = time.perf_counter()
    cache = build_cache(find_images(folder), config.image_size, cache_dir)
    built = time.perf_counter() - start
    build_memory = peak_memory()

    start = time.perf_counter()
    trial = Trial(config, cache, device, dtype)
    ready = time.perf_counter() - start
    trial.train(1)  # warm-up
    steps = min(steps or len(trial.batches), len(trial.batches))
    pairs = [len(batch.same) for batch in trial.batches]
    return {
        "device": describe_device(device, dtype),
        "pairs": sum(pairs),
        "build_s": built,
        "build_gb": build_memory,
        "ready_s": ready,
        "epoch_s": trial.train(steps) / sum(pairs[:steps]) * sum(pairs),
        "train_gb": peak_memory(),
        "cache_gb": sum(file.stat().st_size for file in cache_dir.rglob("*") if file.is_file()) / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000, 16000, 33126])
    parser.add_argument("--steps", type=int, default=40, help="steps of the epoch to time (0: all)")
    arguments = parser.parse_args()
    print("images    pairs  build s  images/s  build GB  ready s  epoch s  images/s  train GB  cache GB")
    for n in arguments.images:
        with tempfile.TemporaryDirectory() as scratch:
            folder = write_photos(Path(scratch) / "photos", n, (256, 256))
            m = alone(measure, folder, Path(scratch) / "cache", arguments.steps)
        print(
            f"{n:>6,} {m['pairs']:>8,} {m['build_s']:>8.1f} {n / m['build_s']:>9,.0f} {m['build_gb']:>9.2f} "
            f"{m['ready_s']:>8.2f} {m['epoch_s']:>8.1f} {2 * m['pairs'] / m['epoch_s']:>9,.0f} "
            f"{m['train_gb']:>9.2f} {m['cache_gb']:>9.2f}",
            flush=True,
        )
    print(m["device"])


if __name__ == "__main__":
    main()
