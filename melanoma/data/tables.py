"""Read CSV files as people have them: with the encodings and separators that Excel writes, too."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from pathlib import Path

import pandas as pd

from melanoma.common.errors import InputError, brief, listed
from melanoma.common.files import read_bytes

AS_CSV = "save it as CSV in UTF-8"
SEPARATORS = ",;\t|"
# Cells that stand for no value, in any letter case: anywhere; and in a patient, lesion, age, sex or site.
NO_VALUE = ("", "-", "?", "nan", "none", "null", "na", "n/a", "unk", "unknown", "not available")
MISSING = (*NO_VALUE, "-1", "-1.0", "0", "0.0", "--", "#n/a", "<na>", "n.a.", "missing", "not specified", "undefined")


def read_csv(path: Path, what: str, advice: str) -> pd.DataFrame:
    """Read a CSV as text, with any line ends, and quotes as in RFC 4180.

    The encoding is UTF-8, UTF-16 if a byte order mark says so, or else Windows-1252. The separator is a comma, a
    semicolon, a tab or |, whichever splits the header into most columns. Spaces around a cell are removed; blank lines,
    columns without a name, and Excel's line `sep=;` are skipped.

    Parameters
    ----------
    what, advice : begin and end of error messages: which file it is, and what to do if it does not exist

    Returns
    -------
    a table of str; the index is the line of the file in which each row begins

    Raises
    ------
    InputError : no such file, no text, an open quote, a cell of more than 131,072 characters, a row that is longer or
        shorter than the header, two columns of one name; the message names the line
    """
    text = _decode(read_bytes(path, what, advice))
    if text is None or "\0" in text:
        raise InputError(f"{what} is not a CSV: it is not text: {AS_CSV}")
    rows: dict[int, list[str]] = {}
    begins = 1
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=_separator(text))
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells) and not (begins == 1 and re.fullmatch("sep=.?", "".join(cells))):
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


def _decode(data: bytes) -> str | None:
    """Return the text of a file; None if it is none."""
    for encoding in ("utf-16",) if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ("utf-8-sig", "cp1252"):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError:
            continue
    return None


def _separator(text: str) -> str:
    """Return the separator that splits the first line with text into most columns; a comma if there is none."""
    lines = [line for line in text.splitlines()[:20] if line.strip() and not re.fullmatch('"?sep=.?"?', line.strip())]
    header = re.sub('"[^"]*"', "", lines[0]) if lines else ""
    return max(SEPARATORS, key=header.count)


def column_key(name: str) -> str:
    """Return a column's name as it is compared: in lower case, its words joined by underscores."""
    return re.sub(r"[\s\-]+", "_", name.strip().casefold())


def known_values(cells: pd.Series) -> pd.Series:
    """Return text cells with "" for those that mean a missing value; 12.0, as pandas writes numbers, becomes 12."""
    whole = cells.str.replace(r"^(\d+)\.0+$", r"\1", regex=True)
    return whole.where(~cells.str.casefold().isin(MISSING), "")


def refuse_rows(where: str, problem: str, names: pd.Series, bad: pd.Series, advice: str = "") -> None:
    """Raise InputError if there are bad rows; it names the lines and images of the first five."""
    if bad.any():
        rows = [f"line {line} ({brief(repr(names[line]), 40)})" for line in names.index[bad][:5]]
        more = f" and {bad.sum() - 5} more" if bad.sum() > 5 else ""
        raise InputError(f"{where}: {problem} in {', '.join(rows)}{more}{advice}")
