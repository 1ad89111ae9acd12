"""Pictures that are the same: lists of duplicates, and the search for near-duplicates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from melanoma.common.errors import InputError, listed, settable
from melanoma.common.files import is_file, write_text
from melanoma.data.cache import ImageCache
from melanoma.data.decoding import image_id
from melanoma.data.split import connected
from melanoma.data.tables import column_key, read_csv

PAIR = ("image_name_1", "image_name_2")
LIST_NAME = "ISIC_2020_Training_Duplicates.csv"

ALIKE = 0.96  # least similarity of near-duplicates, measured by benchmarks/duplicates.py and in docs/data.md
FREQUENCIES = 16  # of the cosine transform that are compared, each way
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # luminance of R, G, B (ITU-R BT.601)
BLOCK = 1024  # images that are compared with all others at a time
BATCH_PIXELS = 2**23  # pixels that are transformed at a time


# --- lists ---


def read_duplicates(path: Path) -> list[tuple[str, str]]:
    """Read the pairs of duplicate images (columns image_name_1, image_name_2).

    Raises
    ------
    InputError : no such file, no CSV, no such columns
    """
    table = read_csv(path, f"duplicates {path}", settable("duplicates"))
    table.columns = pd.Index([column_key(name) for name in table.columns])
    missing = [name for name in PAIR if name not in table]
    if missing:
        raise InputError(
            f"duplicates {path} has no column {' and no '.join(missing)}: its columns are {listed(table.columns)}"
        )
    first, second = (table[name].map(_listed_id) for name in PAIR)
    return list(zip(first, second, strict=True))


def lists_in_use(duplicates: Path | None, labels: Sequence[Path]) -> list[Path]:
    """Return the lists of duplicates that are used: the setting's, else ISIC 2020's where it lies beside label CSVs."""
    if duplicates:
        return [duplicates]
    return [path for path in dict.fromkeys(own.with_name(LIST_NAME) for own in labels) if is_file(path)]


def _listed_id(name: str) -> str:
    """Return the id of an image's name; SOURCE:NAME, of one that two sources have, keeps its source."""
    source, colon, last = name.rpartition(":")
    return image_id(name) if "/" in last or "\\" in last else source + colon + image_id(last)


def drop_duplicates(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Keep the first image, in the order of the table, of each group that the pairs connect."""
    place = {name: i for i, name in enumerate(table["image_name"])}
    linked = np.array([(place[a], place[b]) for a, b in pairs if a in place and b in place], int).reshape(-1, 2)
    group = connected([(linked[:, 0], linked[:, 1])], len(table))
    return table[~pd.Series(group, table.index).duplicated()].reset_index(drop=True)


# --- search ---


def list_duplicates(cache: ImageCache, table: pd.DataFrame, known: Iterable[Path], path: Path) -> None:
    """Search the images of a label table for near-duplicates, write them as a list of duplicates, and print counts.

    Parameters
    ----------
    table : image_name, group and label
    known : lists of duplicates in use, whose pairs are written too: their images are no longer in the table

    Raises
    ------
    InputError : the file is there and is no list of duplicates, or cannot be written
    """
    if is_file(path):
        read_duplicates(path)  # any other file stays as it is
    in_use = pd.DataFrame([pair for each in known for pair in read_duplicates(each)], columns=PAIR)
    table = table[~table["image_name"].isin(list(cache.errors))].set_index("image_name")
    if table.empty:
        raise InputError("there is no image to compare that can be read")
    found = find_duplicates(cache, table.index.tolist())
    write_text(path, pd.concat([found, in_use]).drop_duplicates([*PAIR]).to_csv(index=False))
    group, label = (
        (table.loc[found[PAIR[0]], key].to_numpy() != table.loc[found[PAIR[1]], key].to_numpy()).sum()
        for key in ("group", "label")
    )
    told = f"of two groups: {group:,}, of two labels: {label:,}"
    print(f"near-duplicate pairs among {len(table):,} images: {len(found):,}; {told}")
    if len(in_use):
        print(f"pairs copied from the list of duplicates in use: {len(in_use):,}")
    print(f"delete the pairs in {path} that are not duplicates, then pass --duplicates {path} or edit config.py")


def find_duplicates(cache: ImageCache, names: Sequence[str], least: float = ALIKE) -> pd.DataFrame:
    """Return the near-duplicates among images: one photograph compressed anew, resized, turned by quarters or flipped.

    Two images are compared by the lowest frequencies of their cosine transforms, as perceptual hashes are, but by the
    correlation of the coefficients rather than by their signs. Each coefficient is weighted by its frequency, as the
    spectrum of a photograph falls with it: else all dark spots on bright skin are alike. The mean is not compared, so
    brightness and contrast do not count. All pairs are compared in all eight orientations.

    Returns
    -------
    image_name_1, image_name_2, similarity (`least` to 1), flipped, turned; most similar first. Image 1 becomes image 2
    if it is flipped left to right (where flipped is 1), then turned anticlockwise by `turned` degrees.
    """
    spectra = _spectra(cache, names)
    units = _units(spectra)
    found = []
    for start in tqdm(range(0, len(names), BLOCK), "comparing", unit="block", disable=None):
        for flipped, turned, seen in _orientations(spectra[start : start + BLOCK]):
            similarity = _units(seen) @ units[start:].T
            first, second = np.divmod(np.flatnonzero(similarity > least), similarity.shape[1])
            first, second = first[second > first], second[second > first]
            own = {PAIR[0]: start + first, PAIR[1]: start + second, "similarity": similarity[first, second]}
            found.append(pd.DataFrame(own).assign(flipped=flipped, turned=turned))
    pairs = pd.concat(found, ignore_index=True).round({"similarity": 4})
    pairs = pairs.sort_values(["similarity", *PAIR], ascending=[False, True, True])
    pairs = pairs.drop_duplicates([*PAIR], ignore_index=True)
    named = {key: np.array(names, dtype=object)[pairs[key]] for key in PAIR}
    return pairs.assign(**named).astype({"flipped": "Int64", "turned": "Int64"})


def _spectra(cache: ImageCache, names: Sequence[str]) -> np.ndarray:
    """Return the weighted cosine transform of each image's luminance, float32 (N, F, F)."""
    from scipy.fft import dct  # slow to import

    size = cache.pixels.shape[1]
    basis = dct(np.eye(size, dtype=np.float32), axis=0, norm="ortho")[:FREQUENCIES]
    frequency = np.arange(FREQUENCIES, dtype=np.float32)
    weight = np.hypot(frequency[:, None], frequency)  # 0 for the mean
    rows, batch = cache.rows(names), max(1, BATCH_PIXELS // size**2)
    batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return np.concatenate([weight * (basis @ (cache.gather(each) @ LUMA) @ basis.T) for each in batches])


def _orientations(spectra: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield flipped, turned in degrees, and the spectra (N, F, F) of the images so flipped and turned."""
    sign = (-1.0) ** np.arange(FREQUENCIES, dtype=np.float32)  # of a mirrored cosine
    for flipped in (0, 1):
        turned = spectra * sign if flipped else spectra
        for degrees in (0, 90, 180, 270):
            yield flipped, degrees, turned
            turned = turned.transpose(0, 2, 1) * sign[:, None]


def _units(spectra: np.ndarray) -> np.ndarray:
    """Return spectra as vectors of length 1, (N, F²)."""
    vectors = spectra.reshape(len(spectra), -1)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-6))
