"""Read tables of labels in the layouts that are public and common, and the names of images without labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from melanoma.common.errors import InputError, listed, settable, shown
from melanoma.data.decoding import image_id
from melanoma.data.diagnoses import LEFT_OUT, MELANOMA, OTHER, UNCLEAR, UNKNOWN, read_diagnosis
from melanoma.data.tables import column_key, known_values, read_csv, refuse_rows

# Columns by what they hold; of several the first that is there is read.
IMAGE = ("image_name", "image_id", "isic_id", "image", "img_id", "filename", "file_name", "file", "image_path", "name")
PATIENT, LESION = ("patient_id", "patient"), ("lesion_id", "lesion")
SEX, AGE = ("sex", "gender"), ("age_approx", "age")
SITE = (
    "anatom_site_general_challenge",
    "anatom_site_general",
    "anatom_site_1",
    "localization",
    "site",
    "location",
    "region",
)
DIAGNOSIS = ("diagnosis", "dx", "diagnostic", "clinical_diagnosis")
LEVELS = tuple(f"diagnosis_{level}" for level in range(1, 6))  # of the ISIC Archive
LEVELS_2024 = tuple(f"iddx_{level}" for level in range(1, 6))  # of ISIC 2024, whose target is "malignant"
ONE_HOT = ("mel", "nv", "bcc", "ak", "akiec", "bkl", "df", "vasc", "scc", "unk")  # of ISIC 2018 and 2019
ONE_HOT_2017 = ("melanoma", "seborrheic_keratosis")  # neither: a nevus
FOLDER = "folder"

NAMED = ("train_labels", "evaluate_labels")  # tables whose columns the settings name
# Columns of a table of lesions that cannot group them.
RESERVED = ("image_name", "label", "sex", "age", "site", "source", "part", "group")

TRUE = r"1([.,]0*)?|true"
BINARY = rf"{TRUE}|0([.,]0*)?|false"
AGE_YEARS = r"[0-9]{1,3}([.,][0-9]+)?"
OLDEST = 120.0  # years
READ_AS = {1: MELANOMA, 0: OTHER}


@dataclass(frozen=True)
class Columns:
    """How a label table is read where its layout is not known; what is left empty is found by itself.

    image, label : column of the image names, and of the labels or diagnoses
    melanoma : values of the label column that mean melanoma; all others are other lesions
    groups : columns of patients, lesions, or whatever must not be in two parts of a split
    """

    image: str | None = None
    label: str | None = None
    melanoma: Sequence[str] = ()
    groups: Sequence[str] = ()


@dataclass(frozen=True)
class Labels:
    """A label table, sorted by image_name, and how it was read.

    table : columns image_name (str), patient_id, lesion_id (str, "" where missing), label (int, 1 melanoma, 0 other),
        sex, site (str, "" where missing), age (float, years, NaN where missing), and further columns of `groups`
    groups : columns of the table whose equal values belong together
    layout : how it was read, in a sentence
    values : each distinct value of the label column, how it was read, and its number of images
    """

    table: pd.DataFrame
    groups: tuple[str, ...]
    layout: str
    values: list[tuple[str, str, int]]

    @property
    def left_out(self) -> int:
        """Number of rows whose diagnosis is unknown or indeterminate."""
        return sum(count for _, read_as, count in self.values if read_as == LEFT_OUT)


def read_labels(
    path: Path, argument: str = "train_labels", columns: Columns = Columns(), metadata: Sequence[pd.DataFrame] = ()
) -> Labels:
    """Read a label CSV of any layout in docs/data.md, or of another with the help of `columns`.

    Parameters
    ----------
    metadata : tables of `read_metadata`, whose further columns are joined by image

    Raises
    ------
    InputError : no such file, no CSV (see `read_csv`), a missing column, no rows, bad names or labels, rows of one
        image that contradict each other; the message names the lines
    """
    where = f"{argument} {path}"
    raw, names, image_column = _read_named(path, argument, columns.image)
    for further in metadata:
        for name in [name for name in further if name not in raw]:
            raw[name] = names.map(further[name]).fillna("")
    return _labels(raw, names, where, image_column, columns)


def read_metadata(path: Path) -> pd.DataFrame:
    """Read a CSV with further columns of images, as ISIC 2019 has it; the index is the image's id."""
    table, names, _ = _read_named(path, "train_metadata", None)
    return table.set_index(names)[~names.duplicated().to_numpy()]


def labels_of_folders(files: Mapping[str, Path], columns: Columns = Columns()) -> Labels:
    """Return the labels of image files, by name, that lie in a folder for each class, such as melanoma/ and nevus/.

    Raises
    ------
    InputError : a folder's name is no known diagnosis, a file's name no text
    """
    for name in files:
        if name.encode(errors="ignore").decode() != name:  # it could not be written to a table
            raise InputError(f"train_image (class folders): the file name {shown(name)} is no text in UTF-8: rename it")
    names = pd.Series(list(files), dtype=str)
    raw = pd.DataFrame({FOLDER: [path.parent.name for path in files.values()]}, dtype=str)
    return _labels(raw, names, "train_image (class folders)", "file name", Columns(None, FOLDER, columns.melanoma))


def read_test_names(path: Path) -> list[str]:
    """Read the names of images without labels, in the file's order, from the column that `read_labels` would take.

    Raises
    ------
    InputError : no such file, no CSV, no such column, no rows, names that are no file names or come twice
    """
    _, names, column = _read_named(path, "test_labels", None)
    refuse_rows(f"test_labels {path}", f"{column} comes twice", names, names.duplicated(keep=False))
    return names.tolist()


def _read_named(path: Path, argument: str, image_column: str | None) -> tuple[pd.DataFrame, pd.Series, str]:
    """Return a CSV's table with its columns' names as keys, its images' ids, and the column that they come from."""
    where = f"{argument} {path}"
    raw = read_csv(path, where, settable(argument))
    raw.columns = pd.Index([column_key(name) for name in raw.columns])
    raw = raw.loc[:, ~raw.columns.duplicated()]
    column = _column(raw, image_column, "image_column", where) or _first(raw, IMAGE)
    if column is None:
        advice = "name it with --image-column" if argument in NAMED else "rename one to image_name"
        raise InputError(
            f"{where} has no column of image names ({', '.join(IMAGE[:4])}): its columns are "
            f"{listed(raw.columns, 12)}: {advice}"
        )
    if raw.empty:
        raise InputError(f"{where} has no rows below its header")
    names = raw[column].map(image_id)
    refuse_rows(where, f"{column} is not a file name", raw[column], names.isin(["", ".", ".."]))
    return raw, names, column


def _labels(raw: pd.DataFrame, names: pd.Series, where: str, image_column: str, columns: Columns) -> Labels:
    value, read_as, rule = _read_values(raw, names, where, columns)
    blank = pd.Series("", raw.index, dtype=str)
    patient, lesion, sex, site = (
        known_values(raw[name]) if (name := _first(raw, keys)) else blank for keys in (PATIENT, LESION, SEX, SITE)
    )
    ages = raw[name] if (name := _first(raw, AGE)) else blank
    years = pd.to_numeric(ages.where(ages.str.fullmatch(AGE_YEARS), "").str.replace(",", "."), errors="coerce")
    table = pd.DataFrame({"image_name": names, "patient_id": patient, "lesion_id": lesion})
    table = table.assign(label=(read_as == MELANOMA).astype(int), sex=sex)
    table = table.assign(age=years.astype(float).where(years.between(1, OLDEST)), site=site)
    groups = ["patient_id", "lesion_id"]
    if columns.groups:
        keys = [str(_column(raw, name, "group_columns", where)) for name in columns.groups]
        groups = ["patient_id" if key in PATIENT else "lesion_id" if key in LESION else key for key in keys]
        for name in groups:
            if name in RESERVED:
                raise InputError(f"{where}: group_columns names {name}, which has a meaning here: rename the column")
            if groups.count(name) > 1:
                raise InputError(f"{where}: group_columns names {name} twice, or by two columns: name one of them")
        table = table.assign(**{name: known_values(raw[key]) for name, key in zip(groups, keys, strict=True)})
    for name, cells in (("label", read_as), *((name, table[name]) for name in groups)):
        differ = cells.groupby(names).transform("nunique") > 1
        refuse_rows(where, f"rows of one image differ in {name}", names, differ)
    first = ~names.duplicated()
    counts = pd.DataFrame({"value": value, "read_as": read_as})[first].value_counts()
    table = table[first & (read_as != LEFT_OUT)].sort_values("image_name", ignore_index=True)
    used = [name for name in groups if (table[name] != "").any()]
    return Labels(
        table,
        tuple(groups),
        f"{_layout(raw)}: {image_column}, {rule}; grouped by {' and '.join(used) or 'image alone'}",
        [(*key, int(count)) for key, count in counts.items()],
    )


def _layout(raw: pd.DataFrame) -> str:
    """Return the name of a table's layout."""
    known = set(raw.columns)
    if known == {FOLDER}:
        return "class folders"
    for layout, signature in (
        ("HAM10000 metadata", {"image_id", "dx"}),
        ("ISIC 2019 ground truth", {"image", "mel", "scc"}),
        ("ISIC 2018 ground truth", {"image", "mel", "akiec"}),
        ("ISIC 2017 ground truth", {"image_id", *ONE_HOT_2017}),
        ("ISIC 2024", {"isic_id", "target"}),
        ("ISIC Archive", {"isic_id"}),
        ("ISIC 2020", {"image_name", "target"}),
    ):
        if signature <= known:
            return layout
    return "label table"


def _read_values(raw: pd.DataFrame, names: pd.Series, where: str, columns: Columns) -> tuple[pd.Series, pd.Series, str]:
    """Return each row's value as it is shown, how it is read (melanoma, other, left out), and the rule in words."""
    asked = _column(raw, columns.label, "label_column", where)
    levels = [name for name in LEVELS if name in raw] or [name for name in DIAGNOSIS if name in raw][:1]
    one_hot = [name for name in (*ONE_HOT, *ONE_HOT_2017) if name in raw]
    if columns.melanoma:
        column = asked or _first(raw, (*levels[-1:], "target"))
        if column is None:
            raise InputError(f"{where}: melanoma_values need a column: name it with --label-column")
        return _read_listed(raw[column], column, columns.melanoma, where)
    if asked == "target" or (asked and raw[asked].str.fullmatch(BINARY).all()):
        return raw[asked], _binary(raw, asked, names, where).map(READ_AS), f"{asked}; melanoma = 1"
    if asked:
        return _read_diagnoses(raw[[asked]], where)
    if "target" in raw:
        return _read_target(raw, names, levels, where)
    if {"mel", "nv"} <= set(one_hot) or set(ONE_HOT_2017) <= set(one_hot):
        return _read_one_hot(raw, one_hot, names, where)
    if levels:
        return _read_diagnoses(raw[levels], where)
    raise InputError(
        f"{where} has no column of labels (target, diagnosis, dx): its columns are {listed(raw.columns, 12)}: name "
        "it with --label-column"
    )


def _read_target(
    raw: pd.DataFrame, names: pd.Series, levels: list[str], where: str
) -> tuple[pd.Series, pd.Series, str]:
    """Read a column target, 1 for melanoma, and check it against the diagnoses that are there too."""
    target = _binary(raw, "target", names, where).map(READ_AS)
    if "iddx_1" in raw or "iddx_full" in raw:
        # ISIC 2024, where the target is "malignant": not melanoma if a level names another lesion
        by_level = [name for name in LEVELS_2024 if name in raw] if "iddx_1" in raw else []
        malignant = raw[by_level] if by_level else raw["iddx_full"].str.split("::", expand=True).fillna("")
        value, told = _diagnoses(malignant)
        rule = "target and iddx; melanoma = malignant and not named otherwise"
        return raw["target"] + " " + value, target.mask((target == MELANOMA) & (told == OTHER), OTHER), rule
    if levels:
        _, told = _diagnoses(raw[levels])
        refuse_rows(
            where,
            f"target and {levels[-1]} contradict each other",
            names,
            told.isin([MELANOMA, OTHER]) & (told != target),
            f": pass --label-column target, or --label-column {levels[-1]}, to take one of them as it is",
        )
    return raw["target"], target, "target; melanoma = 1"


def _read_one_hot(
    raw: pd.DataFrame, one_hot: list[str], names: pd.Series, where: str
) -> tuple[pd.Series, pd.Series, str]:
    """Read a column for each class, 1 in that of the image's and 0 in the others."""
    cells = pd.DataFrame({name: _binary(raw, name, names, where) for name in one_hot})
    total, least = cells.sum(axis=1), 0 if "melanoma" in one_hot else 1
    refuse_rows(where, f"the classes {', '.join(one_hot)} do not sum to 1", names, (total < least) | (total > 1))
    value = cells.idxmax(axis=1).where(total == 1, "none of them")
    read_as = value.map({"mel": MELANOMA, "melanoma": MELANOMA, "unk": LEFT_OUT}).fillna(OTHER)
    return value, read_as, f"a column for each class; melanoma = {'mel' if 'mel' in one_hot else 'melanoma'}"


def _read_listed(
    cells: pd.Series, column: str, melanoma: Sequence[str], where: str
) -> tuple[pd.Series, pd.Series, str]:
    """Read a column whose melanomas are listed by their values."""
    value, wanted = cells.str.casefold(), [text.strip().casefold() for text in melanoma]
    absent = sorted(set(wanted) - set(value))
    if absent:
        raise InputError(
            f"{where}: melanoma_values names {listed(absent)}, but {column} has only {listed(cells.unique(), 10)}"
        )
    is_melanoma = value.isin(wanted)
    read_as = pd.Series(np.where(is_melanoma, MELANOMA, np.where(value.isin(UNKNOWN), LEFT_OUT, OTHER)), cells.index)
    return cells, read_as, f"{column}; melanoma = {', '.join(melanoma)}"


def _read_diagnoses(levels: pd.DataFrame, where: str) -> tuple[pd.Series, pd.Series, str]:
    """Read diagnoses by the table of `diagnoses.py`; a value that it does not know is an error."""
    value, read_as = _diagnoses(levels)
    unclear = value[read_as == UNCLEAR].value_counts()
    if len(unclear):
        column = levels.columns[-1]
        counts = listed([f"{name} ({count:,})" for name, count in unclear.items()])
        raise InputError(
            f"{where}: {column} has values that may or may not be melanoma: {counts}: pass --melanoma-values with all "
            "that are" + ("" if column == FOLDER else f", and --label-column {column}")
        )
    return value, read_as, f"{', '.join(levels.columns)}; melanoma = {listed(value[read_as == MELANOMA].unique(), 3)}"


def _diagnoses(levels: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Return each row's diagnosis in one text, and how it is read: melanoma, other, left out or unclear."""
    cells = pd.Series(list(levels.itertuples(index=False, name=None)), levels.index)
    shown_as = {distinct: " > ".join(filter(None, distinct)) for distinct in set(cells)}
    return cells.map(shown_as), cells.map({distinct: read_diagnosis(distinct) for distinct in shown_as})


def _binary(raw: pd.DataFrame, column: str, names: pd.Series, where: str) -> pd.Series:
    """Return the int 0 or 1 of each cell of a column."""
    cells = raw[column].str.casefold()
    bad = ~cells.str.fullmatch(BINARY)
    advice = ": pass --label-column and --melanoma-values for labels in words"
    refuse_rows(where, f"{column} is neither 0 nor 1", names, bad, advice if column == "target" else "")
    return cells.str.fullmatch(TRUE).astype(int)


def _first(raw: pd.DataFrame, names: Iterable[str]) -> str | None:
    """Return the first of the columns that is there."""
    return next((name for name in names if name in raw), None)


def _column(raw: pd.DataFrame, name: str | None, setting: str, where: str) -> str | None:
    """Return the key of the column that a setting names; None if it names none."""
    if name is None:
        return None
    if column_key(name) not in raw:
        raise InputError(
            f"{where} has no column {shown(name)}, which {setting} names: there are {listed(raw.columns, 12)}"
        )
    return column_key(name)
