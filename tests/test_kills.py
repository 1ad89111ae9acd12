"""SIGKILL at random moments: what was whole stays whole, and the next run goes on from there.

Every process is a real one: a fork server that has imported the project starts it within milliseconds, so that the
moments fall into the work and not into the imports.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import everything
from endless import write_checkpoints
from PIL import Image
from tally import tally
from test_train import assert_same_run

import predict
import train
from config import Config
from melanoma.data.cache import build_cache
from melanoma.data.decoding import decode_image, find_images
from melanoma.training import run_folder

KILLS = {"cache build": 14, "training": 20, "checkpoint writing": 14, "prediction": 8}  # 56
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows knows no SIGKILL")]


@pytest.fixture(scope="module")
def server() -> Any:
    """A context that starts processes which have imported the project."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "predict", "torch._dynamo", "endless"])
    run(context, os.getpid)  # the server has imported the project before the first kill
    return context


def run(server: Any, work: Callable[..., object], *arguments: object) -> float:
    """Let a process do the work to its end; return the seconds it took."""
    start = time.monotonic()
    process = server.Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0
    return time.monotonic() - start


def kill(server: Any, seconds: float, work: Callable[..., object], *arguments: object) -> bool:
    """Start the work and kill it after so many seconds; return whether it was still at it."""
    process = server.Process(target=work, args=arguments)
    process.start()
    process.join(seconds)
    process.kill()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_killed_cache_build_goes_on_and_hands_out_only_whole_images(server: Any, tmp_path: Path) -> None:
    rng, moments = np.random.default_rng(0), random.Random(0)
    (tmp_path / "images").mkdir()
    for i in range(1200):
        pixels = rng.integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((280, 200)).save(tmp_path / "images" / f"{i:04}.jpg")
    paths = find_images(tmp_path / "images")
    names = list(paths)
    whole = run(server, build_cache, paths, 64, tmp_path / "whole", 2)

    kills = 0
    while kills < KILLS["cache build"]:
        if not kill(server, moments.uniform(0, whole), build_cache, paths, 64, tmp_path / "cache", 2):
            shutil.rmtree(tmp_path / "cache")  # it was done: start over
            continue
        kills += 1
        tally("SIGKILL in a cache build", "resumed")
        some = {name: paths[name] for name in moments.sample(names[: 100 * kills], 3)}
        cache = build_cache(some, 64, tmp_path / "cache", 2)
        for name, row in zip(some, cache.gather(cache.rows(some)), strict=True):
            assert np.array_equal(row, decode_image(paths[name], 64)), name
    resumed = build_cache(paths, 64, tmp_path / "cache", 2)
    straight = build_cache(paths, 64, tmp_path / "whole", 2)
    assert not resumed.errors
    assert np.array_equal(resumed.gather(resumed.rows(names)), straight.gather(straight.rows(names)))
    assert resumed.sources == straight.sources


def test_a_training_killed_again_and_again_equals_one_that_was_not(server: Any, quick: Config, tmp_path: Path) -> None:
    config, moments = everything(quick), random.Random(1)
    straight = dataclasses.replace(config, run_dir=tmp_path / "whole", graph_dir=tmp_path / "whole_graph")
    whole = run(server, train.main, straight)

    kills = 0
    while kills < KILLS["training"]:
        last = config.run_dir / "last.pt"
        if not kill(server, moments.uniform(0, whole), train.main, config, last.is_file()):
            assert_same_run(straight, config)
            shutil.rmtree(config.run_dir)  # it came to its end: start over
            continue
        kills += 1
        tally("SIGKILL in training", "resumed")
        for path in config.run_dir.glob("*.pt"):
            run_folder.load_checkpoint(path)
        for path in config.run_dir.glob("[!.]*.json*"):  # hidden ones are halves, which nothing reads
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(text)
    (config.run_dir / ".best.pt.1.tmp").write_text("half")  # as a kill may leave it
    train.main(config, resume=(config.run_dir / "last.pt").is_file())
    assert_same_run(straight, config)
    assert not list(config.run_dir.glob(".*.tmp"))
    ours, theirs = (torch.load(c.run_dir / "best.pt", weights_only=True)["model"] for c in (config, straight))
    assert all(torch.equal(weight, theirs[name]) for name, weight in ours.items())


def test_a_checkpoint_killed_in_writing_is_old_or_new(server: Any, tmp_path: Path) -> None:
    moments, path, halves = random.Random(2), tmp_path / "last.pt", 0
    for _ in range(KILLS["checkpoint writing"]):
        assert kill(server, moments.uniform(0.02, 0.3), write_checkpoints, path)
        tally("SIGKILL in writing a checkpoint", "old or new")
        halves += any(tmp_path.glob(".last.pt.*.tmp"))
        if path.is_file():
            contents = run_folder.load_checkpoint(path)
            assert bool((contents["weights"] == contents["number"]).all())
    assert path.is_file()
    assert halves  # some kills did come in the middle of a file


def results(config: Config) -> dict[str, Any]:
    """What predict.py left, each file whole: a table, JSON, pictures."""
    found: dict[str, Any] = {}
    for path in (*config.run_dir.glob("*.csv"), *config.run_dir.glob("metrics.json")):
        if path.suffix == ".csv":
            found[path.name] = pd.read_csv(path)
        else:
            own = json.loads(path.read_text())  # a killed evaluation has looked at the test part, and counts
            found[path.name] = {key: value for key, value in own.items() if key not in ("runs", "test_evaluations")}
    for path in config.graph_dir.glob("*.png"):
        with Image.open(path) as image:
            image.load()
        found[path.name] = path.read_bytes()
    return found


def test_a_killed_prediction_leaves_whole_files_and_is_done_again(server: Any, trained: Config, tmp_path: Path) -> None:
    moments = random.Random(3)
    straight, config = (
        dataclasses.replace(
            trained,
            run_dir=Path(shutil.copytree(trained.run_dir, tmp_path / name / "run")),
            graph_dir=tmp_path / name / "graph",
        )
        for name in ("whole", "killed")
    )
    whole = run(server, predict.main, straight)
    kills = 0
    while kills < KILLS["prediction"]:
        if kill(server, moments.uniform(0, whole), predict.main, config):
            kills += 1
            tally("SIGKILL in prediction", "done again")
        results(config)
    run(server, predict.main, config)
    expected, found = results(straight), results(config)
    assert set(found) == set(expected) and len(found) > 8
    for name, value in expected.items():
        if isinstance(value, pd.DataFrame):
            pd.testing.assert_frame_equal(found[name], value)
        else:
            assert found[name] == value, name
