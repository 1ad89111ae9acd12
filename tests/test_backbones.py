"""backbones.py: features of torchvision's classifiers, their weights, and the grid."""

import os
import urllib.error
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import build_network
from test_modules import images, refusal
from torch import nn

from config import Config
from melanoma.backbones import TorchvisionBackbone, import_torchvision
from modules import network_of

# --- torchvision ---


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    """A classifier as torchvision builds it; read it, do not change it."""
    torch.manual_seed(3)
    return import_torchvision().models.resnet18().eval()


@pytest.mark.parametrize(
    ("name", "features", "n_blocks"), [("resnet18", 512, 10), ("mobilenet_v2", 1280, 19), ("efficientnet_b0", 1280, 9)]
)
def test_classifiers_of_torchvision_embed(name, features, n_blocks):
    network = build_network(name, 64, 6, weights="none", head=True)
    embeddings, logits = network(images(3, 64))
    assert (embeddings.shape, logits.shape) == ((3, 6), (3,))
    assert network.backbone.features == network.fc_embedding.in_features == features
    assert len(network.backbone.blocks()) == n_blocks
    assert not any(isinstance(m, nn.Dropout) and m.p for m in network.backbone.modules())
    network.freeze(3)
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
        resnet(images(3, 64))
        features = backbone(images(3, 64))
    hook.remove()
    torch.testing.assert_close(features, seen[0])


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 512), ("mobilenet_v2", 1280), ("regnet_y_400mf", 440), ("swin_t", 768)]
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
    fields, size = (features.view(3, channels, 4), pooled.abs().max())  # random weights may leave little of an image
    torch.testing.assert_close(fields.mean(dim=2) / size, pooled / size, atol=1e-4, rtol=1e-4)
    assert fields.std(dim=2).max() > 1e-3 * size
    for block, own in zip(whole.blocks()[:3], grid.blocks()[:3], strict=False):  # and freezing means the same
        assert [p.shape for p in block.parameters()] == [p.shape for p in own.parameters()]


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


@pytest.mark.parametrize("wrap", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_weights_of_a_checkpoint_or_of_data_parallel_are_the_same_weights(resnet, wrap, prefix, tmp_path):
    state = {prefix + name: value for name, value in resnet.state_dict().items()}
    more = {"epoch": 3, "args": Namespace(lr=0.1), "optimizer": {"state": {}}}  # as torchvision's own training saves
    torch.save({wrap: state, **more} if wrap else state, tmp_path / "resnet.pt")
    network = build_network("resnet18", 64, 6, weights=str(tmp_path / "resnet.pt"))
    assert isinstance(network.backbone, TorchvisionBackbone)
    own = network.backbone.model.state_dict()
    assert len(own) == 120
    assert all(torch.equal(value, resnet.state_dict()[name]) for name, value in own.items())


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
        (without_a_layer, "does not fit resnet18: it lacks layer3.0.conv1.weight (1 missing)"),
        (of_another_shape, "does not fit resnet18: size mismatch for conv1.weight"),
        (lambda path, state: torch.save({}, path), "does not fit resnet18: it lacks conv1.weight"),
        (truncated, "is damaged or no state dict"),
        (lambda path, state: path.write_text("hello"), "is damaged or no state dict"),
        (lambda path, state: path.write_bytes(b""), "is damaged or no state dict"),
        (lambda path, state: torch.save([1], path), "does not fit resnet18: Expected state_dict to be dict-like"),
        (lambda path, state: torch.save({"net": state}, path), "does not fit resnet18: it lacks conv1.weight"),
        (lambda path, state: torch.save({"model": [1]}, path), "does not fit resnet18: "),
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
def test_published_weights_that_cannot_be_fetched_name_where_from_and_where_to(published, error, tmp_path, monkeypatch):
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
