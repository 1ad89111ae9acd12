"""Random views of a batch: draw the parameters of each image, then apply them on the batch's device.

Drawing takes a generator and no pixels; applying is deterministic. Both classes get the same views.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from melanoma.common.device import upload

CPU_BLOCK = 32  # images viewed at a time on the CPU, so that they stay in the processor's cache
HAIRS = 8  # on an image that has hairs
HAIR_WIDTH = (0.002, 0.008)  # half of it, as a share of the side
HAIR_SHADE = 0.15  # grey value of a hair, 0..1
BLUR = (0.004, 0.012)  # standard deviation of the blur as a share of the side: 0.5 to 1.5 pixels of 128
QUANTUM = (0.02, 0.15)  # JPEG noise: step to which the coefficients of an 8×8 block are rounded
CUTOUT = (0.15, 0.4)  # side of the hidden square, as a share of the image's
JPEG_BLOCK = 8
MINKOWSKI = 6  # the p of the mean of an image that is taken for its light


@dataclass(frozen=True)
class ViewRanges:
    """How far a view may differ from the image; 0 (scale: 1) switches a change off.

    flip : flips and quarter turns, in every view
    share : of the views that are turned, scaled and shifted; and, drawn separately, of those that are coloured. The
        others stay as sharp and as coloured as the images that are scored
    turn : degrees each way; with the quarter turns 45 is any angle
    scale : largest factor of the lesion's size, up or down, log-uniform
    shift : of the image's side, each way
    light : of brightness and of contrast, factors from 1 - light to 1 + light
    colour : of each channel, factors from 1 - colour to 1 + colour: a shift of the white balance
    blur, noise, hair, cutout : share of the views that have one
    """

    flip: bool = True
    share: float = 0.5
    turn: float = 45.0
    scale: float = 1.1
    shift: float = 0.05
    light: float = 0.1
    colour: float = 0.03
    blur: float = 0.0
    noise: float = 0.0
    hair: float = 0.0
    cutout: float = 0.0


# The values of the setting `views`; none shows each image as it is.
VIEWS: dict[str, ViewRanges | None] = {
    "none": None,
    "mild": ViewRanges(),
    "wide": ViewRanges(share=0.7, scale=1.3, light=0.2, colour=0.05, cutout=0.5),
    "wider": ViewRanges(share=0.8, scale=1.4, light=0.25, colour=0.08, blur=0.2, noise=0.2, hair=0.2, cutout=0.5),
}


@dataclass(frozen=True)
class Views:
    """Parameters of the views of B images. Positions are in -1..1 (x, y) from edge to edge.

    affine : float32 (B, 2, 3), output position to input position, as in F.affine_grid
    gain : float32 (B, 3), factor of each colour channel
    contrast : float32 (B,), factor of the distance from the image's mean

    The others are None where no image has the change.

    hair : float32 (B, HAIRS, 5): x and y of a point of each hair, its angle, its curvature, half its width (0: no hair)
    square : float32 (B, 3): x and y of the hidden square's middle, half its side (0: none)
    blur : float32 (B,), standard deviation as a share of the side (0: sharp)
    noise : float32 (B,), quantum of the block coefficients (0: none)
    """

    affine: Tensor
    gain: Tensor
    contrast: Tensor
    hair: Tensor | None = None
    square: Tensor | None = None
    blur: Tensor | None = None
    noise: Tensor | None = None

    def __getitem__(self, rows: slice | Tensor) -> Views:
        """Return the views of some of the images."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> Views:
        """Return the views on a device."""
        return self._each(lambda part: upload(part, device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Views:
        parts = {item.name: getattr(self, item.name) for item in fields(self)}
        return replace(self, **{name: change(part) for name, part in parts.items() if part is not None})


def draw_views(n: int, generator: torch.Generator, ranges: ViewRanges = ViewRanges()) -> Views:
    """Draw the views of n images within the ranges."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, generator=generator) * (high - low) + low

    def chosen(share: float) -> Tensor:
        return (torch.rand(n, generator=generator) < share).float()

    warped, coloured = chosen(ranges.share), chosen(ranges.share)
    quarters = torch.randint(0, 4, (n,), generator=generator) * float(ranges.flip)
    mirror = 1 - 2.0 * torch.randint(0, 2, (n,), generator=generator) * float(ranges.flip)
    # a turn with one flip reaches every mirror image: a flip up-down is a flip left-right turned by half
    turn = math.radians(ranges.turn)
    angle = quarters * (math.pi / 2) + warped * uniform(-turn, turn)
    zoom = torch.exp(-warped * uniform(-math.log(ranges.scale), math.log(ranges.scale)))
    # the range is -1..1, two units wide: a shift by a share of the side is twice that
    shift = warped[:, None] * uniform(-2 * ranges.shift, 2 * ranges.shift, 2)
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    affine = torch.stack([mirror * cos, -mirror * sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(n, 2, 3)

    brightness = 1 + coloured[:, None] * uniform(-ranges.light, ranges.light, 1)
    gain = brightness * (1 + coloured[:, None] * uniform(-ranges.colour, ranges.colour, 3))
    contrast = 1 + coloured * uniform(-ranges.light, ranges.light)

    hair = square = blur = noise = None
    if ranges.hair:
        place = uniform(-1, 1, HAIRS, 2)
        shape = torch.stack([uniform(0, math.pi, HAIRS), uniform(-0.5, 0.5, HAIRS)], dim=2)
        width = chosen(ranges.hair)[:, None, None] * uniform(*HAIR_WIDTH, HAIRS, 1) * 2
        hair = torch.cat([place, shape, width], dim=2)
    if ranges.cutout:
        square = torch.cat([uniform(-1, 1, 2), (chosen(ranges.cutout) * uniform(*CUTOUT))[:, None]], dim=1)
    if ranges.blur:
        blur = chosen(ranges.blur) * uniform(*BLUR)
    if ranges.noise:
        noise = chosen(ranges.noise) * uniform(*QUANTUM)
    return Views(affine, gain, contrast, hair, square, blur, noise)


def apply_views(images: Tensor, views: Views) -> Tensor:
    """Return the views of images; outside its border an image is mirrored.

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
    shown = torch.addcmul(offset, moved, scale).clamp_(0, 1)
    changes = (
        (_draw_hairs, views.hair),
        (_hide_square, views.square),
        (_blur, views.blur),
        (_quantise_blocks, views.noise),
    )
    for change, part in changes:
        if part is not None:
            changed = part.reshape(len(part), -1)[:, -1] > 0  # the last number is 0 where an image has no change
            # on a GPU all of them, as selecting would wait for the GPU
            rows = changed.nonzero()[:, 0] if changed.device.type == "cpu" else slice(None)
            shown[rows] = change(shown[rows], part[rows])
    return shown


def _centres(side: int, device: torch.device) -> Tensor:
    """Return the position of each pixel's centre along a side, -1..1 from edge to edge, float32 (S,)."""
    return (2 * torch.arange(side, device=device) + 1) / side - 1


def _draw_hairs(images: Tensor, hair: Tensor) -> Tensor:
    """Draw dark curved lines of soft edges on images (B, 3, S, S)."""
    side = images.shape[2]
    centre = _centres(side, images.device)
    x, y, angle, curvature, width = (part[..., None, None] for part in hair.unbind(2))  # (B, HAIRS, 1, 1)
    right, down = centre - x, centre[:, None] - y
    along = right * angle.cos() + down * angle.sin()
    across = down * angle.cos() - right * angle.sin() - curvature * along.square()
    inside = ((width - across.abs()) * (side / 2) + 0.5).clamp(0, 1)  # the edge is one pixel wide
    cover = (inside * (width > 0)).amax(dim=1, keepdim=True)
    return images * (1 - cover) + HAIR_SHADE * cover


def _hide_square(images: Tensor, square: Tensor) -> Tensor:
    """Fill a square of each image (B, 3, S, S) with its mean colour."""
    centre = _centres(images.shape[2], images.device)
    half = square[:, 2, None]
    across, down = ((centre - square[:, axis, None]).abs() < half for axis in (0, 1))
    hidden = (down[:, :, None] & across[:, None, :])[:, None]
    return torch.where(hidden, images.mean(dim=(2, 3), keepdim=True), images)


def _blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Blur each image (B, 3, S, S) by its own Gaussian, standard deviations (B,) as a share of the side."""
    n, channels, side, _ = images.shape
    if not n:
        return images
    reach = min(math.ceil(3 * BLUR[1] * side), side - 1)
    offset = torch.arange(-reach, reach + 1, device=images.device)
    sigma = (deviation * side).clamp(min=1e-3)[:, None]  # small enough to leave the image as it is
    kernel = torch.exp(-0.5 * (offset / sigma).square())
    kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(channels, dim=0)[:, None]
    planes = images.reshape(1, n * channels, side, side)
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), "reflect"), kernel[:, :, None, :], groups=n * channels)
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), "reflect"), kernel[..., None], groups=n * channels)
    return planes.view(n, channels, side, side)


def _quantise_blocks(images: Tensor, quantum: Tensor) -> Tensor:
    """Round the cosine coefficients of 8×8 blocks to multiples of quanta (B,), as JPEG does; 0 leaves an image.

    Pixels right of and below the last whole block stay as they are.
    """
    n, channels, side, _ = images.shape
    whole = side // JPEG_BLOCK * JPEG_BLOCK
    k = torch.arange(JPEG_BLOCK, device=images.device)
    cosine = torch.cos(math.pi / JPEG_BLOCK * (k + 0.5) * k[:, None]) * math.sqrt(2 / JPEG_BLOCK)
    cosine[0] /= math.sqrt(2)  # now orthonormal: the type II cosine transform
    grid = (n, channels, whole // JPEG_BLOCK, JPEG_BLOCK, whole // JPEG_BLOCK, JPEG_BLOCK)
    blocks = images[:, :, :whole, :whole].reshape(grid).transpose(3, 4)  # (B, 3, rows, columns, 8, 8)
    step = quantum.clamp(min=1e-6)[:, None, None, None, None, None]
    rounded = torch.round(cosine @ blocks @ cosine.T / step) * step
    result = images.clone()
    result[:, :, :whole, :whole] = (cosine.T @ rounded @ cosine).transpose(3, 4).reshape(n, channels, whole, whole)
    return result.clamp(0, 1)


def shades_of_grey(images: Tensor) -> Tensor:
    """Return the factors of the channels, (B, 3, 1, 1), that make the light of images (B, 3, S, S) grey.

    The light is the Minkowski mean of each channel with p = 6 (Finlayson and Trezzi 2004, who found this p best); its
    length in the colour space stays as it is.
    """
    light = images.clamp(min=1).pow(MINKOWSKI).mean(dim=(2, 3), keepdim=True).pow(1 / MINKOWSKI)
    return light.square().mean(dim=1, keepdim=True).sqrt() / light


class Normalize(nn.Module):
    """What a network takes for an image: values in 0..1, each channel scaled and shifted.

    Parameters
    ----------
    mean, std : of the three channels; they become 0 and 1

    `grey` says whether the colour of the light is corrected before, by `shades_of_grey`.
    """

    gain: Tensor
    offset: Tensor
    grey = False

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        gain = 1 / torch.tensor(std).view(3, 1, 1)
        self.register_buffer("gain", gain, persistent=False)
        self.register_buffer("offset", -torch.tensor(mean).view(3, 1, 1) * gain, persistent=False)

    def forward(self, images: Tensor, out: Tensor | None = None) -> Tensor:
        """Return images, float (B, 3, S, S) in 0..1, normalised; in `out`, whatever its type, if it is given."""
        return torch.addcmul(self.offset, images, self.gain, out=out)


def _sampling_grid(affine: Tensor, side: int) -> Tensor:
    """Return F.affine_grid(affine, (B, 3, side, side), align_corners=False), float32 (B, side, side, 2).

    F.affine_grid multiplies matrices, which takes 2.5 times as long on the CPU as these separable coordinates.
    """
    centre = _centres(side, affine.device)
    grid = torch.empty((len(affine), side, side, 2), device=affine.device)
    for axis, (along_x, along_y, shift) in enumerate(affine.permute(1, 2, 0)[..., None]):
        by_row = along_y * centre + shift
        torch.add((along_x * centre)[:, None, :], by_row[:, :, None], out=grid[..., axis])
    return grid


def show_part(images: Tensor, views: Views | None, normalize: Normalize, out: Tensor) -> None:
    """Write what `show` returns of a part of the images; the gain of their views is for values in 0..255."""
    pixels = images.permute(0, 3, 1, 2).float()
    if normalize.grey:
        pixels.mul_(shades_of_grey(pixels)).clamp_(max=255)
    normalize(apply_views(pixels, views) if views else pixels.div_(255), out=out)


def show(
    images: Tensor,
    views: Views | None,
    normalize: Normalize,
    dtype: torch.dtype = torch.float32,
    show_part: Callable[[Tensor, Views | None, Normalize, Tensor], None] = show_part,
) -> Tensor:
    """Return what a network takes for uint8 images (B, S, S, 3): their views, or the images as they are.

    show_part : the function of this name, perhaps compiled

    Returns
    -------
    tensor of shape (B, 3, S, S), normalised, of type `dtype`, channels-last memory
    """
    shown = torch.empty(images.shape, dtype=dtype, device=images.device).permute(0, 3, 1, 2)
    if views:
        views = replace(views, gain=views.gain / 255)  # one factor takes 0..255 to 0..1 and brightens
    block = CPU_BLOCK if images.device.type == "cpu" else len(images)
    for start in range(0, len(images), block):
        part = slice(start, start + block)
        show_part(images[part], views[part] if views else None, normalize, shown[part])
    return shown


def flips_and_turns(images: Tensor, count: int) -> Iterator[Tensor]:
    """Yield the first `count` of the 8 views that flips and quarter turns give of images (B, 3, S, S)."""
    for number in range(count):
        flipped = images.flip(3) if number >= 4 else images
        yield torch.rot90(flipped, number % 4, (2, 3)).contiguous(memory_format=torch.channels_last)
