"""Print the metrics of the controls over the five test folds of the patient split: `python benchmarks/controls.py`.

Always benign, metadata, image size, file size and mean colour, see melanoma/evaluation/controls.py. Without the
images only those that need the label CSV alone are computed.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import dataset
from config import RECIPES, Config
from melanoma.common.script import run_script
from melanoma.common.settings import Parser, add_flags, from_flags
from melanoma.data.cache import build_cache, refuse_unreadable
from melanoma.data.split import N_FOLDS
from melanoma.evaluation.controls import control_scores, control_table, image_features


def run_controls(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    """Return the controls over the five test folds of the patient split, or the test part of the published one."""
    numbers = range(N_FOLDS) if config.split == "patient" else [config.fold]
    configs = [dataclasses.replace(config, fold=number, validation_fold=None) for number in numbers]
    lesions = [dataset.load_lesions(own, need_images=False) for own in configs]
    folds = [one.table for one in lesions]
    if lesions[0].paths:
        cache = build_cache(lesions[0].paths, config.image_size, config.cache_dir, config.workers)
        refuse_unreadable(cache.errors, config.skip_unreadable)
        features = image_features(cache, cache.row_of)
        folds = [fold.join(features, on="image_name", how="inner") for fold in folds]
    scores = control_scores(folds)
    controls = control_table(scores, rng)
    return {"images": len(scores), "melanomas": int(scores["label"].sum()), "controls": controls}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("Print the metrics of the controls.", "python benchmarks/controls.py [--FLAG VALUE ...]")
    add_flags(parser, Config, RECIPES)
    return parser


def main() -> None:
    config = from_flags(Config, RECIPES, make_parser().parse_args())
    print(json.dumps(run_controls(config, np.random.default_rng([config.split_seed, 0])), indent=2))


if __name__ == "__main__":
    run_script(main)
