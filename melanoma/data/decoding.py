"""Image files are found in folders and decoded, whatever strangers have put into them."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from melanoma.common.errors import InputError, brief, printable
from melanoma.common.files import is_folder

EXTENSIONS = (".jpg", ".jpeg", ".png")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whatever the extension says; no other decoder sees a file
MAX_PIXELS = 100_000_000  # four times ISIC's largest image; 400 MB once decoded
# How a picture that was stored in each way (EXIF 2.3, tag 0x0112) is put upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def find_images(folder: Path, argument: str = "train_image", follow_links: bool = False) -> dict[str, Path]:
    """Return the image files of a folder by name without extension, sorted; any case of .jpg .jpeg .png.

    follow_links : take links to files outside of the folder too; the folder itself may be a link in any case

    Raises
    ------
    InputError : the folder is not there, two files differ only in their extension, or a link leads out of the folder
    """
    if not is_folder(folder):
        flag = argument.replace("_", "-")
        raise InputError(f"{argument} {folder} is not a folder: edit config.py or pass --{flag}")
    found: dict[str, Path] = {}
    for path in _image_files(folder, follow_links):
        if path.stem in found:
            raise InputError(f"{path} and {found[path.stem].name} have one name: remove one of them")
        found[path.stem] = path
    return found


def find_photos(places: Iterable[Path], follow_links: bool = False) -> list[Path]:
    """Return files as they are named, whatever they are, and the image files of folders, sorted; each path once.

    follow_links : as `find_images`; a link that is named itself is followed in any case

    Raises
    ------
    InputError : there is none, or a link leads out of its folder
    """
    found: dict[Path, None] = {}
    for place in places:
        found |= dict.fromkeys(_image_files(place, follow_links) if is_folder(place) else [place])
    if not found:
        raise InputError(
            f"no image in {', '.join(map(str, places))}: name image files, or folders with {' '.join(EXTENSIONS)} files"
        )
    return list(found)


def _image_files(folder: Path, follow_links: bool) -> list[Path]:
    """Return what has the name of an image in a folder, sorted."""
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be read: {error.strerror}: choose another") from error
    root = os.path.realpath(folder)
    for path in paths if not follow_links else []:
        # A link to nothing or to itself stays in the folder: it is an image that cannot be read.
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise InputError(
                f"{path} is a link out of its folder, to {brief(os.path.realpath(path), 200)}: put the file itself "
                "there, or pass --follow-links"
            )
    return paths


class UnreadableImage(InputError):
    """An image file cannot be decoded.

    Parameters
    ----------
    path : of the file
    reason : what is wrong with it
    passing : whether it is the system that refused, so that another try may end otherwise
    """

    def __init__(self, path: Path, reason: str, passing: bool = False) -> None:
        super().__init__(f"image {path} cannot be read, replace it: {reason}")
        self.reason = printable(reason)
        self.passing = passing


def decode_image(path: Path, size: int) -> np.ndarray:
    """Return one image file as uint8 of shape (size, size, 3), RGB, upright, squashed to a square.

    A JPEG is decoded at the smallest of its built-in scales that is at least twice the size wanted, then resized
    with an antialiasing filter; benchmarks/decode.py measures what that saves and changes.

    The format is told by the content: JPEG, PNG, WebP or BMP. Of several pictures in one file the first counts. Grey of
    16 bits keeps its upper 8, transparency and colour profiles are not applied, and metadata that are damaged do no
    harm. A file that ends too early is an error; pixels that were changed within it are noticed where the format can
    tell (PNG, not JPEG).

    Raises
    ------
    UnreadableImage : an InputError: no such file, none of these formats, damaged, or of more than 100 million pixels
    """
    return decode_with_size(path, size)[0]


def decode_with_size(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return `decode_image` of a file, and the width and height in pixels at which it is stored."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe would be to wait for it
            raise UnreadableImage(path, "it is not a file", passing=True)
        with _SILENCE, Image.open(path, formats=FORMATS) as image:
            stored = image.size
            if stored[0] * stored[1] > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{stored[0]} × {stored[1]} pixels")
            image.draft("RGB", (2 * size, 2 * size))
            return _square(image, size), stored
    except UnreadableImage:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own, beyond 179 million
        reason = (
            f"{type(error).__name__}: it is too large, at most {MAX_PIXELS:,} pixels are decoded: {error}"
        )
        raise UnreadableImage(path, reason) from error
    except UnidentifiedImageError as error:
        reason = f"{type(error).__name__}: it is no image, or not in {', '.join(FORMATS)}"
        raise UnreadableImage(path, reason) from error
    except Exception as error:  # a broken file can raise nearly anything inside the decoder
        refused = isinstance(error, OSError) and error.errno is not None
        text = str(error.strerror if refused and isinstance(error, OSError) else error)
        reason = f"{type(error).__name__}: {brief(text, 200)}"
        raise UnreadableImage(path, reason, refused or isinstance(error, MemoryError)) from error


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Return an open image as `decode_image` does."""
    image.load()
    if image.mode == "P" and not image.getpalette():
        raise ValueError("its palette is missing")  # all would be black
    turn = UPRIGHT.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion would clip it to white
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    elif "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return np.asarray(upright.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))


def _orientation(image: Image.Image) -> int:
    """Return how the picture was stored, 1 to 8; 1, upright, where its EXIF block does not say."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata can raise nearly anything
        return 1
    return value if isinstance(value, int) and value in UPRIGHT else 1


class _Silence:
    """Keeps Pillow's warnings, which are about metadata and sizes, from being shown while any thread decodes.

    `warnings.catch_warnings` changes the whole process, so the first thread in enters it and the last one out leaves.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.within = 0
        self.caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self.lock:
            if not self.within:
                self.caught = warnings.catch_warnings()
                self.caught.__enter__()
                warnings.simplefilter("ignore")
            self.within += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.within -= 1
            if not self.within:
                self.caught.__exit__(None, None, None)


_SILENCE = _Silence()
