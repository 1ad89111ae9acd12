"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from errors import InputError
from files import cannot_write, make_folder


@contextlib.contextmanager
def locked(file: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, whose folder is made; the system lets go of it even when the process is killed.

    Parameters
    ----------
    refusal : what to tell the user if another process holds it

    Raises
    ------
    InputError : another process holds it, or it cannot be written
    """
    make_folder(file.parent)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(refusal) from None
    except OSError as error:
        raise cannot_write(file.parent, error) from error
    try:
        yield
    finally:
        lock.release()
