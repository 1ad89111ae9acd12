"""labels.py: tables as every source writes them, and clear words for those that are wrong."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from melanoma.common.errors import InputError
from melanoma.data.labels import drop_duplicates, read_duplicates, read_labels, read_test_names


def read(tmp_path: Path, text: str) -> pd.DataFrame:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    return read_labels(tmp_path / "labels.csv")


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"train_labels {tmp_path / 'labels.csv'}")
    return str(error.value)


# --- label table ---

TRUTH = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
LAYOUTS = {
    "ISIC 2020 ground truth": TRUTH
    + "a,IP_1,male,45,head/neck,melanoma,malignant,1\nb,IP_2,female,50,torso,unknown,benign,0\n",
    "v2, with lesions": "image_name,patient_id,lesion_id,sex,age_approx,anatom_site_general_challenge,diagnosis,"
    "benign_malignant,target\n"
    "a,IP_1,IL_7,male,45,head/neck,melanoma,malignant,1\nb,IP_2,IL_8,female,50,torso,nevus,benign,0\n",
    "Kaggle, ages as floats": TRUTH
    + "a,IP_1,male,45.0,head/neck,melanoma,malignant,1\nb,IP_2,female,50.0,torso,unknown,benign,0\n",
    "other order": "target,site,age_approx,sex,anatom_site_general_challenge,patient_id,image_name\n"
    "1,x,45,male,head/neck,IP_1,a\n0,y,50,female,torso,IP_2,b\n",
    "spaces around": "image_name , target, patient_id,sex,age_approx,anatom_site_general_challenge\n"
    " a, 1 ,IP_1 ,male ,45 , head/neck\nb,0,IP_2,female,50,torso\n",
    "with diagnosis alone": "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis\n"
    "a,IP_1,male,45,head/neck,melanoma\nb,IP_2,female,50,torso,nevus\n",
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_every_layout_gives_one_table(tmp_path, text, mark, ending):
    table = read(tmp_path, mark + text.replace("\n", ending))
    assert table.to_dict("list") == {
        "image_name": ["a", "b"],
        "patient_id": ["IP_1", "IP_2"],
        "label": [1, 0],
        "sex": ["male", "female"],
        "age": [45.0, 50.0],
        "site": ["head/neck", "torso"],
    }


@pytest.mark.parametrize("text", ["image_name,target\na,1\nb,0\n", "image_name,diagnosis\na,melanoma\nb,nevus\n"])
def test_name_and_label_are_enough(tmp_path, text):
    table = read(tmp_path, text)
    assert table["label"].tolist() == [1, 0]
    assert table["patient_id"].nunique() == 2
    assert table["age"].isna().all()
    assert table["sex"].tolist() == table["site"].tolist() == ["", ""]


MELANOMA = ["melanoma", "Melanoma", "melanoma in situ"]
OTHERS = ["nevus", "melanocytic nevus", "unknown", "lentigo NOS", "seborrheic keratosis", "NA"]


@pytest.mark.parametrize("diagnosis, label", [*[(d, 1) for d in MELANOMA], *[(d, 0) for d in OTHERS]])
def test_a_diagnosis_of_melanoma_is_label_1_and_any_other_0(tmp_path, diagnosis, label):
    assert read(tmp_path, f"image_name,diagnosis\na,{diagnosis}\n")["label"].tolist() == [label]


@pytest.mark.parametrize("diagnosis", ["melanoma", "unknown", "Unknown", ""])
def test_a_target_of_1_agrees_with_melanoma_and_with_no_diagnosis(tmp_path, diagnosis):
    assert read(tmp_path, f"image_name,diagnosis,target\na,{diagnosis},1\n")["label"].tolist() == [1]


@pytest.mark.parametrize("row", ["nevus,1", "melanoma,0"])
def test_target_and_diagnosis_that_contradict_name_the_rows(tmp_path, row):
    text = f"image_name,diagnosis,target\na,nevus,0\nb,{row}\nc,melanoma,1\nd,{row}\n"
    message = refusal(tmp_path, text)
    assert message.endswith("target and diagnosis contradict in line 3 ('b'), line 5 ('d')")


def test_the_rows_of_a_problem_are_named_up_to_five(tmp_path):
    message = refusal(tmp_path, "image_name,target\n" + "".join(f"a{i},2\n" for i in range(8)))
    assert message.endswith("line 2 ('a0'), line 3 ('a1'), line 4 ('a2'), line 5 ('a3'), line 6 ('a4') and 3 more")


def test_blank_lines_do_not_shift_the_line_that_is_named(tmp_path):
    assert "in line 5 ('b')" in refusal(tmp_path, "image_name,target\n\na,0\n\nb,2\n")


@pytest.mark.parametrize("target", ["2", "-1", "0.5", "", "yes", "nan", "inf"])
def test_a_target_is_0_or_1(tmp_path, target):
    message = refusal(tmp_path, f"image_name,target,sex\na,0,\nb,{target},\n")
    assert message.endswith("target is neither 0 nor 1 in line 3 ('b')")


def test_a_blank_diagnosis_without_a_target_is_refused(tmp_path):
    assert "diagnosis is blank in line 2 ('a')" in refusal(tmp_path, "image_name,diagnosis,sex\na,,male\n")


@pytest.mark.parametrize("diagnosis", ["malignant melanoma", "Superficial Spreading Melanoma", "no melanoma", "MEL"])
def test_a_diagnosis_that_may_be_melanoma_or_not_is_for_the_target_to_tell(tmp_path, diagnosis):
    message = refusal(tmp_path, f"image_name,diagnosis\na,melanoma in situ\nb,nevus\nc,{diagnosis}\n")
    assert "add a column target) in line 4 ('c')" in message
    for target in (0, 1):
        table = read(tmp_path, f"image_name,diagnosis,target\na,melanoma,1\nc,{diagnosis},{target}\n")
        assert table["label"].tolist() == [1, target]


def test_an_image_without_a_patient_is_its_own_patient(tmp_path):
    table = read(tmp_path, "image_name,patient_id,target\na,,0\nb,p,0\nc, ,0\nd,p,1\n")
    assert table["patient_id"].nunique() == 3
    assert table["patient_id"][1] == table["patient_id"][3] == "p"


def test_blank_and_odd_ages_are_unknown(tmp_path):
    ages = read(tmp_path, "image_name,target,age_approx\na,0,\nb,0,unknown\nc,0,30\n")["age"]
    np.testing.assert_array_equal(ages, [np.nan, np.nan, 30.0])


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path):
    assert read(tmp_path, "image_name,target\nNA,0\nnull,1\n007,0\n")["image_name"].tolist() == ["NA", "null", "007"]


def test_rows_that_repeat_an_image_are_kept_once(tmp_path):
    table = read(tmp_path, "image_name,target\na,0\na,0\nb,1\n")
    assert table["image_name"].tolist() == ["a", "b"]
    assert table.index.tolist() == [0, 1]


def test_rows_that_repeat_an_image_with_another_label_are_refused(tmp_path):
    message = refusal(tmp_path, "image_name,target\na,0\nb,1\na,1\n")
    assert message.endswith("rows of one image_name differ in label in line 2 ('a'), line 4 ('a')")


@pytest.mark.parametrize("name", ["../a", "x/a", "/etc/a", "x\\a", "..", ".", ""])
def test_a_name_with_a_path_in_it_is_refused(tmp_path, name):
    message = refusal(tmp_path, f"image_name,target\nb,0\n{name},0\n")
    assert message.endswith(f"image_name is not a plain file name in line 3 ({name!r})")


BAD_TABLES = {
    "empty": ("", "is empty"),
    "header only": ("image_name,target\n", "has no rows"),
    "no names": ("image,target\na,0\n", "has no column image_name: its columns are image, target"),
    "no labels": ("image_name,sex\na,male\n", "has no column target and no diagnosis"),
    "semicolons": ("image_name;target\na;0\n", "has no column image_name"),
    "open quote": ('image_name,target\n"a,0\nb,1\n', "is not a CSV"),
    "a comma at each end": ("image_name,target\na,0,\nb,1,\n", "is not a CSV"),
    "a field too many": ("image_name,target\na,0\nb,1,2,3\n", "is not a CSV"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused_with_its_problem(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(InputError, match=r"train_labels .*a\.csv is no UTF-8 text"):
        read_labels(tmp_path / "a.csv")


@pytest.mark.parametrize("argument", ["train_labels", "evaluate_labels"])
def test_a_missing_table_is_named_with_its_flag(tmp_path, argument):
    with pytest.raises(InputError) as error:
        read_labels(tmp_path / "nowhere.csv", argument)
    assert str(error.value).startswith(f"{argument} {tmp_path / 'nowhere.csv'} does not exist")
    assert f"--{argument.replace('_', '-')}" in str(error.value)


# --- duplicates ---


@pytest.mark.parametrize(
    "pairs, kept",
    [
        ([], "abcdef"),
        ([("a", "b")], "acdef"),
        ([("d", "b")], "abcef"),
        ([("a", "b"), ("b", "c")], "adef"),
        ([("b", "c"), ("e", "f"), ("f", "c"), ("c", "b")], "abd"),
        ([("a", "x"), ("y", "z")], "abcdef"),
        ([("a", "x"), ("x", "b")], "abcdef"),
        ([("a", "a")], "abcdef"),
    ],
)
def test_one_image_of_each_group_of_duplicates_is_kept(pairs, kept):
    table = pd.DataFrame({"image_name": list("abcdef"), "label": [0, 1, 0, 0, 1, 0]})
    left = drop_duplicates(table, pairs)
    assert "".join(left["image_name"]) == kept
    assert left.index.tolist() == list(range(len(kept)))
    assert left["label"].tolist() == [table["label"]["abcdef".index(name)] for name in kept]


def test_duplicates_are_read_as_pairs(tmp_path):
    (tmp_path / "d.csv").write_text("image_name_1,image_name_2\na,b\nc,d\n")
    assert read_duplicates(tmp_path / "d.csv") == [("a", "b"), ("c", "d")]


def test_a_duplicate_list_without_its_columns_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("image_name_1,image_name\na,b\n")
    with pytest.raises(
        InputError, match=r"duplicates .*d\.csv has no column image_name_2: its columns are image_name_1, image_name$"
    ):
        read_duplicates(tmp_path / "d.csv")


# --- names without labels ---


def names_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "test.csv").write_text(text, encoding="utf-8")
    return read_test_names(tmp_path / "test.csv")


@pytest.mark.parametrize(
    "text",
    [
        "image,patient,age_approx,anatom_site,sex\nISIC_2,IP_1,45,torso,male\nISIC_1,IP_1,,,\n",
        "image_name,patient_id,sex,age_approx,anatom_site_general_challenge\nISIC_2,IP_1,male,45.0,torso\nISIC_1,IP_1,,,\n",
        "\ufeffsex,image_name,image\r\nmale, ISIC_2 ,x\r\n\r\nmale,ISIC_1,x\r\n",
    ],
    ids=["ISIC", "Kaggle", "by hand"],
)
def test_names_of_test_images_are_read_in_the_files_order(tmp_path, text):
    assert names_of(tmp_path, text) == ["ISIC_2", "ISIC_1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,sex\n", "has no rows"),
        ("name,sex\na,male\n", "has no column image_name and no image: its columns are name, sex"),
        ("image,sex\na,m\n../b,m\n,m\n", r"image is not a plain file name in line 3 \('../b'\), line 4 \(''\)"),
        ("image\na\nb\na\n", r"image comes twice in line 2 \('a'\), line 4 \('a'\)"),
    ],
)
def test_bad_names_of_test_images_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"^test_labels {tmp_path}/test\.csv:? {message}"):
        names_of(tmp_path, text)


def test_a_missing_file_of_test_names_is_named_with_its_flag(tmp_path):
    with pytest.raises(InputError, match=r"test_labels .*test\.csv does not exist: .* --test-labels"):
        read_test_names(tmp_path / "test.csv")
