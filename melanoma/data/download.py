"""Download ISIC 2020 from the challenge's public addresses and unpack it.

`python dataset.py --download data` leaves data/train/*.jpg, the ground truth and the list of duplicates there, and
with `--with-test` data/test/*.jpg and its metadata.

A file that is being downloaded is NAME.part, with the version of the remote file in NAME.part.json (ETag or
Last-Modified, and size). By these a stopped download is resumed.
"""

from __future__ import annotations

import json
import os
import sys
import zipfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import sleep

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
    gigabytes: float = 0.0  # 10⁹ bytes, of a zip

    @property
    def file_name(self) -> str:
        return self.address.rpartition("/")[2]


# By the setting that each file is for: addresses, counts and sizes as on the challenge's page.
DOWNLOAD_PAGE = "https://challenge2020.isic-archive.com/"
_ISIC_2020 = "https://isic-challenge-data.s3.amazonaws.com/2020/ISIC_2020_"
DOWNLOADS: dict[str, RemoteFile] = {
    "train_labels": RemoteFile(_ISIC_2020 + "Training_GroundTruth.csv", entries=33_126),
    "duplicates": RemoteFile(_ISIC_2020 + "Training_Duplicates.csv", entries=425),
    "train_image": RemoteFile(_ISIC_2020 + "Training_JPEG.zip", entries=33_126, gigabytes=23),
    "test_labels": RemoteFile(_ISIC_2020 + "Test_Metadata.csv", entries=10_982),
    "test_image": RemoteFile(_ISIC_2020 + "Test_JPEG.zip", entries=10_982, gigabytes=6.7),
}
IMAGE_FOLDERS = {"train_image": "train", "test_image": "test"}

CHUNK = 2**16  # bytes
TIMEOUT = (20, 60)  # seconds: to connect, and between two bytes
WAITS = (1, 2, 4, 8, 16, 32, 60)  # seconds before each further try in a row without a new byte
FIRST_WAITS = WAITS[:2]  # before the first byte
TEMPORARY = (408, 429)  # and 5xx: statuses after which another try may succeed
AGAIN = "run the same command again to resume"


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
        images = [name for name in IMAGE_FOLDERS if name in chosen and _is_needed(chosen[name], targets[name])]
        for name, target in targets.items():
            if name not in IMAGE_FOLDERS:
                fetch(chosen[name], target)
                _check_rows(chosen[name], target)
        for name in images:
            archive = folder / chosen[name].file_name
            fetch(chosen[name], archive)
            written = unpack(archive, targets[name], chosen[name].entries)
            archive.unlink()
            print(f"{targets[name]}: {written:,} images unpacked, {archive.name} deleted")
    flags = " ".join(f"--{name.replace('_', '-')} {target}" for name, target in targets.items())
    print(f"all files are there: set these paths in config.py, or pass {flags}")


def _is_needed(remote: RemoteFile, target: Path) -> bool:
    """Return whether an archive has images that are not there yet; if so, check that the disk has room for them."""
    archive = target.with_name(remote.file_name)
    images = [path for path in target.glob("*") if path.suffix.lower() in EXTENSIONS]
    if len(images) >= remote.entries and not archive.exists():
        print(f"{target}: {len(images):,} images are there already")
        return False
    size = int(remote.gigabytes * 1e9)  # of the archive and of its images: JPEGs hardly shrink in a zip
    unpacked = sum(image.stat().st_size for image in images)
    need = max(0, size - arrived(archive)) + max(0, size - unpacked)
    need_room(target.parent, need, str(target.parent), "choose another folder")
    return True


def _check_rows(remote: RemoteFile, path: Path) -> None:
    with path.open("rb") as file:
        rows = sum(bool(line.strip()) for line in file) - 1
    if rows != remote.entries:
        raise InputError(f"{path} has {rows:,} rows, {remote.entries:,} are published: delete or move it and {AGAIN}")


# --- transfer ---


def fetch(remote: RemoteFile, path: Path) -> None:
    """Download a file unless it is there, from where an earlier try stopped.

    Raises
    ------
    InputError : the server refuses, several tries bring nothing new, or there is no room; what came is kept
    """
    if path.exists():
        return
    waits, most = iter(FIRST_WAITS), arrived(path)
    while True:
        try:
            _receive(remote, path)
            break
        except requests.RequestException as error:
            if arrived(path) > most:
                waits, most = iter(WAITS), arrived(path)
            status = 500 if error.response is None else error.response.status_code
            wait = next(waits, None) if status >= 500 or status in TEMPORARY else None
            if wait is None:
                raise InputError(
                    f"{remote.address} cannot be fetched: {_reason(error)}; {AGAIN}; if the address has changed, put "
                    f"that of {DOWNLOAD_PAGE} into DOWNLOADS in melanoma/data/download.py"
                ) from error
            print(f"{path.name}: {_reason(error)}; next try in {wait} s", file=sys.stderr)
            sleep(wait)
        except OSError as error:
            raise cannot_write(path, error) from error
    _part(path).replace(path)
    _note(path).unlink(missing_ok=True)
    print(f"{path}: {arrived(path) / 1e6:,.1f} MB")


def _receive(remote: RemoteFile, path: Path) -> None:
    """Receive a file, or the rest of it, in one answer of the server; RequestException if that ends early."""
    here = arrived(path)
    known = json.loads(_note(path).read_text(encoding="utf-8")) if _note(path).exists() else {}
    if here and here == known.get("size"):
        return  # killed between the last byte and the final name
    headers = {"Accept-Encoding": "identity"}  # so that a range is of the file's own bytes
    if here and known.get("tag"):  # If-Range: the whole file comes if it is another version
        headers |= {"Range": f"bytes={here}-", "If-Range": known["tag"]}
    with requests.get(remote.address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        answer.raise_for_status()
        length = int(answer.headers["Content-Length"]) if "Content-Length" in answer.headers else None
        if answer.status_code != 206:  # the whole file
            if here:
                print(f"{path.name}: the server sends the file from its start", file=sys.stderr)
            here = 0
            etag = answer.headers.get("ETag", "W/")  # a weak one does not promise equal bytes
            tag = answer.headers.get("Last-Modified") if etag.startswith("W/") else etag
            _part(path).write_bytes(b"")  # first: the bytes of one version never have the note of another
            write_json(_note(path), {"tag": tag, "size": length})
        size = None if length is None else here + length
        bar = tqdm(desc=path.name, total=size, initial=here, unit="B", unit_scale=True, leave=False, disable=None)
        with bar, _part(path).open("ab") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            os.fsync(file.fileno())
    if size is not None and arrived(path) != size:
        raise requests.ConnectionError(f"{arrived(path):,} of {size:,} bytes came")


def _reason(error: BaseException) -> str:
    """Return the words of the first cause of a failed request, the system's own where it has any."""
    while error.__context__ is not None:
        error = error.__context__
    return getattr(error, "strerror", None) or str(error)


def arrived(path: Path) -> int:
    """Return how many bytes of a file are here, complete or not."""
    return sum(file.stat().st_size for file in (path, _part(path)) if file.exists())


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


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
            members = {}
            for info in zipped.infolist():
                name = Path(info.filename).name
                if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                    members[name] = info
            if len(members) != entries:
                raise InputError(f"{archive} has {len(members):,} images, not {entries:,}: delete it and {AGAIN}")
            sizes = {name: (folder / name).stat().st_size for name in members if (folder / name).is_file()}
            other = [name for name, size in sizes.items() if size != members[name].file_size]
            if other:
                found = f"{len(other):,} images of another size than in {archive} ({listed(other)})"
                raise InputError(f"{folder} has {found}: delete or move them, and {AGAIN}")
            left = [name for name in members if name not in sizes]
            total = sum(members[name].file_size for name in left)
            need_room(archive.parent, total, str(folder), "choose another folder")
            remove_halves(folder, members)
            for name in tqdm(left, desc=f"unpacking {archive.name}", unit="image", disable=None):
                data = zipped.read(members[name])  # checks the CRC-32
                replace_file(folder / name, partial(Path.write_bytes, data=data))
    except InputError:
        raise
    except Exception as error:  # a damaged archive can raise nearly anything
        raise InputError(f"{archive} is a damaged zip ({error}): delete it and {AGAIN}") from error
    return len(left)
