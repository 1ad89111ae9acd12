"""The network, the loss, and the sign of it all: like pairs end up closer than unlike ones."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from classify import reference_score
from dataset import sample_pairs
from modules import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    ContrastiveLoss,
    Conv3,
    Normalize,
    build_network,
    contrastive_loss,
    pair_distance,
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small are slower on two threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def random_pairs(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First and second embeddings (n, 4) and whether they are of one label (n,)."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 0.3 * torch.randn(2, n, 4, generator=generator)
    return first, second, torch.rand(n, generator=generator) < 0.5


# --- loss ---


@pytest.mark.parametrize(
    ("distance", "same", "margin", "loss"),
    [
        (0.0, True, 1.0, 0.0),
        (0.6, True, 1.0, 0.18),  # ½ 0.6²
        (3.0, True, 1.0, 4.5),  # like pairs know no margin
        (0.0, False, 1.0, 0.5),  # ½ 1²
        (0.6, False, 1.0, 0.08),  # ½ 0.4²
        (0.6, False, 2.0, 0.98),  # ½ 1.4²
        (1.0, False, 1.0, 0.0),
        (3.0, False, 1.0, 0.0),
    ],
)
def test_contrastive_loss_of_one_pair(distance, same, margin, loss):
    value = contrastive_loss(torch.tensor([distance]), torch.tensor([same]), margin)
    assert float(value) == pytest.approx(loss, abs=1e-6)


def test_contrastive_loss_is_the_mean_over_pairs():
    distance, same = torch.tensor([0.6, 0.6, 3.0, 3.0]), torch.tensor([True, False, True, False])
    assert float(contrastive_loss(distance, same, 1.0)) == pytest.approx((0.18 + 0.08 + 4.5 + 0.0) / 4)


@pytest.mark.parametrize("margin", [0.5, 2.0])
def test_contrastive_loss_equals_a_slow_loop(margin):
    first, second, same = random_pairs(50)
    total = 0.0
    for a, b, alike in zip(first.tolist(), second.tolist(), same.tolist(), strict=True):
        distance = math.dist(a, b)
        total += distance**2 / 2 if alike else max(0.0, margin - distance) ** 2 / 2
    assert float(ContrastiveLoss(margin)(first, second, same)) == pytest.approx(total / 50, rel=1e-5)


def test_contrastive_loss_is_symmetric_in_the_pair():
    first, second, same = random_pairs(50)
    loss = ContrastiveLoss(0.5)
    assert torch.equal(loss(first, second, same), loss(second, first, same))


def test_gradient_of_a_pair_at_distance_0_is_0():
    first = torch.ones(2, 4, requires_grad=True)
    ContrastiveLoss(0.5)(first, torch.ones(2, 4), torch.tensor([True, False])).backward()
    assert torch.equal(first.grad, torch.zeros(2, 4))


def test_a_gradient_step_pulls_like_pairs_together_and_pushes_unlike_ones_apart():
    first, second, same = random_pairs(200)
    margin = 0.5
    before = pair_distance(first, second)
    first.requires_grad_()
    second.requires_grad_()
    ContrastiveLoss(margin)(first, second, same).backward()
    after = pair_distance(first - first.grad, second - second.grad).detach()

    inside = ~same & (before < margin)
    beyond = ~same & (before >= margin)
    assert min(same.sum(), inside.sum(), beyond.sum()) > 5
    assert (after[same] < before[same]).all()
    assert (after[inside] > before[inside]).all()
    assert torch.equal(after[beyond], before[beyond])


@pytest.mark.parametrize("margin", [0.0, -0.5, math.nan])
def test_a_margin_that_is_not_above_0_is_refused(margin):
    with pytest.raises(ValueError, match=r"margin is .*above 0"):
        ContrastiveLoss(margin)


# --- network ---


@pytest.mark.parametrize("image_size", [32, 33, 64, 128])
@pytest.mark.parametrize("embedding_dim", [2, 128])
def test_embeddings_have_the_size_asked_for(image_size, embedding_dim):
    network = build_network("conv3", image_size, embedding_dim)
    assert network.embed(torch.rand(3, 3, image_size, image_size)).shape == (3, embedding_dim)


def test_conv3_is_the_outlines_network():
    network = Conv3(128, 64)
    assert [(c.in_channels, c.out_channels) for c in network.convolutions] == [(3, 16), (16, 32), (32, 64)]
    assert {(c.kernel_size, c.stride, c.padding) for c in network.convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert (network.fc1.in_features, network.fc1.out_features) == (64 * 16 * 16, 512)
    assert (network.fc_embedding.in_features, network.fc_embedding.out_features) == (512, 64)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert trained == 448 + 4_640 + 18_496 + (16_384 * 512 + 512) + (512 * 64 + 64)


def test_pooling_before_relu_equals_relu_before_pooling():
    network = Conv3(33, 8)
    layers = [layer for c in network.convolutions for layer in (c, nn.ReLU(), nn.MaxPool2d(2))]
    head = (nn.Flatten(), network.fc1, nn.ReLU(), network.fc_embedding)
    as_written = nn.Sequential(network.normalize, *layers, *head)
    images = torch.rand(4, 3, 33, 33)
    torch.testing.assert_close(network(images), as_written(images))


def test_normalize_puts_each_channel_in_units_of_its_spread():
    mean, std = torch.tensor(CHANNEL_MEAN), torch.tensor(CHANNEL_STD)
    pixels = torch.stack([mean - std, mean, mean + 2 * std]).view(3, 3, 1, 1)
    expected = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(Normalize()(pixels), expected, atol=1e-5, rtol=0)
    assert not Normalize().state_dict()  # constants, no weights


def test_both_images_of_a_pair_pass_through_one_network():
    network = build_network("conv3", 32, 8)
    first, second = torch.rand(2, 4, 3, 32, 32)
    a, b = network(first, second)
    assert torch.equal(a, network.embed(first))
    assert torch.equal(b, network.embed(second))
    assert not torch.equal(a, b)
    swapped = network(second, first)
    assert torch.equal(swapped[0], b)
    assert torch.equal(swapped[1], a)


def test_embeddings_are_float32_whatever_the_network_computes_in():
    network = build_network("conv3", 32, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.embed(torch.rand(2, 3, 32, 32)).dtype == torch.float32


def test_weights_follow_the_global_seed():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([weight.flatten() for weight in build_network("conv3", 32, 8).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_an_unknown_backbone_is_refused_by_name():
    with pytest.raises(ValueError, match="'resnet': it must be conv3"):
        build_network("resnet", 32, 8)


# --- the sign, end to end ---

SIDE = 16


def draw_lesions(n_benign: int, n_melanoma: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Dark spots on skin of varying tone: round (benign) or drawn out (melanoma), of one area."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [n_benign, n_melanoma])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    images = np.empty((len(labels), 3, SIDE, SIDE), np.float32)
    for image, label in zip(images, labels, strict=True):
        skin, spot = rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.4)
        right, down = x - rng.uniform(-0.1, 0.1), y - rng.uniform(-0.1, 0.1)
        radius, turn, ratio = rng.uniform(0.2, 0.3), rng.uniform(0, np.pi), 0.45 if label else 1.0
        long, short = np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right
        inside = long**2 * ratio + short**2 / ratio < radius**2
        image[:] = np.where(inside, spot, skin) + rng.normal(0, 0.05, image.shape)
    return torch.from_numpy(images.clip(0, 1)), labels


def train_and_measure(seed: int, inverted: bool) -> tuple[float, float, float]:
    """Return mean distance of like and of unlike pairs, and AUC, on lesions that were not trained on."""
    images, labels = draw_lesions(128, 32, seed)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = build_network("conv3", SIDE, 16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    loss = ContrastiveLoss(0.5)
    for _ in range(8):
        pairs, same = sample_pairs(labels, rng)
        for start in range(0, len(pairs), 32):
            first, second = pairs[start : start + 32].T
            alike = torch.from_numpy(same[start : start + 32])
            optimizer.zero_grad()
            loss(*network(images[first], images[second]), ~alike if inverted else alike).backward()
            optimizer.step()

    held_out, truth = draw_lesions(70, 30, seed + 1000)
    with torch.no_grad():
        embeddings, references = network.embed(held_out), network.embed(images)
    first, second = np.triu_indices(len(truth), 1)
    distance = pair_distance(embeddings[first], embeddings[second]).numpy()
    same = truth[first] == truth[second]
    scores = reference_score(embeddings.numpy(), references.numpy(), labels)
    return distance[same].mean(), distance[~same].mean(), roc_auc_score(truth, scores)


@pytest.mark.parametrize("seed", [0, 1])
def test_like_lesions_are_closer_than_unlike_ones_after_training(seed):
    like, unlike, auc = train_and_measure(seed, inverted=False)
    assert like < 0.6 * unlike
    assert auc > 0.9

    # the first published attempt's fault: 1 meant "same" in its data set and "different" in its loss
    like, unlike, inverted_auc = train_and_measure(seed, inverted=True)
    assert like > 0.9 * unlike
    assert inverted_auc < auc - 0.2
