"""The evaluation of judged lesions: metrics with intervals, folds, controls and subgroups, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.common.files import is_file
from melanoma.data.cache import ImageCache
from melanoma.data.labels import read_labels
from melanoma.evaluation.bootstrap import compare, fold_metrics, intervals
from melanoma.evaluation.controls import METADATA, beaten, control_scores, control_table, image_features
from melanoma.evaluation.metrics import evaluate
from melanoma.evaluation.subgroups import typology_angles


def measure(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the metrics of judged lesions with their intervals, and those of each fold if there are several.

    Parameters
    ----------
    table : columns label, probability, threshold and patient_id, and `fold` where folds are pooled
    rng : source of the bootstrap samples
    """
    labels, probability, threshold, patients = (
        table[name].to_numpy() for name in ("label", "probability", "threshold", "patient_id")
    )
    metrics = evaluate(labels, probability, threshold)
    own = intervals(labels, probability, threshold, patients, rng)
    metrics |= {"n_patients": table["patient_id"].nunique(), "intervals": own, "auc_interval": own["auc"]}
    if "fold" in table and table["fold"].nunique() > 1:
        metrics["folds"] = fold_metrics(table, rng)
    return metrics


def compare_runs(tables: Sequence[pd.DataFrame], names: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Compare two runs or ensembles by AUC: `bootstrap.compare`, with the names of a and b and the number of lesions.

    tables : two tables of image_name, patient_id, label, probability, in any order of the rows

    Raises
    ------
    ValueError : they have not judged the same lesions
    """
    first, second = (table.sort_values("image_name").reset_index(drop=True) for table in tables)
    if not first[["image_name", "label"]].equals(second[["image_name", "label"]]):
        raise ValueError("the two have not judged the same images")
    labels, scores, patients = (first[key].to_numpy() for key in ("label", "probability", "patient_id"))
    found = compare(labels, scores, second["probability"].to_numpy(), patients, rng)
    return {"a": names[0], "b": names[1], "n": len(first), **found}


def add_context(table: pd.DataFrame, cache: ImageCache, metadata: pd.DataFrame | None) -> pd.DataFrame:
    """Return judged lesions with the columns of subgroups: megapixels, typology_angle, and if known age, sex, site.

    metadata : as `read_metadata`
    """
    if metadata is not None:
        table = table.merge(metadata, on="image_name", how="left")
    sources = [cache.sources[name] for name in table["image_name"]]
    return table.assign(
        megapixels=[source.width * source.height / 1e6 for source in sources],
        typology_angle=typology_angles(cache, table["image_name"]),
    )


def measure_controls(
    folds: Sequence[pd.DataFrame],
    judged: pd.DataFrame,
    cache: ImageCache,
    metadata: pd.DataFrame | None,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the metrics of the controls on the test parts of `folds`, and whether the network is better.

    Parameters
    ----------
    folds : a table of image_name, patient_id, label and part for each split; the same images in all
    judged : columns image_name and probability, by the network
    cache : has the pixels of all images

    Returns
    -------
    rows as `controls.control_table`, with `beaten` and `verdict` of `controls.beaten`
    """
    features = image_features(cache, folds[0]["image_name"])
    if metadata is not None:
        folds = [fold.merge(metadata, on="image_name", how="left") for fold in folds]
    scores = control_scores(folds, features)
    verdicts = beaten(judged, scores, rng)
    unknown = {"beaten": None, "verdict": None}
    return [row | verdicts.get(row["name"], unknown) for row in control_table(scores, rng)]


def metadata_notes(tables: Sequence[pd.DataFrame], metadata: pd.DataFrame | None, labels: Path) -> list[str]:
    """Return a note if the label CSV lacks images of the runs, whose age, sex and site are then unknown."""
    if metadata is None:
        return []
    names = pd.concat([table["image_name"] for table in tables]).drop_duplicates()
    missing = names[~names.isin(metadata["image_name"])]
    if missing.empty:
        return []
    return [
        f"Age, sex and site of {len(missing):,} of the runs' {len(names):,} images are unknown: {labels} lacks them "
        f"(for example {missing.iloc[0]}); subgroups and the metadata control use the others only"
    ]


def read_metadata(labels: Path, argument: str) -> tuple[pd.DataFrame | None, str]:
    """Return image_name, age, sex and site of a label CSV, or None with the reason."""
    if not is_file(labels):
        return None, f"{argument} {labels} does not exist: age, sex and site are unknown"
    return read_labels(labels, argument)[["image_name", *METADATA]], ""
