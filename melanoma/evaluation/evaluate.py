"""The evaluation of judged lesions: metrics with intervals, folds, controls and subgroups, as one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from melanoma.data.cache import ImageCache
from melanoma.data.split import ALONE
from melanoma.evaluation.bootstrap import brief_metrics, compare, fold_metrics, intervals, too_few
from melanoma.evaluation.controls import METADATA, beaten, control_scores, control_table, image_features
from melanoma.evaluation.metrics import count_outcomes, evaluate, rates
from melanoma.evaluation.subgroups import typology_angles


def measure(table: pd.DataFrame, rng: np.random.Generator) -> dict[str, Any]:
    """Return the metrics of judged lesions with their intervals, and those of each fold if there are several.

    Parameters
    ----------
    table : columns label, probability, threshold, patient_id and group, `fold` where folds are pooled, and
        specific_threshold, the one with 90 % specificity on validation
    rng : source of the bootstrap samples

    Returns
    -------
    `metrics.evaluate`, and
    n_patients, n_groups, n_without_id : the last counts images without a patient or lesion id, groups of their own
    intervals, auc_interval
    at_specific_threshold : sensitivity and specificity at that threshold, as `metrics.rate`
    auc_with_id : of the images that have an id, where some have none: {auc, auc_interval, n, n_melanoma}
    not_computed : has the reasons of intervals and auc_with_id, too
    """
    labels, probability, threshold, groups = (
        table[name].to_numpy() for name in ("label", "probability", "threshold", "group")
    )
    metrics = evaluate(labels, probability, threshold)
    own = intervals(labels, probability, threshold, groups, rng)
    few = too_few(labels, groups)
    if few:
        metrics["not_computed"]["intervals"] = few
    specific = rates(count_outcomes(labels, probability, table["specific_threshold"].to_numpy()))
    metrics["at_specific_threshold"] = {key: specific[key] for key in ("sensitivity", "specificity")}
    alone = table["group"].str.startswith(ALONE)
    metrics |= {
        "n_patients": table.loc[table["patient_id"] != "", "patient_id"].nunique(),
        "n_groups": table["group"].nunique(),
        "n_without_id": int(alone.sum()),
        "intervals": own,
        "auc_interval": own["auc"],
    }
    if alone.any() and not alone.all():
        known = brief_metrics(table[~alone], rng)
        metrics["auc_with_id"] = {key: known[key] for key in ("auc", "auc_interval", "n", "n_melanoma")}
        if known["note"]:
            metrics["not_computed"]["auc_with_id"] = known["note"]
    if "fold" in table and table["fold"].nunique() > 1:
        metrics["folds"] = fold_metrics(table, rng)
    return metrics


def compare_runs(tables: Sequence[pd.DataFrame], names: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """Compare two runs or ensembles by AUC: `bootstrap.compare`, with the names of a and b and the number of lesions.

    tables : two tables of image_name, group, label, probability, in any order of the rows

    Raises
    ------
    ValueError : they have not judged the same lesions
    """
    first, second = (table.sort_values("image_name").reset_index(drop=True) for table in tables)
    if not first[["image_name", "label"]].equals(second[["image_name", "label"]]):
        raise ValueError("the two have not judged the same images")
    labels, scores, groups = (first[key].to_numpy() for key in ("label", "probability", "group"))
    found = compare(labels, scores, second["probability"].to_numpy(), groups, rng)
    return {"a": names[0], "b": names[1], "n": len(first), **found}


def with_features(table: pd.DataFrame, cache: ImageCache) -> pd.DataFrame:
    """Return a table of images, by image_name, with the columns of the controls: see `controls.image_features`."""
    return table.join(image_features(cache, table["image_name"]), on="image_name")


def add_context(table: pd.DataFrame, cache: ImageCache, metadata: pd.DataFrame) -> pd.DataFrame:
    """Return judged lesions with the columns of subgroups: megapixels, typology_angle, age, sex and site.

    metadata : image_name and METADATA of the lesions, in any order
    """
    table = table.merge(metadata[["image_name", *METADATA]], on="image_name", how="left")
    sources = [cache.sources[name] for name in table["image_name"]]
    return table.assign(
        megapixels=[source.width * source.height / 1e6 for source in sources],
        typology_angle=typology_angles(cache, table["image_name"]),
    )


def measure_controls(
    folds: Sequence[pd.DataFrame], judged: pd.DataFrame, rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return the metrics of the controls on the test parts of `folds`, and whether the network is better.

    Parameters
    ----------
    folds : a table for each split: image_name, source, group, label, part, METADATA, and `with_features`
    judged : columns image_name and probability, by the network

    Returns
    -------
    rows as `controls.control_table`, with `beaten` and `verdict` of `controls.beaten`
    """
    scores = control_scores(folds)
    verdicts = beaten(judged, scores, rng)
    return [row | verdicts[row["name"]] for row in control_table(scores, rng)]
