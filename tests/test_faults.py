"""Faults in long runs: signals, full disks, too little memory, a second run, a process that dies.

Signals and processes are real, and so are the small disks where a test may mount one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import build_network, everything
from tally import tally
from test_processes import losses, torchrun_command
from test_train import assert_same_run, last, log_of

import predict
import train
from config import Config
from melanoma.common.errors import InputError
from melanoma.common.script import Stopped
from melanoma.common.settings import to_dict
from melanoma.data import cache as images
from melanoma.data.cache import build_cache
from melanoma.data.decoding import decode_image, find_images
from melanoma.data.feed import Feed
from melanoma.report import graph_folder
from melanoma.scoring.embedding import embed_images
from melanoma.training import run_folder
from melanoma.training.learner import Learner
from modules import SiameseLoss, SiameseNetwork

ROOT = Path(__file__).parent.parent


def one_line(error: BaseException) -> str:
    message = str(error)
    assert "\n" not in message
    return message


# --- signals ---


@pytest.mark.parametrize(
    ("number", "moments"),
    [
        pytest.param(number, moments, marks=() if (number, moments) == (15, [3, 7]) else pytest.mark.slow)
        for number in (signal.SIGTERM, signal.SIGINT)
        for moments in ([1], [3, 7], [5], [2, 4, 10, 11, 12, 14])
    ],
    ids=str,
)
def test_a_signal_ends_the_step_and_the_run_goes_on_from_there(
    straight: Config, quick: Config, monkeypatch: pytest.MonkeyPatch, number: int, moments: list[int]
) -> None:
    """Send a signal to this process in the middle of the n-th step of the whole training, for each of the moments."""
    config, taken = everything(quick), 0
    steps = int(last(straight)["optimizer"]["state"][0]["step"]) // config.epochs
    assert steps == 5  # the moments are the first step, the last one of an epoch, and others
    real = Learner.take_step

    def take_step(self, *arguments):
        nonlocal taken
        taken += 1
        if taken in moments:
            os.kill(os.getpid(), number)
        return real(self, *arguments)

    monkeypatch.setattr(Learner, "take_step", take_step)
    for moment in moments:
        with pytest.raises(Stopped) as stopped:
            train.main(config, resume=moment != moments[0])
        assert taken == moment  # no step is taken twice
        epoch, step = divmod(moment - 1, steps)
        where = f"after step {step + 1} of {steps} of epoch" if step + 1 < steps else "after epoch"
        assert where in one_line(stopped.value) and "--resume goes on from there" in str(stopped.value)
        assert len(run_folder.load_checkpoint(config.run_dir / "last.pt")["log"]) == epoch + (step + 1 == steps)
        tally("signal in a training step", "resumed")
    train.main(config, resume=True)
    assert taken == 3 * steps
    assert_same_run(straight, config)


@pytest.mark.slow
def test_a_signal_while_validating_waits_for_the_end_of_the_epoch(
    straight: Config, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, real = everything(quick), train.validate
    seen: list[int] = []

    def validate(*arguments):
        seen.append(len(seen))
        if len(seen) != 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(train, "validate", validate)
    with pytest.raises(Stopped, match=r"saved after epoch 1/3; --resume goes on"):
        train.main(config)
    with pytest.raises(Stopped, match=r"saved after epoch 3/3; --resume writes model.pt"):
        train.main(config, resume=True)
    assert_same_run(straight, config)


def start(config: Config, *flags: str) -> subprocess.Popen[str]:
    """Start train.py with these settings as a user does, one thread."""
    settings = config.run_dir.with_name("settings.json")
    settings.write_text(json.dumps(to_dict(config)))
    command = [sys.executable, str(ROOT / "train.py"), f"--config={settings}", *flags]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def wait_for(process: subprocess.Popen[str], words: str) -> None:
    """Read a process's output up to a line that has these words."""
    assert process.stdout is not None
    for line in process.stdout:
        if words in line:
            return
    raise AssertionError(f"{words!r} never came: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_train_py_says_how_to_resume_and_exits_with_the_signals_code(
    quick: Config, tmp_path: Path, number: int, code: int
) -> None:
    config = dataclasses.replace(quick, epochs=40, batch_size=4)
    process = start(config)
    wait_for(process, "epoch   1/40")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.startswith(f"stopped by {signal.Signals(number).name}: saved after ")
    assert err.endswith("--resume goes on from there\n") and err.count("\n") == 1
    epochs = len(run_folder.load_checkpoint(config.run_dir / "last.pt")["log"]) + 1
    config = dataclasses.replace(config, epochs=epochs)  # at a constant rate that is no other experiment
    train.main(config, resume=True)
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    train.main(whole)
    assert_same_run(whole, config)
    tally("signal to train.py", "resumed")


@pytest.mark.parametrize(("file", "epoch"), [("last.pt", 1), ("best.pt", 1), ("best.pt", 2), ("log.jsonl", 3)])
def test_a_kill_before_any_file_of_an_epoch_is_written_loses_nothing(
    straight: Config, quick: Config, monkeypatch: pytest.MonkeyPatch, file: str, epoch: int
) -> None:
    config, replace_file = everything(quick), os.replace
    monkeypatch.setattr(run_folder, "best_entry", lambda log: log[-1])  # each epoch writes best.pt
    saved = 0

    def die(source: Path, target: Path) -> None:
        nonlocal saved
        saved += Path(target) == config.run_dir / file
        if saved == epoch:
            raise SystemExit
        replace_file(source, target)

    with monkeypatch.context() as until, pytest.raises(SystemExit):
        until.setattr(os, "replace", die)
        train.main(config)
    train.main(config, resume=(config.run_dir / "last.pt").is_file())
    assert_same_run(straight, config)
    assert run_folder.load_checkpoint(config.run_dir / "best.pt")["log"][-1]["epoch"] == config.epochs


# --- a second run ---


@pytest.mark.slow
def test_a_second_training_in_one_folder_is_refused_until_the_first_is_gone(quick: Config) -> None:
    config = dataclasses.replace(quick, epochs=1000)
    process = start(config)
    try:
        wait_for(process, "epoch   2/1000")  # an epoch is saved while the next one is trained
        ways: list[dict[str, Any]] = [{"resume": True}, {"overwrite": True}, {}]
        for settings in ways:
            with pytest.raises(InputError, match=r"is being written to by another training: wait for") as caught:
                train.main(config, **settings)
            one_line(caught.value)
            tally("second run in a folder", "refused")
    finally:
        process.kill()
        process.communicate()
    done = len(run_folder.load_checkpoint(config.run_dir / "last.pt")["log"])
    train.main(dataclasses.replace(config, epochs=done + 1), resume=True)
    assert len(log_of(config)) == done + 1


# --- full disks ---


class Disk:
    """A disk of a few megabytes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fill(self) -> None:
        """Leave no room at all."""
        with (self.path / "filler").open("ab", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                try:
                    while True:
                        file.write(b"\0" * size)
                except OSError:
                    pass

    def free(self) -> None:
        (self.path / "filler").unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 24 MB of its own; skips where a test may not mount one."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    command = [mount or "", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(path)]
    if not mount or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill_before(monkeypatch: pytest.MonkeyPatch, disk: Disk, module: object, name: str, call: int) -> None:
    """Fill the disk just before the n-th call of a function."""
    real: Callable = getattr(module, name)
    calls = 0

    def filled(*arguments, **settings):
        nonlocal calls
        calls += 1
        if calls == call:
            disk.fill()
        return real(*arguments, **settings)

    monkeypatch.setattr(module, name, filled)


NO_SPACE = r" cannot be written: No space left"
WRITES = {
    "checkpoint, the best": (run_folder, "save_checkpoint", 2, r"run/best\.pt" + NO_SPACE),
    "checkpoint, the last": (run_folder, "save_checkpoint", 3, r"run/last\.pt" + NO_SPACE),
    "log": (run_folder, "write_log", 2, r"run/log\.jsonl" + NO_SPACE),
    "graph": (train, "save_figure", 2, r"Train_average_loss\.png" + NO_SPACE),
}


@pytest.mark.parametrize("what", ["log", *(pytest.param(w, marks=pytest.mark.slow) for w in WRITES if w != "log")])
def test_a_training_on_a_full_disk_keeps_what_it_has_and_goes_on(
    quick: Config, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    whole = dataclasses.replace(quick, epochs=3)
    train.main(whole)
    assert run_folder.best_entry(log_of(whole))["epoch"] == 1  # the checkpoints: last, best, last, last
    config = dataclasses.replace(whole, run_dir=disk.path / "run", graph_dir=disk.path / "graph")
    module, name, call, message = WRITES[what]
    with monkeypatch.context() as patch:
        patch.setattr(train, "PLOT_EVERY", 0.0)
        fill_before(patch, disk, module, name, call)
        with pytest.raises(InputError, match=message) as caught:
            train.main(config)
    one_line(caught.value)
    assert not list(disk.path.rglob("*.tmp"))
    kept = 1 if what.startswith("checkpoint") else 2
    assert len(run_folder.load_checkpoint(config.run_dir / "last.pt")["log"]) == kept
    with pytest.raises(InputError, match="cannot be written: No space left"):
        train.main(config, resume=True)  # still full
    disk.free()
    train.main(config, resume=True)
    assert_same_run(whole, config)
    tally(f"disk full: {what.partition(',')[0]}", "resumed")


def test_a_cache_on_a_full_disk_keeps_its_rows_and_goes_on(
    lesion_folder: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = find_images(lesion_folder / "train")
    with pytest.raises(InputError, match=r"GB free, .* GB are needed: free some space or pass --cache-dir"):
        build_cache(paths, 64, disk.path)  # looked at before anything is decoded
    tally("disk full: cache", "refused beforehand")
    monkeypatch.setattr(images, "SPARE_BYTES", -(2**40))
    monkeypatch.setattr(images, "COMMIT_ROWS", 10)
    fill_before(monkeypatch, disk, images, "_commit", 6)  # one for the header, two for each ten rows
    with pytest.raises(InputError, match=r"cannot be written: No space left on device") as caught:
        build_cache(paths, 64, disk.path)
    one_line(caught.value)
    disk.free()
    decoded = []
    real = images.decode_with_size

    def note(path: Path, size: int) -> tuple[np.ndarray, tuple[int, int]]:
        decoded.append(path)
        return real(path, size)

    monkeypatch.setattr(images, "decode_with_size", note)
    cache = build_cache(paths, 64, disk.path)
    assert len(decoded) == 40  # of 60: twice ten rows were whole
    monkeypatch.setattr(images, "decode_with_size", real)
    for name, row in zip(paths, cache.gather(cache.rows(paths)), strict=True):
        assert np.array_equal(row, decode_image(paths[name], 64)), name
    tally("disk full: cache", "resumed")


@pytest.mark.slow
def test_a_prediction_on_a_full_disk_keeps_what_it_has(
    trained: Config, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = Path(shutil.copytree(trained.run_dir, disk.path / "run"))
    config = dataclasses.replace(trained, run_dir=run_dir, graph_dir=disk.path / "graph")
    disk.fill()
    with pytest.raises(InputError, match=r"predictions\.csv cannot be written: No space left on device"):
        predict.main(config)
    tally("disk full: predictions", "clean error")
    disk.free()
    with monkeypatch.context() as patch:
        fill_before(patch, disk, graph_folder, "save_figure", 3)
        with pytest.raises(InputError, match=r"graph/\w+\.png cannot be written: No space left on device"):
            predict.main(config)
    assert len(list(config.graph_dir.iterdir())) == 2  # figures, whole
    assert json.loads((run_dir / "metrics.json").read_text())["auc"] == 1.0
    assert len((run_dir / "predictions.csv").read_text().splitlines()) == 13
    tally("disk full: graph", "figures so far kept")


# --- numbers that are no numbers ---


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(quick, epochs=3)
    train.main(dataclasses.replace(quick, epochs=1))
    good = {name: (config.run_dir / name).read_bytes() for name in ("last.pt", "best.pt", "log.jsonl")}
    real = SiameseLoss.__call__

    def call(self, *arguments, **named):
        loss, measures = real(self, *arguments, **named)
        return loss * float("nan"), measures

    monkeypatch.setattr(SiameseLoss, "__call__", call)
    with pytest.raises(InputError, match=r"not finite in epoch 2/3, step \d+, learning rate 0\.001: ") as caught:
        train.main(config, resume=True)
    one_line(caught.value)
    assert good == {name: (config.run_dir / name).read_bytes() for name in good}
    tally("loss not finite", "last checkpoint kept")


# --- too little memory ---


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let the network run out of memory for more images than a limit, as CUDA does."""

    def limit(most: int) -> None:
        real = SiameseNetwork.embed

        def embed(self, images):
            if len(images) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return real(self, images)

        monkeypatch.setattr(SiameseNetwork, "embed", embed)

    return limit


def test_too_large_a_batch_says_what_to_try(quick: Config, small_memory: Callable) -> None:
    small_memory(31)
    with pytest.raises(InputError) as caught:
        train.main(dataclasses.replace(quick, batch_size=16))
    assert one_line(caught.value) == (
        "the memory of cpu is too small for 32 images of 32 px in step 1: try --batch-size 8; the last checkpoint is "
        "kept"
    )
    tally("out of memory", "clean error")


def test_an_optimizer_that_does_not_fit_is_a_small_memory_too(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self, *arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises(InputError, match="too small for 32 images of 32 px in step 1"):
        train.main(quick)
    tally("out of memory", "clean error")


def test_other_errors_of_torch_are_not_taken_for_a_small_memory(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def embed(self, images):
        raise RuntimeError("a bug")

    monkeypatch.setattr(SiameseNetwork, "embed", embed)
    with pytest.raises(RuntimeError, match="a bug"):
        train.main(quick)


def test_images_that_do_not_fit_at_once_are_embedded_in_smaller_batches(quick: Config, small_memory: Callable) -> None:
    cache = build_cache(find_images(quick.train_image), 32, quick.cache_dir)
    network = build_network("conv3", 32, 8)
    rows = np.arange(60)
    expected, _ = embed_images(network, Feed(cache, torch.device("cpu")), rows, torch.float32)
    small_memory(20)
    found, _ = embed_images(network, Feed(cache, torch.device("cpu")), rows, torch.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    small_memory(0)
    with pytest.raises(InputError, match="too small for one image: pass --device cpu"):
        embed_images(network, Feed(cache, torch.device("cpu")), rows, torch.float32)
    tally("out of memory", "smaller batches to embed")


LITTLE_MEMORY = """
import json, resource, sys
import train
from config import Config
from melanoma.common.script import run_script
from melanoma.common.settings import from_dict
import torch
torch.nn.Linear(2, 2)(torch.ones(2, 2)).sum().backward()  # starts its threads
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 2**20,) * 2)
run_script(lambda: train.main(from_dict(Config, json.load(open(sys.argv[1])), "")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_the_cpus_own_lack_of_memory_is_one_line(quick: Config) -> None:
    config = dataclasses.replace(quick, image_size=512, batch_size=512)
    settings = config.run_dir.with_name("settings.json")
    settings.write_text(json.dumps(to_dict(config)))
    done = subprocess.run(
        [sys.executable, "-c", LITTLE_MEMORY, str(settings), "1000"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: the memory of cpu is too small for 112 images of 512 px")
    tally("out of memory", "clean error")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_that_is_too_small_is_one_line(quick: Config) -> None:
    network: dict[str, Any] = {"backbone": "mobilenetv2_100", "backbone_weights": "none", "frozen_blocks": 1}
    config = dataclasses.replace(quick, device="cuda", image_size=512, batch_size=64, **network)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2 * 2**30 / torch.cuda.get_device_properties(0).total_memory)
    try:
        with pytest.raises(InputError, match="the memory of cuda:0 is too small for"):
            train.main(config)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- a process that dies ---


def children(pid: int) -> list[int]:
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_one_of_two_processes_dies_the_training_ends_and_can_be_resumed(
    quick: Config, tmp_path: Path, number: int
) -> None:
    """SIGKILL takes one of the processes, SIGTERM goes to torchrun, which hands it on to all."""
    config = dataclasses.replace(quick, epochs=400, batch_size=4, ema=0.5)
    command, environment = torchrun_command(config, 2)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    wait_for(process, "epoch   3/400")  # the second one is saved
    since = time.monotonic()
    if number == signal.SIGKILL:
        os.kill(children(process.pid)[1], number)
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert time.monotonic() - since < 15  # torchrun alone would wait half a minute
    assert process.returncode not in (0, None)
    assert 'train.py", line' not in err  # no traceback of the one that is left
    state = run_folder.load_checkpoint(config.run_dir / "last.pt")
    done = len(state["log"])
    assert done >= 2
    if number == signal.SIGTERM:
        assert "stopped by SIGTERM: saved after " in err
    config, whole = (dataclasses.replace(c, epochs=done + 1) for c in (config, config))
    whole = dataclasses.replace(whole, run_dir=tmp_path / "whole")
    train.main(config, resume=True)
    train.main(whole)
    for straight, resumed in zip(losses(whole), losses(config), strict=True):
        assert resumed == pytest.approx(straight, rel=2e-2, abs=1e-3)
    tally("process of two dies" if number == signal.SIGKILL else "signal to torchrun", "resumed")
