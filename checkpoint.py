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
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from config import Config, InputError, experiment, to_dict
from files import make_folder, replace_file, write_json, write_text

FORMAT = 2
RESULTS = (
    "last.pt",
    "best.pt",
    "log.jsonl",
    "predictions.csv",
    "metrics.json",
    "new_lesions.csv",
    "submission.csv",
)
EVALUATED = "evaluate_"  # before the names of predictions and metrics of a folder other than the run's own
PACKAGES = ("torch", "torchvision", "numpy", "pandas", "pillow", "scikit-learn")
SPLIT_COLUMNS = ["image_name", "patient_id", "label", "part"]


def save_checkpoint(path: Path, contents: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings, lists and dicts, atomically."""
    buffer = io.BytesIO()  # torch writes a zip archive, and turns a full disk into an error of its own
    torch.save({"format": FORMAT, **contents}, buffer)
    replace_file(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in the file can run code.

    Raises
    ------
    InputError : not there, unreadable, or of another format
    """
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}: run train.py first or pass --run-dir")
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is not its own
        raise InputError(
            f"checkpoint {path} is damaged or was not written by train.py: train anew or pass another --run-dir"
        ) from error
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise InputError(f"{path} is no checkpoint of this version: train anew")
    return contents


def load_weights(
    network: torch.nn.Module, contents: Mapping[str, Any], path: Path, key: str = "model"
) -> None:
    """Put a checkpoint's weights, those of the model or of another `key`, into a network.

    Raises
    ------
    InputError : they are of another shape
    """
    try:
        network.load_state_dict(contents[key])
    except (RuntimeError, KeyError, TypeError) as error:
        raise InputError(
            f"checkpoint {path} does not fit its own settings: train anew or pass another --run-dir"
        ) from error


def write_start(config: Config, table: pd.DataFrame, device: str, resumed: bool) -> None:
    """Write what explains a run: settings, split, where it is made; a new run first clears an earlier one's."""
    make_folder(config.run_dir)
    for half in config.run_dir.glob(".*.tmp"):  # left by a process that was killed; the caller holds the lock
        half.unlink()
    if not resumed:
        for name in RESULTS:
            for prefix in ("", EVALUATED):
                (config.run_dir / f"{prefix}{name}").unlink(missing_ok=True)
        split = table[SPLIT_COLUMNS]
        replace_file(config.run_dir / "split.csv", lambda temporary: split.to_csv(temporary, index=False))
    write_json(config.run_dir / "config.json", to_dict(config))  # on a resume the epochs may have grown
    run = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "device": device,
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }
    path = config.run_dir / "run.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if resumed and path.is_file() else []
    write_json(path, [*earlier, run])  # one entry for each time that the run was started or resumed


@contextlib.contextmanager
def lock_run(run_dir: Path) -> Iterator[None]:
    """Keep a run's folder for this process, which the system takes care of even when the process is killed.

    Raises
    ------
    InputError : another process has it
    """
    make_folder(run_dir)
    try:
        with FileLock(run_dir / "lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            f"run_dir {run_dir} is being written to by another training: wait for its end or pass another --run-dir"
        ) from None


def check_run_dir(config: Config, resume: bool, overwrite: bool) -> None:
    """Refuse to start over a run that is there, or to resume one that is not, or that is another experiment.

    More epochs than before are no other experiment, unless the learning rate's course depends on their number.

    Raises
    ------
    InputError
    """
    last = config.run_dir / "last.pt"
    if resume and not last.is_file():
        raise InputError(f"--resume: there is no {last}; start the run without --resume")
    if not last.is_file() or overwrite:
        return
    if not resume:
        raise InputError(
            f"run_dir {config.run_dir} already holds a run: pass --resume to go on with it, --overwrite to "
            "replace it, or another --run-dir"
        )
    stored, wanted = load_checkpoint(last)["config"], experiment(config)
    free = {"epochs"} if config.schedule == "constant" and not config.warmup else set()
    differ = [
        f"{name} {stored.get(name)!r} there, {wanted[name]!r} asked for"
        for name in wanted
        if name not in free and stored.get(name) != wanted[name]
    ]
    if differ:
        raise InputError(f"--resume: {config.run_dir} holds another experiment: {'; '.join(differ)}")


def resume_run(config: Config, table: pd.DataFrame) -> dict[str, Any]:
    """Return the last checkpoint of a run, once the images and their split are seen to be the run's own.

    Raises
    ------
    InputError : the data have changed since the run began
    """
    stored = read_split(config.run_dir)
    if not stored.equals(table[SPLIT_COLUMNS]):
        raise InputError(
            f"--resume: images, labels or split differ from {config.run_dir / 'split.csv'}, with which the run "
            "began: restore the data or start a new run"
        )
    return load_checkpoint(config.run_dir / "last.pt")


def read_split(run_dir: Path) -> pd.DataFrame:
    """Return the split stored with a run: image_name, patient_id, label (int), part."""
    path = run_dir / "split.csv"
    if not path.is_file():
        raise InputError(f"there is no {path}: run train.py first or pass --run-dir")
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(table.columns) != SPLIT_COLUMNS:
        raise InputError(f"{path} has columns {list(table.columns)}, not {SPLIT_COLUMNS}")
    return table.assign(label=table["label"].astype(int))


def write_log(path: Path, entries: list[dict[str, Any]]) -> None:
    """Write the log, a JSON object a line."""
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in entries)
    write_text(path, text)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the entries of a log, one for each epoch.

    Raises
    ------
    InputError : not there, or no log
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def best_entry(log: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the epoch of the highest validation AUC, the first of equals."""
    return max(log, key=lambda entry: entry["val_auc"])


def _commit() -> str | None:
    """Return the commit of this code, with +dirty where the work tree differs; None outside git."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(here, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
