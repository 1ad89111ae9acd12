"""dataset.py: splits that keep patients apart, pairs that are balanced."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import cache_of, run_dataset
from scipy.stats import chisquare
from test_split import TABLE, isic_like_table
from torch.utils.data import DataLoader

import dataset
import train
from config import Config
from dataset import (
    Batch,
    PairDataset,
    describe,
    in_batch_batches,
    load_lesions,
    sample_balanced,
    sample_pairs,
    split_table,
    summarise,
)
from melanoma.common.errors import InputError
from melanoma.data.cache import ImageCache, build_cache
from melanoma.data.duplicates import LIST_NAME
from melanoma.data.sources import Sources
from melanoma.data.split import split_groups

ROOT = Path(__file__).parents[1]


# --- split ---


@pytest.mark.parametrize(
    "fold, setting, validation", [(1, 4, 4), (1, None, 2), (4, None, 0), (4, 0, 0), (None, None, 0), (None, 3, 3)]
)
def test_the_fold_after_the_one_that_tests_validates_unless_another_is_set(tmp_path, fold, setting, validation):
    TABLE.rename(columns={"label": "target"}).to_csv(tmp_path / "labels.csv", index=False)
    config = Config(train_labels=(tmp_path / "labels.csv",), fold=fold, validation_fold=setting)
    parts = load_lesions(config, need_images=False).table["part"]
    expected = pd.Series(split_groups(TABLE, fold, 0, validation), TABLE["image_name"]).sort_index()
    assert parts.tolist() == expected.tolist()


@pytest.mark.parametrize("split", ["patient", "published"])
def test_the_split_follows_from_its_own_seed_and_not_from_that_of_the_training(tmp_path, split):
    TABLE.rename(columns={"label": "target"}).to_csv(tmp_path / "labels.csv", index=False)

    def parts(**settings: Any) -> list[str]:
        config = Config(train_labels=(tmp_path / "labels.csv",), split=split, **settings)
        return load_lesions(config, need_images=False).table["part"].tolist()

    assert parts(seed=0) == parts(seed=1)
    assert parts(split_seed=0) != parts(split_seed=1)


@pytest.mark.parametrize("label, name", [(1, "benign"), (0, "melanoma")])
@pytest.mark.parametrize("split", ["patient", "published"])
def test_one_class_alone_cannot_be_split(split, label, name):
    with pytest.raises(InputError, match=f"^there is no {name} image"):
        split_table(TABLE.assign(label=label), Config(split=split))


@pytest.mark.parametrize("rare, name", [(1, "melanoma"), (0, "benign")])
def test_a_class_of_fewer_than_5_patients_cannot_be_split_by_patient(rare, name):
    own = TABLE["patient_id"].isin(["p1", "p2", "p3", "p4"])
    with pytest.raises(InputError, match=rf"^4 patients \(groups\) have {name} images: a split by patient needs 5"):
        split_table(TABLE.assign(label=np.where(own, rare, 1 - rare)), Config())


def test_a_class_of_fewer_than_20_images_cannot_be_split_by_image():
    with pytest.raises(InputError, match=r"^one class has 19 images: a split by image needs 20"):
        split_table(TABLE.assign(label=np.arange(len(TABLE)) < 19), Config(split="published"))


def test_a_part_without_enough_of_a_class_is_named():
    melanoma = ~TABLE["patient_id"].duplicated() & TABLE["patient_id"].isin([f"p{i}" for i in range(5)])
    with pytest.raises(InputError, match=r"^the .* part has [01] melanoma images, it needs [12]: .* too few"):
        split_table(TABLE.assign(label=melanoma.astype(int)), Config())


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
    firsts = np.bincount(np.concatenate([sample_pairs(labels, rng)[0][:, 0] for _ in range(1_000)]), minlength=17)
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
    return PairDataset(cache, rng.permutation(25)[:20], labels, *sample_pairs(labels, rng))


def test_item_i_is_pair_i(pair_dataset):
    assert len(pair_dataset) == 28
    for i in range(28):
        first, second, same = pair_dataset[i]
        expected = pair_dataset.cache.pixels[pair_dataset.rows[pair_dataset.pairs[i]]]
        np.testing.assert_array_equal([first, second], expected)
        assert same is bool(pair_dataset.same[i])
        assert first.dtype == np.uint8
        assert first.shape == (4, 4, 3)


def test_torchs_loader_gives_the_pairs_in_order(pair_dataset):
    columns = [np.concatenate(column) for column in zip(*DataLoader(pair_dataset, batch_size=8), strict=True)]
    items = [pair_dataset[i] for i in range(28)]
    for column, expected in zip(columns, zip(*items, strict=True), strict=True):
        np.testing.assert_array_equal(column, np.stack(expected))


# --- the summary ---


@pytest.fixture
def folder(lesion_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set, to change."""
    return shutil.copytree(lesion_folder, tmp_path / "lesions")


def run_process(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "dataset.py"), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_the_summary_works_from_the_csv_alone(folder):
    done = run_process(
        folder, "--json", "--train-labels", "train.csv", "--train-image", "nowhere", "--recipe", "baseline"
    )
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(done.stdout)
    expected: dict[str, Any] = {"images": 60, "melanoma": 12, "benign": 48, "patients": 30, "groups": 30}
    assert summary.items() >= (expected | {"split": "patient", "fold": 0, "images_without_id": 0}).items()
    assert summary["sources"][0].items() >= {"source": "train", "labels": 60, "duplicates_dropped": 0}.items()
    assert "labels_without_image" not in summary["sources"][0]
    parts = summary["splits"]
    assert set(parts) == {"train", "validation", "test"}
    for count in ("images", "melanoma", "benign", "patients"):
        assert sum(part[count] for part in parts.values()) == summary[count]
    learnt = parts["train"]
    assert summary["oversampling_factor"] == round(learnt["benign"] / learnt["melanoma"], 3)
    assert summary["pairs_per_epoch"] == 2 * learnt["benign"]
    assert summary["images_per_epoch"] == 4 * learnt["benign"]


@pytest.mark.parametrize("pairs, share", [("independent", 0.3), ("batch", 1.0), ("batch", 0.3)])
def test_the_summary_says_what_an_epoch_shows(quick, pairs, share):
    config = dataclasses.replace(quick, pairs=pairs, epoch_share=share)
    data = train.Data.of(lesions := load_lesions(config), config, torch.device("cpu"))
    batches = train.epoch_batches(config, data.train, data.feed.cache, np.random.default_rng(0))
    summary = summarise(lesions, config)
    assert summary["images_per_epoch"] == sum(len(batch.rows) for batch in batches)
    independent = sum(len(batch.same) for batch in batches) if pairs == "independent" else None
    assert summary["pairs_per_epoch"] == independent
    what = f"{independent} pairs an epoch" if independent else "images an epoch, paired within their batches"
    assert describe(summary).endswith(what)


def test_images_without_a_patient_are_counted_and_are_no_patients(quick):
    assert "without a patient" not in describe(summarise(load_lesions(quick), quick))
    (labels,) = quick.train_labels
    labels.write_text(labels.read_text().replace("IP_0000002,", ",").replace("IP_0000003,", "-1,"))
    summary = summarise(load_lesions(quick), quick)
    assert (summary["images_without_id"], summary["patients"], summary["groups"]) == (4, 28, 32)
    assert "images without a patient or lesion id, each a group of its own: 4; " in describe(summary)


def test_a_patient_with_a_large_share_is_warned_of(quick):
    (labels,) = quick.train_labels
    head, *rows = labels.read_text().splitlines()
    more = [row.replace("ISIC_", f"COPY{i}_").replace("IP_", f"IQ{i}_") for i in range(4) for row in rows]
    missing = [",".join([f"MISS_{i}", "-9", *rows[1].split(",")[2:]]) for i in range(51)]
    labels.write_text("\n".join([head, *rows, *more, *missing]))
    config = dataclasses.replace(quick, train_image=(Path("nowhere"),))
    assert "warning: -9 has more than 2 % of all images" in describe(summarise(load_lesions(config, False), config))


def test_lesions_are_kept_together_where_there_is_no_patient(quick):
    (labels,) = quick.train_labels
    labels.write_text(labels.read_text().replace("patient_id", "lesion_id"))
    lesions = load_lesions(quick)
    assert (lesions.table.groupby("lesion_id")["part"].nunique() == 1).all()
    assert lesions.table["lesion_id"].nunique() == 30
    assert "split 'patient', by lesion_id:" in describe(summarise(lesions, quick))


def test_equal_pictures_under_two_names_are_one_group(quick, tmp_path):
    (images,) = quick.train_image
    lesions = load_lesions(quick)
    parts = dict(zip(lesions.table["image_name"], lesions.table["part"], strict=True))
    benign = lesions.table.loc[lesions.table["label"] == 0, "image_name"]
    first, second = (next(name for name in benign if parts[name] == part) for part in ("train", "test"))
    shutil.copy(images / f"{first}.jpg", images / f"{second}.jpg")
    cache = build_cache(lesions.paths, 32, tmp_path / "cache")
    table, said = dataset.join_equal_pictures(lesions, cache, quick)
    found = table.set_index("image_name")
    assert found.loc[first, "group"] == found.loc[second, "group"]
    assert (table.groupby("group")["part"].nunique() == 1).all()
    assert said.startswith("images with equal pixels joined 1 groups to others")
    assert table["group"].nunique() == lesions.table["group"].nunique() - 1


def test_bad_input_ends_the_program_in_one_line(folder):
    done = run_process(folder, "--train-labels", "nowhere.csv")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: train_labels {folder / 'nowhere.csv'} does not exist: edit config.py or pass --train-labels\n"
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
    assert run_dataset(monkeypatch, "--json", *flags) == 0
    summary = json.loads(capsys.readouterr().out)
    expected = {"labels": 60, "labels_without_image": 2, "images_without_label": 1, "duplicates_dropped": 2}
    assert summary["sources"][0].items() >= expected.items()
    assert summary.items() >= {"images": 56, "melanoma": 12, "benign": 44}.items()
    assert run_dataset(monkeypatch, *flags) == 0
    text = capsys.readouterr().out
    for line in ("56 images of 30 patients, 30 groups: 12 melanoma, 44 benign", "pairs.csv: 2"):
        assert line in text
    assert "60 labels; labels without an image: 2; images without a label: 1" in text
    assert "warning: 3% of the labels have no image: looked for 'ISIC_0000013'" in text


def test_images_are_matched_whatever_the_case_of_their_extension(folder):
    for i, path in enumerate(sorted((folder / "train").iterdir())):
        path.rename(path.with_suffix([".JPG", ".jpeg", ".Png"][i % 3]))
    config = Config(train_labels=(folder / "train.csv",), train_image=(folder / "train",))
    lesions = load_lesions(config)
    assert lesions.reports[0].items() >= {"labels_without_image": 0, "images_without_label": 0}.items()
    assert list(lesions.paths) == sorted(lesions.table["image_name"])
    assert all(path.is_file() and path.stem == name for name, path in lesions.paths.items())


def published_counts(monkeypatch: pytest.MonkeyPatch, capsys, labels: Path) -> dict[str, dict[str, int]]:
    assert run_dataset(monkeypatch, "--json", "--split", "published", "--train-labels", labels) == 0
    splits = json.loads(capsys.readouterr().out)["splits"]
    return {part: {name: splits[part][name] for name in ("images", "melanoma", "benign")} for part in splits}


PUBLISHED = {
    "train": {"images": 23_187, "melanoma": 409, "benign": 22_778},
    "validation": {"images": 3_313, "melanoma": 58, "benign": 3_255},  # of the 26,500 that were published for training
    "test": {"images": 6_626, "melanoma": 117, "benign": 6_509},
}


def test_the_summary_gives_the_published_counts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = isic_like_table().rename(columns={"label": "target"})
    table.to_csv("labels.csv", index=False)
    pairs = {
        "image_name_1": table["image_name"][:400:2].tolist(),
        "image_name_2": table["image_name"][1:400:2].tolist(),
    }
    pd.DataFrame(pairs).to_csv(LIST_NAME, index=False)  # all images count in the published split
    assert published_counts(monkeypatch, capsys, Path("labels.csv")) == PUBLISHED


@pytest.mark.skipif("LESION_DATA" not in os.environ, reason="LESION_DATA names no folder with the real tables")
def test_the_real_table_gives_the_published_counts(tmp_path, monkeypatch, capsys):
    labels = Path(os.environ["LESION_DATA"], "isic2020", "ISIC_2020_Training_GroundTruth.csv").resolve()
    monkeypatch.chdir(tmp_path)
    assert published_counts(monkeypatch, capsys, labels) == PUBLISHED


ONE_CLASS = "image_name,target\n" + "".join(f"a{i},0\n" for i in range(40))
TWO_PATIENTS = "image_name,patient_id,target\n" + "".join(f"a{i},p{i % 2},{i % 2}\n" for i in range(40))
BAD_INPUT = {
    "no such table": (["--train-labels", "nowhere.csv"], "/nowhere.csv does not exist"),
    "no column": (["--train-labels", "no_column.csv"], "has no column of image names"),
    "empty": (["--train-labels", "empty.csv"], "/empty.csv is empty"),
    "one class": (["--train-labels", "one_class.csv"], "there is no melanoma image"),
    "few patients": (["--train-labels", "two_patients.csv"], "1 patients (groups) have melanoma images"),
    "a path": (["--train-labels", "path.csv"], "image_name is not a file name in line 2"),
    "no duplicates": (["--duplicates", "nowhere.csv"], "/nowhere.csv does not exist"),
    "other images": (["--train-image", "others"], "train_image has none of the 60 images"),
    "margin 0": (["--margin", "0"], "margin is 0.0: it must be a finite number above 0"),
    "no such config": (["--config", "nowhere.json"], "/nowhere.json does not exist"),
}


@pytest.mark.parametrize("flags, message", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_code_2(folder, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(folder)
    Path("others").mkdir()
    texts = {"no_column": "lesion,target\na,0\n", "empty": "", "path": "image_name,target\n../,0\n"}
    for name, text in (texts | {"one_class": ONE_CLASS, "two_patients": TWO_PATIENTS}).items():
        Path(f"{name}.csv").write_text(text)
    assert run_dataset(monkeypatch, "--train-labels", "train.csv", *flags) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert message in err


@pytest.mark.parametrize(
    "flags", [["--train-label", "labels.csv"], ["--epoch", "3"], ["--recipe", "best"], ["--head", "hinge"]]
)
def test_misspelt_and_abbreviated_flags_stop_the_program(monkeypatch, capsys, flags):
    assert run_dataset(monkeypatch, *flags) == 2
    assert flags[1] in capsys.readouterr().err


# --- batches ---


def places_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """The places in a batch of the first and of the second image of each pair."""
    if batch.met is None:
        first, second = np.arange(len(batch.rows)).reshape(2, -1)
    else:
        np.testing.assert_array_equal(batch.met, batch.met.T)
        first, second = np.nonzero(np.triu(batch.met))
    return first, second


def test_batches_are_the_pairs_in_order_with_same_as_it_was_drawn(pair_dataset):
    batches = pair_dataset.batches(12)
    assert [len(batch.same) for batch in batches] == [12, 12, 4]
    rows = np.concatenate([np.stack([b.rows[place] for place in places_of(b)], axis=1) for b in batches])
    np.testing.assert_array_equal(rows, pair_dataset.rows[pair_dataset.pairs])
    np.testing.assert_array_equal(np.concatenate([b.same for b in batches]), pair_dataset.same)
    label_of = dict(zip(pair_dataset.rows, pair_dataset.labels, strict=True))
    for batch in batches:
        assert batch.labels.tolist() == [label_of[row] for row in batch.rows]
        first, second = places_of(batch)
        np.testing.assert_array_equal(batch.same, batch.labels[first] == batch.labels[second])


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
    assert not np.array_equal(np.sort(order), np.sort(sample_balanced(labels, np.random.default_rng(1), share)))


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
        first, second = places_of(batch)
        assert set(zip(first.tolist(), second.tolist(), strict=True)) == expected
        assert batch.labels.tolist() == [label_of[row] for row in batch.rows]
        np.testing.assert_array_equal(batch.same[first, second], batch.labels[first] == batch.labels[second])
    assert len({batch.same.shape for batch in batches[:-1]}) == 1  # whatever pictures meet themselves


@pytest.mark.parametrize("n_sources", [1, 2, 3])
def test_within_sources_each_is_balanced_as_if_alone(n_sources):
    rng = np.random.default_rng(0)
    sizes = [(40, 6), (5, 21), (9, 9)][:n_sources]
    labels = np.concatenate([make_labels(*own) for own in sizes])
    source = np.repeat([f"s{i}" for i in range(n_sources)], [sum(own) for own in sizes])
    shuffled = rng.permutation(len(labels))
    labels, source = labels[shuffled], source[shuffled]
    pairs, same = sample_pairs(labels, np.random.default_rng(1), source)
    assert (source[pairs[:, 0]] == source[pairs[:, 1]]).all()
    np.testing.assert_array_equal(same, labels[pairs[:, 0]] == labels[pairs[:, 1]])
    order = sample_balanced(labels, np.random.default_rng(1), 1.0, source)
    assert np.array_equal(labels[order], np.tile([1, 0], len(order) // 2))
    assert np.array_equal(source[order[::2]], source[order[1::2]])
    for i, own in enumerate(sizes):
        firsts = pairs[source[pairs[:, 0]] == f"s{i}", 0]
        assert np.bincount(labels[firsts]).tolist() == [max(own)] * 2
        assert np.bincount(labels[order[source[order] == f"s{i}"]]).tolist() == [max(own)] * 2
    if n_sources > 1:
        assert len(set(source[order[:8]])) > 1  # a batch has images of several
    batches = in_batch_batches(order, labels, np.arange(len(labels)), 16, source)
    for batch in batches:
        first, second = places_of(batch)
        assert (source[batch.rows[first]] == source[batch.rows[second]]).all()
    among_all = in_batch_batches(order, labels, np.arange(len(labels)), 16)
    compared, all_pairs = (sum(len(places_of(batch)[0]) for batch in drawn) for drawn in (batches, among_all))
    assert (compared < all_pairs) == (n_sources > 1)


def test_a_source_that_unreadable_images_leave_too_few_of_is_refused():
    rows = [(part, label, i) for part in ("train", "validation", "test") for label in (0, 1) for i in range(3)]
    table = pd.DataFrame(rows, columns=["part", "label", "number"])
    table = pd.concat([table.assign(source=source) for source in ("one", "two")], ignore_index=True)
    table["image_name"] = table["source"] + table["part"] + table["label"].astype(str) + table["number"].astype(str)
    broken = dict.fromkeys(["twovalidation10", "twovalidation11"], "cut")
    with pytest.raises(InputError, match="the validation part of source two has 1 melanoma images, it needs 2"):
        dataset.join_equal_pictures(Sources(table, (), {}, []), ImageCache(np.empty(0), {}, broken), Config())


def test_one_source_draws_what_none_does():
    labels = make_labels(30, 7)
    alone = np.full(37, "a")
    for one, other in zip(
        sample_pairs(labels, np.random.default_rng(3)),
        sample_pairs(labels, np.random.default_rng(3), alone),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    one, other = (sample_balanced(labels, np.random.default_rng(3), 0.5, own) for own in (None, alone))
    np.testing.assert_array_equal(one, other)


def test_a_last_batch_of_one_image_is_left_out():
    labels = make_labels(4, 4)
    order = sample_balanced(labels, np.random.default_rng(0))
    assert [len(b.rows) for b in in_batch_batches(order, labels, np.arange(8), 7)] == [7]


def test_a_reader_that_stops_reading_is_no_error(folder):
    command = f"{sys.executable} {ROOT / 'dataset.py'} --json --train-labels train.csv --train-image train | head -n 1"
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "{\n"
    assert done.stderr == ""


def test_generated_lesions_are_a_data_set_and_are_decoded_into_the_cache(tmp_path):
    assert run_process(tmp_path, "--generate", "made", "--images", "100").returncode == 0
    flags = ["--train-image", "made/train", "--train-labels", "made/ISIC_2020_Training_GroundTruth.csv"]
    done = run_process(tmp_path, *flags, "--cache", "--image-size", "32")
    assert done.returncode == 0, done.stderr
    assert f"99 images of 32 px in {tmp_path / 'cache'}" in done.stdout
    done = run_process(tmp_path, *flags, "--json")
    assert json.loads(done.stdout)["images"] == 99  # without the duplicate that is listed beside the labels
