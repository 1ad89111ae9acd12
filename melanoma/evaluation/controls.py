"""Controls: what can be predicted without looking at the lesion. A useful network is better than these.

Each control learns on the training part of a split and judges its test part, as a network does. It sees nothing (always
benign); age, sex and site; the size of the image; the size of its file; its mean colour; or, where there are several,
the source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from melanoma.data.cache import ImageCache
from melanoma.evaluation.bootstrap import DRAWS, auc_interval, compare, too_few
from melanoma.evaluation.metrics import evaluate

METADATA = ["age", "sex", "site"]
COLOURS = [f"{channel}_{what}" for channel in ("red", "green", "blue") for what in ("mean", "spread")]
# The features of each control: columns of the label table or of `image_features`.
CONTROLS: dict[str, list[str]] = {
    "always benign": [],
    "metadata": METADATA,
    "image size": ["width", "height"],
    "file size": ["bytes"],
    "mean colour": COLOURS,
    "source": ["source"],  # only where there are several
}
CATEGORIES = 250  # of a column, the most frequent: the trees take 255 at most
UNEVEN = 0.05  # a larger difference between the classes' shares of blanks is noted
BLOCK = 64  # images at a time


def fit_and_score(train: pd.DataFrame, test: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Fit gradient-boosted trees to some columns of a training part; return the scores (N,) of a test part.

    The trees take blanks and categories as they are; the rarest of more than 250 categories count as blank. A column
    that is blank throughout training is left out; without any column all scores are 0.
    """
    from sklearn.ensemble import HistGradientBoostingClassifier  # slow to import

    columns = [name for name in columns if (train[name].notna() & (train[name] != "")).any()]
    if not columns:
        return np.zeros(len(test))
    features = pd.concat([train[columns], test[columns]], ignore_index=True)
    for name in features.select_dtypes(exclude="number"):
        frequent = features[name][features[name] != ""].value_counts().index[:CATEGORIES]
        features[name] = pd.Categorical(features[name].where(features[name].isin(frequent)))
    trees = HistGradientBoostingClassifier(
        max_iter=100, learning_rate=0.05, class_weight="balanced", random_state=0, categorical_features="from_dtype"
    )
    with threadpool_limits(1):  # for tables this small, synchronizing threads costs more than it saves
        trees.fit(features.iloc[: len(train)], train["label"])
        scores = trees.decision_function(features.iloc[len(train) :])
    return np.round(scores, 6)  # lesions with equal features tie, also across folds


def image_features(cache: ImageCache, names: Iterable[str]) -> pd.DataFrame:
    """Return the image features of the controls: a table with the names as its index.

    Width, height (pixels) and bytes of the source file; mean and spread (standard deviation) of each colour, in 0..255.
    """
    names = list(names)
    rows = cache.rows(names)
    colours = np.empty((len(rows), 3, 2))
    for start in range(0, len(rows), BLOCK):
        pixels = cache.gather(rows[start : start + BLOCK]).reshape(-1, cache.pixels[0].size // 3, 3)
        colours[start : start + BLOCK] = np.stack([pixels.mean(axis=1), pixels.std(axis=1)], axis=2)
    sources = pd.DataFrame([dataclasses.asdict(cache.sources[name]) for name in names], index=names)
    return sources.join(pd.DataFrame(colours.reshape(-1, 6), columns=COLOURS, index=names))


def control_scores(folds: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Let each control judge the test parts of some folds, each after learning on the training part.

    Scores of several folds are pooled unchanged: they are log odds at balanced classes.

    Parameters
    ----------
    folds : a table for each split: image_name, group, label, part, and if known source, age, sex, site and the columns
        of `image_features`; a control whose columns one of them lacks is left out

    Returns
    -------
    a row for each test image: image_name, group, label, age, sex, site, and a column of scores for each control
    whose features are available, by its name
    """
    known = set.intersection(*map(set, folds))
    controls = {name: columns for name, columns in CONTROLS.items() if set(columns) <= known}
    if "source" in known and len({source for table in folds for source in table["source"]}) == 1:
        del controls["source"]
    kept = ["image_name", "group", "label", *(name for name in METADATA if name in known)]
    parts = []
    for table in folds:
        train, test = (table[table["part"] == part] for part in ("train", "test"))
        scores = {name: fit_and_score(train, test, columns) for name, columns in controls.items()}
        parts.append(test[kept].assign(**scores))
    return pd.concat(parts, ignore_index=True)


def control_table(scores: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return a row of metrics for each control as JSON values, also for those that could not judge.

    The control by source is left out where there is only one.

    Parameters
    ----------
    scores : as `control_scores`
    rng, draws : see `bootstrap.intervals`

    Returns
    -------
    rows {name, auc, auc_interval, average_precision, sensitivity_at_specificity: {"90%"}, note}
    """
    labels, groups = scores["label"].to_numpy(), scores["group"].to_numpy()
    few = too_few(labels, groups)
    rows = []
    for name, columns in CONTROLS.items():
        if name == "source" and name not in scores:
            continue
        auc = interval = precision = sensitivity = None
        note = f"not computed: needs {', '.join(columns)}"
        if name in scores:
            own = scores[name].to_numpy()
            metrics = evaluate(labels, own, 0.0)
            auc, precision = metrics["auc"], metrics["average_precision"]
            sensitivity = metrics["sensitivity_at_specificity"]["90%"]
            interval = auc_interval(labels, own, groups, rng, draws)
            note = "; ".join(text for text in (_note(name, scores), few) if text)
        rows.append(
            {
                "name": name,
                "auc": auc,
                "auc_interval": interval,
                "average_precision": precision,
                "sensitivity_at_specificity": {"90%": sensitivity},
                "note": note,
            }
        )
    return rows


def beaten(
    judged: pd.DataFrame, scores: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS
) -> dict[str, dict[str, Any]]:
    """Compare a network with each control on the images that both have judged, by a paired bootstrap over groups.

    Parameters
    ----------
    judged : columns image_name and probability, by the network
    scores : as `control_scores`
    rng, draws : see `bootstrap.compare`

    Returns
    -------
    {beaten, verdict} by control. beaten : whether the 95 % interval of the difference of the AUCs lies above 0; None
    without an interval. verdict : the same in words
    """
    both = scores.merge(judged[["image_name", "probability"]], on="image_name", validate="one_to_one")
    labels, groups = both["label"].to_numpy(), both["group"].to_numpy()
    rows: dict[str, dict[str, Any]] = {}
    for name in (name for name in CONTROLS if name in both):
        found = compare(labels, both["probability"].to_numpy(), both[name].to_numpy(), groups, rng, draws)
        alone = name if name == "always benign" else f"{name} alone"
        if found["interval"] is None:
            rows[name] = {"beaten": None, "verdict": f"not compared with {alone}: {found['not_computed']}"}
            continue
        low, high = found["interval"]
        verdict = (
            f"{'better' if low > 0 else 'not better'} than {alone}: AUC {found['auc_a']:.3f} against "
            f"{found['auc_b']:.3f}, difference {found['difference']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"
        )
        rows[name] = {"beaten": low > 0, "verdict": verdict}
    return rows


def _note(name: str, scores: pd.DataFrame) -> str:
    """Return a remark on how to read a control's metrics, or nothing."""
    if name == "always benign":
        return f"accuracy {(scores['label'] != 1).mean():.3f}, sensitivity 0"
    if np.ptp(scores[name]) == 0:
        return f"{name} gives all images the same score"
    if name == "metadata":
        blank = (scores[METADATA].isna() | (scores[METADATA] == "")).any(axis=1)
        melanoma, benign = (blank[scores["label"] == label].mean() for label in (1, 0))
        if abs(melanoma - benign) > UNEVEN:
            return (
                f"age, sex or site is blank for {melanoma:.0%} of the melanomas and {benign:.0%} of the benign "
                "lesions: the blanks alone separate the classes"
            )
    return ""
