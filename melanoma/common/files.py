"""Files that are read with an error that says what is wrong, and written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from melanoma.common.errors import InputError


def is_file(path: Path) -> bool:
    """Whether it is a file; False, too, where the system does not let us see."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises then)


def is_folder(path: Path) -> bool:
    """Whether it is a folder; False, too, where the system does not let us see."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises then)


def read_bytes(path: Path, what: str, advice: str) -> bytes:
    """Return a file's content.

    Parameters
    ----------
    what, advice : begin and end of error messages: which file it is, and what to do

    Raises
    ------
    InputError : it does not exist, is not a file (a pipe would be waited for), or cannot be read
    """
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{what} is not a file: {advice}")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{what} does not exist: {advice}") from None
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error.strerror}: {advice}") from None


def read_text(path: Path, what: str, advice: str) -> str:
    """Return a text file's content, UTF-8 with or without a byte order mark; arguments and errors as `read_bytes`."""
    try:
        return read_bytes(path, what, advice).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} is not UTF-8 text: byte {error.start:,} is invalid: {advice}") from None


def read_json(path: Path, what: str, advice: str) -> Any:
    """Return the value in a JSON file; arguments and errors as `read_text`, and no JSON is an error too."""
    text = read_text(path, what, advice)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{what} is not valid JSON: {error}: {advice}") from None


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and move it into place: it is old or new, never half. Makes its folder.

    write : writes the file at the path that it is given

    Raises
    ------
    InputError : there is no room, or no permission; the file that was there is as it was
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("r+b") as file:  # to write: Windows syncs no file that is open for reading
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_halves(folder: Path, names: Container[str] | None = None) -> None:
    """Remove what a killed process had begun to write into a folder (`replace_file`'s temporary files).

    names : of the files that it was to become (None: any); nobody else may be writing them
    """
    for path in folder.glob(".*.tmp"):
        half = re.fullmatch(r"\.(.+)\.\d+\.tmp", path.name)
        if half and (names is None or half[1] in names):
            remove_file(path)


def remove_file(path: Path) -> None:
    """Remove a file if it is there; an InputError says why it cannot be removed."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:  # on Windows a program may have it open
        raise InputError(f"{path} cannot be removed: {error.strerror or error}: {_advice(error)}") from error


def need_room(folder: Path, need: int, what: str, advice: str) -> None:
    """Raise InputError unless so many bytes are free on the disk of a folder.

    what, advice : begin and end of the message: what is full, and what to do but to free some space
    """
    free = shutil.disk_usage(folder).free
    if need > free:
        raise InputError(
            f"{what} has {free / 1e9:.2f} GB free, {need / 1e9:.2f} GB are needed: free some space or {advice}"
        )


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there; an InputError says why it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made: {error.strerror or error}: choose another") from error


def cannot_write(path: Path, error: OSError | NotImplementedError) -> InputError:
    """Return what to tell the user when the system refuses to write a file, or the file system has no locks."""
    if isinstance(error, NotImplementedError):  # of filelock before 3.24; later ones warn and make do
        return InputError(f"{path} cannot be locked: its file system has no flock: choose another, or upgrade filelock")
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; what was there is unchanged: {_advice(error)}"
    )


def _advice(error: OSError) -> str:
    """Return what to do if a file cannot be written or removed."""
    first = "close the program that has it open" if isinstance(error, PermissionError) else "free some space"
    return f"{first} or choose another folder"


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically; characters that cannot be encoded, as of a file name, are escaped."""
    data = text.encode("utf-8", "backslashreplace")
    replace_file(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, atomically; NaN and infinity are errors, as they are no JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextlib.contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which is removed at the end; the system releases it when the process is killed.

    Makes the folder, and removes it at the end if it is new and still empty.

    Raises
    ------
    InputError : another process holds it, which is told by `refusal`, or it cannot be written
    """
    new = not is_folder(file.parent)
    make_folder(file.parent)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(refusal) from None
    except (OSError, NotImplementedError) as error:
        raise cannot_write(file.parent, error) from error
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # Windows keeps what is open, and its lock removes the file itself
            file.unlink(missing_ok=True)
        lock.release()
        if new:
            with contextlib.suppress(OSError):
                file.parent.rmdir()
