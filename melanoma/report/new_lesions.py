"""Lesions without a label: photos from anywhere are judged, explained and drawn; the challenge's test set is scored.

`python predict.py photo.jpg folder/` and `python predict.py --submission` come here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import expit
from tqdm import tqdm

from melanoma.common.errors import InputError
from melanoma.common.files import replace_file
from melanoma.data.cache import ImageCache, decode_photos
from melanoma.data.decoding import decode_image, find_images
from melanoma.data.labels import read_test_names
from melanoma.report.lesions import NEIGHBOURS, Neighbour, lesion_card
from melanoma.report.style import one_line, save_figure
from melanoma.scoring.ensemble import (
    Decode,
    Ensemble,
    common_threshold,
    decode_all,
    known_pictures,
    results_folder,
    runs_of,
    score_together,
)
from melanoma.scoring.explain import heat_map
from melanoma.scoring.scores import familiarity, nearest_references

COLUMNS = ["path", "probability", "threshold", "decision", "nearest_distance", "familiarity", "known", "error"]
CARDS = 200  # of more photos no cards are drawn unless asked for, and the terminal shows the first
AT_A_TIME = 256  # photos held in memory
SIDE = 256  # pixels of an image on a card
UNFAMILIAR = 0.01  # below it a photo is said to be unlike anything seen


# --- photos ---


def judge_photos(
    ensembles: list[Ensemble], paths: Sequence[Path], graph_dir: Path, workers: int = 0, cards: bool | None = None
) -> pd.DataFrame:
    """Judge images by the mean of all runs' log odds; write new_lesions.csv and a card for each.

    Distances, heat map and neighbours are those of the first run. new_lesions.csv has paths as they are: a spreadsheet
    may take one that begins with = + - or @ for a formula, so open it as text there.

    Parameters
    ----------
    graph_dir : the cards go to its folder lesions/, and the table of several runs to it
    workers : threads that decode images (0: one for each core)
    cards : draw them; None: if there are not too many

    Returns
    -------
    the table written, a row for each image: path; probability of melanoma, threshold, decision; distance to the
    nearest reference, and the share of validation images that lie as far from theirs; whether a run was trained on this
    picture or chosen by it (known); or, with all these blank, error

    Raises
    ------
    InputError : no image there, or none that can be read
    """
    first = ensembles[0].runs[0]
    usual = nearest_references(ensembles[0].validation, first.references, 1)[0][:, 0]
    drawn = len(paths) <= CARDS if cards is None else cards
    folder, taken = graph_dir / "lesions", set[str]()
    tables = []
    with tqdm(total=len(paths), desc="judging", unit="photo", disable=None) as bar:
        for start in range(0, len(paths), AT_A_TIME):
            chunk = paths[start : start + AT_A_TIME]
            # a name that is no UTF-8 has its odd bytes escaped
            keyed = {str(path).encode("utf-8", "backslashreplace").decode(): path for path in chunk}
            table, embeddings, cache = judge_chunk(ensembles, keyed, usual, workers)
            tables.append(table)
            readable = table[table["error"] == ""]
            bar.update(len(table) - len(readable))
            for row, embedding in zip(readable.to_dict("records"), embeddings, strict=True):
                if drawn:
                    path, pixels = keyed[row["path"]], cache.pixels[cache.row_of[row["path"]]]
                    card = draw_card(ensembles, path, row, pixels, embedding)
                    save_figure(card, folder / f"{unique_name(path.stem, taken)}.png")
                bar.update()
    table = pd.concat(tables, ignore_index=True)

    file = results_folder(ensembles, graph_dir) / "new_lesions.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    print(describe_photos(table))
    if len(runs_of(ensembles)) > 1:
        print(f"nearest, familiarity and cards are by {first.run_dir}, probabilities by all runs")
    if not drawn:
        print(f"{len(paths):,} photos: no cards drawn, --cards draws them")
    print(f"wrote {file}" + (f" and {len(taken):,} cards in {folder}" if drawn else ""))
    if (table["error"] != "").all():
        raise InputError(f"none of the {len(table):,} images can be read: {table['error'].iloc[0]}")
    return table


def judge_chunk(
    ensembles: list[Ensemble], paths: Mapping[str, Path], usual: np.ndarray, workers: int
) -> tuple[pd.DataFrame, np.ndarray, ImageCache]:
    """Judge images, by the text that the table shows; usual (V,) : distances of validation images to the nearest.

    Returns
    -------
    the table; of its readable images the embeddings by the first run, (N, D); the pixels that this run saw
    """
    first = ensembles[0].runs[0]
    feeds, errors = decode_all(ensembles, paths, partial(decode_photos, workers=workers))
    names = pd.Series([name for name in paths if name not in errors], dtype=str)
    table = pd.DataFrame(index=pd.Index(list(paths), name="path"), columns=COLUMNS[1:])
    table["decision"], table["error"] = "", [errors.get(name, "") for name in paths]
    embeddings = np.empty((0, first.references.shape[1]))
    if len(names):
        log_odds, embeddings = score_together(ensembles, feeds, names)
        probability, threshold = expit(log_odds), common_threshold([ensemble.judge.threshold for ensemble in ensembles])
        distances = nearest_references(embeddings, first.references, 1)[0][:, 0]
        table.loc[names, "probability"] = probability
        table.loc[names, "threshold"] = threshold
        table.loc[names, "decision"] = np.where(probability >= threshold, "melanoma", "benign")
        table.loc[names, "nearest_distance"] = distances
        table.loc[names, "familiarity"] = familiarity(distances, usual)
        table.loc[names, "known"] = known_pictures(ensembles, feeds, names.tolist())
    return table.reset_index(), embeddings, feeds[first.image_size].cache


def describe_photos(table: pd.DataFrame) -> str:
    """Return the first rows of a table of photos as text, and what there is in all."""
    width = min(max(table["path"].str.len().max(), len("photo")), 60)
    lines = [f"{'photo':<{width}}  probability  decision  nearest  familiarity"]
    for row in table.head(CARDS).to_dict("records"):
        name = one_line(row["path"], width).ljust(width)
        if row["error"]:
            lines.append(f"{name}  cannot be read: {row['error']}")
            continue
        flag = "  unlike anything seen" if row["familiarity"] < UNFAMILIAR else ""
        flag += "  a picture that a run was trained on" if row["known"] else ""
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
        f"{len(scored):,} judged: {melanoma:,} called melanoma{from_on}, {strange:,} unlike anything seen, "
        f"{int(scored['known'].eq(True).sum()):,} known from training; {len(table) - len(scored):,} could not be read"
    )
    return "\n".join(lines)


def draw_card(
    ensembles: Sequence[Ensemble], path: Path, row: Mapping[str, Any], pixels: np.ndarray, embedding: np.ndarray
) -> Figure:
    """Draw the card of a photo, with the heat map and the neighbours that the first run sees.

    Parameters
    ----------
    path, row : the photo, and its row of the table
    pixels, embedding : uint8 (S, S, 3), as the run saw it, and float (D,), by the run
    """
    run, scorer = ensembles[0].runs[0], ensembles[0].scorers[0]
    heat = heat_map(run.network, pixels, scorer, run.references, run.reference_labels, run.test_views)
    names = run.table.loc[run.table["part"] == "train", "image_name"].to_numpy()
    nearest = []
    for label in (1, 0):
        own = run.reference_labels == label
        distances, places = nearest_references(embedding[None], run.references[own], NEIGHBOURS)
        found = zip(names[own][places[0]], distances[0], strict=True)
        nearest.append([Neighbour(name, decode_image(run.paths[name], SIDE), distance) for name, distance in found])
    verdict = describe_verdict(row, alone=len(runs_of(ensembles)) == 1)
    return lesion_card(path.name, f"run {run.run_dir}", decode_image(path, SIDE), heat, verdict, *nearest)


def describe_verdict(row: Mapping[str, Any], alone: bool) -> list[str]:
    """Return what a card says of a row of the table of photos, in sentences; alone : one run has judged.

    The first is the call; of a lesion unlike anything seen no call is made: a warning stands in its place.
    """
    probability = f"probability of melanoma {probability_text(row['probability'])}"
    if row["familiarity"] < UNFAMILIAR:
        lines = ["unlike anything seen: do not trust it", probability]
    else:
        lines = [f"called {row['decision']}: {probability}", f"called melanoma from {row['threshold']:.3f} on"]
    lines += [
        "",
        f"nearest training lesion {row['nearest_distance']:.3f} away in the embedding",
        f"familiarity {100 * row['familiarity']:.1f} %: share of validation images as far from theirs",
        "",
    ]
    if row["known"]:
        lines.append("a picture that a run was trained on: no test of it")
    if not alone:
        lines.append("map and neighbours: by the first run")
    return [*lines, "research software, not a medical device"]


def probability_text(probability: float) -> str:
    """Return a probability with three decimals; "< 0.001" or "> 0.999" where it would be rounded to 0 or 1."""
    if probability < 0.0005:
        return "< 0.001"
    return "> 0.999" if probability >= 0.9995 else f"{probability:.3f}"


def unique_name(stem: str, taken: set[str]) -> str:
    """Return a name that any disk takes and that is not taken, and take it."""
    safe = re.sub(r"[^\w.-]+", "_", stem)[:60].strip("._") or "lesion"
    name, number = safe, 1
    while name.casefold() in taken:
        number += 1
        name = f"{safe}_{number}"
    taken.add(name.casefold())
    return name


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
        lacks = f"lacks {len(missing):,} of the {len(names):,} images that {labels} names, {missing.iloc[0]} for one"
        raise InputError(f"test_image {folder} {lacks}")
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
    the table written, image_name and target (probability of melanoma; the prevalence if an image cannot be read)
    """
    feeds, errors = decode_all(ensembles, paths, decode)
    readable = names[~names.isin(list(errors))]
    if readable.empty:
        raise InputError(f"none of the {len(names):,} test images can be read, {names[0]}: {errors[names[0]]}")
    print(f"scoring {len(readable):,} images", flush=True)
    log_odds, _ = score_together(ensembles, feeds, readable)
    prevalence = np.mean([ensemble.judge.prevalence for ensemble in ensembles])
    target = pd.Series(expit(log_odds), readable.index).reindex(names.index, fill_value=prevalence)
    table = pd.DataFrame({"image_name": names, "target": target})

    file = results_folder(ensembles, graph_dir) / "submission.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    if errors:
        print(f"{len(errors):,} images cannot be read and have the prevalence: {', '.join(sorted(errors))}")
    print(f"wrote {file}: {len(table):,} images")
    return table
