"""check.py: missing, unreadable and extra images are found, named and counted."""

from __future__ import annotations

import io
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import data_site, run_dataset
from PIL import Image

from melanoma.common.script import Stopped
from melanoma.data import cache, check
from melanoma.data.check import unreadable_images
from melanoma.data.decoding import UnreadableImage, find_images
from melanoma.data.download import unpack


def picture(width: int = 64, kind: str = "JPEG", mode: str = "RGB", **how) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (48, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(file, kind, **how)
    return file.getvalue()


KINDS = {
    "jpeg": picture(),
    "grey jpeg": picture(mode="L"),
    "cmyk jpeg": picture(mode="CMYK"),
    "progressive jpeg": picture(progressive=True),
    "png": picture(kind="PNG"),
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A downloaded set: train/*.jpg, test/*.jpg and its tables."""
    site = data_site(12, 4)
    for name, part in (("train_image", "train"), ("test_image", "test")):
        (tmp_path / "a.zip").write_bytes(site.files[name][1])
        unpack(tmp_path / "a.zip", tmp_path / part, site.files[name][2])
    (tmp_path / "a.zip").unlink()
    for name in ("train_labels", "duplicates", "test_labels"):
        path, body, _ = site.files[name]
        (tmp_path / path.rpartition("/")[2]).write_bytes(body)
    return tmp_path


@pytest.mark.parametrize("kind", KINDS)
def test_complete_images_are_readable(tmp_path, kind):
    (tmp_path / "a").write_bytes(KINDS[kind])
    assert unreadable_images({"a": tmp_path / "a"}) == []


@pytest.mark.parametrize("kind", KINDS)
def test_images_cut_anywhere_are_found(tmp_path, kind):
    data = KINDS[kind]
    ends = [0, 1, 10, len(data) // 2, len(data) - 100, *random.Random(0).sample(range(len(data)), 10)]
    if kind != "png":  # after the last pixel a PNG has a mark that the decoder can do without
        ends += [len(data) - 2, len(data) - 1]
    for end in ends:
        (tmp_path / "a").write_bytes(data[:end])
        assert unreadable_images({"a": tmp_path / "a"}) == ["a"], end


def test_each_fault_is_found_and_named(folder, monkeypatch, capsys):
    train = folder / "train"
    (train / "ISIC_0000002.jpg").unlink()
    whole = (train / "ISIC_0000003.jpg").read_bytes()
    (train / "ISIC_0000003.jpg").write_bytes(whole[:-10])
    (train / "ISIC_0000005.jpg").write_bytes(bytes(len((train / "ISIC_0000005.jpg").read_bytes())))
    (train / "ISIC_0000007.jpg").write_bytes(b"")
    (folder / "test" / "extra.jpg").write_bytes(KINDS["jpeg"])
    assert run_check(monkeypatch, folder) == 2
    out = capsys.readouterr().out
    assert "  1 missing: ISIC_0000002\n  3 unreadable: ISIC_0000003, ISIC_0000005, ISIC_0000007\n" in out
    assert f"  1 not in {folder}/ISIC_2020_Test_Metadata.csv and not used: extra\n" in out


def test_images_that_the_csv_does_not_name_are_printed_and_no_fault(folder, monkeypatch, capsys):
    for i in range(7):
        (folder / "train" / f"extra{i}.jpg").symlink_to(folder / "train" / "ISIC_0000001.jpg")
    assert run_check(monkeypatch, folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "labels without an image: 0; images without a label: 7" in lines[2]
    assert lines[4] == "train_image: 10 images, 0 of them links"


def test_ctrl_c_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    read = []

    def stop_after_one(found, **_):
        yield next(found)
        raise Stopped(signal.SIGINT)

    def note(path, size):
        read.append(path)
        time.sleep(0.001)
        raise UnreadableImage(path, "cut")

    monkeypatch.setattr(check, "tqdm", stop_after_one)
    monkeypatch.setattr(cache, "decode_with_size", note)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(Stopped):
        unreadable_images({str(i): tmp_path / str(i) for i in range(2_000)})
    assert len(read) < 1_000


def run_check(monkeypatch: pytest.MonkeyPatch, folder: Path) -> object:
    tables = {
        "train-labels": "ISIC_2020_Training_GroundTruth.csv",
        "duplicates": "ISIC_2020_Training_Duplicates.csv",
        "test-labels": "ISIC_2020_Test_Metadata.csv",
    }
    flags = [f"--{flag}={folder / file}" for flag, file in tables.items()]
    flags += [f"--train-image={folder / 'train'}", f"--test-image={folder / 'test'}"]
    return run_dataset(monkeypatch, "--check", *flags)


def test_the_script_says_that_all_is_complete(folder, monkeypatch, capsys):
    assert run_check(monkeypatch, folder) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[2:] == [
        "  12 labels; labels without an image: 0; images without a label: 0",
        f"  duplicates dropped, by {folder}/ISIC_2020_Training_Duplicates.csv: 2",
        "train_image: 10 images, 0 of them links",
        "test_image: 4 images, 0 of them links",
        "all images are complete",
    ]
    assert err == ""


def test_the_script_counts_faults_of_both_folders(folder, monkeypatch, capsys):
    (folder / "train" / "ISIC_0000002.jpg").unlink()
    (folder / "test" / "ISIC_9000001.jpg").write_bytes(b"x")
    assert run_check(monkeypatch, folder) == 2
    out, err = capsys.readouterr()
    assert "  1 missing: ISIC_0000002\n" in out and "  1 unreadable: ISIC_9000001\n" in out
    assert err.count("\n") == 1
    assert "error: train_image: 1 missing; test_image: 1 unreadable: delete" in err


def test_without_test_images_the_training_ones_are_checked(folder, monkeypatch, capsys):
    (folder / "test").rename(folder / "elsewhere")
    assert run_check(monkeypatch, folder) == 0
    assert "test" not in capsys.readouterr().out.replace(str(folder), "")


@pytest.mark.skipif("LESION_DATA" not in os.environ, reason="LESION_DATA names no folder of photographs")
def test_real_photographs_are_whole():
    paths = find_images(Path(os.environ["LESION_DATA"], "originals"))
    assert unreadable_images(paths) == []
