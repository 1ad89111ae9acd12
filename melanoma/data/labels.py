"""Read the CSVs of labels, test images and duplicates."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from melanoma.common.errors import InputError, brief, listed
from melanoma.common.files import read_text

TARGET = r"[01](\.0+)?"  # 1.0 is what tables that are handled as numbers make of 1
AGE = r"[0-9]{1,3}(\.[0-9]+)?"
OLDEST = 120.0  # years
CONTROL = r"[\x00-\x1f\x7f-\x9f\u2028\u2029]"
NO_PATIENT = "image:"  # begins the patient_id of an image without one, which is a patient of its own
AS_CSV = "save it as CSV in UTF-8, separated by commas"


def read_labels(path: Path, argument: str = "train_labels") -> pd.DataFrame:
    """Read a label CSV: one row an image, in the file's order.

    Reads the ISIC 2020 ground truth, its v2, the Kaggle train.csv, and any CSV with `image_name` plus `target` (0 or 1,
    also 0.0 or 1.0) or `diagnosis`. A diagnosis that begins with melanoma is label 1; one that has the word further on,
    or the short form mel, is an error; any other is label 0. Spaces around names are ignored. An age that is no plain
    number of years up to 120 is unknown.

    Returns
    -------
    columns image_name (str), patient_id (str; an image without one is its own patient), label (int, 1 melanoma),
    sex, site (str, "" where blank), age (float, NaN where blank)

    Raises
    ------
    InputError : no such file, no CSV (see `read_csv`), missing column, no rows, bad names or labels, rows of one image
        that contradict each other; the message names the lines
    """
    table = _read_table(path, argument)
    where = f"{argument} {path}"
    if "image_name" not in table:
        raise InputError(f"{where} has no column image_name: {_columns(table)}")
    _refuse_empty(where, table)
    names = table["image_name"]
    _refuse_names(where, "image_name", names)
    blank = pd.Series("", index=table.index, dtype=str)
    patients = table.get("patient_id", blank)
    patients = patients.where(patients != "", NO_PATIENT + names)
    sex, site = (table.get(column, blank) for column in ("sex", "anatom_site_general_challenge"))
    for column, cells in (("patient_id", patients), ("sex", sex), ("site", site)):
        _refuse_rows(where, f"{column} has a control character", names, cells.str.contains(CONTROL))
    labels = _labels(table, where)
    for column, cells in (("label", labels), ("patient_id", patients)):
        differ = cells.groupby(names).transform("nunique") > 1
        _refuse_rows(where, f"rows of one image_name differ in {column}", names, differ)
    ages = table.get("age_approx", blank)
    years = pd.to_numeric(ages.where(ages.str.fullmatch(AGE), ""), errors="coerce").astype(float)
    result = pd.DataFrame(
        {
            "image_name": names,
            "patient_id": patients,
            "label": labels,
            "sex": sex,
            "age": years.where(years <= OLDEST),
            "site": site,
        }
    )
    return result.drop_duplicates("image_name").reset_index(drop=True)


def read_test_names(path: Path, argument: str = "test_labels") -> list[str]:
    """Read the names of images without labels, in the file's order, from a column image_name or image.

    Reads ISIC_2020_Test_Metadata.csv (image) and Kaggle's test.csv (image_name).

    Raises
    ------
    InputError : no such file, no CSV, no such column, no rows, names that are no file names or come twice
    """
    table = _read_table(path, argument)
    where = f"{argument} {path}"
    column = next((name for name in ("image_name", "image") if name in table), None)
    if column is None:
        raise InputError(f"{where} has no column image_name and no image: {_columns(table)}")
    _refuse_empty(where, table)
    names = table[column]
    _refuse_names(where, column, names)
    _refuse_rows(where, f"{column} comes twice", names, names.duplicated(keep=False))
    return names.tolist()


def read_duplicates(path: Path) -> list[tuple[str, str]]:
    """Read the pairs of duplicate images (columns image_name_1, image_name_2).

    Raises
    ------
    InputError : no such file, no CSV, no such columns
    """
    table = _read_table(path, "duplicates")
    missing = [name for name in ("image_name_1", "image_name_2") if name not in table]
    if missing:
        raise InputError(f"duplicates {path} has no column {' and no '.join(missing)}: {_columns(table)}")
    return list(zip(table["image_name_1"], table["image_name_2"], strict=True))


def drop_duplicates(table: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Keep one image, the first in the table, of each group that the pairs connect."""
    position = {name: i for i, name in enumerate(table["image_name"])}
    known = np.array([(position[a], position[b]) for a, b in pairs if a in position and b in position])
    if not len(known):
        return table
    links = coo_array((np.ones(len(known)), known.T), shape=(len(table), len(table)))
    group = pd.Series(connected_components(links, directed=False)[1], index=table.index)
    return table[~group.duplicated()].reset_index(drop=True)


def read_csv(path: Path, what: str, advice: str) -> pd.DataFrame:
    """Read a CSV as text: UTF-8 with or without a byte order mark, commas, any line ends, quotes as in RFC 4180.

    Spaces around a cell are removed; blank lines, and columns without a name, are skipped.

    Parameters
    ----------
    what, advice : begin and end of error messages: which file it is, and what to do if it does not exist

    Returns
    -------
    a table of str; the index is the line of the file in which each row begins

    Raises
    ------
    InputError : no such file, no UTF-8 text, a NUL character, an open quote, a cell of more than 131,072 characters, a
        row that is longer or shorter than the header, two columns of one name; the message names the line
    """
    text = read_text(path, what, advice)
    if "\0" in text:
        line = 1 + len(re.findall(r"\r\n?|\n", text[: text.index("\0")]))
        raise InputError(f"{what} is not a CSV: there is a NUL character in line {line:,}: {AS_CSV}")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: dict[int, list[str]] = {}
    begins = 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows[begins] = cells
            begins = reader.line_num + 1
    except csv.Error as error:
        reason = f"{error}, in the row that begins in line {begins:,}"
        raise InputError(f"{what} is not a CSV: {reason}: {AS_CSV}") from None
    if not rows:
        raise InputError(f"{what} is empty: {AS_CSV}")
    header = rows.pop(min(rows))
    for line, cells in rows.items():
        if len(cells) != len(header):
            reason = f"line {line:,} has {len(cells):,} fields, the header has {len(header):,}"
            raise InputError(f"{what} is not a CSV: {reason}: {AS_CSV}")
    named = [name for name in header if name]
    twice = [name for name, times in Counter(named).items() if times > 1]
    if twice:
        raise InputError(f"{what} has two columns of one name: {listed(twice)}: remove one of them")
    table = pd.DataFrame(list(rows.values()), index=list(rows), columns=header, dtype=str)
    return table[named]


def _read_table(path: Path, argument: str) -> pd.DataFrame:
    """Return the table in the file of a setting."""
    return read_csv(path, f"{argument} {path}", f"edit config.py or pass --{argument.replace('_', '-')}")


def _refuse_empty(where: str, table: pd.DataFrame) -> None:
    if table.empty:
        raise InputError(f"{where} has no rows below its header: {_columns(table)}")


def _columns(table: pd.DataFrame) -> str:
    """Return the columns of a table that lacks one, for an error message."""
    columns = f"its columns are {listed(table.columns, 12)}"
    if len(table.columns) == 1 and any(mark in table.columns[0] for mark in ";\t|"):
        columns += f": {AS_CSV}"
    return columns


def _labels(table: pd.DataFrame, where: str) -> pd.Series:
    """Return int labels from target, from diagnosis, or from both where they agree."""
    names = table["image_name"]
    if "target" not in table and "diagnosis" not in table:
        raise InputError(f"{where} has no column target and no diagnosis: one of them is needed")
    if "diagnosis" in table:
        diagnosis = table["diagnosis"].str.lower()
        melanoma = diagnosis.str.startswith("melanoma")
        unclear = ~melanoma & (diagnosis.str.contains("melanoma") | (diagnosis == "mel"))
    if "target" not in table:
        _refuse_rows(where, "diagnosis is blank", names, diagnosis == "")
        what = "diagnosis may be melanoma or not (begin it with melanoma, or add a column target)"
        _refuse_rows(where, what, names, unclear)
        return melanoma.astype(int)
    _refuse_rows(where, "target is neither 0 nor 1", names, ~table["target"].str.fullmatch(TARGET))
    target = (table["target"].str[0] == "1").astype(int)
    if "diagnosis" in table:
        told = ~diagnosis.isin(["", "unknown"]) & ~unclear
        _refuse_rows(where, "target and diagnosis contradict", names, told & (melanoma != (target == 1)))
    return target


def _refuse_names(where: str, column: str, names: pd.Series) -> None:
    odd = names.str.contains(r"[/\\]") | names.str.contains(CONTROL) | names.isin(["", ".", ".."])
    _refuse_rows(where, f"{column} is not a plain file name", names, odd)


def _refuse_rows(where: str, problem: str, names: pd.Series, bad: pd.Series) -> None:
    if bad.any():
        rows = [f"line {line} ({brief(repr(names[line]), 40)})" for line in names.index[bad][:5]]
        more = f" and {bad.sum() - 5} more" if bad.sum() > 5 else ""
        raise InputError(f"{where}: {problem} in {', '.join(rows)}{more}")
