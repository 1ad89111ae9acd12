"""CSVs of every kind: each is read as what it means, or refused in one line that names file and line."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from bad_input import REFUSED, attempt, cases, no_files, refusal
from hypothesis import given
from hypothesis import strategies as st
from tally import tally

from melanoma.common.errors import InputError
from melanoma.data.labels import read_duplicates, read_labels, read_test_names
from melanoma.training.run_folder import read_split

KIND = "bad CSV"
FIELDS = ("image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "comment")

# --- good tables, however they are dressed ---

NAME = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters='/\\,"'), min_size=1, max_size=12)
PATIENT = st.sampled_from(["", "IP_1", "IP_2", "NA", "ü, 'quoted'", 'say "x"', "007", "-1"])
AGES = {"": np.nan, "45": 45.0, "45.0": 45.0, " 7 ": 7.0, "120": 120.0, "0": 0.0, "12.5": 12.5}
ODD_AGES = dict.fromkeys(
    ["-1", "121", "1e3", "inf", "-inf", "nan", "NaN", "unknown", "45,5", "4 5", "٤٥", "9" * 400, "+45", "0x1F", "1_0"],
    np.nan,
)
TARGETS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "1.000": 1, " 1 ": 1, "\t0": 0}
COMMENTS = ["", "plain", "two\nlines", "three\r\n\r\nlines", 'a "quoted" word', "a, b", "=1+1", "\u2028", "\x1b[31m"]


class Lesion(NamedTuple):
    cells: dict[str, str]
    label: int
    age: float


@st.composite
def lesions(draw: st.DrawFn, least: int = 1) -> list[Lesion]:
    names = draw(st.lists(NAME.filter(lambda name: name not in (".", "..")), min_size=least, max_size=6, unique=True))
    rows = []
    for name in names:
        target = draw(st.sampled_from(list(TARGETS)))
        age = draw(st.sampled_from([*AGES, *ODD_AGES]))
        cells = {
            "image_name": name,
            "patient_id": draw(PATIENT),
            "sex": draw(st.sampled_from(["male", "female", "", "Männlich"])),
            "age_approx": age,
            "anatom_site_general_challenge": draw(st.sampled_from(["torso", "head/neck", "", "躯干"])),
            "comment": draw(st.sampled_from(COMMENTS)),
            "target": target,
        }
        rows.append(Lesion(cells, TARGETS[target], (AGES | ODD_AGES)[age]))
    return rows


class Dress(NamedTuple):
    """How a table is written."""

    columns: list[str]
    quoted: bool
    ending: str
    mark: str
    blank_lines: list[int]
    numbered: bool
    last_ending: bool


@st.composite
def dresses(draw: st.DrawFn) -> Dress:
    return Dress(
        draw(st.permutations([*FIELDS, "target"])),
        draw(st.booleans()),
        draw(st.sampled_from(["\n", "\r\n", "\r"])),
        draw(st.sampled_from(["", "\ufeff"])),
        draw(st.lists(st.integers(0, 6), max_size=2)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def write(path: Path, rows: list[dict[str, str]], dress: Dress) -> list[int]:
    """Write a table and return the line at which each row begins, counted by what was written before it."""

    def cell(content: str) -> str:
        quote = dress.quoted or any(c in content for c in ',"\r\n')
        return '"' + content.replace('"', '""') + '"' if quote else content

    columns = ["", *dress.columns] if dress.numbered else dress.columns  # pandas' index has no name
    text = ",".join(map(cell, columns)) + dress.ending
    lines = []
    for i, row in enumerate(rows):
        text += dress.ending * dress.blank_lines.count(i)
        lines.append(1 + len(re.findall("\r\n|\r|\n", text)))
        text += ",".join(cell(str(i) if column == "" else row[column]) for column in columns) + dress.ending
    if not dress.last_ending:
        text = text.removesuffix(dress.ending)
    path.write_bytes((dress.mark + text).encode())
    return lines


@cases(70)
@given(rows=lesions(), dress=dresses())
def test_a_table_is_read_as_what_it_means_however_it_is_dressed(tmp_path, rows, dress):
    path = tmp_path / "labels.csv"
    write(path, [row.cells for row in rows], dress)
    table = read_labels(path)
    assert table["image_name"].tolist() == [row.cells["image_name"] for row in rows]
    patients = [row.cells["patient_id"] or f"image:{row.cells['image_name']}" for row in rows]
    assert table["patient_id"].tolist() == patients
    assert table["label"].tolist() == [row.label for row in rows]
    np.testing.assert_array_equal(table["age"], [row.age for row in rows])
    assert table["sex"].tolist() == [row.cells["sex"] for row in rows]
    assert table["site"].tolist() == [row.cells["anatom_site_general_challenge"] for row in rows]
    assert read_test_names(path) == table["image_name"].tolist()
    tally(KIND, "correct")


# --- one fault in a good table ---

BAD_TARGETS = [
    *(
        "yes",
        "2",
        "0.5",
        "nan",
        "inf",
        "-1",
        "+1",
        "1e0",
        "１",
        "",
        "0x1",
        "True",
        "1 0",
        "1.",
        ".0",
        "01",
        "-0",
        "1.0.0",
    ),
    *("1" * 5000, "\x1b[31m1", "melanoma", "0,0", "1\n"[:1] + "\n1"),
]
BAD_NAMES = ["../a", "/etc/passwd", "..", ".", "", "a/b", "C:\\x", "a\nb", "a\x1bb", "a\x85b", "a\u2028b", "x/" * 5000]


@cases(110)
@given(rows=lesions(least=2), dress=dresses(), place=st.integers(0, 1), data=st.data())
def test_a_bad_cell_is_refused_with_its_line(tmp_path, rows, dress, place, data):
    column, bad, problem = data.draw(
        st.sampled_from(
            [
                *(("target", value, "target is neither 0 nor 1") for value in BAD_TARGETS),
                *(("image_name", value, "image_name is not a plain file name") for value in BAD_NAMES),
                *(("patient_id", value, "patient_id has a control character") for value in ("a\x1bb", "a\nb")),
                ("sex", "ma\x00le".replace("\0", "\x07"), "sex has a control character"),
                ("anatom_site_general_challenge", "tor\rso", "site has a control character"),
            ]
        )
    )
    path = tmp_path / "labels.csv"
    cells = [row.cells for row in rows]
    cells[place] = {**cells[place], column: bad}
    lines = write(path, cells, dress)
    message = refusal(KIND, [path, f"line {lines[place]} ("], read_labels, path)
    assert problem in message
    if column == "image_name":
        assert problem in refusal(KIND, [path, f"line {lines[place]} ("], read_test_names, path)


@cases(40)
@given(rows=lesions(least=2), dress=dresses(), other=st.sampled_from(["same", "label", "patient_id"]))
def test_a_row_that_comes_twice_counts_once_or_contradicts_itself(tmp_path, rows, dress, other):
    path = tmp_path / "labels.csv"
    again = dict(rows[0].cells)
    if other == "label":
        again["target"] = "1" if rows[0].label == 0 else "0"
    if other == "patient_id":
        again["patient_id"] = "IP_other"
    lines = write(path, [*(row.cells for row in rows), again], dress)
    if other != "same":
        message = refusal(KIND, [path, f"line {lines[0]} (", f"line {lines[-1]} ("], read_labels, path)
        assert f"rows of one image_name differ in {other}" in message
        return
    assert read_labels(path)["image_name"].tolist() == [row.cells["image_name"] for row in rows]
    tally(KIND, "correct")
    assert "image_name comes twice" in refusal(KIND, [path, f"line {lines[-1]} ("], read_test_names, path)


PLAIN = "image_name,target,comment\na,0,x\nb,1,y\n"
BROKEN = {
    "empty": (b"", "is empty"),
    "a mark alone": (b"\xef\xbb\xbf", "is empty"),
    "blank lines": (b"\r\n \n,,\n", "is empty"),
    "header only": (b"image_name,target\n", "has no rows"),
    "no name": (b"image,target\na,0\n", "has no column image_name: its columns are image, target"),
    "no label": (b"image_name,sex\na,male\n", "has no column target and no diagnosis"),
    "capital": (b"Image_Name,Target\na,0\n", "has no column image_name: its columns are Image_Name, Target"),
    "two of one name": (b"image_name,target,target\na,0,0\n", "has two columns of one name: target"),
    "semicolons": (PLAIN.replace(",", ";").encode(), "image_name;target;comment: save it as CSV"),
    "tabs": (PLAIN.replace(",", "\t").encode(), "save it as CSV"),
    "UTF-16": (PLAIN.encode("utf-16"), "is no UTF-8 text, see byte 0"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "NUL character in line 1"),
    "Latin-1": (PLAIN.replace("x", "ä").encode("latin-1"), "is no UTF-8 text, see byte 30"),
    "NUL": (PLAIN.replace("y", "\0").encode(), "NUL character in line 3"),
    "NUL after lone CRs": (PLAIN.replace("y", "\0").replace("\n", "\r").encode(), "NUL character in line 3"),
    "a field less": (PLAIN.replace(",y", "").encode(), "line 3 has 2 fields, the header has 3"),
    "a field more": (PLAIN.replace(",y", ",y,").encode(), "line 3 has 4 fields, the header has 3"),
    "open quote": (PLAIN.replace("y", '"y').encode(), "in the row that begins in line 3"),
    "text after a quote": (PLAIN.replace("y", '"y"z').encode(), "in the row that begins in line 3"),
    "cell of 10 MB": (PLAIN.replace("y", "y" * 10**7).encode(), "line 3"),
    "quoted cell of 10 MB": (PLAIN.replace("y", f'"{"y" * 10**7}"').encode(), "line 3"),
    "10 MB without end": (b"x" * 10**7, "in the row that begins in line 1"),
    "2,000 columns": (",".join(f"column{i}" for i in range(2000)).encode() + b"\n", "1,988 more"),
    "columns of 100,000": (b"a" * 10**5 + b"\n1\n", "image_name"),
    "columns of controls": (b"\x1b]0;title\x07,b\n1,2\n", r"\x1b]0;title\x07, b"),
    "marks twice": (b"\xef\xbb\xbf\xef\xbb\xbfimage_name,target\na,0\n", r"\ufeffimage_name"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)), "is no UTF-8 text"),
    "contradiction": (b"image_name,target,diagnosis\na,0,melanoma\n", "contradict in line 2 ('a')"),
}


@pytest.mark.parametrize("content, problem", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_refused_with_its_problem(tmp_path, content, problem):
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    assert problem in refusal(KIND, [path], read_labels, path)
    for read in (read_test_names, read_duplicates):
        attempt(KIND, [path], read, path)


@pytest.mark.parametrize("read", [read_labels, read_test_names, read_duplicates])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, read):
    for path in no_files(tmp_path).values():
        refusal(KIND, [path, "pass --"], read, path)


@pytest.mark.parametrize("read", [read_labels, read_test_names, read_duplicates])
def test_a_table_without_permission_is_refused(tmp_path, read, monkeypatch):
    (tmp_path / "a.csv").write_text(PLAIN)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")  # root may read everything: chmod would not do

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot be read: Permission denied" in refusal(KIND, [tmp_path / "a.csv"], read, tmp_path / "a.csv")


ALIKE = [("a", "A"), ("\u00e9", "e\u0301"), ("a", "a."), ("a", "a\u200b"), ("1", "01"), ("\ufb01", "fi"), ("ß", "ss")]


@pytest.mark.parametrize("names", ALIKE, ids=range(len(ALIKE)))
def test_names_are_the_same_where_their_characters_are_and_not_else(tmp_path, names):
    path = tmp_path / "labels.csv"
    path.write_text("image_name,target\n" + "".join(f"{name} ,{label}\n" for label, name in enumerate(names)))
    table = read_labels(path)
    assert table["image_name"].tolist() == list(names)
    assert table["label"].tolist() == [0, 1]
    assert table["patient_id"].nunique() == 2
    tally(KIND, "correct")


# --- noise ---

NOISE = st.lists(
    st.sampled_from(
        [*"ab01,,,,\n\n\n\r .-/", "image_name", "target", "\r\n", "\0", "é", "\ufeff", "\x1b", "１", "melanoma"]
    ),
    max_size=30,
).map("".join)


def meaning(text: str) -> list[tuple[str, int]] | None:
    """Return names and labels of a CSV without quotes, None where it has no meaning; told by another way to read."""
    if "\0" in text:
        return None
    rows = [[cell.strip() for cell in line.split(",")] for line in re.split("\r\n|\r|\n", text.removeprefix("\ufeff"))]
    rows = [row for row in rows if "".join(row)]
    if not rows or not {"image_name", "target"} <= set(rows[0]):
        return None
    named = [cell for cell in rows[0] if cell]
    if len(set(named)) < len(named) or len(rows) < 2 or {len(row) for row in rows} != {len(rows[0])}:
        return None
    found: dict[str, int] = {}
    for row in rows[1:]:
        cells = dict(zip(rows[0], row, strict=True))
        name, target = cells["image_name"], cells["target"]
        odd = name in ("", ".", "..") or any(c in "/\\" or not (c.isprintable() or c == "\ufeff") for c in name)
        if odd or target not in ("0", "1", "0.0", "1.0", "0.00", "1.00"):
            return None
        if found.get(name, int(target[0])) != int(target[0]):
            return None
        found[name] = int(target[0])
    return list(found.items())


@cases(200)
@given(
    head=st.sampled_from(["", "image_name,target\n", "\ufefftarget,image_name,\r\n", "target,image_name\r"]), text=NOISE
)
def test_noise_is_read_as_what_it_means_or_refused(tmp_path, head, text):
    path = tmp_path / "labels.csv"
    path.write_bytes((head + text).encode())
    table, expected = attempt(KIND, [path], read_labels, path), meaning(head + text)
    if table is REFUSED:
        assert expected is None
    else:
        assert list(zip(table["image_name"], table["label"], strict=True)) == expected
        tally(KIND, "correct")


@cases(200)
@given(
    content=st.binary(max_size=60),
    head=st.sampled_from([b"", b"image_name,target\n", b"image_name_1,image_name_2\n", b'image,"']),
)
def test_bytes_are_refused_or_hold_what_is_read(tmp_path, content, head):
    path = tmp_path / "labels.csv"
    path.write_bytes(head + content)
    for read in (read_labels, read_test_names, read_duplicates):
        found: Any = attempt(KIND, [path], read, path)
        if found is REFUSED:
            continue
        text = (head + content).decode("utf-8-sig").replace('""', '"')
        cells = found["image_name"] if read is read_labels else np.ravel(found)
        assert all(str(cell) in text for cell in cells)
        tally(KIND, "correct")


# --- duplicates and splits ---


@cases(30)
@given(
    pairs=st.lists(st.tuples(NAME, NAME), max_size=5), swap=st.booleans(), ending=st.sampled_from(["\n", "\r", "\r\n"])
)
def test_pairs_of_duplicates_are_read_as_they_are(tmp_path, pairs, swap, ending):
    path = tmp_path / "duplicates.csv"
    rows = [("image_name_1", "image_name_2"), *pairs]
    lines = [f'"{b}",{a}' if swap else f"{a},{b}" for a, b in rows]
    path.write_bytes(ending.join(lines).encode())
    assert read_duplicates(path) == pairs
    tally(KIND, "correct")


SPLIT = pd.DataFrame(
    {
        "image_name": ["001", "NA", "ü", 'say "x"', "e", "f"],
        "patient_id": ["IP_1", "", "a, b", "007", "1e5", "image:f"],
        "label": [0, 1, 0, 1, 0, 1],
        "part": ["train", "train", "validation", "validation", "test", "test"],
    }
)


def test_a_split_cut_anywhere_is_refused_or_has_its_first_rows(tmp_path):
    path = tmp_path / "split.csv"
    SPLIT.to_csv(path, index=False)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        table = attempt(KIND, [path], read_split, tmp_path)
        if table is not REFUSED:
            assert table.values.tolist() == SPLIT[: len(table)].values.tolist()
            assert whole[:cut].count(b"\n") + (not whole[:cut].endswith(b"\n")) == len(table) + 1
            tally(KIND, "correct")
    path.write_bytes(whole)
    assert read_split(tmp_path).values.tolist() == SPLIT.values.tolist()


@pytest.mark.parametrize(
    "old, new",
    [
        *[("0,train", "2,train"), ("0,train", "x,train"), ("0,train", ",train"), (",train", ",Train")],
        *[("label", "labels"), ("0,train", "0,train,"), ("IP_1", '"IP_1')],
        *[("0,train", "1" * 5000 + ",train"), ("IP_1", "\0")],
    ],
)
def test_a_split_that_is_not_as_it_was_written_is_refused(tmp_path, old, new):
    path = tmp_path / "split.csv"
    SPLIT.to_csv(path, index=False)
    path.write_text(path.read_text().replace(old, new, 1))
    refusal(KIND, [path], read_split, tmp_path)


def test_a_cell_that_a_message_quotes_is_shortened(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_name,target\n" + "".join(f"{'x' * 100_000}{i},2\n" for i in range(9)))
    with pytest.raises(InputError) as error:
        read_labels(path)
    assert len(str(error.value)) < 600 + len(str(path))
    tally(KIND, "clean error")
