"""Controls: learnt on other images than those they judge, and beaten only where it is sure."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import HEADER
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

import dataset
from config import Config
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images
from melanoma.evaluation import controls
from melanoma.evaluation.bootstrap import compare
from melanoma.evaluation.metrics import evaluate

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "controls.py"


def lesions(n: int, seed: int) -> pd.DataFrame:
    """Lesions whose sex and age tell a little of the label, with blanks."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(int)
    return pd.DataFrame(
        {
            "label": label,
            "age": np.where(rng.random(n) < 0.1, np.nan, 45 + 15 * label + rng.normal(0, 15, n)),
            "sex": np.where(rng.random(n) < 0.1, "", np.where(rng.random(n) < 0.4 + 0.3 * label, "male", "female")),
            "site": rng.choice(["torso", "head/neck", ""], n),
        }
    )


def test_scores_tell_what_the_columns_tell_and_nothing_where_they_tell_nothing():
    columns = controls.METADATA
    train, test = lesions(600, 0), lesions(400, 1)
    scores = controls.fit_and_score(train, test, columns)
    assert scores.shape == (400,)
    assert roc_auc_score(test["label"], scores) > 0.7
    np.testing.assert_array_equal(scores, controls.fit_and_score(train, test.drop(columns="label"), columns))
    shuffled = train.assign(label=np.random.default_rng(2).permutation(train["label"]))
    assert 0.35 < roc_auc_score(test["label"], controls.fit_and_score(shuffled, test, columns)) < 0.65


def test_a_category_that_training_never_saw_is_no_error():
    test = lesions(40, 1).assign(site="palms/soles")
    assert np.isfinite(controls.fit_and_score(lesions(200, 0), test, controls.METADATA)).all()


def test_sites_in_free_text_may_be_any_number_and_the_frequent_ones_count():
    train, test = lesions(900, 0), lesions(40, 1)
    rare = train["site"].where(np.arange(len(train)) % 2 == 0, [f"text {i}" for i in range(len(train))])
    assert rare.nunique() > 400
    scores = controls.fit_and_score(train.assign(site=rare), test, ["site"])
    assert scores.std() > 0


@pytest.mark.parametrize("blank", [["age"], ["sex", "site"], ["age", "sex", "site"]])
def test_a_column_that_is_blank_throughout_training_tells_nothing(blank: list[str]):
    train, test = lesions(200, 0), lesions(40, 1)
    for name in blank:
        train[name] = np.nan if name == "age" else ""
    scores = controls.fit_and_score(train, test, controls.METADATA)
    others = [name for name in controls.METADATA if name not in blank]
    np.testing.assert_array_equal(scores, controls.fit_and_score(train, test, others))
    assert np.ptp(scores) > 0 or not others


@pytest.fixture
def labels_file(tmp_path: Path) -> Path:
    table = lesions(300, 3)
    rows = [HEADER]
    for i, (label, age, sex, site) in enumerate(table[["label", "age", "sex", "site"]].to_numpy()):
        verdict = "melanoma,malignant,1" if label else "nevus,benign,0"
        rows.append(f"L{i:03d},IP_{i // 2},{sex},{'' if np.isnan(age) else round(age)},{site},{verdict}")
    path = tmp_path / "train.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def config_of(labels_file: Path, **changes: Any) -> Config:
    return dataclasses.replace(Config(), train_labels=(labels_file,), train_image=(Path("nowhere"),), **changes)


def test_every_lesion_is_scored_once_by_a_model_of_the_training_part(labels_file, monkeypatch):
    seen = []
    real = controls.fit_and_score

    def fit_and_score(train, test, columns):
        seen.append((set(train["part"]), set(test["part"])))
        assert not set(train["group"]) & set(test["group"])
        return real(train, test, columns)

    monkeypatch.setattr(controls, "fit_and_score", fit_and_score)
    folds = [dataset.load_lesions(config_of(labels_file, fold=fold), need_images=False).table for fold in range(5)]
    scores = controls.control_scores(folds)
    assert sorted(scores["image_name"]) == [f"L{i:03d}" for i in range(300)]
    assert seen == [({"train"}, {"test"})] * 10  # of two controls
    own = folds[2]
    alone = real(own[own["part"] == "train"], own[own["part"] == "test"], controls.METADATA)
    row = scores.set_index("image_name").loc[own.loc[own["part"] == "test", "image_name"]]
    np.testing.assert_array_equal(row["metadata"], alone)


def test_pixels_and_files_become_features(photos):
    cache = build_cache(photos, 8, photos["a"].parent / "cache", workers=1)
    found = controls.image_features(cache, ["c", "a"])
    assert list(found.index) == ["c", "a"]
    assert found.loc["c", ["width", "height", "bytes"]].tolist() == [20, 12, photos["c"].stat().st_size]
    assert found.loc["a", ["width", "height", "bytes"]].tolist() == [16, 10, photos["a"].stat().st_size]
    for name in ("a", "c"):
        pixels = cache.pixels[cache.row_of[name]].reshape(-1, 3).astype(float)
        np.testing.assert_allclose(found.loc[name, controls.COLOURS[0::2]].astype(float), pixels.mean(axis=0))
        np.testing.assert_allclose(found.loc[name, controls.COLOURS[1::2]].astype(float), pixels.std(axis=0))


@pytest.fixture
def photos(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i, name in enumerate("abc"):
        pixels = rng.integers(0, 60 + 60 * i, (10 + i, 16 + 2 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return find_images(folder)


def alone(name: str) -> str:
    return name if name == "always benign" else f"{name} alone"


def split_of_lesions(n: int = 600) -> list[pd.DataFrame]:
    """Two folds of lesions, with features of which file size tells much of the label and the others nothing."""
    table = lesions(n, 5).assign(image_name=[f"i{i}" for i in range(n)], group=[f"p{i // 2}" for i in range(n)])
    rng = np.random.default_rng(6)
    features = pd.DataFrame(rng.normal(size=(n, 6)), columns=controls.COLOURS, index=table["image_name"])
    features = features.assign(width=640, height=480)
    features["bytes"] = 1000 * (3 * table["label"].to_numpy() + rng.normal(size=n))
    table = table.join(features, on="image_name")
    half = np.arange(n) < n // 2
    return [table.assign(part=np.where(half == first, "train", "test")) for first in (True, False)]


def test_the_table_says_what_each_control_reaches_and_why_it_may_not_count():
    folds = split_of_lesions()
    scores = controls.control_scores(folds)
    rows = {row["name"]: row for row in controls.control_table(scores, np.random.default_rng(0), 100)}
    assert list(rows) == ["always benign", "metadata", "image size", "file size", "mean colour"]
    labels = scores["label"].to_numpy()
    for name, row in rows.items():
        assert row["auc"] == pytest.approx(roc_auc_score(labels, scores[name]))
        assert row["average_precision"] == pytest.approx(average_precision_score(labels, scores[name]))
        figures = evaluate(labels, scores[name].to_numpy(), 0.0)
        assert row["sensitivity_at_specificity"] == {"90%": figures["sensitivity_at_specificity"]["90%"]}
        assert row["auc_interval"][0] <= row["auc"] <= row["auc_interval"][1]
    for name in ("always benign", "image size"):
        assert (rows[name]["auc"], rows[name]["auc_interval"]) == (0.5, [0.5, 0.5])
        assert rows[name]["average_precision"] == pytest.approx(labels.mean())
        assert rows[name]["sensitivity_at_specificity"] == {"90%": 0}
    assert rows["file size"]["auc"] > 0.9 > rows["metadata"]["auc"] > 0.65 > rows["mean colour"]["auc"]
    assert rows["always benign"]["note"] == f"accuracy {1 - labels.mean():.3f}, sensitivity 0"
    assert rows["image size"]["note"] == "image size gives all images the same score"
    assert {rows[name]["note"] for name in ("metadata", "file size", "mean colour")} == {""}
    assert json.loads(json.dumps(list(rows.values()), allow_nan=False)) == list(rows.values())


def test_controls_that_lack_their_columns_are_named():
    folds = split_of_lesions(200)
    bare = [fold[["image_name", "group", "label", "part"]] for fold in folds]
    scores = controls.control_scores(bare)
    assert list(scores) == ["image_name", "group", "label", "always benign"]
    rows = controls.control_table(scores, np.random.default_rng(0), 20)
    assert {row["name"]: row["note"] for row in rows[1:]} == {
        "metadata": "not computed: needs age, sex, site",
        "image size": "not computed: needs width, height",
        "file size": "not computed: needs bytes",
        "mean colour": f"not computed: needs {', '.join(controls.COLOURS)}",
    }
    assert all(row["auc"] is row["auc_interval"] is row["average_precision"] is None for row in rows[1:])


def test_metadata_that_one_class_lacks_is_noted():
    folds = split_of_lesions(200)
    for fold in folds:
        melanoma = fold["label"] == 1
        fold["age"] = 50.0
        fold["sex"] = np.where(melanoma, np.where(fold.index % 3, "male", "female"), "")
        fold["site"] = np.where(melanoma, "torso", "")
    row = controls.control_table(controls.control_scores(folds), np.random.default_rng(0), 20)[1]
    assert row["auc"] > 0.95
    assert "blank for 0% of the melanomas and 100% of the benign lesions" in row["note"]


def test_a_set_of_one_class_has_no_figures():
    folds = split_of_lesions(200)
    scores = controls.control_scores(folds)
    benign = scores[scores["label"] == 0].reset_index(drop=True)
    for row in controls.control_table(benign, np.random.default_rng(0), 20):
        assert row["auc"] is row["auc_interval"] is row["average_precision"] is None
    judged = benign[["image_name"]].assign(probability=0.5)
    for name, row in controls.beaten(judged, benign, np.random.default_rng(0), 20).items():
        reason = f"there is no melanoma among {len(benign)} images"
        assert row == {"beaten": None, "verdict": f"not compared with {alone(name)}: {reason}"}


def test_a_network_beats_what_it_is_surely_better_than_and_nothing_else():
    folds = split_of_lesions()
    scores = controls.control_scores(folds)
    rng = np.random.default_rng(1)
    judged = scores.assign(probability=1.5 * scores["label"] + rng.normal(size=len(scores)))
    judged = judged[["image_name", "label", "probability"]].sample(frac=0.9, random_state=0)  # another order
    rows = controls.beaten(judged, scores, np.random.default_rng(0), 200)
    assert {name: row["beaten"] for name, row in rows.items()} == {
        "always benign": True,
        "metadata": True,
        "image size": True,
        "file size": False,
        "mean colour": True,
    }
    both = scores.merge(judged[["image_name", "probability"]], on="image_name")
    labels, groups = both["label"].to_numpy(), both["group"].to_numpy()
    rng = np.random.default_rng(0)
    for name, row in rows.items():
        found = compare(labels, both["probability"].to_numpy(), both[name].to_numpy(), groups, rng, 200)
        assert row["verdict"] == (
            f"{'better' if row['beaten'] else 'not better'} than {alone(name)}: AUC {found['auc_a']:.3f} against "
            f"{found['auc_b']:.3f}, difference {found['difference']:+.3f} (95 % interval "
            f"{found['interval'][0]:+.3f} to {found['interval'][1]:+.3f})"
        )

    same = scores[["image_name"]].assign(probability=scores["metadata"])
    assert not controls.beaten(same, scores, rng, 50)["metadata"]["beaten"]  # as good is not better


@pytest.mark.parametrize(("n", "beaten"), [(1, None), (9, None), (10, True)])
def test_a_network_is_compared_with_controls_only_over_enough_patients(n, beaten):
    folds = split_of_lesions()
    groups = [f"p{i % n}" for i in range(600)]
    scores = controls.control_scores([fold.assign(group=groups) for fold in folds])
    judged = scores[["image_name"]].assign(probability=3.0 * scores["label"])  # perfect
    rows = controls.beaten(judged, scores, np.random.default_rng(0), 100)
    table = {row["name"]: row for row in controls.control_table(scores, np.random.default_rng(0), 100)}
    assert {row["beaten"] for row in rows.values()} == {beaten}
    reason = (
        f"only {n} patients (groups), {n} with a melanoma and {n} with a benign lesion: an interval needs 10, 5 and 5"
    )
    for name, row in rows.items():
        assert (table[name]["auc_interval"] is None) == (beaten is None)
        assert table[name]["note"].endswith(reason) == (beaten is None)
        if beaten is None:
            assert row["verdict"] == f"not compared with {alone(name)}: {reason}"
            assert table[name]["auc"] == pytest.approx(roc_auc_score(scores["label"], scores[name]))


def test_several_sources_are_a_control_and_one_is_none():
    folds = split_of_lesions()
    one = controls.control_scores([fold.assign(source="here") for fold in folds])
    pd.testing.assert_frame_equal(one, controls.control_scores(folds))
    assert "source" not in [row["name"] for row in controls.control_table(one, np.random.default_rng(0), 20)]
    rng = np.random.default_rng(8)
    source = np.where(rng.random(600) < 0.2 + 0.6 * folds[0]["label"], "clinic", "archive")
    scores = controls.control_scores([fold.assign(source=source) for fold in folds])
    rows = controls.control_table(scores, np.random.default_rng(0), 100)
    assert [row["name"] for row in rows][-2:] == ["mean colour", "source"]
    # two scores, one for each source, in each fold
    melanoma, clinic = scores["label"].to_numpy() == 1, scores["source"].to_numpy() > 0
    tpr, fpr = clinic[melanoma].mean(), clinic[~melanoma].mean()
    assert rows[-1]["auc"] == pytest.approx((1 + tpr - fpr) / 2, abs=0.01)
    assert 0.75 < rows[-1]["auc"] < 0.85
    judged = scores[["image_name"]].assign(probability=3.0 * scores["label"])
    verdict = controls.beaten(judged, scores, np.random.default_rng(0), 100)["source"]
    assert verdict["beaten"] and verdict["verdict"].startswith("better than source alone: AUC 1.000 against 0.")


def test_a_fold_of_one_source_pooled_with_one_of_two_has_a_control_by_source():
    alone, two = split_of_lesions()[:2]
    source = np.where(np.arange(len(two)) % 2, "clinic", "archive")
    scores = controls.control_scores([alone.assign(source="here"), two.assign(source=source)])
    assert "source" in [row["name"] for row in controls.control_table(scores, np.random.default_rng(0), 20)]
    assert (scores["source"].iloc[: (alone["part"] == "test").sum()] == 0).all()


def run_command(monkeypatch, capsys, *flags: str) -> dict:
    monkeypatch.setattr(sys, "argv", ["controls.py", *flags])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    return json.loads(out[out.index("{") :])


def test_the_command_prints_what_the_csv_alone_gives(labels_file, monkeypatch, capsys):
    result = run_command(monkeypatch, capsys, "--train-labels", str(labels_file), "--train-image", "nowhere")
    assert (result["images"], result["melanomas"]) == (300, int(lesions(300, 3)["label"].sum()))
    rows = {row["name"]: row for row in result["controls"]}
    assert 0.65 < rows["metadata"]["auc_interval"][0] + 0.1 < rows["metadata"]["auc"] + 0.1 < 1
    assert rows["always benign"]["auc"] == 0.5
    assert {name for name, row in rows.items() if row["auc"] is None} == {"image size", "file size", "mean colour"}


def test_the_command_prints_every_control_where_there_are_images(lesion_folder, tmp_path, monkeypatch, capsys):
    flags = {
        "train-labels": lesion_folder / "train.csv",
        "train-image": lesion_folder / "train",
        "cache-dir": tmp_path / "cache",
        "image-size": 32,
        "validation-fold": 3,  # of one fold's runs: of all five, the fold after each validates
    }
    result = run_command(monkeypatch, capsys, *(f"--{name}={value}" for name, value in flags.items()))
    assert (result["images"], result["melanomas"]) == (60, 12)
    rows = {row["name"]: row for row in result["controls"]}
    assert None not in {row["auc"] for row in rows.values()}
    assert rows["image size"]["note"] == "image size gives all images the same score"
