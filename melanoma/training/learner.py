"""One training step: embeddings of a batch, loss, AdamW, and the moving average of the weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from melanoma.common.device import autocast, is_out_of_memory
from melanoma.common.errors import InputError
from melanoma.data.augment import Views, show, show_part
from melanoma.training.ranks import Ranks
from melanoma.training.run_folder import fitting

WARM_UP = 0.05  # of all steps, in which the learning rate of the cosine schedule rises from 0


class Learner:
    """Takes the steps of a training: AdamW at the scheduled learning rate, and a moving average of the weights.

    The backbone has parameter groups of its own, whose `share` is of the learning rate. Weight decay is for matrices
    and kernels, not to biases and the scales of normalisation.

    Parameters
    ----------
    network : a Siamese network on its device, frozen where it is to be
    total : steps of the whole training, for the schedule
    schedule : constant or cosine
    backbone_rate : learning rate of parameters named `backbone.*`, as a share of `learning_rate`
    ema : decay of the moving average, 0 to do without
    batch_size : the setting, for the message about a memory that is too small
    ranks : the processes that share each batch
    dtype : of the network's matrix arithmetic
    compiled : let torch.compile fuse the operations of views and network, which takes about a minute at first
    """

    def __init__(
        self,
        network: Any,
        total: int,
        learning_rate: float,
        schedule: str = "constant",
        backbone_rate: float = 1.0,
        weight_decay: float = 0.0,
        ema: float = 0.0,
        ranks: Ranks = Ranks(),
        dtype: torch.dtype = torch.float32,
        batch_size: int = 1,
        compiled: bool = False,
    ) -> None:
        self.network = network
        self.total = total
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.ema = ema
        self.ranks = ranks
        self.dtype = dtype
        self.taken = 0
        groups = []
        for of_backbone, share in ((True, backbone_rate), (False, 1.0)):
            own = [p for name, p in network.named_parameters() if name.startswith("backbone.") == of_backbone]
            for matrix, decay in ((True, weight_decay), (False, 0.0)):
                members = [p for p in own if (p.ndim > 1) == matrix]
                groups.append({"params": members, "share": share, "weight_decay": decay})
        fused = next(network.parameters()).device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
        self.shared = network
        if self.ranks.count > 1:  # the buffers are statistics, of which the first process's are kept
            self.shared = DistributedDataParallel(network, broadcast_buffers=False, gradient_as_bucket_view=True)
        self.show_part = show_part
        if compiled:  # once for each batch size: an epoch has two
            self.show_part, self.shared = (torch.compile(part, dynamic=False) for part in (show_part, self.shared))
        self.average: nn.Module | None = copy.deepcopy(network) if ema else None

    @property
    def kept(self) -> Any:
        """The network that is validated and saved: the moving average of the weights if there is one."""
        return self.average or self.network

    @property
    def rate(self) -> float:
        """The learning rate of the next step: constant, or a rise from 0 and then half a cosine down to 0."""
        rising = WARM_UP * self.total
        if self.schedule == "constant":
            return self.learning_rate
        if self.taken < rising:
            return self.learning_rate * (self.taken + 1) / (rising + 1)
        done = (self.taken - rising) / (self.total - rising)
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2

    def take_step(
        self, images: Tensor, size: int, views: Views | None, loss_of: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Take one step on a batch; return its loss and measures, (1 + M,), on the device.

        Each process embeds its share of the batch and compares the embeddings of all, so the gradient is that of one
        process, except where a layer sees the share as its batch: trained batch normalisation, dropout.

        Parameters
        ----------
        images : this process's share (see `Ranks.places`), uint8 of shape (n, S, S, 3), on the device
        size : B, images in the whole batch
        views : of these images; None shows them as they are
        loss_of : takes embeddings (B, D) and logits (B,), returns the loss, a scalar, and measures (M,)

        Raises
        ------
        InputError : the device's memory is too small
        """
        try:
            # outside autocast, which would round what blur and noise compute
            shown = show(images, views, self.network.backbone.normalize, self.dtype, self.show_part)
            with autocast(images.device, self.dtype):
                own = torch.cat([part.view(len(images), -1) for part in self.shared(shown)], dim=1)
            outputs = self.ranks.gather(own[: len(self.ranks.share(size))], size)  # embeddings, then the logit
            loss, measures = loss_of(outputs[:, :-1], outputs[:, -1])
            self._update(loss * self.ranks.count)  # DDP averages over the processes: their sum is wanted
        except RuntimeError as error:
            if "does not have a deterministic implementation" in str(error):
                raise InputError(
                    f"--deterministic: {str(error).split()[0]} is not deterministic on {images.device}: leave "
                    "--deterministic out, or choose another backbone or --image-size"
                ) from error
            if not is_out_of_memory(error):
                raise
            raise InputError(
                f"the memory of {images.device} is too small for {len(images)} images of {images.shape[1]} px in step "
                f"{self.taken + 1}: try {self.smaller}; the last checkpoint is kept"
            ) from error
        return torch.cat([loss.detach().view(1), measures])

    @property
    def smaller(self) -> str:
        """What to try if the device's memory is too small."""
        return f"--batch-size {self.batch_size // 2}" if self.batch_size > 3 else "a smaller --image-size"

    def _update(self, loss: Tensor) -> None:
        """Move the weights down the gradient of a loss, and the moving average after them."""
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"]
        self.optimizer.step()
        if self.average:
            self._follow(self.average)
        self.taken += 1

    def finite(self) -> bool:
        """Return whether all weights are finite, those that are trained and those that are kept."""
        networks = {self.network, self.kept}
        weights = [part for network in networks for part in (*network.parameters(), *network.buffers())]
        return bool(torch.stack([part.isfinite().all() for part in weights]).all())

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on, beside the weights that are kept."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.average:
            state["trained"] = self.network.state_dict()
        return state

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Restore a checkpoint's weights and `state`; `path` names it in the InputError if they do not fit."""
        fused = self.optimizer.param_groups[0]["fused"]  # of this machine's device, not of the checkpoint's
        with fitting(path):
            self.kept.load_state_dict(state["model"])
            if self.average:
                self.network.load_state_dict(state["trained"])
            self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = fused

    @torch.no_grad()
    def _follow(self, average: nn.Module) -> None:
        """Update the moving average; its decay rises with the steps, so that the first ones are soon forgotten.

        torch's AveragedModel keeps its count in main memory, and reading it waits for the GPU in every step.
        """
        rate = 1 - min(self.ema, (1 + self.taken) / (10 + self.taken)) if self.taken else 1.0
        kinds: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        for own, new in zip(
            (*average.parameters(), *average.buffers()),
            (*self.network.parameters(), *self.network.buffers()),
            strict=True,
        ):
            means, current = kinds[own.is_floating_point()]
            means.append(own)
            current.append(new)
        torch._foreach_lerp_(*kinds[True], rate)
        if kinds[False][0]:
            torch._foreach_copy_(*kinds[False])
