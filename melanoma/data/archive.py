"""Images out of a zip that nobody has to trust: every name is checked before the first byte is written.

What the archive says of its images is kept beside them in manifest.csv (file, bytes, crc32). By it unpacking goes on
after a stop, a second download knows that nothing is missing, and `python dataset.py --check` finds damage.
"""

from __future__ import annotations

import csv
import io
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from melanoma.common.errors import InputError, listed
from melanoma.common.files import make_folder, need_room, remove_halves, replace_file, write_text
from melanoma.data.decoding import EXTENSIONS

RECORD = "manifest.csv"
HEADER = ["file", "bytes", "crc32"]
COPY_BYTES = 2**20
ANOTHER = "choose another folder"  # what else to do when there is no room
# What zipfile raises on an archive that is cut, damaged or made to mislead.
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    OverflowError,
    ValueError,
)


@dataclass(frozen=True)
class Recorded:
    """What an archive says of an image file: its bytes and their CRC-32."""

    bytes: int
    crc32: int


def unpack(archive: Path, folder: Path, entries: int | None = None) -> int:
    """Unpack the images of a zip into one folder, each whole or not at all, and record them in manifest.csv.

    An image that is there with the size that the archive states is left alone, so that a stopped run goes on.
    Files that are no images stay in the archive.

    Parameters
    ----------
    entries : how many images the archive has to hold (None: any number)

    Returns
    -------
    how many images were written

    Raises
    ------
    InputError : the archive is damaged, or has a name that leads out of the folder, a link, an encrypted or a
        doubled file, or another number of images: nothing was written; a file of another size is in the way; there
        is no room
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = image_members(zipped, archive)
            if entries is not None and len(members) != entries:
                raise InputError(
                    f"{archive} holds {len(members):,} images, {entries:,} are published: delete it and run the same "
                    "command again, or change DOWNLOADS in config.py"
                )
            record = {name: Recorded(info.file_size, info.CRC) for name, info in members.items()}
            make_folder(folder)
            left = left_to_unpack(folder, record)
            need_room(folder, sum(record[name].bytes for name in left), str(folder), ANOTHER)
            write_record(folder, record)
            remove_halves(folder, members)
            for name in tqdm(left, desc=f"unpacking {archive.name}", unit="image", disable=None):
                _write_member(zipped, members[name], folder / name)
    except InputError:  # a ValueError too
        raise
    except DAMAGED as error:
        raise InputError(
            f"{archive} is a damaged zip ({error}): delete it and run the same command again"
        ) from error
    return len(left)


def image_members(zipped: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Return the images of a zip by file name, without the folders that they have in it.

    Raises
    ------
    InputError : anything in it that could write elsewhere or more than it says, image or not
    """
    members: dict[str, zipfile.ZipInfo] = {}
    stems = set()
    for info in zipped.infolist():
        problem = _problem(info)
        if problem:
            raise InputError(f"{archive} is not unpacked: {info.orig_filename!r} in it {problem}")
        name = info.filename.rpartition("/")[2]
        if name.startswith(".") or Path(name).suffix.lower() not in EXTENSIONS:
            continue
        stem = Path(name).stem.lower()  # some file systems do not tell A from a
        if stem in stems:
            raise InputError(f"{archive} is not unpacked: it has two images of the name {name!r}")
        stems.add(stem)
        members[name] = info
    return members


def _problem(info: zipfile.ZipInfo) -> str | None:
    """Return what forbids to unpack a member, if anything does."""
    name = info.orig_filename  # as it is stored: zipfile has mended .filename
    parts = name.removesuffix("/").split("/")
    if name.startswith("/"):
        return "is an absolute path"
    if ".." in parts:
        return "leads out of the folder"
    if any(part in ("", ".") for part in parts) or re.search(r"[\\:]", name) or not name.isprintable():
        return "is no plain path"
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device"
    if info.flag_bits & 0x1:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"is compressed in a way that is not read here ({info.compress_type})"
    return None


def _write_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    """Write one image; zipfile checks its CRC-32 and reads no more than the size that the archive states."""

    try:
        source = zipped.open(info)
    except OSError as error:  # a place that the archive does not have
        raise zipfile.BadZipFile(f"{info.filename}: {error.strerror}") from error

    def write(temporary: Path) -> None:
        with temporary.open("wb") as target:
            shutil.copyfileobj(source, target, COPY_BYTES)
        written = temporary.stat().st_size
        if written != info.file_size:
            raise zipfile.BadZipFile(
                f"{info.filename} has {written} bytes, the archive states {info.file_size}"
            )

    with source:
        replace_file(path, write)


def left_to_unpack(folder: Path, record: Mapping[str, Recorded]) -> list[str]:
    """Return the recorded files that a folder lacks.

    Raises
    ------
    InputError : it has some of another size, which are the user's to remove
    """
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    other = sorted(name for name, of in record.items() if name in sizes and sizes[name] != of.bytes)
    if other:
        raise InputError(
            f"{folder} has {len(other):,} images of another size than the published ones ({listed(other)}): delete "
            "or move them, or choose another folder, and run the same command again"
        )
    return [name for name in record if name not in sizes]


def write_record(folder: Path, record: Mapping[str, Recorded]) -> None:
    """Write manifest.csv into a folder of images, atomically."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADER)
    table.writerows((name, of.bytes, f"{of.crc32:08x}") for name, of in sorted(record.items()))
    write_text(folder / RECORD, text.getvalue())


def read_record(folder: Path) -> dict[str, Recorded]:
    """Return what manifest.csv says of the images of a folder by file name; nothing if it is not there.

    Raises
    ------
    InputError : it is no such file
    """
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        if header != HEADER:
            raise ValueError(f"its first line is {','.join(header)}")
        return {name: Recorded(int(size), int(crc32, 16)) for name, size, crc32 in rows}
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path} is no record of image sizes ({error}): delete it") from None
