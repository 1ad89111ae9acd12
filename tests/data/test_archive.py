"""archive.py: nothing leaves the folder, nothing half is left, nothing that is there is touched."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import random
import shutil
import stat
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import pytest
from conftest import zip_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melanoma.common.errors import InputError
from melanoma.common.files import need_room
from melanoma.data import archive
from melanoma.data.archive import Recorded, left_to_unpack, read_record, unpack

RNG = random.Random(0)
IMAGES = {f"ISIC_{i:07d}.jpg": RNG.randbytes(RNG.randrange(100, 3_000)) for i in range(12)}


def lay(tmp_path: Path, data: bytes) -> tuple[Path, Path]:
    """Return a zip on the disk and the folder to unpack it into, alone in a folder of their own."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.zip").write_bytes(data)
    return place / "a.zip", place / "train"


def tree(folder: Path) -> dict[str, bytes | None]:
    """Return all that is below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(tmp_path: Path, data: bytes) -> str:
    """Return what is said of a zip of which nothing may be written anywhere."""
    where, folder = lay(tmp_path, data)
    before = tree(tmp_path)
    with pytest.raises(InputError) as error:
        unpack(where, folder)
    assert tree(tmp_path) == before
    assert str(error.value).startswith((f"{where} is not unpacked: ", f"{where} is a damaged zip ("))
    assert str(error.value).count(str(where)) == 1
    return str(error.value)


def zip_with(name: str, **fields) -> bytes:
    """Return a zip with an honest image before and after one member with fields of its own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr("train/ISIC_0000001.jpg", b"honest")
        info = zipfile.ZipInfo("placeholder")
        info.filename = info.orig_filename = name
        for field, value in fields.items():
            setattr(info, field, value)
        zipped.writestr(info, b"evil")
        zipped.writestr("train/ISIC_0000003.jpg", b"honest too")
    return out.getvalue()


def test_images_are_unpacked_flat_and_recorded(tmp_path):
    files = {
        **{"train/" + name: data for name, data in IMAGES.items()},
        "train/readme.txt": b"no image",
        "__MACOSX/train/._ISIC_0000001.jpg": b"no image either",
        "deep/er/x.PNG": b"p",
    }
    where, folder = lay(tmp_path, zip_of(files))
    assert unpack(where, folder, entries=13) == 13
    assert {name: data for name, data in tree(folder).items() if name != "manifest.csv"} == {
        **IMAGES,
        "x.PNG": b"p",
    }
    record = read_record(folder)
    assert record == {
        name: Recorded(len(data), zlib.crc32(data)) for name, data in {**IMAGES, "x.PNG": b"p"}.items()
    }
    assert sorted(tree(where.parent)) == sorted(
        ["a.zip", "train", *(f"train/{name}" for name in [*record, "manifest.csv"])]
    )


OUTSIDE = [
    "../evil.jpg",
    "train/../../evil.jpg",
    "train/..",
    "..",
    "train/../evil.jpg",
    "../../../../tmp/evil.jpg",
]
ABSOLUTE = ["/evil.jpg", "/tmp/evil.jpg", "//host/share/evil.jpg", "/"]
ODD = [
    "C:evil.jpg",
    "C:\\evil.jpg",
    "c:/evil.jpg",
    "..\\evil.jpg",
    "train\\..\\..\\evil.jpg",
    "a//evil.jpg",
    "./evil.jpg",
]
ODD += [
    "train/./evil.jpg",
    "evil.jpg:stream",
    "evil\n.jpg",
    "evil\0.jpg",
    "\0",
    "evil\x1b[2J.jpg",
    "evil\u202e.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_that_lead_out_of_the_folder(tmp_path, name):
    assert f"{name!r} in it leads out of the folder" in refusal(tmp_path, zip_with(name))


@pytest.mark.parametrize("name", ABSOLUTE)
def test_absolute_names(tmp_path, name):
    assert "in it is an absolute path" in refusal(tmp_path, zip_with(name))


@pytest.mark.parametrize("name", ODD)
def test_names_that_are_no_plain_paths(tmp_path, name):
    assert "in it is no plain path" in refusal(tmp_path, zip_with(name))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices(tmp_path, kind):
    data = zip_with("train/ISIC_0000002.jpg", external_attr=(kind | 0o777) << 16, create_system=3)
    assert "is a link or a device" in refusal(tmp_path, data)


def patched(data: bytes, **fields: int) -> bytes:
    """Return a zip of one member with fields of its two headers overwritten (APPNOTE.TXT 4.3.7 and 4.3.12)."""
    offsets = {"flags": (6, 8, "<H"), "method": (8, 10, "<H"), "crc": (14, 16, "<I"), "size": (22, 24, "<I")}
    changed = bytearray(data)
    central = data.index(b"PK\x01\x02")
    for field, value in fields.items():
        local, in_directory, layout = offsets[field]
        struct.pack_into(layout, changed, local, value)
        struct.pack_into(layout, changed, central + in_directory, value)
    return bytes(changed)


def test_encrypted_members(tmp_path):
    assert "is encrypted" in refusal(tmp_path, patched(zip_of({"a.jpg": b"x"}), flags=1))


@pytest.mark.parametrize("method", [1, 9, 12, 14, 93, 99])
def test_compression_that_is_not_read(tmp_path, method):
    assert f"not read here ({method})" in refusal(tmp_path, patched(zip_of({"a.jpg": b"x"}), method=method))


@pytest.mark.parametrize("names", [("a/x.jpg", "b/x.jpg"), ("x.jpg", "X.JPG"), ("x.jpg", "x.png")])
def test_two_images_of_one_name(tmp_path, names):
    assert "two images of the name" in refusal(tmp_path, zip_of(dict.fromkeys(names, b"x")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_member_twice(tmp_path):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as zipped:
        zipped.writestr("x.jpg", b"one")
        zipped.writestr("x.jpg", b"two")
    assert "two images of the name" in refusal(tmp_path, out.getvalue())


def test_another_number_of_images(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    with pytest.raises(InputError, match="holds 12 images, 13 are published"):
        unpack(where, folder, entries=13)
    assert not folder.exists()


@pytest.mark.parametrize("data", [b"", b"<html>Log in</html>", zip_of(IMAGES)[:-1], zip_of(IMAGES)[:5_000]])
def test_no_zip_or_a_cut_one(tmp_path, data):
    error = refusal(tmp_path, data)
    assert "is a damaged zip" in error and "delete it and run the same command again" in error


def damage(tmp_path: Path, data: bytes, written: dict[str, bytes]) -> str:
    """Return what is said of a zip with a member that is found bad only when it is read."""
    where, folder = lay(tmp_path, data)
    with pytest.raises(InputError) as error:
        unpack(where, folder)
    assert {name: data for name, data in tree(folder).items() if name != "manifest.csv"} == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place"]
    assert sorted(path.name for path in where.parent.iterdir()) == ["a.zip", "train"]
    return str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_member_is_found_and_those_before_it_stay(tmp_path, share):
    data = bytearray(zip_of(IMAGES))
    third = list(IMAGES)[2]
    at = data.index(third.encode()) + len(third) + int(share * len(IMAGES[third]))
    data[at] ^= 0xFF
    error = damage(tmp_path, bytes(data), {name: IMAGES[name] for name in list(IMAGES)[:2]})
    assert "is a damaged zip" in error


def test_a_member_that_inflates_to_more_than_it_states(tmp_path):
    bomb = patched(zip_of({"a.jpg": bytes(10_000_000)}), size=100)
    assert len(bomb) < 20_000
    assert "Bad CRC-32" in damage(tmp_path, bomb, {})


def test_a_bomb_with_a_fitting_checksum_stays_small(tmp_path):
    where, folder = lay(
        tmp_path, patched(zip_of({"a.jpg": bytes(10_000_000)}), size=100, crc=zlib.crc32(bytes(100)))
    )
    unpack(where, folder)
    assert (folder / "a.jpg").read_bytes() == bytes(100)


@pytest.mark.parametrize("checksum", [True, False])
def test_a_member_that_inflates_to_less_than_it_states(tmp_path, checksum):
    data = zip_of({"a.jpg": b"12345"})
    error = damage(tmp_path, patched(data, size=6) if checksum else patched(data, size=6, crc=1), {})
    assert ("has 5 bytes, the archive states 6" if checksum else "Bad CRC-32") in error


def test_an_honest_bomb_meets_the_size_of_the_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9_999_999))
    where, folder = lay(tmp_path, zip_of({"a.jpg": bytes(5_000_000), "b.jpg": bytes(5_000_000)}))
    with pytest.raises(InputError, match=r"has 0\.01 GB free, 0\.01 GB are needed"):
        unpack(where, folder)
    assert tree(folder) == {}


def test_a_directory_that_points_outside_the_archive(tmp_path):
    data = bytearray(zip_of({"a.jpg": b"x"}))
    end = data.index(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    struct.pack_into("<I", data, end + 16, start + 9)  # where the directory begins, APPNOTE.TXT 4.3.16
    where, folder = lay(tmp_path, bytes(data))
    with pytest.raises(InputError, match="is a damaged zip"):
        unpack(where, folder)
    assert not list(folder.glob("*.jpg"))


def test_a_header_that_names_another_file_than_the_directory(tmp_path):
    data = zip_of({"train/a.jpg": b"x"})
    changed = data.replace(b"train/a.jpg", b"../evil.jpg", 1)
    assert len(changed) == len(data)
    assert "differ" in damage(tmp_path, changed, {})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_bytes_changed_anywhere(tmp_path_factory, changes, in_directory):
    """Either the images come out as they are recorded or it is bad input; all else stays as it was."""
    place = tmp_path_factory.mktemp("fuzz")
    data = bytearray(zip_of(dict(list(IMAGES.items())[:4]), "train/"))
    first = data.index(b"PK\x01\x02") if in_directory else 0
    for at, value in changes:
        data[first + at % (len(data) - first)] = value
    where, folder = lay(place, bytes(data))
    with contextlib.suppress(InputError):
        unpack(where, folder)
    assert {path.name for path in place.iterdir()} == {"place"}
    assert {path.name for path in where.parent.iterdir()} <= {"a.zip", "train"}
    if folder.exists():
        record = read_record(folder)
        for name, content in tree(folder).items():
            if content is not None and name != "manifest.csv":
                assert record[name] == Recorded(len(content), zlib.crc32(content))


# --- what is there already ---


def test_what_is_there_is_left_alone(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    first, second = list(IMAGES)[:2]
    (folder / first).write_bytes(bytes(len(IMAGES[first])))  # of the recorded size
    (folder / "notes.txt").write_text("mine")
    (folder / f".{second}.1.tmp").write_text("half")
    (folder / ".mine.1.tmp").write_text("mine")
    assert unpack(where, folder) == 11
    assert (folder / first).read_bytes() == bytes(len(IMAGES[first]))
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / f".{second}.1.tmp").exists() and (folder / ".mine.1.tmp").exists()


def test_an_image_of_another_size_is_in_the_way(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    (folder / min(IMAGES)).write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(
        InputError, match=r"has 1 images of another size .*ISIC_0000000.jpg\): delete or move"
    ):
        unpack(where, folder)
    assert tree(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    (folder / min(IMAGES)).symlink_to(tmp_path / "elsewhere.jpg")
    unpack(where, folder)
    assert not (tmp_path / "elsewhere.jpg").exists()
    assert (folder / min(IMAGES)).read_bytes() == IMAGES[min(IMAGES)]


def test_a_disk_that_fills_up_leaves_whole_images(tmp_path, monkeypatch):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    copy, copied = shutil.copyfileobj, []

    def fill_up(source, target, n):
        copied.append(1)
        if len(copied) == 5:
            target.write(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copy(source, target, n)

    monkeypatch.setattr(archive.shutil, "copyfileobj", fill_up)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        unpack(where, folder)
    there = {name: data for name, data in tree(folder).items() if name != "manifest.csv"}
    assert there == {name: IMAGES[name] for name in list(IMAGES)[:4]}
    monkeypatch.undo()
    assert unpack(where, folder) == 8


# --- the record ---


def test_what_is_left(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"123")
    record = {"a.jpg": Recorded(3, 0), "b.jpg": Recorded(1, 0)}
    assert left_to_unpack(tmp_path, record) == ["b.jpg"]


def test_no_record(tmp_path):
    assert read_record(tmp_path) == {}


@pytest.mark.parametrize(
    "text", ["", "x,y\n", "file,bytes,crc32\na.jpg,many,0\n", "file,bytes,crc32\na.jpg,1\n", "\0"]
)
def test_a_record_that_is_none(tmp_path, text):
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(InputError, match=r"manifest\.csv is no record of image sizes .*: delete it"):
        read_record(tmp_path)


def test_room(tmp_path):
    need_room(tmp_path, 1, "the disk", "choose another folder")
    with pytest.raises(InputError, match="free some or choose another folder"):
        need_room(tmp_path, 10**18, "the disk", "choose another folder")
