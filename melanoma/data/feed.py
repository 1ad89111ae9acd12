"""The feed: batches of decoded images reach the device, without it having to wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from melanoma.common.device import autocast, free_memory, is_out_of_memory
from melanoma.common.errors import InputError
from melanoma.data.augment import flips_and_turns, to_float
from melanoma.data.cache import ImageCache
from modules import SiameseNetwork

DEVICE_SHARE = 0.5  # of the free device memory: a cache up to this lives there
UPLOAD_ROWS = 1024  # images copied to the device at a time
AHEAD = 3  # batches gathered before they are asked for


class Feed:
    """Images of a cache by row, on the device.

    A cache that fits on the GPU lives there and a batch is an index. A larger one is gathered from the memory map by
    a background thread into pinned memory and copied while the GPU computes. On the CPU a batch is gathered when
    it is asked for, since the same cores would do it.
    """

    def __init__(self, cache: ImageCache, device: torch.device) -> None:
        self.cache = cache
        self.device = device
        self.resident = _upload(cache, device) if _fits(cache, device) else None

    def batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Yield the images of each array of rows, uint8 (B, S, S, 3), on the device."""
        if self.resident is not None:
            for batch in rows:
                yield self.resident[torch.from_numpy(batch).to(self.device, non_blocking=True)]
        elif self.device.type == "cuda":
            for pinned in _ahead(self._gather_pinned, rows):
                yield pinned.to(self.device, non_blocking=True)
        else:
            for batch in rows:
                yield torch.from_numpy(self.cache.gather(batch)).to(self.device)

    def _gather_pinned(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.cache.gather(rows)).pin_memory()


def _ahead(gather: Callable[[np.ndarray], Tensor], rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
    """Yield gather(batch) for each batch in order, a few batches computed ahead by one thread."""
    window: deque = deque()
    with ThreadPoolExecutor(1) as pool:
        for batch in rows:
            window.append(pool.submit(gather, batch))
            if len(window) > AHEAD:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()


def _fits(cache: ImageCache, device: torch.device) -> bool:
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return cache.pixels.nbytes <= DEVICE_SHARE * free


def _upload(cache: ImageCache, device: torch.device) -> Tensor:
    resident = torch.empty(cache.pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(cache.pixels), UPLOAD_ROWS):
        rows = np.arange(start, min(start + UPLOAD_ROWS, len(cache.pixels)))
        resident[start : start + len(rows)] = torch.from_numpy(cache.gather(rows)).to(device)
    return resident


@torch.inference_mode()
def embed_images(
    network: SiameseNetwork,
    feed: Feed,
    rows: np.ndarray,
    dtype: torch.dtype,
    views: int = 1,
    batch_size: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings, float32 (N, D), and the head's logits, float32 (N,), of images by cache row.

    If the device's memory is too small for a batch, it is tried with half of it, and so on.

    With several `views` (see `augment.flips_and_turns`) they are the means over an image's views; a mean of unit-length
    embeddings is scaled to length 1 again.
    """
    try:
        return _embed(network, feed, rows, dtype, views, batch_size)
    except RuntimeError as error:  # out of its block, so that it holds no activations any more
        if not is_out_of_memory(error):
            raise
    if batch_size == 1:
        raise InputError(f"the memory of {feed.device} is too small for one image: pass --device cpu")
    free_memory(feed.device)
    return embed_images(network, feed, rows, dtype, views, batch_size // 2)


def _embed(
    network: SiameseNetwork, feed: Feed, rows: np.ndarray, dtype: torch.dtype, views: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Do what `embed_images` does, without a way out of a small memory."""
    network.eval()
    embeddings, logits = [], []
    for images in feed.batches(np.split(rows, range(batch_size, len(rows), batch_size))):
        with autocast(feed.device, dtype):
            seen = [network(view) for view in flips_and_turns(to_float(images), views)]
        mean = torch.stack([embedding for embedding, _ in seen]).mean(dim=0)
        embeddings.append(F.normalize(mean, dim=1) if network.unit_length and views > 1 else mean)
        logits.append(torch.stack([logit for _, logit in seen]).mean(dim=0))
    return torch.cat(embeddings).cpu().numpy(), torch.cat(logits).cpu().numpy()
