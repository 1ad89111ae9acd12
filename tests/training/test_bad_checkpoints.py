"""Run folders in every state: what is damaged or foreign is refused by name, and nothing in a file runs."""

import io
import os
import pickle
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import EVIL, REFUSED, attempt, cases, no_files, refusal
from conftest import build_network, quick_config
from hypothesis import given
from hypothesis import strategies as st
from tally import tally
from torch import nn

import predict
import train
from config import Config
from melanoma.backbones import TimmBackbone
from melanoma.common.settings import experiment, to_dict
from melanoma.training import run_folder
from melanoma.training.run_folder import (
    check_run_dir,
    load_checkpoint,
    read_log,
    read_starts,
    save_checkpoint,
    write_start,
)
from predict import load_run

KIND = "bad checkpoint"
FILES = "bad run folder"


class Runs:
    """An object whose unpickling runs a command."""

    def __init__(self, proof: Path, how: str) -> None:
        self.proof, self.how = proof, how

    def __reduce__(self) -> tuple:
        if self.how == "mkdir":
            return os.mkdir, (str(self.proof),)
        if self.how == "system":
            return os.system, (f"touch '{self.proof}'",)
        return exec, (f"open({str(self.proof)!r}, 'w').close()",)


def small(**more: Any) -> dict[str, Any]:
    return {"config": experiment(Config()), "log": [], "model": nn.Linear(3, 2).state_dict(), **more}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


# --- nothing runs ---


def legacy_tar(path: Path, content: Any) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content, protocol=2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def beside_a_good_pickle(path: Path, content: Any) -> None:
    """A checkpoint with further members, one of them a pickle."""
    save_checkpoint(path, small())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/evil.pkl", pickle.dumps(content))


def in_place_of_the_pickle(path: Path, content: Any) -> None:
    save_checkpoint(path, small())
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, pickle.dumps(content, protocol=2) if name.endswith("data.pkl") else data)


CARRIERS = {
    "plain pickle": lambda path, content: path.write_bytes(pickle.dumps({"format": 2, "config": {}, "x": content})),
    "old pickle": lambda path, content: path.write_bytes(pickle.dumps(content, protocol=0)),
    "torch zip": lambda path, content: torch.save({"format": 2, "config": {}, "model": content}, path),
    "torch legacy": lambda path, content: torch.save([content], path, _use_new_zipfile_serialization=False),
    "tar": legacy_tar,
    "in place of the pickle": in_place_of_the_pickle,
}


@pytest.mark.parametrize("carrier", CARRIERS.values(), ids=CARRIERS)
@pytest.mark.parametrize("how", ["mkdir", "system", "exec"])
def test_a_file_that_would_run_code_is_refused_unrun(tmp_path, carrier, how):
    path, proof = tmp_path / "best.pt", tmp_path / "ran"
    carrier(path, Runs(proof, how))
    message = refusal(KIND, [path], load_checkpoint, path)
    assert "weights_only" not in message  # torch's own text tells how to run it after all
    refusal(KIND, [path], build_network, "test_resnet", 64, 6, weights=str(path))
    assert not proof.exists()


def test_the_commands_above_would_run(tmp_path):
    for how in ("mkdir", "system", "exec"):
        pickle.loads(pickle.dumps(Runs(tmp_path / how, how)))
        assert (tmp_path / how).exists()


def test_a_pickle_beside_a_checkpoints_own_is_not_read(tmp_path):
    path, proof = tmp_path / "best.pt", tmp_path / "ran"
    beside_a_good_pickle(path, Runs(proof, "mkdir"))
    contents = attempt(KIND, [path], load_checkpoint, path)
    assert contents is REFUSED or contents["config"] == experiment(Config())
    assert not proof.exists()


# --- damage ---


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, bytes, dict[str, Any]]:
    path = tmp_path / "last.pt"
    contents = small(optimizer={"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"betas": (0.9, 0.99)}]})
    save_checkpoint(path, contents)
    return path, path.read_bytes(), {"format": run_folder.FORMAT, **contents}


def test_a_checkpoint_cut_anywhere_is_refused(saved):
    path, whole, _ = saved
    for cut in [*range(0, len(whole), 11), *range(len(whole) - 30, len(whole))]:
        path.write_bytes(whole[:cut])
        refusal(KIND, [path], load_checkpoint, path)


def test_a_checkpoint_in_which_a_byte_has_changed_is_refused_or_has_the_same_contents(saved):
    path, whole, contents = saved
    rng, refused = np.random.default_rng(0), 0
    data = whole.index(b"data/0") + 6  # of the first tensor
    for place in [*rng.integers(0, len(whole), 250).tolist(), *range(data, data + 100)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(changed)
        found = attempt(KIND, [path], load_checkpoint, path)
        if found is REFUSED:
            refused += 1
        else:
            assert same(contents, found), f"byte {place}"
            tally(KIND, "correct")
    assert refused > 100


FOREIGN: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello, no checkpoint"),
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "zip without members": lambda path: zipfile.ZipFile(path, "w").close(),
    "zip of a text": lambda path: zipfile.ZipFile(path, "w").writestr("a/data.pkl", "hello"),
    "list": lambda path: torch.save([1, 2], path),
    "tensor": lambda path: torch.save(torch.zeros(3), path),
    "None": lambda path: torch.save(None, path),
    "state dict": lambda path: torch.save(nn.Linear(3, 2).state_dict(), path),
    "module": lambda path: torch.save(nn.Linear(3, 2), path),
    "without format": lambda path: torch.save(small(), path),
    **{
        f"format {shown}": partial(torch.save, {"format": value, **small()})
        for shown, value in {"earlier": 2, "later": 99, "None": None}.items()
    },
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_what_is_no_checkpoint_of_this_version_is_refused(tmp_path, write):
    path = tmp_path / "best.pt"
    write(path)
    message = refusal(KIND, [path], load_checkpoint, path)
    assert "train again" in message


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    for path in no_files(tmp_path).values():
        refusal(KIND, [path], load_checkpoint, path)
        refusal(KIND, [path], build_network, "test_resnet", 64, 6, weights=str(path))


# --- weights that do not fit ---


@pytest.mark.parametrize(
    "change",
    [
        lambda state: {},
        lambda state: {**state, "conv_stem.weight": torch.zeros(1)},
        lambda state: {**state, "conv_stem.weight": state["conv_stem.weight"].to(torch.complex64)},
        lambda state: {**state, "conv_stem.weight": 3},
        lambda state: list(state.values()),
        lambda state: {"model": state},
        lambda state: {**state, 3: torch.zeros(1)},
    ],
    ids=["none", "shape", "complex", "number", "list", "nested", "a number for a name"],
)
def test_backbone_weights_that_do_not_fit_are_refused(tmp_path, change):
    path = tmp_path / "w.pt"
    state = TimmBackbone("mobilenetv2_100", 64, "none").model.state_dict()
    torch.save(change(state), path)
    network = attempt(KIND, [path], build_network, "mobilenetv2_100", 64, 6, weights=str(path))
    if network is not REFUSED:  # an entry that the network does not have
        assert torch.equal(network.backbone.model.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
        tally(KIND, "correct")


# --- settings within a checkpoint ---

JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.just(10**400) | st.just(EVIL)


@pytest.fixture
def run(trained: Config, tmp_path: Path) -> Config:
    """A copy of the trained run, to be damaged."""
    folder = Path(shutil.copytree(trained.train_image[0].parent, tmp_path / "lesions"))
    (folder / "run" / "model.pt").unlink()  # it would be taken in place of best.pt
    return quick_config(folder, epochs=6)


@cases(60)
@given(
    changes=st.dictionaries(
        st.sampled_from(list(experiment(Config()))) | st.text(max_size=8), JSON, min_size=1, max_size=3
    )
)
def test_settings_in_a_checkpoint_are_checked_before_they_are_used(trained, tmp_path, changes):
    path = tmp_path / "best.pt"
    stored = load_checkpoint(trained.run_dir / "best.pt")
    save_checkpoint(path, {**stored, "config": {**stored["config"], **changes}})
    machine = quick_config(trained.train_image[0].parent, run_dir=tmp_path)
    for name in ("split.csv", "log.jsonl"):
        shutil.copy(trained.run_dir / name, tmp_path)
    found = attempt(KIND, [path], load_run, machine)
    if found is not REFUSED:
        changes = {name: value for name, value in changes.items() if value is not None}  # None: the recipe's
        assert {name: found.settings[name] for name in changes} == {
            name: float(value) if isinstance(experiment(Config())[name], float) else value
            for name, value in changes.items()
        }
        tally(KIND, "correct")


HOSTILE = {
    "image size": {"image_size": 2**40},
    "embedding": {"embedding_dim": 10**12},
    "backbone": {"backbone": "../../etc/passwd"},
    "another backbone": {"backbone": "mobilenetv2_100"},
    "another size": {"image_size": 64},
    "another embedding": {"embedding_dim": 32},
    "a head": {"head": "bce"},
    "a path of this machine": {"run_dir": "/", "epocs": 1},
}


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_a_checkpoint_that_does_not_fit_its_settings_is_refused(run, changes):
    path = run.run_dir / "best.pt"
    stored = load_checkpoint(path)
    save_checkpoint(path, {**stored, "config": {**stored["config"], **changes}})
    refusal(KIND, [path], load_run, run)


def test_a_checkpoint_cannot_make_predict_read_a_file(run, tmp_path):
    path, proof = run.run_dir / "best.pt", tmp_path / "ran"
    torch.save({"a": Runs(proof, "mkdir")}, tmp_path / "evil.pt")
    os.mkfifo(tmp_path / "pipe")  # to open it would be to wait
    stored = load_checkpoint(path)
    for weights in (tmp_path / "evil.pt", tmp_path / "pipe"):
        save_checkpoint(path, {**stored, "config": {**stored["config"], "backbone_weights": str(weights)}})
        assert load_run(run).settings["backbone_weights"] == str(weights)  # what it began from is said, and not read
        tally(KIND, "correct")
    assert not proof.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
def test_weights_that_are_not_finite_stop_the_prediction(run, value):
    path = run.run_dir / "best.pt"
    stored = load_checkpoint(path)
    stored["model"]["fc_embedding.weight"].fill_(value)
    save_checkpoint(path, stored)
    refusal(KIND, ["train again"], predict.main, run)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_stop_the_training(run, value):
    path = run.run_dir / "last.pt"
    stored = load_checkpoint(path)
    stored["model"]["fc_embedding.weight"].fill_(value)
    save_checkpoint(path, stored)
    refusal(KIND, ["not finite"], train.main, quick_config(run.train_image[0].parent, epochs=7), resume=True)


# --- the other files of a run ---

LOGS = {
    "empty": b"",
    "blank": b"\n\n",
    "cut": b'{"epoch": 1, "train_l',
    "NUL": b"\0" * 100,
    "Latin-1": b'{"epoch": 1, "x": "\xfc"}',
    "UTF-16": '{"epoch": 1}\n'.encode("utf-16"),
}


@pytest.mark.parametrize("content", LOGS.values(), ids=LOGS)
def test_a_damaged_log_is_refused(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    refusal(FILES, [tmp_path / "log.jsonl"], read_log, tmp_path / "log.jsonl")


def test_a_log_cut_anywhere_is_refused_or_has_its_first_epochs(trained, tmp_path):
    path = tmp_path / "log.jsonl"
    whole = (trained.run_dir / "log.jsonl").read_bytes()
    log = read_log(trained.run_dir / "log.jsonl")
    for cut in range(0, len(whole), 7):
        path.write_bytes(whole[:cut])
        found = attempt(FILES, [path], read_log, path)
        if found is not REFUSED:
            assert found == log[: len(found)]
            tally(FILES, "correct")


STARTS = {"empty": b"", "cut": b'[{"started": ', "NUL": bytes(50), "Latin-1": b'[{"a": "\xfc"}]'}


@pytest.mark.parametrize("content", STARTS.values(), ids=STARTS)
def test_a_damaged_record_of_starts_is_refused_before_anything_is_written(run, content):
    path = run.run_dir / "run.json"
    path.write_bytes(content)
    refusal(FILES, [path], read_starts, run.run_dir)
    before = {file.name: file.read_bytes() for file in run.run_dir.iterdir()}
    refusal(FILES, [path], write_start, run.run_dir, to_dict(run), None, "CPU", resumed=True)
    after = {file.name: file.read_bytes() for file in run.run_dir.iterdir()}
    after["config.json"] = before["config.json"]
    assert after == before


@pytest.mark.parametrize("name", ["best.pt", "split.csv", "log.jsonl", "run.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "NUL"])
def test_predict_refuses_a_run_with_a_damaged_file_before_it_writes(run, name, how):
    (run.run_dir / "metrics.json").unlink(missing_ok=True)  # of another test's evaluation
    path = run.run_dir / name
    whole = path.read_bytes()
    cut = whole[: len(whole) // 2 + 3].rstrip(b"}\n")  # within a line of the log: at its end it would be a shorter log
    path.write_bytes({"cut": cut, "empty": b"", "NUL": bytes(64)}[how])
    refusal(FILES, [path], predict.main, run)
    assert not (run.run_dir / "metrics.json").exists()


@pytest.mark.parametrize("name", ["last.pt", "split.csv", "run.json"])
@pytest.mark.parametrize("how", ["cut", "empty", "NUL", "gone"])
def test_a_training_does_not_go_on_from_a_damaged_file(run, name, how):
    path = run.run_dir / name
    whole = path.read_bytes()
    if how == "gone":
        path.unlink()
        if name == "run.json":
            return  # it is begun anew
    else:
        path.write_bytes({"cut": whole[: len(whole) // 2 + 3], "empty": b"", "NUL": bytes(64)}[how])
    refusal(FILES, [path], train.main, quick_config(run.train_image[0].parent, epochs=7), resume=True)


def test_a_run_that_holds_other_settings_is_told_in_a_bounded_line(run):
    path = run.run_dir / "last.pt"
    stored = load_checkpoint(path)
    changed = {**stored["config"], "backbone": "x" * 10**6, "margin": EVIL}
    save_checkpoint(path, {**stored, "config": changed})
    message = refusal(KIND, [run.run_dir], check_run_dir, run.run_dir, experiment(run), True, False)
    assert "holds another experiment: backbone 'xxx" in message
