"""labels.py: the layouts that people have, and clear words for tables that are wrong."""

from pathlib import Path

import numpy as np
import pytest

from melanoma.common.errors import InputError
from melanoma.data.labels import Columns, Labels, labels_of_folders, read_labels, read_metadata, read_test_names


def read(tmp_path: Path, text: str, **columns) -> Labels:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    return read_labels(tmp_path / "labels.csv", columns=Columns(**columns))


def refusal(tmp_path: Path, text: str, **columns) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text, **columns)
    assert str(error.value).startswith(f"train_labels {tmp_path / 'labels.csv'}")
    return str(error.value)


def labels_of(found: Labels) -> dict[str, int]:
    return dict(zip(found.table["image_name"], found.table["label"], strict=True))


# --- the layouts of docs/data.md ---

TRUTH = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
SAME = {
    "ISIC 2020": TRUTH + "a,IP_1,male,45,head/neck,melanoma,malignant,1\nb,IP_2,female,50,torso,unknown,benign,0\n",
    "Kaggle, ages as floats, resized": TRUTH.replace("target", "target,tfrecord,width,height")
    + "a,IP_1,male,45.0,head/neck,melanoma,malignant,1,0,64,64\nb,IP_2,female,50.0,torso,unknown,benign,0,1,64,64\n",
    "other order": "target,site,age_approx,sex,anatom_site_general_challenge,patient_id,image_name\n"
    "1,x,45,male,head/neck,IP_1,a\n0,y,50,female,torso,IP_2,b\n",
    "spaces around": "image_name , target, patient_id,sex,age_approx,anatom_site_general_challenge\n"
    " a, 1 ,IP_1 ,male ,45 , head/neck\nb,0,IP_2,female,50,torso\n",
    "diagnosis alone": "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis\n"
    "a,IP_1,male,45,head/neck,melanoma\nb,IP_2,female,50,torso,nevus\n",
    "capitals, extensions, folders": "Image Name,Patient-ID,SEX,Age_Approx,Anatom_Site_General,Target\n"
    "train/a.JPG,IP_1,male,45,head/neck,1.0\nb.jpeg,IP_2,female,50,torso,0.0\n",
    "semicolons and decimal commas": "image_name;patient_id;sex;age_approx;site;target\n"
    "a;IP_1;male;45,0;head/neck;1,0\nb;IP_2;female;50,0;torso;0,0\n",
    "Excel's sep line": "sep=;\nimage_name;patient_id;sex;age_approx;site;target\n"
    "a;IP_1;male;45;head/neck;1\nb;IP_2;female;50;torso;0\n",
    "tabs": "image_name\tpatient_id\tsex\tage_approx\tsite\ttarget\na\tIP_1\tmale\t45\thead/neck\t1\n"
    "b\tIP_2\tfemale\t50\ttorso\t0\n",
    "true and false": "isic_id,patient_id,gender,age,localization,target\n"
    "a,IP_1,male,45,head/neck,True\nb,IP_2,female,50,torso,False\n",
    "PAD-UFES-20": "img_id,patient_id,gender,age,region,diagnostic\na.png,IP_1,male,45,head/neck,MEL\n"
    "b.png,IP_2,female,50,torso,SEK\n",
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("text", SAME.values(), ids=SAME)
def test_every_layout_gives_one_table(tmp_path, text, ending, encoding):
    (tmp_path / "a.csv").write_bytes(text.replace("\n", ending).encode(encoding))
    assert read_labels(tmp_path / "a.csv").table.to_dict("list") == {
        "image_name": ["a", "b"],
        "patient_id": ["IP_1", "IP_2"],
        "lesion_id": ["", ""],
        "label": [1, 0],
        "sex": ["male", "female"],
        "age": [45.0, 50.0],
        "site": ["head/neck", "torso"],
    }


def test_umlauts_of_excel_are_read(tmp_path):
    (tmp_path / "a.csv").write_bytes("image_name;site;target\na;Füße;1\n".encode("cp1252"))
    assert read_labels(tmp_path / "a.csv").table["site"].tolist() == ["Füße"]


ONE_HOT_2019 = "image,MEL,NV,BCC,AK,BKL,DF,VASC,SCC,UNK\n"
LAYOUTS = {
    "ISIC 2019": (
        ONE_HOT_2019 + "a_downsampled,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0\nb,0.0,0.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0\n"
        "c,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0\n",
        {"a": 1, "b": 0},
        "ISIC 2019 ground truth: image, a column for each class; melanoma = mel; grouped by image alone",
    ),
    "ISIC 2018": (
        "image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\na,1,0,0,0,0,0,0\nb,0,1,0,0,0,0,0\n",
        {"a": 1, "b": 0},
        "ISIC 2018 ground truth: image, a column for each class; melanoma = mel; grouped by image alone",
    ),
    "ISIC 2017": (
        "image_id,melanoma,seborrheic_keratosis\na,1.0,0.0\nb,0.0,1.0\nc,0.0,0.0\n",
        {"a": 1, "b": 0, "c": 0},
        "ISIC 2017 ground truth: image_id, a column for each class; melanoma = melanoma; grouped by image alone",
    ),
    "HAM10000": (
        "lesion_id,image_id,dx,dx_type,age,sex,localization\nH1,a,mel,histo,45.0,male,back\nH2,b,nv,histo,,,\n",
        {"a": 1, "b": 0},
        "HAM10000 metadata: image_id, dx; melanoma = mel; grouped by lesion_id",
    ),
    "ISIC Archive, levels": (
        "isic_id,diagnosis_1,diagnosis_2,diagnosis_3,patient_id,lesion_id\n"
        'a,Malignant,Malignant melanocytic proliferations (Melanoma),"Melanoma, NOS",P,L\nb,Benign,,Nevus,P,M\n'
        "c,Indeterminate,Indeterminate melanocytic proliferations,,Q,N\nd,Malignant,,,Q,O\n"
        "e,Malignant,Malignant epidermal proliferations,Basal cell carcinoma,R,\nf,,,,,\n",
        {"a": 1, "b": 0, "e": 0},
        "ISIC Archive: isic_id, diagnosis_1, diagnosis_2, diagnosis_3; melanoma = Malignant > Maligna",
    ),
    "ISIC Archive, older": (
        "isic_id,benign_malignant,diagnosis,melanocytic\na,malignant,melanoma,true\nb,benign,nevus,true\n"
        "c,malignant,basal cell carcinoma,false\nd,indeterminate/benign,other,\n",
        {"a": 1, "b": 0, "c": 0, "d": 0},
        "ISIC Archive: isic_id, diagnosis; melanoma = melanoma; grouped by image alone",
    ),
    "ISIC 2024": (
        "isic_id,target,patient_id,iddx_full,iddx_1\na,1,P,Malignant::Melanoma,Malignant\nb,0,P,Benign,Benign\n",
        {"a": 1, "b": 0},
        "ISIC 2024: isic_id, target and iddx; melanoma = malignant and not named otherwise; grouped by patient_id",
    ),
    "ISIC 2024, other cancers": (
        "isic_id,target,iddx_full\na,1,Malignant\nb,0,Benign\n"
        "c,1,Malignant::Malignant epidermal proliferations::Basal cell carcinoma\n",
        {"a": 1, "b": 0, "c": 0},
        "ISIC 2024",
    ),
    "ISIC 2024, target alone": ("isic_id,target\na,1\nb,0\n", {"a": 1, "b": 0}, "ISIC 2024: isic_id, target;"),
}


@pytest.mark.parametrize(("text", "labels", "layout"), LAYOUTS.values(), ids=LAYOUTS)
def test_public_layouts_are_understood_without_flags(tmp_path, text, labels, layout):
    found = read(tmp_path, text)
    assert labels_of(found) == labels
    assert found.layout.startswith(layout)
    rows = text.count("\n") - 1
    assert found.left_out == rows - len(labels)
    assert sum(count for *_, count in found.values) == rows


def test_tables_whose_column_of_names_no_flag_can_name_are_to_be_changed(tmp_path):
    (tmp_path / "a.csv").write_text("No,Sex\n1,m\n")
    for reader in (read_metadata, read_test_names):
        with pytest.raises(InputError, match=r"has no column of image names .*: rename one to image_name$"):
            reader(tmp_path / "a.csv")


def test_metadata_of_isic_2019_are_joined_by_image(tmp_path):
    (tmp_path / "metadata.csv").write_text(
        "image,age_approx,anatom_site_general,lesion_id,sex\nb,50,torso,L2,female\na_downsampled,45,head/neck,L1,male\n"
    )
    text = ONE_HOT_2019 + "a_downsampled,1,0,0,0,0,0,0,0,0\nb,0,1,0,0,0,0,0,0,0\nc,0,1,0,0,0,0,0,0,0\n"
    (tmp_path / "labels.csv").write_text(text)
    found = read_labels(tmp_path / "labels.csv", metadata=[read_metadata(tmp_path / "metadata.csv")])
    assert found.table["lesion_id"].tolist() == ["L1", "L2", ""]
    assert found.table["sex"].tolist() == ["male", "female", ""]
    np.testing.assert_array_equal(found.table["age"], [45, 50, np.nan])
    assert found.layout.endswith("grouped by lesion_id")


def test_class_folders_are_labels(tmp_path):
    places = {
        "a": "train/melanoma/a.jpg",
        "b": "train/NV/b.jpg",
        "c": "test/lentigo_maligna/c.jpg",
        "d": "benign/d.png",
    }
    files = {name: tmp_path / place for name, place in places.items()}
    found = labels_of_folders(files)
    assert labels_of(found) == {"a": 1, "b": 0, "c": 1, "d": 0}
    assert found.layout.startswith("class folders: file name, folder; melanoma = ")


def test_malignant_folders_are_melanoma_only_if_the_user_says_so(tmp_path):
    files = {"a": tmp_path / "malignant/a.jpg", "b": tmp_path / "benign/b.jpg"}
    with pytest.raises(InputError, match=r"may or may not be melanoma: malignant \(1\): pass --melanoma-values"):
        labels_of_folders(files)
    assert labels_of(labels_of_folders(files, Columns(melanoma=["malignant"]))) == {"a": 1, "b": 0}


def test_a_file_name_that_is_no_text_is_named():
    with pytest.raises(InputError, match=r"'caf\\udce9' is no text in UTF-8: rename"):
        labels_of_folders({"caf\udce9": Path("nevus/caf\udce9.png")})


# --- any other table ---


def test_four_settings_read_any_table(tmp_path):
    text = "No,Finding,Person,Spot\n1,MM,p,s\n2,clear,p,t\n3,LMM,q,u\n"
    assert "--image-column" in refusal(tmp_path, text)
    assert "--label-column" in refusal(tmp_path, text, image="No")
    assert "--melanoma-values" in refusal(tmp_path, text, image="No", label="finding")
    found = read(tmp_path, text, image="no", label="Finding", melanoma=["mm", "LMM"], groups=["Person", "Spot"])
    assert labels_of(found) == {"1": 1, "2": 0, "3": 1}
    assert found.groups == ("person", "spot")
    assert found.table["person"].tolist() == ["p", "p", "q"]
    assert found.layout == "label table: no, finding; melanoma = mm, LMM; grouped by person and spot"


@pytest.mark.parametrize("name", ["label", "age", "sex", "site", "source", "part", "group"])
def test_a_column_of_groups_cannot_have_a_name_that_the_table_uses(tmp_path, name):
    with pytest.raises(InputError, match=f"group_columns names {name}, which .*: rename the column"):
        read(tmp_path, f"image,target,{name}\na,1,x\nb,0,y\n", groups=[name])


@pytest.mark.parametrize("column, key", [("patient", "patient_id"), ("lesion", "lesion_id")])
def test_a_column_of_groups_takes_the_place_of_the_usual_one(tmp_path, column, key):
    labels = read(tmp_path, f"image,target,{key},{column}\na,1,,x\nb,0,,y\n", groups=[column])
    assert labels.groups == (key,)
    assert labels.table[key].tolist() == ["x", "y"]
    with pytest.raises(InputError, match=f"group_columns names {key} twice, or by two columns"):
        read(tmp_path, f"image,target,{key},{column}\na,1,,x\nb,0,,y\n", groups=[key, column])


def test_a_column_called_folder_is_no_class_folder(tmp_path):
    text = "image_name,folder,dx\na,batch1,mel\nb,batch2,nv\n"
    assert read(tmp_path, text).layout.startswith("label table: image_name, dx; melanoma = mel")
    assert read(tmp_path, text, melanoma=["mel"]).table["label"].tolist() == [1, 0]


@pytest.mark.parametrize("setting", ["image", "label", "groups"])
def test_a_setting_that_names_no_column_is_told_with_the_columns(tmp_path, setting):
    value = ["nowhere"] if setting == "groups" else "nowhere"
    message = refusal(tmp_path, "image_name,target\na,1\nb,0\n", **{setting: value})
    assert "has no column 'nowhere'" in message and "there are image_name, target" in message


def test_values_that_do_not_occur_are_told(tmp_path):
    message = refusal(tmp_path, "image_name,dx\na,mel\nb,nv\n", melanoma=["MM"])
    assert message.endswith("melanoma_values names mm, but dx has only mel, nv")


# --- labels ---


@pytest.mark.parametrize("diagnosis", ["melanoma", "unknown", "Unknown", "", "something odd", "no melanoma"])
def test_a_target_of_1_agrees_with_melanoma_and_with_a_diagnosis_that_tells_nothing(tmp_path, diagnosis):
    assert labels_of(read(tmp_path, f"image_name,diagnosis,target\na,{diagnosis},1\n")) == {"a": 1}


@pytest.mark.parametrize("row", ["nevus,1", "melanoma,0"])
def test_target_and_diagnosis_that_contradict_name_the_rows_and_two_remedies(tmp_path, row):
    text = f"image_name,diagnosis,target\na,nevus,0\nb,{row}\nc,melanoma,1\nd,{row}\n"
    assert "target and diagnosis contradict each other in line 3 ('b'), line 5 ('d')" in refusal(tmp_path, text)
    target, diagnosis = int(row[-1]), int(row.startswith("melanoma"))
    assert labels_of(read(tmp_path, text, label="target")) == {"a": 0, "b": target, "c": 1, "d": target}
    assert labels_of(read(tmp_path, text, label="diagnosis")) == {"a": 0, "b": diagnosis, "c": 1, "d": diagnosis}


def test_the_rows_of_a_problem_are_named_up_to_five(tmp_path):
    message = refusal(tmp_path, "image_name,target\n" + "".join(f"a{i},2\n" for i in range(8)))
    assert "line 2 ('a0'), line 3 ('a1'), line 4 ('a2'), line 5 ('a3'), line 6 ('a4') and 3 more" in message


def test_blank_lines_do_not_shift_the_line_that_is_named(tmp_path):
    assert "in line 5 ('b')" in refusal(tmp_path, "image_name,target\n\na,0\n\nb,2\n")


@pytest.mark.parametrize("target", ["2", "-1", "0.5", "", "yes", "nan", "inf"])
def test_a_target_is_0_or_1(tmp_path, target):
    message = refusal(tmp_path, f"image_name,target,sex\na,0,\nb,{target},\n")
    assert "target is neither 0 nor 1 in line 3 ('b')" in message and "--label-column" in message


@pytest.mark.parametrize("cells", ["0,0,0", "1,1,0"])
def test_an_image_has_one_class(tmp_path, cells):
    message = refusal(tmp_path, f"image,MEL,NV,BCC\na,1,0,0\nb,{cells}\n")
    assert message.endswith("the classes mel, nv, bcc do not sum to 1 in line 3 ('b')")


@pytest.mark.parametrize(
    "cell", ["", "-1", "0", "nan", "NaN", "None", "unknown", "N/A", "NULL", "-1.0", "#N/A", "Not available"]
)
def test_placeholders_are_missing_values(tmp_path, cell):
    text = f"image_name,patient_id,lesion_id,sex,age_approx,site,target\na,{','.join([cell] * 5)},0\nb,P,L,m,30,arm,1\n"
    table = read(tmp_path, text).table
    assert table.loc[0, ["patient_id", "lesion_id", "sex", "site"]].tolist() == [""] * 4
    assert np.isnan(table["age"][0])
    assert table.loc[1, ["patient_id", "lesion_id", "sex", "site"]].tolist() == ["P", "L", "m", "arm"]


def test_ids_that_pandas_wrote_as_numbers_are_whole(tmp_path):
    assert read(tmp_path, "image_name,patient_id,target\na,12.0,0\nb,13.0,1\n").table["patient_id"].tolist() == [
        "12",
        "13",
    ]


def test_text_that_looks_like_a_missing_value_may_be_an_image(tmp_path):
    assert list(labels_of(read(tmp_path, "image_name,target\nNA,0\nnull,1\n007,0\n"))) == ["007", "NA", "null"]


def test_rows_that_repeat_an_image_are_kept_once_and_the_order_of_rows_does_not_count(tmp_path):
    table = read(tmp_path, "image_name,target\nb,1\na,0\na.jpg,0\n").table
    assert table["image_name"].tolist() == ["a", "b"]
    assert table.index.tolist() == [0, 1]


@pytest.mark.parametrize("column", ["label", "patient_id"])
def test_rows_that_repeat_an_image_and_differ_are_refused(tmp_path, column):
    last = "a,p,1" if column == "label" else "a,q,0"
    message = refusal(tmp_path, f"image_name,patient_id,target\na,p,0\nb,p,1\n{last}\n")
    assert message.endswith(f"rows of one image differ in {column} in line 2 ('a'), line 4 ('a')")


@pytest.mark.parametrize("name", ["..", ".", "", "x/", ".jpg"])
def test_a_name_without_a_file_name_is_refused(tmp_path, name):
    message = refusal(tmp_path, f"image_name,target\nb,0\n{name},0\n")
    assert message.endswith(f"image_name is not a file name in line 3 ({name!r})")


BAD_TABLES = {
    "empty": ("", "is empty"),
    "header only": ("image_name,target\n", "has no rows"),
    "no names": ("lesion,target\na,0\n", "has no column of image names (image_name, image_id, isic_id, image)"),
    "no labels": ("image_name,sex\na,male\n", "has no column of labels (target, diagnosis, dx)"),
    "open quote": ('image_name,target\n"a,0\nb,1\n', "is not a CSV"),
    "a comma at each end": ("image_name,target\na,0,\nb,1,\n", "is not a CSV"),
    "a field too many": ("image_name,target\na,0\nb,1,2,3\n", "is not a CSV"),
    "two columns": ("image_name,target,target\na,0,0\n", "has two columns of one name"),
}


@pytest.mark.parametrize("text, message", BAD_TABLES.values(), ids=BAD_TABLES)
def test_a_bad_table_is_refused_with_its_problem(tmp_path, text, message):
    assert message in refusal(tmp_path, text)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xff\xd8\xff\xe0" + bytes(100))
    with pytest.raises(InputError, match=r"train_labels .*a\.csv is not a CSV: it is not text"):
        read_labels(tmp_path / "a.csv")


@pytest.mark.parametrize("argument", ["train_labels", "evaluate_labels"])
def test_a_missing_table_is_named_with_its_flag(tmp_path, argument):
    with pytest.raises(InputError) as error:
        read_labels(tmp_path / "nowhere.csv", argument)
    assert str(error.value).startswith(f"{argument} {tmp_path / 'nowhere.csv'} does not exist")
    assert f"--{argument.replace('_', '-')}" in str(error.value)
    assert ("config.py" in str(error.value)) == argument.startswith("train")


# --- names without labels ---


def names_of(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "test.csv").write_text(text, encoding="utf-8")
    return read_test_names(tmp_path / "test.csv")


@pytest.mark.parametrize(
    "text",
    [
        "image,patient,age_approx,anatom_site,sex\nISIC_2,IP_1,45,torso,male\nISIC_1,IP_1,,,\n",
        "image_name,patient_id,sex,age_approx\nISIC_2,IP_1,male,45.0\nISIC_1,IP_1,,\n",
        "\ufeffsex,image_name,image\r\nmale, ISIC_2.jpg ,x\r\n\r\nmale,ISIC_1,x\r\n",
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
        ("lesion,sex\na,male\n", "has no column of image names"),
        ("image,sex\na,m\n..,m\n,m\n", r"image is not a file name in line 3 \('..'\), line 4 \(''\)"),
        ("image\na\nb\na\n", r"image comes twice in line 2 \('a'\), line 4 \('a'\)"),
    ],
)
def test_bad_names_of_test_images_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"^test_labels {tmp_path}/test\.csv:? {message}"):
        names_of(tmp_path, text)


def test_a_missing_file_of_test_names_is_named_with_its_flag(tmp_path):
    with pytest.raises(InputError, match=r"test_labels .*test\.csv does not exist: .* --test-labels"):
        read_test_names(tmp_path / "test.csv")
