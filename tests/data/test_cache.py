"""cache.py: decoded images are kept in a cache that survives kills and damage."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from melanoma.common.errors import InputError
from melanoma.data import cache as images
from melanoma.data.cache import ImageCache, Source, build_cache, decode_photos, refuse_unreadable
from melanoma.data.decoding import decode_image, decode_with_size, find_images

ROOT = Path(__file__).parents[2]
SIZE = 8
ROW = SIZE * SIZE * 3


def save_noise(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (10, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    """Ten images, i0 to i9, by name."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(10):
        save_noise(folder / f"i{i}.jpg", i)
    return find_images(folder)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The names of the images that have been decoded so far."""
    names = []

    def spy(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
        names.append(path.stem)
        return decode_with_size(path, size)

    monkeypatch.setattr(images, "decode_with_size", spy)
    return names


def build(photos: dict[str, Path], cache_dir: Path) -> ImageCache:
    return build_cache(photos, SIZE, cache_dir, workers=1)  # one thread: decoding stops where a test says


def content(cache: ImageCache) -> dict[str, bytes]:
    return {name: cache.pixels[row].tobytes() for name, row in cache.row_of.items()}


def true_content(photos: dict[str, Path]) -> dict[str, bytes]:
    return {name: decode_with_size(path, SIZE)[0].tobytes() for name, path in photos.items()}


def cache_folder(cache_dir: Path) -> Path:
    (folder,) = cache_dir.iterdir()
    return folder


def cache_files(cache_dir: Path) -> tuple[bytes, bytes]:
    folder = cache_folder(cache_dir)
    return (folder / "pixels.bin").read_bytes(), (folder / "index.jsonl").read_bytes()


# --- the cache and its sources ---


def test_cached_pixels_are_the_decoded_images(photos, tmp_path):
    cache = build_cache(photos, SIZE, tmp_path / "cache")
    assert content(cache) == true_content(photos)
    assert cache.pixels.shape == (10, SIZE, SIZE, 3)
    assert cache.pixels.dtype == np.uint8
    assert cache.errors == {}


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_cache_knows_the_size_of_each_source_file(photos, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = photos["i0"].with_name("large.jpg")  # large enough for the decoder to take it at an eighth
    Image.new("RGB", (643, 481)).save(large, exif=exif)
    for _ in range(2):  # as built, and as read again
        cache = build(photos | {"large": large}, tmp_path / "cache")
        assert cache.sources == {
            **{name: Source(path.stat().st_size, 12, 10) for name, path in photos.items()},
            "large": Source(large.stat().st_size, 643, 481),  # as stored, whichever way it was held
        }


def test_rows_follow_the_names_asked_for(photos, tmp_path):
    cache = build(photos, tmp_path / "cache")
    rows = cache.rows(["i7", "i2", "i7"])
    assert rows.dtype == np.int64
    np.testing.assert_array_equal(cache.pixels[rows[1]], decode_image(photos["i2"], SIZE))
    assert rows[0] == rows[2] != rows[1]


def test_an_image_is_decoded_once_ever(photos, tmp_path, decoded):
    build(photos, tmp_path / "cache")
    assert decoded == list(photos)
    files = cache_files(tmp_path / "cache")
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == list(photos)
    assert cache_files(tmp_path / "cache") == files


@pytest.mark.parametrize("change", ["time", "size"])
def test_a_changed_image_alone_is_decoded_again(photos, tmp_path, decoded, change):
    photos["i3"].write_bytes(photos["i3"].read_bytes().ljust(2000, b"\0"))
    build(photos, tmp_path / "cache")
    mtime = photos["i3"].stat().st_mtime_ns
    photos["i3"].write_bytes(photos["i4"].read_bytes().ljust(2000 + (change == "size"), b"\0"))
    os.utime(photos["i3"], ns=(mtime, mtime + 10**9 * (change == "time")))
    decoded.clear()
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == ["i3"]


def test_changes_pile_up(photos, tmp_path):
    for changed, source in (("i0", "i1"), ("i3", "i4"), ("i3", "i5"), ("i7", "i3")):
        build(photos, tmp_path / "cache")
        shutil.copy(photos[source], photos[changed])
        os.utime(photos[changed])
        assert content(build(photos, tmp_path / "cache")) == true_content(photos)


def test_an_added_image_alone_is_decoded(photos, tmp_path, decoded):
    some = {name: path for name, path in photos.items() if name != "i4"}
    build(some, tmp_path / "cache")
    decoded.clear()
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == ["i4"]


def test_a_removed_image_is_no_longer_in_the_cache(photos, tmp_path, decoded):
    build(photos, tmp_path / "cache")
    decoded.clear()
    photos.pop("i4").unlink()
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == []


def test_each_size_and_each_folder_has_its_own_cache(photos, tmp_path, decoded):
    namesake = tmp_path / "elsewhere" / "photos"
    namesake.mkdir(parents=True)
    save_noise(namesake / "i0.jpg", 99)
    others = find_images(namesake)
    for _ in range(2):
        assert content(build(photos, tmp_path / "cache")) == true_content(photos)
        assert content(build(others, tmp_path / "cache")) == true_content(others)
        assert build_cache(photos, 16, tmp_path / "cache").pixels.shape == (10, 16, 16, 3)
    assert len(decoded) == 10 + 1 + 10


def test_writing_into_gathered_pixels_does_not_reach_the_cache(photos, tmp_path):
    cache = build(photos, tmp_path / "cache")
    with pytest.raises(ValueError, match="read-only"):
        cache.pixels[:] = 0
    rows = np.array([2, 0, 2])
    gathered = cache.gather(rows)
    assert np.array_equal(gathered, cache.pixels[rows])
    gathered[:] = 0
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)


def test_no_images_at_all_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no images"):
        build({}, tmp_path / "cache")


# --- damage and interruption ---


def cut_pixels(folder: Path) -> None:
    os.truncate(folder / "pixels.bin", 3 * ROW + 5)


def edit_line(number: int, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        lines = (folder / "index.jsonl").read_bytes().splitlines(keepends=True)
        lines[number] = change(lines[number])
        (folder / "index.jsonl").write_bytes(b"".join(lines))

    return damage


# Each with the number of images that must be decoded again.
DAMAGE = {
    "pixels cut within row 3": (cut_pixels, 7),
    "pixels cut within row 0": (lambda folder: os.truncate(folder / "pixels.bin", 20), 10),
    "pixels gone": (lambda folder: (folder / "pixels.bin").unlink(), 10),
    "index gone": (lambda folder: (folder / "index.jsonl").unlink(), 10),
    "index empty": (lambda folder: os.truncate(folder / "index.jsonl", 0), 10),
    "index garbage": (lambda folder: (folder / "index.jsonl").write_bytes(b"\xff\0{garbage\n" * 50), 10),
    "index is other JSON": (lambda folder: (folder / "index.jsonl").write_bytes(b"[1]\n2\nnull\n"), 10),
    "index of another format": (edit_line(0, lambda line: line.replace(b"cache-4", b"cache-3")), 10),
    "index of another size": (edit_line(0, lambda line: line.replace(b": 8", b": 9")), 10),
    "zeros in the index": (edit_line(5, lambda line: bytes(len(line) - 1) + b"\n"), 6),
    "a line without the width": (edit_line(5, lambda line: line.replace(b"width", b"depth")), 6),
    "other JSON in the index": (edit_line(5, lambda line: b"7\n"), 6),
}


@pytest.mark.parametrize("damage, lost", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cache_is_repaired(photos, tmp_path, decoded, damage, lost):
    cache_dir = tmp_path / "cache"
    build(photos, cache_dir)
    decoded.clear()
    damage(cache_folder(cache_dir))
    assert content(build(photos, cache_dir)) == true_content(photos)
    assert len(decoded) == lost
    assert content(build(photos, cache_dir)) == true_content(photos)
    assert len(decoded) == lost  # repaired for good


def test_an_index_cut_anywhere_is_repaired(photos, tmp_path):
    cache_dir = tmp_path / "cache"
    some = {name: photos[name] for name in ("i0", "i1", "i2")}
    build(some, cache_dir)
    pixels, index = cache_files(cache_dir)
    ends = np.cumsum([len(line) for line in index.splitlines(keepends=True)])
    for cut in sorted({0, 1, *ends, *(ends - 1), *(ends - 2), *(ends[:-1] + 1), *(ends - 20)}):
        os.truncate(cache_folder(cache_dir) / "index.jsonl", cut)
        assert content(build(some, cache_dir)) == true_content(some), f"cut at byte {cut} of {len(index)}"
        assert cache_files(cache_dir) == (pixels, index), f"cut at byte {cut} of {len(index)}"


@pytest.mark.parametrize("stop_at", [0, 3, 6, 9])
def test_an_interrupted_build_goes_on_where_it_stopped(photos, tmp_path, monkeypatch, decoded, stop_at):
    monkeypatch.setattr(images, "COMMIT_ROWS", 3)
    build(photos, tmp_path / "unbroken")

    def interrupted(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
        if path.stem == f"i{stop_at}":
            raise KeyboardInterrupt
        return decode_with_size(path, size)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, "decode_with_size", interrupted)
        build(photos, tmp_path / "cache")

    decoded.clear()
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == list(photos)[stop_at // 3 * 3 :]
    assert cache_files(tmp_path / "cache") == cache_files(tmp_path / "unbroken")


@contextmanager
def dying_in_write(number: int) -> Iterator[None]:
    """Let write `number` to a cache, counted from 0, end halfway and the build with it."""
    real_commit, calls = images._commit, []

    def commit(file: BinaryIO, data: bytes) -> None:
        calls.append(data)
        if len(calls) > number:
            file.write(data[: len(data) // 2])
            raise KeyboardInterrupt
        real_commit(file, data)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(images, "_commit", commit)
        patch.setattr(images, "COMMIT_ROWS", 4)
        yield


@pytest.mark.parametrize("number", range(7))
def test_a_build_that_dies_within_a_write_goes_on(photos, tmp_path, number):
    build(photos, tmp_path / "unbroken")
    with dying_in_write(number):
        build(photos, tmp_path / "cache")
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert cache_files(tmp_path / "cache") == cache_files(tmp_path / "unbroken")


@pytest.mark.parametrize("damage", [cut_pixels, lambda folder: (folder / "index.jsonl").write_bytes(b"")])
@pytest.mark.parametrize("number", range(5))
def test_a_repair_that_dies_within_a_write_goes_on(photos, tmp_path, number, damage):
    build(photos, tmp_path / "cache")
    damage(cache_folder(tmp_path / "cache"))
    shuffled = {name: photos[name] for name in sorted(photos, reverse=True)}  # other rows than before
    with dying_in_write(number):
        build(shuffled, tmp_path / "cache")
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)


# The builds of other processes: arguments are photos, cache_dir, a log of decoded names, and the image to die at.
BUILD = """
import os, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from melanoma.data import cache as images
from melanoma.data.decoding import find_images

folder, cache_dir, log, die_at = sys.argv[1:]
images.COMMIT_ROWS = 3
decode_with_size = images.decode_with_size

def decode(path, size):
    if path.stem == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(log, "a") as file:
        file.write(path.stem + "\\n")
    time.sleep(0.01)  # long enough for another process to come in between
    return decode_with_size(path, size)

images.decode_with_size = decode
print("ready", flush=True)
sys.stdin.readline()
cache = images.build_cache(find_images(Path(folder)), 8, Path(cache_dir), workers=1)
print(*(cache.pixels[row].tobytes().hex() for row in cache.row_of.values()))
"""


def start_build(*arguments: Path | str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def test_a_killed_build_goes_on_where_it_stopped(photos, tmp_path, decoded):
    with start_build(tmp_path / "photos", tmp_path / "cache", tmp_path / "log", "i7") as process:
        process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert content(build(photos, tmp_path / "cache")) == true_content(photos)
    assert decoded == list(photos)[10 - len(decoded) :]
    assert 4 <= len(decoded) <= 7  # at least one commit of 3 rows was saved, at most two


def test_two_processes_that_build_at_once_decode_each_image_once(photos, tmp_path):
    arguments = (tmp_path / "photos", tmp_path / "cache", tmp_path / "log", "none")
    with start_build(*arguments) as one, start_build(*arguments) as two:
        for process in (one, two):
            assert process.stdout and process.stdout.readline() == "ready\n"
        for process in (one, two):
            assert process.stdin
            process.stdin.write("go\n")
            process.stdin.flush()
        outputs = [process.communicate(timeout=60)[0] for process in (one, two)]
    expected = " ".join(pixels.hex() for pixels in true_content(photos).values())
    assert [output.splitlines()[-1] for output in outputs] == [expected, expected]
    assert sorted((tmp_path / "log").read_text().split()) == list(photos)


# --- unreadable files and full disks ---


@pytest.fixture
def broken(photos) -> list[str]:
    """Names of images that cannot be decoded: an empty file, a text, half a JPEG."""
    photos["i1"].write_bytes(b"")
    photos["i4"].write_text("<html>404 not found</html>")
    photos["i8"].write_bytes(photos["i8"].read_bytes()[:-200])
    return ["i1", "i4", "i8"]


def test_unreadable_images_do_not_stop_the_build_and_are_all_listed(photos, broken, tmp_path):
    cache = build(photos, tmp_path / "cache")
    assert list(cache.errors) == broken
    assert cache.sources.keys() == cache.row_of.keys() == photos.keys() - set(broken)
    assert content(cache) == true_content({name: photos[name] for name in photos if name not in broken})
    with pytest.raises(InputError) as error:
        refuse_unreadable(cache.errors, skip=False)
    assert str(error.value).startswith("3 images cannot be read, replace them or pass --skip-unreadable: ")
    assert "--skip-unreadable" in str(error.value)
    for name in broken:
        assert f"{name}: {cache.errors[name]}" in str(error.value)


def test_however_many_unreadable_images_are_all_listed():
    errors = {f"i{i:03d}": "OSError: truncated" for i in range(300)}
    with pytest.raises(InputError) as error:
        refuse_unreadable(errors, skip=False)
    assert [name for name in errors if name not in str(error.value)] == []


def test_photos_are_the_pixels_and_errors_of_a_cache_without_one(photos, broken, tmp_path):
    kept = build(photos, tmp_path / "cache")
    files = set(tmp_path.rglob("*"))
    cache = decode_photos(photos, SIZE, workers=1)
    assert content(cache) == content(kept)
    assert list(cache.row_of) == [name for name in photos if name not in broken]
    assert cache.errors == kept.errors
    rows = cache.rows(["i9", "i0"])
    assert [image.tobytes() for image in cache.gather(rows)] == [content(kept)[name] for name in ("i9", "i0")]
    assert set(tmp_path.rglob("*")) == files


def test_unreadable_images_can_be_left_out_on_purpose(photos, broken, tmp_path):
    refuse_unreadable(build(photos, tmp_path / "cache").errors, skip=True)
    refuse_unreadable({}, skip=False)


def test_unreadable_images_are_remembered_until_they_are_replaced(photos, broken, tmp_path, decoded):
    build(photos, tmp_path / "cache")
    decoded.clear()
    assert list(build(photos, tmp_path / "cache").errors) == broken
    assert decoded == []
    shutil.copy(photos["i0"], photos["i4"])
    cache = build(photos, tmp_path / "cache")
    assert list(cache.errors) == ["i1", "i8"]
    assert decoded == ["i4"]
    assert content(cache)["i4"] == content(cache)["i0"]


def test_a_disk_too_small_is_noticed_before_anything_is_decoded(photos, tmp_path, decoded, monkeypatch):
    need = 10 * ROW + images.SPARE_BYTES
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, need - 1))
    with pytest.raises(InputError, match=r"cache has 0\.07 GB free, 0\.07 GB are needed.*--cache-dir"):
        build(photos, tmp_path / "cache")
    assert decoded == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**12, 0, need))
    build(photos, tmp_path / "cache")
    assert decoded == list(photos)


def test_a_cache_dir_that_cannot_be_made_is_an_input_error(photos, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cache_dir"):
        build(photos, tmp_path / "file")


def test_images_on_several_drives_of_windows_are_refused(tmp_path, monkeypatch):
    def commonpath(paths):
        raise ValueError("Paths don't have the same drive")

    monkeypatch.setattr("os.path.commonpath", commonpath)
    with pytest.raises(InputError, match="the images lie on several drives: put them on one"):
        build_cache({"a": tmp_path / "a.jpg"}, 32, tmp_path / "cache")
