"""A step of training: the operations and bytes that it costs on a GPU, counted without one.

    python benchmarks/step.py [--recipe baseline scratch strong] [--hardest 1.0] [--list 20]

The step runs on torch's device "meta", which knows shapes and types but holds no numbers, along the path that a GPU
takes. What would wait for a GPU's numbers (item, nonzero, an index by a mask) raises an error there, so a step that is
counted waits for nothing. The network is in bfloat16, as autocast would have it. An operation is about a kernel, its
bytes are those of all tensors that it reads and writes; views of memory are none. The optimizer and the moving average
of the weights, fused into a few kernels, are left out. benchmarks/gpu.py measures a step on a GPU.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from trial import Trial, noise

from config import Config
from melanoma.training import learner

META = torch.device("meta")


class Count(TorchDispatchMode):
    """Counts what is done on the device "meta"."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes = 0
        self.flops = 0
        self.uploads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [part for part in tree_leaves((args, kwargs, result)) if isinstance(part, torch.Tensor)]
        kinds = {part.device.type for part in tensors}
        name = func.overloadpacket.__name__
        if kinds == {"meta", "cpu"}:
            self.uploads += 1
        elif kinds == {"meta"} and not func.is_view and not name.startswith(("empty", "detach")):
            self.operations[name] += 1
            self.bytes += sum(part.nbytes for part in tensors)
            if name == "convolution" and args[2] is not None:  # cuDNN adds the bias in a kernel of its own
                self.operations["add_"] += 1
                self.bytes += 2 * result.nbytes
        return result


def count_step(config: Config) -> Count:
    """Return the counts of the second step of a training."""
    config = replace(config, backbone_weights="none", ema=0.0)
    with patch.object(learner, "autocast", lambda device, dtype: nullcontext()):
        trial = Trial(config, noise(2000, config.image_size), META, torch.bfloat16)
        trial.learner.network.to(torch.bfloat16)
        trial.learner.network.backbone.normalize.float()
        trial.train(1)
        flops = FlopCounterMode(display=False)
        with Count() as count, flops, patch.object(trial.learner.optimizer, "step"):
            trial.train(1)
    count.flops = flops.get_total_flops()
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", nargs="+", default=["baseline", "scratch", "strong"])
    parser.add_argument("--hardest", type=float, default=1.0, help="share of the pairs that are mined")
    parser.add_argument("--list", type=int, default=0, metavar="N", help="the N most frequent operations too")
    arguments = parser.parse_args()
    print("recipe      operations  uploads      GB   Gflop")
    for recipe in arguments.recipe:
        count = count_step(Config(recipe=recipe, hardest=arguments.hardest))
        print(
            f"{recipe:<10} {count.operations.total():>11} {count.uploads:>8} {count.bytes / 1e9:>7.2f} "
            f"{count.flops / 1e9:>7.0f}"
        )
        for name, times in count.operations.most_common(arguments.list):
            print(f"    {times:>4} {name}")


if __name__ == "__main__":
    main()
