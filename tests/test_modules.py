"""The networks: what an embedding is, which weights it starts from, and what is kept from being trained."""

import copy
import os
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from config import Config
from melanoma.common.errors import InputError
from modules import (
    CHANNEL_MEAN,
    CHANNEL_STD,
    Conv3,
    Conv3Norm,
    FoldingSequential,
    Normalize,
    SiameseNetwork,
    TorchvisionBackbone,
    build_network,
    field_means,
    import_torchvision,
    network_of,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def images(n: int = 4, side: int = 32) -> Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def head_of(network: SiameseNetwork) -> nn.Linear:
    assert network.head is not None
    return network.head


def refusal(function: Callable, *arguments, **settings) -> str:
    """The message of an InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- network ---


@pytest.mark.parametrize("image_size", [32, 33, 64, 128])
@pytest.mark.parametrize("embedding_dim", [2, 128])
@pytest.mark.parametrize("backbone", ["conv3", "conv3_norm"])
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
    layers = [layer for c in backbone.convolutions for layer in (c, nn.ReLU(), nn.MaxPool2d(2))]
    as_written = nn.Sequential(backbone.normalize, *layers, nn.Flatten(), backbone.fc1, nn.ReLU())
    torch.testing.assert_close(backbone(images(4, 33)), as_written(images(4, 33)))


@pytest.mark.parametrize(("side", "grid"), [(4, 4), (8, 4), (7, 1), (7, 2), (5, 4), (2, 4)])
def test_field_means_are_those_of_adaptive_pooling(side, grid):
    features = torch.rand(2, 3, side, side + 1 if grid == 1 else side)
    expected = F.adaptive_avg_pool2d(features, grid).flatten(1)
    torch.testing.assert_close(field_means(features, grid), expected)


@pytest.mark.parametrize("parts", [2, 3, 5, 8])
@pytest.mark.parametrize("head", [False, True])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(parts, head):
    network = build_network("conv3", 32, 5, normalize=True, head=head)
    gradients = []
    for network.parts in (1, parts):
        network.zero_grad()
        embeddings, logits = network(images(5, 32))
        ((embeddings @ embeddings.T).square().sum() + logits.sum()).backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    for alone, together in zip(*gradients, strict=True):
        assert (together - alone).abs().max() <= 1e-3 * alone.abs().max()


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_conv3_norm_is_three_normalised_convolutions_and_the_means_of_a_grid(grid):
    backbone = build_network("conv3_norm", 64, 5, grid=grid).backbone
    assert isinstance(backbone, Conv3Norm)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == (
        27 * (32) + 2 * 32 + 9 * 32 * 64 + 2 * 64 + 9 * 64 * 128 + 2 * 128
    )
    blocks: Any = backbone.convolutions  # each a convolution and its normalisation
    layers = [m for c, n in blocks for m in (c, n, nn.ReLU(), nn.MaxPool2d(2))]
    maps = nn.Sequential(backbone.normalize, *layers)(images(4, 64))  # (4, 128, 8, 8)
    means = maps.view(4, 128, grid, 8 // grid, grid, 8 // grid).mean(dim=(3, 5))
    features = backbone(images(4, 64))
    torch.testing.assert_close(features, means.flatten(1))
    assert features.shape == (4, backbone.features)


def test_normalize_puts_each_channel_in_units_of_its_spread():
    mean, std = torch.tensor(CHANNEL_MEAN), torch.tensor(CHANNEL_STD)
    pixels = torch.stack([mean - std, mean, mean + 2 * std]).view(3, 3, 1, 1)
    expected = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    torch.testing.assert_close(Normalize()(pixels), expected, atol=1e-5, rtol=0)
    assert not Normalize().state_dict()  # constants, no weights


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
    network = build_network("conv3_norm", 32, 8, dropout=0.4)
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
    network = network_of(Config())
    assert isinstance(network.backbone, Conv3)
    assert (network.unit_length, network.dropout.p, network.head) == (False, 0.0, None)
    settings: dict[str, Any] = {
        "image_size": 64,
        "embedding_dim": 5,
        "normalize": True,
        "dropout": 0.3,
        "head": "focal",
    }
    network = network_of(Config(backbone="conv3_norm", grid=2, **settings))
    assert isinstance(network.backbone, Conv3Norm)
    assert (network.unit_length, network.dropout.p, network.fc_embedding.out_features) == (True, 0.3, 5)
    assert network.head is not None
    assert network.backbone.grid == 2


def test_an_unknown_backbone_is_refused_by_name():
    message = refusal(build_network, "vgg99", 32, 8)
    assert message.startswith("backbone is 'vgg99': it must be conv3, conv3_norm or one of torchvision's ")
    assert all(name in message for name in ("resnet18", "vgg11", "efficientnet_b0"))


@pytest.mark.parametrize("name, image_size", [("vit_b_16", 100), ("alexnet", 32), ("maxvit_t", 128)])
def test_images_of_a_size_that_a_classifier_does_not_take_are_refused(name, image_size):
    message = refusal(build_network, name, image_size, 8)
    assert message.startswith(f"backbone {name} takes no images of {image_size} px (")
    assert message.endswith("): choose another --image-size or backbone")


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


@pytest.mark.parametrize("blocks", [0, 1, 2, None])
def test_frozen_blocks_keep_their_weights_and_statistics(blocks):
    network = build_network("conv3_norm", 64, 4, grid=4)
    network.freeze(blocks, norm=False)
    frozen = [f"convolutions.{i}" for i in range(3 if blocks is None else blocks)]
    before = step_on(network)
    assert changed(network, before) == set(before) - names_of(network, *frozen)
    for name, parameter in network.named_parameters():
        assert (
            parameter.requires_grad
            == (parameter.grad is not None)
            == (name not in names_of(network, *frozen))
        )


def test_what_was_frozen_is_trained_again_once_it_is_let_go():
    network = build_network("conv3_norm", 64, 4, grid=4)
    network.freeze(None, norm=True)
    network.freeze(1, norm=False)
    before = step_on(network)
    assert changed(network, before) == set(before) - names_of(network, "convolutions.0")
    network.freeze(0, norm=False)
    before = step_on(network)
    assert changed(network, before) == set(before)


def test_frozen_norm_keeps_the_statistics_of_all_normalisation_and_trains_its_weights():
    network = build_network("conv3_norm", 64, 4, grid=4)
    network.freeze(0, norm=True)
    before = step_on(network)
    kept = {name for name in before if name.endswith(STATISTICS)}
    assert len(kept) == 9
    assert changed(network, before) == set(before) - kept


def test_frozen_parts_stay_in_evaluation_mode_whatever_the_network_goes_to():
    network = build_network("conv3_norm", 64, 4, dropout=0.5)
    network.freeze(1, norm=False)
    network.eval()
    network.train()
    assert isinstance(network.backbone, Conv3Norm)
    modes = [block.training for block in network.backbone.convolutions]
    assert (modes, network.dropout.training) == ([False, True, True], True)
    network.eval()
    assert not any(module.training for module in network.modules())


def test_blocks_of_conv3_are_frozen_from_the_input_on():
    network = build_network("conv3", 64, 4)
    network.freeze(2, norm=False)
    before = step_on(network)
    assert changed(network, before) == set(before) - names_of(network, "convolutions.0", "convolutions.1")


# --- torchvision ---


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A classifier as torchvision builds it; read it, do not change it."""
    torch.manual_seed(3)
    return import_torchvision().models.resnet18().eval()


@pytest.mark.parametrize(
    ("name", "features", "n_blocks"),
    [("resnet18", 512, 10), ("mobilenet_v2", 1280, 19), ("efficientnet_b0", 1280, 9)],
)
def test_classifiers_of_torchvision_embed(name, features, n_blocks):
    network = build_network(name, 64, 6, weights="none", head=True)
    embeddings, logits = network(images(3, 64))
    assert (embeddings.shape, logits.shape) == ((3, 6), (3,))
    assert network.backbone.features == network.fc_embedding.in_features == features
    assert len(network.backbone.blocks()) == n_blocks
    assert not any(isinstance(m, nn.Dropout) and m.p for m in network.backbone.modules())
    network.freeze(3, norm=False)
    network.embed(images(3, 64)).sum().backward()
    frozen = {id(p) for block in network.backbone.blocks()[:3] for p in block.parameters()}
    assert frozen
    assert all((p.grad is None) == (id(p) in frozen) for p in network.backbone.parameters())


def test_a_classifier_without_its_last_layer_gives_that_layers_input(resnet):
    backbone = TorchvisionBackbone("resnet18", 64, "none").eval()
    backbone.model.load_state_dict({k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")})
    seen = []
    hook = resnet.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        resnet(Normalize()(images(3, 64)))
        features = backbone(images(3, 64))
    hook.remove()
    torch.testing.assert_close(features, seen[0])


@pytest.mark.parametrize(
    ("name", "grid", "shape"),
    [
        ("conv3", 1, (64, 16, 16)),
        ("conv3_norm", 1, (128, 16, 16)),
        ("conv3_norm", 3, (128, 16, 16)),
        ("resnet18", 1, (512, 2, 2)),
        ("resnet18", 2, (512, 2, 2)),
        ("mobilenet_v2", 1, (1280, 2, 2)),
        ("mobilenet_v2", 4, (1280, 2, 2)),
        ("mnasnet0_5", 1, (1280, 2, 2)),
        ("shufflenet_v2_x0_5", 1, (1024, 2, 2)),
        ("regnet_y_400mf", 1, (440, 2, 2)),
        ("swin_t", 1, (768, 2, 2)),
    ],
)
def test_the_last_map_has_channels_and_places(name, grid, shape):
    network = build_network(name, 64, 4, weights="none", grid=grid)
    maps = []
    last_map = network.backbone.last_map()
    assert last_map is not None
    last_map.register_forward_hook(lambda module, inputs, output: maps.append(output))
    network.eval().embed(images(2, 64))
    assert [tuple(own.shape) for own in maps] == [(2, *shape)]


@pytest.mark.parametrize(
    ("name", "channels"),
    [("resnet18", 512), ("mobilenet_v2", 1280), ("regnet_y_400mf", 440), ("swin_t", 768)],
)
def test_a_grid_keeps_the_means_of_fields_of_the_last_map(name, channels):
    torch.manual_seed(0)
    whole = TorchvisionBackbone(name, 128, "none").eval()
    grid = TorchvisionBackbone(name, 128, "none", grid=2).eval()
    for key, value in whole.model.state_dict().items():  # under other names, in the same order
        own = grid.model.state_dict()
        match = key if key in own else key.removeprefix("features.")
        if match in own:
            own[match].copy_(value)
    with torch.no_grad():
        features = grid(images(3, 128))
        pooled = whole(images(3, 128))
    assert features.shape == (3, grid.features) == (3, channels * 4)
    # the map has 4 × 4 fields, so that the mean over the grid is the mean over the map: the model's own pooling
    fields, size = (
        features.view(3, channels, 4),
        pooled.abs().max(),
    )  # random weights may leave little of an image
    torch.testing.assert_close(fields.mean(dim=2) / size, pooled / size, atol=1e-4, rtol=1e-4)
    assert fields.std(dim=2).max() > 1e-3 * size
    for block, own in zip(whole.blocks()[:3], grid.blocks()[:3], strict=False):  # and freezing means the same
        assert [p.shape for p in block.parameters()] == [p.shape for p in own.parameters()]


@pytest.mark.parametrize("fixed", [False, True])
def test_a_fixed_norm_is_folded_into_its_convolution_without_a_trace(fixed):
    """Output, gradients, statistics and names are those of a plain sequence, with less work where norms are fixed."""
    torch.manual_seed(0)
    parts: list[Any] = [
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 1),
        nn.BatchNorm2d(5),
    ]
    plain = nn.Sequential(*parts)
    for norm in (parts[1], parts[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias)
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    plain.train(not fixed)
    folding = FoldingSequential(*copy.deepcopy(plain)).train(not fixed)
    normalised = []
    folding[1].register_forward_hook(lambda *_: normalised.append(True))
    outputs = [network(images(4, 16)) for network in (plain, folding)]
    assert bool(normalised) is not fixed
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    for output in outputs:
        output.square().sum().backward()
    for (name, mine), (other, its) in zip(folding.named_parameters(), plain.named_parameters(), strict=True):
        assert name == other
        torch.testing.assert_close(mine.grad, its.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(folding.state_dict(), plain.state_dict())


def test_norms_are_folded_on_the_cpu_alone():
    folding = FoldingSequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    normalised = []
    folding[1].register_forward_hook(lambda *_: normalised.append(True))
    folding(images(1, 8))
    assert normalised == []
    folding.to("meta")(torch.empty(1, 3, 8, 8, device="meta"))
    assert normalised == [True]


def test_sequences_of_a_classifier_are_folding_ones_under_the_same_names():
    ours = TorchvisionBackbone("mobilenet_v2", 32, "none")
    theirs = import_torchvision().models.mobilenet_v2()
    assert [n for n in ours.model.state_dict()] == [n for n in theirs.state_dict() if "classifier.1" not in n]
    sequences = [m for m in ours.modules() if isinstance(m, nn.Sequential)]
    assert len(sequences) > 50 and all(isinstance(m, FoldingSequential) for m in sequences)


def test_a_model_without_a_map_of_features_has_no_grid():
    message = refusal(build_network, "vit_b_32", 64, 8, grid=2)
    assert message == "backbone vit_b_32 has no convolutions to lay a grid over: pass --grid 1"


@pytest.mark.parametrize("classifier", [True, False], ids=["whole", "features only"])
def test_a_file_of_weights_is_what_the_backbone_starts_from(resnet, classifier, tmp_path):
    state = resnet.state_dict()
    kept = {name: value for name, value in state.items() if classifier or not name.startswith("fc.")}
    assert (len(kept) < len(state)) != classifier
    torch.save(kept, tmp_path / "resnet.pt")
    network = build_network("resnet18", 64, 6, weights=str(tmp_path / "resnet.pt"))
    assert isinstance(network.backbone, TorchvisionBackbone)
    own = network.backbone.model.state_dict()
    assert set(own) == {name for name in state if not name.startswith("fc.")}
    assert all(torch.equal(value, state[name]) for name, value in own.items())


class Command:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def without_a_layer(path: Path, state: dict) -> None:
    torch.save({name: value for name, value in state.items() if name != "layer3.0.conv1.weight"}, path)


def of_another_shape(path: Path, state: dict) -> None:
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, path)


def truncated(path: Path, state: dict) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (
            without_a_layer,
            "does not fit resnet18: it lacks layer3.0.conv1.weight (1 missing, 0 of another shape)",
        ),
        (
            of_another_shape,
            "does not fit resnet18: it has another shape of conv1.weight (0 missing, 1 of another shape)",
        ),
        (lambda path, state: torch.save({}, path), "does not fit resnet18: it lacks conv1.weight"),
        (truncated, "is damaged or no state dict"),
        (lambda path, state: path.write_text("hello"), "is damaged or no state dict"),
        (lambda path, state: path.write_bytes(b""), "is damaged or no state dict"),
        (lambda path, state: torch.save([1], path), "is no state dict: it must map names to tensors"),
        (lambda path, state: torch.save({"model": state}, path), "is no state dict: it must map names to"),
        (lambda path, state: None, "does not exist: pass imagenet, none, or a state dict's file"),
        (lambda path, state: path.mkdir(), "does not exist: pass imagenet, none, or a state dict's file"),
    ],
)
def test_weights_that_do_not_fit_or_are_none_are_refused(resnet, write, what, tmp_path):
    path = tmp_path / "weights.pt"
    write(path, resnet.state_dict())
    message = refusal(build_network, "resnet18", 64, 6, weights=str(path))
    assert message.startswith(f"backbone_weights {path} {what}")


def test_weights_that_would_run_code_are_refused_unrun(tmp_path):
    torch.save({"conv1.weight": Command(tmp_path / "ran")}, tmp_path / "evil.pt")
    message = refusal(build_network, "resnet18", 64, 6, weights=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()
    assert message == f"backbone_weights {tmp_path / 'evil.pt'} is damaged or no state dict: pass another"


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Answer for torchvision when it fetches published weights."""

    def answer(function: Callable) -> None:
        kind = import_torchvision().models.get_model_weights("resnet18")
        monkeypatch.setattr(kind, "get_state_dict", lambda self, **settings: function(**settings))

    return answer


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route"), RuntimeError("invalid hash value"), TimeoutError("slow")]
)
def test_published_weights_that_cannot_be_fetched_name_where_from_and_where_to(
    published, error, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(**settings):
        raise error

    published(fail)
    message = refusal(build_network, "resnet18", 64, 6, weights="imagenet")
    assert message.startswith("the ImageNet weights of resnet18 could not be fetched")
    assert "download https://download.pytorch.org/models/resnet18-f37072fd.pth to " in message
    assert f" to {tmp_path / 'hub' / 'checkpoints'} or pass --backbone-weights FILE" in message


def test_published_weights_are_checked_and_loaded(published, resnet):
    asked = []

    def fetch(**settings):
        asked.append(settings)
        return resnet.state_dict()

    published(fetch)
    network = build_network("resnet18", 64, 6, weights="imagenet")
    assert asked == [{"check_hash": True}]
    name = "layer4.1.conv2.weight"
    assert torch.equal(network.backbone.state_dict()[f"model.{name}"], resnet.state_dict()[name])


def test_weights_none_asks_for_nothing(published):
    def refuse(**settings):
        raise AssertionError("weights were fetched")

    published(refuse)
    network_of(Config(backbone="resnet18", image_size=64))
    with pytest.raises(AssertionError, match="weights were fetched"):
        build_network("resnet18", 64, 6, weights="imagenet")
