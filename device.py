"""The machine: which device, which precision, which memory settings, and how batches of pixels reach it."""

from __future__ import annotations

import contextlib
import ctypes
import platform
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from augment import to_float
from config import InputError
from images import ImageCache
from modules import SiameseNetwork


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
            f"device {name!r} cannot be used here: pass --device auto, cpu, or cuda or mps where there is one"
        ) from None
    return device


def describe_device(device: torch.device, dtype: torch.dtype) -> str:
    """Return the device in words, for the first line of a run."""
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
    elif device.type == "cpu":  # without AMX, bfloat16 is emulated and slower than float32
        native = torch.cpu._is_amx_tile_supported()
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[Any]:
    """Return the context in which the network computes: float32 needs none."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed blocks of any size for reuse; does nothing on other systems.

    By default glibc maps each large block anew and returns it to the system when freed, so every step of a
    training on the CPU pays a page fault for each 4 KB of its activations: half of the time. mallopt(3) is the
    documented way to raise the two thresholds, and it must come before the first large tensor.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
    mallopt(m_mmap_threshold, 2**30) or mallopt(m_mmap_threshold, 2**25)  # older ones allow no more
    mallopt(m_trim_threshold, 2**31 - 1)


def gather(cache: ImageCache, rows: np.ndarray, device: torch.device) -> Tensor:
    """Return images by cache row on the device, uint8 (B, S, S, 3)."""
    images = torch.from_numpy(cache.pixels[rows])
    return images.to(device, non_blocking=True)


@torch.inference_mode()
def embed_images(
    network: SiameseNetwork,
    cache: ImageCache,
    rows: np.ndarray,
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int = 256,
) -> np.ndarray:
    """Return the embeddings, float32 (N, D), of images by cache row, each embedded once and seen as it is."""
    network.eval()
    parts = []
    for batch in _slices(len(rows), batch_size):
        with autocast(device, dtype):
            parts.append(network.embed(to_float(gather(cache, rows[batch], device))))
    return torch.cat(parts).cpu().numpy()


def _slices(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))
