"""predict.py: what is scored, where the threshold comes from, what is written, and refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

import checkpoint
import predict
from classify import choose_threshold
from config import Config, InputError
from dataset import read_labels


@pytest.fixture
def machine(trained: Config, tmp_path: Path) -> Config:
    """What config.py holds when predict.py runs: paths, and another experiment that must not matter."""
    return dataclasses.replace(trained, graph_dir=tmp_path / "graph", margin=3.0, image_size=256)


def predictions_of(config: Config, name: str = "predictions.csv") -> pd.DataFrame:
    return pd.read_csv(config.run_dir / name, keep_default_na=False)


def test_the_test_part_is_scored_and_nothing_else(machine: Config) -> None:
    predict.main(machine)
    table = checkpoint.read_split(machine.run_dir)
    test = table[table["part"] == "test"]
    predictions = predictions_of(machine)
    assert list(predictions) == ["image_name", "patient_id", "label", "score", "predicted"]
    assert predictions["image_name"].tolist() == test["image_name"].tolist()
    assert predictions["label"].tolist() == test["label"].tolist()
    assert predictions["patient_id"].tolist() == test["patient_id"].tolist()


def test_metrics_are_those_of_the_predictions(machine: Config) -> None:
    returned = predict.main(machine)
    metrics = json.loads((machine.run_dir / "metrics.json").read_text())
    predictions = predictions_of(machine)
    label, score = predictions["label"], predictions["score"]
    assert metrics["auc"] == pytest.approx(roc_auc_score(label, score)) and metrics["auc"] > 0.95
    assert metrics["average_precision"] == pytest.approx(average_precision_score(label, score))
    assert predictions["predicted"].tolist() == (score >= metrics["threshold"]).astype(int).tolist()
    assert metrics["counts"]["tp"] == int(((predictions["predicted"] == 1) & (label == 1)).sum())
    assert sum(metrics["counts"].values()) == metrics["n"] == len(predictions)
    low, high = metrics["auc_interval"]
    assert 0 <= low <= metrics["auc"] <= high <= 1
    assert json.loads(json.dumps(returned)) == metrics


def test_threshold_is_chosen_on_validation(machine: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []

    def choose(labels, scores, min_sensitivity):
        chosen.append((labels, choose_threshold(labels, scores, min_sensitivity)))
        return chosen[-1][1]

    monkeypatch.setattr(predict, "choose_threshold", choose)
    metrics = predict.main(machine)
    [(labels, threshold)] = chosen
    table = checkpoint.read_split(machine.run_dir)
    assert labels.tolist() == table.loc[table["part"] == "validation", "label"].tolist()
    assert metrics["threshold"] == threshold


def test_references_are_the_training_part(machine: Config) -> None:
    run = predict.load_run(machine)
    train = run.table[run.table["part"] == "train"]
    assert run.references.shape == (len(train), run.config.embedding_dim)
    assert run.reference_labels.tolist() == train["label"].tolist()


def test_experiment_comes_from_the_checkpoint_and_paths_from_config(machine: Config, trained: Config) -> None:
    config = predict.load_run(machine).config
    assert (config.margin, config.image_size) == (trained.margin, trained.image_size)
    assert config.graph_dir == machine.graph_dir


def test_min_sensitivity_lowers_the_threshold_until_the_share_is_found(machine: Config) -> None:
    youden = predict.main(machine)
    everything = predict.main(machine, min_sensitivity=1.0)
    assert everything["threshold"] <= youden["threshold"]


def test_predicting_twice_gives_the_same_files(machine: Config) -> None:
    texts = []
    for _ in range(2):
        predict.main(machine)
        texts.append([(machine.run_dir / name).read_bytes() for name in ("predictions.csv", "metrics.json")])
    assert texts[0] == texts[1]


def test_the_outlines_figures_are_drawn(machine: Config) -> None:
    predict.main(machine)
    for name in ("Confusion_matrix.png", "ROC_curve.png", "t_SNE.png"):
        assert (machine.graph_dir / name).read_bytes().startswith(b"\x89PNG"), name


def test_another_labelled_folder_is_judged_with_the_runs_threshold(
    machine: Config, lesion_folder: Path, tmp_path: Path
) -> None:
    usual = predict.main(machine)
    before = (machine.run_dir / "predictions.csv").read_bytes()
    file = tmp_path / "deep" / "figures.json"
    metrics = predict.main(
        machine,
        evaluate_image=lesion_folder / "train",
        evaluate_labels=lesion_folder / "train.csv",
        metrics_file=file,
    )
    assert metrics["threshold"] == usual["threshold"]
    assert metrics["n"] == len(read_labels(lesion_folder / "train.csv"))
    assert json.loads(file.read_text())["n"] == metrics["n"]
    assert len(predictions_of(machine, "evaluate_predictions.csv")) == metrics["n"]
    assert (machine.run_dir / "predictions.csv").read_bytes() == before


def test_a_folder_without_melanoma_gives_what_can_be_computed(
    machine: Config, lesion_folder: Path, tmp_path: Path
) -> None:
    labels = pd.read_csv(lesion_folder / "train.csv", dtype=str, keep_default_na=False)
    benign = tmp_path / "benign.csv"
    labels[labels["target"] == "0"].to_csv(benign, index=False)
    metrics = predict.main(machine, lesion_folder / "train", benign)
    assert metrics["auc"] is None and metrics["sensitivity"] is None and metrics["auc_interval"] is None
    assert 0 <= metrics["specificity"] <= 1
    assert (machine.graph_dir / "Confusion_matrix.png").is_file()
    assert not (machine.graph_dir / "ROC_curve.png").exists()


def test_scores_that_are_not_finite_name_their_images(
    machine: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = checkpoint.read_split(machine.run_dir)
    first = table.loc[table["part"] == "validation", "image_name"].iloc[0]
    monkeypatch.setattr(
        predict, "reference_score", lambda e, *_: np.where(np.arange(len(e)) == 0, np.nan, 0.0)
    )
    with pytest.raises(InputError, match=rf"1 scores are not finite \({first}\)"):
        predict.main(machine)


def test_missing_images_of_the_run_are_named(machine: Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"lacks \d+ images of the run"):
        predict.main(dataclasses.replace(machine, train_image=tmp_path / "empty"))


def test_no_checkpoint_and_a_checkpoint_of_another_shape_are_refused(machine: Config, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no checkpoint .*best\.pt: run train\.py first"):
        predict.main(dataclasses.replace(machine, run_dir=tmp_path / "nowhere"))
    contents = torch.load(machine.run_dir / "best.pt", weights_only=True)
    contents["config"]["embedding_dim"] += 1
    other = tmp_path / "other"
    other.mkdir()
    torch.save(contents, other / "best.pt")
    with pytest.raises(InputError, match="does not fit"):
        predict.main(dataclasses.replace(machine, run_dir=other))


def test_tsne_subset_keeps_every_melanoma() -> None:
    labels = (np.arange(1000) % 50 == 0).astype(int)
    kept = predict.tsne_subset(labels, 100, np.random.default_rng(0))
    assert len(kept) == 100 and np.all(np.diff(kept) > 0)
    assert labels[kept].sum() == labels.sum()
    assert len(predict.tsne_subset(labels, 5000, np.random.default_rng(0))) == 1000
