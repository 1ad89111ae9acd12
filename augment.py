"""Random views of a batch, on the batch's own device: draw the parameters of each image, then apply them.

Drawing takes a generator and no pixels, applying takes no chance: the same views of the same images are the
same pixels, on any number of processes. Both classes go through the same views.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

# Quarter turns and flips move pixels without touching their values, and every view has them. The rest is for a
# random half of the views: were no image shown as sharp and as coloured as it is, the network would be tested on
# pictures of a kind that it never saw.
WARPED = COLOURED = 0.5  # share of the views that are turned, scaled and shifted; that are coloured
MAX_TURN = math.pi / 4  # each way: with the quarter turns, any angle
MAX_SHIFT = 0.05  # of the image's side, each way
SCALE = (0.9, 1.1)  # size of the lesion against the original, log-uniform
BRIGHTNESS = CONTRAST = 0.1  # factors from 1 - this to 1 + this
COLOUR = 0.03  # each channel's own factor, from 1 - this to 1 + this: a shift of the white balance
CPU_BLOCK = 32  # images viewed at a time on the CPU, so that they stay in the processor's cache


@dataclass(frozen=True)
class Views:
    """How each of B images is to be shown.

    affine : float32 (B, 2, 3), output position to input position, both in -1..1 (x, y), as in F.affine_grid
    gain : float32 (B, 3), factor of each colour channel
    contrast : float32 (B,), factor of the distance from the image's mean
    """

    affine: Tensor
    gain: Tensor
    contrast: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Views:
        """Return the views of some of the images."""
        return Views(self.affine[rows], self.gain[rows], self.contrast[rows])

    def to(self, device: torch.device) -> Views:
        """Return the views on a device, without waiting for the copy."""
        affine, gain, contrast = (
            part.to(device, non_blocking=True) for part in (self.affine, self.gain, self.contrast)
        )
        return Views(affine, gain, contrast)


def draw_views(n: int, generator: torch.Generator) -> Views:
    """Draw the views of n images: flip, turn by any angle, scale, shift, brightness, contrast, colour."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def chosen(share: float) -> Tensor:
        return (torch.rand(n, generator=generator) < share).float()

    warped, coloured = chosen(WARPED), chosen(COLOURED)
    quarters = torch.randint(0, 4, (n,), generator=generator)
    flip = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1.0
    # a turn with one flip reaches every mirror image: a flip up-down is a flip left-right turned by half
    angle = quarters * (math.pi / 2) + warped * uniform(-MAX_TURN, MAX_TURN)
    zoom = torch.exp(-warped * uniform(math.log(SCALE[0]), math.log(SCALE[1])))
    # the range is -1..1, two units wide: a shift by a share of the side is twice that
    shift = warped[:, None] * uniform(-2 * MAX_SHIFT, 2 * MAX_SHIFT, 2)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    affine = torch.stack([flip * cos, -flip * sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)

    brightness = 1 + coloured[:, None] * uniform(-BRIGHTNESS, BRIGHTNESS, 1)
    gain = brightness * (1 + coloured[:, None] * uniform(-COLOUR, COLOUR, 3))
    return Views(affine, gain, 1 + coloured * uniform(-CONTRAST, CONTRAST))


def apply_views(images: Tensor, views: Views) -> Tensor:
    """Return the views of images; what lies outside an image is its mirror image at the border.

    Parameters
    ----------
    images : float32 tensor of shape (B, 3, S, S), in 0..1 after the views' gain of about 1
    views : of the same B images, on the same device

    Returns
    -------
    float32 tensor of shape (B, 3, S, S), in 0..1
    """
    grid = _sampling_grid(views.affine, images.shape[2])
    moved = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    scale = (views.gain * views.contrast[:, None])[:, :, None, None]
    mean = (moved.mean(dim=(2, 3)) * views.gain).mean(dim=1)[:, None, None, None]  # of the brightened image
    offset = mean * (1 - views.contrast)[:, None, None, None]
    return moved.mul_(scale).add_(offset).clamp_(0, 1)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images (B, S, S, 3) as float32 (B, 3, S, S) in 0..1, in channels-last memory (no copy)."""
    return images.permute(0, 3, 1, 2).to(torch.float32).div_(255)


def _sampling_grid(affine: Tensor, side: int) -> Tensor:
    """Return F.affine_grid(affine, (B, 3, side, side), align_corners=False), float32 (B, side, side, 2).

    The coordinates are separable; F.affine_grid multiplies them out as matrices, which takes 2.5 times as long on
    the CPU.
    """
    centre = (2 * torch.arange(side, device=affine.device) + 1) / side - 1  # of each pixel, in -1..1
    grid = torch.empty((len(affine), side, side, 2), device=affine.device)
    for axis, (along_x, along_y, shift) in enumerate(affine.permute(1, 2, 0)[..., None]):
        by_row = along_y * centre + shift
        torch.add((along_x * centre)[:, None, :], by_row[:, :, None], out=grid[..., axis])
    return grid


def show(images: Tensor, views: Views | None) -> Tensor:
    """Return uint8 images (B, S, S, 3) through their views, or as they are.

    On the CPU a few images at a time, so that each step finds the last one's result in the processor's cache.

    Returns
    -------
    float32 tensor of shape (B, 3, S, S), in 0..1, channels-last memory
    """
    if views is None:
        return to_float(images)
    shown = torch.empty(images.shape, device=images.device).permute(0, 3, 1, 2)
    from_bytes = replace(views, gain=views.gain / 255)  # one factor takes 0..255 to 0..1 and brightens
    block = len(images) if images.is_cuda else CPU_BLOCK
    for start in range(0, len(images), block):
        part = slice(start, start + block)
        shown[part] = apply_views(images[part].permute(0, 3, 1, 2).float(), from_bytes[part])
    return shown
