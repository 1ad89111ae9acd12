"""What folding fixed normalisation into convolutions saves: `python benchmarks/fold.py`.

Times training steps of mobilenet_v2 as recipe strong trains it (normalisation fixed, first blocks frozen; weights drawn
at random), with `modules.FoldingSequential` and, the baseline, with torch's own `nn.Sequential`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import modules
from config import RECIPES, Config
from melanoma.common.device import (
    autocast,
    choose_device,
    choose_precision,
    describe_device,
    keep_freed_memory,
)
from melanoma.common.script import run_script

WARM_UP = 3  # steps that are not timed


def seconds(fold: bool, side: int, steps: int, device: torch.device, dtype: torch.dtype) -> float:
    """Return the mean time of a step, forwards and backwards, of one batch of recipe strong."""
    config = Config(**{**RECIPES["strong"], "image_size": side})
    torch.manual_seed(0)
    network = modules.network_of(config).to(device)
    network.freeze(config.frozen_blocks, config.frozen_norm)
    network.train()
    images = torch.rand(config.batch_size, 3, side, side, device=device).to(memory_format=torch.channels_last)
    folded_on = (device.type,) if fold else ()
    times = []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        with autocast(device, dtype), patch.object(modules.FoldingSequential, "folded_on", folded_on):
            embeddings, logits = network(images)
        (embeddings.square().sum() + logits.square().sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sum(times[WARM_UP:]) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    keep_freed_memory()
    device = choose_device(arguments.device)
    for precision in ("float32", "bfloat16"):
        dtype = choose_precision(precision, device)
        plain, folded = (
            seconds(fold, arguments.image_size, arguments.steps, device, dtype) for fold in (False, True)
        )
        print(
            f"{describe_device(device, dtype)}, {arguments.image_size} px: plain {1000 * plain:.0f} ms a step, "
            f"folded {1000 * folded:.0f} ms: {plain / folded:.2f} times as fast"
        )


if __name__ == "__main__":
    run_script(main)
