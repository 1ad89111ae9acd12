"""device.py: choice of device and precision, memory, random number generators."""

import ctypes
import os
import platform

import pytest
import torch
from torch import nn

from melanoma.common import device
from melanoma.common.device import (
    autocast,
    choose_device,
    choose_precision,
    describe_device,
    deterministic,
    is_out_of_memory,
    random_state,
    set_random_state,
)
from melanoma.common.errors import InputError

CPU = torch.device("cpu")


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
    ("type_", "dtype", "text"), [("cpu", torch.float32, "CPU ("), ("mps", torch.bfloat16, "Apple GPU (MPS), bfloat16")]
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
    ("type_", "units", "expected"),
    [
        ("cpu", "", torch.float32),
        ("cpu", "AMX", torch.bfloat16),
        ("cpu", "AVX-512 BF16", torch.bfloat16),
        ("cuda", "", torch.float32),
        ("cuda", "Ampere", torch.bfloat16),
        ("mps", "AMX", torch.float32),
    ],
)
def test_auto_precision_is_bfloat16_where_there_are_units_for_it(monkeypatch, type_, units, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: units == "AMX")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units == "AVX-512 BF16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0) if units == "Ampere" else (7, 5))
    assert choose_precision("auto", torch.device(type_)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_computes_in_the_type_asked_for(dtype):
    layer, images = nn.Linear(4, 4), torch.rand(2, 4)
    with autocast(CPU, dtype):
        assert layer(images).dtype == dtype
    assert layer(images).dtype == torch.float32


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


def test_keep_freed_memory_asks_for_glibc_on_linux_alone(monkeypatch):
    monkeypatch.setattr(device.sys, "platform", "win32")
    monkeypatch.setattr(platform, "libc_ver", lambda: pytest.fail("python.exe was read"))
    device.keep_freed_memory()


def test_tensors_are_sound_after_keep_freed_memory():
    device.keep_freed_memory()
    for _ in range(3):
        assert float(torch.ones(2**20).sum()) == 2**20


# --- small memories, random number generators, and the same bits again ---


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 8 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_lack_of_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) == expected


def test_the_same_numbers_are_drawn_again_from_a_state():
    state = random_state(CPU)
    first = torch.rand(5)
    assert not torch.equal(torch.rand(5), first)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(5), first)


def test_the_state_of_a_gpu_is_of_the_one_in_use(monkeypatch):
    second = torch.device("cuda:1")
    states = {second: torch.tensor([3])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state + 1}))
    set_random_state(random_state(second), second)
    assert states == {second: torch.tensor([4])}
    set_random_state(random_state(CPU), second)  # of another device: it draws anew
    assert states == {second: torch.tensor([4])}


def test_deterministic_algorithms_are_asked_for_and_put_back(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not torch.backends.cudnn.benchmark
    for wanted in (False, True):
        with deterministic(wanted):
            assert torch.are_deterministic_algorithms_enabled() == wanted
            assert torch.backends.cudnn.benchmark != wanted  # trials choose differently each time
            assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == wanted
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
