"""The machine: choice of device and precision, and embeddings that do not depend on the batches."""

import ctypes
import platform

import numpy as np
import pytest
import torch
from torch import nn

import device
from augment import to_float
from config import InputError
from device import autocast, choose_device, choose_precision, describe_device, embed_images, gather
from images import ImageCache
from modules import SiameseNetwork, build_network

CPU = torch.device("cpu")


@pytest.fixture
def cache() -> ImageCache:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    return ImageCache(pixels, {f"image{row}": row for row in range(12)}, {})


@pytest.fixture
def network() -> SiameseNetwork:
    torch.manual_seed(0)
    return build_network("conv3", 32, 8)


# --- device ---


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert choose_device("auto") == torch.device(expected)


def test_the_cpu_can_be_asked_for():
    assert choose_device("cpu") == CPU


NO_MPS = pytest.mark.skipif(torch.backends.mps.is_available(), reason="needs a machine without MPS")


@pytest.mark.parametrize("name", ["cuda:99", pytest.param("mps", marks=NO_MPS), "gpu", "", "meta", "hpu"])
def test_a_device_that_cannot_be_used_is_refused_in_one_line(name):
    with pytest.raises(InputError, match="--device auto") as caught:
        choose_device(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("type_", "dtype", "text"),
    [("cpu", torch.float32, "CPU ("), ("mps", torch.bfloat16, "Apple GPU (MPS), bfloat16")],
)
def test_a_device_is_described_with_its_arithmetic(type_, dtype, text):
    described = describe_device(torch.device(type_), dtype)
    assert described.startswith(text)
    assert described.endswith(str(dtype).removeprefix("torch."))


# --- precision ---


@pytest.mark.parametrize("type_", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_precision_asked_for_by_name_is_taken(type_, dtype):
    assert choose_precision(str(dtype).removeprefix("torch."), torch.device(type_)) == dtype


@pytest.mark.parametrize(
    ("type_", "native", "expected"),
    [
        ("cpu", False, torch.float32),
        ("cpu", True, torch.bfloat16),
        ("cuda", False, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("mps", True, torch.float32),
    ],
)
def test_auto_precision_is_bfloat16_where_there_are_units_for_it(monkeypatch, type_, native, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0) if native else (7, 5))
    assert choose_precision("auto", torch.device(type_)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_type_asked_for(dtype):
    layer, images = nn.Linear(4, 4), torch.rand(2, 4)
    with autocast(CPU, dtype):
        assert layer(images).dtype == dtype
    assert layer(images).dtype == torch.float32


# --- embeddings ---


def test_gather_gives_the_rows_asked_for(cache):
    rows = np.array([7, 0, 7])
    images = gather(cache, rows, CPU)
    assert images.dtype == torch.uint8
    assert np.array_equal(images.numpy(), cache.pixels[[7, 0, 7]])


@pytest.mark.parametrize("batch_size", [1, 4, 10, 256])
def test_embeddings_are_the_networks_own_in_order_whatever_the_batch(cache, network, batch_size):
    rows = np.array([3, 11, 0, 3, 5, 1, 2, 9, 8, 7])
    embeddings = embed_images(network, cache, rows, CPU, torch.float32, batch_size)
    assert isinstance(embeddings, np.ndarray)
    assert embeddings.dtype == np.float32
    with torch.no_grad():
        expected = network.embed(to_float(torch.from_numpy(cache.pixels[rows])))
    np.testing.assert_allclose(embeddings, expected.numpy(), atol=1e-5)


def test_embedding_leaves_no_trace_in_the_network(cache, network):
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    embed_images(network, cache, np.arange(12), CPU, torch.float32)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_images_are_embedded_without_chance_after_training(cache):
    network = SiameseNetwork(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(32 * 32 * 3, 4)))
    network.train()
    once, again = (embed_images(network, cache, np.arange(12), CPU, torch.float32) for _ in range(2))
    np.testing.assert_array_equal(once, again)


def test_bfloat16_embeddings_are_close_and_float32(cache, network):
    exact, rough = (
        embed_images(network, cache, np.arange(12), CPU, dtype) for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_embeds_as_the_cpu_does(cache, network):
    rows, cuda = np.arange(12), torch.device("cuda")
    expected = embed_images(network, cache, rows, CPU, torch.float32)
    embeddings = embed_images(network.to(cuda), cache, rows, cuda, torch.float32, 5)
    np.testing.assert_allclose(embeddings, expected, atol=1e-3)


# --- memory ---


class Glibc:
    """A C library that keeps what mallopt was told; it refuses an mmap threshold above a limit, as old ones do."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: dict[int, int] = {}

    def mallopt(self, parameter: int, value: int) -> int:
        if parameter == -3 and value > self.limit:
            return 0
        self.kept[parameter] = value
        return 1


@pytest.mark.parametrize("limit", [32 * 2**20, 2**31 - 1], ids=["old glibc", "new glibc"])
def test_keep_freed_memory_raises_both_thresholds(monkeypatch, limit):
    glibc = Glibc(limit)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: glibc)
    device.keep_freed_memory()
    assert glibc.kept[-3] >= 32 * 2**20
    assert glibc.kept[-1] >= 2**30


def test_keep_freed_memory_touches_nothing_without_glibc(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("a C library was opened"))
    device.keep_freed_memory()


def test_tensors_are_sound_after_keep_freed_memory():
    device.keep_freed_memory()
    for _ in range(3):
        assert float(torch.ones(2**20).sum()) == 2**20
