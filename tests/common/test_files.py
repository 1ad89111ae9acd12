"""Files are old or new, never half."""

import errno
import json
import os
from pathlib import Path

import pytest

from melanoma.common.errors import InputError
from melanoma.common.files import make_folder, read_text, replace_file, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


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
    for name, problem in (("", "is not a file"), ("no", "does not exist"), ("odd", "is no UTF-8 text, see byte 0")):
        with pytest.raises(InputError) as caught:
            read_text(tmp_path / name, "the log", "train anew")
        assert str(caught.value) == f"the log {problem}: train anew"


def test_a_new_file_brings_its_folder(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", [1])
    assert names(tmp_path / "a" / "b") == ["c.json"]
