"""duplicates.py: lists of duplicates, and the search for near-duplicates."""

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_dataset
from PIL import Image

from melanoma.common.errors import InputError
from melanoma.data import duplicates
from melanoma.data.cache import ImageCache
from melanoma.data.duplicates import PAIR, drop_duplicates, find_duplicates, list_duplicates, read_duplicates
from melanoma.data.synthetic import lesion_image

SIDE = 64


def lesion(seed: int, width: int = SIDE, height: int = SIDE) -> np.ndarray:
    return lesion_image(np.random.default_rng(seed), bool(seed % 2), width, height, (224, 178, 155))


def search(*images: np.ndarray) -> list[tuple]:
    """Return the pairs among images, each resized to a square, as (first, second, flipped, turned)."""
    squares = [np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for image in images]
    names = [str(row) for row in range(len(squares))]
    found = find_duplicates(ImageCache(np.stack(squares), {name: int(name) for name in names}, {}), names)
    assert found["similarity"].between(0.96, 1).all() and found["similarity"].is_monotonic_decreasing
    return list(found.drop(columns="similarity").itertuples(index=False, name=None))


# --- lists ---


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


def test_duplicates_are_read_as_pairs_and_further_columns_ignored(tmp_path):
    (tmp_path / "d.csv").write_text("similarity,image_name_1,image_name_2\n1,a,x/b.jpg\n,c,D:\\x\\d.png\n")
    assert read_duplicates(tmp_path / "d.csv") == [("a", "b"), ("c", "d")]


def test_a_listed_name_keeps_its_source(tmp_path):
    (tmp_path / "d.csv").write_text("image_name_1,image_name_2\none/labels:a,two/labels:a.jpg\n")
    assert read_duplicates(tmp_path / "d.csv") == [("one/labels:a", "two/labels:a")]


def test_a_duplicate_list_without_its_columns_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("image_name_1,image_name\na,b\n")
    with pytest.raises(
        InputError, match=r"duplicates .*d\.csv has no column image_name_2: its columns are image_name_1, image_name$"
    ):
        read_duplicates(tmp_path / "d.csv")


# --- search ---


@pytest.mark.parametrize("flipped", [0, 1])
@pytest.mark.parametrize("turned", [0, 90, 180, 270])
def test_a_flipped_and_turned_copy_is_found_as_it_was_turned(flipped, turned):
    original = lesion(0)
    copy = np.rot90(original[:, ::-1] if flipped else original, turned // 90)
    assert search(original, lesion(1), copy) == [("0", "2", flipped, turned)]


@pytest.mark.parametrize("quality", [30, 50, 95])
def test_a_copy_compressed_anew_is_found(quality):
    file = io.BytesIO()
    Image.fromarray(lesion(0, 300, 200)).save(file, "JPEG", quality=quality)
    assert search(lesion(0, 300, 200), np.asarray(Image.open(file)), lesion(1)) == [("0", "1", 0, 0)]


@pytest.mark.parametrize("size", [(150, 100), (600, 400), (200, 200)])
def test_a_resized_copy_is_found(size):
    original = lesion(0, 300, 200)
    copy = np.asarray(Image.fromarray(original).resize(size, Image.Resampling.BILINEAR))
    assert search(lesion(1), original, np.rot90(copy)) == [("1", "2", 0, 90)]


def test_a_brighter_copy_with_more_contrast_is_found_and_one_colour_is_like_nothing():
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    copy = np.clip(1.2 * (lesion(0).astype(float) - 100) + 90, 0, 255).astype(np.uint8)
    assert search(lesion(0), copy, grey) == [("0", "1", 0, 0)]


def test_other_lesions_are_no_duplicates():
    assert search(*(lesion(seed) for seed in range(60))) == []


def test_less_similar_pairs_are_found_if_asked_for():
    cache = ImageCache(np.stack([lesion(0), lesion(1), lesion(0)]), {"a": 0, "b": 1, "c": 2}, {})
    assert find_duplicates(cache, ["a", "b", "c"])[[*PAIR]].to_numpy().tolist() == [["a", "c"]]
    assert len(find_duplicates(cache, ["a", "b", "c"], -1)) == 3


def test_what_is_found_does_not_depend_on_blocks(monkeypatch):
    images = [lesion(seed // 2) if seed % 4 else lesion(100 + seed) for seed in range(15)]
    whole = search(*images)
    assert [pair[:2] for pair in whole] == [("2", "3"), ("6", "7"), ("10", "11")]
    for block in (1, 2, 7):
        monkeypatch.setattr(duplicates, "BLOCK", block)
        monkeypatch.setattr(duplicates, "BATCH_PIXELS", block * SIDE**2)
        assert search(*images) == whole


# --- the list that is written ---


def listed(tmp_path: Path, *known: Path, errors: dict[str, str] | None = None) -> pd.DataFrame:
    """List the duplicates among a, b, c, d, of which a and b, and c and d, are pairs; read the file."""
    pixels = np.stack([lesion(0), lesion(0), lesion(1), lesion(1)[::-1]])
    row_of = {name: row for row, name in enumerate("abcd") if name not in (errors or {})}
    cache = ImageCache(pixels, row_of, errors or {})
    table = pd.DataFrame({"image_name": list("abcd"), "group": ["p", "p", "p", "q"], "label": [0, 1, 0, 0]})
    list_duplicates(cache, table, known, tmp_path / "found.csv")
    return pd.read_csv(tmp_path / "found.csv", dtype=str, keep_default_na=False)


def test_the_list_has_what_is_found_and_the_counts_are_printed(tmp_path, capsys):
    rows = listed(tmp_path).to_numpy().tolist()
    assert rows == [["a", "b", "1.0", "0", "0"], ["c", "d", "1.0", "1", "180"]]
    assert read_duplicates(tmp_path / "found.csv") == [("a", "b"), ("c", "d")]
    out = capsys.readouterr().out
    assert "near-duplicate pairs among 4 images: 2; of two groups: 1, of two labels: 1\n" in out
    assert f"pass --duplicates {tmp_path / 'found.csv'}" in out


def test_unreadable_images_are_not_compared(tmp_path, capsys):
    assert listed(tmp_path, errors={"b": "cut"})["image_name_1"].tolist() == ["c"]
    assert "among 3 images: 1;" in capsys.readouterr().out
    with pytest.raises(InputError, match="there is no image to compare that can be read"):
        listed(tmp_path, errors=dict.fromkeys("abcd", "cut"))


def test_the_pairs_of_the_list_in_use_are_copied(tmp_path, capsys):
    (tmp_path / "used.csv").write_text("image_name_1,image_name_2\na,b\nx,y\n")
    rows = listed(tmp_path, tmp_path / "used.csv").to_numpy().tolist()
    assert rows == [["a", "b", "1.0", "0", "0"], ["c", "d", "1.0", "1", "180"], ["x", "y", "", "", ""]]
    assert "pairs copied from the list of duplicates in use: 2\n" in capsys.readouterr().out


def test_a_file_that_is_no_list_of_duplicates_is_not_overwritten(tmp_path):
    (tmp_path / "found.csv").write_text("image_name,target\na,1\n")
    with pytest.raises(InputError, match="has no column image_name_1 and no image_name_2"):
        listed(tmp_path)
    assert (tmp_path / "found.csv").read_text() == "image_name,target\na,1\n"


def test_near_duplicates_of_two_sources_are_listed_and_then_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for source, first in (("one", 0), ("two", 100)):
        Path(source, "images").mkdir(parents=True)
        for i in range(20):
            Image.fromarray(lesion(first + i, 90, 60)).save(f"{source}/images/i{i}.jpg", quality=90)
        rows = [f"i{i},p{i // 2},{i % 2}" for i in range(20)]
        Path(source, "labels.csv").write_text("\n".join(["image_name,patient_id,target", *rows]) + "\n")
    Image.open("one/images/i3.jpg").transpose(Image.Transpose.ROTATE_90).save("two/images/i0.jpg", quality=40)
    Image.open("one/images/i1.jpg").resize((60, 60)).save("two/images/i1.jpg")
    flags = ["--train-image", "one/images", "two/images", "--train-labels", "one/labels.csv", "two/labels.csv"]
    assert run_dataset(monkeypatch, "--find-duplicates", "found.csv", "--image-size", "48", *flags) == 0
    found = pd.read_csv("found.csv").set_index([*PAIR])
    assert set(found.index) == {("one/labels:i3", "two/labels:i0"), ("one/labels:i1", "two/labels:i1")}
    assert found.loc[("one/labels:i3", "two/labels:i0"), ["flipped", "turned"]].tolist() == [0, 90]
    assert "near-duplicate pairs among 40 images: 2;" in capsys.readouterr().out
    assert run_dataset(monkeypatch, "--json", "--duplicates", "found.csv", *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["images"] == 38
    assert [source["duplicates_dropped"] for source in summary["sources"]] == [0, 2]


def test_json_does_not_go_with_the_search(monkeypatch, capsys):
    assert run_dataset(monkeypatch, "--json", "--find-duplicates", "found.csv") == 2
    assert "--json goes with the summary alone" in capsys.readouterr().err
