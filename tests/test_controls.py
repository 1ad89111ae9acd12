"""The control: its scores come from other images than those they were learnt on."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import HEADER
from sklearn.metrics import roc_auc_score

import controls
from config import Config, run_script


def lesions(n: int, seed: int) -> pd.DataFrame:
    """Lesions whose sex and age tell a little of the label, with blanks."""
    rng = np.random.default_rng(seed)
    label = (rng.random(n) < 0.3).astype(int)
    return pd.DataFrame(
        {
            "label": label,
            "age": np.where(rng.random(n) < 0.1, np.nan, 45 + 15 * label + rng.normal(0, 15, n)),
            "sex": np.where(
                rng.random(n) < 0.1, "", np.where(rng.random(n) < 0.4 + 0.3 * label, "male", "female")
            ),
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


def test_every_lesion_is_scored_once_by_a_model_that_did_not_see_its_patient(labels_file, monkeypatch):
    seen = []
    real = controls.fit_and_score

    def fit_and_score(train, test, columns):
        seen.append((set(train["patient_id"]), set(test["patient_id"]), set(test["image_name"])))
        return real(train, test, columns)

    monkeypatch.setattr(controls, "fit_and_score", fit_and_score)
    config = dataclasses.replace(Config(), train_labels=labels_file, train_image=Path("nowhere"))
    result = controls.metadata_auc(config)
    assert result["images"] == 300 == sum(len(names) for _, _, names in seen)
    assert len(set.union(*(names for _, _, names in seen))) == 300
    assert not any(train & test for train, test, _ in seen)
    assert len(result["folds"]) == 5
    assert 0.65 < result["auc"] < 0.9
    assert result["auc"] == pytest.approx(np.mean(result["folds"]), abs=0.05)


def test_the_command_prints_json_from_the_csv_alone(labels_file, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["controls.py", "--train-labels", str(labels_file), "--train-image", "nowhere"]
    )
    with pytest.raises(SystemExit) as stop:
        run_script(controls.main)
    assert stop.value.code == 0
    assert set(json.loads(capsys.readouterr().out)) == {"auc", "folds", "images"}
