"""The synthetic data set: ISIC 2020's layout to the letter, the same bytes each time, no short cut to the class."""

import csv
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from melanoma.common.errors import InputError
from melanoma.data import synthetic as demo

N = 60
TRUTH = "ISIC_2020_Training_GroundTruth.csv"
DUPLICATES = "ISIC_2020_Training_Duplicates.csv"
META = "ISIC_2020_Test_Metadata.csv"


@pytest.fixture(scope="module", autouse=True)
def small_pictures():
    """A quarter of the usual side: a sixteenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SIZES", tuple((width // 4, height // 4) for width, height in demo.SIZES))
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "new" / "demo"
    demo.write_demo(out, N, seed=3)
    return out


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_files_and_columns_are_those_of_isic_2020(folder):
    assert sorted(p.name for p in folder.iterdir()) == [META, DUPLICATES, TRUTH, "test", "train"]
    header = {name: (folder / name).read_text().split("\n")[0] for name in (TRUTH, DUPLICATES, META)}
    assert header == {
        TRUTH: "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target",
        DUPLICATES: "image_name_1,image_name_2",
        META: "image,patient,age_approx,anatom_site_general,sex",
    }
    train, test = read(folder / TRUTH), read(folder / META)
    assert {p.name for p in (folder / "train").iterdir()} == {f"{row['image_name']}.jpg" for row in train}
    assert {p.name for p in (folder / "test").iterdir()} == {f"{row['image']}.jpg" for row in test}
    assert len({row["image_name"] for row in train} | {row["image"] for row in test}) == N + len(test)


def test_values_are_those_of_isic_2020(folder):
    train = read(folder / TRUTH)
    verdicts = {(row["diagnosis"], row["benign_malignant"], row["target"]) for row in train}
    assert verdicts == {("unknown", "benign", "0"), ("nevus", "benign", "0"), ("melanoma", "malignant", "1")}
    for row in train:
        assert re.fullmatch(r"ISIC_\d{7}", row["image_name"])
        assert re.fullmatch(r"IP_\d{7}", row["patient_id"])
        assert row["sex"] in ("male", "female", "")
        assert row["age_approx"] == "" or (15 <= int(row["age_approx"]) <= 90)
        assert row["anatom_site_general_challenge"] in (*demo.SITES, "")
    for column in ("sex", "age_approx", "anatom_site_general_challenge"):
        assert 0 < sum(row[column] == "" for row in train) < N / 4, column


def test_one_in_ten_is_a_melanoma_and_patients_have_several_images(folder):
    train = read(folder / TRUTH)
    assert len(train) == N
    assert sum(row["target"] == "1" for row in train) == N // 10
    images = Counter(row["patient_id"] for row in train)
    assert min(images.values()) >= 2
    assert 3 <= N / len(images) <= 8


def test_the_duplicate_is_one_picture_of_one_patient_under_two_names(folder):
    (pair,) = read(folder / DUPLICATES)
    rows = {row["image_name"]: row for row in read(folder / TRUTH)}
    one, two = (rows[pair[name]] for name in ("image_name_1", "image_name_2"))
    assert one["image_name"] != two["image_name"]
    assert (one["patient_id"], one["target"]) == (two["patient_id"], two["target"])
    first, second = (np.asarray(Image.open(folder / "train" / f"{row['image_name']}.jpg")) for row in (one, two))
    assert np.array_equal(first, second)
    files = [p.read_bytes() for p in (folder / "train").iterdir()]
    assert len(set(files)) == N - 1  # all others are different pictures


def test_the_test_set_is_unlabelled_and_has_patients_of_its_own(folder):
    test = read(folder / META)
    assert len(test) == demo.TEST_IMAGES
    assert not re.search("melanoma|malignant|benign|nevus", (folder / META).read_text())
    assert not {row["patient"] for row in test} & {row["patient_id"] for row in read(folder / TRUTH)}


def test_pictures_are_jpegs_of_mixed_sizes(folder):
    sizes: Counter[tuple[int, int]] = Counter()
    for path in (folder / "train").iterdir():
        with Image.open(path) as picture:
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            sizes[picture.size] += 1
    assert set(sizes) == set(demo.SIZES)


def test_same_seed_same_bytes(folder, tmp_path):
    demo.write_demo(tmp_path, N, seed=3)
    assert contents(tmp_path) == contents(folder)


def test_a_picture_hangs_on_its_generator_alone():
    first, second = (demo.lesion_image(np.random.default_rng(7), True, 60, 40, (220, 170, 150)) for _ in "ab")
    assert first.shape == (40, 60, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


def test_the_class_shows_in_the_lesion_but_not_in_the_mean_colour():
    """600 pictures, logistic regression, five folds with no patient on both sides."""
    numbers = np.arange(1200).reshape(2, 600)
    photos = demo.draw_photos(np.random.default_rng(0), numbers, 60, (0, demo.TRAIN))
    label, patient = (photos["diagnosis"] == "melanoma").to_numpy(), photos["patient_id"].to_numpy()
    # All lengths in a picture are fractions of its side, so a small one has the mean colour of a large one.
    pictures = np.stack(
        [
            demo.lesion_image(np.random.default_rng(photo.stream), melanoma, 120, 90, photo.tone) / 255
            for photo, melanoma in zip(photos.itertuples(), label, strict=True)
        ]
    )

    def auc(features: np.ndarray) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced"))
        folds = GroupKFold(5)
        score = cross_val_predict(model, features, label, groups=patient, cv=folds, method="decision_function")
        return roc_auc_score(label, score)

    # How much red/green and red/blue change from one tile of 6 x 6 pixels to the next.
    tiles = np.log(pictures.reshape(600, 15, 6, 20, 6, 3).mean((2, 4)) + 0.02)
    hue = tiles[..., :1] - tiles[..., 1:]
    changes = np.concatenate([np.abs(np.diff(hue, axis=axis)).mean((1, 2)) for axis in (1, 2)], axis=1)

    assert auc(pictures.mean((1, 2))) < 0.75  # measured: 0.59, 0.60, 0.47 with seeds 0, 1, 2
    assert auc(pictures.std((1, 2))) < 0.75
    assert auc(changes) > 0.75


@pytest.mark.parametrize("images", [59, 0, -5])
def test_a_bad_number_of_images_is_an_input_error(images, tmp_path):
    with pytest.raises(InputError, match=f"--images is {images}: it must be 60 or more"):
        demo.write_demo(tmp_path / "demo", images, 0)
    assert not (tmp_path / "demo").exists()


def test_another_seed_gives_another_data_set(folder, tmp_path, capsys):
    demo.write_demo(tmp_path, N, seed=4)
    assert "60 training images (6 melanomas" in capsys.readouterr().out
    assert not set(contents(tmp_path).values()) & set(contents(folder).values())


def test_a_known_folder_is_mended_and_right_files_are_left_alone(tmp_path):
    demo.write_demo(tmp_path, N, seed=3)
    before = contents(tmp_path)
    broken, right = sorted((tmp_path / "train").iterdir())[:2]
    broken.write_bytes(b"half a pic")
    stamp = right.stat().st_mtime_ns
    demo.write_demo(tmp_path, N, seed=3)
    assert contents(tmp_path) == before
    assert right.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("name", ["thesis.txt", TRUTH])
def test_a_folder_with_other_things_is_left_alone(name, tmp_path):
    (tmp_path / name).write_text("years of work")
    with pytest.raises(InputError, match=f"^{tmp_path} is not an empty folder"):
        demo.write_demo(tmp_path, 900, 0)
    assert contents(tmp_path) == {name: b"years of work"}


def test_generated_images_are_told_from_photographs(folder, tmp_path):
    assert demo.is_generated(folder / "train") and demo.is_generated(folder)
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.jpg", comment=b"taken with a camera")
    for other in (tmp_path, tmp_path / "nowhere", tmp_path / "photo.jpg"):
        assert not demo.is_generated(other)
