"""The model of the repository: small, nameless, with its card, and used by a clone that has trained nothing."""

import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import melanoma
from melanoma.data.synthetic import lesion_image
from melanoma.scoring.model import Model
from predict import FIRST_MODEL

CARD = FIRST_MODEL.with_name("MODEL_CARD.md")


@pytest.fixture(scope="module")
def model() -> Model:
    return melanoma.load(FIRST_MODEL, "cpu")


def test_it_is_small_and_names_no_image_and_no_folder_of_the_machine(model):
    contents = FIRST_MODEL.read_bytes()
    assert len(contents) <= 15e6
    assert not re.search(rb"ISIC_\d{7}|HAM_\d{7}|IP_\d{7}", contents)
    assert model.first.lesions is None and not model.first.pictures
    assert not re.search(rb"/(home|root|tmp|work)/", contents)


def test_it_learnt_from_both_sets_and_holds_none_back(model):
    run = model.first
    assert run.fold is None and run.settings["recipe"] == "strong"
    assert len(run.known) > 12_000 and "isic2020-sample" in run.data and "ham10000" in run.data


def test_its_card_has_the_figures_to_expect_the_licence_and_the_threshold(model):
    card = CARD.read_text(encoding="utf-8")
    assert "The metrics are what to expect" in card
    assert len(re.findall(r"AUC 0\.\d{3} \(0\.\d{3} to 0\.\d{3}\)", card)) == 2  # of each source
    assert "CC BY-NC 4.0" in card and "not a medical device" in card
    assert f"from a probability of {model.threshold:.4g} on" in card


def test_a_clone_that_has_trained_nothing_judges_a_photo(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("dark", "plain"):
        picture = lesion_image(rng, name == "dark", 300, 200, (224, 180, 160))
        Image.fromarray(picture).save(tmp_path / f"{name}.jpg")
    command = [sys.executable, str(FIRST_MODEL.parents[1] / "predict.py"), "dark.jpg", "plain.jpg"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "runs/siamese is not there: judging with " in done.stdout
    table = pd.read_csv(tmp_path / "graph" / "new_lesions.csv")
    assert table["probability"].between(0, 1).all() and table["known"].eq(False).all()
    assert sorted(path.name for path in (tmp_path / "graph" / "lesions").iterdir()) == ["dark.png", "plain.png"]
