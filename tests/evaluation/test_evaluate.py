"""A whole evaluation: metrics, figures, tables and the files that predict.py writes."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import cache_of, titles_of
from PIL import Image

import predict
from config import Config
from melanoma.common.errors import InputError
from melanoma.data.cache import decode_photos
from melanoma.data.labels import read_labels
from melanoma.evaluation import bootstrap
from melanoma.evaluation.bootstrap import auc_interval, compare
from melanoma.evaluation.evaluate import compare_runs, measure
from melanoma.report.figures import tsne_subset
from melanoma.report.page import PICTURES
from melanoma.scoring import ensemble, labelled
from melanoma.scoring.ensemble import Choices


@pytest.fixture(scope="module")
def evaluated(trained: Config, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict]:
    """An evaluation of the shared run, figures and all: read it, do not change it."""
    machine = dataclasses.replace(trained, graph_dir=tmp_path_factory.mktemp("graph"))
    return machine, predict.main(machine)


def test_every_figure_of_the_page_is_drawn(evaluated) -> None:
    machine, _ = evaluated
    for name in PICTURES:
        assert (machine.graph_dir / name).read_bytes().startswith(b"\x89PNG"), name


def test_the_page_shows_the_figures_and_numbers_of_the_evaluation(evaluated) -> None:
    machine, metrics = evaluated
    page = (machine.graph_dir / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == len(PICTURES)
    assert f"{metrics['n']} images" in page and f"{metrics['auc']:.3f}" in page
    assert "always benign" in page and "not a medical device" in page.lower()
    assert "lesions/train (split 'patient')" in html.unescape(page)


def test_the_learning_curves_are_of_all_epochs_whichever_was_the_best(evaluated, tmp_path, monkeypatch) -> None:
    machine, _ = evaluated
    drawn = []
    monkeypatch.setattr(predict, "learning_curves", lambda log, *_: drawn.extend(log))
    monkeypatch.setattr(predict, "draw_all", lambda *_: ({}, {}))
    predict.main(machine, metrics_file=tmp_path / "metrics.json")
    assert [entry["epoch"] for entry in drawn] == list(range(1, machine.epochs + 1))


def test_metrics_hold_subgroups_and_controls(evaluated) -> None:
    machine, metrics = evaluated
    assert json.loads((machine.run_dir / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    table = pd.read_csv(machine.run_dir / "predictions.csv")
    assert metrics["n_patients"] == metrics["n_groups"] == table["patient_id"].nunique()
    assert metrics["n_without_id"] == 0 and "auc_with_id" not in metrics
    sexes = [row for row in metrics["subgroups"] if row["attribute"] == "sex"]
    assert [(row["group"], row["n"]) for row in sexes] == [("female", len(table))]  # as conftest writes them
    tones = [row for row in metrics["subgroups"] if row["attribute"] == "skin tone (estimate)"]
    assert sum(row["n"] for row in tones) == len(table)


def test_a_control_sees_the_training_part_alone_and_is_compared_on_the_test_part(evaluated) -> None:
    """Melanomas of the fixture are dark: mean colour finds them all, metadata and image size, all alike, none."""
    _, metrics = evaluated
    controls = {row["name"]: row for row in metrics["controls"]}
    assert controls["always benign"]["auc"] == controls["metadata"]["auc"] == 0.5
    assert controls["image size"]["auc"] == 0.5


def test_over_a_few_patients_no_number_has_an_interval_and_no_control_is_beaten(evaluated) -> None:
    """The test part of the fixture has 6 patients, and melanomas of 2 or 3 of them."""
    machine, metrics = evaluated
    reason = metrics["not_computed"]["intervals"]
    assert reason.startswith("only 6 patients (groups), ")
    assert metrics["auc_interval"] is metrics["intervals"]["specificity"] is None
    assert {row["auc_interval"] for row in metrics["subgroups"]} == {None}
    for row in metrics["controls"]:
        assert row["beaten"] is row["auc_interval"] is None
        assert row["verdict"].startswith("not compared with ") and row["verdict"].endswith(f": {reason}")
    page = (machine.graph_dir / "report.html").read_text(encoding="utf-8")
    assert f"There are no intervals: {reason}." in page
    assert f"The network is not compared with the controls: {reason}." in page


def test_over_enough_patients_there_are_intervals_and_verdicts(
    trained: Config, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(predict, "draw_all", lambda *_: ({}, {}))
    monkeypatch.setattr(bootstrap, "LEAST_GROUPS", 6)
    monkeypatch.setattr(bootstrap, "LEAST_OF_CLASS", 1)
    metrics = predict.main(dataclasses.replace(trained, graph_dir=tmp_path), metrics_file=tmp_path / "metrics.json")
    assert "intervals" not in metrics["not_computed"]
    low, high = metrics["intervals"]["specificity"]
    assert low <= metrics["specificity"] <= high
    controls = {row["name"]: row for row in metrics["controls"]}
    assert controls["metadata"]["beaten"]
    assert "better than metadata alone: AUC" in controls["metadata"]["verdict"]
    assert controls["metadata"]["verdict"] in capsys.readouterr().out


# --- groups ---


def judged(n: int = 400, without_id: int = 0) -> pd.DataFrame:
    """Judged images, two of each patient; the last are without an id."""
    rng = np.random.default_rng(0)
    label = (rng.random(n) < 0.3).astype(int)
    table = pd.DataFrame(
        {
            "image_name": [f"i{i}" for i in range(n)],
            "patient_id": [f"IP_{i // 2}" for i in range(n)],
            "label": label,
            "probability": 1 / (1 + np.exp(-rng.normal(size=n) - label)),
            "threshold": 0.6,
            "specific_threshold": 0.7,
        }
    )
    last = np.arange(n) >= n - without_id
    table["patient_id"] = table["patient_id"].mask(last, "")
    return table.assign(group=table["patient_id"].mask(last, "image:" + table["image_name"]))


def test_where_every_image_has_a_patient_the_draws_are_over_patients() -> None:
    table = judged()
    metrics = measure(table, np.random.default_rng(0))
    labels, scores, groups = (table[name].to_numpy() for name in ("label", "probability", "patient_id"))
    assert metrics["auc_interval"] == auc_interval(labels, scores, groups, np.random.default_rng(0))
    assert [metrics[key] for key in ("n_patients", "n_groups", "n_without_id")] == [200, 200, 0]
    assert "auc_with_id" not in metrics and metrics["not_computed"] == {}


def test_images_of_a_lesion_without_a_patient_are_drawn_together() -> None:
    table = judged().assign(patient_id="")
    table["group"] = [f"lesion_id:{i // 4}" for i in range(400)]
    metrics = measure(table, np.random.default_rng(0))
    labels, scores, groups = (table[name].to_numpy() for name in ("label", "probability", "group"))
    assert metrics["auc_interval"] == auc_interval(labels, scores, groups, np.random.default_rng(0))
    assert [metrics[key] for key in ("n_patients", "n_groups", "n_without_id")] == [0, 100, 0]
    assert "auc_with_id" not in metrics


def test_images_without_an_id_are_counted_and_the_auc_of_the_others_is_reported() -> None:
    table = judged(without_id=120)
    metrics = measure(table, np.random.default_rng(0))
    assert [metrics[key] for key in ("n_patients", "n_groups", "n_without_id")] == [140, 260, 120]
    known = measure(table.iloc[:280], np.random.default_rng(0))
    own = metrics["auc_with_id"]
    assert (own["n"], own["n_melanoma"], own["auc"]) == (280, table["label"][:280].sum(), known["auc"])
    assert own["auc_interval"] == pytest.approx(known["auc_interval"], abs=0.01)
    assert own["auc_interval"][0] < own["auc"] < own["auc_interval"][1]
    none = measure(judged(without_id=400), np.random.default_rng(0))
    assert [none[key] for key in ("n_patients", "n_groups", "n_without_id")] == [0, 400, 400]
    assert "auc_with_id" not in none


def test_the_auc_of_images_with_an_id_says_why_it_is_missing() -> None:
    table = judged(without_id=120)
    table.loc[:279, "label"] = 0
    metrics = measure(table, np.random.default_rng(0))
    assert metrics["auc_with_id"] == {"auc": None, "auc_interval": None, "n": 280, "n_melanoma": 0}
    assert metrics["not_computed"] == {"auc_with_id": "there is no melanoma among 280 images"}
    few = judged(without_id=382)
    metrics = measure(few, np.random.default_rng(0))
    assert metrics["auc_with_id"]["auc"] > 0.5 and metrics["auc_with_id"]["auc_interval"] is None
    assert metrics["not_computed"]["auc_with_id"].startswith("only 9 patients (groups), ")
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


@pytest.mark.parametrize("n", [1, 9, 10])
def test_an_evaluation_needs_ten_patients_for_intervals(n: int) -> None:
    table = judged().assign(patient_id=[f"IP_{i % n}" for i in range(400)], fold=np.arange(400) // 200)
    table["group"] = table["patient_id"]
    metrics = measure(table, np.random.default_rng(0))
    other = table.assign(probability=table["probability"] * np.random.default_rng(1).random(400))
    compared = compare_runs([table, other], ["a", "b"], np.random.default_rng(0))
    found = [metrics["auc_interval"], compared["interval"], *(row["auc_interval"] for row in metrics["folds"])]
    reason = f"only {n} patients (groups), {n} with a melanoma and {n} with a benign lesion: "
    reason += "an interval needs 10, 5 and 5"
    if n == 10:
        assert None not in found
        assert "intervals" not in metrics["not_computed"] and compared["not_computed"] is None
    else:
        assert set(found) == {None}
        assert metrics["not_computed"]["intervals"] == compared["not_computed"] == reason
        assert [row["note"] for row in metrics["folds"]] == [reason, reason]


def test_figures_that_cannot_be_drawn_are_removed_and_the_reason_is_told(
    evaluated, lesion_folder: Path, tmp_path: Path
) -> None:
    machine = dataclasses.replace(evaluated[0], graph_dir=tmp_path)
    (tmp_path / "ROC_curve.png").write_bytes(b"of an earlier evaluation")
    labels = pd.read_csv(lesion_folder / "train.csv", dtype=str, keep_default_na=False)
    benign = tmp_path / "benign.csv"
    labels[labels["target"] == "0"].to_csv(benign, index=False)
    split = pd.read_csv(machine.run_dir / "split.csv")
    tested = split[(split["part"] == "test") & (split["label"] == 0)]
    metrics = predict.main(machine, (), lesion_folder / "train", benign)
    assert metrics["n"] == len(tested)  # of the others the network knows the answer
    assert metrics["notes"][0].startswith(f"{48 - len(tested)} images are left out, since a run was trained")
    assert metrics["notes"][0] in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert metrics["auc"] is None and metrics["sensitivity"] is None and metrics["auc_interval"] is None
    assert 0 <= metrics["specificity"] <= 1
    assert (tmp_path / "Confusion_matrix.png").is_file() and not (tmp_path / "ROC_curve.png").exists()
    assert metrics["not_computed"]["ROC_curve.png"] == metrics["not_computed"]["auc"]
    assert "no melanoma" in metrics["not_computed"]["auc"] and "controls" in metrics["not_computed"]
    assert metrics["not_computed"]["auc"] in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_images_that_a_run_knows_are_left_out_and_those_of_its_patients_counted(
    trained: Config, lesion_folder: Path, tmp_path: Path
) -> None:
    ensembles = predict.load_ensembles(trained, [trained.run_dir])
    table = ensembles[0].lesions
    assert table is not None
    known = table[table["part"] != "test"]
    new = table[table["part"] == "test"]
    stranger = pd.DataFrame({"image_name": ["x"], "patient_id": [known["patient_id"].iloc[0]], "label": [0]})
    renamed = known.iloc[:3].assign(image_name=["r0", "r1", "r2"], patient_id="")
    lesions = pd.concat([table, stranger, renamed], ignore_index=True)
    images, names = lesion_folder / "train", lesions["image_name"]
    new_pixels = tmp_path / "x.jpg"
    Image.new("RGB", (64, 64), (9, 99, 199)).save(new_pixels)
    paths = {name: images / f"{name}.jpg" for name in table["image_name"]}
    paths |= {"x": new_pixels, **{f"r{i}": images / f"{name}.jpg" for i, name in enumerate(known["image_name"][:3])}}
    feeds, _ = ensemble.decode_all(ensembles, paths, lambda own, size: decode_photos(own, size))
    assert ensemble.known_pictures(ensembles, feeds, names.tolist()).sum() == len(known) + 3
    left, notes = labelled.new_to_all(ensembles, lesions, feeds)
    assert left["image_name"].tolist() == [*new["image_name"], "x"]
    assert notes[0].startswith(f"{len(known) + 3} images are left out") and known["image_name"].iloc[0] in notes[0]
    assert f": {len(known) + 3} by their pixels, the others by their names" in notes[0]
    assert notes[1].startswith("1 images are of patients")
    assert labelled.new_to_all(ensembles, new, feeds)[1] == []
    # a name that two sources had was stored with its source
    twice = table.assign(image_name=table["source"] + ":" + table["image_name"])
    [run] = ensembles[0].runs
    prefixed = dataclasses.replace(ensembles[0], runs=[dataclasses.replace(run, lesions=twice, known=frozenset())])
    assert labelled.new_to_all([prefixed], table, feeds)[0]["image_name"].tolist() == new["image_name"].tolist()
    known.rename(columns={"label": "target"}).to_csv(tmp_path / "known.csv", index=False)
    with pytest.raises(InputError, match=r"has nothing to judge: 48 images are left out"):
        labels = read_labels(tmp_path / "known.csv")
        labelled.score_folder(ensembles, lesion_folder / "train", labels, partial(predict.decode, trained))


@pytest.fixture
def earlier(trained: Config, tmp_path: Path) -> Config:
    """The run as an earlier version left it, without model.pt, on a machine with a graph folder of its own."""
    run_dir = Path(shutil.copytree(trained.run_dir, tmp_path / "earlier"))
    (run_dir / "model.pt").unlink()
    return dataclasses.replace(trained, run_dir=run_dir, graph_dir=tmp_path)


@pytest.mark.parametrize("labels", ["gone", "bare"])
def test_a_checkpoint_whose_labels_lack_age_sex_and_site_can_be_evaluated(
    earlier: Config, tmp_path: Path, monkeypatch, labels: str
) -> None:
    monkeypatch.setattr(predict, "draw_all", lambda *_: ({}, {}))
    table = pd.read_csv(earlier.train_labels[0], dtype=str, keep_default_na=False)
    table[["image_name", "patient_id", "target"]].to_csv(tmp_path / "bare.csv", index=False)
    metrics = predict.main(dataclasses.replace(earlier, train_labels=(tmp_path / f"{labels}.csv",)))
    groups = {(row["attribute"], row["group"]): row["n"] for row in metrics["subgroups"]}
    assert [groups[name, "unknown"] for name in ("sex", "age", "site")] == [12, 12, 12]
    notes = {row["name"]: row["note"] for row in metrics["controls"]}
    assert notes["metadata"].startswith("metadata gives all images the same score; only 6 patients (groups), ")


def test_a_run_and_its_checkpoint_alone_give_the_same_metrics(earlier: Config, trained: Config, tmp_path: Path) -> None:
    found = [
        predict.main(dataclasses.replace(trained, run_dir=run_dir, graph_dir=tmp_path / run_dir.name))
        for run_dir in (earlier.run_dir, trained.run_dir)
    ]
    for metrics in found:
        metrics.pop("test_evaluations")
        metrics.pop("origin")
        metrics["runs"][0].pop("run_dir")
    assert found[0] == found[1]


def test_figures_of_one_of_several_runs_name_it(trained: Config, tmp_path: Path, monkeypatch) -> None:
    titles = {}

    def save_drawn(drawn, *_):
        titles.update({name: "".join(titles_of(own)) for name, own in drawn.items() if own})
        return {}

    monkeypatch.setattr(predict, "save_drawn", save_drawn)
    twin = Path(shutil.copytree(trained.run_dir, tmp_path / "twin"))
    predict.main(dataclasses.replace(trained, graph_dir=tmp_path), [twin, trained.run_dir])
    for name in ("t_SNE.png", "Pair_distances.png", "Train_average_loss.png"):
        assert "twin alone" in titles[name], name
    assert "alone" not in titles["ROC_curve.png"]
    for title in titles.values():
        assert "2 runs twin, run · recipe baseline · data lesions/train · 20" in title


def test_a_bad_label_file_is_told_before_anything_is_scored(trained: Config, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "bad.csv").write_text("lesion,target\n")
    monkeypatch.setattr(predict, "load_ensembles", lambda *_: pytest.fail("scored first"))
    with pytest.raises(InputError, match="has no column of image names"):
        predict.main(trained, evaluate_image=trained.train_image[0], evaluate_labels=tmp_path / "bad.csv")


def test_a_figure_that_fails_loses_no_number(trained: Config, tmp_path: Path, monkeypatch) -> None:
    def fail(*_):
        raise RuntimeError("out of paint")

    monkeypatch.setattr(predict, "draw_all", fail)
    machine = dataclasses.replace(trained, graph_dir=tmp_path)
    with pytest.raises(RuntimeError, match="out of paint"):
        predict.main(machine, metrics_file=tmp_path / "metrics.json")
    assert json.loads((tmp_path / "metrics.json").read_text())["auc"] > 0.5


def predict_part(config: Config) -> labelled.Scored:
    """Return the judgement of a run's test part."""
    files = partial(predict.find_lesions, config), partial(predict.decode, config)
    return labelled.score_part(predict.load_ensembles(config, [config.run_dir]), *files)


def test_a_run_and_an_ensemble_are_compared_on_the_same_images(trained: Config, tmp_path: Path, monkeypatch) -> None:
    tables = [predict_part(trained).table for _ in range(2)]
    rng = np.random.default_rng(0)
    tables[1] = tables[1].assign(probability=rng.random(len(tables[1]))).sample(frac=1, random_state=0)
    no_images = cache_of(np.empty((0, 1, 1, 3), np.uint8))
    given = iter([labelled.Scored(table, np.empty((0, 2)), no_images) for table in tables])
    monkeypatch.setattr(predict, "score_part", lambda *_: next(given))
    machine = dataclasses.replace(trained, graph_dir=tmp_path)
    found = predict.compare(machine, [], [trained.run_dir, trained.run_dir])
    first, second = (table.sort_values("image_name") for table in tables)
    expected = compare(
        first["label"].to_numpy(),
        first["probability"].to_numpy(),
        second["probability"].to_numpy(),
        first["group"].to_numpy(),
        np.random.default_rng(0),
    )
    two = f"{trained.run_dir}, {trained.run_dir}"
    assert found == {"a": str(trained.run_dir), "b": two, "n": len(first), **expected}
    assert json.loads((tmp_path / "comparison.json").read_text())["difference"] == found["difference"] > 0


def test_runs_of_different_images_are_not_compared(trained: Config, tmp_path: Path, monkeypatch) -> None:
    scored = predict_part(trained)
    given = iter([scored, dataclasses.replace(scored, table=scored.table.iloc[1:])])
    monkeypatch.setattr(predict, "score_part", lambda *_: next(given))
    with pytest.raises(InputError, match="--compare: the two have not judged the same images"):
        predict.compare(trained, [trained.run_dir], [trained.run_dir])


def test_the_runs_to_compare_with_come_from_the_command_line(trained: Config, monkeypatch, capsys) -> None:
    asked = []
    monkeypatch.setattr(predict, "compare", lambda machine, *others: asked.append(others))
    monkeypatch.setattr(sys, "argv", ["predict.py", "--run-dir", "a", "--compare", "b", "c", "--scorer", "nearest"])
    predict.run()
    a, b, c = (Path(name).absolute() for name in "abc")
    assert asked == [([a], [b, c], Choices(scorer="nearest"))]
    file = str(trained.run_dir / "best.pt")
    monkeypatch.setattr(sys, "argv", ["predict.py", "--compare", file])
    with pytest.raises(SystemExit):
        predict.run()
    assert f"--compare {file} is a file: it takes run folders" in capsys.readouterr().err


def test_tsne_subset_keeps_every_melanoma() -> None:
    labels = (np.arange(1000) % 50 == 0).astype(int)
    kept = tsne_subset(labels, 100, np.random.default_rng(0))
    assert len(kept) == 100 and np.all(np.diff(kept) > 0)
    assert labels[kept].sum() == labels.sum()
    assert len(tsne_subset(labels, 5000, np.random.default_rng(0))) == 1000


def test_the_threshold_for_a_specificity_that_validation_chose_has_its_rates_on_the_test_part() -> None:
    labels = np.array([0] * 6 + [1] * 4)
    table = pd.DataFrame({"label": labels, "probability": [0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.3, 0.5, 0.7, 0.9]})
    table = table.assign(threshold=0.5, specific_threshold=[0.65] * 5 + [0.85] * 5)  # each fold has its own
    table["patient_id"] = table["group"] = [f"p{i}" for i in range(10)]
    found = measure(table, np.random.default_rng(0))["at_specific_threshold"]
    assert (found["sensitivity"]["hits"], found["sensitivity"]["of"]) == (1, 4)
    assert (found["specificity"]["hits"], found["specificity"]["of"]) == (6, 6)
