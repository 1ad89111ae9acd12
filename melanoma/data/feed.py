"""Bring batches of decoded images to the device before it needs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from melanoma.common.device import spare_memory, upload
from melanoma.common.threads import map_ahead
from melanoma.data.cache import ImageCache

DEVICE_SHARE = 0.5  # of the free device memory: a cache up to this lives there
UPLOAD_ROWS = 1024  # images copied to the device at a time
AHEAD = 3  # batches gathered before they are needed


class Feed:
    """Images of a cache by row, on the device.

    A cache that fits on the GPU is copied there, and a batch is an index. From a larger one, a background thread
    gathers batches into pinned memory, which is copied while the GPU computes. Elsewhere a batch is gathered when
    it is needed: on the CPU the same cores would do it.
    """

    def __init__(self, cache: ImageCache, device: torch.device) -> None:
        self.cache = cache
        self.device = device
        self.resident = _upload(cache, device) if _fits(cache, device) else None

    def batches(self, rows: Iterable[np.ndarray]) -> Iterator[Tensor]:
        """Yield the images of each array of rows, uint8 (B, S, S, 3), on the device."""
        if self.resident is not None:
            for batch in rows:
                yield self.resident[upload(torch.from_numpy(batch), self.device)]
        elif self.device.type == "cuda":
            for pinned in map_ahead(self._gather_pinned, rows, 1, AHEAD):
                yield pinned.to(self.device, non_blocking=True)
        else:
            for batch in rows:
                yield torch.from_numpy(self.cache.gather(batch)).to(self.device)

    def _gather_pinned(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.cache.gather(rows)).pin_memory()


def _fits(cache: ImageCache, device: torch.device) -> bool:
    spare = spare_memory(device)
    return spare is not None and cache.pixels.nbytes <= DEVICE_SHARE * spare


def _upload(cache: ImageCache, device: torch.device) -> Tensor:
    resident = torch.empty(cache.pixels.shape, dtype=torch.uint8, device=device)
    for start in range(0, len(cache.pixels), UPLOAD_ROWS):
        rows = np.arange(start, min(start + UPLOAD_ROWS, len(cache.pixels)))
        resident[start : start + len(rows)] = torch.from_numpy(cache.gather(rows)).to(device)
    return resident
