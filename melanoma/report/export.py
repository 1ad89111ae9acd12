"""Runs as one model file with its MODEL_CARD.md: `python predict.py --export`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from melanoma.common.errors import InputError, listed
from melanoma.common.files import is_file, read_json, read_text, write_text
from melanoma.report.model_card import TITLE, card_of, describe_run, hub_card
from melanoma.scoring.ensemble import Choices, Ensemble, Run, runs_of
from melanoma.scoring.model import Model
from melanoma.scoring.model_file import read_model, write_model

CARD = "MODEL_CARD.md"


def check_target(file: Path, build: Callable[[Mapping[str, Any]], Any], own: bool = False) -> None:
    """Refuse to write a model file where it would replace something else.

    Parameters
    ----------
    build : see `read_model`
    own : it is the model.pt of a run, whole, in that run's folder

    Raises
    ------
    InputError : there is something else of that name, or a MODEL_CARD.md of another kind; it is another run's folder
    """
    card = file.parent / CARD
    if is_file(file.parent / "best.pt") and not own:
        raise InputError(f"--export {file} is in a run folder, which holds its own model.pt alone: name another folder")
    if is_file(file):
        read_model(file, build, torch.device("cpu"))  # raises unless it is a model
    elif file.exists():
        raise InputError(f"--export {file} is no file: name another")
    if card.exists() and TITLE not in read_text(card, str(card), "move it"):
        raise InputError(f"{card} is no card of a model file: move it, or name another folder")


def write_export(
    ensembles: Sequence[Ensemble],
    file: Path,
    evaluated: Path,
    recipes: Mapping[str, Mapping[str, Any]],
    slim: bool = False,
    card_metrics: Path | None = None,
) -> None:
    """Write runs to one model file, and beside it a MODEL_CARD.md with the figures of their last evaluation.

    Parameters
    ----------
    evaluated : metrics.json of that evaluation, if there is one
    recipes : the values that each recipe sets
    slim : see `write_model`
    card_metrics : metrics.json of other runs with the same settings, whose figures the card has instead

    Raises
    ------
    InputError : the others' settings differ, see `metrics_of_others`
    """
    runs = runs_of(ensembles)
    metrics = metrics_of_others(runs, card_metrics) if card_metrics else own_metrics(runs, evaluated)
    write_model(file, runs, slim)
    texts = card_of(ensembles, Choices(), metrics, card_metrics is not None)
    made = [
        f"{describe_run(run)}; `{training_command(run, recipes)}`, with the folders and tables of the data"
        for run in runs
    ]
    card = file.parent / CARD
    write_text(card, hub_card(file.name, Model(ensembles).threshold, texts, made))
    if metrics is None:
        way = "run predict.py on them, then export again" if runs[0].fold is not None else "pass --card-metrics"
        print(f"these runs have not been evaluated: {way}, and the card has figures")
    print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB) and {card}")


def training_command(run: Run, recipes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the command that trains a run whatever config.py says, but for the paths of its data."""
    recipe = run.settings["recipe"]
    usual, words = recipes[recipe], ["python train.py --recipe", recipe]
    for name, value in run.settings.items():
        flag = name.replace("_", "-")
        if name != "recipe" and (name not in usual or value != usual[name]):
            text = "none" if value is None else value
            words.append(f"--{'' if value else 'no-'}{flag}" if isinstance(value, bool) else f"--{flag} {text}")
    return " ".join(words)


def own_metrics(runs: Sequence[Run], path: Path) -> dict[str, Any] | None:
    """Return the metrics in a file if they are of these runs, judged as a model file judges."""
    metrics = read_json(path, str(path), "remove it") if is_file(path) else {"runs": []}
    same_runs = [run.get("fingerprint") for run in metrics["runs"]] == [run.fingerprint for run in runs]
    return metrics if same_runs and metrics["choices"] == asdict(Choices()) else None


def metrics_of_others(runs: Sequence[Run], path: Path) -> dict[str, Any]:
    """Return the metrics in a file, of other runs.

    Raises
    ------
    InputError : they are of no test part, or not judged as a model file judges; other data, or settings other than
        fold, validation_fold and seed; the runs have a test part of their own
    """
    metrics: Any = read_json(path, str(path), "name a metrics.json of predict.py")
    if not isinstance(metrics, dict) or "settings" not in metrics:
        raise InputError(f"--card-metrics {path} holds no metrics with the settings of their runs: name another")
    if runs[0].fold is not None:
        raise InputError(f"--card-metrics is for a model of --fold none: {runs[0].name} has a test part of its own")
    own = {"set": "test", "choices": asdict(Choices()), "data": runs[0].data, **runs[0].settings}
    found = {**metrics, **metrics["settings"]}
    free = ("fold", "validation_fold", "seed")
    differ = [key for key in own if key not in free and own[key] != found.get(key)]
    if differ:
        raise InputError(f"--card-metrics {path} is of other runs than {runs[0].name}: they differ in {listed(differ)}")
    return metrics
