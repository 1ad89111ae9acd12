"""Images become embeddings and logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from melanoma.common.device import autocast, free_memory, is_out_of_memory
from melanoma.common.errors import InputError
from melanoma.data.augment import flips_and_turns, show
from melanoma.data.feed import Feed

# Images at a time, by type of device: on a CPU, activations then stay near its caches.
BATCH = {"cuda": 256, "cpu": 16}


@torch.inference_mode()
def embed_images(
    network: Any, feed: Feed, rows: np.ndarray, dtype: torch.dtype, views: int = 1, batch_size: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return embeddings, float32 (N, D), and the head's logits, float32 (N,), of images by cache row.

    A batch is of `batch_size` images (0: as many as suit the device). If the device's memory is too small for it, it is
    tried with half of it, and so on.

    With several `views` (see `augment.flips_and_turns`) they are the means over an image's views; a mean of unit-length
    embeddings is scaled to length 1 again.
    """
    batch_size = batch_size or BATCH.get(feed.device.type, BATCH["cuda"])
    try:
        return _embed(network, feed, rows, dtype, views, batch_size)
    except RuntimeError as error:  # the retry is outside this block: its traceback keeps the activations alive
        if not is_out_of_memory(error):
            raise
    if batch_size == 1:
        raise InputError(f"the memory of {feed.device} is too small for one image: pass --device cpu")
    free_memory(feed.device)
    return embed_images(network, feed, rows, dtype, views, batch_size // 2)


def _embed(
    network: Any, feed: Feed, rows: np.ndarray, dtype: torch.dtype, views: int, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Embed images in batches of `batch_size`; out-of-memory errors are raised."""
    network.eval()
    embeddings, logits = [], []
    for images in feed.batches(np.split(rows, range(batch_size, len(rows), batch_size))):
        shown = show(images, None, network.backbone.normalize, dtype)
        with autocast(feed.device, dtype):
            seen = [network(view) for view in flips_and_turns(shown, views)]
        mean = torch.stack([embedding for embedding, _ in seen]).mean(dim=0)
        embeddings.append(F.normalize(mean, dim=1) if network.unit_length and views > 1 else mean)
        logits.append(torch.stack([logit for _, logit in seen]).mean(dim=0))
    return torch.cat(embeddings).cpu().numpy(), torch.cat(logits).cpu().numpy()
