"""download.py's fetch and unpack: a broken transfer is resumed, and nothing half or wrong is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import socket
import ssl
import struct
import subprocess
import sys
from collections import deque
from pathlib import Path

import pytest
from conftest import names, zip_of
from faulty_server import FaultyServer, Served
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from melanoma.common.errors import InputError
from melanoma.common.files import need_room
from melanoma.data import download
from melanoma.data.download import RemoteFile, fetch, unpack

# --- fetch ---

BODY = random.Random(0).randbytes(100_000)


def serve(server: FaultyServer, body: bytes = BODY, path: str = "/a.bin", **how) -> RemoteFile:
    server.files[path] = Served(body, **how)
    return RemoteFile(server.address(path), 1)


def refusal(remote: RemoteFile, path: Path) -> str:
    with pytest.raises(InputError) as error:
        fetch(remote, path)
    assert not path.exists()
    return str(error.value)


def leave_half(folder: Path, n: int, body: bytes = BODY, **version) -> None:
    """Leave the first bytes of a file as a stopped download does."""
    (folder / "a.bin.part").write_bytes(body[:n])
    (folder / "a.bin.part.json").write_text(json.dumps({"size": len(BODY), "tag": '"1"'} | version))


def test_a_file_comes_whole_and_leaves_nothing_else(server, tmp_path, capsys):
    remote = serve(server)
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert names(tmp_path) == ["a.bin"]
    assert "a.bin: 0.1 MB\n" in capsys.readouterr().out


def test_a_file_that_is_there_is_left_alone(server, tmp_path):
    (tmp_path / "a.bin").write_bytes(b"mine")
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"mine"
    assert server.requests == []


BREAKS = [0, 1, 2, 511, 512, 513, 4095, 4096, 4097, 50_000, 65_535, 65_536, 99_998, 99_999]
BREAKS += random.Random(1).sample(range(100_000), 16)


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize("n", BREAKS)
def test_a_break_at_any_byte_is_gone_on_from(server, tmp_path, n, reset):
    remote = serve(server, cuts=deque([n]), reset=reset)
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert names(tmp_path) == ["a.bin"]
    assert len(server.gets("/a.bin")) == 2


@pytest.mark.parametrize("every", [1_500, 3_333, 10_000, 33_333])
def test_many_breaks_in_one_download(server, tmp_path, every):
    fetch(serve(server, cut_all=every), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    gets = server.gets("/a.bin")
    assert len(gets) >= len(BODY) // every
    assert all(get.range and get.if_range == '"1"' for get in gets[1:])


def test_breaks_at_random_bytes(server, tmp_path):
    rng = random.Random(2)
    for i in range(20):
        remote = serve(server, path=f"/{i}", cuts=deque(rng.randrange(20_000) for _ in range(12)))
        fetch(remote, tmp_path / str(i))
        assert (tmp_path / str(i)).read_bytes() == BODY


@pytest.mark.parametrize("n", [1, 50_000, 99_999])
def test_a_second_run_asks_for_the_rest_alone(server, tmp_path, n):
    remote = serve(server)
    leave_half(tmp_path, n)
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [get.range for get in server.gets("/a.bin")] == [f"bytes={n}-"]


def test_last_modified_serves_where_there_is_no_strong_etag(server, tmp_path):
    day = "Mon, 17 Aug 2020 10:00:00 GMT"
    remote = serve(server, etag='W/"1"', last_modified=day, cuts=deque([40_000]))
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [get.if_range for get in server.gets("/a.bin")] == [None, day]


def test_without_a_tag_halves_are_never_joined(server, tmp_path):
    remote = serve(server, etag=None, cuts=deque([40_000]))
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [get.range for get in server.gets("/a.bin")] == [None, None]


def test_a_part_of_a_file_of_unknown_size(server, tmp_path):
    leave_half(tmp_path, 40_000, size=None)
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [get.range for get in server.gets("/a.bin")] == ["bytes=40000-"]


def test_a_part_without_its_note_is_not_gone_on_from(server, tmp_path):
    (tmp_path / "a.bin.part").write_bytes(b"of who knows what")
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_killed_between_the_last_byte_and_the_name(server, tmp_path):
    leave_half(tmp_path, len(BODY))
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert names(tmp_path) == ["a.bin"]
    assert server.requests == []


@pytest.mark.parametrize("cut", [None, 70_000])
def test_a_server_that_ignores_ranges_sends_it_from_the_start(server, tmp_path, cut, capsys):
    remote = serve(server, ranges=False, cuts=deque([cut] if cut else []))
    leave_half(tmp_path, 60_000)
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert "a.bin: the server sends the file from its start" in capsys.readouterr().err


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(server, tmp_path):
    error = refusal(serve(server, ranges=False, cut_all=70_000), tmp_path / "a.bin")
    assert "70,000 bytes read, 30,000 more expected" in error.replace("70000", "70,000").replace("30000", "30,000")
    assert (tmp_path / "a.bin.part").stat().st_size > 60_000
    assert len(server.gets("/a.bin")) == 1 + len(download.WAITS)


NEW = random.Random(3).randbytes(100_000)
OTHER_LENGTHS = [NEW, NEW[:90_000], NEW + b"more", NEW[:100]]


@pytest.mark.parametrize("body", OTHER_LENGTHS, ids=["equal", "shorter", "longer", "shorter than the part"])
def test_a_file_that_changes_between_two_runs_is_fetched_anew(server, tmp_path, body):
    leave_half(tmp_path, 60_000)
    fetch(serve(server, body, etag='"2"'), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == body


@pytest.mark.parametrize("announced", [1, 50, 100_000])
def test_a_body_shorter_than_announced_is_not_taken_for_whole(server, tmp_path, announced):
    assert "cannot be fetched" in refusal(serve(server, announced=announced), tmp_path / "a.bin")
    assert len(server.requests) <= 1 + len(download.WAITS)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_passing_refusals_are_tried_again(server, tmp_path, status, capsys):
    fetch(serve(server, statuses=deque([status, status])), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert capsys.readouterr().err.count(f": {status} ") == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_lasting_refusals_end_at_once(server, tmp_path, status):
    error = refusal(serve(server, statuses=deque([status] * 9)), tmp_path / "a.bin")
    assert f"{status} Client Error" in error and "DOWNLOADS in melanoma/data/download.py" in error
    assert len(server.requests) == 1


def test_a_refusal_half_way_keeps_the_half(server, tmp_path):
    leave_half(tmp_path, 60_000)
    refusal(serve(server, statuses=deque([403])), tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_tries_and_waits_have_a_bound(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(download, "sleep", waits.append)
    refusal(serve(server, statuses=deque([500] * 99)), tmp_path / "a.bin")
    assert waits == [1, 2]  # nothing has come yet: the user is still there
    waits.clear()
    remote = serve(server, cuts=deque([20_000]))
    server.files["/a.bin"].cut_all = 0
    refusal(remote, tmp_path / "a.bin")
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_a_server_that_falls_silent_is_not_waited_for_for_ever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (1, 0.1))
    assert "timed out" in refusal(serve(server, stall=2), tmp_path / "a.bin")


def test_redirects_are_followed(server, tmp_path):
    serve(server, path="/new")
    server.files["/old"] = Served(b"", location="/new")
    fetch(RemoteFile(server.address("/old"), 1), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_redirects_in_a_circle_end(server, tmp_path):
    server.files["/a"] = Served(b"", location="/a")
    assert "redirects" in refusal(RemoteFile(server.address("/a"), 1), tmp_path / "a.bin")


def test_nobody_listens(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
    assert "Connection refused; run the same command" in refusal(RemoteFile(address, 1), tmp_path / "a.bin")


def test_no_network(server, tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refusal(RemoteFile("https://isic.invalid/a.bin", 1), tmp_path / "a.bin")
    assert "Name or service not known" in error


@pytest.mark.parametrize("address", ["a.bin", "ftp://isic.invalid/a.bin", "http://"])
def test_addresses_that_are_none(tmp_path, address):
    assert "cannot be fetched" in refusal(RemoteFile(address, 1), tmp_path / "a.bin")


def test_a_certificate_that_nobody_signed(server, tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("makes its certificate with openssl")
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -subj /CN=x"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    address = serve(server).address.replace("http:", "https:")
    error = refusal(RemoteFile(address, 1), tmp_path / "a.bin")
    assert "certificate verify failed" in error and "self" in error
    assert not (tmp_path / "a.bin.part").exists()


def test_a_disk_that_fills_up_during_the_transfer(server, tiny_disk):
    body = random.Random(4).randbytes(500_000)
    remote = serve(server, body)
    error = refusal(remote, tiny_disk / "a.bin")
    assert "a.bin cannot be written: No space left on device" in error
    assert (tiny_disk / "a.bin.part").read_bytes() == body[: download.arrived(tiny_disk / "a.bin")]
    assert download.arrived(tiny_disk / "a.bin") > 100_000
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    fetch(remote, tiny_disk / "a.bin")
    assert (tiny_disk / "a.bin").read_bytes() == body
    assert server.gets("/a.bin")[-1].range


# --- unpack ---

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
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def unpack_refusal(tmp_path: Path, data: bytes, n: int = 1) -> str:
    """Return what is said of a zip of which nothing may be written anywhere."""
    where, folder = lay(tmp_path, data)
    before = tree(tmp_path)
    with pytest.raises(InputError) as error:
        unpack(where, folder, n)
    assert tree(tmp_path) == before
    assert str(error.value).startswith(f"{where} is a damaged zip (")
    assert str(error.value).count(str(where)) == 1
    return str(error.value)


def test_images_are_unpacked_flat(tmp_path):
    files = {
        **{"train/" + name: data for name, data in IMAGES.items()},
        "train/readme.txt": b"no image",
        "__MACOSX/train/._ISIC_0000001.jpg": b"no image either",
        "deep/er/x.PNG": b"p",
    }
    where, folder = lay(tmp_path, zip_of(files))
    assert unpack(where, folder, 13) == 13
    assert tree(folder) == {**IMAGES, "x.PNG": b"p"}
    assert sorted(path.name for path in where.parent.iterdir()) == ["a.zip", "train"]


@pytest.mark.parametrize("name", ["../x.jpg", "train/../../x.jpg", "/x.jpg", "/tmp/x.jpg", "//host/x.jpg"])
def test_a_name_that_leads_out_of_the_folder_lands_inside_it(tmp_path, name):
    where, folder = lay(tmp_path, zip_of({"train/a.jpg": b"a", name: b"x"}))
    assert unpack(where, folder, 2) == 2
    assert tree(tmp_path / "place" / "train") == {"a.jpg": b"a", "x.jpg": b"x"}
    assert sorted(tree(tmp_path)) == ["place", "place/a.zip", "place/train", "place/train/a.jpg", "place/train/x.jpg"]


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
    assert "is encrypted" in damage(tmp_path, patched(zip_of({"a.jpg": b"x"}), flags=1), {})


def test_another_number_of_images(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    with pytest.raises(InputError, match="has 12 images, not 13"):
        unpack(where, folder, entries=13)
    assert not folder.exists()


@pytest.mark.parametrize("data", [b"", b"<html>Log in</html>", zip_of(IMAGES)[:-1], zip_of(IMAGES)[:5_000]])
def test_no_zip_or_a_cut_one(tmp_path, data):
    error = unpack_refusal(tmp_path, data, 12)
    assert "is a damaged zip" in error and "delete it and run the same command again" in error


def damage(tmp_path: Path, data: bytes, written: dict[str, bytes], n: int = 1) -> str:
    """Return what is said of a zip with a member that is found bad only when it is read."""
    where, folder = lay(tmp_path, data)
    with pytest.raises(InputError) as error:
        unpack(where, folder, n)
    assert {name: data for name, data in tree(folder).items()} == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place"]
    assert {path.name for path in where.parent.iterdir()} <= {"a.zip", "train"}
    return str(error.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_member_is_found_and_those_before_it_stay(tmp_path, share):
    data = bytearray(zip_of(IMAGES))
    third = list(IMAGES)[2]
    at = data.index(third.encode()) + len(third) + int(share * len(IMAGES[third]))
    data[at] ^= 0xFF
    error = damage(tmp_path, bytes(data), {name: IMAGES[name] for name in list(IMAGES)[:2]}, 12)
    assert "is a damaged zip" in error


def test_a_member_that_inflates_to_more_than_it_states(tmp_path):
    bomb = patched(zip_of({"a.jpg": bytes(10_000_000)}), size=100)
    assert len(bomb) < 20_000
    assert "Bad CRC-32" in damage(tmp_path, bomb, {})


def test_an_honest_bomb_meets_the_size_of_the_disk(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=9_999_999))
    where, folder = lay(tmp_path, zip_of({"a.jpg": bytes(5_000_000), "b.jpg": bytes(5_000_000)}))
    with pytest.raises(InputError, match=r"has 0\.01 GB free, 0\.01 GB are needed"):
        unpack(where, folder, 2)
    assert not folder.exists()


def test_a_directory_that_points_outside_the_archive(tmp_path):
    data = bytearray(zip_of({"a.jpg": b"x"}))
    end = data.index(b"PK\x05\x06")
    start = struct.unpack_from("<I", data, end + 16)[0]
    struct.pack_into("<I", data, end + 16, start + 9)  # where the directory begins, APPNOTE.TXT 4.3.16
    where, folder = lay(tmp_path, bytes(data))
    with pytest.raises(InputError, match="is a damaged zip"):
        unpack(where, folder, 1)
    assert not list(folder.glob("*.jpg"))


def test_a_header_that_names_another_file_than_the_directory(tmp_path):
    data = zip_of({"train/a.jpg": b"x"})
    changed = data.replace(b"train/a.jpg", b"../evil.jpg", 1)
    assert len(changed) == len(data)
    assert "differ" in damage(tmp_path, changed, {})


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=6), st.booleans())
def test_bytes_changed_anywhere(tmp_path_factory, changes, in_directory):
    """Either the images come out as they are or it is bad input; all else stays as it was."""
    place = tmp_path_factory.mktemp("fuzz")
    data = bytearray(zip_of(dict(list(IMAGES.items())[:4]), "train/"))
    first = data.index(b"PK\x01\x02") if in_directory else 0
    for at, value in changes:
        data[first + at % (len(data) - first)] = value
    where, folder = lay(place, bytes(data))
    with contextlib.suppress(InputError):
        unpack(where, folder, 4)
    assert {path.name for path in place.iterdir()} == {"place"}
    assert {path.name for path in where.parent.iterdir()} <= {"a.zip", "train"}
    if folder.exists():
        assert set(tree(folder).values()) <= set(IMAGES.values())


# --- what is there already ---


def test_what_is_there_is_left_alone(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    first, second = list(IMAGES)[:2]
    (folder / first).write_bytes(bytes(len(IMAGES[first])))  # of the same size
    (folder / "notes.txt").write_text("mine")
    (folder / f".{second}.1.tmp").write_text("half")
    (folder / ".mine.1.tmp").write_text("mine")
    assert unpack(where, folder, 12) == 11
    assert (folder / first).read_bytes() == bytes(len(IMAGES[first]))
    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder / f".{second}.1.tmp").exists() and (folder / ".mine.1.tmp").exists()


def test_an_image_of_another_size_is_in_the_way(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    (folder / min(IMAGES)).write_bytes(b"mine")
    before = tree(tmp_path)
    with pytest.raises(InputError, match=r"has 1 images of another size .*ISIC_0000000.jpg\): delete or move"):
        unpack(where, folder, 12)
    assert tree(tmp_path) == before


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_link_in_the_folder_is_not_written_through(tmp_path):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    folder.mkdir()
    (folder / min(IMAGES)).symlink_to(tmp_path / "elsewhere.jpg")
    unpack(where, folder, 12)
    assert not (tmp_path / "elsewhere.jpg").exists()
    assert (folder / min(IMAGES)).read_bytes() == IMAGES[min(IMAGES)]


def test_a_disk_that_fills_up_leaves_whole_images(tmp_path, monkeypatch):
    where, folder = lay(tmp_path, zip_of(IMAGES))
    write, written = Path.write_bytes, []

    def fill_up(path, data):
        written.append(1)
        if len(written) == 5:
            write(path, b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", fill_up)
    with pytest.raises(InputError, match="cannot be written: No space left on device"):
        unpack(where, folder, 12)
    assert tree(folder) == {name: IMAGES[name] for name in list(IMAGES)[:4]}
    monkeypatch.undo()
    assert unpack(where, folder, 12) == 8


def test_room(tmp_path):
    need_room(tmp_path, 1, "the disk", "choose another folder")
    with pytest.raises(InputError, match="free some space or choose another folder"):
        need_room(tmp_path, 10**18, "the disk", "choose another folder")
