"""A training that a benchmark takes step by step."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch

import train
from config import Config
from melanoma.data.augment import VIEWS, draw_views
from melanoma.data.cache import ImageCache
from melanoma.data.feed import Feed
from melanoma.training.learner import Learner
from melanoma.training.progress import Meter
from modules import loss_of, network_of


def labels_of(count: int) -> np.ndarray:
    """Return the labels of so many images: one in 57 is a melanoma, as in ISIC 2020."""
    return (np.arange(count) % 57 == 0).astype(int)


class Trial:
    """An epoch of a training, taken step by step.

    Parameters
    ----------
    cache : its images, or random pixels: see `noise`
    compiled : see `Learner`
    """

    def __init__(
        self, config: Config, cache: ImageCache, device: torch.device, dtype: torch.dtype, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        network = network_of(config, config.backbone_weights).to(device)
        network.freeze(config.frozen_blocks)
        labels = labels_of(len(cache.pixels))
        images = train.Images(np.arange(len(labels)), labels)
        self.batches = train.epoch_batches(config, images, cache, np.random.default_rng(0))
        self.feed = Feed(cache, device)
        self.learner = Learner(
            network,
            max(1, config.epochs * len(self.batches)),
            config.learning_rate,
            config.schedule,
            config.backbone_rate,
            config.weight_decay,
            config.ema,
            dtype=dtype,
            compiled=compiled,
        )
        ranges = VIEWS[config.views]
        self.draw = partial(draw_views, generator=torch.Generator().manual_seed(0), ranges=ranges) if ranges else None
        self.loss, self.mined = loss_of(config), config.hardest
        self.losses: list[float] = []

    def train(self, steps: int) -> float:
        """Take the first steps of the epoch; return the seconds until the device has done them."""
        progress = train.Progress.start(self.feed.device)
        batches = self.batches[: steps + 1]
        meter = Meter("", len(batches), 0, 0, quiet=True)
        start = time.perf_counter()
        train.train_epoch(
            self.learner,
            batches,
            self.feed,
            self.draw,
            self.loss,
            self.mined,
            progress,
            meter,
            lambda: progress.steps == steps,
        )
        if self.feed.device.type != "meta":
            self.losses.append(progress.means()["train_loss"])  # waits for the device
        return time.perf_counter() - start


def noise(count: int, side: int) -> ImageCache:
    """Return a cache of random pixels, which lives in memory alone."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return ImageCache(pixels, {f"image{i}": i for i in range(count)}, {})
