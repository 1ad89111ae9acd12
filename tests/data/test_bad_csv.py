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
from melanoma.data.decoding import image_id
from melanoma.data.duplicates import read_duplicates
from melanoma.data.labels import read_labels, read_test_names
from melanoma.training.run_folder import read_split

KIND = "bad CSV"

# --- good tables of every layout, however they are dressed ---

NAME = st.text(
    st.characters(exclude_categories=["C", "Z"], exclude_characters='/\\,"'), min_size=1, max_size=12
).filter(lambda name: image_id(name) not in ("", ".", ".."))
MISSING = ["", "-1", "0", "nan", "NaN", "None", "unknown", "N/A", "n/a", "NULL"]
IDS = [
    *((cell, "") for cell in MISSING),
    ("IP_1", "IP_1"),
    ("ü, 'quoted'", "ü, 'quoted'"),
    ('say "x"', 'say "x"'),
    ("007", "007"),
]
AGES = {"45": 45.0, "45.0": 45.0, " 7 ": 7.0, "120": 120.0, "12.5": 12.5, "45,5": 45.5}
ODD_AGES = dict.fromkeys([*MISSING, "121", "1e3", "inf", "-inf", "4 5", "٤٥", "9" * 400, "+45", "0x1F", "1_0"], np.nan)
COMMENTS = [
    "",
    "plain",
    "two\nlines",
    "three\r\n\r\nlines",
    'a "quoted" word',
    "a, b; c\td|e",
    "=1+1",
    "\u2028",
    "\x1b[31m",
]
# How each layout writes melanoma, another lesion, and one that is left out; columns of ids, sex, age and site.
CLASSES = ["MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC", "UNK"]
ONE_HOT = [[str(float(i == k)) for k in range(9)] for i in range(9)]
LAYOUTS: dict[str, tuple[str, list[str], dict[int | None, list[list[str]]], list[str]]] = {
    "ISIC 2020": (
        "image_name",
        ["target"],
        {1: [["1"], ["1.0"], [" 1 "], ["1,0"]], 0: [["0"], ["0.0"], ["\t0"], ["False"]]},
        ["patient_id", "lesion_id", "sex", "age_approx", "anatom_site_general_challenge"],
    ),
    "HAM10000": (
        "image_id",
        ["dx"],
        {1: [["mel"], ["MEL"]], 0: [["nv"], ["bcc"], ["akiec"], ["vasc"]], None: [["unknown"], [""]]},
        ["", "lesion_id", "sex", "age", "localization"],
    ),
    "ISIC 2019": (
        "image",
        CLASSES,
        {1: ONE_HOT[:1], 0: ONE_HOT[1:8], None: ONE_HOT[8:]},
        ["", "lesion_id", "sex", "age_approx", "anatom_site_general"],
    ),
    "ISIC Archive": (
        "isic_id",
        ["diagnosis_1", "diagnosis_3"],
        {
            1: [["Malignant", "Melanoma, NOS"], ["Malignant", "Melanoma in situ"], ["", "Lentigo maligna"]],
            0: [["Benign", "Nevus"], ["Malignant", "Basal cell carcinoma"], ["Benign", ""]],
            None: [["Indeterminate", "Atypical melanocytic neoplasm"], ["Malignant", ""], ["", ""]],
        },
        ["patient_id", "lesion_id", "sex", "age_approx", "anatom_site_general"],
    ),
}


class Lesion(NamedTuple):
    cells: dict[str, str]
    label: int | None
    ids: tuple[str, str]
    age: float


@st.composite
def lesions(draw: st.DrawFn, least: int = 1, layout: str | None = None) -> list[Lesion]:
    image, columns, writings, (patient, lesion, sex, age, site) = LAYOUTS[
        layout or draw(st.sampled_from(list(LAYOUTS)))
    ]
    names = draw(st.lists(NAME, min_size=least, max_size=6, unique_by=image_id))
    rows = []
    for name in names:
        label = draw(st.sampled_from(list(writings)))
        ids = draw(st.sampled_from(IDS)), draw(st.sampled_from(IDS))
        years = draw(st.sampled_from([*AGES, *ODD_AGES]))
        cells = {
            image: name + draw(st.sampled_from(["", "", ".jpg", ".PNG", "_downsampled"])),
            **dict(zip(columns, draw(st.sampled_from(writings[label])), strict=True)),
            patient: ids[0][0],
            lesion: ids[1][0],
            sex: draw(st.sampled_from(["male", "female", "Männlich"])),
            age: years,
            site: draw(st.sampled_from(["torso", "head/neck", "躯干"])),
            "comment": draw(st.sampled_from(COMMENTS)),
        }
        cells.pop("", None)
        rows.append(Lesion(cells, label, (ids[0][1] if patient else "", ids[1][1]), (AGES | ODD_AGES)[years]))
    return rows


class Dress(NamedTuple):
    """How a table is written."""

    shuffle: Any
    case: Any
    separator: str
    encoding: str
    quoted: bool
    ending: str
    blank_lines: list[int]
    numbered: bool
    last_ending: bool


@st.composite
def dresses(draw: st.DrawFn) -> Dress:
    return Dress(
        draw(st.randoms(use_true_random=False)),
        draw(st.sampled_from([str, str.upper, str.title, lambda name: name.replace("_", " ")])),
        draw(st.sampled_from([",", ",", ";", "\t", "|"])),
        draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        draw(st.booleans()),
        draw(st.sampled_from(["\n", "\r\n", "\r"])),
        draw(st.lists(st.integers(0, 6), max_size=2)),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def write(path: Path, rows: list[dict[str, str]], dress: Dress) -> list[int]:
    """Write a table and return the line at which each row begins, counted by what was written before it."""

    def cell(content: str) -> str:
        quote = dress.quoted or any(c in content for c in ',;|\t"\r\n')
        return '"' + content.replace('"', '""') + '"' if quote else content

    columns = list(rows[0])
    dress.shuffle.shuffle(columns)
    columns = ["", *columns] if dress.numbered else columns  # pandas' index has no name
    text = dress.separator.join(cell(dress.case(column)) for column in columns) + dress.ending
    lines = []
    for i, row in enumerate(rows):
        text += dress.ending * dress.blank_lines.count(i)
        lines.append(1 + len(re.findall("\r\n|\r|\n", text)))
        text += dress.separator.join(cell(str(i) if column == "" else row[column]) for column in columns) + dress.ending
    path.write_bytes((text if dress.last_ending else text.removesuffix(dress.ending)).encode(dress.encoding))
    return lines


@cases(300)
@given(rows=lesions(), dress=dresses())
def test_a_table_is_read_as_what_it_means_however_it_is_dressed(tmp_path, rows, dress):
    path = tmp_path / "labels.csv"
    write(path, [row.cells for row in rows], dress)
    found = read_labels(path)
    first = next(name for name in rows[0].cells if name.startswith(("image", "isic")))
    names = {image_id(row.cells[first]): row for row in rows if row.label is not None}
    expected = [names[name] for name in sorted(names)]
    table = found.table
    assert table["image_name"].tolist() == sorted(names)
    assert list(zip(table["patient_id"], table["lesion_id"], strict=True)) == [row.ids for row in expected]
    assert table["label"].tolist() == [row.label for row in expected]
    np.testing.assert_array_equal(table["age"], [row.age for row in expected])
    assert found.left_out == len(rows) - len(expected)
    assert sorted(read_test_names(path)) == sorted(image_id(row.cells[first]) for row in rows)
    tally("label table", "correct")


# --- one fault in a good table ---

BAD_TARGETS = [
    *("yes", "2", "0.5", "nan", "inf", "-1", "+1", "1e0", "１", "", "0x1", "1 0", ".0", "01", "-0", "1.0.0"),
    *("1" * 5000, "\x1b[31m1", "melanoma", "1\n1"),
]
BAD_NAMES = ["..", ".", "", "a/", "/", ".jpg", "x/" * 5000, "_downsampled"]


@cases(110)
@given(rows=lesions(least=2, layout="ISIC 2020"), dress=dresses(), place=st.integers(0, 1), data=st.data())
def test_a_bad_cell_is_refused_with_its_line(tmp_path, rows, dress, place, data):
    faults = [("target", value, "target is neither 0 nor 1") for value in BAD_TARGETS]
    faults += [("image_name", value, "image_name is not a file name") for value in BAD_NAMES]
    column, bad, problem = data.draw(st.sampled_from(faults))
    path = tmp_path / "labels.csv"
    cells = [row.cells for row in rows]
    cells[place] = {**cells[place], column: bad}
    lines = write(path, cells, dress)
    assert problem in refusal("label table", [path, f"line {lines[place]} ("], read_labels, path)
    if column == "image_name":
        assert problem in refusal("label table", [path, f"line {lines[place]} ("], read_test_names, path)


@cases(40)
@given(
    rows=lesions(least=2, layout="ISIC 2020"), dress=dresses(), other=st.sampled_from(["same", "label", "patient_id"])
)
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
        assert f"rows of one image differ in {other}" in message
        return
    assert read_labels(path).table["image_name"].tolist() == sorted(image_id(row.cells["image_name"]) for row in rows)
    tally(KIND, "correct")
    assert "image_name comes twice" in refusal(KIND, [path, f"line {lines[-1]} ("], read_test_names, path)


PLAIN = "image_name,target,comment\na,0,x\nb,1,y\n"
BROKEN = {
    "empty": (b"", "is empty"),
    "a mark alone": (b"\xef\xbb\xbf", "is empty"),
    "blank lines": (b"\r\n \n,,\n", "is empty"),
    "header only": (b"image_name,target\n", "has no rows"),
    "no name": (b"lesion,target\na,0\n", "has no column of image names"),
    "no label": (b"image_name,sex\na,male\n", "has no column of labels"),
    "two of one name": (b"image_name,target,target\na,0,0\n", "has two columns of one name: target"),
    "UTF-16 without a mark": (PLAIN.encode("utf-16-le"), "is not a CSV: it is not text"),
    "NUL": (PLAIN.replace("y", "\0").encode(), "is not a CSV: it is not text"),
    "a field less": (PLAIN.replace(",y", "").encode(), "line 3 has 2 fields, the header has 3"),
    "a field more": (PLAIN.replace(",y", ",y,").encode(), "line 3 has 4 fields, the header has 3"),
    "open quote": (PLAIN.replace("y", '"y').encode(), "in the row that begins in line 3"),
    "text after a quote": (PLAIN.replace("y", '"y"z').encode(), "in the row that begins in line 3"),
    "cell of 10 MB": (PLAIN.replace("y", "y" * 10**7).encode(), "line 3"),
    "10 MB without end": (b"x" * 10**7, "in the row that begins in line 1"),
    "2,000 columns": (",".join(f"column{i}" for i in range(2000)).encode() + b"\n", "1,988 more"),
    "columns of 100,000": (b"a" * 10**5 + b"\n1\n", "image_name"),
    "columns of controls": (b"\x1b]0;title\x07,b\n1,2\n", r"\x1b]0;title\x07, b"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(range(256)), "is not a CSV: it is not text"),
    "contradiction": (b"image_name,target,diagnosis\na,0,melanoma\n", "contradict each other in line 2 ('a')"),
    "unknown diagnosis": (b"image_name,dx\na,foo\n", "may or may not be melanoma: foo (1)"),
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
    table = read_labels(path).table
    assert dict(zip(table["image_name"], table["label"], strict=True)) == {
        name: label for label, name in enumerate(names)
    }
    tally(KIND, "correct")


# --- noise ---

NOISE = st.lists(
    st.sampled_from(
        [*"ab01,,,,\n\n\n\r .-", "image_name", "target", "\r\n", "\0", "é", "\ufeff", "\x1b", "１", "melanoma"]
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
        if name in ("", ".", "..") or not re.fullmatch(r"[01](\.0*)?", target):
            return None
        if found.get(name, int(target[0])) != int(target[0]):
            return None
        found[name] = int(target[0])
    return sorted(found.items())


@cases(200)
@given(
    head=st.sampled_from(["", "image_name,target\n", "\ufefftarget,image_name,\r\n", "target,image_name\r"]), text=NOISE
)
def test_noise_is_read_as_what_it_means_or_refused(tmp_path, head, text):
    path = tmp_path / "labels.csv"
    path.write_bytes((head + text).encode())
    found, expected = attempt(KIND, [path], read_labels, path), meaning(head + text)
    if found is REFUSED:
        assert expected is None
    else:
        assert list(zip(found.table["image_name"], found.table["label"], strict=True)) == expected
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
        text = decoded(head + content).replace('""', '"')
        cells = found.table["image_name"] if read is read_labels else np.ravel(found)
        assert all(str(cell) in text for cell in cells)
        tally(KIND, "correct")


def decoded(data: bytes) -> str:
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252")


# --- duplicates and splits ---


@cases(30)
@given(
    pairs=st.lists(st.tuples(NAME.map(image_id), NAME.map(image_id)), max_size=5),
    swap=st.booleans(),
    ending=st.sampled_from(["\n", "\r", "\r\n"]),
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
        "source": ["a", "a", "a", "b", "b", "b"],
        "patient_id": ["IP_1", "", "a, b", "007", "1e5", ""],
        "group": ["IP_1", "image:NA", "a, b", "007", "1e5", "image:f"],
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
