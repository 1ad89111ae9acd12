"""Files of tensors, numbers and texts: written whole or not at all, and read without running what they hold."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from melanoma.common.errors import InputError
from melanoma.common.files import is_file, replace_file


def save_tensors(path: Path, form: int | str, contents: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts, atomically; `form` names their layout and its version."""
    buffer = io.BytesIO()  # torch writes a zip archive, and turns a full disk into an error of its own
    torch.save({"format": form, **contents}, buffer)
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def load_tensors(path: Path, form: int | str, what: str, missing: str, otherwise: str) -> dict[str, Any]:
    """Read such a file onto the CPU; nothing in it can run code, and a byte that has changed is noticed.

    Parameters
    ----------
    what : the kind of file, in errors
    missing, otherwise : advice where it is not there, or is of no use

    Raises
    ------
    InputError : not there, unreadable, or of another format
    """
    if not is_file(path):
        raise InputError(f"there is no {what} {path}: {missing}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
            if archive.testzip():
                raise zipfile.BadZipFile
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(f"{what} {path} is damaged or was not written by train.py: {otherwise}") from error
    if not isinstance(contents, dict) or contents.get("format") != form:
        raise InputError(f"{path} is not a {what} of this version (format {form}): {otherwise}")
    return contents


@contextlib.contextmanager
def fitting(what: str, path: Path, otherwise: str) -> Iterator[None]:
    """Turn any error in the block into an InputError that says that the file does not fit."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{what} {path} does not fit its own settings: {otherwise}") from error
