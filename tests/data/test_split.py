"""split.py: groups by id and by picture, and the folds."""

from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from melanoma.common.errors import InputError
from melanoma.data.split import (
    PARTS,
    check_parts,
    check_sources,
    group_images,
    large_patients,
    split_groups,
    split_published,
    without_images,
)


def table_of(patients: list[str], lesions: list[str] | None = None) -> pd.DataFrame:
    names = [f"i{k:03}" for k in range(len(patients))]
    return pd.DataFrame({"image_name": names, "patient_id": patients, "lesion_id": lesions or [""] * len(names)})


def sets_of(groups: pd.Series) -> list[list[int]]:
    return sorted(own.index.tolist() for _, own in groups.groupby(groups))


KEYS = ("patient_id", "lesion_id")


def test_images_are_grouped_by_patient_or_by_themselves():
    groups = group_images(table_of(["p", "", "q", "p", ""]), KEYS)
    assert groups.tolist() == ["p", "image:i001", "q", "p", "image:i004"]


def test_what_any_id_or_picture_connects_is_one_group():
    table = table_of(["p", "p", "", "q", "", "", "r"], ["k", "l", "l", "m", "m", "", ""])
    assert sets_of(group_images(table, KEYS)) == [[0, 1, 2], [3, 4], [5], [6]]
    pictures = ["a", "b", "c", "d", "e", "f", "f"]
    assert sets_of(group_images(table, KEYS, pictures)) == [[0, 1, 2], [3, 4], [5, 6]]
    assert sets_of(group_images(table, ("lesion_id",))) == [[0], [1, 2], [3, 4], [5], [6]]
    assert group_images(table, KEYS, pictures).tolist() == ["p", "p", "p", "q", "q", "r", "r"]  # ids before names


def test_one_text_as_patient_and_as_lesion_is_two_groups():
    assert sets_of(group_images(table_of(["1", ""], ["", "1"]), KEYS)) == [[0], [1]]


def test_any_number_of_columns_can_group():
    keys = [f"key_{i}" for i in range(12)]
    table = pd.DataFrame({"image_name": ["a", "b"], **{key: ["", ""] for key in keys[:-1]}, keys[-1]: ["x", "x"]})
    assert group_images(table, keys).tolist() == ["key_11:x"] * 2


def test_groups_agree_with_a_slow_union():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(1, 30))
        cells = [[str(v) if v else "" for v in rng.integers(0, 12, n)] for _ in range(3)]
        slow = np.arange(n)
        for _ in range(n):
            for column in cells:
                for i in range(n):
                    for j in range(n):
                        if column[i] and column[i] == column[j]:
                            slow[i] = slow[j] = min(slow[i], slow[j])
        found = group_images(table_of(cells[0], cells[1]), KEYS, cells[2])
        assert sets_of(found) == sets_of(pd.Series(slow))


@pytest.mark.parametrize(("count", "others", "named"), [(51, 500, ["-7"]), (50, 500, []), (51, 4000, [])])
def test_a_patient_with_a_large_share_is_named(count, others, named):
    patients = ["-7"] * count + [f"p{k}" for k in range(others)] + [""] * 100
    assert large_patients(table_of(patients)) == named


def study(rng: np.random.Generator, n: int = 900) -> pd.DataFrame:
    table = table_of([f"p{k}" for k in rng.integers(0, 150, n)])
    source = np.where(np.arange(n) % 3 == 0, "a", "b")
    label = rng.random(n) < np.where(source == "a", 0.3, 0.05)
    return table.assign(source=source, label=label.astype(int), group=table["patient_id"])


def test_no_group_is_in_two_parts_and_each_fold_tests_once():
    table = study(np.random.default_rng(1))
    tested = []
    for fold in range(5):
        parts = split_groups(table, fold, 0, (fold + 1) % 5)
        assert set(parts) == set(PARTS)
        assert (pd.Series(parts).groupby(table["group"]).nunique() == 1).all()
        tested += table["image_name"][parts == "test"].tolist()
    assert sorted(tested) == table["image_name"].tolist()


def test_folds_are_stratified_by_label_and_source():
    rng = np.random.default_rng(2)
    table = study(rng, 3000).assign(group=lambda own: own["image_name"])
    shares = table.groupby(["source", "label"]).size() / len(table)
    for fold in range(5):
        test = table[split_groups(table, fold, 0, (fold + 1) % 5) == "test"]
        found = test.groupby(["source", "label"]).size() / len(test)
        assert np.abs(found - shares).max() < 0.005


def test_the_order_of_rows_does_not_count():
    table = study(np.random.default_rng(3))
    shuffled = table.sample(frac=1, random_state=0)
    for split in (lambda own: split_groups(own, 2, 5, 3), lambda own: split_published(own, 5)):
        ordered = pd.Series(split(table), table.index)
        assert ordered.equals(pd.Series(split(shuffled.sort_values("image_name")), table.index))
    assert (
        pd.Series(split_groups(shuffled, 2, 5, 3), shuffled.index)
        .sort_index()
        .equals(pd.Series(split_groups(table, 2, 5, 3), table.index))
    )


def test_a_source_without_a_class_cannot_pair_within_itself():
    table = study(np.random.default_rng(4)).assign(part=np.repeat(["train", "validation", "test"], 300))
    check_sources(table)
    poor = table.assign(label=np.where((table["source"] == "b") & (table["part"] == "validation"), 0, table["label"]))
    with pytest.raises(
        InputError, match=r"^the validation part of source b has 0 melanoma images, it needs 2: pass --no-pairs-within"
    ):
        check_sources(poor)


def test_too_few_groups_are_refused():
    table = table_of(["p", "p", "q", "q"]).assign(source="a", label=[1, 0, 1, 0], group=list("aabb"))
    with pytest.raises(InputError, match=r"2 patients .* have melanoma images: a split by patient needs 5"):
        split_groups(table, 0, 0, 1)


def test_sources_of_too_few_images_are_refused():
    table = table_of([str(i) for i in range(24)]).assign(source=np.repeat(list("abc"), 8), label=[0, 1] * 12)
    table = table.assign(group=table["patient_id"])
    with pytest.raises(InputError, match=r"no source has 5 images of one class: a split by patient needs 5"):
        split_groups(table, 0, 0, 1)


# --- on a table of patients ---


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
            "source": "a",
            "group": [f"p{patient}" for patient in patients],
        }
    )


TABLE = make_table(200, 0.15)


@pytest.fixture(scope="module")
def all_folds() -> np.ndarray:
    """The parts of TABLE's rows in each fold, shape (5, N)."""
    return np.array([split_groups(TABLE, fold, 0, (fold + 1) % 5) for fold in range(5)])


def test_no_patient_is_in_two_parts(all_folds):
    for parts in all_folds:
        assert TABLE.assign(part=parts).groupby("patient_id")["part"].nunique().max() == 1


def test_fold_k_tests_fold_k_plus_1_validates_and_the_rest_trains(all_folds):
    tests, validates = all_folds == "test", all_folds == "validation"
    assert (tests.sum(axis=0) == 1).all()  # each image tests in one fold
    np.testing.assert_array_equal(validates, np.roll(tests, -1, axis=0))
    assert (all_folds[~tests & ~validates] == "train").all()


@pytest.mark.parametrize("validation", [0, 2, 3, 4])
def test_another_fold_can_validate_for_the_same_test_part(all_folds, validation):
    parts = split_groups(TABLE, 1, 0, validation)
    np.testing.assert_array_equal(parts == "test", all_folds[1] == "test")
    np.testing.assert_array_equal(parts == "validation", all_folds[validation] == "test")
    assert set(parts) == set(PARTS)


def test_where_no_fold_tests_four_train(all_folds):
    parts = split_groups(TABLE, None, 0, 3)
    np.testing.assert_array_equal(parts == "validation", all_folds[3] == "test")
    assert (parts[parts != "validation"] == "train").all()
    check_parts(TABLE.assign(part=parts))


def test_a_split_does_not_depend_on_the_version_of_scikit_learn(all_folds):
    assert sha256("".join(all_folds[0]).encode()).hexdigest()[:8] == "1eef7057"


def test_each_fold_holds_about_a_fifth_of_each_class(all_folds):
    for label in (0, 1):
        shares = (all_folds[:, TABLE["label"] == label] == "test").mean(axis=1)
        np.testing.assert_allclose(shares, 0.2, atol=0.03)


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


def test_images_left_out_do_not_move_the_others():
    table = TABLE.assign(part=split_groups(TABLE, 0, 0, 1))
    kept = without_images(table, {"i3", "i5", "unknown"})
    expected = table[~table["image_name"].isin(["i3", "i5"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, expected)
    melanoma = set(table["image_name"][(table["part"] == "test") & (table["label"] == 1)])
    with pytest.raises(InputError, match=r"^the test part has 0 melanoma images, it needs 1"):
        without_images(table, melanoma)
