"""A control: what age, sex and site alone say of a lesion. A network worth its while beats it.

`python controls.py` prints the AUC of the metadata (age, sex, site) over the five test folds of the patient split:
it needs the CSV alone, no image.
"""

from __future__ import annotations

import argparse
import dataclasses
import json

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import dataset
from config import Config, add_flags, from_flags, run_script

METADATA = ["age", "sex", "site"]


def fit_and_score(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Learn melanoma from some columns of one table and return the scores (N,) of another, large = melanoma.

    By gradient-boosted trees, which take blanks and categories as they are.

    Parameters
    ----------
    train, test : tables with the columns; train has `label` too
    """
    features = pd.concat([train[columns], test[columns]], ignore_index=True)
    for name in features.select_dtypes(exclude="number"):
        features[name] = pd.Categorical(features[name].where(features[name] != ""))
    trees = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        class_weight="balanced",
        random_state=0,
        categorical_features="from_dtype",
    )
    trees.fit(features.iloc[: len(train)], train["label"])
    return trees.decision_function(features.iloc[len(train) :])


def metadata_auc(config: Config) -> dict[str, float | list[float] | int]:
    """Return the AUC of age, sex and site: of each test fold, and pooled over all five.

    Each fold's scores come from the other four; pooled they are compared as they are.
    """
    scores, labels, folds = [], [], []
    for fold in range(dataset.N_FOLDS):
        table = dataset.load_lesions(dataclasses.replace(config, fold=fold), need_images=False).table
        test = table[table["part"] == "test"]
        scores.append(fit_and_score(table[table["part"] != "test"], test, METADATA))
        labels.append(test["label"].to_numpy())
        folds.append(float(roc_auc_score(labels[-1], scores[-1])))
    pooled = roc_auc_score(np.concatenate(labels), np.concatenate(scores))
    return {"auc": float(pooled), "folds": folds, "images": sum(map(len, labels))}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(description="AUC of age, sex and site alone.", allow_abbrev=False)
    add_flags(parser)
    return parser


def main() -> None:
    print(json.dumps(metadata_auc(from_flags(make_parser().parse_args())), indent=2))


if __name__ == "__main__":
    run_script(main)
