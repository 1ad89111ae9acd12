"""How a network learns: one step of its training, and what is needed to go on after it."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from config import Config
from dataset import Batch
from melanoma.common.device import autocast, chance_state, free_memory, is_out_of_memory, set_chance_state
from melanoma.common.errors import InputError
from melanoma.data.augment import Views, show
from melanoma.training import run_folder
from melanoma.training.ranks import Ranks
from modules import SiameseLoss, SiameseNetwork


class Learner:
    """Takes the steps of a training: AdamW at the learning rate's course, and the running mean of the weights.

    The backbone has parameter groups of its own, whose `share` is of the learning rate. Weight decay is for matrices
    and kernels, not for biases and the scales of normalisation.

    Parameters
    ----------
    network : on its device
    config : the loss, batch_size, fit_memory, learning_rate, backbone_rate, schedule, warmup, weight_decay and ema
        are used
    total : steps of the whole training, which the learning rate's course is laid over
    ranks : the processes that share each batch
    dtype : of the network's matrix arithmetic
    """

    def __init__(
        self,
        network: SiameseNetwork,
        config: Config,
        total: int,
        ranks: Ranks = Ranks(),
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.network = network
        self.config = config
        self.total = total
        self.ranks = ranks
        self.dtype = dtype
        self.loss_function = loss_of(config)
        self.taken = 0
        groups = []
        for of_backbone, share in ((True, config.backbone_rate), (False, 1.0)):
            own = [p for name, p in network.named_parameters() if name.startswith("backbone.") == of_backbone]
            for matrix, decay in ((True, config.weight_decay), (False, 0.0)):
                members = [p for p in own if (p.ndim > 1) == matrix]
                groups.append({"params": members, "share": share, "weight_decay": decay})
        fused = next(network.parameters()).device.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
        self.shared: nn.Module = network
        if ranks.count > 1:
            frozen = bool(config.frozen_blocks or config.frozen_epochs)  # what is frozen gets no gradient
            self.shared = DistributedDataParallel(network, find_unused_parameters=frozen)
        self.average: SiameseNetwork | None = copy.deepcopy(network) if config.ema else None

    @property
    def kept(self) -> SiameseNetwork:
        """What is validated and saved as the run's model: the running mean of the weights if there is one."""
        return self.network if self.average is None else self.average

    @property
    def rate(self) -> float:
        """The learning rate of the next step: a rise from 0 in the warm-up, then constant or half a cosine to 0."""
        peak, rising = self.config.learning_rate, self.config.warmup * self.total
        if self.taken < rising:
            return peak * (self.taken + 1) / (rising + 1)
        if self.config.schedule == "constant":
            return peak
        return peak * (1 + math.cos(math.pi * (self.taken - rising) / (self.total - rising))) / 2

    def take_step(self, images: Tensor, batch: Batch, views: Views | None, mined_share: float) -> Tensor:
        """Take one step on a batch; return its loss and measures, (1 + len(MEASURES),), on the device.

        Every process embeds its share of the batch's images and compares the embeddings of all, so the step is
        the same for any number of processes, but for what sees a process's share as its batch: batch normalisation
        that is trained, and random layers within a torchvision backbone (stochastic depth).

        Parameters
        ----------
        images : this process's share (see `Ranks.places`), uint8 of shape (n, S, S, 3), on the device
        views : of these images; None shows them as they are
        mined_share : share of the pairs, the costliest, that are trained on

        Raises
        ------
        InputError : the device's memory is too small, and config.fit_memory is off or no help
        """
        chance = chance_state(images.device) if self.config.fit_memory else {}
        while True:
            try:
                measured = self._gradient(images, batch, views, mined_share)
                break
            except RuntimeError as error:  # out of its block, so that it holds no activations any more
                if not is_out_of_memory(error):
                    raise
            self.optimizer.zero_grad()
            free_memory(images.device)
            self._embed_in_more_parts(images)
            set_chance_state(chance, images.device)  # what dropout has hidden is hidden again
        try:
            self._update()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_small(
                images
            ) from error  # the optimizer may have moved some weights: no second try
        return measured

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of a loss."""
        self._backward(loss)
        self._update()

    def _gradient(self, images: Tensor, batch: Batch, views: Views | None, mined_share: float) -> Tensor:
        """Leave the gradient of a batch's loss in the network; see `take_step`."""
        size = len(batch.rows)
        if self.ranks.count > 1:
            places = self.ranks.places(size)
            self.network.dropout.share = (size, slice(places[0], places[-1] + 1))
        first, second, labels = (  # before the network: a copy then waits for nothing that a GPU computes
            torch.from_numpy(part).to(images.device, non_blocking=True)
            for part in (batch.first, batch.second, batch.labels)
        )
        shown = show(images, views)  # in float32: autocast would round what blur and noise compute
        with autocast(images.device, self.dtype):
            own = torch.cat([part.view(len(images), -1) for part in self.shared(shown)], dim=1)
        outputs = self.ranks.gather(own[: self.ranks.share_size(size)], size)  # embeddings, then the logit
        loss, measures = self.loss_function(
            outputs[:, :-1], outputs[:, -1], labels, first, second, mined_share
        )
        self._backward(loss * self.ranks.count)  # averaged over the processes: their sum is wanted
        return torch.cat([loss.detach().view(1), measures])

    def _backward(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()

    def _update(self) -> None:
        """Move the weights along their gradient, and the running mean after them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"]
        self.optimizer.step()
        if self.average:
            self._follow(self.average)
        self.taken += 1

    def _embed_in_more_parts(self, images: Tensor) -> None:
        """Double the parts in which a batch is embedded, after the memory was too small for these images.

        Raises
        ------
        InputError : that is not wanted, or not possible
        """
        if not self.config.fit_memory or self.ranks.count > 1 or self.network.parts >= len(images):
            raise self._too_small(images)
        self.network.parts *= 2
        self.ranks.say(
            f"the memory of {images.device} is too small: a batch is embedded in {self.network.parts} parts"
        )

    def _too_small(self, images: Tensor) -> InputError:
        """Return what to tell of a memory that is too small for these images."""
        size = self.config.batch_size
        smaller = f"--batch-size {size // 2}" if size > 1 else "a smaller --image-size"
        may_fit = not self.config.fit_memory and self.ranks.count == 1
        fit = ", or --fit-memory, which embeds a batch in parts" if may_fit else ""
        return InputError(
            f"the memory of {images.device} is too small for batch_size {size} ({len(images)} images of "
            f"{images.shape[1]} px) in step {self.taken + 1}: try {smaller}{fit}; the last checkpoint is kept"
        )

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on, beside the weights that are kept."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.average:
            state["trained"] = self.network.state_dict()
        return state

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Take up a checkpoint's weights and `state`."""
        run_folder.load_weights(self.kept, state, path)
        if self.average:
            run_folder.load_weights(self.network, state, path, "trained")
        run_folder.load_optimizer(self.optimizer, state, path)

    @torch.no_grad()
    def _follow(self, average: SiameseNetwork) -> None:
        """Move the running mean; its decay rises with the steps, so that the first ones are soon forgotten.

        Not torch's AveragedModel: its count lies in the main memory, and to read it for each kind of tensors is to
        wait for a GPU at the end of every step.
        """
        rate = 1 - min(self.config.ema, (1 + self.taken) / (10 + self.taken)) if self.taken else 1.0
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


def loss_of(config: Config) -> SiameseLoss:
    """Return the loss that the settings describe."""
    return SiameseLoss(
        loss=config.loss,
        margin=config.margin,
        positive_margin=config.positive_margin,
        active_only=config.average == "active",
        melanoma_weight=config.melanoma_weight,
        pair_weight=config.pair_weight,
        head=config.head,
    )
