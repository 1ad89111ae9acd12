"""Image files of every kind and state: the pixels that they mean, or one line that says what is wrong with which."""

import io
import os
import shutil
import struct
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from bad_input import EVIL, REFUSED, attempt, cases, no_files, refusal
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from tally import tally
from test_decoding import STORED

from melanoma.data.cache import build_cache, decode_photos, refuse_unreadable
from melanoma.data.decoding import (
    count_links,
    decode_image,
    decode_with_size,
    find_images,
    find_photos,
    hidden_warnings,
)

KIND = "bad image"
SIZE = 16
RED, GREEN, BLUE, GREY = (210, 40, 40), (40, 190, 40), (40, 40, 210), (128, 128, 128)
CORNERS = np.array([[RED, GREEN], [BLUE, GREY]], np.uint8)


def picture(height: int = 32, width: int = 48) -> np.ndarray:
    """Four fields of one colour each."""
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def middles(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four fields, int (2, 2, 3)."""
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    return pixels[SIZE // 4 :: SIZE // 2, SIZE // 4 :: SIZE // 2].astype(int)


def encoded(image: Image.Image, kind: str, **more) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def raw_png(width: int, height: int, depth: int, colour: int, rows: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(rows, 9)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def with_segment(jpeg: bytes, marker: int, data: bytes) -> bytes:
    """A JPEG with one more segment right after its beginning."""
    return jpeg[:2] + bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data + jpeg[2:]


# --- what is told correctly ---

MODES: dict[str, dict[str, int | None]] = {  # how far each may be from the colours
    "JPEG": {"RGB": 14, "CMYK": 16, "L": 14},
    "PNG": {"RGB": 0, "RGBA": 0, "P": 0, "L": 0, "LA": 0, "I;16": 1, "1": None},
    "WEBP": {"RGB": 40, "RGBA": 40},
    "BMP": {"RGB": 0, "L": 0, "P": 0},
}
SHAPES = [(2, 2), (2, 64), (64, 2), (32, 48), (301, 200), (17, 33)]


@cases(140)
@given(data=st.data())
def test_every_kind_of_image_has_the_colours_and_the_orientation_that_it_means(tmp_path, data):
    kind = data.draw(st.sampled_from(list(MODES)))
    mode = data.draw(st.sampled_from(list(MODES[kind])))
    height, width = data.draw(st.sampled_from(SHAPES))
    orientation = data.draw(st.sampled_from([None, 0, 9, 65535, *STORED])) if kind in ("JPEG", "PNG") else None
    suffix = data.draw(st.sampled_from([".jpg", ".png", ".JPEG", ".txt", ""]))
    upright = picture(height, width)
    stored = STORED[orientation if orientation in STORED else 1](upright)
    image = Image.fromarray(np.ascontiguousarray(stored))
    expected = CORNERS.astype(int)
    more: dict = {}
    if mode in ("L", "LA", "I;16", "1"):
        grey = stored.mean(axis=2)
        expected = np.repeat(CORNERS.mean(axis=2, keepdims=True), 3, axis=2)
        image = Image.fromarray(grey.astype(np.uint8))
        if mode == "I;16":
            image = Image.fromarray((grey * 257).astype(np.uint16))
        elif mode == "LA":
            image.putalpha(77)
        elif mode == "1":
            image = Image.fromarray(grey > 110)
            expected = 255.0 * (expected > 110)
    elif mode == "RGBA":
        image.putalpha(data.draw(st.sampled_from([0, 1, 128, 255])) if kind == "PNG" else 200)
    elif mode == "P":
        image = image.quantize(4, dither=Image.Dither.NONE)
        if kind == "PNG" and data.draw(st.booleans()):
            more["transparency"] = data.draw(st.sampled_from([0, bytes([0, 90, 180, 255])]))
    elif mode == "CMYK":
        image = image.convert("CMYK")
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        more["exif"] = exif
    if kind == "JPEG":
        more |= {"quality": 95, "progressive": data.draw(st.booleans())}
        more["subsampling"] = 0
    if kind in ("JPEG", "PNG", "WEBP") and data.draw(st.booleans()):
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        more["icc_profile"] = data.draw(st.sampled_from([srgb, srgb[:100], b"", b"\0" * 50]))
    content = encoded(image, kind, **more)
    if kind in ("JPEG", "PNG"):
        content += data.draw(st.sampled_from([b"", b"\0" * 20, b"trailing <html>"]))
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with hidden_warnings():
        pixels, size = decode_with_size(path, SIZE)
    assert size == (stored.shape[1], stored.shape[0])
    tolerance = MODES[kind][mode] or 0
    if min(height, width) > 2:
        assert np.abs(middles(pixels) - expected).max() <= tolerance + 1
    else:
        assert np.abs(pixels.mean(axis=(0, 1)) - expected.mean(axis=(0, 1))).max() <= tolerance + 25
    tally(KIND, "correct")


@pytest.mark.parametrize("value", [0, 1, 2, 128, 255, 256, 257, 32767, 65535])
@pytest.mark.parametrize("colour", [0, 2, 4, 6], ids=["grey", "RGB", "grey and alpha", "RGBA"])
def test_16_bits_keep_their_upper_8(tmp_path, value, colour):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour]
    row = b"\0" + struct.pack(">H", value) * channels * 4
    (tmp_path / "a.png").write_bytes(raw_png(4, 4, 16, colour, row * 4))
    assert (decode_image(tmp_path / "a.png", SIZE) == value >> 8).all()
    tally(KIND, "correct")


ANIMATED = {"PNG": ".png", "WEBP": ".png", "GIF": ".jpg", "MPO": ".jpg"}


@pytest.mark.parametrize("kind", ANIMATED)
def test_of_several_pictures_the_first_counts_and_a_gif_is_refused(tmp_path, kind):
    if kind == "MPO" and tuple(map(int, PIL.__version__.split(".")[:2])) < (11, 3):
        pytest.skip("Pillow before 11.3 writes MPO files that no version reads")
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, GREEN, BLUE)]
    path = tmp_path / f"a{ANIMATED[kind]}"
    path.write_bytes(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    if kind == "GIF":
        assert "it is not an image in one of the formats JPEG, PNG, WEBP, BMP" in refusal(
            KIND, [path], decode_image, path, SIZE
        )
        return
    assert np.abs(decode_image(path, SIZE).astype(int) - RED).max() <= 6
    tally(KIND, "correct")


@pytest.mark.parametrize("default", [True, False])
def test_of_an_animated_png_the_picture_that_others_see_counts(tmp_path, default):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    content = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=default)
    (tmp_path / "a.png").write_bytes(content)
    assert (decode_image(tmp_path / "a.png", SIZE) == RED).all()
    tally(KIND, "correct")


@pytest.mark.parametrize("height, width", [(1, 1), (1, 5000), (5000, 1), (3, 9000), (9000, 2)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_an_image_of_any_shape_becomes_a_square(tmp_path, height, width, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (width, height), GREY), kind))
    pixels, size = decode_with_size(path, SIZE)
    assert size == (width, height)
    assert np.abs(pixels.astype(int) - 128).max() <= 2
    tally(KIND, "correct")


# --- metadata that are damaged do no harm ---

JPEG = encoded(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0)
PNG = encoded(Image.fromarray(picture()), "PNG")
ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6
TIFF = ORIENTED.tobytes()  # Exif\0\0, then a TIFF of one tag


@cases(80)
@given(data=st.data())
def test_damaged_exif_turns_the_image_one_of_eight_ways_and_no_more(tmp_path, data):
    way = data.draw(st.sampled_from(["cut", "flip", "noise", "type", "count"]))
    block = bytearray(TIFF)
    if way == "cut":
        block = block[: data.draw(st.integers(0, len(block) - 1))]
    elif way == "flip":
        for _ in range(data.draw(st.integers(1, 4))):
            block[data.draw(st.integers(6, len(block) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    elif way == "noise":
        block = bytearray(b"Exif\0\0" + data.draw(st.binary(max_size=60)))
    else:
        place = block.index(b"\x12\x01") if b"\x12\x01" in block else block.index(b"\x01\x12")
        for i in range(2, 8):
            block[place + i] = data.draw(st.integers(0, 255))
    kind = data.draw(st.sampled_from(["JPEG", "PNG"]))
    path = tmp_path / "a.jpg"
    if kind == "JPEG":
        path.write_bytes(with_segment(JPEG, 0xE1, bytes(block)))
    else:
        path.write_bytes(PNG[:33] + chunk(b"eXIf", bytes(block[6:])) + PNG[33:])
    seen = middles(decode_image(path, SIZE))
    ways = [STORED[orientation](CORNERS.astype(int)) for orientation in STORED]
    assert min(np.abs(seen - way).max() for way in ways) <= 14
    if way == "cut":
        assert min(np.abs(seen - ways[i]).max() for i in (0, 7)) <= 14  # as it is stored, or as its tag says
    tally(KIND, "correct")


@cases(80)
@given(marker=st.sampled_from([*range(0xE0, 0xF0), 0xFE]), head=st.binary(max_size=3), data=st.binary(max_size=40))
def test_any_application_segment_leaves_the_pixels_or_is_refused(tmp_path, marker, head, data):
    path = tmp_path / "a.jpg"
    names = {0xE0: b"JFIF\0", 0xE1: b"http://ns.adobe.com/xap/1.0/\0", 0xE2: b"MPF\0", 0xED: b"Photoshop 3.0\0"}
    path.write_bytes(with_segment(JPEG, marker, names.get(marker, b"ICC_PROFILE\0") + head + data))
    pixels = attempt(KIND, [path], decode_image, path, SIZE)
    if pixels is not REFUSED:
        assert np.abs(middles(pixels) - CORNERS).max() <= 14
        tally(KIND, "correct")


CHUNKS = [b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"pHYs", b"gAMA", b"cHRM", b"eXIf", b"acTL", b"fcTL", b"sRGB", b"abCd"]


@cases(60)
@given(kind=st.sampled_from(CHUNKS), data=st.binary(max_size=40))
def test_any_further_chunk_leaves_the_pixels_or_is_refused(tmp_path, kind, data):
    path = tmp_path / "a.png"
    path.write_bytes(PNG[:33] + chunk(kind, data) + PNG[33:])
    pixels = attempt(KIND, [path], decode_image, path, SIZE)
    if pixels is not REFUSED:
        assert any(
            np.array_equal(middles(pixels), STORED[way](CORNERS)) for way in (STORED if kind == b"eXIf" else [1])
        )
        tally(KIND, "correct")


# --- damage ---

SMALL = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8))
CUT = {
    "JPEG": encoded(SMALL, "JPEG", quality=80, optimize=True),
    "progressive JPEG": encoded(SMALL, "JPEG", quality=60, progressive=True),
    "PNG": encoded(SMALL, "PNG"),
    "BMP": encoded(SMALL, "BMP"),
    "WebP": encoded(SMALL, "WEBP", quality=60),
}


@pytest.mark.parametrize("kind", CUT)
def test_an_image_cut_at_any_byte_is_refused_unless_its_pixels_are_whole(tmp_path, kind):
    path = tmp_path / "a.jpg"
    path.write_bytes(CUT[kind])
    whole = decode_image(path, SIZE)
    refused = 0
    for cut in range(len(CUT[kind])):
        path.write_bytes(CUT[kind][:cut])
        pixels = attempt(KIND, [path], decode_image, path, SIZE)
        if pixels is REFUSED:
            refused += 1
        else:
            assert np.array_equal(pixels, whole), f"cut at byte {cut} of {len(CUT[kind])}"
            tally(KIND, "correct")
    assert refused >= len(CUT[kind]) - 20  # what may be missing is a PNG's last chunk, and two checksums


def test_a_png_in_which_a_byte_has_changed_is_refused_unless_its_pixels_are_right(tmp_path):
    path = tmp_path / "a.png"
    whole = encoded(SMALL, "PNG")
    path.write_bytes(whole)
    pixels = decode_image(path, SIZE)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        found = attempt(KIND, [path], decode_image, path, SIZE)
        if found is not REFUSED:
            assert np.array_equal(found, pixels), f"byte {place}"
            tally(KIND, "correct")


def test_a_jpeg_in_which_bytes_have_changed_is_refused_or_has_pixels(tmp_path):
    """JPEG has no checksum: what its pixels are then cannot be told."""
    path, rng = tmp_path / "a.jpg", np.random.default_rng(1)
    for place in range(2, len(CUT["JPEG"]), 2):
        changed = bytearray(CUT["JPEG"])
        changed[place] = int(rng.integers(256))
        path.write_bytes(changed)
        pixels = attempt(KIND, [path], decode_image, path, SIZE)
        if pixels is not REFUSED:
            assert pixels.shape == (SIZE, SIZE, 3)
            tally(KIND, "pixels, damage that JPEG cannot tell")


NONE = {
    "empty": b"",
    "text": b"ISIC_0000000,melanoma\n",
    "HTML": b"<html><body>404</body></html>",
    "noise": bytes(range(256)) * 8,
    "zeros": bytes(5000),
    "JPEG's first bytes": b"\xff\xd8\xff\xe0",
    "PNG's first bytes": b"\x89PNG\r\n\x1a\n",
    "TIFF": encoded(SMALL, "TIFF"),
    "TIFF of 16 bits": encoded(Image.fromarray(np.full((8, 8), 60000, np.uint16)), "TIFF"),
    "GIF": encoded(SMALL, "GIF"),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch ran) (w) file\n",
    "PSD": b"8BPS\0\1" + bytes(60),
    "FITS": b"SIMPLE  =                    T".ljust(2880),
    "JPEG 2000": encoded(SMALL, "JPEG2000"),
    "PPM": encoded(SMALL, "PPM"),
    "ICO": encoded(SMALL, "ICO"),
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "zip": b"PK\3\4" + bytes(60),
    "PNG of no width": raw_png(0, 4, 8, 2, b""),
    "PNG without a palette": raw_png(4, 4, 8, 3, b"\0\0\1\2\3" * 4),
    "PNG of colour type 5": raw_png(4, 4, 8, 5, bytes(20)),
    "PNG without pixels": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)),
    "JPEG without a frame": b"\xff\xd8\xff\xd9",
}


@pytest.mark.parametrize("content", NONE.values(), ids=NONE)
@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_what_is_no_image_is_refused(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(KIND, [path], decode_image, path, SIZE)
    assert message.startswith(f"image {path} cannot be read, replace it: ")
    assert list(tmp_path.iterdir()) == [path]


@cases(80)
@given(
    head=st.sampled_from([b"", JPEG[:20], JPEG[:200], PNG[:16], PNG[:33], PNG[:41], b"BM", b"RIFF\0\0\0\0WEBPVP8 "]),
    data=st.binary(max_size=80),
)
def test_noise_is_refused(tmp_path, head, data):
    path = tmp_path / "a.jpg"
    path.write_bytes(head + data)
    refusal(KIND, [path], decode_image, path, SIZE)


# --- bombs ---


def bomb(width: int, height: int) -> bytes:
    return raw_png(width, height, 1, 0, bytes(1 + (width + 7) // 8) * min(height, 20_000))


def large_jpeg(width: int, height: int) -> bytes:
    """A small JPEG that says that it is large."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


BOMBS = {
    "PNG 20,000 × 20,000": (bomb(20_000, 20_000), "400000000 pixels"),
    "PNG just too large": (bomb(10_001, 10_000), "10001 × 10000 pixels"),
    "PNG in Pillow's range of warnings": (bomb(13_000, 13_000), "13000 × 13000 pixels"),
    "PNG of 4 billion each way": (raw_png(2**31 - 1, 2**31 - 1, 8, 2, b""), "pixels"),
    "JPEG 65,500 × 65,500": (large_jpeg(65_500, 65_500), "4290250000 pixels"),
    "JPEG 12,000 × 12,000": (large_jpeg(12_000, 12_000), "12000 × 12000 pixels"),
    "BMP": (
        b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "pixels",
    ),
}


@pytest.mark.parametrize("content, size", BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_at_once_and_without_its_memory(tmp_path, content, size):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    before, start = peak_kilobytes(), time.perf_counter()
    message = refusal(KIND, [path, size], decode_image, path, SIZE)
    assert "too large, at most 100,000,000 pixels are decoded" in message
    assert time.perf_counter() - start < 2
    assert peak_kilobytes() - before < 50_000


def peak_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").is_file() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def test_metadata_cannot_be_a_bomb_either(tmp_path):
    path = tmp_path / "a.png"
    packed = zlib.compress(bytes(50 * 2**20), 9)
    for kind, head in ((b"zTXt", b"a\0\0"), (b"iCCP", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0")):
        path.write_bytes(PNG[:33] + chunk(kind, head + packed) + PNG[33:])
        tracemalloc.start()
        pixels = attempt(KIND, [path], decode_image, path, SIZE)
        assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
        tracemalloc.stop()
        if pixels is not REFUSED:
            assert np.array_equal(middles(pixels), CORNERS)
            tally(KIND, "correct")


# --- files that are none, that vanish, that may not be read ---


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    for path in no_files(tmp_path).values():
        refusal(KIND, [path], decode_image, path, SIZE)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(picture()).save(folder / f"{name}.png")
    return folder


def test_what_is_no_file_in_a_folder_is_an_unreadable_image(photos, tmp_path):
    os.mkfifo(photos / "pipe.jpg")
    (photos / "to_nothing.jpg").symlink_to(photos / "nowhere.jpg")
    (photos / "to_itself.jpg").symlink_to(photos / "to_itself.jpg")
    bad = ["pipe", "to_itself", "to_nothing"]
    cache = build_cache(find_images(photos), SIZE, tmp_path / "cache")
    assert sorted(cache.row_of) == ["a", "b", "c"]
    assert sorted(cache.errors) == bad
    message = refusal(KIND, bad, refuse_unreadable, cache.errors, skip=False)
    assert "--skip-unreadable" in message
    assert sorted(decode_photos(find_images(photos), SIZE).errors) == bad
    tally(KIND, "clean error", 3)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(2, "No such file or directory"),
        PermissionError(13, "Permission denied"),
        OSError(5, "Input/output error"),
        OSError(24, "Too many open files"),
        MemoryError(),
    ],
)
def test_a_refusal_of_the_system_is_told_and_not_remembered(photos, tmp_path, monkeypatch, error):
    paths = find_images(photos)

    def refuse(path: Path, **more: Any) -> Image.Image:
        if Path(path).stem == "b":
            raise error
        return original(path, **more)

    original = Image.open
    monkeypatch.setattr(Image, "open", refuse)
    cache = build_cache(paths, SIZE, tmp_path / "cache")
    assert list(cache.errors) == ["b"]
    assert (getattr(error, "strerror", None) or "MemoryError") in refusal(
        KIND, ["b"], refuse_unreadable, cache.errors, skip=False
    )
    monkeypatch.undo()
    cache = build_cache(paths, SIZE, tmp_path / "cache")
    assert cache.errors == {}
    assert np.array_equal(middles(cache.pixels[cache.row_of["b"]]), CORNERS)
    tally(KIND, "correct")


def test_a_file_that_vanishes_after_it_was_listed_is_told(photos, tmp_path):
    paths = find_images(photos)
    (photos / "b.png").unlink()
    cache = build_cache(paths, SIZE, tmp_path / "cache")
    assert list(cache.errors) == ["b"]
    refusal(KIND, ["b", "No such file"], refuse_unreadable, cache.errors, skip=False)
    Image.fromarray(picture()).save(photos / "b.png")
    assert build_cache(paths, SIZE, tmp_path / "cache").errors == {}


def test_names_of_files_reach_no_terminal_as_they_are(photos, tmp_path):
    name = EVIL.replace("/", "_")[:100]
    (photos / f"{name}.jpg").write_bytes(b"")
    cache = build_cache(find_images(photos), SIZE, tmp_path / "cache")
    refusal(KIND, ["--skip-unreadable"], refuse_unreadable, cache.errors, skip=False)
    (photos / f"{name}.png").write_bytes(b"")
    refusal(KIND, ["have one name"], find_images, photos)


def test_warnings_are_hidden_while_decoding_and_shown_again_after(photos):
    for i in range(60):
        (photos / f"{i}.jpg").write_bytes(with_segment(JPEG, 0xE2, b"MPF\0" + b"II*\0\x08\0\0\0\0\0"))  # Pillow warns
    before = list(warnings.filters)
    assert decode_photos(find_images(photos), SIZE, workers=4).errors == {}
    decode_image(photos / "0.jpg", SIZE)
    assert list(warnings.filters) == before
    with pytest.warns(UserWarning), Image.open(photos / "0.jpg"):  # as it does elsewhere
        pass


# --- links ---


@pytest.fixture
def linked(photos: Path, tmp_path: Path) -> dict[str, Path]:
    """Where links in the folder of photos lead."""
    (tmp_path / "store").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "store" / "x.png")
    (photos / "below").mkdir()
    shutil.copy(photos / "a.png", photos / "below" / "y.png")
    (tmp_path / "hop").symlink_to(tmp_path / "store" / "x.png")
    (photos / "within").symlink_to(tmp_path / "store")
    return {
        "beside": photos / "a.png",
        "below": photos / "below" / "y.png",
        "out": tmp_path / "store" / "x.png",
        "out, by ..": Path("..") / "store" / "x.png",
        "out, by a second link": tmp_path / "hop",
        "out, by a folder within": photos / "within" / "x.png",
        "out, to nothing": tmp_path / "nowhere.png",
        "out, to a system file": Path("/etc/hostname"),
    }


WAYS = ["beside", "below", "out", "out, by ..", "out, by a second link", "out, by a folder within", "out, to nothing"]


@pytest.mark.parametrize("way", [*WAYS, "out, to a system file"])
@pytest.mark.parametrize("through", ["the folder", "a link to it"])
def test_links_are_followed_and_their_number_is_printed(photos, tmp_path, linked, way, through, capsys):
    (photos / "link.png").symlink_to(linked[way])
    folder = photos
    if through == "a link to it":
        folder = tmp_path / "elsewhere"
        folder.symlink_to(photos)
    paths = find_images(folder)
    assert sorted(paths) == ["a", "b", "c", "link", "x", "y"]
    assert count_links(paths.values()) == 1
    assert find_photos([folder]) == sorted(paths.values())
    assert find_photos([folder / "link.png"]) == [folder / "link.png"]
    cache = build_cache(paths, SIZE, tmp_path / "cache")
    assert list(cache.errors) == (["link"] if way in ("out, to nothing", "out, to a system file") else [])
    assert "; 1 of the images are links\n" in capsys.readouterr().out
    tally(KIND, "correct")


# --- damaged caches ---

CACHE = "damaged cache"


@pytest.fixture
def built(photos: Path, tmp_path: Path) -> tuple[dict[str, Path], Path, dict[str, bytes]]:
    """Images of one size and time, so that only the index tells them apart, their cache, and their pixels."""
    paths = {}
    for i, name in enumerate(("bad", "i1", "i3", "i5")):
        path = photos / f"{name}.bmp"
        path.write_bytes(
            encoded(Image.new("RGB", (8, 8), (10 * i, 100, 200)), "BMP") if name != "bad" else b"BM".ljust(246)
        )
        os.utime(path, ns=(10**18, 10**18))
        paths[name] = path
    build_cache(paths, SIZE, tmp_path / "cache", workers=1)
    (folder,) = (tmp_path / "cache").iterdir()
    return (paths, folder, {name: decode_image(path, SIZE).tobytes() for name, path in paths.items() if name != "bad"})


def check_cache(built, cache_dir: Path) -> None:
    paths, _, pixels = built
    cache = build_cache(paths, SIZE, cache_dir, workers=1)
    assert {name: cache.pixels[row].tobytes() for name, row in cache.row_of.items()} == pixels
    assert list(cache.errors) == ["bad"]
    assert {(source.width, source.height, source.bytes) for source in cache.sources.values()} == {(8, 8, 246)}
    tally(CACHE, "correct")


def test_an_index_in_which_any_byte_has_changed_gives_the_right_pixels(built, tmp_path):
    folder = built[1]
    pixels, index = ((folder / name).read_bytes() for name in ("pixels.bin", "index.jsonl"))
    rng = np.random.default_rng(0)
    flips = [(place, int(rng.integers(8))) for place in range(0, len(index), 6)]
    for name in (b'"i1"', b'"i3"', b'"i5"', b'"width": 8'):  # one image's name becomes another's, a size another
        flips += [(index.index(name) + len(name) - 1 - name.endswith(b'"'), bit) for bit in range(3)]
    for place, bit in flips:
        changed = bytearray(index)
        changed[place] ^= 1 << bit
        (folder / "pixels.bin").write_bytes(pixels)
        (folder / "index.jsonl").write_bytes(changed)
        check_cache(built, tmp_path / "cache")


def test_an_index_of_several_wrong_bytes_or_lines_gives_the_right_pixels(built, tmp_path):
    folder = built[1]
    pixels, index = ((folder / name).read_bytes() for name in ("pixels.bin", "index.jsonl"))
    lines = index.splitlines(keepends=True)
    rng = np.random.default_rng(0)
    wrong = [b"".join(lines[:i] + lines[i + 1 :]) for i in range(len(lines))]  # a line gone
    wrong += [b"".join([*lines[:i], b"[" * 100_000 + b"\n", *lines[i:]]) for i in range(len(lines))]
    wrong += [b"".join([*lines[:2], line]) for line in (b"7\n", b"null\n", b"{}\n", b'{"name": "i1", "error": 1}\n')]
    wrong += [bytes(rng.integers(0, 256, 300, dtype=np.uint8)), b"\0" * len(index), b"{}\n" * 5, index * 2]
    for content in wrong:
        (folder / "pixels.bin").write_bytes(pixels)
        (folder / "index.jsonl").write_bytes(content)
        check_cache(built, tmp_path / "cache")


def test_files_of_a_cache_cut_anywhere_give_the_right_pixels(built, tmp_path):
    folder = built[1]
    pixels, index = ((folder / name).read_bytes() for name in ("pixels.bin", "index.jsonl"))
    rng = np.random.default_rng(0)
    for _ in range(40):
        (folder / "pixels.bin").write_bytes(pixels[: rng.integers(len(pixels) + 1)])
        (folder / "index.jsonl").write_bytes(index[: rng.integers(len(index) + 1)])
        check_cache(built, tmp_path / "cache")
