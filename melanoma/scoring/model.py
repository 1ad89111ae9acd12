"""A trained model in Python: it judges photos and gives their embeddings. `melanoma.load` reads one from a file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.special import expit

from melanoma.common.errors import InputError
from melanoma.data.cache import decode_photos
from melanoma.scoring.ensemble import (
    Ensemble,
    Run,
    common_threshold,
    decode_all,
    known_pictures,
    runs_of,
    score_together,
)
from melanoma.scoring.explain import heat_map
from melanoma.scoring.scores import familiarity, nearest_references

COLUMNS = ["path", "probability", "threshold", "decision", "nearest_distance", "nearest_label", "nearest_name"]
COLUMNS += ["familiarity", "known", "error"]
AT_A_TIME = 256  # images held in memory
Photo = str | Path | Image.Image


class Model:
    """Trained runs that judge a photo together, by the mean of their log odds.

    Distances, neighbours and embeddings are those of the first run.

    Parameters
    ----------
    ensembles : see `ensemble.make_ensemble`
    workers : threads that decode images (0: one for each core)
    """

    def __init__(self, ensembles: Sequence[Ensemble], workers: int = 0) -> None:
        self.ensembles = list(ensembles)
        self.workers = workers

    @property
    def first(self) -> Run:
        """The run that embeds."""
        return self.ensembles[0].runs[0]

    @property
    def alone(self) -> bool:
        """Whether it is one run."""
        return len(runs_of(self.ensembles)) == 1

    @property
    def threshold(self) -> float:
        """The probability from which on a lesion is called melanoma."""
        return common_threshold([ensemble.judge.threshold for ensemble in self.ensembles])

    def predict(self, images: Photo | Sequence[Photo]) -> pd.DataFrame:
        """Judge photos.

        Parameters
        ----------
        images : paths of image files, PIL images, or one of them

        Returns
        -------
        a row for each: path (of a PIL image, its number); probability of melanoma, threshold, decision (melanoma or
        benign); distance, label and name of the nearest reference, a training lesion; familiarity, the share of
        validation images that lie as far from theirs; known, whether a run was trained on this picture or chosen by it
        (not known of a PIL image); or, with all these blank, error
        """
        return pd.concat([table for _, table, _, _ in self.judge(_listed(images))], ignore_index=True)

    def embed(self, images: Photo | Sequence[Photo]) -> np.ndarray:
        """Return the embeddings of photos, float32 (N, D); see `predict`.

        Raises
        ------
        InputError : an image cannot be read
        """
        whole, parts = self.ensembles[0], []
        first = replace(whole, runs=whole.runs[:1], scorers=whole.scorers[:1])
        for _, table, embeddings, _ in Model([first], self.workers).judge(_listed(images)):
            failed = table[table["error"] != ""]
            if len(failed):
                raise InputError("image {path} cannot be read: {error}".format_map(failed.iloc[0]))
            parts.append(embeddings)
        return np.concatenate(parts)

    def judge(
        self, photos: Sequence[Path | Image.Image]
    ) -> Iterator[tuple[Sequence[Path | Image.Image], pd.DataFrame, np.ndarray, np.ndarray]]:
        """Judge photos a few hundred at a time.

        Yields
        ------
        photos; their table, as `predict`; of those that can be read the embeddings, float32 (N, D), and the pixels that
        the first run saw, uint8 (N, S, S, 3)
        """
        for start in range(0, len(photos), AT_A_TIME):
            part = photos[start : start + AT_A_TIME]
            texts = [
                f"image {number}" if isinstance(photo, Image.Image) else shown_path(photo)
                for number, photo in enumerate(part, start)
            ]
            yield part, *self._judge(part, texts)

    def _judge(
        self, photos: Sequence[Path | Image.Image], texts: Sequence[str]
    ) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        first = self.first
        named = {str(number): photo for number, photo in enumerate(photos)}
        feeds, errors = decode_all(self.ensembles, named, partial(decode_photos, workers=self.workers))
        names = pd.Series([name for name in named if name not in errors], dtype=str)
        if len(names):
            log_odds, embeddings = score_together(self.ensembles, feeds, names)
        else:
            log_odds, embeddings = np.empty(0), np.empty((0, first.references.shape[1]), np.float32)
        probability, threshold = expit(log_odds), self.threshold
        distances, rows = (found[:, 0] for found in nearest_references(embeddings, first.references, 1))
        judged = pd.DataFrame(
            {
                "probability": probability,
                "threshold": threshold,
                "decision": np.where(probability >= threshold, "melanoma", "benign"),
                "nearest_distance": distances,
                "nearest_label": first.reference_labels[rows],
                "nearest_name": first.reference_names[rows],
                "familiarity": familiarity(distances, first.validation["nearest_distance"].to_numpy()),
                "known": known_pictures(self.ensembles, feeds, names.tolist()),
            },
            index=names,
        ).astype({"nearest_label": "Int64", "known": "boolean"})
        decoded = [name for name, photo in named.items() if isinstance(photo, Image.Image) and name in judged.index]
        judged.loc[decoded, "known"] = pd.NA  # the pixels of a file decoded elsewhere may differ a little
        table = judged.reindex(list(named)).fillna({"decision": "", "nearest_name": ""})
        table = table.assign(path=texts, error=[errors.get(name, "") for name in named])[COLUMNS]
        cache = feeds[first.image_size].cache
        return table.reset_index(drop=True), embeddings, cache.gather(cache.rows(names))

    def neighbours(self, embedding: np.ndarray, count: int) -> list[list[tuple[str, np.ndarray, float]]]:
        """Return the nearest melanomas and the nearest benign lesions among the references with pictures.

        A slim model has none.

        Parameters
        ----------
        embedding : of a lesion, float (D,)
        count : of each class at most

        Returns
        -------
        of both classes the name, picture, uint8 (S, S, 3), and distance of each, the nearest first
        """
        first = self.first
        pictured = np.array(list(first.pictures), int)
        found = []
        for label in (1, 0):
            own = pictured[first.reference_labels[pictured] == label]
            distances, places = nearest_references(embedding[None], first.references[own], count)
            rows = own[places[0]].tolist()
            named = zip(first.reference_names[rows], map(first.picture, rows), distances[0].tolist(), strict=True)
            found.append(list(named))
        return found

    def heat_map(self, pixels: np.ndarray) -> np.ndarray:
        """Return what speaks for melanoma in an image, above 0, and for benign, below, by the first run.

        pixels : uint8 (S, S, 3), as `judge` yields them; the map is float32 (S, S), see `explain.heat_map`
        """
        first, scorer = self.first, self.ensembles[0].scorers[0]
        return heat_map(first.network, pixels, scorer, first.references, first.reference_labels, first.test_views)


def _listed(images: Photo | Sequence[Photo]) -> list[Path | Image.Image]:
    """Return one or several photos as a list, PIL images loaded, so that threads may use them.

    Raises
    ------
    InputError : there is none, or something else
    """
    several = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    if not several:
        raise InputError("there is no image to judge")
    for image in several:
        if not isinstance(image, (str, Path, Image.Image)):
            raise InputError(f"a photo is a path or a PIL image, not of type {type(image).__name__}")
        if isinstance(image, Image.Image):
            with contextlib.suppress(Exception):  # a broken one has its error in the table
                image.load()
    return [image if isinstance(image, Image.Image) else Path(image) for image in several]


def shown_path(path: Path) -> str:
    """Return a path as text; of a name that is no UTF-8 the odd bytes are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()
