"""The run folder: what train.py writes and predict.py reads.

config.json   every setting            last.pt    checkpoint to resume from
run.json      commit, versions, ...    best.pt    checkpoint of the best validation AUC
split.csv     part of each image       log.jsonl  one JSON object for each epoch
                                       model.pt   all that judging needs, of a training that has ended
"""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from melanoma.common.errors import InputError, shown
from melanoma.common.files import (
    is_file,
    locked,
    read_json,
    read_text,
    remove_file,
    remove_halves,
    replace_file,
    write_json,
    write_text,
)
from melanoma.common.tensors import fitting as fitting_file
from melanoma.common.tensors import load_tensors, save_tensors
from melanoma.data.split import LESIONS, PARTS
from melanoma.data.tables import read_csv

FORMAT = 4
MODEL = "model.pt"  # of a training that has ended
TESTED = "evaluations.jsonl"  # a JSON object for each evaluation of the test part
RESULTS = ("last.pt", "best.pt", "log.jsonl", "predictions.csv", "metrics.json", "new_lesions.csv", "submission.csv")
# Before the names of predictions and metrics of another folder than the run's own, and of its validation part.
EVALUATED, VALIDATED = "evaluate_", "validation_"
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pandas", "pillow", "scikit-learn")
SPLIT_COLUMNS = [*LESIONS, "part"]
ADVICE = "run train.py first or pass --run-dir"
OTHERWISE = "train again or pass another --run-dir"


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts, atomically."""
    save_tensors(path, FORMAT, contents)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file can run code, and a byte that has changed is noticed.

    Raises
    ------
    InputError : not there, unreadable, or of another format
    """
    return load_tensors(path, FORMAT, "checkpoint", ADVICE, OTHERWISE)


def fitting(path: Path) -> contextlib.AbstractContextManager[None]:
    """Turn any error in the block into an InputError: the checkpoint does not fit; see `tensors.fitting`."""
    return fitting_file("checkpoint", path, OTHERWISE)


def write_start(
    run_dir: Path, settings: Mapping[str, Any], table: pd.DataFrame, device: str, resumed: bool
) -> list[Any]:
    """Write what explains a run: settings, split, commit, versions, device; a new run first clears an earlier one's.

    settings : JSON values

    Returns
    -------
    what `read_starts` now reads
    """
    remove_halves(run_dir)  # the caller holds the lock
    earlier = read_starts(run_dir) if resumed else []
    remove_file(run_dir / MODEL)  # it is of the epochs so far
    if not resumed:
        for name in (*RESULTS, TESTED):
            for prefix in ("", EVALUATED, VALIDATED):
                remove_file(run_dir / f"{prefix}{name}")
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
    starts = [*earlier, run]
    write_json(run_dir / "run.json", starts)
    return starts


def lock_run(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Keep a run's folder for this process: a context, see `locked`."""
    refusal = f"run_dir {run_dir} is being written to by another training: wait for its end or pass another --run-dir"
    return locked(run_dir / "lock", refusal)


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
    if overwrite:
        return
    if not resume:
        if not any(is_file(run_dir / name) for name in ("last.pt", "best.pt", MODEL)):
            return
        raise InputError(f"run_dir {run_dir} already holds a run: pass --resume, --overwrite, or another --run-dir")
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
        raise InputError(f"--resume: {run_dir} has been trained for {trained} epochs: pass --epochs {trained} or more")


def resume_run(run_dir: Path, table: pd.DataFrame) -> dict[str, Any]:
    """Return the last checkpoint of a run, after checking that the images and their split are those of the run.

    Raises
    ------
    InputError : the data have changed since the run began, or its files are damaged
    """
    if not read_split(run_dir).equals(table[SPLIT_COLUMNS]):
        path = run_dir / "split.csv"
        raise InputError(f"--resume: images, labels or split differ from {path}: restore the data or start a new run")
    return load_checkpoint(run_dir / "last.pt")


def read_split(run_dir: Path) -> pd.DataFrame:
    """Return the split stored with a run, with the columns SPLIT_COLUMNS; label is int.

    Raises
    ------
    InputError : not there, or not as train.py writes it
    """
    path = run_dir / "split.csv"
    table = read_csv(path, str(path), ADVICE)
    known = list(table.columns) == SPLIT_COLUMNS
    if not known or not table["label"].isin(["0", "1"]).all() or not table["part"].isin(PARTS).all():
        raise InputError(f"{path} is damaged or was not written by train.py: {OTHERWISE}")
    return table.assign(label=table["label"].astype(int)).reset_index(drop=True)


def read_starts(run_dir: Path) -> list[Any]:
    """Return what run.json says of each time that the run was started or resumed; [] if there is no such file."""
    path = run_dir / "run.json"
    return read_json(path, str(path), "restore or remove it") if path.exists() else []


def write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write entries of a log, a JSON object a line."""
    write_text(path, "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries))


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, one for each epoch, at least one.

    Raises
    ------
    InputError : not there, or no log
    """
    log = _read_lines(path, OTHERWISE)
    if not log:
        raise InputError(f"{path} holds no log of a training: {OTHERWISE}")
    return log


def count_evaluation(run_dir: Path, choices: Mapping[str, Any]) -> list[Any]:
    """Note an evaluation of a run's test part with these choices; return the choices of all evaluations so far."""
    path = run_dir / TESTED
    entries = [*(_read_lines(path, "restore or remove it") if is_file(path) else []), dict(choices)]
    write_log(path, entries)
    return entries


def _read_lines(path: Path, advice: str) -> list[Any]:
    """Return the values of a file that has one JSON value a line."""
    try:
        return [json.loads(line) for line in read_text(path, str(path), ADVICE).splitlines()]
    except json.JSONDecodeError:
        raise InputError(f"{path} is damaged: {advice}") from None


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
