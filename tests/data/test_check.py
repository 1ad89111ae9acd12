"""check.py: damage of every kind is found, named and counted."""

from __future__ import annotations

import io
import os
import random
import signal
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import data_site
from PIL import Image

import dataset
from melanoma.common.script import Stopped, run_script
from melanoma.data import check
from melanoma.data.archive import Recorded, read_record, unpack
from melanoma.data.check import CONTENTS, MISSING, SIZE, UNREADABLE, check_images, describe_check, image_fault
from melanoma.data.decoding import find_images


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
    """A downloaded set: train/*.jpg with their record, and its tables."""
    site = data_site(12, 4)
    for name, part in (("train_image", "train"), ("test_image", "test")):
        (tmp_path / "a.zip").write_bytes(site.files[name][1])
        unpack(tmp_path / "a.zip", tmp_path / part)
    (tmp_path / "a.zip").unlink()
    for name in ("train_labels", "duplicates", "test_labels"):
        path, body, _ = site.files[name]
        (tmp_path / path.rpartition("/")[2]).write_bytes(body)
    return tmp_path


def faults(folder: Path, recorded: bool = True) -> dict[str, list[str]]:
    record = read_record(folder / "train") if recorded else {}
    names = [f"ISIC_{i:07d}" for i in range(12)]
    return check_images(names, find_images(folder / "train"), record).faults


@pytest.mark.parametrize("kind", KINDS)
def test_whole_images_have_no_fault(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(KINDS[kind])
    assert image_fault(path, None) is None
    assert image_fault(path, Recorded(len(KINDS[kind]), zlib.crc32(KINDS[kind]))) is None


@pytest.mark.parametrize("kind", KINDS)
def test_images_cut_anywhere_are_found_without_a_record(tmp_path, kind):
    data = KINDS[kind]
    ends = [0, 1, 10, len(data) // 2, len(data) - 100, *random.Random(0).sample(range(len(data)), 10)]
    if kind != "png":  # after the last pixel a PNG has a mark that the decoder can do without
        ends += [len(data) - 2, len(data) - 1]
    for end in ends:
        (tmp_path / "a").write_bytes(data[:end])
        assert image_fault(tmp_path / "a", None) == UNREADABLE, end


def test_other_bytes_of_the_same_number_are_found_by_the_record(tmp_path):
    data = KINDS["jpeg"]
    recorded = Recorded(len(data), zlib.crc32(data))
    for at in random.Random(0).sample(range(len(data)), 20):
        changed = bytearray(data)
        changed[at] ^= 1
        (tmp_path / "a").write_bytes(changed)
        assert image_fault(tmp_path / "a", recorded) == CONTENTS


def test_a_whole_folder_has_no_fault(folder):
    assert faults(folder) == {}
    assert faults(folder, recorded=False) == {}


def test_each_fault_is_found_and_named(folder):
    train = folder / "train"
    (train / "ISIC_0000002.jpg").unlink()
    whole = (train / "ISIC_0000003.jpg").read_bytes()
    (train / "ISIC_0000003.jpg").write_bytes(whole[:-10])
    (train / "ISIC_0000005.jpg").write_bytes(bytes(len((train / "ISIC_0000005.jpg").read_bytes())))
    (train / "ISIC_0000007.jpg").write_bytes(b"")
    assert faults(folder) == {
        MISSING: ["ISIC_0000002"],
        SIZE: ["ISIC_0000003", "ISIC_0000007"],
        CONTENTS: ["ISIC_0000005"],
    }
    assert faults(folder, recorded=False) == {
        MISSING: ["ISIC_0000002"],
        UNREADABLE: ["ISIC_0000003", "ISIC_0000005", "ISIC_0000007"],
    }


def test_what_the_csv_does_not_name_is_told_and_no_fault(folder):
    (folder / "train" / "extra.jpg").write_bytes(KINDS["jpeg"])
    findings = check_images([], find_images(folder / "train"), {})
    assert findings.faults == {} and len(findings.unnamed) == 13 and findings.recorded == 0
    lines = describe_check(Path("train"), Path("t.csv"), findings)
    assert lines[0].startswith("train: 13 images, 0 of them with a recorded size (no manifest.csv")
    assert lines[1].startswith("  13 not named by t.csv, and not used: ISIC_0000000, ISIC_0000001, ")
    assert lines[1].endswith(" and 8 more")


def test_a_recorded_image_that_no_csv_names_is_missed_too(folder):
    (folder / "train" / "ISIC_0000002.jpg").unlink()
    findings = check_images([], find_images(folder / "train"), read_record(folder / "train"))
    assert findings.faults == {MISSING: ["ISIC_0000002"]}


def test_ctrl_c_does_not_wait_for_the_rest(tmp_path, monkeypatch):
    read = []

    def stop_after_one(found, **_):
        yield next(found)
        raise Stopped(signal.SIGINT)

    def note(path, recorded):
        read.append(path)
        time.sleep(0.001)

    monkeypatch.setattr(check, "tqdm", stop_after_one)
    monkeypatch.setattr(check, "image_fault", note)
    with pytest.raises(Stopped):
        check_images([], {str(i): tmp_path / str(i) for i in range(2_000)}, {}, workers=2)
    assert len(read) < 1_000


def run_check(folder: Path, *extra: str, monkeypatch: pytest.MonkeyPatch) -> object:
    tables = {
        "train-labels": "ISIC_2020_Training_GroundTruth.csv",
        "duplicates": "ISIC_2020_Training_Duplicates.csv",
        "test-labels": "ISIC_2020_Test_Metadata.csv",
    }
    flags = [f"--{flag}={folder / file}" for flag, file in tables.items()]
    flags += [f"--train-image={folder / 'train'}", f"--test-image={folder / 'test'}"]
    monkeypatch.setattr(sys, "argv", ["dataset.py", "--check", *flags, *extra])
    with pytest.raises(SystemExit) as stop:
        run_script(dataset.main)
    return stop.value.code


def test_the_script_says_that_all_is_whole(folder, monkeypatch, capsys):
    assert run_check(folder, monkeypatch=monkeypatch) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{folder}/train: 12 images, 12 of them with a recorded size",
        f"{folder}/test: 4 images, 4 of them with a recorded size",
        f"{folder}/ISIC_2020_Training_Duplicates.csv: 2 pairs, 0 of their images without a label",
        "all whole",
    ]
    assert err == ""


def test_the_script_counts_faults_of_both_folders(folder, monkeypatch, capsys):
    (folder / "train" / "ISIC_0000002.jpg").unlink()
    (folder / "test" / "ISIC_9000001.jpg").write_bytes(b"x")
    with (folder / "ISIC_2020_Training_Duplicates.csv").open("a") as file:
        file.write("ISIC_0000001,ISIC_7777777\r\n")
    assert run_check(folder, monkeypatch=monkeypatch) == 2
    out, err = capsys.readouterr()
    assert "  1 missing: ISIC_0000002\n" in out and f"  1 {SIZE}: ISIC_9000001\n" in out
    assert err.count("\n") == 1
    assert f"error: {folder}/train: 1 missing; {folder}/test: 1 {SIZE}; " in err
    assert "1 images that" in err


def test_without_test_images_the_training_ones_are_checked(folder, monkeypatch, capsys):
    (folder / "test").rename(folder / "elsewhere")
    assert run_check(folder, monkeypatch=monkeypatch) == 0
    assert "test" not in capsys.readouterr().out.replace(str(folder), "")


@pytest.mark.skipif("LESION_DATA" not in os.environ, reason="LESION_DATA names no folder of photographs")
def test_real_photographs_are_whole():
    paths = find_images(Path(os.environ["LESION_DATA"], "originals"))
    assert check_images(list(paths), paths, {}).faults == {}
