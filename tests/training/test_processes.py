"""Two processes under torchrun train what one process trains."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from config import Config
from dataset import load_lesions, summarise
from melanoma.common.settings import to_dict

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def torchrun_command(config: Config, processes: int) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs train.py with these settings in several processes, and its environment."""
    settings = config.run_dir.with_name("settings.json")
    settings.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
    command += [str(ROOT / "train.py"), f"--config={settings}"]
    return command, {**os.environ, "OMP_NUM_THREADS": "1"}


def torchrun(config: Config, processes: int) -> subprocess.CompletedProcess[str]:
    """Run train.py with these settings in several processes."""
    command, environment = torchrun_command(config, processes)
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=180)


def losses(config: Config) -> list[list[float]]:
    lines = (config.run_dir / "log.jsonl").read_text().splitlines()
    return [[json.loads(line)[key] for key in ("train_loss", "val_loss", "val_auc")] for line in lines]


@pytest.mark.parametrize(
    "settings",
    [
        {"pairs": "independent"},
        {"pairs": "batch"},
        {
            "pairs": "batch",
            "head": "bce",
            "normalize": True,
            "hardest": 0.5,
            "ema": 0.5,
            "schedule": "cosine",
            "views": "wider",
        },
        {"pairs": "batch", "head": "bce", "normalize": True, "frozen_blocks": 1},
    ],
    ids=["independent", "batch", "everything", "frozen"],
)
def test_two_processes_reach_the_losses_of_one(quick: Config, settings: dict) -> None:
    n = summarise(load_lesions(quick), quick)["pairs_per_epoch"]
    # an odd number of images in a step, and a short last one
    size = n - 1 if settings["pairs"] == "independent" else 15
    one = dataclasses.replace(quick, **{"epochs": 2, "batch_size": size, **settings})
    two = dataclasses.replace(one, run_dir=quick.run_dir.with_name("two"))
    train.main(one)
    done = torchrun(two, 2)
    assert done.returncode == 0, done.stderr
    [first] = [line for line in done.stdout.splitlines() if "training on" in line]  # one process alone prints
    assert ", 2 processes" in first
    for alone, together in zip(losses(one), losses(two), strict=True):
        assert together == pytest.approx(alone, rel=1e-3, abs=1e-5)
    states = [torch.load(c.run_dir / "last.pt", weights_only=True) for c in (one, two)]
    first_trained = min(states[0]["optimizer"]["state"])
    gradients = [state["optimizer"]["state"][first_trained]["exp_avg"] for state in states]
    # of one size: Adam would hide a gradient that is twice too large
    assert gradients[1].norm() == pytest.approx(float(gradients[0].norm()), rel=0.1)
    weights = [torch.cat([part.flatten().float() for part in state["model"].values()]) for state in states]
    apart = (weights[1] - weights[0]).abs()
    # in steps of Adam at this learning rate: where a gradient is all but 0, rounding decides its sign
    assert (apart > one.learning_rate / 10).float().mean() < 1e-2  # 0.003 on one kind of CPU
    assert apart.max() < 10 * one.learning_rate  # 5 there: a sign may differ in several steps


def test_bad_input_is_said_once_by_several_processes(quick: Config) -> None:
    done = torchrun(dataclasses.replace(quick, train_labels=(Path("nowhere.csv"),)), 2)
    assert done.returncode != 0
    assert done.stderr.count("/nowhere.csv does not exist") == 1


def test_processes_whose_share_is_one_image_or_none_train_batch_normalisation(quick: Config) -> None:
    config = dataclasses.replace(quick, pairs="batch", backbone="resnet18", backbone_weights="none")
    n = summarise(load_lesions(config), config)["images_per_epoch"]
    # a last batch of three images, whose maps are of one pixel: a share of one is one value in each channel
    config = dataclasses.replace(config, batch_size=n - 3)
    for processes in (2, 4):
        own = dataclasses.replace(config, run_dir=quick.run_dir.with_name(str(processes)))
        done = torchrun(own, processes)
        assert done.returncode == 0, done.stderr
        assert len(losses(own)) == 1


ONE_FAILS = """
import os, sys
sys.path.insert(0, {root!r})
import train
from melanoma.common.errors import InputError
from melanoma.common.script import run_script
from melanoma.training.learner import Learner

take_step = Learner.take_step

def fail(learner, *arguments):
    if learner.taken == 2:
        raise InputError("the memory of the other GPU is too small")
    return take_step(learner, *arguments)

if os.environ["RANK"] == "1":
    Learner.take_step = fail
run_script(lambda: train.run(train.make_parser().parse_args()))
"""


def test_what_one_process_alone_meets_ends_all_of_them_with_its_line(quick: Config) -> None:
    command, environment = torchrun_command(dataclasses.replace(quick, epochs=1000), 2)
    script = quick.run_dir.with_name("one_fails.py")
    script.write_text(ONE_FAILS.format(root=str(ROOT)))
    command[command.index(str(ROOT / "train.py"))] = str(script)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode != 0
    assert done.stderr.count("error: the memory of the other GPU is too small") == 1
    assert "line" not in done.stderr.partition("error: ")[0]  # no traceback of the first one


def test_what_the_first_process_refuses_ends_all_of_them_with_one_line(quick: Config) -> None:
    done = torchrun(dataclasses.replace(quick, learning_rate=100.0, batch_size=256, epochs=2), 2)
    assert done.returncode != 0
    assert done.stderr.count("error: the training has diverged in epoch 1/2: ") == 1
    assert 'train.py", line' not in done.stderr  # no traceback of the other one
    assert not (quick.run_dir / "last.pt").exists()
