"""The run folder: what train.py leaves behind and predict.py takes up.

config.json   every setting            last.pt    checkpoint to resume from
run.json      commit, versions, ...    best.pt    checkpoint of the best validation AUC
split.csv     part of each image       log.jsonl  one JSON object for each epoch
"""

from __future__ import annotations

import contextlib
import io
import json
import platform
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from melanoma.common.errors import InputError, shown
from melanoma.common.files import (
    is_file,
    locked,
    make_folder,
    parse_json,
    read_json,
    read_text,
    remove_halves,
    replace_file,
    write_json,
    write_text,
)
from melanoma.data.labels import read_csv
from melanoma.data.split import PARTS

FORMAT = 3
RESULTS = ("last.pt", "best.pt", "log.jsonl", "predictions.csv", "metrics.json", "new_lesions.csv", "submission.csv")
EVALUATED = "evaluate_"  # before the names of predictions and metrics of a folder other than the run's own
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn")
SPLIT_COLUMNS = ["image_name", "patient_id", "label", "part"]
LOGGED = ("epoch", "train_loss", "val_loss", "val_auc")  # numbers that each entry of a log has
ALSO_LOGGED = ("like_distance", "unlike_distance")  # numbers that it may have
LARGEST = 1e100  # beyond which a number cannot be drawn
ADVICE = "run train.py first or pass --run-dir"


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts, atomically."""
    buffer = io.BytesIO()  # torch writes a zip archive, and turns a full disk into an error of its own
    torch.save({"format": FORMAT, **contents}, buffer)
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file can run code, and a byte that has changed is noticed.

    Its `config` is a dict of plain values; whether they are settings, and fit the rest, is not looked at here.

    Raises
    ------
    InputError : not there, unreadable, or of another format
    """
    if not is_file(path):
        raise InputError(f"there is no checkpoint {path}: {ADVICE}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
            if archive.testzip() or any(info.compress_type for info in archive.infolist()):
                raise zipfile.BadZipFile
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(
            f"checkpoint {path} is damaged or was not written by train.py: train anew or pass another --run-dir"
        ) from error
    if not isinstance(contents, dict) or not _is_of_this_version(contents):
        raise InputError(f"{path} is no checkpoint of this version (format {FORMAT}): train anew")
    return contents


def _is_of_this_version(contents: Mapping[str, Any]) -> bool:
    number, config = contents.get("format"), contents.get("config")
    if type(number) is not int or number != FORMAT or not isinstance(config, dict):
        return False
    return all(value is None or type(value) in (bool, int, float, str) for value in config.values())


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Say of a checkpoint whose contents are taken up here that it does not fit, whatever that raises."""
    try:
        yield
    except Exception as error:  # its contents may be anything
        raise InputError(
            f"checkpoint {path} does not fit its own settings: train anew or pass another --run-dir"
        ) from error


def load_weights(network: torch.nn.Module, contents: Mapping[str, Any], path: Path, key: str = "model") -> None:
    """Put a checkpoint's weights, those of the model or of another `key`, into a network.

    Raises
    ------
    InputError : they are of another shape or type
    """
    with fitting(path):
        state, own = contents[key], network.state_dict()
        for name, value in own.items():
            if state[name].dtype != value.dtype:  # torch would convert it, complex numbers too
                raise TypeError(name)
        network.load_state_dict(state)


def load_optimizer(optimizer: torch.optim.AdamW, contents: Mapping[str, Any], path: Path) -> None:
    """Put a checkpoint's state of AdamW into one of the same parameters.

    Raises
    ------
    InputError : it is of other parameters
    """
    fused = optimizer.param_groups[0]["fused"]  # of this machine's device, not of the checkpoint's
    with fitting(path):
        optimizer.load_state_dict(contents["optimizer"])
        for group in optimizer.param_groups:
            group["fused"] = fused
        for parameter, state in optimizer.state.items():
            if not state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape:
                raise ValueError("another shape")


def write_start(run_dir: Path, settings: Mapping[str, Any], table: pd.DataFrame, device: str, resumed: bool) -> None:
    """Write what explains a run: settings, split, commit, versions, device; a new run first clears an earlier one's.

    settings : JSON values
    """
    make_folder(run_dir)
    remove_halves(run_dir)  # the caller holds the lock
    if not resumed:
        for name in RESULTS:
            for prefix in ("", EVALUATED):
                (run_dir / f"{prefix}{name}").unlink(missing_ok=True)
        split = table[SPLIT_COLUMNS]
        replace_file(run_dir / "split.csv", lambda temporary: split.to_csv(temporary, index=False))
    write_json(run_dir / "config.json", settings)  # on a resume the epochs may have grown
    run = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "device": device,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    path = run_dir / "run.json"
    earlier = read_starts(run_dir) if resumed else []
    write_json(path, [*earlier, run])  # one entry for each time that the run was started or resumed


def lock_run(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Keep a run's folder for this process: a context, whose errors are those of `lock.locked`."""
    return locked(
        run_dir / "lock",
        f"run_dir {run_dir} is being written to by another training: wait for its end or pass another --run-dir",
    )


def check_run_dir(run_dir: Path, wanted: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    """Refuse to overwrite a run, or to resume one that is not there or is another experiment.

    More epochs than before are no other experiment, unless the learning rate depends on their number.

    Parameters
    ----------
    wanted : settings of the experiment, JSON values

    Raises
    ------
    InputError
    """
    last = run_dir / "last.pt"
    if resume and not is_file(last):
        raise InputError(f"--resume: there is no {last}; start the run without --resume")
    if not is_file(last) or overwrite:
        return
    if not resume:
        raise InputError(
            f"run_dir {run_dir} already holds a run: pass --resume to go on with it, --overwrite to replace it, or "
            "another --run-dir"
        )
    contents = load_checkpoint(last)
    stored = contents["config"]
    free = {"recipe", *(["epochs"] if wanted["schedule"] == "constant" else [])}
    differ = [
        f"{name} {shown(stored.get(name))} there, {shown(wanted[name])} asked for"
        for name in wanted
        if name not in free and stored.get(name) != wanted[name]
    ]
    if differ:
        raise InputError(f"--resume: {run_dir} holds another experiment: {'; '.join(differ)}")
    trained = len(contents["log"])
    if trained > wanted["epochs"]:
        raise InputError(
            f"--resume: {run_dir} has been trained for {trained} epochs, {wanted['epochs']} asked for: pass "
            f"--epochs {trained} or more"
        )


def resume_run(run_dir: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Return the last checkpoint of a run, once the images and their split are seen to be the run's own.

    Raises
    ------
    InputError : the data have changed since the run began, or its files are damaged
    """
    stored = read_split(run_dir)
    if not stored.equals(table[SPLIT_COLUMNS]):
        raise InputError(
            f"--resume: images, labels or split differ from {run_dir / 'split.csv'}, with which the run "
            "began: restore the data or start a new run"
        )
    path = run_dir / "last.pt"
    contents = load_checkpoint(path)
    check_log(contents.get("log"), path)
    return contents


def read_split(run_dir: Path) -> pd.DataFrame:
    """Return the split stored with a run: image_name, patient_id, label (int), part.

    Raises
    ------
    InputError : not there, or not as train.py writes it
    """
    path = run_dir / "split.csv"
    table = read_csv(path, str(path), ADVICE)
    if list(table.columns) != SPLIT_COLUMNS:
        raise InputError(f"{path} has columns {shown(list(table.columns))}, not {SPLIT_COLUMNS}: train anew")
    good = table["label"].isin(["0", "1"]) & table["part"].isin(PARTS)
    good &= ~table["image_name"].duplicated() & (table["image_name"] != "")
    if not good.all():
        raise InputError(
            f"{path} is damaged in line {table.index[~good][0]}: an image's name comes once, its label is 0 or 1, its "
            f"part one of {', '.join(PARTS)}: restore it or train anew"
        )
    return table.assign(label=table["label"].astype(int)).reset_index(drop=True)


def read_starts(run_dir: Path) -> list[Any]:
    """Return what run.json says of each time that the run was started or resumed; [] if there is no such file.

    Raises
    ------
    InputError : no list in JSON
    """
    path = run_dir / "run.json"
    if not path.exists():
        return []
    advice = "restore it, or remove it to go on without what it says"
    starts = read_json(path, str(path), advice)
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise InputError(f"{path} holds no list of starts: {advice}")
    return starts


def write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the log, a JSON object a line."""
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    write_text(path, text)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, one for each epoch, at least one.

    Raises
    ------
    InputError : not there, or no log
    """
    text = read_text(path, str(path), ADVICE)
    try:
        log = [parse_json(line) for line in text.splitlines()]
    except ValueError as error:
        raise InputError(f"{path} cannot be read: {error}: restore it or train anew") from None
    check_log(log, path)
    if not log:
        raise InputError(f"{path} has no epoch: {ADVICE}")
    return log


def check_log(log: Any, path: Path) -> None:
    """Raise InputError unless this, found in a file, is a list with the finite numbers of each epoch."""
    whole = isinstance(log, list) and all(isinstance(entry, dict) for entry in log)
    for entry in log if whole else []:
        for key in (*LOGGED, *(key for key in ALSO_LOGGED if key in entry)):
            number = entry.get(key)
            whole &= type(number) in (int, float) and abs(number) < LARGEST
    if not whole:
        raise InputError(f"{path} holds no log of a training: train anew or pass another --run-dir")


def best_entry(log: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the epoch of the highest validation AUC, the first of equals."""
    return max(log, key=lambda entry: entry["val_auc"])


def _commit() -> str | None:
    """Return the commit of this code, with +dirty where files other than config.py differ; None outside git."""
    here = Path(__file__).parents[2]
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(here, "status", "--porcelain", "--", ".", ":!config.py") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
