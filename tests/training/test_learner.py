"""learner.py: the learning rate, the first step, weight decay, and the moving average of the weights."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch
from conftest import build_network
from torch import Tensor

from melanoma.common.device import deterministic
from melanoma.common.errors import InputError
from melanoma.data.augment import ViewRanges, draw_views
from melanoma.training.learner import Learner
from modules import SiameseNetwork


def small(backbone: str = "conv3") -> SiameseNetwork:
    torch.manual_seed(0)
    return build_network(backbone, 32, 4)


def noise(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def walk(learner: Learner, steps: int, start: int = 0) -> list[float]:
    """Take steps on arbitrary images; return the learning rates of the optimizer's steps."""
    rates = []
    for step in range(start, start + steps):
        images = (noise(4, step).permute(0, 2, 3, 1) * 255).to(torch.uint8)
        learner.take_step(images, 4, None, lambda embeddings, _: (embeddings.square().mean(), torch.zeros(2)))
        rates.append(learner.optimizer.param_groups[-1]["lr"])
    return rates


def test_the_learning_rate_is_constant_unless_asked_otherwise() -> None:
    assert walk(Learner(small(), 5, 0.01), 5) == [0.01] * 5


def test_the_learning_rate_rises_from_0_in_5_percent_of_the_steps_and_falls_along_a_cosine() -> None:
    learner, rates = Learner(small(), 60, 0.01, "cosine"), []
    for learner.taken in range(60):
        rates.append(learner.rate)
    rising = [0.25, 0.5, 0.75]  # a quarter of the way at each of three steps, the peak at the fourth
    falling = [(1 + math.cos(math.pi * step / 57)) / 2 for step in range(57)]
    assert rates == pytest.approx([0.01 * share for share in rising + falling])
    assert rates[3] == 0.01 and rates[-1] < 0.00001
    learner.taken = 1
    assert walk(learner, 1) == [rates[1]]


def test_the_first_step_is_the_learning_rate_of_each_part_and_decay_is_for_matrices() -> None:
    network = small()
    learner = Learner(network, 1, 0.01, backbone_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    walk(learner, 1)
    assert any(name.startswith("backbone") and p.ndim == 1 for name, p in network.named_parameters())
    for name, p in network.named_parameters():
        rate = 0.001 if name.startswith("backbone") else 0.01
        kept = 1 - rate * 0.5 if p.ndim > 1 else 1.0
        assert p.grad is not None
        sure = p.grad.abs() > 1e-5  # Adam's first step is the rate, whatever the gradient's size
        expected = kept * before[name] - rate * p.grad.sign()
        torch.testing.assert_close(p.detach()[sure], expected[sure], rtol=0, atol=3e-3 * rate)
        assert sure.float().mean() > 0.4, name


def test_the_moving_average_is_that_of_a_slow_loop_and_is_what_is_kept() -> None:
    decay, learner = 0.3, Learner(small("mobilenetv2_100"), 9, 0.01, ema=0.3)
    mean: dict[str, Tensor] = {}
    for step in range(9):
        walk(learner, 1, start=step)
        for name, value in learner.network.state_dict().items():
            share = min(decay, (1 + step) / (10 + step))
            if step == 0 or not value.is_floating_point():
                mean[name] = value.clone()
            else:
                mean[name] = share * mean[name] + (1 - share) * value
        kept = learner.kept.state_dict()
        assert set(kept) == set(mean)
        for name, value in mean.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    assert learner.kept is not learner.network
    weight = "fc_embedding.weight"
    assert (kept[weight] - learner.network.state_dict()[weight]).abs().max() > 1e-4


def test_without_a_moving_average_the_network_itself_is_kept() -> None:
    learner = Learner(small(), 1, 0.01)
    assert learner.kept is learner.network
    assert set(learner.state()) == {"optimizer"}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_of_either_network_that_are_not_finite_are_noticed(value: float) -> None:
    for where in ("trained", "kept", "running statistics"):
        learner = Learner(small("resnet18"), 1, 0.01, ema=0.5)
        assert learner.finite() and Learner(small(), 1, 0.01).finite()
        network = learner.kept if where == "kept" else learner.network
        name = "backbone.model.bn1.running_var" if where == "running statistics" else "fc_embedding.bias"
        network.state_dict()[name][0] = value
        assert not learner.finite(), where


class Unordered(torch.nn.Module):
    """Calls an operation that torch has no deterministic algorithm for."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.backbone(images)
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
        return features, features[:, 0]


def test_what_has_no_deterministic_algorithm_is_one_line() -> None:
    learner = Learner(Unordered(small().backbone), 1, 0.01)
    with deterministic(True), pytest.raises(InputError, match=r"^--deterministic: put_ is not deterministic on cpu: "):
        walk(learner, 1)
    walk(learner, 1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler uses what torch deprecates
@pytest.mark.parametrize("ranges", [None, ViewRanges()], ids=["as they are", "views"])
def test_compiled_steps_have_the_same_losses(ranges: ViewRanges | None) -> None:
    losses: dict[bool, list[float]] = {}
    for compiled in (False, True):
        learner = Learner(small(), 1, 0.01, compiled=compiled)
        losses[compiled] = []
        for size in (6, 6, 4, 6):  # the last batch of an epoch is smaller
            images = (noise(size, size).permute(0, 2, 3, 1) * 255).to(torch.uint8)
            views = draw_views(size, torch.Generator().manual_seed(size), ranges) if ranges else None
            cost = learner.take_step(images, size, views, lambda own, _: (own.square().mean(), torch.zeros(2)))
            losses[compiled].append(float(cost[0]))
    assert losses[True] == pytest.approx(losses[False], rel=1e-4)
    assert len(set(losses[True])) == 4


@pytest.mark.parametrize(
    ("batch_size", "advice"), [(16, "--batch-size 8"), (4, "--batch-size 2"), (3, "a smaller --image-size")]
)
def test_what_to_try_if_memory_is_too_small_is_a_setting_that_is_allowed(batch_size, advice):
    assert Learner(small(), 1, 0.01, batch_size=batch_size).smaller == advice
