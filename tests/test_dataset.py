"""dataset.py: labels as every source writes them, splits that keep patients apart, pairs that are balanced."""

import json
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import cache_of
from scipy.stats import chisquare
from torch.utils.data import DataLoader

import dataset
from config import Config, InputError
from dataset import (
    PairDataset,
    drop_duplicates,
    in_batch_batches,
    independent_batches,
    load_lesions,
    read_duplicates,
    read_labels,
    read_test_names,
    sample_balanced,
    sample_pairs,
    split_patients,
    split_published,
    split_table,
)
from script import run_script

ROOT = Path(__file__).parents[1]


def read(tmp_path: Path, text: str) -> pd.DataFrame:
    (tmp_path / "labels.csv").write_bytes(text.encode())
    return read_labels(tmp_path / "labels.csv")


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"train_labels {tmp_path / 'labels.csv'}")
    return str(error.value)


# --- label table ---

TRUTH = (
    "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target\n"
)
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


@pytest.mark.parametrize(
    "text", ["image_name,target\na,1\nb,0\n", "image_name,diagnosis\na,melanoma\nb,nevus\n"]
)
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
    assert message.endswith(
        "line 2 ('a0'), line 3 ('a1'), line 4 ('a2'), line 5 ('a3'), line 6 ('a4') and 3 more"
    )


def test_blank_lines_do_not_shift_the_line_that_is_named(tmp_path):
    assert "in line 5 ('b')" in refusal(tmp_path, "image_name,target\n\na,0\n\nb,2\n")


@pytest.mark.parametrize("target", ["2", "-1", "0.5", "", "yes", "nan", "inf"])
def test_a_target_is_0_or_1(tmp_path, target):
    message = refusal(tmp_path, f"image_name,target,sex\na,0,\nb,{target},\n")
    assert message.endswith("target is neither 0 nor 1 in line 3 ('b')")


def test_a_blank_diagnosis_without_a_target_is_refused(tmp_path):
    assert "diagnosis is blank in line 2 ('a')" in refusal(tmp_path, "image_name,diagnosis,sex\na,,male\n")


def test_an_image_without_a_patient_is_its_own_patient(tmp_path):
    table = read(tmp_path, "image_name,patient_id,target\na,,0\nb,p,0\nc, ,0\nd,p,1\n")
    assert table["patient_id"].nunique() == 3
    assert table["patient_id"][1] == table["patient_id"][3] == "p"


def test_blank_and_odd_ages_are_unknown(tmp_path):
    ages = read(tmp_path, "image_name,target,age_approx\na,0,\nb,0,unknown\nc,0,30\n")["age"]
    np.testing.assert_array_equal(ages, [np.nan, np.nan, 30.0])


def test_text_that_looks_like_a_missing_value_stays_text(tmp_path):
    assert read(tmp_path, "image_name,target\nNA,0\nnull,1\n007,0\n")["image_name"].tolist() == [
        "NA",
        "null",
        "007",
    ]


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
        InputError,
        match=r"duplicates .*d\.csv has no column image_name_2: its columns are image_name_1, image_name$",
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
        (
            "image,sex\na,m\n../b,m\n,m\n",
            r"image is not a plain file name in line 3 \('../b'\), line 4 \(''\)",
        ),
        ("image\na\nb\na\n", r"image comes twice in line 2 \('a'\), line 4 \('a'\)"),
    ],
)
def test_bad_names_of_test_images_are_refused(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"^test_labels {tmp_path}/test\.csv:? {message}"):
        names_of(tmp_path, text)


def test_a_missing_file_of_test_names_is_named_with_its_flag(tmp_path):
    with pytest.raises(InputError, match=r"test_labels .*test\.csv does not exist: .* --test-labels"):
        read_test_names(tmp_path / "test.csv")


# --- split ---


def make_table(n_patients: int, melanoma_share: float, seed: int = 0) -> pd.DataFrame:
    """A label table of patients with 1 to 9 images each; images of a patient lie apart."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(n_patients), rng.integers(1, 10, n_patients))
    rng.shuffle(patients)
    n = len(patients)
    return pd.DataFrame(
        {
            "image_name": [f"i{i}" for i in range(n)],
            "patient_id": [f"p{patient}" for patient in patients],
            "label": (rng.random(n) < melanoma_share).astype(int),
        }
    )


TABLE = make_table(200, 0.15)


@pytest.fixture(scope="module")
def all_folds() -> np.ndarray:
    """The parts of TABLE's rows in each fold, shape (5, N)."""
    return np.array([split_patients(TABLE, fold, seed=0) for fold in range(5)])


def test_no_patient_is_in_two_parts(all_folds):
    for parts in all_folds:
        assert TABLE.assign(part=parts).groupby("patient_id")["part"].nunique().max() == 1


def test_fold_k_tests_fold_k_plus_1_validates_and_the_rest_trains(all_folds):
    tests, validates = all_folds == "test", all_folds == "validation"
    assert (tests.sum(axis=0) == 1).all()  # each image tests in one fold
    np.testing.assert_array_equal(validates, np.roll(tests, -1, axis=0))
    assert (all_folds[~tests & ~validates] == "train").all()


def test_a_split_does_not_depend_on_the_version_of_scikit_learn(all_folds):
    assert sha256("".join(all_folds[0]).encode()).hexdigest()[:8] == "1eef7057"


def test_each_fold_holds_about_a_fifth_of_each_class(all_folds):
    for label in (0, 1):
        shares = (all_folds[:, TABLE["label"] == label] == "test").mean(axis=1)
        np.testing.assert_allclose(shares, 0.2, atol=0.03)


@pytest.mark.parametrize("split", ["patient", "published"])
def test_the_split_follows_from_its_own_seed_and_not_from_that_of_the_training(tmp_path, split):
    TABLE.rename(columns={"label": "target"}).to_csv(tmp_path / "labels.csv", index=False)

    def parts(**settings: Any) -> list[str]:
        config = Config(train_labels=tmp_path / "labels.csv", split=split, **settings)
        return load_lesions(config, need_images=False).table["part"].tolist()

    assert parts(seed=0) == parts(seed=1)
    assert parts(split_seed=0) != parts(split_seed=1)


def isic_like_table() -> pd.DataFrame:
    """33,126 images, 584 of them melanomas, as in ISIC 2020."""
    labels = np.random.default_rng(0).permutation(np.arange(33_126) < 584).astype(int)
    names = np.arange(33_126).astype(str)
    return pd.DataFrame({"image_name": names, "patient_id": names, "label": labels})


def test_the_published_split_has_the_published_counts():
    table = isic_like_table()
    labels, parts = table["label"].to_numpy(), split_published(table, seed=0)
    test = parts == "test"
    assert ((~test).sum(), labels[~test].sum(), test.sum(), labels[test].sum()) == (26_500, 467, 6_626, 117)
    validation = parts == "validation"  # a tenth of all, of each class
    assert (validation.sum(), labels[validation].sum()) == (3_313, 58)
    np.testing.assert_array_equal(parts, split_published(table, seed=0))
    assert (parts != split_published(table, seed=1)).any()


@pytest.mark.parametrize("label, name", [(1, "benign"), (0, "melanoma")])
@pytest.mark.parametrize("split", ["patient", "published"])
def test_one_class_alone_cannot_be_split(split, label, name):
    with pytest.raises(InputError, match=f"^there is no {name} image"):
        split_table(TABLE.assign(label=label), split, 0, 0)


@pytest.mark.parametrize("rare, name", [(1, "melanoma"), (0, "benign")])
def test_a_class_of_fewer_than_5_patients_cannot_be_split_by_patient(rare, name):
    own = TABLE["patient_id"].isin(["p1", "p2", "p3", "p4"])
    with pytest.raises(InputError, match=f"^4 patients have {name} images: a split by patient needs 5"):
        split_table(TABLE.assign(label=np.where(own, rare, 1 - rare)), "patient", 0, 0)


def test_a_class_of_fewer_than_20_images_cannot_be_split_by_image():
    with pytest.raises(InputError, match=r"^one class has 19 images: a split by image needs 20"):
        split_table(TABLE.assign(label=np.arange(len(TABLE)) < 19), "published", 0, 0)


def test_a_part_without_enough_of_a_class_is_named():
    melanoma = ~TABLE["patient_id"].duplicated() & TABLE["patient_id"].isin([f"p{i}" for i in range(5)])
    with pytest.raises(InputError, match=r"^the .* part has [01] melanoma images, it needs [12]: .* too few"):
        split_table(TABLE.assign(label=melanoma.astype(int)), "patient", 0, 0)


def test_images_left_out_do_not_move_the_others():
    table = split_table(TABLE, "patient", 0, 0)
    kept = dataset.without_images(table, {"i3", "i5", "unknown"})
    expected = table[~table["image_name"].isin(["i3", "i5"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, expected)
    melanoma = set(table["image_name"][(table["part"] == "test") & (table["label"] == 1)])
    with pytest.raises(InputError, match=r"^the test part has 0 melanoma images, it needs 1"):
        dataset.without_images(table, melanoma)


# --- pairs ---

# benign and melanoma images
CLASS_SIZES = [(30, 7), (30, 6), (7, 30), (5, 5), (31, 2), (2, 2), (3, 2), (52, 1_000)]


def make_labels(n_benign: int, n_melanoma: int) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.arange(n_benign + n_melanoma) < n_melanoma).astype(int)


@pytest.mark.parametrize("n_benign, n_melanoma", CLASS_SIZES)
@pytest.mark.parametrize("seed", [0, 1])
def test_an_epoch_is_balanced_and_truthful(n_benign, n_melanoma, seed):
    labels = make_labels(n_benign, n_melanoma)
    pairs, same = sample_pairs(labels, np.random.default_rng(seed))
    most = max(n_benign, n_melanoma)
    assert pairs.shape == (2 * most, 2)
    assert (pairs.dtype, same.dtype) == (np.int64, np.bool_)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    np.testing.assert_array_equal(same, labels[pairs[:, 0]] == labels[pairs[:, 1]])
    firsts = np.bincount(pairs[:, 0], minlength=len(labels))
    for label, n in ((0, n_benign), (1, n_melanoma)):
        own = firsts[labels == label]
        assert own.sum() == most
        assert set(own) <= {most // n, -(-most // n)}
        assert same[labels[pairs[:, 0]] == label].sum() == most // 2


def test_the_second_image_is_uniform_over_its_class_without_the_first():
    labels = make_labels(12, 5)
    rng = np.random.default_rng(0)
    met = np.zeros((17, 17), int)  # first, second
    for _ in range(2_000):
        pairs, _ = sample_pairs(labels, rng)
        np.add.at(met, tuple(pairs.T), 1)
    assert (met.diagonal() == 0).all()
    for first in range(17):
        for label in (0, 1):
            partners = np.flatnonzero((labels == label) & (np.arange(17) != first))
            assert chisquare(met[first, partners]).pvalue > 1e-4  # of 34 tests


def test_which_melanomas_are_shown_once_more_is_drawn_anew():
    labels = make_labels(12, 5)
    rng = np.random.default_rng(0)
    firsts = np.bincount(
        np.concatenate([sample_pairs(labels, rng)[0][:, 0] for _ in range(1_000)]), minlength=17
    )
    np.testing.assert_array_equal(firsts[labels == 0], 1_000)
    np.testing.assert_allclose(firsts[labels == 1], 2_400, atol=100)  # 12 / 5 in the mean


def test_the_order_of_pairs_is_random():
    labels = make_labels(500, 20)
    pairs, same = sample_pairs(labels, np.random.default_rng(0))
    for column in (same, labels[pairs[:, 0]]):
        for half in (column[:500], column[500:]):
            assert 0.43 < half.mean() < 0.57
    assert 0.43 < np.mean(same[1:] == same[:-1]) < 0.57


def test_pairs_follow_from_the_generator_alone():
    labels = make_labels(30, 7)
    (pairs, same), (again, same_again), (other, _) = (
        sample_pairs(labels, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(pairs, again)
    np.testing.assert_array_equal(same, same_again)
    assert (pairs != other).any()


@pytest.mark.parametrize("sizes", [(10, 1), (1, 10), (10, 0)])
def test_pairs_need_two_images_of_each_class(sizes):
    with pytest.raises(ValueError, match="2 images of each class"):
        sample_pairs(make_labels(*sizes), np.random.default_rng(0))


@pytest.fixture
def pair_dataset() -> PairDataset:
    """40 pairs of 20 images; the images lie in the cache in another order than in the table."""
    rng = np.random.default_rng(0)
    cache = cache_of(rng.integers(0, 256, (25, 4, 4, 3), dtype=np.uint8))
    labels = make_labels(14, 6)
    return PairDataset(cache, rng.permutation(25)[:20], *sample_pairs(labels, rng))


def test_item_i_is_pair_i(pair_dataset):
    assert len(pair_dataset) == 28
    for i in range(28):
        first, second, same = pair_dataset[i]
        expected = pair_dataset.cache.pixels[pair_dataset.rows[pair_dataset.pairs[i]]]
        np.testing.assert_array_equal([first, second], expected)
        assert same is bool(pair_dataset.same[i])
        assert first.dtype == np.uint8
        assert first.shape == (4, 4, 3)


@pytest.mark.parametrize("indices", [[3, 0, 27, 3], [5], list(range(28))], ids=["some", "one", "all"])
def test_a_batch_is_the_items_of_its_indices(pair_dataset, indices):
    batch = pair_dataset.__getitems__(indices)
    items = [pair_dataset[i] for i in indices]
    for column, expected in zip(batch, zip(*items, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.stack(expected))
        assert column.dtype == np.stack(expected).dtype


def test_torchs_loader_gives_the_pairs_in_order(pair_dataset):
    loader = DataLoader(pair_dataset, batch_size=8, collate_fn=lambda batch: batch)
    columns = [np.concatenate(column) for column in zip(*loader, strict=True)]
    for column, expected in zip(columns, pair_dataset.__getitems__(range(28)), strict=True):
        np.testing.assert_array_equal(column, expected)


# --- the summary ---


@pytest.fixture
def folder(lesion_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to change."""
    return shutil.copytree(lesion_folder, tmp_path / "lesions")


def run_summary(monkeypatch: pytest.MonkeyPatch, *flags: Path | str) -> int:
    monkeypatch.setattr(sys, "argv", ["dataset.py", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        run_script(dataset.main)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def run_process(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dataset.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_summary_works_from_the_csv_alone(folder):
    done = run_process(folder, "--json", "--train-labels", "train.csv", "--train-image", "nowhere")
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    expected: dict[str, Any] = {"labels": 60, "images": 60, "melanoma": 12, "benign": 48, "patients": 30}
    expected |= {"duplicates_dropped": 0, "labels_without_image": None, "images_without_label": None}
    assert summary.items() >= (expected | {"split": "patient", "fold": 0}).items()
    parts = summary["splits"]
    assert set(parts) == {"train", "validation", "test"}
    for count in ("images", "melanoma", "benign", "patients"):
        assert sum(part[count] for part in parts.values()) == summary[count]
    train = parts["train"]
    assert summary["oversampling_factor"] == round(train["benign"] / train["melanoma"], 3)
    assert summary["pairs_per_epoch"] == 2 * train["benign"]


def test_bad_input_ends_the_program_in_one_line(folder):
    done = run_process(folder, "--train-labels", "nowhere.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: train_labels nowhere.csv does not exist: edit config.py or pass --train-labels\n"
    )


def test_missing_files_and_duplicates_are_counted(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for i in (13, 15):
        Path(f"train/ISIC_{i:07d}.jpg").unlink()
    Path("train/extra.png").touch()
    Path("train/notes.txt").touch()
    pairs = "ISIC_0000020,ISIC_0000021\nISIC_0000013,ISIC_0000022\nISIC_0000021,ISIC_0000023\n"
    Path("pairs.csv").write_text("image_name_1,image_name_2\n" + pairs)
    flags = ["--train-labels", "train.csv", "--train-image", "train", "--duplicates", "pairs.csv"]
    assert run_summary(monkeypatch, "--json", *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    expected = {"labels": 60, "labels_without_image": 2, "images_without_label": 1, "duplicates_dropped": 2}
    assert summary.items() >= (expected | {"images": 56, "melanoma": 12, "benign": 44}).items()
    assert run_summary(monkeypatch, *flags) == 0
    text = capsys.readouterr().out
    for line in (
        "56 images of 30 patients: 12 melanoma, 44 benign (from 60 labels)",
        "duplicates dropped: 2",
    ):
        assert line in text
    assert "labels without an image: 2; images without a label: 1" in text


def test_images_are_matched_whatever_the_case_of_their_extension(folder):
    for i, path in enumerate(sorted((folder / "train").iterdir())):
        path.rename(path.with_suffix([".JPG", ".jpeg", ".Png"][i % 3]))
    config = Config(train_labels=folder / "train.csv", train_image=folder / "train")
    lesions = load_lesions(config)
    assert lesions.counts["labels_without_image"] == lesions.counts["images_without_label"] == 0
    assert list(lesions.paths) == sorted(lesions.table["image_name"])
    assert all(path.is_file() and path.stem == name for name, path in lesions.paths.items())


def published_counts(monkeypatch: pytest.MonkeyPatch, capsys, labels: Path) -> dict[str, dict[str, int]]:
    assert run_summary(monkeypatch, "--json", "--split", "published", "--train-labels", labels) == 0
    split = json.loads(capsys.readouterr().out)["published_split"]
    return {part: {name: n for name, n in split[part].items() if name != "patients"} for part in split}


PUBLISHED = {
    "training": {"images": 26_500, "melanoma": 467, "benign": 26_033},
    "test": {"images": 6_626, "melanoma": 117, "benign": 6_509},
}


def test_the_summary_gives_the_published_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = isic_like_table().rename(columns={"label": "target"})
    table.to_csv("labels.csv", index=False)
    assert published_counts(monkeypatch, capsys, Path("labels.csv")) == PUBLISHED


@pytest.mark.skipif(
    "LESION_DATA" not in os.environ, reason="LESION_DATA names no folder with the real tables"
)
def test_the_real_table_gives_the_published_counts(tmp_path, monkeypatch, capsys):
    labels = Path(os.environ["LESION_DATA"], "isic2020", "ISIC_2020_Training_GroundTruth.csv").resolve()
    monkeypatch.chdir(tmp_path)
    assert published_counts(monkeypatch, capsys, labels) == PUBLISHED


ONE_CLASS = "image_name,target\n" + "".join(f"a{i},0\n" for i in range(40))
TWO_PATIENTS = "image_name,patient_id,target\n" + "".join(f"a{i},p{i % 2},{i % 2}\n" for i in range(40))
BAD_INPUT = {
    "no such table": (["--train-labels", "nowhere.csv"], "train_labels nowhere.csv does not exist"),
    "no column": (["--train-labels", "no_column.csv"], "has no column image_name"),
    "empty": (["--train-labels", "empty.csv"], "train_labels empty.csv is empty"),
    "one class": (["--train-labels", "one_class.csv"], "there is no melanoma image"),
    "few patients": (["--train-labels", "two_patients.csv"], "1 patients have melanoma images"),
    "a path": (["--train-labels", "path.csv"], "image_name is not a plain file name in line 2"),
    "no duplicates": (["--duplicates", "nowhere.csv"], "duplicates nowhere.csv does not exist"),
    "other images": (["--train-image", "others"], "train_image others has none of the 60 images"),
    "margin 0": (["--margin", "0"], "margin is 0.0: it must be a finite number above 0"),
    "no such config": (["--config", "nowhere.json"], "--config nowhere.json cannot be read"),
}


@pytest.mark.parametrize("flags, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(folder, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(folder)
    Path("others").mkdir()
    texts = {"no_column": "image,target\na,0\n", "empty": "", "path": "image_name,target\n../a,0\n"}
    for name, text in (texts | {"one_class": ONE_CLASS, "two_patients": TWO_PATIENTS}).items():
        Path(f"{name}.csv").write_text(text)
    assert run_summary(monkeypatch, "--train-labels", "train.csv", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    "flags",
    [["--train-label", "labels.csv"], ["--epoch", "3"], ["--recipe", "best"], ["--head", "hinge"]],
)
def test_misspelt_and_abbreviated_flags_stop_the_program(monkeypatch, capsys, flags):
    assert run_summary(monkeypatch, *flags) == 2
    assert flags[1] in capsys.readouterr().err


# --- batches ---


def test_independent_batches_are_the_pairs_in_order(pair_dataset):
    labels = make_labels(14, 6)
    batches = independent_batches(pair_dataset, labels, 12)
    assert [len(batch.first) for batch in batches] == [12, 12, 4]
    rows = np.concatenate([np.stack([b.rows[b.first], b.rows[b.second]], axis=1) for b in batches])
    np.testing.assert_array_equal(rows, pair_dataset.pair_rows(slice(None)))
    same = [b.labels[b.first] == b.labels[b.second] for b in batches]
    np.testing.assert_array_equal(np.concatenate(same), pair_dataset.same)
    label_of = dict(zip(pair_dataset.rows, labels, strict=True))
    for batch in batches:
        assert batch.labels.tolist() == [label_of[row] for row in batch.rows]


@pytest.mark.parametrize("sizes", [(40, 6), (6, 40), (10, 10)])
def test_balanced_images_show_the_larger_class_once_and_the_smaller_evenly(sizes):
    labels = make_labels(*sizes)
    order = sample_balanced(labels, np.random.default_rng(0))
    assert np.array_equal(labels[order], np.tile([1, 0], max(sizes)))
    shown = np.bincount(order, minlength=len(labels))
    for label, own in enumerate(sizes):
        assert set(shown[labels == label]) <= {max(sizes) // own, -(-max(sizes) // own)}
    assert not np.array_equal(order, sample_balanced(labels, np.random.default_rng(1)))
    assert np.array_equal(order, sample_balanced(labels, np.random.default_rng(0)))


@pytest.mark.parametrize("sizes", [(40, 6), (6, 40)])
@pytest.mark.parametrize(("share", "each"), [(0.5, 20), (0.26, 11), (0.01, 1)])
def test_a_share_of_an_epoch_shows_so_much_of_the_larger_class_each_once(sizes, share, each):
    labels = make_labels(*sizes)
    order = sample_balanced(labels, np.random.default_rng(0), share)
    assert np.array_equal(labels[order], np.tile([1, 0], each))
    larger, smaller = int(np.argmax(sizes)), int(np.argmin(sizes))
    shown = np.bincount(order, minlength=len(labels))
    assert shown[labels == larger].max() == 1
    assert np.ptp(shown[labels == smaller]) <= 1
    assert not np.array_equal(
        np.sort(order), np.sort(sample_balanced(labels, np.random.default_rng(1), share))
    )


def test_in_batch_pairs_are_all_pairs_but_those_of_one_picture():
    labels = make_labels(9, 3)
    rows = np.arange(12)[::-1] + 100
    order = sample_balanced(labels, np.random.default_rng(0))
    batches = in_batch_batches(order, labels, rows, 7)
    assert sum(len(batch.rows) for batch in batches) == 18
    label_of = dict(zip(rows, labels, strict=True))
    for batch in batches:
        expected = {
            (i, j)
            for i in range(len(batch.rows))
            for j in range(i + 1, len(batch.rows))
            if batch.rows[i] != batch.rows[j]
        }
        assert set(zip(batch.first.tolist(), batch.second.tolist(), strict=True)) == expected
        assert batch.labels.tolist() == [label_of[row] for row in batch.rows]


def test_a_last_batch_of_one_image_is_left_out():
    labels = make_labels(4, 4)
    order = sample_balanced(labels, np.random.default_rng(0))
    assert [len(b.rows) for b in in_batch_batches(order, labels, np.arange(8), 7)] == [7]
