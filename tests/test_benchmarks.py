"""The benchmarks that have logic of their own, as far as a machine without a GPU can run them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dataset
from config import Config
from melanoma.data.cache import build_cache
from melanoma.training.run_folder import load_checkpoint, save_checkpoint

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def output_of(name: str, *flags: str) -> list[str]:
    command = [sys.executable, str(BENCHMARKS / name), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_step_of_each_recipe_is_counted():
    """Which runs each on the device "meta", where a wait for the device is an error."""
    head, *rows = output_of("step.py", "--hardest", "0.5")
    assert head.split() == ["recipe", "operations", "uploads", "GB", "Gflop"]
    assert [row.split()[0] for row in rows] == ["baseline", "scratch", "strong"]
    assert all(float(number) > 1 for row in rows for number in row.split()[1:])
    gflop = float(rows[0].split()[-1])
    # 512 images of 128 px: a product and a sum for each weight at each place, forward and twice backward, where the
    # first convolution has no gradient for its input
    places, weights = (128**2, 64**2, 32**2), (3 * 16 * 9, 16 * 32 * 9, 32 * 64 * 9)
    layers = [2 * p * w * (2 if w == weights[0] else 3) for p, w in zip(places, weights, strict=True)]
    layers += [6 * 64 * 16**2 * 512, 6 * 512 * 128]
    assert gflop == pytest.approx(512 * sum(layers) / 1e9, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a card")
def test_without_a_card_its_benchmark_says_so_in_one_line():
    assert output_of("gpu.py") == ["no CUDA card here: nothing measured"]


@pytest.mark.slow
def test_the_benchmark_of_a_card_prints_its_table():
    flags = ("--device", "cpu", "--images", "120", "--seconds", "0.1", "--rows", "1")
    lines = output_of("gpu.py", *flags)
    [row] = [line for line in lines if line.startswith("baseline ")]
    first, epoch, rate, *_ = (float(number.replace(",", "")) for number in row.split()[1:])
    assert 0 < epoch <= first and rate > 1
    assert any(re.fullmatch(r"mean loss of .*; twice with --deterministic: the same bits", line) for line in lines)


def test_the_ablation_judges_the_last_epoch(trained, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ablation

    run_dir = shutil.copytree(trained.run_dir, tmp_path / "run")
    last = load_checkpoint(run_dir / "last.pt")
    blank = {name: torch.zeros_like(values) for name, values in last["model"].items()}
    save_checkpoint(run_dir / "last.pt", {**last, "model": blank})
    monkeypatch.setattr(ablation.train, "main", lambda *_, **__: None)  # the run is there
    figures = ablation.measure(dataclasses.replace(trained, run_dir=run_dir), contextlib.nullcontext)
    assert figures["auc"] == 0.5


def test_the_learning_curve_leaves_out_training_groups_alone(lesion_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import learning_curve

    def parts_of(share):
        with learning_curve.training_share(share):
            table, _ = dataset.join_equal_pictures(lesions, cache, config)
        return {part: set(own["group"]) for part, own in table.groupby("part")}, table

    config = Config(train_image=lesion_folder / "train", train_labels=lesion_folder / "train.csv", image_size=32)
    lesions = dataset.load_lesions(config)
    cache = build_cache(lesions.paths, 32, tmp_path / "cache")
    (whole, _), (half, table), (quarter, _) = map(parts_of, (1.0, 0.5, 0.25))
    assert quarter["train"] < half["train"] < whole["train"]
    assert len(half["train"]) == math.ceil(len(whole["train"]) / 2)
    assert all(half[part] == quarter[part] == whole[part] for part in ("validation", "test"))
    assert list(table.index) == list(range(len(table)))


def test_the_learning_curve_prints_a_row_for_each_share(lesion_folder, tmp_path):
    flags = ["--train-image", lesion_folder / "train", "--train-labels", lesion_folder / "train.csv"]
    flags += ["--recipe", "demo", "--shares", 0.5, 1, "--folds", 0, 1, 2, "--work", tmp_path, "--cache-dir", tmp_path]
    *_, head, _, half, whole = output_of("learning_curve.py", *map(str, flags))
    assert head == "| share | images | melanoma | all |"
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (half, whole)]
    assert [row[0] for row in cells] == ["0.5", "1"]
    assert 0 < 2 * int(cells[0][1]) <= int(cells[1][1]) + 2
    assert all(re.fullmatch(r"[01]\.\d{3} \(.* to .*\)", row[3]) for row in cells)
