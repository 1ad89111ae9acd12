"""Pretrained backbones: any network of timm without its classifier."""

from __future__ import annotations

import math
import sys
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melanoma.common.errors import InputError, brief, shown
from melanoma.common.files import is_file
from melanoma.data.augment import Normalize

_DECLARED = torch.library.Library("torchvision", "FRAGMENT")  # declares operators, see import_torchvision


class Backbone(nn.Module):
    """What every backbone has: images, float (B, 3, S, S), normalised, become features (B, `features`).

    normalize : its normalisation of images; the caller applies it, with the views
    """

    features: int
    normalize: Normalize

    def blocks(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block, from input to output, so that the first blocks can be frozen."""
        raise NotImplementedError


def field_means(features: Tensor, grid: int) -> Tensor:
    """Return the means of grid × grid fields of a map, (B, C grid²), of features (B, C, height, width)."""
    height, width = features.shape[2:]
    if height % grid == 0 and width % grid == 0:
        return F.avg_pool2d(features, (height // grid, width // grid)).flatten(1)
    # adaptive pooling, whose own gradient is not deterministic on CUDA and which MPS lacks
    rows = torch.stack([features[:, :, field].mean(dim=2) for field in _fields(height, grid)], dim=2)
    return torch.stack([rows[..., field].mean(dim=3) for field in _fields(width, grid)], dim=3).flatten(1)


def _fields(side: int, grid: int) -> list[slice]:
    """Return where the fields of a side lie; of sides that do not divide, neighbours share a pixel."""
    return [slice(side * i // grid, -(-side * (i + 1) // grid)) for i in range(grid)]


class TimmBackbone(Backbone):
    """A network of timm (Wightman 2019) without its classifier.

    Parameters
    ----------
    name : as timm.list_models() has it, with or without the tag of its weights: mobilenetv2_100,
        vit_small_patch14_dinov2.lvd142m
    image_size : side S of the input; vision transformers are built for it
    weights : imagenet (those that timm has for this name, whatever they were trained on), none, or a file in timm's
        names, with or without the classifier: *.safetensors, or a state dict, which may be the entry "state_dict" or
        "model" of a checkpoint; torchvision's of ResNets and of mobilenet_v2 (for mobilenetv2_100) fit too
    grid : 1 keeps the network's own pooling; above, the features are the means of grid × grid fields of its last map,
        or of its patch tokens, so that an embedding knows what is in the lesion's middle and what around it

    Raises
    ------
    InputError : no such network or weights; no map for a grid; images of this size are not for this network
    """

    def __init__(self, name: str, image_size: int, weights: str, grid: int = 1) -> None:
        super().__init__()
        import_torchvision()  # timm needs it
        import timm

        if not timm.is_model(name):
            near = get_close_matches(name, timm.list_models(), n=3) or ["mobilenetv2_100", "resnet18"]
            raise InputError(f"backbone is {shown(name)}: it must be conv3 or a name of timm, as {', '.join(near)}")
        self.grid = grid
        try:
            fixed = timm.get_pretrained_cfg_value(name, "fixed_input_size")
            size: dict[str, Any] = {"img_size": image_size} if fixed else {}
            build = partial(timm.create_model, name, num_classes=0, **size)
            self.model = _without_pooling(build(), grid)
            _check_patches(self.model, image_size)
            with torch.no_grad():
                self.features = self.eval()(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except Exception as error:  # each family of networks has its own checks
            what = f"backbone {name} with grid {grid} takes no images of {image_size} px ({_reason(error)})"
            raise InputError(f"{what}: choose another --image-size, --grid or backbone") from error
        if weights == "imagenet":
            try:
                self.model = _without_pooling(build(pretrained=True), grid)
            except Exception as error:  # of the network, of the hub, or there are none
                page = f"https://huggingface.co/{self.model.pretrained_cfg.get('hf_hub_id', 'timm')}"
                raise InputError(
                    f"the weights of {name} could not be fetched ({_reason(error)}): download model.safetensors from "
                    f"{page} and pass --backbone-weights FILE, or none to start without"
                ) from error
        elif weights != "none":
            _load_file(self.model, Path(weights), name)
        self.normalize = Normalize(self.model.pretrained_cfg["mean"], self.model.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, (B, F), of images, float (B, 3, S, S), normalised."""
        features = self.model(images)
        if self.grid == 1:
            return features
        channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        if features.ndim == 3:  # tokens (B, T, C): class token and registers, then the patches row by row
            patches = features[:, getattr(self.model, "num_prefix_tokens", 0) :]
            features, channels_last = patches.unflatten(1, 2 * (math.isqrt(patches.shape[1]),)), True
        return field_means(features.permute(0, 3, 1, 2) if channels_last else features, self.grid)

    def blocks(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block as timm groups them: stem, residual or transformer blocks.

        A few networks have no groups there; they are one block.
        """
        from timm.models import group_parameters

        matcher: Any = getattr(self.model, "group_matcher", dict)()
        return list(group_parameters(self.model, matcher, return_values=True).values())


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


def _without_pooling(model: Any, grid: int) -> Any:
    """Return the network; if grid is above 1 without its pooling, so that it gives its last map or tokens."""
    if grid > 1:
        model.reset_classifier(0, "")
    return model


def _check_patches(model: nn.Module, image_size: int) -> None:
    """Refuse a side that patches do not fill: timm would leave the rest out."""
    from timm.layers import PatchEmbed

    for part in model.modules():
        if isinstance(part, PatchEmbed) and image_size % part.patch_size[0]:
            raise ValueError(f"it must be a multiple of {part.patch_size[0]}")


def _load_file(model: nn.Module, path: Path, name: str) -> None:
    """Load weights from a file, in which nothing can run code; other entries than the network's are left out."""
    from timm.models import load_state_dict, remap_state_dict

    if not is_file(path):
        raise InputError(f"backbone_weights {path} does not exist: pass imagenet, none, or a file of weights")
    try:
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"backbone_weights {path} is damaged or not a state dict: pass another") from error
    # the function by which timm takes up other names and image sizes, where a family of networks has one
    fit = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", lambda state, model: state)
    if name.startswith("mobilenetv2") and "features.0.0.weight" in state:  # torchvision's: other names, the same order
        fit = remap_state_dict
    try:
        missing = model.load_state_dict(fit(state, model), strict=False).missing_keys
    except Exception as error:
        raise InputError(f"backbone_weights {path} does not fit {name}: {_reason(error)}") from error
    if missing:
        raise InputError(f"backbone_weights {path} does not fit {name}: it lacks {missing[0]} ({len(missing)} missing)")


def _reason(error: Exception) -> str:
    """Return the last line of an error, in which torch and timm name what is wrong."""
    return brief(str(error).strip().rpartition("\n")[2].strip() or type(error).__name__, 200)
