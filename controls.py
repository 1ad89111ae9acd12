"""Controls: what metadata, file size or mean colour alone say of a lesion. A network worth its while beats them.

`python controls.py` prints the AUC of the metadata (age, sex, site) over the five test folds of the patient split:
it needs the CSV alone, no image.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import dataset
from config import Config, add_flags, from_flags, run_script
from images import ImageCache

METADATA = ["age", "sex", "site"]
FILE = ["width", "height", "bytes"]
COLOUR = ["red", "green", "blue"]


def file_traits(paths: list[Path]) -> pd.DataFrame:
    """Return width, height (pixels, from the header) and bytes of image files; NaN where one cannot be read."""
    rows = []
    for path in paths:
        try:
            with Image.open(path) as image:
                rows.append((*image.size, path.stat().st_size))
        except (OSError, Image.DecompressionBombError):
            rows.append((np.nan, np.nan, np.nan))
    return pd.DataFrame(rows, columns=FILE, dtype=float)


def mean_colour(cache: ImageCache, rows: np.ndarray, block: int = 256) -> pd.DataFrame:
    """Return the mean red, green and blue, 0..255, of images by cache row."""
    parts = [cache.gather(own).mean(axis=(1, 2)) for own in np.split(rows, range(block, len(rows), block))]
    return pd.DataFrame(np.concatenate(parts), columns=COLOUR)


def fit_and_score(train: pd.DataFrame, test: pd.DataFrame, columns: list[str], seed: int = 0) -> np.ndarray:
    """Learn melanoma from some columns of one table and return the scores (N,) of another, large = melanoma.

    Mean colour by logistic regression, which is enough for three numbers; all else by gradient-boosted trees, which
    take blanks and categories as they are.

    Parameters
    ----------
    train, test : tables with the columns; train has `label` too
    """
    labels = train["label"].to_numpy()
    if columns == COLOUR:
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        return model.fit(train[columns], labels).decision_function(test[columns])
    features = pd.concat([train[columns], test[columns]], ignore_index=True)
    for name in features.select_dtypes(exclude="number"):
        features[name] = pd.Categorical(features[name].where(features[name] != ""))
    trees = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.05,
        class_weight="balanced",
        random_state=seed,
        categorical_features="from_dtype",
    )
    trees.fit(features.iloc[: len(train)], labels)
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
