"""decoding.py: image files are found by name, and decoded upright, as RGB, squashed to a square."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from melanoma.common.errors import InputError
from melanoma.data.decoding import decode_image, find_images, find_photos, image_id

# --- finding files ---


def test_images_are_found_by_name_whatever_the_case_of_their_extension(tmp_path):
    files = ["d.JPG", "b.jpeg", "c.PnG", "a.jpg", "e.JPEG", "with.dot.png"]
    for file in [*files, "notes.txt", "labels.csv", "jpg", "f.jpg.part"]:
        (tmp_path / file).touch()
    assert list(find_images(tmp_path).items()) == [(Path(file).stem, tmp_path / file) for file in sorted(files)]


@pytest.mark.parametrize("argument", ["train_image", "evaluate_image"])
def test_a_missing_image_folder_is_named_with_its_flag(tmp_path, argument):
    with pytest.raises(InputError) as error:
        find_images(tmp_path / "nowhere", argument)
    flag = argument.replace("_", "-")
    assert str(error.value).startswith(f"{argument} {tmp_path / 'nowhere'} is not a folder")
    assert ("config.py" in str(error.value)) == argument.startswith("train")
    assert f"--{flag}" in str(error.value)


def test_spaces_around_an_images_name_do_not_count():
    assert image_id(" photo 1 .jpg") == image_id("photo 1") == "photo 1"


def test_photos_are_files_as_named_and_the_images_of_folders_each_once(tmp_path):
    for name in ("b.jpg", "a.PNG", "a.jpeg", "notes.txt", "within/c.jpg", "._b.jpg", ".hidden/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = [tmp_path / "notes.txt", tmp_path / "b.jpg", tmp_path, tmp_path / "nowhere.jpg"]
    expected = ["notes.txt", "b.jpg", "a.PNG", "a.jpeg", "within/c.jpg", "nowhere.jpg"]
    assert find_photos(named) == [tmp_path / name for name in expected]


def test_no_photo_at_all_is_an_input_error(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"no image in \S+, \S+: name image files, or folders with \.jpg \.jpeg \.png"):
        find_photos([tmp_path, tmp_path])


def test_two_files_of_one_name_are_refused(tmp_path):
    for file in ("a.jpg", "a.PNG"):
        (tmp_path / file).touch()
    with pytest.raises(InputError, match=r"a\.jpg and .*/a\.PNG have one name, a: remove"):
        find_images(tmp_path)


# --- decoding ---

RED, GREEN, BLUE, GREY = (230, 20, 20), (20, 200, 20), (20, 20, 220), (120, 120, 120)
QUARTERS = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8).repeat(40, axis=0).repeat(20, axis=1)
# How a camera held in each of the 8 ways stores the picture (EXIF 2.3, tag 0x0112), as array operations.
STORED = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: np.rot90(upright, 2).swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


def assert_upright_quarters(pixels: np.ndarray, tolerance: int) -> None:
    assert pixels.dtype == np.uint8
    assert pixels.shape == (32, 32, 3)
    middles = pixels[8::16, 8::16].astype(int)
    assert np.abs(middles - [[RED, GREEN], [BLUE, GREY]]).max() <= tolerance


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_is_turned_upright_and_squashed_to_a_square(tmp_path, orientation, suffix):
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation](QUARTERS)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / f"a{suffix}", exif=exif)
    assert_upright_quarters(decode_image(tmp_path / f"a{suffix}", 32), tolerance=12)


def test_png_colours_are_exact(tmp_path):
    Image.fromarray(QUARTERS).save(tmp_path / "a.png")
    assert_upright_quarters(decode_image(tmp_path / "a.png", 32), tolerance=0)


@pytest.mark.parametrize("mode, suffix", [("P", ".png"), ("RGBA", ".png"), ("CMYK", ".jpg"), ("RGB", ".jpg")])
def test_every_colour_mode_becomes_rgb(tmp_path, mode, suffix):
    Image.fromarray(QUARTERS).convert(mode).save(tmp_path / f"a{suffix}")
    assert_upright_quarters(decode_image(tmp_path / f"a{suffix}", 32), tolerance=40 if mode == "P" else 12)


def test_transparency_does_not_change_colours(tmp_path):
    image = Image.fromarray(QUARTERS)
    image.putalpha(100)
    image.save(tmp_path / "alpha.png")
    image.convert("RGB").quantize(4).save(tmp_path / "palette.png", transparency=bytes([0, 90, 180, 255]))
    assert_upright_quarters(decode_image(tmp_path / "alpha.png", 32), tolerance=0)
    assert_upright_quarters(decode_image(tmp_path / "palette.png", 32), tolerance=12)


@pytest.mark.parametrize("mode, suffix", [("L", ".jpg"), ("L", ".png"), ("1", ".png"), ("LA", ".png")])
def test_grey_images_have_three_equal_channels(tmp_path, mode, suffix):
    half_white = np.zeros((64, 64), np.uint8)
    half_white[:, 32:] = 255
    Image.fromarray(half_white).convert(mode).save(tmp_path / f"a{suffix}")
    pixels = decode_image(tmp_path / f"a{suffix}", 32)
    assert pixels.shape == (32, 32, 3)
    assert np.ptp(pixels, axis=2).max() == 0
    assert pixels[:, 8].max() <= 2
    assert pixels[:, 24].min() >= 253


def test_decoding_a_large_jpeg_at_a_smaller_scale_changes_next_to_nothing(tmp_path):
    y, x = np.mgrid[0:1200, 0:1600]  # waves of 35 to 45 pixels in length
    planes = [128 + 90 * np.sin(x / 7), 128 + 90 * np.cos(y / 6), 128 + 90 * np.sin((x + y) / 9)]
    Image.fromarray(np.stack(planes, axis=2).astype(np.uint8)).save(tmp_path / "a.jpg", quality=95)
    with Image.open(tmp_path / "a.jpg") as image:
        whole = np.asarray(image.resize((128, 128), Image.Resampling.BICUBIC), np.float64)
    error = np.mean((decode_image(tmp_path / "a.jpg", 128) - whole) ** 2)
    assert 10 * np.log10(255**2 / error) > 45  # PSNR in dB; at half the scale it would be 38


def test_a_small_image_is_enlarged(tmp_path):
    Image.fromarray(np.full((3, 5, 3), 77, np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 32), np.full((32, 32, 3), 77))
