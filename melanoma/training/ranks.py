"""The processes that torchrun starts: which part of a batch each embeds, and how they agree."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from torch import distributed

from melanoma.common.device import choose_device
from melanoma.common.errors import InputError
from melanoma.common.script import Stopped

SECONDS_TO_NOTICE = 5.0  # that another process has gone


@dataclass(frozen=True)
class Ranks:
    """The processes that torchrun started for one training; a single one without it."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Print, from the first process alone."""
        if self.first:
            print(text, flush=True)

    def share(self, size: int) -> range:
        """Return this process's part of a batch: sizes differ by one at most."""
        return range(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def places(self, size: int) -> np.ndarray:
        """Return the places in a batch of the images that this process embeds: its part, or more to make up two.

        Batch normalisation has no statistics of a single image; the caller uses only those of its `share`.
        """
        least = 1 if self.count == 1 else 2
        own = self.share(size)
        return (own.start + np.arange(max(least, len(own)))) % size

    def gather(self, part: torch.Tensor, size: int) -> torch.Tensor:
        """Return the whole batch, (size, D), of which each process has its share, (n, D).

        The gradient flows into this process's own share alone: the gradients of all processes add up to that of
        the whole.
        """
        if self.count == 1:
            return part
        shares = [Ranks(rank, self.count).share(size) for rank in range(self.count)]
        longest = -(-size // self.count)
        padded = part.new_zeros(longest, part.shape[1])
        padded[: len(part)] = part.detach()
        parts = [torch.empty_like(padded) for _ in shares]
        distributed.all_gather(parts, padded)
        parts = [other[: len(share)] for other, share in zip(parts, shares, strict=True)]
        parts[self.rank] = part
        return torch.cat(parts)

    def any(self, here: bool, device: torch.device) -> bool:
        """Whether something is so in any of the processes; all of them must ask."""
        if self.count == 1:
            return here
        flag = torch.tensor(float(here), device=device)
        distributed.all_reduce(flag, distributed.ReduceOp.MAX)
        return bool(flag)  # waits for the device

    @contextlib.contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Wait at the block's end for every process, and end all of them with an InputError if one has met it."""
        met: InputError | None = None
        try:
            yield
        except InputError as error:
            met = error
        if self.any(met is not None, device):
            other = InputError("another process has stopped")
            other.told = True
            raise met or other

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.count > 1:
            distributed.barrier()


@contextlib.contextmanager
def join_ranks(device_name: str) -> Iterator[tuple[torch.device, Ranks]]:
    """Join the processes that torchrun started (read from its environment); yield this one's device and rank.

    With CUDA each process of a machine takes a GPU of its own. Without torchrun there is one process. If one of several
    ends early, the others end at once without a message, as they would wait for ever.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield choose_device(device_name), Ranks()
        return
    kind = device_name.partition(":")[0]
    if kind == "cuda" or (kind == "auto" and torch.cuda.is_available()):
        device_name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = choose_device(device_name)
    if device.type == "mps":
        raise InputError("several processes cannot share an Apple GPU: leave torchrun out, or pass --device cpu")
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device)
    store, rank, _ = next(distributed.rendezvous("env://"))
    distributed.init_process_group(
        "nccl" if on_cuda else "gloo", store=store, rank=rank, world_size=count, device_id=device if on_cuda else None
    )
    others = Others(rank, count)
    try:
        yield device, Ranks(rank, count)
    except RuntimeError:  # perhaps because another process has gone
        others.watch.join(SECONDS_TO_NOTICE)
        raise
    except (InputError, Stopped) as end:
        others.leaving = True
        end.told = end.told or store.add("told", 1) > 1  # of several that end alike, the first says why
        raise
    others.part()
    distributed.destroy_process_group()


class Others:
    """Watches over the other processes of a training, and ends this one if one of them goes before the end.

    Each process waits in a thread for a message that the next one sends when it finishes. A process that ends earlier
    closes its connections, and gloo then raises an error in that thread; NCCL would wait for its timeout.
    """

    def __init__(self, rank: int, count: int) -> None:
        self.before, self.after = (rank - 1) % count, (rank + 1) % count
        self.group = distributed.new_group(backend="gloo", timeout=timedelta(days=365))
        self.leaving = False
        self.watch = threading.Thread(target=self._await_next, daemon=True)
        self.watch.start()

    def part(self) -> None:
        """Wait until every process has come to its end."""
        distributed.send(torch.zeros(1), self.before, self.group)
        self.watch.join()

    def _await_next(self) -> None:
        try:
            distributed.recv(torch.zeros(1), self.after, self.group)
        except RuntimeError:
            if not self.leaving:
                os._exit(2)
