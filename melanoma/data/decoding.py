"""Find and decode image files safely."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from melanoma.common.errors import InputError, brief, printable, settable
from melanoma.common.files import is_folder

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # of the content; the extension does not count
MAX_PIXELS = 100_000_000  # four times ISIC's largest image; 400 MB once decoded


def image_id(name: str) -> str:
    """Return the id of an image's name: without folders, extension, outer spaces, and ISIC 2019's `_downsampled`."""
    name = name.replace("\\", "/").rpartition("/")[2]
    stem, dot, extension = name.rpartition(".")
    name = stem if dot + extension.lower() in EXTENSIONS else name
    return name.strip().removesuffix("_downsampled")


def find_images(folders: Path | Sequence[Path], argument: str = "train_image") -> dict[str, Path]:
    """Return the image files in folders, at any depth, by their `image_id`, sorted; hidden files are ignored.

    Links are followed; `count_links` says how many there are.

    Raises
    ------
    InputError : a folder does not exist, or two files have one id
    """
    found: dict[str, Path] = {}
    for folder in [folders] if isinstance(folders, Path) else folders:
        if not is_folder(folder):
            raise InputError(f"{argument} {folder} is not a folder: {settable(argument)}")
        for path in _image_files(folder):
            name = image_id(path.name)
            if name in found:
                raise InputError(f"{path} and {found[name]} have one name, {name}: remove or rename one of them")
            found[name] = path
    return dict(sorted(found.items()))


def find_photos(places: Iterable[Path]) -> list[Path]:
    """Return the named files, of any extension, and the image files in the named folders, sorted; each path once.

    Raises
    ------
    InputError : there is none
    """
    found: dict[Path, None] = {}
    for place in places:
        found |= dict.fromkeys(_image_files(place) if is_folder(place) else [place])
    if not found:
        raise InputError(
            f"no image in {', '.join(map(str, places))}: name image files, or folders with {' '.join(EXTENSIONS)} files"
        )
    return list(found)


def count_links(paths: Iterable[Path]) -> int:
    """Return how many files are symbolic links."""
    return sum(path.is_symlink() for path in paths)


def _image_files(folder: Path) -> list[Path]:
    """Return the image files in a folder at any depth, sorted; those in hidden folders, and macOS's ._*, are hidden."""

    def stop(error: OSError) -> None:
        raise InputError(f"folder {error.filename} cannot be read: {error.strerror}: choose another") from error

    found = []
    for parent, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    return sorted(path for path in found if path.suffix.lower() in EXTENSIONS)


@contextlib.contextmanager
def hidden_warnings() -> Iterator[None]:
    """Hide Pillow's warnings about metadata and sizes, in all threads: enter it around a pool, not within one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class UnreadableImage(InputError):
    """An image file cannot be decoded.

    Parameters
    ----------
    path : of the file, or a PIL image
    reason : what is wrong with it
    passing : the operating system refused to read it, so another try may succeed
    """

    def __init__(self, path: Path | Image.Image, reason: str, passing: bool = False) -> None:
        super().__init__(f"image {path} cannot be read, replace it: {reason}")
        self.reason = printable(reason)
        self.passing = passing


def decode_image(path: Path, size: int) -> np.ndarray:
    """Return one image file as uint8 of shape (size, size, 3), RGB, upright, resized to a square.

    A JPEG is decoded at the smallest of its built-in scales that is at least twice the size wanted, then resized
    with an antialiasing filter; benchmarks/decode.py measures the time and the difference.

    The content decides the format: JPEG, PNG, WebP or BMP. Of several pictures in a file the first is used. 16-bit grey
    keeps its upper 8 bits; transparency and colour profiles are not applied; damaged metadata are ignored. A file that
    ends too early is an error; changed bytes are detected in a PNG, not in a JPEG.

    Raises
    ------
    UnreadableImage : no such file, none of these formats, damaged, or more than 100 million pixels
    """
    with hidden_warnings():
        return decode_with_size(path, size)[0]


def decode_with_size(path: Path | Image.Image, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return `decode_image` of a file, and its stored width and height in pixels.

    Threads enter `hidden_warnings` around their pool, since it is not safe within a thread.
    Of a PIL image no smaller scale is decoded, so that its pixels may differ a little from those of its file.
    """
    try:
        if isinstance(path, Image.Image):
            _refuse_size(path)
            return _square(path.copy(), size), path.size
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
            raise UnreadableImage(path, "it is not a file", passing=True)
        with Image.open(path, formats=FORMATS) as image:
            stored = image.size
            _refuse_size(image)
            image.draft("RGB", (2 * size, 2 * size))
            return _square(image, size), stored
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, beyond 179 million
        reason = f"{type(error).__name__}: it is too large, at most {MAX_PIXELS:,} pixels are decoded: {error}"
        raise UnreadableImage(path, reason) from error
    except UnidentifiedImageError as error:
        reason = f"{type(error).__name__}: it is not an image in one of the formats {', '.join(FORMATS)}"
        raise UnreadableImage(path, reason) from error
    except Exception as error:  # a broken file can raise nearly anything inside the decoder
        refused = getattr(error, "errno", None) is not None
        text = getattr(error, "strerror", None) or error
        reason = f"{type(error).__name__}: {brief(str(text), 200)}"
        raise UnreadableImage(path, reason, refused or isinstance(error, MemoryError)) from error


def _refuse_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{width} × {height} pixels")
    if not width * height:
        raise ValueError("it has no pixels")


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Return an open image as `decode_image` does."""
    image.load()
    if image.mode == "P" and not image.getpalette():
        raise ValueError("its palette is missing")  # all would be black
    with contextlib.suppress(Exception):  # damaged metadata can raise nearly anything
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it to white
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
