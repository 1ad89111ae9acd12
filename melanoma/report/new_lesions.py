"""Lesions without a label: photos from anywhere are judged, explained and drawn; the challenge's test set is scored.

`python predict.py photo.jpg folder/` and `python predict.py --submission` come here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from melanoma.common.errors import InputError
from melanoma.common.files import replace_file
from melanoma.data.cache import ImageCache, decode_photos
from melanoma.data.decoding import decode_image, find_images
from melanoma.data.labels import read_test_names
from melanoma.report.lesions import Neighbour, lesion_card
from melanoma.report.style import one_line, save_figure
from melanoma.scoring.ensemble import (
    Decode,
    Ensemble,
    common_threshold,
    decode_all,
    results_folder,
    runs_of,
    score_together,
)
from melanoma.scoring.explain import grad_cam
from melanoma.scoring.scores import familiarity, nearest_references

COLUMNS = ["path", "probability", "threshold", "decision", "nearest_distance", "familiarity", "error"]
CARDS = 200  # of more photos no cards are drawn unless asked for, and the terminal shows the first
AT_A_TIME = 256  # photos held in memory
NEIGHBOURS = 5  # of each class on a card
SIDE = 256  # pixels of an image on a card
UNFAMILIAR = 0.01  # below it a photo is said to be unlike anything seen
DECISIONS = ("benign", "melanoma")


# --- photos ---


def judge_photos(
    ensembles: list[Ensemble],
    paths: Sequence[Path],
    train_image: Path,
    graph_dir: Path,
    workers: int = 0,
    cards: bool | None = None,
) -> pd.DataFrame:
    """Judge images by the mean of all runs' log odds; write new_lesions.csv and a card for each.

    Distances, heat map and neighbours are those of the first run. new_lesions.csv has paths as they are: a spreadsheet
    may take one that begins with = + - or @ for a formula, so open it as text there.

    Parameters
    ----------
    paths : image files
    train_image : folder of the training images, for the neighbours on the cards
    graph_dir : the cards go to its folder lesions/, and the table of several runs to it
    workers : threads that decode images (0: one for each core)
    cards : draw them; None: if there are not too many

    Returns
    -------
    the table written, a row for each image: path; probability of melanoma, threshold, decision; distance to the
    nearest reference, and the share of validation images that lie as far from theirs; or, with all these blank, error

    Raises
    ------
    InputError : no image there, or none that can be read
    """
    first = ensembles[0].runs[0]
    usual, _ = nearest_references(ensembles[0].validation, first.references, 1)
    drawer = CardDrawer(ensembles, train_image, graph_dir / "lesions")
    drawn = len(paths) <= CARDS if cards is None else cards
    tables = []
    with tqdm(total=len(paths), desc="judging", unit="photo", disable=None) as bar:
        for start in range(0, len(paths), AT_A_TIME):
            keyed = {_text(path): path for path in paths[start : start + AT_A_TIME]}
            table, embeddings, cache = judge_chunk(ensembles, keyed, usual[:, 0], workers)
            tables.append(table)
            readable = table[table["error"] == ""]
            for row, embedding in zip(readable.to_dict("records"), embeddings, strict=True):
                if drawn:
                    path = keyed[row["path"]]
                    drawer.draw(path, row, cache.pixels[cache.row_of[row["path"]]], embedding)
                bar.update()
            bar.update(len(table) - len(readable))
    table = pd.concat(tables, ignore_index=True)

    out = results_folder(ensembles, graph_dir)
    file = out / "new_lesions.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    print(describe_photos(table))
    if not drawer.alone:
        print(f"nearest, familiarity and cards are by {first.run_dir}, probabilities by all runs")
    if not drawn:
        print(f"{len(paths):,} photos: no cards drawn, --cards draws them")
    print(f"wrote {file}" + (f" and {len(drawer.taken):,} cards in {drawer.folder}" if drawn else ""))
    if (table["error"] != "").all():
        raise InputError(f"none of the {len(table):,} images can be read: {table['error'].iloc[0]}")
    return table


def judge_chunk(
    ensembles: list[Ensemble], paths: Mapping[str, Path], usual: np.ndarray, workers: int
) -> tuple[pd.DataFrame, np.ndarray, ImageCache]:
    """Judge some images, see `judge_photos`.

    Parameters
    ----------
    paths : of each image by the text that the table shows
    usual : float array of shape (V,), distances of the validation images to their nearest references

    Returns
    -------
    the table; of its readable images the embeddings by the first run, (N, D); the pixels that this run saw
    """
    first = ensembles[0].runs[0]
    feeds, errors = decode_all(ensembles, paths, partial(decode_photos, workers=workers))
    cache = feeds[first.image_size].cache
    names = pd.Series([name for name in paths if name not in errors], dtype=str)
    table = pd.DataFrame(index=pd.Index(list(paths), name="path"), columns=COLUMNS[1:])
    table["decision"], table["error"] = "", pd.Series(errors, dtype=str)
    table["error"] = table["error"].fillna("")
    if names.empty:
        return table.reset_index(), np.empty((0, first.references.shape[1])), cache

    log_odds, embeddings = score_together(ensembles, feeds, names)
    probability, threshold = expit(log_odds), common_threshold(ensembles)
    distances, _ = nearest_references(embeddings, first.references, 1)
    table.loc[names, "probability"] = probability
    table.loc[names, "threshold"] = threshold
    table.loc[names, "decision"] = np.where(probability >= threshold, *DECISIONS[::-1])
    table.loc[names, "nearest_distance"] = distances[:, 0]
    table.loc[names, "familiarity"] = familiarity(distances[:, 0], usual)
    return table.reset_index(), embeddings, cache


def describe_photos(table: pd.DataFrame) -> str:
    """Return the first rows of a table of photos as text, and what there is in all."""
    width = min(max(table["path"].str.len().max(), len("photo")), 60)
    lines = [f"{'photo':<{width}}  probability  decision  nearest  familiarity"]
    for row in table.head(CARDS).to_dict("records"):
        name = one_line(row["path"], width).ljust(width)
        if row["error"]:
            lines.append(f"{name}  cannot be read: {' '.join(row['error'].split())}")
            continue
        flag = "  unlike anything seen" if row["familiarity"] < UNFAMILIAR else ""
        lines.append(
            f"{name}  {row['probability']:>11.3f}  {row['decision']:<8}  {row['nearest_distance']:>7.3f}  "
            f"{100 * row['familiarity']:>9.1f} %{flag}"
        )
    if len(table) > CARDS:
        lines.append(f"... and {len(table) - CARDS:,} more")
    scored = table[table["error"] == ""]
    melanoma = int((scored["decision"] == "melanoma").sum())
    strange = int((scored["familiarity"] < UNFAMILIAR).sum())
    from_on = f" (probability {scored['threshold'].iloc[0]:.3f} or more)" if len(scored) else ""
    lines.append(
        f"{len(scored):,} judged: {melanoma:,} called melanoma{from_on}, {strange:,} unlike anything seen; "
        f"{len(table) - len(scored):,} could not be read"
    )
    return "\n".join(lines)


class CardDrawer:
    """Draws cards of judged photos into a folder, with the heat map and the neighbours that the first run sees.

    Parameters
    ----------
    ensembles : that judge; the neighbours are from the training part of their first run, the map is of its score
    train_image : folder of the training images
    folder : of the cards; made with the first
    """

    def __init__(self, ensembles: Sequence[Ensemble], train_image: Path, folder: Path) -> None:
        run = ensembles[0].runs[0]
        self.run = run
        self.scorer = ensembles[0].scorers[0]
        self.alone = len(runs_of(ensembles)) == 1
        self.folder = folder
        self.taken: set[str] = set()  # file names, in small letters: some disks do not tell a from A
        self.files = find_images(train_image)
        self.names = run.table.loc[run.table["part"] == "train", "image_name"].to_numpy()

    def draw(self, path: Path, row: Mapping[str, float | str], pixels: np.ndarray, embedding: np.ndarray) -> None:
        """Draw the card of one image.

        Parameters
        ----------
        path : of the image
        row : its row of the table
        pixels : uint8 array of shape (S, S, 3), as the run saw it
        embedding : float array of shape (D,), by the run
        """
        run = self.run
        heat = grad_cam(run.network, pixels, self.scorer, run.references, run.reference_labels, run.test_views)
        benign, melanomas = (self.neighbours(embedding, label) for label in (0, 1))
        verdict = describe_verdict(row, self.alone)
        card = lesion_card(str(row["path"]), decode_image(path, SIDE), heat, verdict, melanomas, benign)
        save_figure(card, self.folder / f"{unique_name(path.stem, self.taken)}.png")

    def neighbours(self, embedding: np.ndarray, label: int) -> list[Neighbour]:
        """Return the nearest references of a class."""
        own = self.run.reference_labels == label
        distances, places = nearest_references(embedding[None], self.run.references[own], NEIGHBOURS)
        return [
            Neighbour(name, decode_image(self.files[name], SIDE), distance)
            for name, distance in zip(self.names[own][places[0]], distances[0], strict=True)
        ]


def describe_verdict(row: Mapping[str, float | str], alone: bool = True) -> list[str]:
    """Return what a card says of its lesion, a row of the table of photos, in lines.

    alone : one run has judged; else the card says what is by the first one alone
    """
    lines = [
        f"called {row['decision']}",
        f"probability of melanoma {row['probability']:.3f}",
        f"melanoma from {row['threshold']:.3f} on",
        "",
        f"nearest training lesion at {row['nearest_distance']:.3f}",
        f"{100 * float(row['familiarity']):.1f} % of the validation images",
        "lie as far from theirs",
    ]
    if float(row["familiarity"]) < UNFAMILIAR:
        lines += ["unlike anything seen: do not trust it"]
    if not alone:
        lines += ["map and neighbours: by the first run"]
    return [*lines, "", "research software,", "not a medical device"]


def unique_name(stem: str, taken: set[str]) -> str:
    """Return a name that any disk takes and that is not taken, and take it."""
    safe = re.sub(r"[^\w.-]+", "_", stem)[:60].strip("._") or "lesion"
    name, number = safe, 1
    while name.casefold() in taken:
        number += 1
        name = f"{safe}_{number}"
    taken.add(name.casefold())
    return name


def _text(path: Path) -> str:
    """Return a path as valid text: a name that is no UTF-8 has its odd bytes escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode()


# --- the challenge's test set ---


def find_test_images(folder: Path, labels: Path) -> tuple[pd.Series, dict[str, Path]]:
    """Return the names in the challenge's test CSV, in its order, and the image file of each.

    Raises
    ------
    InputError : a bad CSV, an image that is missing
    """
    names = pd.Series(read_test_names(labels), dtype=str)
    found = find_images(folder, "test_image")
    missing = names[~names.isin(list(found))]
    if len(missing):
        raise InputError(
            f"test_image {folder} lacks {len(missing):,} of the {len(names):,} images that {labels} names, "
            f"{missing.iloc[0]} for one"
        )
    return names, {name: found[name] for name in sorted(names)}


def write_submission(
    ensembles: list[Ensemble], names: pd.Series, paths: dict[str, Path], decode: Decode, graph_dir: Path
) -> pd.DataFrame:
    """Judge the challenge's test images, and write submission.csv.

    Parameters
    ----------
    names, paths : see `find_test_images`
    decode : see `ensemble.decode_all`
    graph_dir : where the file goes if there are several runs

    Returns
    -------
    the table written, image_name and target (probability of melanoma), a row for each name in its order; an image that
    cannot be read has the prevalence
    """
    feeds, errors = decode_all(ensembles, paths, decode)
    readable = names[~names.isin(list(errors))]
    if readable.empty:
        raise InputError(
            f"none of the {len(names):,} test images can be read, {paths[names[0]]} for one: {errors[names[0]]}"
        )
    print(f"scoring {len(readable):,} images", flush=True)
    log_odds, _ = score_together(ensembles, feeds, readable)
    target = pd.Series(expit(log_odds), index=readable.index).reindex(names.index)
    prevalence = float(np.mean([ensemble.judge.prevalence for ensemble in ensembles]))
    table = pd.DataFrame({"image_name": names, "target": target.fillna(prevalence)})

    file = results_folder(ensembles, graph_dir) / "submission.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    if errors:
        print(f"{len(errors):,} images cannot be read and have the prevalence: {', '.join(sorted(errors))}")
    print(f"wrote {file}: {len(table):,} images")
    return table
