"""Scoring: mean distances to all references, by scikit-learn's whole distance matrix and by scores.py's blocks.

    python benchmarks/score.py [--references 26500] [--images 6626]

At the size of ISIC 2020's published split by default. Memory is what the process has held at most.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from sklearn.metrics import pairwise_distances
from synthetic import alone, peak_memory

from melanoma.scoring.scores import mean_distances


def plain(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the mean distances by way of the whole matrix."""
    return pairwise_distances(embeddings, references).mean(axis=1)


def blocks(embeddings: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Return the mean distances as predict.py computes them."""
    return mean_distances(torch.from_numpy(embeddings), torch.from_numpy(references), [len(references)])[0].numpy()


def measure(
    score: Callable[[np.ndarray, np.ndarray], np.ndarray], n_images: int, n_references: int
) -> tuple[float, float, np.ndarray]:
    """Return seconds, peak memory in GB and the result."""
    rng = np.random.default_rng(0)
    images, references = (rng.standard_normal((n, 128), np.float32) for n in (n_images, n_references))
    start = time.perf_counter()
    result = score(images, references)
    return time.perf_counter() - start, peak_memory(), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, default=26500)
    parser.add_argument("--images", type=int, default=6626)
    arguments = parser.parse_args()
    results = [alone(measure, f, arguments.images, arguments.references) for f in (plain, blocks)]
    print(f"{arguments.images:,} images × {arguments.references:,} references, 128 numbers each")
    for name, (seconds, memory, _) in zip(("whole matrix", "blocks"), results, strict=True):
        print(f"  {name:<13} {seconds:6.2f} s {memory:6.2f} GB  {results[0][0] / seconds:5.2f} ×")
    print(f"  largest difference {np.abs(results[0][2] - results[1][2]).max():.1e}")


if __name__ == "__main__":
    main()
