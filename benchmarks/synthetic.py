"""What the benchmarks share: generated photographs, and a process of one's own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from melanoma.data.synthetic import lesion_image

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]


def write_photos(folder: Path, n: int, size: tuple[int, int], distinct: int = 20) -> Path:
    """Write n JPEG photographs of a size (width, height), `distinct` different ones over and over; return folder."""
    folder.mkdir(parents=True)
    width, height = size
    for i in range(n):
        path = folder / f"photo{i:06d}.jpg"
        if i >= distinct:
            path.hardlink_to(folder / f"photo{i % distinct:06d}.jpg")
            continue
        rng = np.random.default_rng(i)
        lesion = lesion_image(rng, bool(i % 2), 600, 400, (224, 178, 155))
        large = np.asarray(Image.fromarray(lesion).resize(size, Image.Resampling.BICUBIC), np.int16)
        grain = rng.integers(-6, 7, (height, width, 1), dtype=np.int16)  # else it would compress too well
        Image.fromarray(np.clip(large + grain, 0, 255).astype(np.uint8)).save(path, quality=90)
    return folder


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return function(*arguments), called in a new process: its memory settings, threads and peak are its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(function, *arguments).result()


def peak_memory() -> float:
    """Return the most memory that this process has held so far, in GB (10⁹ bytes); NaN where it is not known."""
    status = Path("/proc/self/status")
    if status.is_file():  # Linux, where ru_maxrss also counts what the parent held when this process was forked
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e9
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9
