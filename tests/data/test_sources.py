"""sources.py: one or several data sets, their folders and what does not match."""

from pathlib import Path

import pytest
from PIL import Image

from melanoma.common.errors import InputError
from melanoma.data.duplicates import lists_in_use
from melanoma.data.labels import Columns
from melanoma.data.sources import Sources, describe_source, find_source_images, read_sources, read_tables, source_names


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def study(
    folder: Path, names: str, places: list[str] | None = None, columns: str = "image_name,patient_id,target"
) -> Path:
    """Write a label CSV of a letter an image, the first a melanoma, and an image file for each place."""
    for place in places if places is not None else [f"images/{name}.jpg" for name in names]:
        save(folder / place)
    rows = [f"{name},p{name},{int(i == 0)}" for i, name in enumerate(names)]
    path = folder / "labels.csv"
    folder.mkdir(exist_ok=True)
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


def said(sources: Sources) -> str:
    return "\n".join(line for report in sources.reports for line in describe_source(report))


PLACES = {
    "nested": ["images/x/a.jpg", "images/y/z/b.JPG", "images/c.png"],
    "other kinds": ["images/a.bmp", "images/b.webp", "images/c.JPEG"],
    "downsampled": ["images/a_downsampled.jpg", "images/b.jpg", "images/c_downsampled.jpg"],
    "a Mac's and hidden files": [
        *["images/a.jpg", "images/b.jpg", "images/c.jpg", "images/.a.jpg"],
        *["images/._a.jpg", "images/.thumbs/a.jpg", "images/__MACOSX/._b.jpg"],
    ],
    "class folders": ["images/malignant/a.jpg", "images/benign/b.jpg", "images/benign/c.jpg"],
}


@pytest.mark.parametrize("places", PLACES.values(), ids=PLACES)
def test_images_are_found_wherever_they_lie(tmp_path, places):
    labels = study(tmp_path / "set", "abc", places)
    found = read_sources([tmp_path / "set" / "images"], [labels])
    assert found.table["image_name"].tolist() == list("abc") == list(found.paths)
    assert [path.relative_to(tmp_path / "set").as_posix() for path in found.paths.values()] == places[:3]
    assert "labels without an image: 0; images without a label: 0" in said(found)
    assert "warning" not in said(found)


def test_several_folders_serve_one_table(tmp_path):
    labels = study(tmp_path / "set", "abc", ["part_1/a.jpg", "part_2/b.jpg", "part_2/c.jpg"])
    found = read_sources([tmp_path / "set" / "part_1", tmp_path / "set" / "part_2"], [labels])
    assert found.table["image_name"].tolist() == list("abc")
    assert found.table["source"].unique().tolist() == ["labels"]


def test_one_name_twice_is_an_error_that_names_both_files(tmp_path):
    labels = study(tmp_path / "set", "ab", ["images/a.jpg", "images/x/a_downsampled.png", "images/b.jpg"])
    with pytest.raises(InputError, match=r"x/a_downsampled\.png and .*images/a\.jpg have one name, a: remove"):
        read_sources([tmp_path / "set" / "images"], [labels])


def test_what_does_not_match_is_shown_by_an_example(tmp_path):
    labels = study(tmp_path / "set", "abcd", ["images/a.jpg", "images/IMG_b.jpg"])
    found = read_sources([tmp_path / "set" / "images"], [labels])
    assert "labels without an image: 3; images without a label: 1" in said(found)
    assert "warning: 75% of the labels have no image: looked for 'b' and an extension, there is 'IMG_b.jpg'" in said(
        found
    )
    labels = study(tmp_path / "other", "abcd", ["images/IMG_a.jpg"])
    with pytest.raises(
        InputError, match=r"none of the 4 images .*: looked for 'a' .*, there is 'IMG_a\.jpg' without a label"
    ):
        read_sources([tmp_path / "other" / "images"], [labels])


def test_sources_are_one_table_and_a_name_in_two_has_its_source(tmp_path):
    first, second = study(tmp_path / "one", "abc"), study(tmp_path / "two", "cd")
    images = [tmp_path / "one" / "images", tmp_path / "two" / "images"]
    found = read_sources(images, [first, second])
    assert found.table["image_name"].tolist() == ["a", "b", "one/labels:c", "two/labels:c", "d"]
    assert found.table["source"].tolist() == ["one/labels"] * 3 + ["two/labels"] * 2
    assert found.table["label"].tolist() == [1, 0, 0, 1, 0]
    assert found.paths["two/labels:c"] == images[1] / "c.jpg"
    assert find_source_images(images, found.table["source"].unique(), set(found.table["image_name"])) == found.paths
    assert len(found.reports) == 2


@pytest.mark.parametrize(("images", "labels"), [(2, 3), (3, 2), (1, 2)])
def test_sources_need_a_folder_and_a_table_each(tmp_path, images, labels):
    with pytest.raises(InputError, match=f"train_labels names {labels} files and train_image {images} folders"):
        read_sources([tmp_path / str(i) for i in range(images)], [tmp_path / f"{i}.csv" for i in range(labels)])


def test_names_of_sources_are_short_and_differ():
    assert source_names([Path("/data/a/train.csv")]) == ["train"]
    assert source_names([Path("/data/a/train.csv"), Path("/data/b/train.csv")]) == ["a/train", "b/train"]
    assert source_names([Path("/data/x.csv"), Path("/y.csv")]) == ["x", "y"]
    with pytest.raises(InputError, match="is named twice"):
        source_names([Path("/data/a.csv")] * 2)


def test_class_folders_need_no_table(tmp_path):
    for place in ("train/melanoma/a.jpg", "train/nv/b.jpg", "test/mel/c.jpg"):
        save(tmp_path / place)
    found = read_sources([tmp_path], [], columns=Columns())
    assert dict(zip(found.table["image_name"], found.table["label"], strict=True)) == {"a": 1, "b": 0, "c": 1}


def test_the_list_of_duplicates_beside_the_labels_is_used(tmp_path):
    labels = study(tmp_path / "set", "dbca")
    (tmp_path / "set" / "ISIC_2020_Training_Duplicates.csv").write_text("image_name_1,image_name_2\nb.jpg,a\n")
    found = read_sources([tmp_path / "set" / "images"], [labels], duplicates=lists_in_use(None, [labels]))
    assert found.table["image_name"].tolist() == ["a", "c", "d"]  # the first by name, whatever the order of rows
    assert "duplicates dropped, by " in said(found)


def test_a_source_without_a_known_diagnosis_or_an_image_is_one_line(tmp_path):
    labels = study(tmp_path / "set", "abc")
    labels.write_text("image_name,diagnosis\na,unknown\nb,unknown\nc,\n")
    for need_images in (True, False):
        with pytest.raises(InputError, match=r"labels\.csv has no image with a known diagnosis"):
            read_sources([tmp_path / "set" / "images"], [labels], need_images=need_images)
    (tmp_path / "empty").mkdir()
    for name, message in (("empty", "empty has no image with a known diagnosis"), ("gone", "gone is not a folder")):
        with pytest.raises(InputError, match=message):
            read_sources([tmp_path / name], [], need_images=False)


def test_counts_need_no_images(tmp_path):
    labels = study(tmp_path / "set", "abc", [])
    found = read_sources([tmp_path / "set" / "images"], [labels], need_images=False)
    assert len(found.table) == 3 and found.paths == {}
    assert "image folder not there: files not checked" in said(found)


def test_metadata_serve_the_sources_whose_images_they_name(tmp_path):
    labels = [study(tmp_path / "one", "abc"), study(tmp_path / "two", "xyz")]
    metadata = tmp_path / "metadata.csv"
    metadata.write_text("image,sex\nx,male\n")
    sex = read_tables(labels, [metadata])
    assert [table.table["sex"].tolist() for table in sex] == [["", "", ""], ["male", "", ""]]
    metadata.write_text("image,sex\nq,male\n")
    with pytest.raises(
        InputError, match=r"metadata\.csv has none of the labelled images: it names q, .* names a: check"
    ):
        read_tables(labels, [metadata])


def test_images_without_a_diagnosis_are_left_out_and_counted(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("image_name,dx\na,mel\nb,nv\nc,unknown\nd,\n")
    found = read_sources([tmp_path / "nowhere"], [path], need_images=False)
    assert found.table["image_name"].tolist() == ["a", "b"]
    assert "left out, diagnosis unknown or indeterminate: 2" in said(found)
    assert "2 labels; image folder not there" in said(found)
