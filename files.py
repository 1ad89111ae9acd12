"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from config import InputError


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name and move it into place: it is old or new, never half. Makes its folder.

    Parameters
    ----------
    write : writes the file at the path that it is given

    Raises
    ------
    InputError : there is no room, or no permission; the file that was there is as it was
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless it is there.

    Raises
    ------
    InputError : it cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"folder {folder} cannot be made: {error.strerror}: choose another") from error


def cannot_write(path: Path, error: OSError) -> InputError:
    """Return what to tell the user when the system refuses to write a file."""
    return InputError(
        f"{path} cannot be written: {error.strerror or error}; what was there is unchanged: free some room or choose "
        "another folder, and run the same command again"
    )


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, atomically; NaN and infinity are errors, as they are no JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
