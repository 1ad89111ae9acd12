"""What is measured of judged lesions: figures with intervals, folds, controls and subgroups, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from melanoma.common.files import is_file
from melanoma.data.labels import read_labels
from melanoma.evaluation.bootstrap import compare, fold_figures, intervals
from melanoma.evaluation.controls import METADATA, beaten, control_scores, control_table, image_features
from melanoma.evaluation.metrics import evaluate
from melanoma.evaluation.subgroups import typology_angles
from melanoma.scoring.ensemble import Panel, Scored


def measure(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the figures of judged lesions with their intervals, and those of each fold if there are several.

    Parameters
    ----------
    table : as `panel.judged`
    rng : source of the bootstrap's draws
    """
    labels, probability, threshold, patients = (
        table[name].to_numpy() for name in ("label", "probability", "threshold", "patient_id")
    )
    figures = evaluate(labels, probability, threshold)
    own = intervals(labels, probability, threshold, patients, rng)
    figures |= {"n_patients": table["patient_id"].nunique(), "intervals": own, "auc_interval": own["auc"]}
    if "fold" in table and table["fold"].nunique() > 1:
        figures["folds"] = fold_figures(table, rng)
    return figures


def compare_runs(panels: Sequence[Scored], names: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Compare two runs, or panels of them, by their AUC on the same lesions.

    Returns
    -------
    as `bootstrap.compare`, with the names of a and b and the number of lesions

    Raises
    ------
    ValueError : they have not judged the same lesions
    """
    first, second = (scored.table.sort_values("image_name").reset_index(drop=True) for scored in panels)
    if not first[["image_name", "label"]].equals(second[["image_name", "label"]]):
        raise ValueError("the two have not judged the same images")
    found = compare(
        first["label"].to_numpy(),
        first["probability"].to_numpy(),
        second["probability"].to_numpy(),
        first["patient_id"].to_numpy(),
        rng,
    )
    return {"a": names[0], "b": names[1], "n": len(first), **found}


def add_context(scored: Scored, metadata: pd.DataFrame | None) -> pd.DataFrame:
    """Return judged lesions with what subgroups are made of: megapixels, typology_angle, and age, sex, site if known.

    metadata : as `read_metadata`
    """
    table = scored.table
    if metadata is not None:
        table = table.merge(metadata, on="image_name", how="left")
    sources = [scored.cache.sources[name] for name in table["image_name"]]
    return table.assign(
        megapixels=[source.width * source.height / 1e6 for source in sources],
        typology_angle=typology_angles(scored.cache, table["image_name"]),
    )


def measure_controls(
    panels: Sequence[Panel], scored: Scored, metadata: pd.DataFrame | None, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return what simple rules reach on the panels' test parts, and whether the network beats them.

    Returns
    -------
    rows as `controls.control_table`, with `beaten` (see `controls.beaten`) and `verdict` in words
    """
    folds = [panel.table for panel in panels]
    if metadata is not None:
        folds = [fold.merge(metadata, on="image_name", how="left") for fold in folds]
    features = image_features(scored.cache, folds[0]["image_name"])
    scores = control_scores(folds, features)
    verdicts = {row["name"]: row for row in beaten(scored.table, scores, rng)}
    return [
        row | {key: verdicts.get(row["name"], {}).get(key) for key in ("beaten", "verdict")}
        for row in control_table(scores, rng)
    ]


def metadata_notes(panels: Sequence[Panel], metadata: pd.DataFrame | None, labels: Path) -> list[str]:
    """Return a sentence if the label CSV lacks images of the runs: what is made of age, sex and site then misleads."""
    if metadata is None:
        return []
    names = pd.concat([panel.table["image_name"] for panel in panels]).drop_duplicates()
    missing = names[~names.isin(metadata["image_name"])]
    if missing.empty:
        return []
    return [
        f"Age, sex and site of {len(missing):,} of the runs' {len(names):,} images are unknown, since {labels} does "
        f"not name them ({missing.iloc[0]} is one): subgroups and the metadata control rest on the others"
    ]


def read_metadata(labels: Path, argument: str) -> tuple[pd.DataFrame | None, str]:
    """Return image_name, age, sex and site of a label CSV, or None with the reason why there is none."""
    if not is_file(labels):
        return None, f"{argument} {labels} is not there: age, sex and site are unknown"
    return read_labels(labels, argument)[["image_name", *METADATA]], ""
