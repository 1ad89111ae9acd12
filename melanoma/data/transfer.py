"""One file over HTTP, over as many broken connections as it takes.

A file on its way to NAME is two files, and NAME once it is whole:

    NAME.part       the bytes that have come
    NAME.part.json  which version of the remote file they are of: size, ETag, Last-Modified
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import requests
from tqdm import tqdm

from config import DOWNLOAD_PAGE, RemoteFile
from melanoma.common.errors import InputError
from melanoma.common.files import cannot_write, write_json

CHUNK = 2**16  # bytes; what a break loses of what had come is less
TIMEOUT = (20, 60)  # seconds: to connect, and without a byte
TRIES = 8  # in a row that gain nothing: about two minutes
FIRST_TRIES = 3  # before the first byte of a run: the user is still there to read what is wrong
FIRST_WAIT = 1.0  # seconds between two tries, doubled each time
LONGEST_WAIT = 60.0
PASSING = (408, 429)  # and 5xx: answers that another try may better
PLAIN = {"Accept-Encoding": "identity"}  # else a range would be of compressed bytes
AGAIN = "run the same command again to go on"


class Broken(Exception):
    """A transfer ended early, in a way that another try may mend."""


def fetch(remote: RemoteFile, path: Path) -> None:
    """Fetch a file unless it is there, going on with what has come of it before.

    Raises
    ------
    InputError : the server refuses, or nothing more comes in several tries, or there is no room: what has come is
        kept; or the file is not the published one by its size or checksum
    """
    if path.exists():
        _verify(remote, path, "delete or move it")
        return
    part = _part(path)
    start = monotonic()
    gained, furthest, failures = False, _size(part), 0
    with requests.Session() as session:
        while True:
            try:
                _receive(session, remote, part)
                break
            except Broken as broken:
                if _size(part) > furthest:
                    gained, furthest, failures = True, _size(part), 0
                failures += 1
                if failures >= (TRIES if gained else FIRST_TRIES):
                    raise InputError(_given_up(remote, part, str(broken))) from broken
                wait = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
                print(f"{path.name}: {broken}; next try in {wait:.0f} s", file=sys.stderr)
                sleep(wait)
    try:
        _verify(remote, part, f"it is deleted, {AGAIN}")
    except InputError:
        _forget(part)
        raise
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    _forget(part)
    seconds = max(monotonic() - start, 1e-3)
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB in {seconds:,.0f} s")


def remote_size(remote: RemoteFile) -> int | None:
    """Return the size of a remote file in bytes; None where the server does not say or does not answer now."""
    if remote.size is not None:
        return remote.size
    try:
        answer = requests.head(remote.address, headers=PLAIN, timeout=TIMEOUT, allow_redirects=True)
    except requests.RequestException:
        return None  # the transfer will tell
    return _length(answer) if answer.status_code == 200 else None


def arrived(path: Path) -> int:
    """Return how many bytes of a file are here, whole or on their way."""
    return path.stat().st_size if path.exists() else _size(_part(path))


def _receive(session: requests.Session, remote: RemoteFile, part: Path) -> None:
    """Go on with a part, from a single answer of the server, to its end.

    Raises
    ------
    Broken : it ended early; the part holds what came
    InputError : another try would end no better
    """
    version = _version(part)
    here = _size(part)
    if here and here == version.get("size"):
        return  # killed between the last byte and the file's own name
    headers = dict(PLAIN)
    tag = _strong(version)
    if here and tag:  # without a tag nobody knows whether both halves are of one file
        headers |= {"Range": f"bytes={here}-", "If-Range": tag}
    try:
        with session.get(remote.address, headers=headers, stream=True, timeout=TIMEOUT) as answer:
            if answer.status_code == 206 and "Range" in headers:
                size = _check_range(answer, version, part)
            elif answer.status_code == 200:
                _check_answer(answer, remote)
                if here:
                    print(
                        f"{part.stem}: from the start, the server has a new file or no ranges",
                        file=sys.stderr,
                    )
                size = _begin(part, answer)
            else:
                raise _refusal(answer, remote, part, asked_range="Range" in headers)
            _append(answer, part, size)
    except requests.RequestException as error:
        cause = _cause(error)
        passing = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
        if not isinstance(error, passing) or isinstance(cause, ssl.SSLCertVerificationError):
            raise InputError(_given_up(remote, part, _text(cause))) from error
        raise Broken(_text(cause)) from error
    if size is not None and _size(part) != size:
        raise Broken(f"{size:,} bytes were announced, another number came")


def _append(answer: requests.Response, part: Path, size: int | None) -> None:
    """Write the body of an answer to the end of a part, which is to have this size."""
    progress = tqdm(
        desc=part.stem,
        total=size,
        initial=_size(part),
        unit="B",
        unit_scale=True,
        leave=False,
        disable=None,
    )
    try:
        with progress, part.open("ab") as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                progress.update(len(chunk))
    except requests.RequestException:  # an OSError too
        raise
    except OSError as error:
        raise cannot_write(part, error) from error


def _begin(part: Path, answer: requests.Response) -> int | None:
    """Empty a part, note the version of the remote file that it will be of, and return its size if that is told.

    In this order: at no moment do the bytes of one version lie beside the name of another.
    """
    size = _length(answer)
    try:
        part.write_bytes(b"")
    except OSError as error:
        raise cannot_write(part, error) from error
    write_json(_note(part), {"size": size} | _tags(answer))
    return size


def _check_range(answer: requests.Response, version: Mapping[str, Any], part: Path) -> int | None:
    """Return the size of the whole file; refuse a range that is not the rest of the part's own file."""
    told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "").strip())
    if told is None or int(told[1]) != _size(part):
        raise Broken("another range came than was asked for")
    tags = _tags(answer)
    same = all(value == version.get(name) for name, value in tags.items() if value is not None)
    size = version.get("size") if told[2] == "*" else int(told[2])
    if not same or version.get("size") not in (None, size):
        _forget(part)
        raise Broken("the remote file has changed, from the start")
    return size


def _check_answer(answer: requests.Response, remote: RemoteFile) -> None:
    """Refuse what cannot be the file, before a byte of it is kept."""
    kind = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise InputError(
            f"{remote.address} answers with a web page in place of the file: open it in a browser; DOWNLOADS in "
            f"config.py has the address of {DOWNLOAD_PAGE}"
        )
    if answer.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise InputError(f"{remote.address} comes compressed, which was not asked for: is a proxy between?")
    size = _length(answer)
    if remote.size is not None and size is not None and size != remote.size:
        raise Broken(f"the server offers {size:,} bytes, {remote.size:,} are published")


def _refusal(answer: requests.Response, remote: RemoteFile, part: Path, asked_range: bool) -> Exception:
    """Return what an answer without the file means: Broken or InputError."""
    status = f"the server answers {answer.status_code} {answer.reason}"
    if answer.status_code == 416 and asked_range:  # the file is shorter than the part: another one
        _forget(part)
        return Broken("the remote file has changed, from the start")
    if answer.status_code in PASSING or answer.status_code >= 500:
        return Broken(status)
    return InputError(
        f"{remote.address} cannot be fetched: {status}; look at {DOWNLOAD_PAGE} for a new address and put it into "
        "DOWNLOADS in config.py"
    )


def _given_up(remote: RemoteFile, part: Path, reason: str) -> str:
    kept = f"{part} keeps the {_size(part) / 1e6:,.1f} MB that came; " if _size(part) else ""
    return f"{remote.address} cannot be fetched: {reason}; {kept}{AGAIN}"


def _verify(remote: RemoteFile, path: Path, advice: str) -> None:
    """Raise InputError if a file is not the published one by size or checksum, where they are known."""
    size = path.stat().st_size
    if remote.size is not None and size != remote.size:
        raise InputError(f"{path} has {size:,} bytes, {remote.size:,} are published: {advice}")
    if remote.sha256 is not None:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        if digest.hexdigest() != remote.sha256:
            raise InputError(f"{path} has another SHA-256 than the published file: {advice}")


# --- the part on the disk ---


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _forget(part: Path) -> None:
    """Delete a part, then what it was of."""
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _version(part: Path) -> dict[str, Any]:
    """Return which version of the remote file a part is of; nothing if that is not known."""
    try:
        version = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return version if isinstance(version, dict) else {}


# --- what a server says ---


def _tags(answer: requests.Response) -> dict[str, str | None]:
    return {"etag": answer.headers.get("ETag"), "last_modified": answer.headers.get("Last-Modified")}


def _strong(version: Mapping[str, Any]) -> str | None:
    """Return the tag to ask for the rest of one version by: a weak ETag is no promise of equal bytes."""
    etag = version.get("etag")
    return etag if etag and not etag.startswith("W/") else version.get("last_modified")


def _length(answer: requests.Response) -> int | None:
    length = answer.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _cause(error: BaseException) -> BaseException:
    """Return the deepest error of a chain that the system gave: what the user can do something about."""
    found, link = error, error
    while link.__cause__ or link.__context__:
        link = link.__cause__ or link.__context__  # type: ignore[assignment]
        if isinstance(link, OSError) and link.strerror:
            found = link
    return found


def _text(error: BaseException) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "nothing came for too long"
    if isinstance(error, socket.gaierror):
        return f"{error.strerror}: is there a network?"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.partition(" (_ssl")[0]
    if isinstance(error, (requests.ConnectionError, requests.exceptions.ChunkedEncodingError)):
        return "the connection broke"
    return str(error)
