"""Files are old or new, never half."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import names

from melanoma.common.errors import InputError
from melanoma.common.files import locked, make_folder, read_text, remove_file, replace_file, write_json


def test_replace_file_puts_the_new_in_place_of_the_old(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    replace_file(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    seen = []

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        seen.append((temporary.parent, path.read_text()))

    replace_file(path, write)
    assert seen == [(tmp_path, "old")]  # the same folder: a move within one file system


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(InputError, match=r"a\.txt cannot be written: No space left on device; what was there"):
        replace_file(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_what_is_moved_into_place_has_reached_the_disk(tmp_path, monkeypatch):
    calls = []

    def noted(name, function):
        def call(*arguments):
            calls.append(name)
            return function(*arguments)

        return call

    monkeypatch.setattr(os, "fsync", noted("sync", os.fsync))
    monkeypatch.setattr(Path, "replace", noted("move", Path.replace))
    replace_file(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert calls == ["sync", "move"]


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"auc": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"auc": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"auc": 0.5}


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"folder .*file/inside cannot be made: Not a directory: choose another"):
        make_folder(tmp_path / "file" / "inside")


def test_what_is_no_text_file_is_said_once(tmp_path):
    (tmp_path / "odd").write_bytes(b"\xff")
    for name, problem in (
        ("", "is not a file"),
        ("no", "does not exist"),
        ("odd", "is not UTF-8 text: byte 0 is invalid"),
    ):
        with pytest.raises(InputError) as caught:
            read_text(tmp_path / name, "the log", "train anew")
        assert str(caught.value) == f"the log {problem}: train anew"


def test_a_new_file_brings_its_folder(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", [1])
    assert names(tmp_path / "a" / "b") == ["c.json"]


# --- as on Windows ---


def test_what_is_synced_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to sync a file that is open for reading."""
    fcntl = pytest.importorskip("fcntl")
    real = os.fsync

    def fsync(number: int) -> None:
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", [1])
    assert json.loads((tmp_path / "a.json").read_text()) == [1]


@pytest.fixture
def windows(monkeypatch) -> set[Path]:
    """Files that are open, which can neither be removed nor replaced."""
    held: set[Path] = set()

    def refusing(name: str) -> None:
        real = getattr(Path, name)

        def act(self: Path, *arguments, **named):
            if {self, *arguments} & held:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(self, *arguments, **named)

        monkeypatch.setattr(Path, name, act)

    for name in ("unlink", "replace"):
        refusing(name)
    return held


def test_a_file_that_a_program_has_open_is_named_with_what_to_do(tmp_path, windows):
    path = tmp_path / "predictions.csv"
    path.write_text("old")
    windows.add(path)
    with pytest.raises(
        InputError, match=r"csv cannot be written: Permission denied; .*: close the program that has it open or "
    ):
        replace_file(path, lambda temporary: temporary.write_text("new"))
    with pytest.raises(
        InputError, match=r"csv cannot be removed: Permission denied: close the program that has it open or choose"
    ):
        remove_file(path)
    windows.clear()
    assert path.read_text() == "old" and names(tmp_path) == ["predictions.csv"]
    remove_file(path)
    remove_file(path)  # there is none
    assert names(tmp_path) == []


def test_a_lock_file_that_cannot_be_removed_while_it_is_open_ends_nothing(tmp_path, windows):
    windows.add(tmp_path / "lock")
    for _ in range(2):
        with locked(tmp_path / "lock", "held by another"):
            pass


# --- locks ---


def test_a_lock_is_held_by_one_and_leaves_nothing(tmp_path):
    lock = tmp_path / "new" / "lock"
    with (
        locked(lock, "held by another"),
        pytest.raises(InputError, match="held by another"),
        locked(lock, "held by another"),
    ):
        pass
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_one_line(tmp_path, monkeypatch):
    """filelock before 3.24 raises NotImplementedError, later versions take another kind of lock and warn."""

    def acquire(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr("filelock.BaseFileLock.acquire", acquire)
    refused = r"run cannot be locked: its file system has no flock: choose another, or upgrade filelock"
    with pytest.raises(InputError, match=refused), locked(tmp_path / "run" / "lock", "held by another"):
        pass


WITHOUT_FLOCK = """
import errno, fcntl, os, sys
from pathlib import Path
def flock(fd, operation):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
fcntl.flock = flock
from melanoma.common.files import locked
from melanoma.common.script import run_script
def main():
    with locked(Path(sys.argv[1]) / "lock", "held by another"):
        print("held")
run_script(main)
"""


def test_without_flock_this_filelock_makes_do_or_is_refused_in_one_line(tmp_path):
    pytest.importorskip("fcntl")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_FLOCK, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    refused = f"error: {tmp_path / 'run'} cannot be locked: its file system has no flock: "
    assert (done.returncode, done.stdout) == (0, "held\n") or done.stderr.startswith(refused), done.stderr
