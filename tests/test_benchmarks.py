"""The benchmarks of a step and of a GPU, as far as a machine without one can run them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
