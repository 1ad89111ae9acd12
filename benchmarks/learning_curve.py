"""What more data is worth: `python benchmarks/learning_curve.py --train-image DIR ... --train-labels CSV ...`.

Trains a recipe on shares of each fold's training part, drawn by group, a smaller share within a larger one, and prints
the AUC on the folds' test parts, pooled. Validation and test parts are those of the whole data. An epoch shows as many
images as with all data where there are enough, so that a small share is not also a short training.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import dataset
import predict
import train
from config import RECIPES, Config
from melanoma.common.script import run_script
from melanoma.data.cache import ImageCache
from melanoma.data.sources import Sources
from melanoma.evaluation.bootstrap import brief_metrics


@contextlib.contextmanager
def training_share(share: float) -> Iterator[None]:
    """Let runs train on a share of the groups of their training part."""
    whole = dataset.join_equal_pictures

    def fewer(lesions: Sources, cache: ImageCache, config: Config) -> tuple[pd.DataFrame, str]:
        table, joined = whole(lesions, cache, config)
        others = table["part"] != "train"
        groups = np.random.default_rng(config.seed).permutation(table.loc[~others, "group"].unique())
        kept = groups[: math.ceil(share * len(groups))]
        return table[others | table["group"].isin(kept)].reset_index(drop=True), joined

    with patch.object(dataset, "join_equal_pictures", fewer):
        yield


def measure(configs: list[Config]) -> dict[str, str]:
    """Return the mean counts of the training parts of runs, and the AUC on their test parts, pooled: a row."""
    ensembles = predict.load_ensembles(configs[0], [config.run_dir for config in configs])
    table = predict.score_own(configs[0], ensembles).table
    labels = np.concatenate([ensemble.runs[0].reference_labels for ensemble in ensembles])  # of the training parts
    images, melanoma = (count / len(configs) for count in (len(labels), labels.sum()))
    row = {"images": f"{images:,.0f}", "melanoma": f"{melanoma:,.0f}"}
    rng, sources = np.random.default_rng(0), dict(list(table.groupby("source")))
    for name, own in ((sources if len(sources) > 1 else {}) | {"all": table}).items():
        found = brief_metrics(own, rng)
        row[name] = found["note"] or "{auc:.3f} ({auc_interval[0]:.3f} to {auc_interval[1]:.3f})".format_map(found)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--train-image", type=Path, nargs="+", required=True, metavar="DIR")
    parser.add_argument("--train-labels", type=Path, nargs="+", required=True, metavar="CSV")
    parser.add_argument("--recipe", choices=tuple(RECIPES), default="strong")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--folds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/learning_curve"), help="runs and figures go here")
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    parser.add_argument("--backbone-weights", metavar="FILE", default="imagenet")
    arguments = parser.parse_args()
    rows = []
    for share in arguments.shares:
        configs = [
            Config(
                train_image=tuple(arguments.train_image),
                train_labels=tuple(arguments.train_labels),
                recipe=arguments.recipe,
                epoch_share=min(1.0, RECIPES[arguments.recipe]["epoch_share"] / share),
                backbone_weights=arguments.backbone_weights,
                fold=fold,
                cache_dir=arguments.cache_dir,
                run_dir=arguments.work / f"share{share}_fold{fold}",
                graph_dir=arguments.work / f"share{share}_fold{fold}" / "graph",
            )
            for fold in arguments.folds
        ]
        with training_share(share):
            for config in configs:
                train.main(config, overwrite=True)
        rows.append({"share": f"{share:g}", **measure(configs)})
    cells = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    print("\n".join(f"| {' | '.join(row)} |" for row in cells))


if __name__ == "__main__":
    run_script(main)
