"""feed.py: the images asked for, in order, wherever they are stored."""

import numpy as np
import pytest
import torch

from melanoma.data import feed
from melanoma.data.feed import Feed

CPU = torch.device("cpu")
ROWS = [np.array([7, 0, 7]), np.array([11]), np.arange(12), np.array([5, 4])]


def test_batches_are_the_rows_asked_for_in_order(cache):
    for rows, images in zip(ROWS, Feed(cache, CPU).batches(ROWS), strict=True):
        assert images.dtype == torch.uint8
        assert np.array_equal(images.numpy(), cache.pixels[rows])


def test_a_resident_copy_holds_every_row(cache, monkeypatch):
    monkeypatch.setattr(feed, "UPLOAD_ROWS", 5)
    assert np.array_equal(feed._upload(cache, CPU).numpy(), cache.pixels)


def test_batches_of_a_resident_cache_are_the_same(cache, monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda cache, device: True)
    resident = Feed(cache, CPU)
    assert resident.resident is not None
    for rows, images in zip(ROWS, resident.batches(ROWS), strict=True):
        assert np.array_equal(images.numpy(), cache.pixels[rows])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_cuda_gets_the_same_batches(cache, fits, monkeypatch):
    monkeypatch.setattr(feed, "_fits", lambda cache, device: fits)
    for rows, images in zip(ROWS, Feed(cache, torch.device("cuda")).batches(ROWS), strict=True):
        assert images.is_cuda
        assert np.array_equal(images.cpu().numpy(), cache.pixels[rows])
