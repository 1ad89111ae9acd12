"""ISIC 2020 from the challenge's public addresses, fetched and unpacked.

`python dataset.py --download data` leaves data/train/*.jpg, the ground truth and the list of duplicates there, and
with `--with-test` data/test/*.jpg and its metadata. The addresses are DOWNLOADS in config.py.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable
from pathlib import Path

from config import DOWNLOADS, Config, RemoteFile
from melanoma.common.errors import InputError
from melanoma.common.files import locked, need_room
from melanoma.data.archive import ANOTHER, left_to_unpack, read_record, unpack
from melanoma.data.decoding import EXTENSIONS
from melanoma.data.transfer import AGAIN, arrived, fetch, remote_size


def download_isic(folder: Path, with_test: bool = False) -> None:
    """Fetch and unpack ISIC 2020 into a folder, as config.py expects it, leaving alone what is there.

    Raises
    ------
    InputError : no room, no network, a refusal by the server, a damaged or unsafe archive, or another download into
        the folder; what has come is kept for the next run
    """
    chosen = {name: file for name, file in DOWNLOADS.items() if with_test or not name.startswith("test")}
    targets = {name: folder / _local_name(name, file) for name, file in chosen.items()}
    refusal = f"another download into {folder} is under way: wait for it, or end it"
    with locked(folder / ".download.lock", refusal):
        due = [name for name in chosen if _is_due(name, chosen[name], targets[name])]
        _tell_room(folder, [(chosen[name], targets[name]) for name in due])
        for name, target in targets.items():
            if not name.endswith("_image"):
                fetch(chosen[name], target)
                _check_rows(chosen[name], target)
        for name in due:
            archive = folder / _file_name(chosen[name])
            fetch(chosen[name], archive)
            written = unpack(archive, targets[name], chosen[name].entries)
            archive.unlink()  # every image is there
            print(f"{targets[name]}: {written:,} images unpacked, {archive.name} deleted")
    flags = " ".join(f"--{name.replace('_', '-')} {target}" for name, target in targets.items())
    print(f"everything is there: set these paths in config.py, or pass {flags}")


def _is_due(name: str, remote: RemoteFile, target: Path) -> bool:
    """Return whether a download is an archive that is still to be fetched or unpacked, and say so if it is not.

    Without a record of its images, as many as are published are taken for them, wherever they came from.

    Raises
    ------
    InputError : an image is there with another size than recorded
    """
    if not name.endswith("_image"):
        return False
    if not target.is_dir() or target.with_name(_file_name(remote)).exists():
        return True
    record = read_record(target)
    images = len(_images(target))
    enough = not left_to_unpack(target, record) if record else images >= (remote.entries or math.inf)
    if enough:
        print(f"{target}: {images:,} images are there and left alone")
    return not enough


def _local_name(name: str, remote: RemoteFile) -> str:
    """Return where config.py's default for a field expects a download, below the data folder."""
    return getattr(Config(), name).name if name.endswith("_image") else _file_name(remote)


def _file_name(remote: RemoteFile) -> str:
    return remote.address.rpartition("/")[2]


def _images(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix.lower() in EXTENSIONS]


def _check_rows(remote: RemoteFile, path: Path) -> None:
    """Raise InputError unless a CSV has as many rows as the challenge's page states."""
    with path.open("rb") as file:
        rows = sum(bool(line.strip()) for line in file) - 1
    if remote.entries is not None and rows != remote.entries:
        raise InputError(
            f"{path} has {rows:,} rows, {remote.entries:,} are published: delete or move it and {AGAIN}"
        )


def _tell_room(folder: Path, archives: Iterable[tuple[RemoteFile, Path]]) -> None:
    """Say how much room unpacking takes at its peak and how much is free; InputError if that is too little."""
    steps = []
    for remote, target in archives:
        archive = folder / _file_name(remote)
        here = arrived(archive)
        size = here if archive.exists() else remote_size(remote)
        if size is None:
            print(f"the server does not say how large {archive.name} is: the room for it is not checked")
            continue
        unpacked = sum(path.stat().st_size for path in _images(target)) if target.is_dir() else 0
        # JPEGs hardly shrink in a zip: the images take the room of their archive once more
        steps.append((here, size, max(0, size - unpacked)))
    if steps:
        need = room_needed(steps)
        need_room(folder, need, str(folder), ANOTHER)
        free = shutil.disk_usage(folder).free
        print(
            f"{need / 1e9:.2f} GB are needed in {folder} (archive and images), {free / 1e9:.2f} GB are free"
        )


def room_needed(steps: Iterable[tuple[int, int, int]]) -> int:
    """Return the most that is needed at once, in bytes, when each archive is deleted before the next is fetched.

    Parameters
    ----------
    steps : of each archive the bytes that are here, all its bytes, and those of its images still to be written
    """
    peak = after = 0
    for here, size, images in steps:
        peak = max(peak, after + size - here + images)
        after += images - here
    return peak
