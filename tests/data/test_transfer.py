"""transfer.py: every break is gone on from, nothing wrong is kept, and errors are one line."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import socket
import ssl
import subprocess
from collections import deque
from pathlib import Path

import pytest
from conftest import names
from faulty_server import FaultyServer, Served

from config import RemoteFile
from melanoma.common.errors import InputError
from melanoma.data import transfer
from melanoma.data.transfer import fetch, remote_size

BODY = random.Random(0).randbytes(100_000)
TAG = {"etag": '"1"', "last_modified": None}


def serve(server: FaultyServer, body: bytes = BODY, path: str = "/a.bin", **how) -> RemoteFile:
    server.files[path] = Served(body, **how)
    return RemoteFile(server.address(path))


def refusal(remote: RemoteFile, path: Path) -> str:
    with pytest.raises(InputError) as error:
        fetch(remote, path)
    assert not path.exists()
    return str(error.value)


def leave_half(folder: Path, n: int, body: bytes = BODY, **version) -> None:
    """Leave the first bytes of a file as a stopped download does."""
    (folder / "a.bin.part").write_bytes(body[:n])
    (folder / "a.bin.part.json").write_text(json.dumps({"size": len(BODY)} | TAG | version))


def test_a_file_comes_whole_and_leaves_nothing_else(server, tmp_path, capsys):
    remote = serve(server)
    fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert names(tmp_path) == ["a.bin"]
    assert re.search(r"a\.bin: 0\.1 MB in \d+ s", capsys.readouterr().out)


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


@pytest.mark.parametrize("note", [b"", b"[]", b"{", b"\xff", b"{}"])
def test_a_damaged_note_is_not_believed(server, tmp_path, note):
    leave_half(tmp_path, 100, b"x" * 100)
    (tmp_path / "a.bin.part.json").write_bytes(note)
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
    assert "a.bin: from the start" in capsys.readouterr().err


def test_a_server_that_ignores_ranges_and_always_breaks_is_given_up(server, tmp_path):
    error = refusal(serve(server, ranges=False, cut_all=70_000), tmp_path / "a.bin")
    assert "the connection broke" in error and "keeps the 0.1 MB that came" in error
    assert len(server.gets("/a.bin")) == transfer.TRIES


NEW = random.Random(3).randbytes(100_000)
OTHER_LENGTHS = [NEW, NEW[:90_000], NEW + b"more", NEW[:100]]


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range", "ignored"])
@pytest.mark.parametrize("body", OTHER_LENGTHS, ids=["equal", "shorter", "longer", "shorter than the part"])
def test_a_file_that_changes_between_two_runs_is_fetched_anew(server, tmp_path, body, if_range):
    leave_half(tmp_path, 60_000)
    fetch(serve(server, body, etag='"2"', if_range=if_range), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == body


@pytest.mark.parametrize("body", OTHER_LENGTHS[1:], ids=["shorter", "longer", "shorter than the part"])
def test_a_file_that_changes_in_length_alone_is_fetched_anew(server, tmp_path, body):
    leave_half(tmp_path, 60_000)
    fetch(serve(server, body), tmp_path / "a.bin")  # the ETag is the old one's
    assert (tmp_path / "a.bin").read_bytes() == body
    assert len(server.gets("/a.bin")) == 2  # seen by the range that was offered, before it was fetched


@pytest.mark.parametrize("shift", [-1, 1, 1_000, -1_000])
def test_another_range_than_asked_for_is_not_written(server, tmp_path, shift):
    leave_half(tmp_path, 60_000)
    error = refusal(serve(server, shift=shift), tmp_path / "a.bin")
    assert "another range came than was asked for" in error
    assert (tmp_path / "a.bin.part").read_bytes() == BODY[:60_000]


def test_a_server_that_comes_to_its_senses(server, tmp_path):
    leave_half(tmp_path, 60_000)
    remote = serve(server, shift=7)
    waits = []

    def mend(seconds: float) -> None:
        waits.append(seconds)
        server.files["/a.bin"].shift = 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "sleep", mend)
        fetch(remote, tmp_path / "a.bin")
    assert len(waits) == 1
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("announced", [1, 50, 100_000])
def test_a_body_shorter_than_announced_is_not_taken_for_whole(server, tmp_path, announced):
    assert "cannot be fetched" in refusal(serve(server, announced=announced), tmp_path / "a.bin")
    assert len(server.requests) <= transfer.TRIES


def test_an_answer_without_a_length_that_ends_early(server, tmp_path):
    leave_half(tmp_path, 60_000)
    fetch(serve(server, no_length=True, cuts=deque([10_000])), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert [get.range for get in server.gets("/a.bin")] == ["bytes=60000-", "bytes=70000-"]


def test_an_answer_without_a_length_that_ends_late(server, tmp_path):
    leave_half(tmp_path, 60_000)
    remote = serve(server, no_length=True, extra=b"more")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "sleep", lambda _: setattr(server.files["/a.bin"], "extra", b""))
        fetch(remote, tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_body_shorter_than_published_is_not_taken_for_whole(server, tmp_path):
    remote = serve(server, announced=-10)
    error = refusal(RemoteFile(remote.address, size=len(BODY)), tmp_path / "a.bin")
    assert "the server offers 99,990 bytes, 100,000 are published" in error
    assert names(tmp_path) == []


@pytest.mark.parametrize("no_length", [False, True])
def test_size_and_checksum_are_checked_where_known(server, tmp_path, no_length):
    remote = serve(server, no_length=no_length)
    digest = hashlib.sha256(BODY).hexdigest()
    fetch(RemoteFile(remote.address, size=len(BODY), sha256=digest), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_a_wrong_checksum_keeps_nothing(server, tmp_path):
    remote = RemoteFile(serve(server).address, sha256="0" * 64)
    assert "another SHA-256 than the published file: it is deleted" in refusal(remote, tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_a_size_that_turns_out_wrong_keeps_nothing(server, tmp_path):
    remote = RemoteFile(serve(server, no_length=True).address, size=5)
    assert "has 100,000 bytes, 5 are published" in refusal(remote, tmp_path / "a.bin")
    assert names(tmp_path) == []


@pytest.mark.parametrize("known", [{"size": 3}, {"sha256": "0" * 64}])
def test_a_file_that_is_there_and_wrong_is_said_and_left(server, tmp_path, known):
    (tmp_path / "a.bin").write_bytes(b"mine")
    with pytest.raises(InputError, match="delete or move it"):
        fetch(RemoteFile(serve(server).address, **known), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == b"mine"


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_passing_refusals_are_tried_again(server, tmp_path, status, capsys):
    fetch(serve(server, statuses=deque([status, status])), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    assert capsys.readouterr().err.count(f"the server answers {status}") == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416])
def test_lasting_refusals_end_at_once(server, tmp_path, status):
    error = refusal(serve(server, statuses=deque([status] * 9)), tmp_path / "a.bin")
    assert f"the server answers {status}" in error and "DOWNLOADS in config.py" in error
    assert len(server.requests) == 1


def test_a_refusal_half_way_keeps_the_half(server, tmp_path):
    leave_half(tmp_path, 60_000)
    refusal(serve(server, statuses=deque([403])), tmp_path / "a.bin")
    assert names(tmp_path) == ["a.bin.part", "a.bin.part.json"]
    fetch(serve(server), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_tries_and_waits_have_a_bound(server, tmp_path, monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(transfer, "sleep", waits.append)
    monkeypatch.setattr(transfer, "FIRST_WAIT", 1.0)
    refusal(serve(server, statuses=deque([500] * 99)), tmp_path / "a.bin")
    assert waits == [1, 2]  # nothing has come yet: the user is still there
    waits.clear()
    remote = serve(server, cuts=deque([20_000]))
    server.files["/a.bin"].cut_all = 0
    refusal(remote, tmp_path / "a.bin")
    assert waits == [1, 2, 4, 8, 16, 32, 60]


def test_a_server_that_falls_silent_is_not_waited_for_for_ever(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT", (1, 0.1))
    assert "nothing came for too long" in refusal(serve(server, stall=2), tmp_path / "a.bin")


def test_redirects_are_followed(server, tmp_path):
    serve(server, path="/new")
    server.files["/old"] = Served(b"", location="/new")
    fetch(RemoteFile(server.address("/old")), tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_redirects_in_a_circle_end(server, tmp_path):
    server.files["/a"] = Served(b"", location="/a")
    assert "redirects" in refusal(RemoteFile(server.address("/a")), tmp_path / "a.bin")


@pytest.mark.parametrize("kind", ["text/html", "text/html; charset=utf-8", "application/xhtml+xml"])
def test_a_login_page_is_not_the_file(server, tmp_path, kind):
    error = refusal(serve(server, b"<html>Log in</html>", content_type=kind), tmp_path / "a.bin")
    assert "answers with a web page in place of the file" in error
    assert names(tmp_path) == []


def test_a_compressed_answer_is_not_kept(server, tmp_path):
    assert "comes compressed" in refusal(serve(server, encoding="gzip"), tmp_path / "a.bin")
    assert names(tmp_path) == []


def test_nobody_listens(server, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.bin"
    assert "Connection refused; run the same command" in refusal(RemoteFile(address), tmp_path / "a.bin")


def test_no_network(server, tmp_path, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = refusal(RemoteFile("https://isic.invalid/a.bin"), tmp_path / "a.bin")
    assert "Name or service not known: is there a network?" in error


@pytest.mark.parametrize("address", ["a.bin", "ftp://isic.invalid/a.bin", "http://"])
def test_addresses_that_are_none(tmp_path, address):
    assert "cannot be fetched" in refusal(RemoteFile(address), tmp_path / "a.bin")


def test_a_certificate_that_nobody_signed(server, tmp_path, capsys):
    if not shutil.which("openssl"):
        pytest.skip("makes its certificate with openssl")
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key.pem -out cert.pem -subj /CN=x"
    subprocess.run(["openssl", *made.split()], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    address = serve(server).address.replace("http:", "https:")
    error = refusal(RemoteFile(address), tmp_path / "a.bin")
    assert "certificate verify failed" in error and "self" in error
    assert "next try" not in capsys.readouterr().err
    assert not (tmp_path / "a.bin.part").exists()


def test_a_published_size_is_not_asked_for(server):
    assert remote_size(RemoteFile(server.address("/a"), size=7)) == 7
    assert remote_size(RemoteFile("http://127.0.0.1:1/a")) is None
    assert server.requests == []


def test_a_disk_that_fills_up_during_the_transfer(server, tiny_disk):
    body = random.Random(4).randbytes(500_000)
    remote = serve(server, body)
    error = refusal(remote, tiny_disk / "a.bin")
    assert "a.bin.part cannot be written: No space left on device" in error
    assert (tiny_disk / "a.bin.part").read_bytes() == body[: transfer.arrived(tiny_disk / "a.bin")]
    assert transfer.arrived(tiny_disk / "a.bin") > 100_000
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    fetch(remote, tiny_disk / "a.bin")
    assert (tiny_disk / "a.bin").read_bytes() == body
    assert server.gets("/a.bin")[-1].range
