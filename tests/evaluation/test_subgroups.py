"""Subgroups: everyone is in one group of each attribute, small groups are named, skin tone is that of the skin."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import cache_of

from melanoma.evaluation import subgroups
from melanoma.evaluation.bootstrap import brief_metrics
from melanoma.evaluation.subgroups import (
    AGE_BANDS,
    memberships,
    srgb_to_lab,
    subgroup_table,
    typology_angle,
    typology_angles,
)

FIGURES = ("auc", "auc_interval", "sensitivity", "specificity")


def judged(n: int = 400) -> pd.DataFrame:
    """Lesions as a network judges them; one in five men's lesions is a melanoma, hardly any other's."""
    rng = np.random.default_rng(0)
    sex = rng.choice(["male", "female", ""], n, p=[0.5, 0.4, 0.1])
    label = (rng.random(n) < np.where(sex == "male", 0.3, np.where(sex == "female", 0.2, 0.0))).astype(int)
    return pd.DataFrame(
        {
            "label": label,
            "probability": np.round(1 / (1 + np.exp(-rng.normal(size=n) - label)), 2),
            "threshold": np.where(np.arange(n) % 2, 0.5, 0.6),
            "group": [f"p{i // 3}" for i in range(n)],
            "sex": sex,
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.integers(30, 90, n)),
            "site": rng.choice(["torso", "head/neck"], n),
            "megapixels": rng.choice([0.3, 2.0, 24.0], n),
            "typology_angle": rng.uniform(0, 90, n),
        }
    )


# --- the table ---


def test_a_row_has_the_figures_of_its_group_alone():
    table = judged()
    rows = subgroup_table(table, np.random.default_rng(0), 50)
    largest = table.loc[table["sex"] != "", "sex"].mode()[0]
    assert (rows[0]["attribute"], rows[0]["group"]) == ("sex", largest)
    expected = brief_metrics(table[table["sex"] == largest], np.random.default_rng(0), 50)
    assert rows[0] == {"attribute": "sex", "group": largest, **expected} and expected["note"] == ""
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_every_lesion_is_in_one_group_of_each_attribute():
    table = judged()
    rows = pd.DataFrame(subgroup_table(table, np.random.default_rng(0), 10))
    sums = rows.groupby("attribute", sort=False)[["n", "n_melanoma"]].sum()
    assert list(sums.index) == ["sex", "site", "age", "image size", "skin tone (estimate)"]
    assert (sums["n"] == 400).all()
    assert (sums["n_melanoma"] == table["label"].sum()).all()


def test_small_groups_are_named_with_the_reason():
    table = judged()
    rows = {(row["attribute"], row["group"]): row for row in subgroup_table(table, np.random.default_rng(0), 10)}
    for key, note in (
        (("sex", "unknown"), "fewer than 5 melanomas"),
        (("age", "under 30"), "fewer than 5 melanomas"),
        (("skin tone (estimate)", "dark"), "fewer than 5 melanomas"),
    ):
        assert rows[key]["note"] == note
        assert {rows[key][name] for name in FIGURES} == {None}
    assert rows["sex", "unknown"]["n"] == (table["sex"] == "").sum()
    assert rows["age", "under 30"]["n"] == 0


@pytest.mark.parametrize(
    ("melanomas", "benign", "note"),
    [(5, 5, ""), (4, 50, "fewer than 5 melanomas"), (50, 4, "fewer than 5 benign lesions")],
)
def test_a_group_needs_five_of_each_class(melanomas, benign, note):
    n = melanomas + benign
    table = pd.DataFrame(
        {
            "label": np.arange(n) < melanomas,
            "probability": np.linspace(0, 1, n),
            "threshold": 0.5,
            "group": np.arange(n),
            "sex": "male",
        }
    )
    (row,) = subgroup_table(table, np.random.default_rng(0), 10)
    assert (row["n"], row["n_melanoma"], row["note"]) == (n, melanomas, note)
    assert (row["auc"] is None) == bool(note)


def test_attributes_that_the_table_lacks_have_no_rows():
    table = judged()[["label", "probability", "threshold", "group", "age"]]
    groups = [row["group"] for row in subgroup_table(table, np.random.default_rng(0), 10)]
    assert groups == ["under 30", "30 to 44", "45 to 59", "60 to 74", "75 and older", "unknown"]
    assert subgroup_table(table.drop(columns="age"), np.random.default_rng(0), 10) == []


def test_sites_come_from_the_largest_down_and_bands_in_their_order():
    sites = ["torso", "oral", "unknown", "unknown", "unknown", "oral", "arm"]
    found = memberships(pd.DataFrame({"site": sites, "age": [80.0, 10, 80, 80, 80, 50, 50]}))
    assert list(found["site"].categories) == ["oral", "arm", "torso", "unknown"]
    assert list(found["age"].categories) == list(AGE_BANDS)


@pytest.mark.parametrize("blank", ["", None, np.nan, "unknown"])
def test_blanks_of_any_kind_are_unknown(blank):
    groups = memberships(pd.DataFrame({"site": ["torso", blank, "head/neck"]}))["site"]
    assert list(groups) == ["torso", "unknown", "head/neck"]
    assert list(groups.categories) == ["head/neck", "torso", "unknown"]


def bands_of(column: str, values: np.ndarray) -> list[str]:
    """The band of each value of a column."""
    (groups,) = memberships(pd.DataFrame({column: values})).values()
    return list(groups)


def test_several_sources_are_subgroups_and_one_is_none():
    table = judged()
    table["source"] = np.where(np.arange(400) % 3, "here", "there")
    rows = subgroup_table(table, np.random.default_rng(0), 10)
    own = [(row["group"], row["n"]) for row in rows if row["attribute"] == "source"]
    assert own == [("here", 266), ("there", 134)]
    (here, *_) = rows
    auc = brief_metrics(table[table["source"] == "here"], np.random.default_rng(0), 10)["auc"]
    assert (here["attribute"], here["auc"]) == ("source", auc)
    assert "source" not in memberships(table.assign(source="here"))


def test_a_group_of_too_few_patients_has_no_interval_and_says_why():
    table = judged().assign(group=[f"p{i % 9}" for i in range(400)])
    (row, *_) = subgroup_table(table, np.random.default_rng(0), 10)
    assert row["auc"] > 0.5 and row["auc_interval"] is None
    assert row["note"].startswith("only 9 patients (groups), 9 with a melanoma and 9 with a benign lesion: an interval")


def test_bands_begin_at_their_lower_bound():
    ages = np.array([0, 29.9, 30, 44, 45, 60, 74.9, 75, 90, np.nan])
    assert bands_of("age", ages) == [
        *("under 30", "under 30", "30 to 44", "30 to 44", "45 to 59"),
        *("60 to 74", "60 to 74", "75 and older", "75 and older", "unknown"),
    ]
    angles = np.array([-90, -30.1, -29.9, 9.9, 10.1, 28.1, 41.1, 55.1, 90, 120])
    assert bands_of("typology_angle", angles) == [
        *("dark", "dark", "brown", "brown", "tan", "intermediate", "light"),
        *("very light", "very light", "very light"),
    ]
    sizes = np.array([640 * 480, 1920 * 1080, 4000 * 3000, 6000 * 4000]) / 1e6
    assert bands_of("megapixels", sizes) == ["under 1 megapixel", "1 to 4", "4 to 16", "16 megapixels and more"]


# --- skin tone ---


@pytest.mark.parametrize(
    ("rgb", "lab"),  # as EasyRGB's colour calculator has them: D65, 2° observer
    [
        ((255, 255, 255), (100, 0, 0)),
        ((0, 0, 0), (0, 0, 0)),
        ((119, 119, 119), (50.03, 0, 0)),
        ((255, 0, 0), (53.23, 80.11, 67.22)),
        ((0, 255, 0), (87.74, -86.19, 83.19)),
        ((0, 0, 255), (32.30, 79.20, -107.86)),
        ((5, 5, 5), (1.37, 0, 0)),  # on the straight part of both curves
    ],
)
def test_colours_have_their_known_place_in_lab(rgb, lab):
    np.testing.assert_allclose(srgb_to_lab(np.array([rgb], np.uint8))[0], lab, atol=0.02)


def photo(skin: tuple[int, int, int], side: int = 64) -> np.ndarray:
    """A lesion on skin with a little noise, uint8 (side, side, 3)."""
    noise = np.random.default_rng(0).integers(-3, 4, (side, side, 1))
    image = np.full((side, side, 3), skin) + noise
    image[side // 4 : -side // 4, side // 4 : -side // 4] = (90, 30, 90)
    return image.astype(np.uint8)


SKINS = {  # sRGB, and the tone that its angle has: 67, 43, 33, 24, -9 and -74 degrees
    (244, 214, 190): "very light",
    (194, 150, 130): "light",
    (186, 143, 118): "intermediate",
    (178, 134, 106): "tan",
    (140, 105, 85): "brown",
    (60, 40, 32): "dark",
}


@pytest.mark.parametrize(("skin", "tone"), SKINS.items())
@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_angle_is_that_of_the_skin_not_of_the_lesion(skin, tone, side):
    angle = typology_angle(photo(skin, side)[None])
    lightness, _, yellow = srgb_to_lab(np.array(skin, np.uint8))
    assert angle == pytest.approx(np.degrees(np.arctan2(lightness - 50, yellow)), abs=3)
    assert bands_of("typology_angle", angle) == [tone]


def test_the_dark_rim_hairs_and_a_lesion_at_the_border_do_not_count():
    clean = photo((225, 180, 160), 128)
    y, x = np.mgrid[:128, :128] - 63.5
    rim, hair, lesion = clean.copy(), clean.copy(), clean.copy()
    rim[np.hypot(x, y) > 66] = 8
    hair[np.abs(x + y + 0.5) % 12 < 4] = (60, 45, 40)
    lesion[:50, :50] = (90, 50, 40)
    angles = typology_angle(np.stack([clean, rim, hair, lesion]))
    assert np.ptp(angles) < 1


def test_an_image_without_skin_at_its_border_has_no_angle():
    black, edge = photo((225, 180, 160)), photo((225, 180, 160))
    black[:8] = black[-8:] = black[:, :8] = black[:, -8:] = 5
    edge[1:8] = edge[-8:] = edge[:, :8] = edge[:, -8:] = 5  # a line of skin is too little
    images = np.stack([photo((225, 180, 160)), black, edge[::-1].copy(), np.zeros_like(black)])
    assert np.isnan(typology_angle(images)).tolist() == [False, True, True, True]


@pytest.mark.parametrize("block", [2, 256])
def test_angles_follow_the_names_asked_for(monkeypatch, block):
    monkeypatch.setattr(subgroups, "BLOCK", block)
    images = np.stack([photo(skin, 32) for skin in SKINS])
    names = ["image4", "image0", "image2"]
    np.testing.assert_array_equal(typology_angles(cache_of(images), names), typology_angle(images)[[4, 0, 2]])
    assert typology_angles(cache_of(images), []).shape == (0,)
