"""Device, precision and memory settings."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from melanoma.common.errors import InputError, shown


def choose_device(name: str) -> torch.device:
    """Return the device of a name: auto takes CUDA, else Apple's MPS, else the CPU.

    Raises
    ------
    InputError : no such device here
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        if name.partition(":")[0] not in ("cuda", "mps", "cpu"):
            raise ValueError
        device = torch.device(name)
        torch.empty(1, device=device)
    except (ValueError, RuntimeError, AssertionError, NotImplementedError):
        raise InputError(
            f"device {shown(name)} cannot be used here: pass --device auto, cpu, or cuda or mps where there is one"
        ) from None
    return device


def describe_device(device: torch.device, dtype: torch.dtype) -> str:
    """Return the device in words, for the first lines of a run."""
    arithmetic = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} (CUDA {torch.version.cuda}), {arithmetic}"
    if device.type == "mps":
        return f"Apple GPU (MPS), {arithmetic}"
    return f"CPU ({torch.get_num_threads()} threads), {arithmetic}"


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """Return the type of the network's matrix arithmetic; auto is bfloat16 where the device has units for it."""
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[precision]
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":  # without either, bfloat16 is emulated and slower than float32
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which a network, or with float32 a part of it, computes."""
    if not torch.amp.is_autocast_available(device.type):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks for reuse; does nothing on other systems.

    By default it maps each large block anew, and page faults take half of a training step on the CPU. mallopt(3) must
    come before the first large tensor. One arena for all threads, and blocks of 128 MB and more still mapped each
    time, reduce fragmentation: 2.7 GB instead of 3.1 at conv3, 128 px, 256 pairs, for 2 % of the speed.
    """
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":  # it reads python.exe, which Windows may refuse
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # from malloc.h
    mallopt(m_arena_max, 1)
    mallopt(m_mmap_threshold, 2**27) or mallopt(m_mmap_threshold, 2**25)  # older ones allow no more
    mallopt(m_trim_threshold, 2**31 - 1)


# How torch says that memory is too small: the CPU's; CUDA's and MPS's; cuBLAS's; cuDNN's, which also finds no algorithm
# whose workspace fits
NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error of torch says that the device's memory is too small."""
    return any(words in str(error) for words in NO_MEMORY)


def spare_memory(device: torch.device) -> int | None:
    """Return the bytes that can still be allocated on a CUDA device; None for others."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def upload(part: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of main memory on a device; on CUDA without waiting for the copy."""
    if device.type != "cuda":  # from memory that is not pinned, MPS may copy after it has been freed
        return part.to(device)
    return part.pin_memory().to(device, non_blocking=True)


def free_memory(device: torch.device) -> None:
    """Return cached memory to the device, so that blocks of another size fit."""
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the state of torch's global random number generators, which layers such as dropout draw from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore what `random_state` returned; another device draws anew."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Let torch take only algorithms that give the same bits each time, if wanted; else the fastest by trial.

    This matters on CUDA alone. An operation without a deterministic algorithm raises RuntimeError.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    torch.use_deterministic_algorithms(wanted)
    torch.backends.cudnn.benchmark = not wanted  # tries each shape once: the shapes of batches are few
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
