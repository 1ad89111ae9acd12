"""backbones.py: features of timm's networks, their weights, and the grid."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from bad_input import Command
from conftest import build_network, refusal
from safetensors.torch import save_file
from test_modules import images
from torch import Tensor, nn

from config import Config
from melanoma.backbones import TimmBackbone, field_means, import_torchvision
from modules import network_of

import_torchvision()
import timm  # noqa: E402, after torchvision

RESNET, CONVNEXT, VIT = "test_resnet", "test_convnext", "test_vit"  # timm's own small ones for tests, 160 px
SWIN = "swin_tiny_patch4_window7_224"


def state_of(name: str, **settings: Any) -> dict[str, Tensor]:
    """The weights of a classifier of timm, with statistics that are not those of a new network."""
    torch.manual_seed(3)
    state = timm.create_model(name, **settings).state_dict()
    return {k: torch.rand_like(v) if k.endswith(("running_mean", "running_var")) else v for k, v in state.items()}


def model_of(network: nn.Module) -> nn.Module:
    """The network of timm within a backbone, or within the backbone of a Siamese network."""
    backbone = getattr(network, "backbone", network)
    assert isinstance(backbone, TimmBackbone)
    return backbone.model


# --- features ---


@pytest.mark.parametrize(
    ("name", "grid", "features", "n_blocks"),
    [
        ("resnet18", 1, 512, 9),  # the stem and eight residual blocks
        ("mobilenetv2_100", 4, 16 * 1280, 18),
        ("mobilenetv3_small_050", 2, 4 * 1024, 14),  # whose last layer stands after the pooling
        (CONVNEXT, 2, 4 * 64, 11),
        (VIT, 1, 64, 7),
        (VIT, 2, 4 * 64, 7),
    ],
)
def test_networks_of_timm_embed_and_their_first_blocks_freeze(name, grid, features, n_blocks):
    network = build_network(name, 64, 6, head=True, grid=grid)
    embeddings, logits = network(images(3, 64))
    assert (embeddings.shape, logits.shape) == ((3, 6), (3,))
    assert network.backbone.features == network.fc_embedding.in_features == features
    blocks = network.backbone.blocks()
    assert len(blocks) == n_blocks
    assert sum(map(len, blocks)) == len(list(network.backbone.parameters()))
    assert not any(isinstance(m, nn.Dropout) and m.p for m in network.backbone.modules())
    network.freeze(3)
    network.train().embed(images(3, 64)).sum().backward()
    frozen = {id(p) for block in blocks[:3] for p in block}
    assert frozen
    for key, parameter in network.backbone.named_parameters():  # all others learn: none is left over
        assert (parameter.grad is None) == (id(parameter) in frozen), key


@pytest.mark.parametrize("name", ["mobilenetv2_100", SWIN, CONVNEXT, VIT])
def test_a_grid_keeps_the_means_of_fields_of_the_last_map(name, tmp_path):
    torch.manual_seed(0)
    settings: dict[str, Any] = {"img_size": 128} if name in (SWIN, VIT) else {}
    reference = timm.create_model(name, **settings).eval()
    torch.save(reference.state_dict(), tmp_path / "weights.pt")
    reference.reset_classifier(0, "")  # type: ignore[operator]
    backbone = TimmBackbone(name, 128, str(tmp_path / "weights.pt"), grid=2).eval()
    with torch.no_grad():
        expected = reference(images(3, 128))
        features = backbone(images(3, 128))
    if name == SWIN:  # (B, 4, 4, C)
        expected = expected.movedim(3, 1)
    if name == VIT:  # the class token, then 8 × 8 patches
        expected = torch.stack([expected[:, 1 + 8 * row : 9 + 8 * row] for row in range(8)], dim=1).movedim(3, 1)
    torch.testing.assert_close(features, field_means(expected, 2))
    top_left = expected[:, :, : expected.shape[2] // 2, : expected.shape[3] // 2].mean(dim=(2, 3))
    torch.testing.assert_close(features[:, ::4], top_left)
    assert features.std() > 0


def test_images_are_normalised_as_the_weights_were_trained():
    for name, mean in (("resnet18", 0.485), ("tf_efficientnet_lite0", 0.5)):
        normalize = TimmBackbone(name, 32, "none").normalize
        grey = torch.full((1, 3, 1, 1), mean)
        assert normalize(grey)[0, 0].item() == pytest.approx(0, abs=1e-6)


# --- weights ---


@pytest.mark.parametrize(
    "form", ["safetensors", "state dict", "without the classifier", "of DataParallel", "a checkpoint"]
)
def test_a_file_of_weights_is_what_the_backbone_starts_from(form, tmp_path):
    state = state_of(RESNET)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file(state, path)
    elif form == "without the classifier":
        torch.save({key: value for key, value in state.items() if not key.startswith("fc.")}, path)
    elif form == "of DataParallel":
        torch.save({f"module.{key}": value for key, value in state.items()}, path)
    elif form == "a checkpoint":
        torch.save({"model": state, "epoch": 3, "args": Namespace(lr=0.1), "optimizer": {"state": {}}}, path)
    else:
        torch.save(state, path)
    own = model_of(build_network(RESNET, 64, 6, weights=str(path))).state_dict()
    assert set(own) == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize(("theirs", "ours"), [("mobilenet_v2", "mobilenetv2_100"), ("resnet18", "resnet18")])
@pytest.mark.parametrize("grid", [1, 2])
def test_files_of_torchvision_give_torchvisions_features(theirs, ours, grid, tmp_path):
    torch.manual_seed(3)
    reference = import_torchvision().models.get_model(theirs).eval()
    torch.save(reference.state_dict(), tmp_path / "w.pth")
    backbone = TimmBackbone(ours, 64, str(tmp_path / "w.pth"), grid).eval()
    last = nn.Sequential(*list(reference.children())[:-1]) if theirs == "resnet18" else reference.features
    with torch.no_grad():
        expected = last[:-1](images(3, 64)) if theirs == "resnet18" else last(images(3, 64))
        torch.testing.assert_close(backbone(images(3, 64)), field_means(expected, grid))


def test_a_transformer_takes_weights_of_another_image_size(tmp_path):
    state = state_of(VIT)
    torch.save(state, tmp_path / "w.pt")
    own = model_of(TimmBackbone(VIT, 64, str(tmp_path / "w.pt"))).state_dict()
    assert (state["pos_embed"].shape[1], own["pos_embed"].shape[1]) == (1 + 10**2, 1 + 4**2)
    assert torch.equal(own["blocks.3.mlp.fc1.weight"], state["blocks.3.mlp.fc1.weight"])


def truncated(path: Path, state: dict) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("write", "what"),
    [
        (
            lambda path, state: torch.save({k: v for k, v in state.items() if k != "bn1.bias"}, path),
            "lacks bn1.bias (1 ",
        ),
        (lambda path, state: torch.save({**state, "bn1.bias": torch.zeros(1)}, path), "size mismatch for bn1.bias"),
        (lambda path, state: torch.save({}, path), "lacks conv1.0.weight ("),
        (lambda path, state: torch.save({"net": state}, path), "lacks conv1.0.weight ("),
        (lambda path, state: torch.save({"model": [1]}, path), "is damaged or not a state dict: pass another"),
        (lambda path, state: torch.save([1], path), "is damaged or not a state dict: pass another"),
        (truncated, "is damaged or not a state dict: pass another"),
        (lambda path, state: path.write_text("hello"), "is damaged or not a state dict: pass another"),
        (lambda path, state: path.write_bytes(b""), "is damaged or not a state dict: pass another"),
        (lambda path, state: None, "does not exist: pass imagenet, none, or a file of weights"),
        (lambda path, state: path.mkdir(), "does not exist: pass imagenet, none, or a file of weights"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_do_not_fit_or_are_none_are_refused(write, what, suffix, tmp_path):
    path = tmp_path / f"weights.{suffix}"
    write(path, state_of(RESNET))
    message = refusal(build_network, RESNET, 64, 6, weights=str(path))
    assert message.startswith(f"backbone_weights {path} ")
    if suffix == "safetensors" and path.is_file():  # torch's files are none
        what = "is damaged or not a state dict: pass another"
    assert what in message


def test_weights_that_would_run_code_are_refused_unrun(tmp_path):
    torch.save({"conv1.0.weight": Command(tmp_path / "ran")}, tmp_path / "evil.pt")
    message = refusal(build_network, RESNET, 64, 6, weights=str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()
    assert message == f"backbone_weights {tmp_path / 'evil.pt'} is damaged or not a state dict: pass another"


# --- weights of the hub ---


def test_published_weights_are_loaded(monkeypatch, tmp_path):
    state = state_of(RESNET)
    save_file(state, tmp_path / "model.safetensors")
    asked = []

    def fetch(repo_id, filename, **settings):
        asked.append((repo_id, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    network_of(Config(backbone=RESNET, image_size=64))
    assert asked == []  # weights none
    own = model_of(build_network(RESNET, 64, 6, weights="imagenet", grid=2)).state_dict()
    assert asked == [("timm/test_resnet.r160_in1k", "model.safetensors")]
    assert all(torch.equal(value, state[key]) for key, value in own.items())


@pytest.mark.parametrize("error", [FileNotFoundError("no route to\nthe hub"), ValueError("of httpx"), RuntimeError()])
def test_published_weights_that_cannot_be_fetched_name_where_from(monkeypatch, error):
    def fetch(*arguments, **settings):
        raise error

    monkeypatch.setattr("timm.models._hub.hf_hub_download", fetch)
    message = refusal(build_network, RESNET, 64, 6, weights="imagenet")
    reason = str(error).splitlines()[-1] if str(error) else "RuntimeError"
    assert message.startswith(f"the weights of {RESNET} could not be fetched ({reason}): download model.safetensors ")
    assert "https://huggingface.co/timm/test_resnet.r160_in1k and pass --backbone-weights FILE, or none" in message


def test_a_network_that_was_never_published_has_no_weights():
    message = refusal(build_network, "mobilenetv2_035", 32, 6, weights="imagenet")
    assert message.startswith("the weights of mobilenetv2_035 could not be fetched (No pretrained weights exist")


# --- names and sizes ---


def test_an_unknown_backbone_is_refused_with_names_like_it():
    message = refusal(build_network, "mobilenet_v2", 32, 8)
    assert message.startswith("backbone is 'mobilenet_v2': it must be conv3 or a name of timm, as ")
    assert "mobilenetv2_100" in message
    for name in ("", "../../etc/passwd", "hf-hub:timm/resnet18", "local-dir:/tmp"):
        assert "a name of timm, as " in refusal(build_network, name, 32, 8)
    assert "Invalid pretrained tag (none) for resnet18" in refusal(build_network, "resnet18.none", 32, 8)


@pytest.mark.parametrize(
    ("name", "image_size", "grid", "reason"),
    [
        ("vit_small_patch14_dinov2", 128, 1, "it must be a multiple of 14"),
        (SWIN, 126, 2, "it must be a multiple of 4"),
        ("inception_v3", 64, 1, "Kernel size can't be greater than actual input size"),
        ("efficientformer_l1", 128, 1, "size of tensor a (16) must match"),
    ],
)
def test_images_of_a_size_that_a_network_does_not_take_are_refused(name, image_size, grid, reason):
    message = refusal(build_network, name, image_size, 8, grid=grid)
    assert message.startswith(f"backbone {name} with grid {grid} takes no images of {image_size} px (")
    assert reason in message
    assert message.endswith("): choose another --image-size, --grid or backbone")
