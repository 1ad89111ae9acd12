"""predict.py: what is scored, where the threshold comes from, what is written, and refusals."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import HEADER, another_folder, feed_of, quick_config
from PIL import Image
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, roc_auc_score

import predict
import train
from config import Config
from melanoma.common.errors import InputError
from melanoma.data.labels import read_labels
from melanoma.scoring import ensemble, scores
from melanoma.scoring.embedding import embed_images
from melanoma.scoring.ensemble import Choices
from melanoma.scoring.scores import Platt, choose_threshold, score_all
from melanoma.training import run_folder

pytestmark = pytest.mark.usefixtures("lean_evaluation")

COLUMNS = ["image_name", "source", "patient_id", "group", "label"]
COLUMNS += ["score", "probability", "threshold", "predicted", "specific_threshold"]


@pytest.fixture
def machine(trained: Config, tmp_path: Path) -> Config:
    """What config.py holds when predict.py runs: paths, and another experiment that must not matter."""
    return dataclasses.replace(trained, graph_dir=tmp_path / "graph", margin=3.0, image_size=256)


def predictions_of(config: Config, name: str = "predictions.csv") -> pd.DataFrame:
    return pd.read_csv(config.run_dir / name, keep_default_na=False)


def test_the_test_part_is_scored_and_nothing_else(machine: Config) -> None:
    predict.main(machine)
    table = run_folder.read_split(machine.run_dir)
    test = table[table["part"] == "test"]
    predictions = predictions_of(machine)
    assert list(predictions) == [*COLUMNS, "fold"]
    assert set(predictions["fold"]) == {0}
    assert predictions["image_name"].tolist() == test["image_name"].tolist()
    assert predictions["label"].tolist() == test["label"].tolist()
    assert predictions["patient_id"].tolist() == predictions["group"].tolist() == test["patient_id"].tolist()
    assert set(predictions["source"]) == {"train"}


@pytest.fixture
def own_run(machine: Config, tmp_path: Path) -> Config:
    """The machine with a copy of the run, to count its evaluations."""
    run_dir = Path(shutil.copytree(machine.run_dir, tmp_path / "own"))
    for path in run_dir.glob("*predictions.csv"):
        path.unlink()
    (run_dir / "evaluations.jsonl").unlink(missing_ok=True)
    return dataclasses.replace(machine, run_dir=run_dir)


def test_the_validation_part_can_be_evaluated_and_leaves_the_test_part_alone(own_run: Config) -> None:
    machine = own_run
    metrics = predict.main(machine, part="validation")
    table = run_folder.read_split(machine.run_dir)
    expected = table.loc[table["part"] == "validation", "image_name"].tolist()
    assert predictions_of(machine, "validation_predictions.csv")["image_name"].tolist() == expected
    assert metrics["set"] == "validation" and "chosen on this part" in metrics["notes"][-1]
    assert "test_evaluations" not in metrics and not (machine.run_dir / "evaluations.jsonl").exists()
    assert (machine.run_dir / "validation_metrics.json").is_file()
    assert not (machine.run_dir / "predictions.csv").exists()


def test_evaluations_of_the_test_part_are_counted_with_their_choices(own_run: Config) -> None:
    machine = own_run
    assert predict.main(machine)["test_evaluations"] == [dataclasses.asdict(Choices())]
    other = Choices(min_sensitivity=0.9)
    found = predict.main(machine, choices=other)["test_evaluations"]
    assert found == [dataclasses.asdict(Choices()), dataclasses.asdict(other)]


def test_metrics_are_those_of_the_predictions(machine: Config) -> None:
    returned = predict.main(machine)
    metrics = json.loads((machine.run_dir / "metrics.json").read_text())
    predictions = predictions_of(machine)
    label, score = predictions["label"], predictions["probability"]
    assert metrics["auc"] == pytest.approx(roc_auc_score(label, score)) and metrics["auc"] > 0.95
    assert metrics["average_precision"] == pytest.approx(average_precision_score(label, score))
    assert predictions["predicted"].tolist() == (score >= predictions["threshold"]).astype(int).tolist()
    assert metrics["threshold"] == pytest.approx(predictions["threshold"].iloc[0])
    assert metrics["counts"]["tp"] == int(((predictions["predicted"] == 1) & (label == 1)).sum())
    assert sum(metrics["counts"].values()) == metrics["n"] == len(predictions)
    assert metrics["auc_interval"] is None and "only 6 patients" in metrics["not_computed"]["intervals"]
    assert json.loads(json.dumps(returned)) == metrics


def test_threshold_is_chosen_on_validation(machine: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def choose(labels, scores, min_sensitivity):
        chosen.append((labels, choose_threshold(labels, scores, min_sensitivity)))
        return chosen[-1][1]

    monkeypatch.setattr(scores, "choose_threshold", choose)
    metrics = predict.main(machine)
    (labels, threshold), (flipped, specific) = chosen
    assert flipped.tolist() == (1 - labels).tolist()  # the second is chosen for the specificity
    np.testing.assert_allclose(predictions_of(machine)["specific_threshold"], -specific, rtol=1e-15)
    table = run_folder.read_split(machine.run_dir)
    assert labels.tolist() == table.loc[table["part"] == "validation", "label"].tolist()
    assert metrics["threshold"] == pytest.approx(threshold)
    np.testing.assert_allclose(predictions_of(machine)["threshold"], threshold, rtol=1e-15)


def test_references_are_the_training_part(machine: Config) -> None:
    run = predict.load_run(machine)
    train = run.part("train")
    assert run.references.shape == (len(train), machine.embedding_dim)
    assert run.reference_labels.tolist() == train["label"].tolist()


def test_experiment_comes_from_the_checkpoint_and_paths_from_config(machine: Config, trained: Config) -> None:
    run = predict.load_run(machine)
    assert (run.settings["margin"], run.image_size) == (trained.margin, trained.image_size)
    assert "graph_dir" not in run.settings


def test_min_sensitivity_lowers_the_threshold_until_the_share_is_found(machine: Config) -> None:
    usual = predict.main(machine)
    everything = predict.main(machine, choices=Choices(min_sensitivity=1.0))
    assert everything["threshold"] <= usual["threshold"]


def test_predicting_twice_gives_the_same_files(machine: Config) -> None:
    texts = []
    for _ in range(2):
        predict.main(machine)
        metrics = json.loads((machine.run_dir / "metrics.json").read_text())
        texts.append(
            [(machine.run_dir / "predictions.csv").read_bytes(), len(metrics.pop("test_evaluations")), metrics]
        )
    assert texts[0][::2] == texts[1][::2]
    assert texts[1][1] == texts[0][1] + 1


def test_another_labelled_folder_is_judged_with_the_runs_threshold(
    machine: Config, lesion_folder: Path, tmp_path: Path
) -> None:
    usual = predict.main(machine)
    before = (machine.run_dir / "predictions.csv").read_bytes()
    file = tmp_path / "deep" / "figures.json"
    images, labels = another_folder(lesion_folder / "train", lesion_folder / "train.csv", tmp_path / "other")
    metrics = predict.main(machine, evaluate_image=images, evaluate_labels=labels, metrics_file=file)
    assert metrics["threshold"] == pytest.approx(usual["threshold"], rel=1e-9)
    assert metrics["n"] == len(read_labels(lesion_folder / "train.csv").table)
    assert json.loads(file.read_text())["n"] == metrics["n"]
    assert len(predictions_of(machine, "evaluate_predictions.csv")) == metrics["n"]
    assert (machine.run_dir / "predictions.csv").read_bytes() == before


def test_a_list_of_duplicates_that_is_not_there_is_told(machine: Config, lesion_folder: Path, tmp_path: Path) -> None:
    other = another_folder(lesion_folder / "train", lesion_folder / "train.csv", tmp_path / "other")
    with pytest.raises(InputError, match=r"duplicates .*pairs\.csv does not exist: .* --duplicates"):
        predict.main(dataclasses.replace(machine, duplicates=tmp_path / "pairs.csv"), (), *other)


def test_a_checkpoint_of_class_folders_is_evaluated(quick: Config, lesion_folder: Path, tmp_path: Path) -> None:
    found = read_labels(lesion_folder / "train.csv").table
    for name, label in zip(found["image_name"], found["label"], strict=True):
        place = tmp_path / "classes" / ("nevus", "melanoma")[label] / f"{name}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(lesion_folder / "train" / place.name, place)
    config = dataclasses.replace(quick, train_image=(tmp_path / "classes",), train_labels=(), epochs=1)
    train.main(config)
    (config.run_dir / "model.pt").unlink()
    assert predict.main(config)["n"] == len(predictions_of(config))


def test_a_run_whose_scores_are_not_finite_is_named(machine: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ensemble.embed_images

    def embed(*arguments):
        embeddings, logits = real(*arguments)
        return np.where(np.arange(len(embeddings))[:, None] == 0, np.nan, embeddings), logits

    monkeypatch.setattr(ensemble, "embed_images", embed)
    with pytest.raises(InputError, match=f"scores of {machine.run_dir} are not finite"):
        predict.main(machine)


def test_missing_images_of_the_run_are_named(machine: Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lacks \d+ images of the run"):
        predict.main(dataclasses.replace(machine, train_image=(tmp_path / "empty",)))


def test_no_checkpoint_and_a_checkpoint_of_another_shape_are_refused(machine: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint .*best\.pt: run train\.py first"):
        predict.main(dataclasses.replace(machine, run_dir=tmp_path / "nowhere"))
    other = checkpoint_alone(machine, tmp_path / "other", embedding_dim=machine.embedding_dim + 1)
    with pytest.raises(InputError, match="does not fit"):
        predict.main(dataclasses.replace(machine, run_dir=other))


# --- several runs, and what is chosen ---


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Config]:
    """Runs on lesions that overlap in brightness: `first`, `second` (with a head) and `turned` (validated by fold 3) of
    fold 0, `other` of fold 1, `final`, which no fold tests."""
    folder = tmp_path_factory.mktemp("overlapping")
    (folder / "train").mkdir()
    rng, rows = np.random.default_rng(0), [HEADER]
    for i in range(150):
        melanoma = i % 4 == 0
        pixels = rng.integers(0, 60, (32, 32, 3)) + rng.normal(85 if melanoma else 115, 25)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "train" / f"L{i:03d}.jpg")
        verdict = "melanoma,malignant,1" if melanoma else "nevus,benign,0"
        rows.append(f"L{i:03d},IP_{i % 50:07d},female,45,torso,{verdict}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    first = quick_config(folder, epochs=2, embedding_dim=8, run_dir=folder / "first")
    configs = {
        "first": first,
        "second": dataclasses.replace(first, seed=1, head="bce", run_dir=folder / "second"),
        "other": dataclasses.replace(first, fold=1, run_dir=folder / "other"),
        "turned": dataclasses.replace(first, validation_fold=3, run_dir=folder / "turned"),
        "final": dataclasses.replace(first, fold=None, run_dir=folder / "final"),
    }
    for config in configs.values():
        train.main(config)
    return configs


def dirs(runs: dict[str, Config], *names: str) -> list[Path]:
    return [runs[name].run_dir for name in names]


@pytest.fixture
def here(runs: dict[str, Config], tmp_path: Path) -> Config:
    """The machine, with a folder of one's own for the results of several runs."""
    return dataclasses.replace(runs["first"], graph_dir=tmp_path / "graph", run_dir=tmp_path / "nowhere")


def checkpoint_alone(config: Config, to: Path, **settings: Any) -> Path:
    """Copy a run without its model.pt, as a training that was stopped leaves it, with other settings in best.pt."""
    shutil.copytree(config.run_dir, to)
    (to / "model.pt").unlink()
    contents = run_folder.load_checkpoint(to / "best.pt")
    contents["config"] |= settings
    run_folder.save_checkpoint(to / "best.pt", contents)
    return to


def scores_by_hand(config: Config, part: str, views: int = 1) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels of a part of a run and its scores by each scorer."""
    run = predict.load_run(config)
    feed, own, references = feed_of(config, run), run.part(part), run.part("train")
    (embeddings, logits), (reference_embeddings, _) = (
        embed_images(run.network, feed, feed.cache.rows(table["image_name"]), torch.float32, count)
        for table, count in ((own, views), (references, 1))
    )
    head = logits if config.head != "none" else None
    return own["label"].to_numpy(), score_all(embeddings, head, reference_embeddings, references["label"].to_numpy())


def best_by_hand(config: Config) -> tuple[str, Platt]:
    labels, scores = scores_by_hand(config, "validation")
    best = "head" if config.head != "none" else "neighbours"
    return best, Platt.fit(labels, scores[best])


def test_the_runs_are_neither_blind_nor_perfect(runs, here):
    for name in sorted(set(runs) - {"final"}):
        metrics = predict.main(here, dirs(runs, name))
        assert 0.6 < metrics["auc"] < 0.98, name  # else the tests below would show nothing


def test_two_runs_of_one_split_judge_by_the_mean_of_their_log_odds(runs, here):
    metrics = predict.main(here, dirs(runs, "first", "second"))
    means = {}
    for part in ("validation", "test"):
        log_odds = []
        for name in ("first", "second"):
            best, curve = best_by_hand(runs[name])
            labels, scores = scores_by_hand(runs[name], part)
            log_odds.append(curve.slope * scores[best] + curve.intercept)
        means[part] = (labels, (log_odds[0] + log_odds[1]) / 2)
    curve = Platt.fit(*means["validation"])
    probability = {part: expit(curve.log_odds(mean)) for part, (_, mean) in means.items()}
    threshold = choose_threshold(means["validation"][0], probability["validation"])

    predictions = pd.read_csv(here.graph_dir / "predictions.csv")
    np.testing.assert_allclose(predictions["score"], means["test"][1], rtol=1e-6)
    np.testing.assert_allclose(predictions["probability"], probability["test"], rtol=1e-6)
    assert predictions["label"].tolist() == means["test"][0].tolist()
    assert metrics["threshold"] == pytest.approx(threshold)
    np.testing.assert_allclose(predictions["threshold"], threshold)
    assert [run["run_dir"] for run in metrics["runs"]] == list(map(str, dirs(runs, "first", "second")))
    assert [run["scorer"] for run in metrics["runs"]] == [best_by_hand(runs[name])[0] for name in ("first", "second")]
    alone = [predict.main(here, dirs(runs, name))["auc"] for name in ("first", "second")]
    assert metrics["auc"] not in alone


def test_runs_that_other_folds_validate_judge_together_by_what_none_of_them_has_learnt(runs, here):
    metrics = predict.main(here, dirs(runs, "first", "turned"))
    validation, test = [], []
    for name in ("first", "turned"):
        best, curve = best_by_hand(runs[name])
        labels, scores = scores_by_hand(runs[name], "validation")
        validation.append(pd.DataFrame({"label": labels, "score": curve.log_odds(scores[best])}))
        labels, scores = scores_by_hand(runs[name], "test")
        test.append(curve.log_odds(scores[best]))
    both = pd.concat(validation)
    curve = Platt.fit(both["label"].to_numpy(), both["score"].to_numpy())
    probability = expit(curve.log_odds((test[0] + test[1]) / 2))
    predictions = pd.read_csv(here.graph_dir / "predictions.csv")
    np.testing.assert_allclose(predictions["probability"], probability, rtol=1e-6)
    assert predictions["label"].tolist() == labels.tolist()
    threshold = choose_threshold(both["label"].to_numpy(), expit(curve.log_odds(both["score"].to_numpy())))
    assert metrics["threshold"] == pytest.approx(threshold)
    assert [(run["fold"], run["validation_fold"]) for run in metrics["runs"]] == [(0, 1), (0, 3)]


def test_an_image_that_several_runs_have_for_validation_is_judged_by_the_mean_of_these(runs, here):
    names = ("first", "turned", "second")
    of_three = ensemble.make_ensemble([predict.load_run(runs[name]) for name in names])
    log_odds = []
    for name in names:
        best, curve = best_by_hand(runs[name])
        table = run_folder.read_split(runs[name].run_dir)
        own = table.loc[table["part"] == "validation", "image_name"]
        _, scores = scores_by_hand(runs[name], "validation")
        log_odds.append(pd.Series(curve.log_odds(scores[best]), own))
    once = log_odds[0].add(log_odds[2]) / 2  # of the fold that validates two of them
    both = pd.concat([once, log_odds[1]])
    truth = table.set_index("image_name")["label"][both.index].astype(int)
    expected = Platt.fit(truth.to_numpy(), both.to_numpy())
    assert of_three.judge.platt.slope == pytest.approx(expected.slope, rel=1e-4)
    assert of_three.judge.platt.intercept == pytest.approx(expected.intercept, rel=1e-4)


def test_controls_learn_on_all_that_an_ensemble_has_learnt_from(runs, here):
    table = ensemble.make_ensemble([predict.load_run(runs[name]) for name in ("first", "turned")]).lesions
    assert table is not None
    parts = [run_folder.read_split(runs[name].run_dir)["part"] for name in ("first", "turned")]
    assert (table["part"] == "train").tolist() == ((parts[0] == "train") | (parts[1] == "train")).tolist()
    assert (table["part"] == "test").tolist() == (parts[0] == "test").tolist()
    assert (table["part"] == "validation").sum() == 0
    predict.main(here, dirs(runs, "first", "turned"))
    page = (here.graph_dir / "report.html").read_text()
    assert f"fold 0: {(table['part'] == 'train').sum():,} images" in page


def test_a_mean_does_not_depend_on_the_order_of_the_runs(runs, here):
    tables = []
    for names in (("first", "second"), ("second", "first")):
        predict.main(here, dirs(runs, *names))
        tables.append(pd.read_csv(here.graph_dir / "predictions.csv"))
    pd.testing.assert_frame_equal(*tables)


def test_folds_are_pooled_each_judging_its_own_test_part(runs, here):
    alone = []
    for name in ("first", "other"):
        predict.main(here, dirs(runs, name))
        alone.append(pd.read_csv(runs[name].run_dir / "predictions.csv"))
    before = [(path / "predictions.csv").read_bytes() for path in dirs(runs, "first", "other")]
    metrics = predict.main(here, dirs(runs, "first", "other"))
    pooled = pd.read_csv(here.graph_dir / "predictions.csv")
    pd.testing.assert_frame_equal(pooled, pd.concat(alone, ignore_index=True))
    assert pooled["image_name"].is_unique
    assert sorted(set(pooled["fold"])) == [0, 1]
    assert set(pooled.groupby("fold")["threshold"].nunique()) == {1}
    assert pooled["threshold"].nunique() == 2  # a threshold of one's own to each fold
    assert metrics["n"] == len(pooled)
    assert metrics["auc"] == pytest.approx(roc_auc_score(pooled["label"], pooled["probability"]))
    assert metrics["counts"]["tp"] == int(((pooled["predicted"] == 1) & (pooled["label"] == 1)).sum())
    assert before == [(path / "predictions.csv").read_bytes() for path in dirs(runs, "first", "other")]
    assert json.loads((here.graph_dir / "metrics.json").read_text())["n"] == len(pooled)


def test_a_run_that_no_fold_tests_is_evaluated_on_validation_and_other_images_alone(runs, here, capsys):
    final = runs["final"].run_dir
    parts = run_folder.read_split(final)["part"]
    assert set(parts) == {"train", "validation"}
    assert (run_folder.read_split(runs["other"].run_dir)["part"] == "train").sum() < (parts == "train").sum()
    with pytest.raises(InputError, match=r"has no test part \(--fold none leaves none to test\)"):
        predict.main(here, [final])
    assert predict.main(here, [final], part="validation")["n"] == (parts == "validation").sum()
    assert "no fold tested: " in capsys.readouterr().out
    assert f"no fold tested: {(parts == 'train').sum():,} images" in (here.graph_dir / "report.html").read_text()
    photo = sorted(runs["final"].train_image[0].iterdir())[0]
    assert len(predict.judge_photos(here, [final], [photo])) == 1


def test_averaged_runs_of_one_fold_are_pooled_with_another_fold(runs, here):
    predict.main(here, dirs(runs, "first", "second"))
    averaged = pd.read_csv(here.graph_dir / "predictions.csv")
    metrics = predict.main(here, dirs(runs, "first", "other", "second"))
    pooled = pd.read_csv(here.graph_dir / "predictions.csv")
    pd.testing.assert_frame_equal(pooled[pooled["fold"] == 0].reset_index(drop=True), averaged)
    assert [run["fold"] for run in metrics["runs"]] == [0, 0, 1]


def test_splits_whose_test_parts_overlap_are_not_pooled(runs, here, tmp_path):
    moved = checkpoint_alone(runs["first"], tmp_path / "moved")
    table = pd.read_csv(moved / "split.csv", dtype=str)
    names = table.index[(table["part"] == "test") & (table["label"] == "0")]
    table.loc[names[0], "part"] = "train"
    table.to_csv(moved / "split.csv", index=False)
    shared = int((table["part"] == "test").sum())
    with pytest.raises(InputError, match=rf"different splits, whose test parts share {shared} images: pool the folds"):
        predict.main(here, [runs["first"].run_dir, moved])


def test_the_scorer_asked_for_is_taken_if_the_run_has_it(runs, here):
    labels, scores = scores_by_hand(runs["second"], "test")
    for scorer in ("prototype", "neighbours", "head"):
        metrics = predict.main(here, dirs(runs, "second"), choices=Choices(scorer=scorer))
        assert [run["scorer"] for run in metrics["runs"]] == [scorer]
        assert metrics["auc"] == pytest.approx(roc_auc_score(labels, scores[scorer]))
    message = r"--scorer head: .*first has only distance, nearest, neighbours, prototype$"
    for names in (["first"], ["second", "first"]):
        with pytest.raises(InputError, match=message):
            predict.main(here, dirs(runs, *names), choices=Choices(scorer="head"))


def test_how_an_evaluation_was_made_stands_with_its_figures(runs, here):
    choices = Choices(prevalence=0.02, scorer="head")
    metrics = predict.main(here, dirs(runs, "second"), choices=choices)
    log = [json.loads(line) for line in (runs["second"].run_dir / "log.jsonl").read_text().splitlines()]
    assert metrics["choices"] == dataclasses.asdict(choices)
    assert log[metrics["runs"][0]["epoch"] - 1]["val_auc"] == max(entry["val_auc"] for entry in log)
    assert "for a prevalence of 2 %" in metrics["notes"][0]
    page = html.unescape((here.graph_dir / "report.html").read_text(encoding="utf-8"))
    assert "judged by the classification head's logit; a logistic curve fitted on validation" in page
    assert "makes the score a probability, moved to a prevalence of 2 %." in page
    assert metrics["notes"][0] in page and "<h3>Options of the evaluation</h3>" in page

    metrics = predict.main(here, dirs(runs, "first", "second"), choices=Choices(scorer="distance"))
    assert metrics["notes"] == []
    page = html.unescape((here.graph_dir / "report.html").read_text(encoding="utf-8"))
    assert "judged by where it lies among the training lesions, and of several runs' log odds the mean" in page
    assert "a logistic curve fitted on validation makes the score a probability." in page


def test_eight_views_score_lesions_in_all_flips_and_turns_against_references_as_they_are(runs, here, tmp_path):
    eight = checkpoint_alone(runs["first"], tmp_path / "eight", test_views=8)
    metrics = predict.main(here, [eight], choices=Choices(scorer="distance"))
    run = pd.read_csv(eight / "predictions.csv")
    _, scores = scores_by_hand(runs["first"], "test", views=8)
    labels, validation = scores_by_hand(runs["first"], "validation", views=8)
    curve = Platt.fit(labels, validation["distance"])
    np.testing.assert_allclose(run["score"], curve.log_odds(scores["distance"]), rtol=1e-5)
    assert metrics["runs"][0]["test_views"] == 8
    predict.main(here, dirs(runs, "first"), choices=Choices(scorer="distance"))
    once = pd.read_csv(runs["first"].run_dir / "predictions.csv")
    assert np.abs(once["score"] - run["score"]).max() > 1e-4


def test_another_prevalence_moves_the_probabilities_and_not_the_order(runs, here):
    tables, aucs = [], []
    for prevalence in (None, 0.02):
        metrics = predict.main(here, dirs(runs, "first"), choices=Choices(prevalence=prevalence))
        tables.append(pd.read_csv(runs["first"].run_dir / "predictions.csv"))
        aucs.append(metrics["auc"])
    labels, _ = scores_by_hand(runs["first"], "validation")
    shift = logit(0.02) - logit(labels.mean())
    moved = logit(tables[1]["probability"]) - logit(tables[0]["probability"])
    np.testing.assert_allclose(moved, shift, rtol=1e-6)
    assert shift < -1
    assert aucs[0] == aucs[1]
    assert tables[1]["score"].tolist() == tables[0]["score"].tolist()
    assert tables[1]["predicted"].tolist() == tables[0]["predicted"].tolist()  # the threshold moves with them


def test_another_folder_is_judged_by_the_mean_of_all_folds(runs, here, tmp_path):
    folder = another_folder(runs["first"].train_image[0], runs["first"].train_labels[0], tmp_path / "another")
    tables = []
    for names in (["first"], ["other"], ["first", "other"]):
        metrics = predict.main(here, dirs(runs, *names), *folder, Choices(prevalence=0.05))
        place = here.graph_dir if len(names) > 1 else runs[names[0]].run_dir
        tables.append(pd.read_csv(place / "evaluate_predictions.csv"))
        assert list(tables[-1]) == COLUMNS
        assert len(tables[-1]) == metrics["n"] == 150
    first, other, both = tables
    predict.main(here, dirs(runs, "first"), choices=Choices(prevalence=0.05))
    test = pd.read_csv(runs["first"].run_dir / "predictions.csv").set_index("image_name")
    as_a_folder = first.set_index("image_name").loc["new_" + test.index]
    assert (
        np.corrcoef(as_a_folder["probability"], test["probability"])[0, 1] > 0.99
    )  # the pictures are a shade brighter
    for column in ("probability", "threshold"):
        mean = (logit(first[column]) + logit(other[column])) / 2
        np.testing.assert_allclose(both[column], expit(mean), rtol=1e-6)
    np.testing.assert_allclose(both["score"], logit(both["probability"]), rtol=1e-6)
    assert both["predicted"].tolist() == (both["probability"] >= both["threshold"]).astype(int).tolist()


def test_it_says_what_it_does_and_that_a_training_has_not_finished(machine: Config, tmp_path: Path, capsys) -> None:
    predict.main(machine)
    out = capsys.readouterr().out
    for text in ("melanoma from probability", "scoring the lesions", "computing metrics", "drawing the figures"):
        assert text in out
    assert "has not finished" not in out
    half = checkpoint_alone(machine, tmp_path / "half", epochs=20)
    predict.main(machine, [half])
    out = capsys.readouterr().out
    assert f"{half} has not finished its training: epoch 6 of 20" in out
    assert "embedding 48 images of its training and validation parts" in out
