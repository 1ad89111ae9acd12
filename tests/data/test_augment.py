"""Views: what each parameter does to the pixels, and how the parameters are drawn."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F

from melanoma.data import augment
from melanoma.data.augment import VIEWS, Normalize, ViewRanges, Views, apply_views, draw_views, flips_and_turns, show

SIZE = 16
IDENTITY = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
PIXEL = 2 / SIZE  # in the units of Views.affine, -1..1


def random_images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def same_view(n: int, affine=IDENTITY, gain=(1.0, 1.0, 1.0), contrast=1.0) -> Views:
    """The same view for n images."""
    return Views(torch.tensor(affine).repeat(n, 1, 1), torch.tensor(gain).repeat(n, 1), torch.full((n,), contrast))


def parts(views: Views) -> list[torch.Tensor]:
    return [views.affine, views.gain, views.contrast]


def drawn(n: int, seed: int = 0, /, **ranges: Any) -> Views:
    return draw_views(n, torch.Generator().manual_seed(seed), ViewRanges(**ranges))


EVERY: dict[str, Any] = {"share": 1.0}  # warp and colour every view, not a random half of them
OPTIONAL = ("hair", "square", "blur", "noise")  # fields of Views that are None by default
EXTRAS: dict[str, Any] = {"hair": 0.5, "cutout": 0.5, "blur": 0.5, "noise": 0.5}
OFF: dict[str, Any] = {"flip": False, "turn": 0.0, "scale": 1.0, "shift": 0.0, "light": 0.0, "colour": 0.0}


def only(n: int, **parts: torch.Tensor) -> Views:
    """Views that leave the images as they are but for these parts."""
    return dataclasses.replace(same_view(n), **parts)


def assert_alike(shown: torch.Tensor, expected: torch.Tensor, views: Views, atol: float = 1e-6) -> None:
    """Pixels are equal; under block noise but for a coefficient that rounding takes to the other side, if any."""
    noisy = torch.zeros(len(shown), dtype=torch.bool) if views.noise is None else views.noise > 0
    torch.testing.assert_close(shown[~noisy], expected[~noisy], atol=atol, rtol=0)
    assert not noisy.any() or (shown - expected)[noisy].abs().mean() < 2e-3


def assert_uniform(values: torch.Tensor, low: float, high: float) -> None:
    """Values lie within low..high and fill it evenly (Kolmogorov-Smirnov distance under 0.05)."""
    ordered = np.sort(values.double().numpy().ravel())
    assert ordered[0] >= low - 1e-5
    assert ordered[-1] <= high + 1e-5
    assert np.abs(ordered - np.linspace(low, high, len(ordered))).max() < 0.05 * (high - low)


def zoom_of(views: Views) -> torch.Tensor:
    return torch.linalg.det(views.affine[:, :, :2]).abs().sqrt()


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


@pytest.mark.parametrize("rows", [slice(0, 3), slice(3, 8), slice(None, None, 2), torch.tensor([5, 0, 5])])
@pytest.mark.parametrize("ranges", [{}, EXTRAS, dict.fromkeys(EXTRAS, 1.0)], ids=["default", "half", "every"])
def test_a_part_of_a_batch_gives_the_pixels_of_the_whole_batch(rows, ranges):
    images, views = random_images(8), drawn(8, **ranges)
    part = views[rows]
    assert isinstance(part, Views)
    assert_alike(apply_views(images[rows], part), apply_views(images, views)[rows], part)


def test_each_image_has_its_own_view():
    shown = apply_views(random_images(1).repeat(10, 1, 1, 1), drawn(10, **EVERY))
    apart = torch.cdist(shown.flatten(1), shown.flatten(1))
    assert (apart + torch.eye(10) > 0.5).all()


def test_views_move_between_devices_whole():
    moved = drawn(4).to(torch.device("meta"))
    assert isinstance(moved, Views)
    assert {part.device.type for part in parts(moved)} == {"meta"}
    assert all(getattr(moved, name) is None for name in OPTIONAL)
    moved = drawn(4, **EXTRAS).to(torch.device("meta"))
    assert {getattr(moved, name).device.type for name in OPTIONAL} == {"meta"}


# --- draw ---


def test_drawing_is_a_function_of_the_generator():
    generator = torch.Generator().manual_seed(5)
    first, second = parts(draw_views(6, generator)), parts(draw_views(6, generator))
    again = parts(drawn(6, 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_neither_drawing_nor_applying_touches_the_global_generators():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002
    images, views = random_images(4), drawn(4)
    assert torch.equal(apply_views(images, views), apply_views(images, views))
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_equal(np.random.get_state(legacy=False), numpy_state)  # noqa: NPY002


def test_drawn_views_are_turned_flipped_and_scaled_evenly():
    views = drawn(4000, **EVERY)
    assert (views.affine.shape, views.gain.shape, views.contrast.shape) == ((4000, 2, 3), (4000, 3), (4000,))
    assert {part.dtype for part in parts(views)} == {torch.float32}

    zoom = zoom_of(views)
    turn = views.affine[:, :, :2] / zoom[:, None, None]
    torch.testing.assert_close(turn @ turn.mT, torch.eye(2).expand(4000, 2, 2), atol=1e-5, rtol=0)  # no shear
    assert_uniform(-zoom.log(), -math.log(1.1), math.log(1.1))
    assert_uniform(torch.atan2(turn[:, 1, 0], turn[:, 1, 1]), -math.pi, math.pi)
    assert_uniform(views.affine[:, :, 2], -2 * 0.05, 2 * 0.05)

    flipped = torch.linalg.det(turn) < 0
    assert 0.47 < flipped.float().mean() < 0.53


def test_each_range_is_as_wide_as_it_is_said_to_be():
    views = drawn(4000, share=1.0, flip=False, turn=20.0, scale=2.0, shift=0.3, light=0.4, colour=0.0)
    zoom = zoom_of(views)
    turn = views.affine[:, :, :2] / zoom[:, None, None]
    assert_uniform(zoom.log(), -math.log(2), math.log(2))  # the lesion is up to twice as large, or half
    assert_uniform(torch.atan2(turn[:, 1, 0], turn[:, 1, 1]), -math.radians(20), math.radians(20))
    assert (torch.linalg.det(turn) > 0).all()
    assert_uniform(views.affine[:, :, 2], -2 * 0.3, 2 * 0.3)
    assert_uniform(views.contrast, 0.6, 1.4)
    assert_uniform(views.gain, 0.6, 1.4)


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_as_many_views_are_warped_and_coloured_as_asked_for(share):
    views = drawn(4000, share=share, flip=False)
    moved = (views.affine != torch.tensor(IDENTITY)).any(2).any(1)
    coloured = (views.gain != 1).all(1)
    assert torch.equal(views.contrast != 1, coloured)
    for own in (moved, coloured):
        assert float(own.float().mean()) == pytest.approx(share, abs=0.03)
    if share == 0.2:
        assert torch.corrcoef(torch.stack([moved, coloured]).float())[0, 1].abs() < 0.05


def test_ranges_of_0_and_a_scale_of_1_leave_the_images_as_they_are():
    views = drawn(8, share=1.0, **OFF)
    assert torch.equal(views.affine, torch.tensor(IDENTITY).expand(8, 2, 3))
    torch.testing.assert_close(apply_views(random_images(8), views), random_images(8), atol=1e-6, rtol=0)


def test_contrast_is_drawn_evenly():
    assert_uniform(drawn(4000, **EVERY).contrast, 1 - 0.1, 1 + 0.1)


def test_brightness_is_one_factor_for_all_channels():
    gain = drawn(4000, share=1.0, colour=0.0).gain
    assert torch.equal(gain, gain[:, :1].expand(-1, 3))
    assert_uniform(gain[:, 0], 1 - 0.1, 1 + 0.1)


def test_colour_is_a_factor_of_each_channel():
    gain = drawn(4000, share=1.0, light=0.0).gain
    for channel in gain.T:
        assert_uniform(channel, 1 - 0.03, 1 + 0.03)
    assert torch.corrcoef(gain.T).fill_diagonal_(0).abs().max() < 0.1


def test_parameters_of_a_view_are_drawn_independently():
    views = drawn(4000, **EVERY)
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
    torch.testing.assert_close(shown.flatten(2).sort().values, images.flatten(2).sort().values, atol=1e-5, rtol=0)


# --- hair, squares, blur and block noise ---


def test_nothing_else_is_drawn_unless_it_is_asked_for():
    assert all(getattr(drawn(4), name) is None for name in OPTIONAL)
    for setting, name in zip(EXTRAS, OPTIONAL, strict=False):
        name = {"cutout": "square"}.get(setting, setting)
        views = drawn(4, **{setting: 0.5})
        assert [own for own in OPTIONAL if getattr(views, own) is not None] == [name]


def test_as_many_views_have_each_change_as_asked_for_independently():
    shares = {"hair": 0.1, "cutout": 0.3, "blur": 0.7, "noise": 0.9}
    views: Any = drawn(4000, **shares)
    has = [(views.hair[:, :, 4] > 0).all(1), views.square[:, 2] > 0, views.blur > 0, views.noise > 0]
    assert torch.equal(has[0], (views.hair[:, :, 4] > 0).any(1))  # all hairs of an image or none
    for own, share in zip(has, shares.values(), strict=True):
        assert float(own.float().mean()) == pytest.approx(share, abs=0.03)
    assert torch.corrcoef(torch.stack(has).float()).fill_diagonal_(0).abs().max() < 0.06


def test_each_change_is_drawn_evenly_over_its_range():
    views: Any = drawn(4000, **dict.fromkeys(EXTRAS, 1.0))
    assert views.hair.shape == (4000, augment.HAIRS, 5)
    for column, (low, high) in enumerate([(-1, 1), (-1, 1), (0, math.pi), (-0.5, 0.5)]):
        assert_uniform(views.hair[:, :, column], low, high)
    assert_uniform(views.hair[:, :, 4], 2 * augment.HAIR_WIDTH[0], 2 * augment.HAIR_WIDTH[1])  # a side is 2 long
    assert_uniform(views.square[:, :2], -1, 1)
    assert_uniform(views.square[:, 2], *augment.CUTOUT)  # half of a side of 2 × share
    assert_uniform(views.blur, *augment.BLUR)
    assert_uniform(views.noise, *augment.QUANTUM)


def test_a_hair_is_a_dark_line_and_nothing_else():
    side = 64
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) / 2 + 0.5
    hair = torch.zeros(1, augment.HAIRS, 5)
    hair[0, 0] = torch.tensor([0.0, 1 / side, 0.0, 0.0, 2.5 * 2 / side])  # level, 5 pixels, about row 32
    before, after = images[0], augment._draw_hairs(images, hair)[0]
    changed = (before != after).any(0)
    assert changed[30:35].all() and not changed[:30].any() and not changed[35:].any()
    assert torch.equal(after[:, 30:35], torch.full((3, 5, side), augment.HAIR_SHADE))


def test_a_hair_runs_through_its_point_at_its_angle_and_bends():
    side, x, y, angle, width = 128, 0.25, -0.3, 0.5, 0.03
    for curvature in (0.0, 0.4):
        hair = torch.zeros(1, augment.HAIRS, 5)
        hair[0, 3] = torch.tensor([x, y, angle, curvature, width])
        after = augment._draw_hairs(torch.ones(1, 3, side, side), hair)[0, 0]
        for along in (-0.6, -0.2, 0.0, 0.3, 0.5):
            across = curvature * along**2
            right = x + along * math.cos(angle) - across * math.sin(angle)
            down = y + along * math.sin(angle) + across * math.cos(angle)
            column, row = int((right + 1) / 2 * side), int((down + 1) / 2 * side)
            assert after[row, column] == pytest.approx(augment.HAIR_SHADE, abs=0.01)
        dark = float((1 - after).sum()) / (1 - augment.HAIR_SHADE) / side**2  # area, as a share
        length = 2 / math.cos(angle)  # of a straight line from the left edge to the right one
        assert dark == pytest.approx(2 * width * length / 4, rel=0.15)


def test_hairs_cover_a_small_share_of_a_picture_and_brighten_nothing():
    images = 0.5 + random_images(20) / 2
    images = F.interpolate(images, size=(128, 128), mode="bilinear")
    views: Any = drawn(20, hair=1.0)
    shown = apply_views(images, only(20, hair=views.hair))
    darkened = (shown < images - 1e-3).any(1).float().mean((1, 2))
    assert (shown <= images + 1e-5).all()
    assert (darkened > 0.01).all() and (darkened < 0.4).all()


def test_a_square_hides_exactly_what_lies_within_it():
    images = random_images(3)
    # about the middle of pixel (5, 8), 3 pixels wide; beyond a corner of the image; none
    squares = [[8.5 * PIXEL - 1, 5.5 * PIXEL - 1, 1.5 * PIXEL], [1.0, 1.0, 2 * PIXEL], [0.0, 0.0, 0.0]]
    shown = apply_views(images, only(3, square=torch.tensor(squares)))
    hidden = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    hidden[0, 4:7, 7:10] = True
    hidden[1, 14:, 14:] = True
    for image, result, own in zip(images, shown, hidden, strict=True):
        for channel, seen in zip(image, result, strict=True):
            torch.testing.assert_close(seen[~own], channel[~own], atol=1e-6, rtol=0)
            torch.testing.assert_close(seen[own], channel.mean().expand(int(own.sum())))


@pytest.mark.parametrize("side", [32, 128])
def test_blur_is_scipys_gaussian(side):
    images = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    deviations = torch.tensor([0.004, 0.0, 0.008, 0.012])
    shown = apply_views(images, only(4, blur=deviations))
    reach = math.ceil(3 * augment.BLUR[1] * side)
    for image, result, deviation in zip(images.numpy(), shown.numpy(), deviations.tolist(), strict=True):
        sigma = deviation * side
        expected = gaussian_filter(image, (0, sigma, sigma), mode="mirror", radius=(0, reach, reach))
        np.testing.assert_allclose(result, expected, atol=1e-5)
        inside = (slice(None), slice(reach, -reach), slice(reach, -reach))
        np.testing.assert_allclose(result[inside], gaussian_filter(image, (0, sigma, sigma))[inside], atol=1e-2)
    assert torch.equal(shown[1], images[1])
    assert shown[2:].std() < images[2:].std()


def test_noise_rounds_the_cosine_coefficients_of_blocks():
    side, quanta = 20, torch.tensor([0.05, 0.13, 0.0])  # 4 pixels are beyond the last whole block
    images = 0.3 + 0.4 * torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    shown = augment._quantise_blocks(images, quanta)
    assert shown.min() > 0 and shown.max() < 1  # nothing was cut off
    for image, result, quantum in zip(images.numpy(), shown.numpy(), quanta.tolist(), strict=True):
        for channel, row, column in np.ndindex(3, 2, 2):
            block = (channel, slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
            coefficients, before = (dctn(part[block], norm="ortho") for part in (result, image))
            if quantum:
                before = np.round(before / quantum) * quantum
            np.testing.assert_allclose(coefficients, before, atol=1e-5)
    assert torch.equal(shown[..., 16:], images[..., 16:]) and torch.equal(shown[:, :, 16:], images[:, :, 16:])
    torch.testing.assert_close(shown[2], images[2], atol=1e-5, rtol=0)
    assert (shown[:2, :, :16, :16] - images[:2, :, :16, :16]).abs().mean() > 0.01


def test_changed_pixels_stay_between_0_and_1():
    images = random_images(64).round()
    shown = apply_views(images, drawn(64, **dict.fromkeys(EXTRAS, 1.0)))
    assert 0 <= shown.min() <= shown.max() <= 1


def test_changes_leave_the_images_that_they_are_not_for():
    views: Any = drawn(400, share=1.0, **OFF, **dict.fromkeys(EXTRAS, 0.3))
    sharp = (views.hair[:, 0, 4] == 0) & (views.square[:, 2] == 0) & (views.noise == 0)
    plain = sharp & (views.blur == 0)
    images = random_images(400)
    shown = apply_views(images, views)
    assert 50 < int(plain.sum()) < 150  # 0.7⁴ of 400 is 96
    torch.testing.assert_close(shown[plain], images[plain], atol=1e-6, rtol=0)
    # a blur alone is less than 0.2 pixels wide at this size
    assert ((shown - images)[~sharp].abs().amax((1, 2, 3)) > 1e-3).float().mean() > 0.9


# --- presets ---


def test_each_preset_is_wider_than_the_one_before():
    assert list(VIEWS) == ["none", "mild", "wide", "wider"]
    assert VIEWS["none"] is None
    assert VIEWS["mild"] == ViewRanges()
    presets = [dataclasses.asdict(ranges) for ranges in VIEWS.values() if ranges is not None]
    for narrow, wide in itertools.pairwise(presets):
        assert all(narrow[name] <= wide[name] for name in narrow) and narrow != wide
    for name in presets[0]:  # a field that no preset uses would be dead
        assert any(ranges[name] for ranges in presets)


# --- flips and turns ---


def test_flips_and_turns_are_the_eight_of_the_square():
    images = random_images(2)
    views = list(flips_and_turns(images, 8))
    expected = [
        images,
        images.transpose(2, 3),
        images.flip(2),
        images.flip(3),
        images.flip((2, 3)),
        images.transpose(2, 3).flip(2),
        images.transpose(2, 3).flip(3),
        images.transpose(2, 3).flip((2, 3)),
    ]
    assert len(views) == 8
    for view in views:
        assert sum(torch.equal(view, other) for other in expected) == 1
        assert sum(torch.equal(view, other) for other in views) == 1
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(views[0], images)


def test_one_view_is_the_image_as_it_is():
    [view] = flips_and_turns(random_images(2), 1)
    assert torch.equal(view, random_images(2))


# --- what the network takes ---

AS_THEY_ARE = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
IMAGENET = Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_normalize_puts_each_channel_in_units_of_its_spread():
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.3, 0.2, 0.1])
    pixels = torch.stack([mean - std, mean, mean + 2 * std]).view(3, 3, 1, 1)
    expected = torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1, 1).expand(3, 3, 1, 1)
    normalize = Normalize(mean.tolist(), std.tolist())
    torch.testing.assert_close(normalize(pixels), expected, atol=1e-5, rtol=0)
    assert not normalize.state_dict()  # constants, no weights


def test_without_views_images_are_divided_by_255_and_keep_the_memory_order():
    pixels = torch.randint(0, 256, (5, 8, 9, 3), dtype=torch.uint8, generator=torch.Generator())
    pixels[0, 0, 0] = torch.tensor([0, 51, 255])
    before = pixels.clone()
    images = show(pixels, None, AS_THEY_ARE)
    assert images.dtype == torch.float32
    assert images.shape == (5, 3, 8, 9)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images[0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 1])
    np.testing.assert_allclose(images.numpy(), pixels.numpy().transpose(0, 3, 1, 2) / 255, rtol=1e-6)
    assert torch.equal(pixels, before)


@pytest.mark.parametrize("block", [1, 3, 8, 100])
@pytest.mark.parametrize("ranges", [{}, EXTRAS], ids=["default", "extras"])
def test_images_shown_block_by_block_are_the_same(monkeypatch, block, ranges):
    monkeypatch.setattr(augment, "CPU_BLOCK", block)
    pixels = torch.randint(0, 256, (8, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator())
    views = drawn(8, **ranges)
    shown = show(pixels, views, AS_THEY_ARE)
    assert shown.is_contiguous(memory_format=torch.channels_last)
    assert_alike(shown, apply_views(pixels.permute(0, 3, 1, 2) / 255, views), views)


@pytest.mark.parametrize("ranges", [None, {}, EXTRAS], ids=["none", "default", "extras"])
def test_images_are_shown_normalised_in_the_networks_type(ranges):
    pixels = torch.randint(0, 256, (40, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator())
    views = None if ranges is None else drawn(40, **ranges)
    shown = show(pixels, views, IMAGENET)
    torch.testing.assert_close(shown, IMAGENET(show(pixels, views, AS_THEY_ARE)))
    rounded = show(pixels, views, IMAGENET, torch.bfloat16)
    assert torch.equal(rounded, shown.bfloat16())
    assert rounded.is_contiguous(memory_format=torch.channels_last)


def test_the_light_of_an_image_is_its_minkowski_mean_and_becomes_grey():
    pixels = np.random.default_rng(0).integers(1, 256, (3, 5, 5, 3)).astype(np.uint8)
    light = (pixels.astype(float) ** 6).mean(axis=(1, 2)) ** (1 / 6)
    expected = np.sqrt((light**2).mean(axis=1, keepdims=True)) / light
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    factors = augment.shades_of_grey(images)
    np.testing.assert_allclose(factors[:, :, 0, 0], expected, rtol=1e-5)
    corrected = images * factors
    np.testing.assert_allclose(augment.shades_of_grey(corrected).numpy(), 1, rtol=1e-4)
    torch.testing.assert_close(augment.shades_of_grey(torch.zeros(1, 3, 4, 4)), torch.ones(1, 3, 1, 1))


@pytest.mark.parametrize("ranges", [None, {}], ids=["none", "default"])
def test_a_cast_of_colour_is_not_seen_where_colours_are_constant(ranges):
    rng = np.random.default_rng(1)
    plain = rng.integers(60, 180, (4, SIZE, SIZE, 3))
    cast = torch.from_numpy((plain * [1.25, 1.0, 0.8]).round().astype(np.uint8))
    views = None if ranges is None else drawn(4, **ranges)
    constant = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    constant.grey = True
    seen, seen_cast = (show(own, views, constant) for own in (torch.from_numpy(plain.astype(np.uint8)), cast))
    ratio = seen_cast.mean(dim=(2, 3)) / seen.mean(dim=(2, 3))
    assert float((ratio / ratio.mean(dim=1, keepdim=True) - 1).abs().max()) < 0.01  # no channel before another
    assert float(seen_cast.min()) >= 0 and float(seen_cast.max()) <= 1
    other = show(cast, views, AS_THEY_ARE).mean(dim=(2, 3)) / show(cast, None, constant).mean(dim=(2, 3))
    assert float((other / other.mean(dim=1, keepdim=True) - 1).abs().max()) > 0.1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("ranges", [{}, EXTRAS], ids=["default", "extras"])
def test_cuda_shows_the_same_views_as_the_cpu(ranges):
    images, views, cuda = random_images(16), drawn(16, **ranges), torch.device("cuda")
    shown = apply_views(images.to(cuda), views.to(cuda))
    assert_alike(shown.cpu(), apply_views(images, views), views, atol=1e-4)
