"""The networks: what an embedding is, which weights it starts from, and what is kept from being trained."""

import copy
from typing import Any

import pytest
import torch
from conftest import build_network
from torch import Tensor, nn
from torch.nn import functional as F

from config import Config
from melanoma.backbones import TimmBackbone, field_means
from melanoma.common.errors import InputError
from modules import Conv3, SiameseNetwork, network_of, stored_network


def images(n: int = 4, side: int = 32) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def head_of(network: SiameseNetwork) -> nn.Linear:
    assert network.head is not None
    return network.head


# --- network ---


@pytest.mark.parametrize("image_size", [32, 33, 64, 128])
@pytest.mark.parametrize("embedding_dim", [2, 128])
@pytest.mark.parametrize("backbone", ["conv3", "mobilenetv2_100"])
def test_embeddings_have_the_size_asked_for(backbone, image_size, embedding_dim):
    network = build_network(backbone, image_size, embedding_dim)
    assert network.embed(images(3, image_size)).shape == (3, embedding_dim)


def test_conv3_is_the_outlines_network():
    network = build_network("conv3", 128, 64)
    backbone = network.backbone
    assert isinstance(backbone, Conv3)
    assert [(c.in_channels, c.out_channels) for c in backbone.convolutions] == [(3, 16), (16, 32), (32, 64)]
    assert {(c.kernel_size, c.stride, c.padding) for c in backbone.convolutions} == {((3, 3), (1, 1), (1, 1))}
    assert (backbone.fc1.in_features, backbone.fc1.out_features) == (64 * 16 * 16, 512)
    assert (network.fc_embedding.in_features, network.fc_embedding.out_features) == (512, 64)
    trained = sum(parameter.numel() for parameter in network.parameters())
    assert trained == 448 + 4_640 + 18_496 + (16_384 * 512 + 512) + (512 * 64 + 64)


def test_pooling_before_relu_equals_relu_before_pooling():
    backbone = Conv3(33)
    shown = images(4, 33)
    for layer in backbone.convolutions:
        weight, bias = layer.parameters()
        shown = F.max_pool2d(F.relu(F.conv2d(shown, weight, bias, padding=1)), 2)
    torch.testing.assert_close(backbone(images(4, 33)), F.relu(backbone.fc1(shown.flatten(1))))


@pytest.mark.parametrize(("side", "grid"), [(4, 4), (8, 4), (7, 1), (7, 2), (5, 4), (2, 4)])
def test_field_means_are_those_of_adaptive_pooling(side, grid):
    features = torch.rand(2, 3, side, side + 1 if grid == 1 else side)
    expected = F.adaptive_avg_pool2d(features, grid).flatten(1)
    torch.testing.assert_close(field_means(features, grid), expected)


@pytest.mark.parametrize("head", [False, True])
def test_an_image_has_one_embedding_and_logit_whatever_it_is_seen_with(head):
    network = build_network("conv3", 32, 8, head=head)
    if head:
        nn.init.normal_(head_of(network).weight)
    embeddings, logits = network(images(6))
    assert (embeddings.shape, logits.shape) == ((6, 8), (6,))
    for i, image in enumerate(images(6)):
        alone, logit = network(image[None])
        torch.testing.assert_close(alone[0], embeddings[i])
        torch.testing.assert_close(logit[0], logits[i])
    torch.testing.assert_close(network.embed(images(6)), embeddings)
    torch.testing.assert_close(network.logits(embeddings), logits)
    assert (logits.std() > 0.01) == head


def test_embeddings_of_unit_length_point_where_the_others_do():
    torch.manual_seed(0)
    plain = build_network("conv3", 32, 8)
    unit = build_network("conv3", 32, 8, normalize=True)
    unit.load_state_dict(plain.state_dict())
    embeddings, lengths = unit.embed(images()), plain.embed(images()).norm(dim=1, keepdim=True)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(embeddings * lengths, plain.embed(images()))
    assert (lengths - 1).abs().min() > 0.1


@pytest.mark.parametrize("normalize", [False, True])
def test_the_head_starts_at_even_odds_and_learns_at_once(normalize):
    network = build_network("conv3", 32, 8, normalize=normalize, head=True)
    _, logits = network(images())
    assert torch.equal(logits, torch.zeros(4))
    nn.functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1, 1, 1])).backward()
    weight, bias = (parameter.grad for parameter in head_of(network).parameters())
    assert weight is not None and weight.norm() > 0.01
    assert bias is not None and bias.tolist() == pytest.approx([0.5 - 3 / 4])


def test_without_a_head_there_are_no_weights_of_one_and_the_logits_are_0():
    network = build_network("conv3", 32, 8)
    assert network.head is None
    assert not any(name.startswith("head") for name in network.state_dict())
    assert network(images())[1].tolist() == [0.0] * 4


def test_the_logit_is_linear_in_the_embedding_and_a_unit_one_is_scaled_up_first():
    for normalize, scale in ((False, 1), (True, 16)):
        network = build_network("conv3", 32, 8, normalize=normalize, head=True)
        nn.init.normal_(head_of(network).weight)
        nn.init.constant_(head_of(network).bias, 0.7)
        embeddings, logits = network(images())
        expected = scale * embeddings @ head_of(network).weight[0] + 0.7
        torch.testing.assert_close(logits, expected)


def test_dropout_hides_a_share_of_the_features_in_training_alone():
    network = build_network("conv3", 32, 8, dropout=0.4)
    seen = []
    network.fc_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    torch.manual_seed(0)
    for mode in (True, False):
        network.train(mode)
        network(images(16))
        own = network.backbone(images(16))
        hidden = (seen[-1] == 0) & (own > 0)
        assert float(hidden.sum() / (own > 0).sum()) == pytest.approx(0.4 if mode else 0, abs=0.02)
    torch.testing.assert_close(seen[-1], own)


def test_embeddings_are_float32_whatever_the_network_computes_in():
    network = build_network("conv3", 32, 8, head=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert {part.dtype for part in network(images())} == {torch.float32}


def test_weights_follow_the_global_seed():
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([weight.flatten() for weight in build_network("conv3", 32, 8).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_the_network_is_the_one_that_the_settings_describe():
    network = network_of(Config(recipe="baseline"))
    assert isinstance(network.backbone, Conv3)
    assert (network.unit_length, network.dropout.p, network.head) == (False, 0.0, None)
    settings: dict[str, Any] = {
        "image_size": 64,
        "embedding_dim": 5,
        "normalize": True,
        "dropout": 0.3,
        "head": "focal",
    }
    network = network_of(Config(backbone="mobilenetv2_100", grid=2, **settings))
    assert isinstance(network.backbone, TimmBackbone)
    assert (network.unit_length, network.dropout.p, network.fc_embedding.out_features) == (True, 0.3, 5)
    assert network.head is not None
    assert network.backbone.grid == 2


# --- freezing ---


def step_on(network: SiameseNetwork, n: int = 8) -> dict[str, Tensor]:
    """Take a large step on an arbitrary loss; return everything that was in the network before."""
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1.0)
    network.embed(images(n, 64)).square().sum().backward()
    optimizer.step()
    return before


def changed(network: SiameseNetwork, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}


def names_of(network: SiameseNetwork, *parts: str) -> set[str]:
    return {name for name in network.state_dict() if any(f"{part}." in name for part in parts)}


STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_frozen_blocks_keep_their_weights_and_all_statistics(blocks):
    network = build_network("resnet18", 64, 4)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.ones_(norm.weight)  # timm starts those at the end of residual branches at 0
    network.freeze(blocks)
    parts = [("conv1", "bn1"), ("layer1.0",), ("layer1.1",), ("layer2.0",), ("layer2.1",)][:blocks]
    frozen = names_of(network, *(f"backbone.model.{part}" for block in parts for part in block))
    before = step_on(network)
    statistics = {name for name in before if name.endswith(STATISTICS)}
    assert len(statistics) == 3 * 20
    assert changed(network, before) == set(before) - frozen - (statistics if blocks else set())
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None) == (name not in frozen)


def test_batch_normalisation_of_a_frozen_network_stays_in_evaluation_mode_whatever_the_network_goes_to():
    network = build_network("mobilenetv2_100", 64, 4, dropout=0.5)
    network.freeze(1)
    network.eval()
    network.train()
    assert network.dropout.training
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(norm.training for norm in norms)
    network.eval()
    assert not any(module.training for module in network.modules())


def test_blocks_of_conv3_are_frozen_from_the_input_on():
    network = build_network("conv3", 64, 4)
    network.freeze(2)
    before = step_on(network)
    assert changed(network, before) == set(before) - names_of(network, "convolutions.0", "convolutions.1")


def test_batch_normalisation_settles_after_a_hundred_steps_of_training():
    network = build_network("resnet18", 32, 4).train()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm2d)):
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.fill_(99)
    assert not network.settled
    network.eval()
    network(images(2, 32))
    assert not network.settled
    network.train()
    network(images(2, 32))
    assert network.settled


@pytest.mark.parametrize(
    ("backbone", "frozen", "settled"), [("conv3", 0, True), ("resnet18", 0, False), ("resnet18", 1, True)]
)
def test_what_is_not_trained_or_not_there_has_settled(backbone, frozen, settled):
    network = build_network(backbone, 32, 4)
    network.freeze(frozen)
    assert network.settled is settled
    assert copy.deepcopy(network).settled is settled


@pytest.mark.parametrize("normalize", [False, True])
def test_embedding_and_logit_are_float32_where_the_backbone_computes_in_bfloat16(normalize: bool) -> None:
    network = build_network("conv3", 32, 8, head=True, normalize=normalize).eval()
    torch.nn.init.normal_(head_of(network).weight)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        found = network(torch.rand(64, 3, 32, 32))
    for values in found:
        assert values.dtype == torch.float32
        assert (values.bfloat16().float() != values).float().mean() > 0.9  # bfloat16 would hold but a few of them


def test_a_model_of_an_earlier_version_may_name_settings_that_are_gone():
    settings = {"image_size": 32, "backbone": "conv3", "melanoma_weight": 1.0}
    assert stored_network(settings).fc_embedding.in_features == 512
    for gone in ({"melanoma_weight": 2.0}, {"colour": 1}):
        with pytest.raises(InputError, match=f"unknown settings {next(iter(gone))}"):
            stored_network(settings | gone)
