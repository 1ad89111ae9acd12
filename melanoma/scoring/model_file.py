"""The file of a trained model, model.pt: one or more runs with all that judging needs, and no other file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from melanoma.common.device import choose_precision
from melanoma.common.tensors import fitting, load_tensors, save_tensors
from melanoma.data.split import LESIONS
from melanoma.scoring import SCORERS
from melanoma.scoring.ensemble import Run
from melanoma.scoring.scores import Platt

FORMAT = "lesion-model-1"
# Fields of a run that are stored as they are.
PLAIN = ("name", "settings", "validation_fold", "epoch", "log", "starts", "data", "synthetic", "tested")
MISSING = "name a file of train.py or predict.py --export"
OTHERWISE = "export it again or name another"


def write_model(path: Path, runs: Sequence[Run], slim: bool = False) -> None:
    """Write runs to a file, atomically.

    slim : without pictures, the table of the lesions and the command lines, and with matrices and kernels in float16;
        such a file still judges photos, but cannot evaluate the test part of its run
    """
    kept = [run if run is runs[0] else replace(run, pictures={}) for run in runs]  # cards are by the first
    packed = [_halved(_packed(_slim(run))) if slim else _packed(run) for run in kept]
    save_tensors(path, FORMAT, {"runs": packed})


def read_model(path: Path, build: Callable[[Mapping[str, Any]], Any], device: torch.device) -> list[Run]:
    """Return the runs of such a file.

    Parameters
    ----------
    build : makes the network that settings describe
    device : of the networks

    Raises
    ------
    InputError : not there, damaged, of another version, or contents that do not fit each other
    """
    contents = load_tensors(path, FORMAT, "model", MISSING, OTHERWISE)
    with fitting("model", path, OTHERWISE):
        runs = [_unpacked(own, build, device) for own in contents["runs"]]
        if not runs:
            raise ValueError("no run")
    for run in runs:
        run.network.to(device)
    return runs


def _slim(run: Run) -> Run:
    """Return a run without pictures, lesions and command lines."""
    starts = [{key: value for key, value in start.items() if key != "command"} for start in run.starts]
    return replace(run, starts=starts, lesions=None, pictures={})


def _halved(packed: dict[str, Any]) -> dict[str, Any]:
    """Return a packed run with matrices and kernels in float16; vectors, among them variances, stay as they are."""
    network = {name: value.half() if value.ndim > 1 else value for name, value in packed["network"].items()}
    return {**packed, "network": network, "references": packed["references"].half()}


def _packed(run: Run) -> dict[str, Any]:
    """Return a run as tensors, numbers and texts, without the folders of this machine."""
    weights = Path(run.settings["backbone_weights"]).name
    jpegs = np.frombuffer(b"".join(run.pictures.values()), np.uint8)
    return {
        **{name: getattr(run, name) for name in PLAIN},
        "name": Path(run.name).name,
        "settings": {**run.settings, "backbone_weights": weights},
        "network": {name: value.cpu() for name, value in run.network.state_dict().items()},
        "references": torch.tensor(run.references),
        "reference_labels": torch.tensor(run.reference_labels),
        "validation": {"row": torch.tensor(run.validation.index.to_numpy()), **_columns(run.validation)},
        "curves": {name: (curve.slope, curve.intercept) for name, curve in run.curves.items()},
        "known": sorted(run.known),
        "lesions": None if run.lesions is None else _columns(run.lesions),
        "pictures": {
            "row": list(run.pictures),
            "end": np.cumsum([len(jpeg) for jpeg in run.pictures.values()], dtype=int).tolist(),
            "jpeg": torch.from_numpy(jpegs.copy()),
        },
    }


def _unpacked(stored: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Any], device: torch.device) -> Run:
    """Return the run of such values; raises any exception if they do not fit each other."""
    network = build(stored["settings"])
    network.load_state_dict(stored["network"])
    validation = _table(stored["validation"]).set_index("row")
    labels, references = stored["reference_labels"].numpy(), stored["references"].float().numpy()
    curves = {name: Platt(*line) for name, line in stored["curves"].items()}
    pictures = stored["pictures"]
    jpegs = np.split(pictures["jpeg"].numpy(), pictures["end"])[:-1]
    run = Run(
        **{name: stored[name] for name in PLAIN},
        network=network,
        dtype=choose_precision(stored["settings"]["precision"], device),
        references=references,
        reference_labels=labels,
        validation=validation,
        curves=curves,
        known=frozenset(stored["known"]),
        lesions=None if stored["lesions"] is None else _table(stored["lesions"]),
        pictures={row: jpeg.tobytes() for row, jpeg in zip(pictures["row"], jpegs, strict=True)},
    )
    for own in (labels, validation["label"]):
        if set(own) != {0, 1}:
            raise ValueError("a class is missing")
    if references.shape != (len(labels), stored["settings"]["embedding_dim"]) or not np.isfinite(references).all():
        raise ValueError("references do not fit")
    if set(curves) != set(SCORERS) - (set() if network.head is not None else {"head"}):
        raise ValueError("curves do not fit")
    numbers = [
        validation[["nearest_distance", *curves]],
        [line for curve in curves.values() for line in astuple(curve)],
    ]
    if not all(np.isfinite(own).all(axis=None) for own in numbers):
        raise ValueError("scores or curves are not finite")
    if run.lesions is not None and not {*LESIONS, "part"} <= set(run.lesions):
        raise ValueError("lesions lack columns")
    return run


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Return the columns of a table: a tensor of numbers, or a list of texts."""
    return {
        name: torch.tensor(own.to_numpy()) if pd.api.types.is_numeric_dtype(own) else own.tolist()
        for name, own in table.items()
    }


def _table(columns: Mapping[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({name: own.numpy() if isinstance(own, Tensor) else own for name, own in columns.items()})
