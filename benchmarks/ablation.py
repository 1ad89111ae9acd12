"""What each step of the recipes is worth: `python benchmarks/ablation.py --train-image DIR --train-labels CSV`.

Trains every step with several seeds on one fold and prints the figures of its *validation* part after the last epoch,
so that validation has chosen nothing: mean and standard deviation over the seeds. The test part is not looked at. Each
step keeps what the one before it had; those marked "or" are tried on top of the wider views and then left. All are
shown the same number of images, up to the last two or three, which are the whole recipes.

The first two steps bring back faults of the first published attempt by patching the training: the network that
calls like pairs unlike, and views for the melanomas alone.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import modules
import predict
import train
from config import RECIPES, Config
from melanoma.common.script import run_script
from melanoma.data.augment import show
from melanoma.evaluation import evaluate
from melanoma.scoring import ensemble
from melanoma.training import learner

SPECIFICITIES = ("80%", "90%", "95%")


@contextlib.contextmanager
def inverted_sign() -> Iterator[None]:
    """Let the loss take like pairs for unlike ones."""
    right = modules.contrastive_terms

    def wrong(distance: torch.Tensor, same: torch.Tensor, *margins: float) -> torch.Tensor:
        return right(distance, ~same, *margins)

    with patch.object(modules, "contrastive_terms", wrong), melanomas_alone():
        yield


@contextlib.contextmanager
def melanomas_alone() -> Iterator[None]:
    """Show the benign images as they are and the melanomas through views."""
    labels: list[np.ndarray] = []
    whole_epoch = train.train_epoch

    def train_epoch(learner: Any, batches: Any, *others: Any) -> Any:
        labels[:] = [batch.labels for batch in batches]
        return whole_epoch(learner, batches, *others)

    def show_some(images: torch.Tensor, views: Any, *others: Any) -> torch.Tensor:
        melanoma = torch.from_numpy(labels.pop(0) == 1)[:, None, None, None].to(images.device)
        return torch.where(melanoma, show(images, views, *others), show(images, None, *others))

    with patch.object(train, "train_epoch", train_epoch), patch.object(learner, "show", show_some):
        yield


Step = tuple[str, Callable[[], contextlib.AbstractContextManager[None]], dict[str, Any]]


def ladder(weights: str | None) -> list[Step]:
    """Return the steps: name, fault, and all settings that differ from the baseline recipe's.

    weights : file of the ImageNet weights of strong's backbone, for the last step; None leaves it out
    """
    scratch = RECIPES["scratch"]

    def of_scratch(*names: str) -> dict[str, Any]:
        return {name: scratch[name] for name in names}

    as_is = contextlib.nullcontext
    start = {"epoch_share": 0.5}  # of the independent pairs, each of which has two images
    batch = {**start, "pairs": "batch", "batch_size": scratch["batch_size"]}
    unit = batch | of_scratch("normalize", "margin", "positive_margin", "average")
    head = unit | of_scratch("head")
    course = head | of_scratch("schedule", "ema", "weight_decay")
    firm = course | of_scratch("learning_rate", "dropout")
    wide = firm | of_scratch("views")
    long = wide | of_scratch("epochs") | {"epoch_share": 1.0}
    steps: list[Step] = [
        ("inverted sign", inverted_sign, start),
        ("sign right, views for melanomas alone", melanomas_alone, start),
        ("views for both classes", as_is, start),
        ("in-batch pairs", as_is, batch),
        ("unit length, margins, active pairs", as_is, unit),
        ("joint head", as_is, head),
        ("cosine, EMA, weight decay", as_is, course),
        ("the recipe's learning rate and dropout", as_is, firm),
        ("wider views", as_is, wide),
        ("or that and mining: the hardest half of the pairs", as_is, wide | {"hardest": 0.5}),
        ("or the head's focal loss", as_is, wide | {"head": "focal"}),
        ("or the head alone", as_is, wide | {"pair_weight": 0.0}),
        ("wider views, 20 epochs of all benign images", as_is, long),
        ("8 views of a test image: recipe scratch", as_is, long | of_scratch("test_views")),
    ]
    if weights:
        strong = RECIPES["strong"] | {"backbone_weights": weights}
        steps.append((f"{strong['backbone']} at {strong['image_size']} px: recipe strong", as_is, strong))
    return steps


def measure(config: Config, fault: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, float]:
    """Train one run and return the figures of its validation part, with the weights of the last epoch."""
    start = time.perf_counter()
    with fault():
        train.main(config, overwrite=True)
    minutes = (time.perf_counter() - start) / 60
    shutil.copyfile(config.run_dir / "last.pt", config.run_dir / "best.pt")  # the best would be chosen by validation
    judges = ensemble.make_ensemble([predict.load_checkpoint(config)])
    table = predict.score_own(config, [judges], "validation").table
    figures = evaluate.measure(table, np.random.default_rng(0))
    at = figures["sensitivity_at_specificity"]
    return {"auc": figures["auc"], "average_precision": figures["average_precision"], **at, "minutes": minutes}


def markdown(results: pd.DataFrame) -> str:
    """Return one row for each step, mean ± standard deviation over its seeds; results has a row for each run."""
    lines = [
        "| step | AUC | average precision | sensitivity at 80, 90, 95 % specificity | minutes |",
        "|---|---|---|---|---|",
    ]
    for step, own in results.groupby("step", sort=False):
        mean, deviation = own.mean(numeric_only=True), own.std(numeric_only=True)
        spread = [f"{mean[name]:.3f} ± {deviation[name]:.3f}" for name in ("auc", "average_precision")]
        sensitivity = ", ".join(f"{mean[name]:.2f}" for name in SPECIFICITIES)
        lines.append(f"| {step} | {' | '.join(spread)} | {sensitivity} | {mean['minutes']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--train-image", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train-labels", type=Path, required=True, metavar="CSV")
    parser.add_argument("--work", type=Path, default=Path("runs/ablation"), help="runs and results go here")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--backbone-weights", metavar="FILE", help="of strong's backbone: adds that recipe")
    parser.add_argument("--steps", type=int, nargs="*", help="numbers of the steps, from 0 (default: all)")
    arguments = parser.parse_args()
    base = Config(
        train_image=(arguments.train_image,),
        train_labels=(arguments.train_labels,),
        cache_dir=arguments.cache_dir,
        run_dir=arguments.work / "run",
        graph_dir=arguments.work / "graph",
        **{**RECIPES["baseline"], "epochs": arguments.epochs, "image_size": arguments.image_size},
        fold=arguments.fold,
    )
    steps = ladder(arguments.backbone_weights)
    results = []
    for number in arguments.steps or range(len(steps)):
        name, fault, changes = steps[number]
        for seed in range(arguments.seeds):
            config = dataclasses.replace(base, **changes, seed=seed)
            figures = measure(config, fault)
            results.append({"step": name, "seed": seed, **figures})
            with (arguments.work / "ablation.jsonl").open("a") as file:
                file.write(json.dumps(results[-1]) + "\n")
    print(markdown(pd.DataFrame(results)))


if __name__ == "__main__":
    run_script(main)
