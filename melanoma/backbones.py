"""Pretrained backbones: any classifier of torchvision without its last layer."""

from __future__ import annotations

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from melanoma.common.errors import InputError, shown
from melanoma.common.files import is_file
from melanoma.data.augment import Normalize

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # declares operators, see import_torchvision


class Backbone(nn.Module):
    """What every backbone has: images, float (B, 3, S, S), normalised, become features (B, `features`).

    normalize : how it takes images; who calls the network applies it, with the views
    """

    features: int
    normalize: Normalize

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output, so that the first of them can be frozen."""
        raise NotImplementedError


def field_means(features: Tensor, grid: int) -> Tensor:
    """Return the means of grid × grid fields of a map, (B, C grid²), of features (B, C, height, width)."""
    height, width = features.shape[2:]
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(features, (height // grid, width // grid)).flatten(1)
    # adaptive pooling, whose own gradient is not deterministic on CUDA and which MPS has not
    rows = torch.stack([features[:, :, field].mean(dim=2) for field in _fields(height, grid)], dim=2)
    return torch.stack([rows[..., field].mean(dim=3) for field in _fields(width, grid)], dim=3).flatten(1)


def _fields(side: int, grid: int) -> list[slice]:
    """Return where the fields of a side lie; of sides that do not divide, neighbours share a pixel."""
    return [slice(side * i // grid, -(-side * (i + 1) // grid)) for i in range(grid)]


class TorchvisionBackbone(Backbone):
    """A classifier of torchvision without its last linear layer.

    Parameters
    ----------
    name : as torchvision.models.list_models() has it
    image_size : side S of the input; vision transformers are built for it
    weights : imagenet, none, or the path of a state dict in torchvision's names, with or without the classifier; it
        may be of a DataParallel network, and the entry "state_dict" or "model" of a checkpoint
    grid : 1 keeps the model's own pooling; above, the features are the means of grid × grid fields of its last
        convolution, so that an embedding knows what is in the lesion's middle and what around it

    Raises
    ------
    InputError : no such model or weights; no convolutions for a grid; images of this size are not for this model
    """

    def __init__(self, name: str, image_size: int, weights: str, grid: int = 1) -> None:
        super().__init__()
        models = import_torchvision().models
        names = models.list_models(module=models)
        if name not in names:
            raise InputError(f"backbone is {shown(name)}: it must be conv3 or one of torchvision's {', '.join(names)}")
        published = models.get_model_weights(name).DEFAULT
        transforms = published.transforms()
        self.normalize = Normalize(transforms.mean, transforms.std)
        self.grid = grid
        options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        try:
            model = models.get_model(name, weights=None, **options)
            _cut_classifier(model, name)
            self.model = model if grid == 1 else _convolutions(model, name)
            with torch.no_grad():
                self.features = self.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (AssertionError, RuntimeError) as error:
            what = f"backbone {name} takes no images of {image_size} px ({str(error).splitlines()[0]})"
            raise InputError(f"{what}: choose another --image-size or backbone") from error
        if weights == "imagenet":
            _fill(model, _published_state(published, name), "imagenet", name)
        elif weights != "none":
            _fill(model, _read_state(Path(weights)), weights, name)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, F), of images, float (B, 3, S, S), normalised."""
        features = self.model(images)
        return features if self.grid == 1 else field_means(features, self.grid)

    def blocks(self) -> list[nn.Module]:
        """Return the parts from input to output."""
        parts = getattr(self.model, "features", self.model)
        return list(parts.children())


def import_torchvision() -> ModuleType:
    """Import torchvision, which conv3 does without.

    Its compiled operators are built for one build of torch. With another (the CPU build beside PyPI's wheel) importing
    it fails for nms and qnms alone; the backbones need neither, so they are declared and the import is tried again.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in ("nms", "qnms"):
            _DECLARED.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision
    return torchvision


def _cut_classifier(model: nn.Module, name: str) -> None:
    """Replace a classifier's last linear layer by nothing, and switch its dropout off."""
    linear = [path for path, part in model.named_modules() if isinstance(part, nn.Linear)]
    top = _last_child(model)
    if not linear or linear[-1].partition(".")[0] != top:
        raise InputError(f"backbone {name} does not end in a linear layer: choose another")
    model.set_submodule(linear[-1], nn.Identity())
    for path, part in model.named_modules():
        if path.partition(".")[0] in (top, "dropout") and isinstance(part, nn.Dropout):
            part.p = 0.0


def _last_child(model: nn.Module) -> str:
    return [name for name, _ in model.named_children()][-1]


def _convolutions(model: nn.Module, name: str) -> nn.Module:
    """Return the part of a model that ends in a map of features (B, C, height, width)."""
    children = dict(model.named_children())
    features = children.get("features")
    if isinstance(features, nn.Sequential) and "permute" not in children:  # swin's have the channels last
        return features
    if "avgpool" not in children:
        raise InputError(f"backbone {name} has no convolutions to lay a grid over: pass --grid 1")
    before = list(children)[: list(children).index("avgpool")]
    return nn.Sequential(OrderedDict((part, children[part]) for part in before))


def _published_state(published: Any, name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights that torchvision publishes, from its cache or the network."""
    try:
        return published.get_state_dict(check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a download that broke off
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise InputError(
            f"the ImageNet weights of {name} could not be fetched ({error}): download {published.url} to {folder} "
            "or pass --backbone-weights FILE, or none to start without"
        ) from error


def _read_state(path: Path) -> Any:
    """Return what is in a file of weights; nothing in the file can run code."""
    if not is_file(path):
        raise InputError(f"backbone_weights {path} does not exist: pass imagenet, none, or a state dict's file")
    try:
        with torch.serialization.safe_globals([Namespace]):  # the flags that torchvision's own training saves
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"backbone_weights {path} is damaged or no state dict: pass another") from error


def _fill(model: nn.Module, state: Any, source: str, name: str) -> None:
    """Load a state dict; its classifier may be there or not, everything else must."""
    try:
        if isinstance(state, dict):  # a checkpoint's
            state = state.get("state_dict", state.get("model", state))
            consume_prefix_in_state_dict_if_present(state, "module.")  # of DataParallel
        missing = model.load_state_dict(state, strict=False).missing_keys
    except Exception as error:  # torch raises many kinds for what is no state dict, or has other shapes
        reason = str(error).splitlines()[-1].strip()
        raise InputError(f"backbone_weights {source} does not fit {name}: {reason}") from error
    classifier = _last_child(model)
    lacks = [key for key in missing if key.partition(".")[0] != classifier]
    if lacks:
        raise InputError(f"backbone_weights {source} does not fit {name}: it lacks {lacks[0]} ({len(lacks)} missing)")
