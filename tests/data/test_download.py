"""download.py: the data set ends up where config.py expects it, whatever stops the download."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import DataSite, data_site, names, run_dataset
from faulty_server import Served
from filelock import FileLock

import config
from melanoma.common.errors import InputError
from melanoma.data import download
from melanoma.data.download import DOWNLOADS, RemoteFile, download_isic

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(server, monkeypatch) -> DataSite:
    """ISIC 2020 in small, served, with DOWNLOADS pointing at it."""
    site = data_site()
    for name, (path, body, entries) in site.files.items():
        server.files[path] = Served(body)
        gigabytes = len(body) / 1e9 if path.endswith(".zip") else 0.0
        monkeypatch.setitem(DOWNLOADS, name, RemoteFile(server.address(path), entries, gigabytes))
    return site


def whole(folder: Path, site: DataSite, with_test: bool = False) -> None:
    """Assert that a folder has the data set and nothing else."""
    expected = {"train": site.train, **({"test": site.test} if with_test else {})}
    for part, images in expected.items():
        assert {path.name: path.read_bytes() for path in (folder / part).glob("*.jpg")} == images
        assert names(folder / part) == sorted(images)
    tables = ["ISIC_2020_Training_GroundTruth.csv", "ISIC_2020_Training_Duplicates.csv"]
    tables += ["ISIC_2020_Test_Metadata.csv"] if with_test else []
    hidden = {".download.lock"}
    assert set(names(folder)) - hidden == {*tables, *expected}


@pytest.mark.parametrize("with_test", [False, True])
def test_the_whole_set_lies_where_config_looks(site, tmp_path, monkeypatch, capsys, with_test):
    monkeypatch.chdir(tmp_path)
    extra = ["--with-test"] if with_test else []
    assert run_dataset(monkeypatch, "--download", "data", *extra) == 0
    whole(Path("data"), site, with_test)
    assert names(tmp_path) == ["data"]
    out = capsys.readouterr().out
    assert "--duplicates data/ISIC_2020_Training_Duplicates.csv" in out
    duplicates = "data/ISIC_2020_Training_Duplicates.csv"
    assert run_dataset(monkeypatch, "--check", "--duplicates", duplicates) == 0
    assert "all images are complete" in capsys.readouterr().out


def test_a_second_download_fetches_nothing(site, server, tmp_path, capsys):
    download_isic(tmp_path / "data")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*") if ".lock" not in path.name}
    server.requests.clear()
    download_isic(tmp_path / "data")
    assert server.requests == []
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert "images are there already" in capsys.readouterr().out


def test_the_test_set_can_come_later(site, server, tmp_path):
    download_isic(tmp_path / "data")
    server.requests.clear()
    download_isic(tmp_path / "data", with_test=True)
    whole(tmp_path / "data", site, with_test=True)
    assert not server.gets(site.files["train_image"][0])


def test_images_got_in_another_way_are_left_alone(site, server, tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    for name in site.train:
        (tmp_path / "data" / "train" / name).write_bytes(b"resized")
    download_isic(tmp_path / "data")
    assert not server.gets(site.files["train_image"][0])
    assert (tmp_path / "data" / "train" / min(site.train)).read_bytes() == b"resized"


def test_a_missing_image_is_fetched_again_and_another_of_its_name_never_overwritten(site, tmp_path):
    download_isic(tmp_path / "data")
    images = sorted((tmp_path / "data" / "train").iterdir())
    images[0].write_bytes(b"mine")
    images[1].unlink()
    with pytest.raises(InputError, match=r"has 1 images of another size .* \(ISIC_"):
        download_isic(tmp_path / "data")
    assert images[0].read_bytes() == b"mine" and not images[1].exists()
    images[0].unlink()
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)


def test_a_zip_that_is_there_is_used(site, server, tmp_path):
    path, body, _ = site.files["train_image"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / path.rpartition("/")[2]).write_bytes(body)
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)
    assert not server.gets(path)


def test_a_zip_whose_images_are_all_there_is_deleted(site, server, tmp_path):
    path, body, _ = site.files["train_image"]
    download_isic(tmp_path / "data")
    (tmp_path / "data" / path.rpartition("/")[2]).write_bytes(body)  # as if killed before its end
    server.requests.clear()
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)
    assert server.requests == []


def test_another_number_of_rows_or_images_than_published(site, server, tmp_path, monkeypatch):
    for name, what in (("train_labels", "rows, 9 are published"), ("train_image", "images, not 9")):
        with monkeypatch.context() as patch:
            patch.setitem(DOWNLOADS, name, dataclasses.replace(DOWNLOADS[name], entries=9))
            with pytest.raises(InputError, match=what):
                download_isic(tmp_path / name)
    assert not (tmp_path / "train_image" / "train").exists()


def test_two_downloads_into_one_folder(site, server, tmp_path):
    (tmp_path / "data").mkdir()
    with (
        FileLock(tmp_path / "data" / ".download.lock"),
        pytest.raises(InputError, match=r"another download into .* is running"),
    ):
        download_isic(tmp_path / "data")
    assert server.requests == []
    download_isic(tmp_path / "data")


def test_too_little_room_is_said_before_anything_is_fetched(site, server, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(InputError, match=r"has 0\.00 GB free, 0\.\d\d GB are needed: free some space or choose"):
        download_isic(tmp_path / "data")
    assert server.requests == []


@pytest.mark.parametrize(("free", "enough"), [(9_999, False), (10_000, True)], ids=["a byte too few", "just enough"])
def test_room_is_counted_for_what_is_still_missing(tmp_path, monkeypatch, free, enough):
    (tmp_path / "a.zip.part").write_bytes(bytes(3_000))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.jpg").write_bytes(bytes(3_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=free))
    with contextlib.nullcontext() if enough else pytest.raises(InputError, match="are needed"):
        assert download._is_needed(RemoteFile("https://isic.invalid/a.zip", 2, 8e-6), tmp_path / "train")


def test_a_server_that_tells_no_size(site, server, tmp_path):
    path, body, _ = site.files["train_image"]
    server.files[path] = Served(body, no_length=True)
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)


def test_the_script_says_one_line(site, server, tmp_path, monkeypatch, capsys):
    server.files[site.files["train_image"][0]].statuses.extend([404])
    assert run_dataset(monkeypatch, "--download", tmp_path / "data") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: http") and err.count("\n") == 1
    (tmp_path / "file").write_text("")
    assert run_dataset(monkeypatch, "--download", tmp_path / "file") == 2
    assert "cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--with-test"], "goes with --download"), (["--download", "x", "--check"], "not allowed with")],
)
def test_flags_that_do_not_go_together(arguments, message, monkeypatch, capsys):
    assert run_dataset(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err


def test_the_addresses_are_the_challenges_own():
    for remote in DOWNLOADS.values():
        assert remote.address.startswith("https://isic-challenge-data.s3.amazonaws.com/2020/ISIC_2020_")
    assert {"train_image", "train_labels", "duplicates", "test_image", "test_labels"} == set(DOWNLOADS)
    defaults = config.Config()
    for name, remote in DOWNLOADS.items():
        if name != "duplicates":
            local = download.IMAGE_FOLDERS.get(name, remote.file_name)
            path = getattr(defaults, name)
            assert (path if isinstance(path, Path) else path[0]).parts[-2:] == ("data", local)


@pytest.mark.skipif("LESION_DATA" not in os.environ, reason="LESION_DATA names no folder with the real tables")
@pytest.mark.parametrize("name", ["train_labels", "duplicates", "test_labels"])
def test_the_real_tables_have_the_published_rows(name):
    remote = DOWNLOADS[name]
    path = Path(os.environ["LESION_DATA"], "isic2020", remote.file_name)
    download._check_rows(remote, path)
    with pytest.raises(InputError, match="rows, 1 are published"):
        download._check_rows(dataclasses.replace(remote, entries=1), path)


# --- a process of its own, killed ---

DRIVER = """
import json, sys
from pathlib import Path
from melanoma.common.script import run_script
from melanoma.data import download
for name, values in json.loads(sys.argv[2]).items():
    download.DOWNLOADS[name] = download.RemoteFile(*values)
run_script(lambda: download.download_isic(Path(sys.argv[1])))
"""


def start(folder: Path, code: str = DRIVER) -> subprocess.Popen:
    files = {name: [remote.address, remote.entries] for name, remote in DOWNLOADS.items()}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), json.dumps(files)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def wait_for(condition) -> None:
    for _ in range(2_000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited too long")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_stopped_while_bytes_come(site, server, tmp_path, number, code):
    path, body, _ = site.files["train_image"]
    archive = tmp_path / "data" / path.rpartition("/")[2]
    server.files[path].rate = 0.02
    process = start(tmp_path / "data")
    wait_for(lambda: download.arrived(archive) > 65_536)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    if number != signal.SIGKILL:
        assert err.endswith(f"stopped by {number.name}: run the same command again to go on\n")
    came = download.arrived(archive)
    assert 0 < came < len(body)
    server.files[path].rate = 0
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)
    assert server.gets(path)[-1].range == f"bytes={came}-"


STOP_HALFWAY = """
import time
from pathlib import Path
write_bytes = Path.write_bytes
def stop_halfway(path, data):
    if len(list(path.parent.glob("ISIC*.jpg"))) < {enough}:
        return write_bytes(path, data)
    with path.open("wb") as file:
        file.write(data[:10])
        file.flush()
        time.sleep(60)
Path.write_bytes = stop_halfway
"""


def test_killed_while_unpacking(site, server, tmp_path):
    """Three times, each a little later: what is there is whole, and the next run goes on."""
    path, _, entries = site.files["train_image"]
    train = tmp_path / "data" / "train"
    for enough in (2, 8, 18):
        process = start(tmp_path / "data", STOP_HALFWAY.format(enough=enough) + DRIVER)
        wait_for(
            lambda n=enough: (
                len(list(train.glob("ISIC*.jpg"))) >= n
                and any(half.stat().st_size for half in train.glob(".ISIC*.tmp"))
            )
        )
        process.kill()
        process.communicate()
        there = {path.name: path.read_bytes() for path in train.glob("ISIC*.jpg")}
        assert there.items() <= site.train.items() and enough <= len(there) < entries
        assert len(list(train.glob(".ISIC*.tmp"))) == 1  # the half that this kill left
    old = {path: path.stat().st_mtime_ns for path in train.glob("ISIC*.jpg")}
    download_isic(tmp_path / "data")
    whole(tmp_path / "data", site)
    assert {path: path.stat().st_mtime_ns for path in old} == old
    assert len(server.gets(path)) == 1


# --- a full disk ---


def test_a_disk_too_small_for_archive_and_images(site, server, tiny_disk, monkeypatch, capsys):
    assert run_dataset(monkeypatch, "--download", tiny_disk) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "GB are needed" in err and err.count("\n") == 1
    assert not (tiny_disk / "train").exists()


def test_a_second_thread_is_refused_while_the_first_downloads(site, server, tmp_path):
    path = site.files["train_image"][0]
    server.files[path].rate = 0.01
    first = threading.Thread(target=download_isic, args=(tmp_path / "data",))
    first.start()
    wait_for(lambda: server.gets(path))
    with pytest.raises(InputError, match="another download"):
        download_isic(tmp_path / "data")
    server.files[path].rate = 0
    first.join()
    whole(tmp_path / "data", site)
