"""Download ISIC 2020 from the challenge's public addresses and unpack it.

`python dataset.py --download data` leaves data/train/*.jpg, the ground truth and the list of duplicates there, and
with `--with-test` data/test/*.jpg and its metadata.

A file that is being downloaded is NAME.part, with the version of the remote file in NAME.part.json (ETag or
Last-Modified, and size). By these a stopped download is resumed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from typing import Any

import requests
from tqdm import tqdm

from melanoma.common.errors import InputError, listed
from melanoma.common.files import cannot_write, locked, need_room, remove_halves, replace_file, write_json
from melanoma.data.decoding import EXTENSIONS


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web; `entries` are the images in a zip, or the rows below the header of a CSV."""

    address: str
    entries: int

    @property
    def file_name(self) -> str:
        return self.address.rpartition("/")[2]


# By the setting that each file is for: addresses and counts as on the challenge's page.
DOWNLOAD_PAGE = "https://challenge2020.isic-archive.com/"
_ISIC_2020 = "https://isic-challenge-data.s3.amazonaws.com/2020/ISIC_2020_"
DOWNLOADS: dict[str, RemoteFile] = {
    "train_labels": RemoteFile(_ISIC_2020 + "Training_GroundTruth.csv", entries=33_126),
    "duplicates": RemoteFile(_ISIC_2020 + "Training_Duplicates.csv", entries=425),
    "train_image": RemoteFile(_ISIC_2020 + "Training_JPEG.zip", entries=33_126),
    "test_labels": RemoteFile(_ISIC_2020 + "Test_Metadata.csv", entries=10_982),
    "test_image": RemoteFile(_ISIC_2020 + "Test_JPEG.zip", entries=10_982),
}
IMAGE_FOLDERS = {"train_image": "train", "test_image": "test"}

CHUNK = 2**16  # bytes
TIMEOUT = (20, 60)  # seconds: to connect, and between two bytes
TRIES = 8  # in a row without a new byte: about two minutes
FIRST_TRIES = 3  # before the first byte
FIRST_WAIT = 1.0  # seconds between two tries, doubled each time
LONGEST_WAIT = 60.0
TEMPORARY = (408, 416, 429)  # and 5xx: statuses after which another try may succeed
PLAIN = {"Accept-Encoding": "identity"}  # so that a range is of the file's own bytes
AGAIN = "run the same command again to resume"
# What zipfile raises for a damaged archive.
DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


def download_isic(folder: Path, with_test: bool = False) -> None:
    """Download and unpack ISIC 2020 into a folder; what is there already is left alone.

    Raises
    ------
    InputError : no room, no network, a refusal of the server, a damaged archive, other counts than published, or
        another download into the folder; what has been received is kept for the next run
    """
    chosen = {name: remote for name, remote in DOWNLOADS.items() if with_test or not name.startswith("test")}
    targets = {name: folder / IMAGE_FOLDERS.get(name, remote.file_name) for name, remote in chosen.items()}
    with locked(folder / ".download.lock", f"another download into {folder} is running: wait, or stop it"):
        archives = {
            folder / chosen[name].file_name: name
            for name in IMAGE_FOLDERS
            if name in chosen and not _is_complete(targets[name], chosen[name])
        }
        for archive, name in archives.items():
            _check_room(archive, chosen[name], targets[name])
        for name, target in targets.items():
            if name not in IMAGE_FOLDERS:
                fetch(chosen[name], target)
                _check_rows(chosen[name], target)
        for archive, name in archives.items():
            fetch(chosen[name], archive)
            written = unpack(archive, targets[name], chosen[name].entries)
            archive.unlink()
            print(f"{targets[name]}: {written:,} images unpacked, {archive.name} deleted")
    flags = " ".join(f"--{name.replace('_', '-')} {target}" for name, target in targets.items())
    print(f"all files are there: set these paths in config.py, or pass {flags}")


def _is_complete(target: Path, remote: RemoteFile) -> bool:
    """Return whether the images of an archive are there already, and say so."""
    if not target.is_dir() or target.with_name(remote.file_name).exists():
        return False
    count = len(_images(target))
    if count >= remote.entries:
        print(f"{target}: {count:,} images are there already")
    return count >= remote.entries


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]


def _check_rows(remote: RemoteFile, path: Path) -> None:
    with path.open("rb") as file:
        rows = sum(bool(line.strip()) for line in file) - 1
    if rows != remote.entries:
        raise InputError(f"{path} has {rows:,} rows, {remote.entries:,} are published: delete or move it and {AGAIN}")


def _check_room(archive: Path, remote: RemoteFile, target: Path) -> None:
    """Check that the disk has room for the rest of an archive and for its images, if the server tells its size."""
    here = arrived(archive)
    size = here if archive.exists() else _remote_size(remote)
    if size is not None:
        unpacked = sum(image.stat().st_size for image in _images(target)) if target.is_dir() else 0
        images = max(0, size - unpacked)  # JPEGs hardly shrink in a zip
        need_room(archive.parent, size - here + images, str(archive.parent), "choose another folder")


# --- transfer ---


def fetch(remote: RemoteFile, path: Path) -> None:
    """Download a file unless it is there, from where an earlier try stopped.

    Raises
    ------
    InputError : the server refuses, several tries bring nothing new, or there is no room; what came is kept
    """
    if path.exists():
        return
    part = _part(path)
    tries, failures, most = FIRST_TRIES, 0, _size(part)
    while True:
        try:
            _receive(remote, part)
            break
        except requests.RequestException as error:
            if _size(part) > most:
                tries, failures, most = TRIES, 0, _size(part)
            failures += 1
            if failures >= tries or not _is_temporary(error):
                kept = f"{part} keeps the {_size(part) / 1e6:,.1f} MB that came; " if _size(part) else ""
                raise InputError(
                    f"{remote.address} cannot be fetched: {_reason(error)}; {kept}{AGAIN}; if the address has "
                    f"changed, put that of {DOWNLOAD_PAGE} into DOWNLOADS in melanoma/data/download.py"
                ) from error
            wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            print(f"{path.name}: {_reason(error)}; next try in {wait:.0f} s", file=sys.stderr)
            sleep(wait)
        except OSError as error:
            raise cannot_write(part, error) from error
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _note(part).unlink(missing_ok=True)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB")


def _receive(remote: RemoteFile, part: Path) -> None:
    """Receive a file, or the rest of it, in one answer of the server; RequestException if that ends early."""
    here, note = _size(part), _read_note(part)
    if here and here == note.get("size"):
        return  # killed between the last byte and the final name
    headers = dict(PLAIN)
    if here and note.get("tag"):  # If-Range: the whole file comes if it is another version
        headers |= {"Range": f"bytes={here}-", "If-Range": note["tag"]}
    with requests.get(remote.address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if answer.status_code == 416:  # the file is shorter than the part: another version
            part.unlink(missing_ok=True)
        answer.raise_for_status()
        length = _length(answer)
        if answer.status_code != 206:
            etag = answer.headers.get("ETag", "W/")  # a weak one does not promise equal bytes
            tag = answer.headers.get("Last-Modified") if etag.startswith("W/") else etag
            part.write_bytes(b"")  # first: the bytes of one version never have the note of another
            write_json(_note(part), {"tag": tag, "size": length})
            if here:
                print(f"{part.stem}: the server sends the file from its start", file=sys.stderr)
            here = 0
        size = None if length is None else here + length
        bar = tqdm(desc=part.stem, total=size, initial=here, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, part.open("ab") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    if size is not None and _size(part) != size:
        raise requests.ConnectionError(f"{_size(part):,} of {size:,} bytes came")


def _is_temporary(error: requests.RequestException) -> bool:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in TEMPORARY or error.response.status_code >= 500
    return isinstance(error, (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError))


def _reason(error: BaseException) -> str:
    """Return the system's own words for a failed request, where it has any, else those of requests."""
    text = str(error)
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            text = link.strerror
        link = link.__cause__ or link.__context__
    return text


def _remote_size(remote: RemoteFile) -> int | None:
    """Return the size of a remote file in bytes; None if the server does not say."""
    try:
        answer = requests.head(remote.address, headers=PLAIN, timeout=TIMEOUT, allow_redirects=True)
    except requests.RequestException:
        return None
    return _length(answer) if answer.ok else None


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def arrived(path: Path) -> int:
    """Return how many bytes of a file are here, complete or not."""
    return _size(path) or _size(_part(path))


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_note(part: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(_note(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


# --- archives ---


def unpack(archive: Path, folder: Path, entries: int) -> int:
    """Unpack the images of a zip into one folder, by their base name; each is written whole or not at all.

    Images that are there are left alone, so a stopped run is resumed. Files that are no images are skipped.

    Returns
    -------
    how many images were written

    Raises
    ------
    InputError : the archive is damaged or has another number of images than `entries`; an image of another size is
        there already; or there is no room
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = {Path(info.filename).name: info for info in zipped.infolist() if _is_image(info)}
            if len(members) != entries:
                raise InputError(
                    f"{archive} holds {len(members):,} images, {entries:,} are published: delete it and {AGAIN}"
                )
            sizes = {name: (folder / name).stat().st_size for name in members if (folder / name).is_file()}
            other = [name for name, size in sizes.items() if size != members[name].file_size]
            if other:
                raise InputError(
                    f"{folder} has {len(other):,} images of another size than in {archive} ({listed(other)}): "
                    f"delete or move them, and {AGAIN}"
                )
            left = [name for name in members if name not in sizes]
            total = sum(members[name].file_size for name in left)
            need_room(archive.parent, total, str(folder), "choose another folder")
            remove_halves(folder, members)
            for name in tqdm(left, desc=f"unpacking {archive.name}", unit="image", disable=None):
                _write_member(zipped, members[name], folder / name)
    except InputError:  # a ValueError too
        raise
    except (OverflowError, *DAMAGED) as error:
        raise InputError(f"{archive} is a damaged zip ({error}): delete it and {AGAIN}") from error
    return len(left)


def _is_image(info: zipfile.ZipInfo) -> bool:
    path = Path(info.filename)
    return path.suffix.lower() in EXTENSIONS and not path.name.startswith(".")


def _write_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> None:
    with zipped.open(info) as source:  # checks the CRC-32 at the end

        def write(temporary: Path) -> None:
            with temporary.open("wb") as target:
                shutil.copyfileobj(source, target)

        replace_file(path, write)
