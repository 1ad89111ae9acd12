"""Views: what each parameter does to the pixels, and how the parameters are drawn."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import augment
from augment import Views, apply_views, draw_views, show, to_float

SIZE = 16
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
PIXEL = 2 / SIZE  # in the units of Views.affine, -1..1


def random_images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def same_view(n: int, affine=IDENTITY, gain=(1.0, 1.0, 1.0), contrast=1.0) -> Views:
    """The same view for n images."""
    return Views(
        torch.tensor(affine).repeat(n, 1, 1), torch.tensor(gain).repeat(n, 1), torch.full((n,), contrast)
    )


def parts(views: Views) -> list[torch.Tensor]:
    return [views.affine, views.gain, views.contrast]


def drawn(n: int, seed: int = 0) -> Views:
    return draw_views(n, torch.Generator().manual_seed(seed))


def assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    """Values lie within low..high and fill it evenly (Kolmogorov-Smirnov distance under 0.05)."""
    ordered = np.sort(values.double().numpy().ravel())
    assert ordered[0] >= low - 1e-5
    assert ordered[-1] <= high + 1e-5
    assert np.abs(ordered - np.linspace(low, high, len(ordered))).max() < 0.05 * (high - low)


def zoom_of(views: Views) -> torch.Tensor:
    return torch.linalg.det(views.affine[:, :, :2]).abs().sqrt()


@pytest.fixture
def every_view(monkeypatch):
    """Warp and colour every view, not a random half of them."""
    monkeypatch.setattr(augment, "WARPED", 1.0)
    monkeypatch.setattr(augment, "COLOURED", 1.0)


# --- apply ---


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (IDENTITY, lambda x: x),
        (((-1.0, 0.0, 0.0), (0.0, 1.0, 0.0)), lambda x: x.flip(3)),
        (((1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), lambda x: x.flip(2)),
        (((0.0, -1.0, 0.0), (1.0, 0.0, 0.0)), lambda x: torch.rot90(x, 1, (2, 3))),
        (((-1.0, 0.0, 0.0), (0.0, -1.0, 0.0)), lambda x: torch.rot90(x, 2, (2, 3))),
    ],
    ids=["identity", "left-right", "up-down", "quarter turn", "half turn"],
)
def test_flips_and_turns_move_whole_pixels(affine, expected):
    images = random_images(3)
    torch.testing.assert_close(apply_views(images, same_view(3, affine)), expected(images), atol=1e-5, rtol=0)


def test_the_sampling_grid_is_torchs_own():
    affine = drawn(20).affine
    expected = F.affine_grid(affine, [20, 3, 33, 33], align_corners=False)
    torch.testing.assert_close(augment._sampling_grid(affine, 33), expected, atol=1e-5, rtol=0)


def test_shift_reads_further_right_and_down_and_mirrors_at_the_border():
    images = random_images(2)
    shifted = apply_views(images, same_view(2, ((1.0, 0.0, 3 * PIXEL), (0.0, 1.0, 2 * PIXEL))))
    rows, columns = [*range(2, SIZE), 15, 14], [*range(3, SIZE), 15, 14, 13]
    torch.testing.assert_close(shifted, images[:, :, rows][..., columns], atol=1e-5, rtol=0)


def test_half_the_grid_shows_the_middle_twice_as_large():
    images = random_images(2)
    larger = apply_views(images, same_view(2, ((0.5, 0.0, 0.0), (0.0, 0.5, 0.0))))
    middle = images[:, :, 4:12, 4:12]
    expected = F.interpolate(middle, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(larger[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_brightness_contrast_and_colour_equal_a_slow_loop():
    images = random_images(8)
    views = dataclasses.replace(drawn(8), affine=same_view(8).affine)
    for image, result, gain, contrast in zip(
        images, apply_views(images, views), views.gain, views.contrast, strict=True
    ):
        bright = torch.stack([channel * float(factor) for channel, factor in zip(image, gain, strict=True)])
        mean = bright.mean()
        expected = (mean + float(contrast) * (bright - mean)).clamp(0, 1)
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_contrast_is_about_the_mean_of_what_the_view_shows():
    images = torch.zeros(1, 3, SIZE, SIZE)
    images[..., 4:12, 4:12] = 0.8  # zoomed in, nothing else is seen
    half = ((0.25, 0.0, 0.0), (0.0, 0.25, 0.0))
    shown = apply_views(images, same_view(1, half, contrast=0.5))
    torch.testing.assert_close(shown, torch.full_like(shown, 0.8))


@pytest.mark.parametrize(("gain", "expected"), [(10.0, 1.0), (0.0, 0.0)])
def test_pixels_stay_between_0_and_1(gain, expected):
    images = random_images(1).clamp(min=0.2)
    assert (apply_views(images, same_view(1, gain=(gain,) * 3)) == expected).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_output_form_does_not_depend_on_the_inputs_layout(layout):
    images = random_images(64)
    shown = apply_views(images.contiguous(memory_format=layout), drawn(64))
    assert shown.shape == images.shape
    assert shown.dtype == torch.float32
    assert 0 <= shown.min() <= shown.max() <= 1
    torch.testing.assert_close(shown, apply_views(images, drawn(64)), atol=1e-5, rtol=0)


def test_applying_leaves_the_images_as_they_are():
    images = random_images(4)
    before = images.clone()
    apply_views(images, drawn(4))
    assert torch.equal(images, before)


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 8), slice(None, None, 2)])
def test_a_part_of_a_batch_gives_the_pixels_of_the_whole_batch(rows):
    images, views = random_images(8), drawn(8)
    part = views[rows]
    assert isinstance(part, Views)
    torch.testing.assert_close(
        apply_views(images[rows], part), apply_views(images, views)[rows], atol=1e-6, rtol=0
    )


def test_each_image_has_its_own_view(every_view):
    shown = apply_views(random_images(1).repeat(10, 1, 1, 1), drawn(10))
    apart = torch.cdist(shown.flatten(1), shown.flatten(1))
    assert (apart + torch.eye(10) > 0.5).all()


def test_views_move_between_devices_whole():
    moved = drawn(4).to(torch.device("meta"))
    assert isinstance(moved, Views)
    assert {part.device.type for part in parts(moved)} == {"meta"}


# --- draw ---


def test_drawing_is_a_function_of_the_generator():
    generator = torch.Generator().manual_seed(5)
    first, second = parts(draw_views(6, generator)), parts(draw_views(6, generator))
    again = parts(drawn(6, seed=5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_neither_drawing_nor_applying_touches_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    images, views = random_images(4), drawn(4)
    assert torch.equal(apply_views(images, views), apply_views(images, views))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_drawn_views_are_turned_flipped_and_scaled_evenly(every_view):
    views = drawn(4000)
    assert (views.affine.shape, views.gain.shape, views.contrast.shape) == ((4000, 2, 3), (4000, 3), (4000,))
    assert {part.dtype for part in parts(views)} == {torch.float32}

    zoom = zoom_of(views)
    turn = views.affine[:, :, :2] / zoom[:, None, None]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2).expand(4000, 2, 2), atol=1e-5, rtol=0)  # no shear
    low, high = augment.SCALE
    assert_uniform(-zoom.log(), math.log(low), math.log(high))
    assert_uniform(torch.atan2(turn[:, 1, 0], turn[:, 1, 1]), -math.pi, math.pi)
    assert_uniform(views.affine[:, :, 2], -2 * augment.MAX_SHIFT, 2 * augment.MAX_SHIFT)

    flipped = torch.linalg.det(turn) < 0
    assert 0.47 < flipped.float().mean() < 0.53


def test_a_scale_of_2_makes_the_lesion_twice_as_large(every_view, monkeypatch):
    monkeypatch.setattr(augment, "SCALE", (2.0, 2.0))
    torch.testing.assert_close(zoom_of(drawn(10)), torch.full((10,), 0.5))


def test_contrast_is_drawn_evenly(every_view):
    assert_uniform(drawn(4000).contrast, 1 - augment.CONTRAST, 1 + augment.CONTRAST)


def test_brightness_is_one_factor_for_all_channels(every_view, monkeypatch):
    monkeypatch.setattr(augment, "COLOUR", 0.0)
    gain = drawn(4000).gain
    assert torch.equal(gain, gain[:, :1].expand(-1, 3))
    assert_uniform(gain[:, 0], 1 - augment.BRIGHTNESS, 1 + augment.BRIGHTNESS)


def test_colour_is_a_factor_of_each_channel(every_view, monkeypatch):
    monkeypatch.setattr(augment, "BRIGHTNESS", 0.0)
    gain = drawn(4000).gain
    for channel in gain.T:
        assert_uniform(channel, 1 - augment.COLOUR, 1 + augment.COLOUR)
    assert torch.corrcoef(gain.T).fill_diagonal_(0).abs().max() < 0.1


def test_parameters_of_a_view_are_drawn_independently(every_view):
    views = drawn(4000)
    parameters = torch.stack([zoom_of(views), *views.affine[:, :, 2].T, views.gain.mean(1), views.contrast])
    assert torch.corrcoef(parameters).fill_diagonal_(0).abs().max() < 0.1


def test_half_of_the_views_only_move_pixels_and_half_keep_their_colours():
    views, generator = drawn(4000), torch.Generator().manual_seed(1)
    whole = (views.affine[:, :, :2].abs() - torch.eye(2)).abs().amax((1, 2)) < 1e-6
    turned = (views.affine[:, :, :2].abs() - torch.eye(2).flip(0)).abs().amax((1, 2)) < 1e-6
    exact = (whole | turned) & (views.affine[:, :, 2] == 0).all(1)
    plain = (views.gain == 1).all(1) & (views.contrast == 1)
    for share in (exact, plain, whole[exact], exact[plain]):
        assert 0.46 < share.float().mean() < 0.54
    keep = (exact & plain).nonzero()[:20, 0]
    images = torch.rand(len(keep), 3, SIZE, SIZE, generator=generator)
    shown = apply_views(images, Views(views.affine[keep], views.gain[keep], views.contrast[keep]))
    torch.testing.assert_close(
        shown.flatten(2).sort().values, images.flatten(2).sort().values, atol=1e-5, rtol=0
    )


# --- to_float ---


def test_to_float_divides_by_255_and_keeps_the_memory_order():
    pixels = torch.randint(0, 256, (5, 8, 9, 3), dtype=torch.uint8, generator=torch.Generator())
    pixels[0, 0, 0] = torch.tensor([0, 51, 255])
    before = pixels.clone()
    images = to_float(pixels)
    assert images.dtype == torch.float32
    assert images.shape == (5, 3, 8, 9)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    np.testing.assert_allclose(images.numpy(), pixels.numpy().transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("block", [1, 3, 8, 100])
def test_images_shown_block_by_block_are_the_same(monkeypatch, block):
    monkeypatch.setattr(augment, "CPU_BLOCK", block)
    pixels = torch.randint(0, 256, (8, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator())
    shown = show(pixels, drawn(8))
    assert shown.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(shown, apply_views(to_float(pixels), drawn(8)), atol=1e-6, rtol=0)
    assert torch.equal(show(pixels, None), to_float(pixels))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_shows_the_same_views_as_the_cpu():
    images, views, cuda = random_images(16), drawn(16), torch.device("cuda")
    shown = apply_views(images.to(cuda), views.to(cuda))
    torch.testing.assert_close(shown.cpu(), apply_views(images, views), atol=1e-4, rtol=0)
