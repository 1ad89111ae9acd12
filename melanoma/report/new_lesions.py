"""Lesions without a label: photos from anywhere are judged, explained and drawn; the challenge's test set is scored.

`python predict.py photo.jpg folder/` and `python predict.py --submission` come here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit
from tqdm import tqdm

from melanoma.common.errors import InputError
from melanoma.common.files import replace_file
from melanoma.data.decoding import decode_image, find_images
from melanoma.data.labels import read_test_names
from melanoma.report.graph_folder import Origin, clear_others, save_figure
from melanoma.report.lesions import NEIGHBOURS, lesion_card
from melanoma.report.style import one_line
from melanoma.scoring.ensemble import Decode, Ensemble, decode_all, score_together
from melanoma.scoring.model import Model

CARDS = 200  # of more photos no cards are drawn unless asked for, and the terminal shows the first
SIDE = 256  # pixels of an image on a card
UNFAMILIAR = 0.01  # below it a photo is said to be unlike anything seen


# --- photos ---


def judge_photos(
    model: Model, paths: Sequence[Path], out: Path, graph_dir: Path, origin: Origin, cards: bool | None = None
) -> pd.DataFrame:
    """Judge image files; write new_lesions.csv and a card for each.

    new_lesions.csv has paths as they are: a spreadsheet may take one that begins with = + - or @ for a formula, so open
    it as text there.

    Parameters
    ----------
    out : folder of new_lesions.csv
    graph_dir : the cards go to its folder lesions/
    origin : of the runs; each card names it
    cards : draw them; None: if there are not too many

    Returns
    -------
    the table written, see `Model.predict`

    Raises
    ------
    InputError : none of the images can be read
    """
    drawn = len(paths) <= CARDS if cards is None else cards
    folder, taken = graph_dir / "lesions", set[str]()
    clear_others(graph_dir, origin.mark)
    tables = []
    with tqdm(total=len(paths), desc="judging", unit="photo", disable=None) as bar:
        for part, table, embeddings, pixels in model.judge(paths):
            tables.append(table)
            readable = table[table["error"] == ""]
            bar.update(len(table) - len(readable))
            for row, embedding, own in zip(readable.itertuples(), embeddings, pixels, strict=True):
                if drawn:
                    path = Path(part[row.Index])
                    heat, nearest = model.heat_map(own), model.neighbours(embedding, NEIGHBOURS)
                    verdict = describe_verdict(row._asdict(), model.alone)
                    photo = decode_image(path, SIDE)
                    card = lesion_card(Path(row.path).name, origin.line, photo, heat, verdict, *nearest)
                    save_figure(card, folder / f"{unique_name(path.stem, taken)}.png", origin.mark)
                bar.update()
    table = pd.concat(tables, ignore_index=True)

    file = out / "new_lesions.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    print(describe_photos(table))
    if not model.alone:
        print(f"nearest, familiarity and cards are by {model.first.name}, probabilities by all runs")
    if not drawn:
        print(f"{len(paths):,} photos: no cards drawn, --cards draws them")
    print(f"wrote {file}" + (f" and {len(taken):,} cards in {folder}" if drawn else ""))
    if (table["error"] != "").all():
        raise InputError(f"none of the {len(table):,} images can be read: {table['error'].iloc[0]}")
    return table


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
            f"{name}  {probability_text(row['probability']):>11}  {row['decision']:<8}  "
            f"{row['nearest_distance']:>7.3f}  {100 * row['familiarity']:>9.1f} %{flag}"
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


def describe_verdict(row: Mapping[str, Any], alone: bool) -> list[str]:
    """Return what a card says of a row of the table of photos, in sentences; alone : one run has judged.

    The first is the call; of a lesion unlike anything seen no call is made: a warning stands in its place.
    """
    probability = f"probability of melanoma {probability_text(row['probability'])}"
    kind = "a melanoma" if row["nearest_label"] else "benign"
    if row["familiarity"] < UNFAMILIAR:
        lines = ["unlike anything seen: do not trust it", probability]
    else:
        lines = [f"called {row['decision']}: {probability}", f"called melanoma from {row['threshold']:.3f} on"]
    lines += [
        "",
        f"nearest training lesion, {kind}, {row['nearest_distance']:.3f} away in the embedding",
        f"familiarity {100 * row['familiarity']:.1f} %: share of validation images as far from theirs",
        "",
    ]
    if row["known"]:
        lines.append("a picture that a run was trained on: no test of it")
    if not alone:
        lines.append("map and distances: by the first run")
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
    ensembles: Sequence[Ensemble], names: pd.Series, paths: dict[str, Path], decode: Decode, out: Path
) -> pd.DataFrame:
    """Judge the challenge's test images, and write submission.csv.

    Parameters
    ----------
    names, paths : see `find_test_images`
    decode : see `ensemble.Decode`
    out : folder of the file

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

    file = out / "submission.csv"
    replace_file(file, lambda temporary: table.to_csv(temporary, index=False))
    if errors:
        print(f"{len(errors):,} images cannot be read and have the prevalence: {', '.join(sorted(errors))}")
    print(f"wrote {file}: {len(table):,} images")
    return table
