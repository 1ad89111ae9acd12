"""An epoch: a plain DataLoader that decodes both images of each pair, against train.py's own loop on the cache.

    python benchmarks/epoch.py [--images DIR] [--pairs 512]

The plain baseline is what one writes first: worker processes decode and resize both files of a pair in full, and
the network trains in float32 on what they deliver. train.py's loop trains the same network on the same pairs from
the cache, in the precision the device is best at, and shows every image through a random view besides. Each runs
in a process of its own, so that neither lives in the other's memory settings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image
from synthetic import alone, peak_memory, write_photos
from torch.utils.data import DataLoader, Dataset

import train
from config import BASELINE, Config
from dataset import PairDataset, sample_pairs
from melanoma.common.device import autocast, choose_device, choose_precision, describe_device, keep_freed_memory
from melanoma.data.augment import ViewRanges, draw_views, show
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images
from melanoma.data.feed import Feed
from melanoma.training.learner import Learner
from melanoma.training.progress import Meter
from modules import contrastive_terms, loss_of, network_of, pair_distance

SIZE = 128
REPEATS = 3  # of train.py's loop and of its arithmetic alone, in turn; the least of each counts


class FilePairs(Dataset):
    """Pairs of image files, both decoded in full and resized each time that they are asked for."""

    def __init__(self, paths: list[Path], pairs: np.ndarray, same: np.ndarray) -> None:
        self.paths, self.pairs, self.same = paths, pairs, same

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, bool]:
        first, second = (self.load(self.paths[j]) for j in self.pairs[i])
        return first, second, bool(self.same[i])

    @staticmethod
    def load(path: Path) -> torch.Tensor:
        with Image.open(path) as image:
            small = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255


def labels_of(n_files: int) -> np.ndarray:
    """Return the labels of the files: every tenth counts as a melanoma."""
    return (np.arange(n_files) % 10 == 0).astype(int)


def draw_pairs(n_files: int, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n_pairs balanced pairs of the files."""
    labels = labels_of(n_files)
    rng = np.random.default_rng(0)
    drawn = [sample_pairs(labels, rng) for _ in range(n_pairs // (2 * int((labels == 0).sum())) + 1)]
    pairs, same = (np.concatenate(part) for part in zip(*drawn, strict=True))
    return pairs[:n_pairs], same[:n_pairs]


def plain_epoch(folder: Path, n_pairs: int, batch_size: int, workers: int) -> float:
    """Return the seconds of one epoch of the plain baseline."""
    device = choose_device("auto")
    paths = list(find_images(folder).values())
    loader = DataLoader(FilePairs(paths, *draw_pairs(len(paths), n_pairs)), batch_size, num_workers=workers)
    network = network_of(Config(recipe="baseline", image_size=SIZE))
    network.to(device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    start = time.perf_counter()
    for batch in loader:
        first, second, same = (part.to(device) for part in batch)
        distance = pair_distance(network.embed(first), network.embed(second))
        loss = contrastive_terms(distance, same, 0.5).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    float(loss.detach())  # waits for the device
    return time.perf_counter() - start


def own_epoch(folder: Path, n_pairs: int, batch_size: int, cache_dir: Path) -> tuple[float, float, float, str]:
    """Return seconds of one epoch of train.py's loop, of its forward, backward and step alone, memory, device."""
    keep_freed_memory()
    device = choose_device("auto")
    dtype = choose_precision("auto", device)
    cache = build_cache(find_images(folder), SIZE, cache_dir)
    labels = labels_of(len(cache.pixels))
    pairs = PairDataset(cache, np.arange(len(labels)), labels, *draw_pairs(len(cache.pixels), n_pairs))
    feed = Feed(cache, device)
    network = network_of(Config(recipe="baseline", image_size=SIZE)).to(device)
    # at a constant rate the number of steps does not matter
    learner = Learner(network, 1, BASELINE["learning_rate"], dtype=dtype)
    loss_function = loss_of(Config(recipe="baseline"))

    def epoch(part: PairDataset) -> float:
        start = time.perf_counter()
        views = partial(draw_views, generator=torch.Generator().manual_seed(0), ranges=ViewRanges())
        batches = part.batches(batch_size)
        meter = Meter("", len(batches), 0, 0, quiet=True)
        train.train_epoch(learner, batches, feed, views, loss_function, 1.0, train.Progress.start(device), meter)
        return time.perf_counter() - start

    whole_batch = pairs.batches(batch_size)[0]
    whole_images = torch.from_numpy(cache.gather(whole_batch.rows)).to(device)
    images = show(whole_images, None, network.backbone.normalize, dtype)
    own_labels, same = (torch.from_numpy(part).to(device) for part in (whole_batch.labels, whole_batch.same))

    def compute(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with autocast(device, dtype):
                embeddings, logits = network(images)
            loss, _ = loss_function(embeddings, logits, own_labels, same)
            learner.optimizer.zero_grad()
            loss.backward()
            learner.optimizer.step()
        float(loss.detach())
        return time.perf_counter() - start

    warm_up = PairDataset(cache, pairs.rows, labels, pairs.pairs[:batch_size], pairs.same[:batch_size])
    epoch(warm_up)
    times = [(epoch(pairs), compute(len(pairs) // batch_size)) for _ in range(REPEATS)]
    whole, arithmetic = (min(part) for part in zip(*times, strict=True))
    return whole, arithmetic, peak_memory(), describe_device(device, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of image files (default: generated, 6000×4000)")
    parser.add_argument("--pairs", type=int, default=512, help="pairs of train.py's epoch, a multiple of 256")
    parser.add_argument("--plain-pairs", type=int, default=128, help="pairs of the baseline's epoch")
    parser.add_argument("--workers", type=int, default=torch.get_num_threads(), help="the baseline's processes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.images or write_photos(Path(scratch) / "photos", 20, (6000, 4000))
        batch_size = BASELINE["batch_size"]
        n_files, plain_pairs = len(find_images(folder)), arguments.plain_pairs
        plain = alone(plain_epoch, folder, plain_pairs, min(batch_size, plain_pairs), arguments.workers)
        own, compute, memory, device = alone(own_epoch, folder, arguments.pairs, batch_size, Path(scratch) / "cache")
    plain_rate, own_rate = 2 * arguments.plain_pairs / plain, 2 * arguments.pairs / own
    print(f"{n_files:,} files, {SIZE} px, {device}")
    print(f"  plain DataLoader, {arguments.workers} workers, float32  {plain_rate:9,.1f} images/s")
    print(f"  train.py's loop on the cache         {own_rate:9,.1f} images/s  {own_rate / plain_rate:6.1f} ×")
    print(f"  forward, backward, step alone        {2 * arguments.pairs / compute:9,.1f} images/s")
    print(f"  share of the epoch that is neither   {1 - compute / own:9.1%}")
    print(f"  peak memory of train.py's loop       {memory:9.2f} GB")


if __name__ == "__main__":
    main()
