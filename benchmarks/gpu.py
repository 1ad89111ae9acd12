"""A CUDA card: what training, scoring and decoding take on it, at the size of ISIC 2020. At most 8 minutes.

    python benchmarks/gpu.py [--images 33126] [--seconds 10]

Random pixels stand for the images. Each row trains a recipe for so many seconds at least and gives: seconds of an
epoch, its first one apart (what the first steps took longer is added: choosing algorithms, compiling); images/s; of the
profiled steps the share of the time in which the card computes, kernels and waits for the card a step; peak memory; and
the least that an epoch could take by its bytes and by its operations (benchmarks/step.py), at the rates that a large
copy and a large product reach on this card. Without a card it says so and ends; --device cpu tries the script itself.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from step import count_step
from synthetic import write_photos
from torch.autograd import DeviceType
from trial import Trial, labels_of, noise

from config import Config
from melanoma.common.device import choose_precision, describe_device, deterministic, free_memory, keep_freed_memory
from melanoma.data import feed
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images
from melanoma.scoring.embedding import embed_images
from melanoma.scoring.scores import score_all

# Name, settings, and how: compiled, in float32, with the images in main memory
ROWS: list[tuple[str, dict[str, Any], str]] = [
    ("baseline", {"recipe": "baseline"}, ""),
    ("baseline, --compile", {"recipe": "baseline"}, "compiled"),
    ("baseline, float32", {"recipe": "baseline"}, "float32"),
    ("baseline, cache in main memory", {"recipe": "baseline"}, "main memory"),
    ("scratch", {"recipe": "scratch"}, ""),
    ("strong, 128 px", {"recipe": "strong"}, ""),
    ("strong, 224 px", {"recipe": "strong", "image_size": 224}, ""),
    ("strong, 224 px, resnet50", {"recipe": "strong", "image_size": 224, "backbone": "resnet50"}, ""),
]
PROFILED = 10  # steps
COMPARED = 20  # steps on the CPU and on the card


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """Return the seconds of a piece of work on a device, of three trials the best."""

    def finished() -> None:
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return min(timeit.repeat(finished, number=1, repeat=3))


def rates(device: torch.device) -> tuple[float, float]:
    """Return bytes/s that a large copy reads and writes, and operations/s of a large product in bfloat16."""
    side = 8192 if device.type == "cuda" else 1024
    numbers = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    copied = numbers.repeat(8, 1)
    return 2 * copied.nbytes / timed(copied.clone, device), 2 * side**3 / timed(lambda: numbers @ numbers, device)


def profile(trial: Trial) -> str:
    """Return the share of the time that the card is busy, and kernels and waits a step."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiled:
        seconds = trial.train(PROFILED)
    events = profiled.key_averages()
    kernels = [event for event in events if event.device_type == DeviceType.CUDA]
    busy = sum(event.self_device_time_total for event in kernels) / 1e6 / seconds
    waits = sum(event.count for event in events if "Synchronize" in event.key)
    return f"{busy:>6.0%} {sum(event.count for event in kernels) / PROFILED:>8.0f} {waits / PROFILED:>6.1f}"


def measure(
    settings: dict[str, Any], how: str, images: int, seconds: float, device: torch.device, bounds: tuple[float, float]
) -> str:
    """Return a row of the table; `bounds` are the card's `rates`."""
    config = Config(**settings, backbone_weights="none")
    dtype = torch.float32 if how == "float32" else choose_precision("auto", device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
    with patch.object(feed, "DEVICE_SHARE", 0.0 if how == "main memory" else feed.DEVICE_SHARE):
        trial = Trial(config, noise(images, config.image_size), device, dtype, compiled=how == "compiled")
    first = trial.train(3)
    each = trial.train(3) / 3
    steps = min(len(trial.batches), max(3, int(seconds / each)))
    each = trial.train(steps) / steps
    epoch = each * len(trial.batches)
    rate = len(trial.batches[0].rows) / each
    busy = profile(trial) if on_cuda else " " * 22
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if on_cuda else float("nan")
    count = count_step(config)
    by_bytes, by_operations = (
        amount / speed * len(trial.batches) for amount, speed in zip((count.bytes, count.flops), bounds, strict=True)
    )
    return (
        f"{epoch + max(0.0, first - 3 * each):>7.2f} {epoch:>7.2f} {rate:>9,.0f} {busy} {memory:>6.1f} "
        f"{by_bytes:>7.2f} {by_operations:>7.2f}"
    )


def compare(device: torch.device, images: int) -> str:
    """Return how far the losses of the first steps differ between the CPU and the card, and between two runs."""
    config, losses = Config(recipe="baseline", batch_size=64), []
    cache = noise(min(images, 4000), config.image_size)
    with deterministic(True):
        for place in (torch.device("cpu"), device, device):
            trial = Trial(config, cache, place, torch.float32)
            trial.train(COMPARED)
            losses.append(trial.losses[-1])
    same = "the same bits" if losses[1] == losses[2] else f"{abs(losses[1] - losses[2]):.1e} apart"
    return (
        f"mean loss of the first {COMPARED} steps in float32: CPU {losses[0]:.6f}, card {losses[1]:.6f}; "
        f"twice with --deterministic: {same}"
    )


def evaluate(device: torch.device, images: int) -> str:
    """Return the seconds that embedding all images and scoring a fifth of them against the others takes."""
    config, dtype = Config(recipe="baseline"), choose_precision("auto", device)
    trial = Trial(config, noise(images, config.image_size), device, dtype)
    tested = images // 5
    start = time.perf_counter()
    embeddings, _ = embed_images(trial.learner.network, trial.feed, np.arange(images), dtype)
    embedded = time.perf_counter()
    score_all(embeddings[:tested], None, embeddings[tested:], labels_of(images - tested))
    scored = time.perf_counter() - embedded
    return (
        f"{images:,} images embedded in {embedded - start:.1f} s; {tested:,} of them scored against the other "
        f"{images - tested:,} in {scored:.1f} s"
    )


def decode(count: int) -> str:
    """Return how many photographs of 1024×768 a second all cores decode into the cache."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_photos(Path(scratch) / "photos", count, (1024, 768))
        start = time.perf_counter()
        build_cache(find_images(folder), 128, Path(scratch) / "cache")
        return f"{count:,} photographs of 1024×768 decoded, {count / (time.perf_counter() - start):,.0f} a second"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=33126, help="training images")
    parser.add_argument("--seconds", type=float, default=10, help="of training in each row, at least")
    parser.add_argument("--rows", type=int, default=len(ROWS), help="how many rows, from the first one")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA card here: nothing measured")
        return
    keep_freed_memory()
    device = torch.device(arguments.device)
    print(describe_device(device, choose_precision("auto", device)), f"torch {torch.__version__}", sep=", ")
    copied, multiplied = bounds = rates(device)
    print(f"a large copy moves {copied / 1e12:.2f} TB/s, a large product computes {multiplied / 1e12:.1f} Tflop/s")
    print(f"{'':31}    first   epoch  images/s   busy  kernels  waits     GB   bytes   flops")
    for name, settings, how in ROWS[: arguments.rows]:
        with deterministic(False):
            row = measure(settings, how, arguments.images, arguments.seconds, device, bounds)
        print(f"{name:<31} {row}", flush=True)
    print(compare(device, arguments.images), evaluate(device, arguments.images), decode(2000), sep="\n")


if __name__ == "__main__":
    main()
