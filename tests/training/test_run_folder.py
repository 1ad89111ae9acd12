"""The run folder: files are whole, foreign files do no harm, and a run goes on only as itself."""

import copy
import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from bad_input import Command
from conftest import names, refusal
from torch import nn

from config import Config
from melanoma.common.errors import InputError
from melanoma.common.settings import experiment, from_dict, to_dict
from melanoma.training import run_folder
from melanoma.training.learner import Learner
from melanoma.training.run_folder import load_checkpoint, lock_run, read_split, resume_run, save_checkpoint, write_log


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(run_dir=tmp_path / "runs" / "one", recipe="baseline", epochs=3)


@pytest.fixture
def table() -> pd.DataFrame:
    """Names and patients that a careless reader takes for numbers or for nothing."""
    return pd.DataFrame(
        {
            "image_name": ["001", "1e5", "01", "7", "0", "1"],
            "patient_id": ["NA", "nan", "IP_1", "", "007", "ü, 'quoted'"],
            "source": "1",
            "group": ["NA", "nan", "IP_1", "image:7", "007", "ü, 'quoted'"],
            "label": [0, 1, 0, 1, 0, 1],
            "part": ["train", "train", "validation", "validation", "test", "test"],
            "path": "not stored",
        }
    )


def save_run(config: Config, epoch: int = 1, **contents: object) -> None:
    """A run folder as train.py leaves it after an epoch."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    contents = {"config": experiment(config), "log": [], "epoch": epoch, **contents}
    save_checkpoint(config.run_dir / "last.pt", contents)


def start(config: Config, table: pd.DataFrame, device: str, resumed: bool) -> None:
    run_folder.write_start(config.run_dir, to_dict(config), table, device, resumed)


def check(config: Config, resume: bool, overwrite: bool) -> None:
    run_folder.check_run_dir(config.run_dir, experiment(config), resume, overwrite)


# --- checkpoints ---


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    contents: dict[str, Any] = {
        "model": {"weight": torch.arange(6.0).view(2, 3), "steps": torch.tensor(7)},
        "config": {"margin": 0.5, "backbone": "conv3", "normalize": True, "duplicates": None},
        "losses": [0.25, 0.125],
    }
    save_checkpoint(tmp_path / "a.pt", contents)
    loaded = load_checkpoint(tmp_path / "a.pt")
    model = loaded.pop("model")
    assert loaded == {"format": run_folder.FORMAT, "config": contents["config"], "losses": [0.25, 0.125]}
    assert list(model) == ["weight", "steps"]
    for name, value in contents["model"].items():
        assert model[name].dtype == value.dtype
        assert torch.equal(model[name], value)


def write_plain_pickle(path: Path, proof: Path) -> None:
    path.write_bytes(pickle.dumps({"format": 1, "model": Command(proof)}, protocol=2))


def write_torch_pickle(path: Path, proof: Path) -> None:
    torch.save({"format": 1, "model": Command(proof)}, path)


@pytest.mark.parametrize("write", [write_plain_pickle, write_torch_pickle])
def test_a_checkpoint_that_would_run_code_is_refused_unrun(tmp_path, write):
    proof = tmp_path / "ran"
    write(tmp_path / "evil.pt", proof)
    message = refusal(load_checkpoint, tmp_path / "evil.pt")
    assert not proof.exists()
    assert "evil.pt" in message
    assert "weights_only" not in message  # torch's own text tells how to run it after all


def truncated(path: Path) -> None:
    save_checkpoint(path, {"model": {"weight": torch.zeros(1000)}})
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "write",
    [
        truncated,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("hello, no checkpoint"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"model": {}}, path),
        lambda path: torch.save({"format": run_folder.FORMAT + 1}, path),
        lambda path: torch.save({"format": run_folder.FORMAT - 1}, path),
    ],
    ids=["truncated", "empty", "text", "list", "without format", "later format", "earlier format"],
)
def test_what_is_no_checkpoint_is_refused_with_what_to_do(tmp_path, write):
    write(tmp_path / "a.pt")
    message = refusal(load_checkpoint, tmp_path / "a.pt")
    assert str(tmp_path / "a.pt") in message
    assert "train" in message.replace(str(tmp_path), "")


def test_a_checkpoint_that_is_not_there_is_said_to_be_so(tmp_path):
    message = refusal(load_checkpoint, tmp_path / "a.pt")
    assert message.startswith(f"there is no checkpoint {tmp_path / 'a.pt'}: run train.py")


# --- taking a checkpoint up ---


def stepped(ema: float = 0.0, seed: int = 0) -> Learner:
    """A learner of a small network that has taken a step."""
    torch.manual_seed(seed)
    learner = Learner(nn.Sequential(nn.Linear(3, 2)), 1, 0.1, ema=ema)
    for _ in range(2):
        learner._update(learner.network(torch.ones(1, 3)).sum())
    return learner


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_learner_goes_on_from_a_checkpoint(ema):
    learner, fresh = stepped(ema), stepped(ema, seed=1)
    fresh.resume({"model": learner.kept.state_dict(), **copy.deepcopy(learner.state())}, Path("last.pt"))
    fresh.taken = learner.taken
    for each in (learner, fresh):
        each._update(each.network(torch.ones(1, 3)).sum())
    for name, value in learner.network.state_dict().items():
        assert torch.equal(fresh.network.state_dict()[name], value)
        assert torch.equal(fresh.kept.state_dict()[name], learner.kept.state_dict()[name])


@pytest.mark.parametrize(
    "change",
    [{"model": {"0.weight": torch.zeros(4, 3), "0.bias": torch.zeros(4)}}, {"model": {}}, {"optimizer": None}],
    ids=["shape", "names", "optimizer"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_what_to_do(change):
    learner = stepped()
    contents = {"model": learner.kept.state_dict(), **learner.state(), **change}
    message = refusal(learner.resume, contents, Path("runs/last.pt"))
    assert message == "checkpoint runs/last.pt does not fit its own settings: train again or pass another --run-dir"


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_as_the_device_computes_it(fused):
    """A checkpoint of a device that has AdamW in one piece is taken up by one that has not, and the reverse."""
    learner, other = stepped(), stepped()
    learner.optimizer.param_groups[0]["fused"] = not fused
    other.optimizer.param_groups[0]["fused"] = fused
    other.resume({"model": learner.kept.state_dict(), **learner.state()}, Path("last.pt"))
    assert all(group["fused"] is fused for group in other.optimizer.param_groups)


# --- starting and resuming ---


def test_a_new_run_starts_in_a_folder_that_is_not_there_yet(config):
    check(config, resume=False, overwrite=False)


def test_a_run_killed_before_its_first_checkpoint_starts_over(config, table):
    start(config, table, "CPU", resumed=False)
    check(config, resume=False, overwrite=False)


def test_resuming_needs_a_run(config):
    assert "last.pt" in refusal(check, config, True, False)


def test_a_run_is_not_replaced_unasked(config):
    save_run(config)
    message = refusal(check, config, False, False)
    assert all(flag in message for flag in (str(config.run_dir), "--resume", "--overwrite", "--run-dir"))
    check(config, resume=False, overwrite=True)


def test_a_run_is_resumed_as_the_same_experiment(config):
    save_run(config)
    check(config, resume=True, overwrite=False)
    check(dataclasses.replace(config, epochs=30, device="cpu", workers=2), resume=True, overwrite=False)


def test_a_run_cannot_be_resumed_for_fewer_epochs_than_it_has(config):
    save_run(config)
    last = config.run_dir / "last.pt"
    log = [{"epoch": i, "train_loss": 1.0, "val_loss": 1.0, "val_auc": 0.5} for i in (1, 2, 3)]
    save_checkpoint(last, {**load_checkpoint(last), "log": log})
    message = refusal(check, dataclasses.replace(config, epochs=2), True, False)
    assert message.endswith("has been trained for 3 epochs: pass --epochs 3 or more")
    check(dataclasses.replace(config, epochs=3), resume=True, overwrite=False)


def test_another_experiment_is_not_resumed_and_the_message_names_what_differs(config):
    save_run(config)
    other = dataclasses.replace(config, margin=0.75, batch_size=64, epochs=30, workers=2)
    message = refusal(check, other, True, False)
    assert "margin 0.5 there, 0.75 asked for" in message
    assert "batch_size 256 there, 64 asked for" in message
    assert not any(name in message for name in ("epochs", "workers", "learning_rate"))


def test_epochs_may_not_grow_where_the_learning_rate_depends_on_their_number(config):
    config = dataclasses.replace(config, schedule="cosine")
    save_run(config)
    check(config, resume=True, overwrite=False)
    message = refusal(check, dataclasses.replace(config, epochs=30), True, False)
    assert "another experiment: epochs 3 there, 30 asked for" in message


def test_a_broken_checkpoint_is_not_resumed(config):
    config.run_dir.mkdir(parents=True)
    (config.run_dir / "last.pt").write_text("half")
    assert "last.pt" in refusal(check, config, True, False)


def test_a_start_writes_what_explains_the_run(config, table, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--epochs", "3"])
    start(config, table, "CPU (2 threads), float32", resumed=False)
    assert names(config.run_dir) == ["config.json", "run.json", "split.csv"]
    assert from_dict(Config, json.loads((config.run_dir / "config.json").read_text()), "config.json") == config
    [run] = json.loads((config.run_dir / "run.json").read_text())
    assert run["command"] == "train.py --epochs 3"
    assert run["device"] == "CPU (2 threads), float32"
    assert torch.__version__.partition("+")[0] == run["versions"]["torch"].partition("+")[0]
    assert run["python"] == ".".join(map(str, sys.version_info[:3]))
    assert pd.Timestamp(run["started"]).tzinfo is not None


@pytest.mark.parametrize(
    "name",
    [
        "last.pt",
        "best.pt",
        "log.jsonl",
        "predictions.csv",
        "metrics.json",
        "evaluate_predictions.csv",
        "evaluate_metrics.json",
    ],
)
def test_a_start_clears_what_an_earlier_run_left(config, table, name):
    config.run_dir.mkdir(parents=True)
    (config.run_dir / name).write_text("of an earlier run")
    (config.run_dir / "notes.txt").write_text("mine")
    start(config, table, "CPU", resumed=False)
    assert names(config.run_dir) == ["config.json", "notes.txt", "run.json", "split.csv"]


def test_resume_gives_the_last_checkpoint_and_takes_the_new_number_of_epochs(config, table):
    start(config, table, "CPU", resumed=False)
    save_run(config, epoch=2)
    longer = dataclasses.replace(config, epochs=9)
    assert resume_run(longer.run_dir, table)["epoch"] == 2
    start(longer, table, "GPU", resumed=True)
    assert (config.run_dir / "last.pt").is_file()
    runs = json.loads((config.run_dir / "run.json").read_text())
    assert [run["device"] for run in runs] == ["CPU", "GPU"]
    assert json.loads((config.run_dir / "config.json").read_text())["epochs"] == 9


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.iloc[:-1],
        lambda table: table.assign(label=[1, 1, 0, 1, 0, 1]),
        lambda table: table.assign(part=["test", *table["part"][1:]]),
        lambda table: table.assign(patient_id=["other", *table["patient_id"][1:]]),
        lambda table: table.assign(image_name=["other", *table["image_name"][1:]]),
        lambda table: table.iloc[::-1].reset_index(drop=True),
    ],
    ids=["image gone", "label", "part", "patient", "name", "order"],
)
def test_resume_refuses_changed_data(config, table, change):
    start(config, table, "CPU", resumed=False)
    save_run(config)
    assert "split.csv" in refusal(resume_run, config.run_dir, change(table))


# --- split and log ---


def test_split_comes_back_as_it_was_stored(config, table):
    start(config, table, "CPU", resumed=False)
    stored = read_split(config.run_dir)
    columns = ["image_name", "source", "patient_id", "group", "label", "part"]
    assert stored.columns.tolist() == columns
    assert stored.values.tolist() == table[columns].values.tolist()
    assert stored["label"].dtype == int


def test_a_split_that_is_not_there_or_of_other_columns_is_refused(tmp_path):
    assert "run train.py first" in refusal(read_split, tmp_path)
    (tmp_path / "split.csv").write_text("image_name,label,part\na,1,train\n")
    assert "split.csv is damaged" in refusal(read_split, tmp_path)


ENTRIES = [{"epoch": epoch, "val_auc": 0.5 + epoch / 10} for epoch in (1, 2, 3)]


def test_log_has_one_json_object_a_line(tmp_path):
    write_log(tmp_path / "log.jsonl", ENTRIES)
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == ENTRIES


# --- commit ---


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_commit_is_stored_and_marked_where_the_work_tree_differs(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "melanoma" / "training" / "run_folder.py"))

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert run_folder._commit() is None
    git("init")
    (tmp_path / "checkpoint.py").write_text("# first\n")
    (tmp_path / "config.py").write_text("# first\n")
    git("add", ".")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert run_folder._commit() == commit
    (tmp_path / "config.py").write_text("# second\n")  # the settings are recorded by themselves
    assert run_folder._commit() == commit
    (tmp_path / "checkpoint.py").write_text("# second\n")
    assert run_folder._commit() == commit + "+dirty"


def test_a_lock_that_cannot_be_held_is_one_line(config):
    (config.run_dir / "lock").mkdir(parents=True)
    with pytest.raises(InputError, match=r"runs/one cannot be written: Is a directory"), lock_run(config.run_dir):
        pytest.fail("it was held")


def test_a_damaged_list_of_evaluations_is_kept_and_named(tmp_path):
    path = tmp_path / "evaluations.jsonl"
    path.write_text('{"scorer": null}\n{"sco')
    assert refusal(run_folder.count_evaluation, tmp_path, {}) == f"{path} is damaged: restore or remove it"
    assert path.read_text() == '{"scorer": null}\n{"sco'
