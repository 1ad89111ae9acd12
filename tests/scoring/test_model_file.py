"""model.pt: it judges as its run does, with no other file, and is refused in a line if it is damaged."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from bad_input import attempt, refusal
from conftest import another_folder, everything, quick_config
from PIL import Image

import melanoma
import predict
import train
from config import RECIPES, Config
from melanoma.common.errors import InputError
from melanoma.common.settings import experiment, from_flags
from melanoma.scoring import ensemble, labelled
from melanoma.scoring.ensemble import Choices
from melanoma.scoring.model_file import FORMAT, read_model, write_model
from melanoma.training.run_folder import load_checkpoint, read_split
from modules import stored_network

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
KIND = "bad model file"


@pytest.fixture(scope="module")
def headed(lesion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of another fold, with a head, unit length and batch normalisation statistics to keep."""
    folder = Path(shutil.copytree(lesion_folder, tmp_path_factory.mktemp("headed") / "lesions"))
    config = everything(quick_config(folder, recipe="scratch", run_dir=folder / "headed"))
    config = dataclasses.replace(config, fold=1, test_views=8)
    train.main(config)
    return config


@pytest.fixture
def alone(headed: Config, tmp_path: Path) -> Config:
    """A machine that has no data and no run."""
    nowhere = tmp_path / "nowhere"
    return dataclasses.replace(
        headed,
        graph_dir=tmp_path / "graph",
        run_dir=nowhere / "run",
        cache_dir=nowhere / "cache",
        train_image=(nowhere / "train",),
        train_labels=(nowhere / "train.csv",),
    )


def model_of(config: Config) -> Path:
    return config.run_dir / "model.pt"


def test_a_training_leaves_the_model_that_its_best_checkpoint_and_images_give(headed: Config, tmp_path: Path) -> None:
    shutil.copytree(headed.run_dir, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    made = predict.load_run(dataclasses.replace(headed, run_dir=tmp_path / "run"))
    [read] = read_model(model_of(headed), stored_network, CPU)
    assert (read.name, made.name) == ("headed", str(tmp_path / "run"))
    for field in dataclasses.fields(read):
        one, other = getattr(read, field.name), getattr(made, field.name)
        if isinstance(one, pd.DataFrame):
            pd.testing.assert_frame_equal(one, other, check_names=False, check_index_type=False)
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        elif field.name == "network":
            assert all(torch.equal(own, made.network.state_dict()[key]) for key, own in one.state_dict().items())
        elif field.name != "name":
            assert one == other, field.name
    assert read.epoch == load_checkpoint(headed.run_dir / "best.pt")["log"][-1]["epoch"]
    assert len(read.log) == headed.epochs
    assert "cache_dir" not in read.settings and str(headed.run_dir) not in str(read.settings)


def test_the_head_and_the_ways_of_scoring_are_kept_and_have_their_scores(headed: Config) -> None:
    [run] = read_model(model_of(headed), stored_network, CPU)
    split = read_split(headed.run_dir)
    assert run.validation.index.tolist() == split.index[split["part"] == "validation"].tolist()
    assert {"label", "nearest_distance", "head", "neighbours"} <= set(run.validation)
    assert len(run.pictures) == len(run.references)
    row = int(np.flatnonzero(run.reference_labels == 1)[0])
    picture, name = run.picture(row), run.reference_names[row]
    assert picture is not None and picture.shape == (32, 32, 3)
    with Image.open(headed.train_image[0] / f"{name}.jpg") as image:
        assert picture.mean() == pytest.approx(np.asarray(image).mean(), abs=2)


@pytest.mark.usefixtures("lean_evaluation")
def test_the_file_evaluates_its_own_test_part_with_the_test_images_alone(headed: Config, alone: Config) -> None:
    predict.main(headed)
    expected = pd.read_csv(headed.run_dir / "predictions.csv")
    images = alone.graph_dir.parent / "test"
    images.mkdir()
    for name in expected["image_name"]:
        shutil.copy(headed.train_image[0] / f"{name}.jpg", images)
    metrics = predict.main(dataclasses.replace(alone, train_image=(images,)), [model_of(headed)])
    pd.testing.assert_frame_equal(pd.read_csv(alone.graph_dir / "predictions.csv"), expected)
    assert {row["attribute"] for row in metrics["subgroups"]} >= {"sex", "age", "site"}
    assert metrics["runs"][0]["run_dir"] == "headed" and "test_evaluations" not in metrics
    with pytest.raises(InputError, match=r"lacks 12 images of the run"):
        predict.main(dataclasses.replace(alone, train_image=(alone.graph_dir,)), [model_of(headed)], part="validation")


@pytest.mark.usefixtures("lean_evaluation")
def test_the_threshold_is_one_number_in_metrics_and_predictions(headed: Config) -> None:
    metrics = predict.main(headed)
    written = pd.read_csv(headed.run_dir / "predictions.csv", dtype=str)["threshold"]
    assert set(map(float, written)) == {metrics["threshold"]} == {metrics["runs"][0]["threshold"]}


def test_an_ensemble_is_one_file_that_judges_as_its_runs(
    headed: Config, trained: Config, alone: Config, tmp_path: Path
) -> None:
    runs, file = [headed.run_dir, trained.run_dir], tmp_path / "both.pt"
    predict.export(headed, runs, file)
    photos = sorted(headed.train_image[0].iterdir())[8:14]
    choices = Choices(prevalence=0.02, min_sensitivity=0.9)
    expected = predict.judge_photos(dataclasses.replace(headed, graph_dir=tmp_path), runs, photos, choices, False)
    found = predict.judge_photos(alone, [file], photos, choices, False)
    pd.testing.assert_frame_equal(found, expected)
    assert (alone.graph_dir / "new_lesions.csv").is_file()
    python = melanoma.load(file, "cpu", prevalence=0.02, min_sensitivity=0.9)
    pd.testing.assert_frame_equal(python.predict(photos), expected)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "has not been evaluated" in card and "python predict.py photo.jpg --model path/to/both.pt" in card
    sizes = [len(run.pictures) for run in read_model(file, stored_network, CPU)]
    assert sizes[0] > 0 and sizes[1:] == [0]  # cards are by the first


def test_only_the_first_run_of_an_ensemble_embeds(
    headed: Config, trained: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = sorted(headed.train_image[0].iterdir())[:3]
    twin = Path(shutil.copytree(headed.run_dir, tmp_path / "twin"))
    both = predict.Model(predict.load_ensembles(headed, [headed.run_dir, twin, trained.run_dir]))
    expected = melanoma.load(model_of(headed), "cpu").embed(photos)
    real, seen = ensemble.embed_images, []

    def embed(network, *others):
        seen.append(network)
        return real(network, *others)

    monkeypatch.setattr(ensemble, "embed_images", embed)
    np.testing.assert_array_equal(both.embed(photos), expected)
    assert seen == [both.first.network]


def test_a_slim_file_names_nobody_shows_nothing_and_judges_as_well(
    headed: Config, alone: Config, tmp_path: Path
) -> None:
    whole, slim = tmp_path / "whole" / "model.pt", tmp_path / "slim" / "model.pt"
    predict.export(headed, [], whole)
    predict.export(headed, [], slim, slim=True)
    secrets = [*(path.stem for path in headed.train_image[0].iterdir()), "IP_0000001"]
    held = {path: path.read_bytes() + path.with_name("MODEL_CARD.md").read_bytes() for path in (whole, slim)}
    assert all(secret.encode() in held[whole] for secret in secrets)
    assert not any(secret.encode() in held[slim] for secret in secrets)
    assert str(tmp_path.parent).encode() not in held[slim]
    sizes = {path: torch.load(path, weights_only=True)["runs"][0] for path in (whole, slim)}
    for name in ("references", "network"):
        kinds = [own[name] if name == "references" else own[name]["fc_embedding.weight"] for own in sizes.values()]
        assert [kind.dtype for kind in kinds] == [torch.float32, torch.float16]
    assert sizes[slim]["network"]["fc_embedding.bias"].dtype == torch.float32
    photo = [headed.train_image[0] / f"{predict.load_run(headed).reference_names[0]}.jpg"]
    found, expected = (predict.judge_photos(alone, [path], photo) for path in (slim, whole))
    assert not found["probability"].equals(expected["probability"])  # the weights are rounded to float16
    pd.testing.assert_frame_equal(
        found.drop(columns="nearest_name"), expected.drop(columns="nearest_name"), rtol=2e-3, atol=1e-3
    )
    assert found["known"].all() and found["nearest_name"].tolist() == [""]
    with pytest.raises(InputError, match="headed is a slim model, which does not know its test part: pass --evaluate"):
        predict.main(alone, [slim])


@pytest.mark.usefixtures("lean_evaluation")
def test_a_slim_file_evaluates_another_folder_and_knows_its_own_pictures(headed: Config, alone: Config) -> None:
    slim = alone.graph_dir.parent / "slim.pt"
    predict.export(headed, [], slim, slim=True)
    folder = another_folder(headed.train_image[0], headed.train_labels[0], alone.graph_dir.parent / "other")
    assert predict.main(alone, [slim], *folder)["n"] == 60
    metrics = predict.main(alone, [slim], headed.train_image[0], headed.train_labels[0])
    assert metrics["n"] == 12 and metrics["notes"][0].startswith("48 images are left out")


@pytest.mark.usefixtures("lean_evaluation")
def test_the_card_has_the_figures_of_the_runs_last_evaluation(headed: Config, tmp_path: Path) -> None:
    metrics = predict.main(headed)
    predict.export(headed, [], tmp_path / "model.pt")
    card = (tmp_path / "MODEL_CARD.md").read_text()
    header, _, body = card.removeprefix("---\n").partition("\n---\n")
    assert {line.partition(":")[0] for line in header.splitlines()} == {
        "license",
        "library_name",
        "pipeline_tag",
        "tags",
    }
    assert f"ROC AUC {metrics['auc']:.3f} (" in body and "not a medical device" in body
    for heading in ("Intended use", "Training data", "Evaluation data", "Metrics", "Limits", "Licence", "Runs"):
        assert f"\n## {heading}\n" in body
    labels = predict.load_run(headed).reference_labels
    assert f"fold 1: 36 images, {labels.sum()} melanoma" in body
    [made] = [line for line in body.splitlines() if line.startswith("- headed: recipe scratch, seed 0, epoch ")]
    assert f"epoch {metrics['runs'][0]['epoch']} of 3, started 20" in made
    command = made.partition("`")[2].partition("`")[0].split()
    assert command[:2] == ["python", "train.py"]
    # a setting that no recipe sets may be another one in another config.py
    for name in set(experiment(headed)) - set(RECIPES["scratch"]):
        flag = name.replace("_", "-")
        assert f"--{flag}" in command or f"--no-{flag}" in command
    again = train.make_parser().parse_args([*command[2:], "--run-dir", str(tmp_path / "again")])
    assert experiment(from_flags(Config, RECIPES, again)) == predict.load_run(headed).settings


@pytest.mark.usefixtures("lean_evaluation")
def test_a_card_can_have_the_metrics_of_other_runs_of_the_same_settings(headed: Config, tmp_path: Path) -> None:
    found, card, out = tmp_path / "metrics.json", tmp_path / "MODEL_CARD.md", tmp_path / "model.pt"
    metrics = predict.main(headed, metrics_file=found)
    run = predict.load_run(headed)
    final = tmp_path / "final.pt"
    write_model(final, [dataclasses.replace(run, settings={**run.settings, "fold": None})])
    rows = [{**metrics["subgroups"][0], "attribute": "source", "group": "clinic"}]
    settings = metrics["settings"] | {"fold": 3, "seed": 7}
    right = metrics | {"settings": settings, "subgroups": rows}
    found.write_text(json.dumps(right))
    predict.export(headed, [final], out, True, found)
    text = card.read_text()
    assert "The metrics are what to expect of this model, whose own images leave none to test it on" in text
    assert (
        metrics["origin"] in text and f"clinic: images {rows[0]['n']}, melanomas {rows[0]['n_melanoma']}, AUC" in text
    )
    before = out.read_bytes()
    for change, told in (
        ({"settings": settings | {"epochs": 99, "head": "focal"}}, "they differ in epochs, head"),
        ({"set": "validation"}, "they differ in set"),
        ({"choices": {**metrics["choices"], "min_sensitivity": 0.9}}, "they differ in choices"),
        ({"data": "elsewhere"}, "they differ in data"),
    ):
        found.write_text(json.dumps(right | change))
        with pytest.raises(InputError, match=told):
            predict.export(headed, [final], out, True, found)
    for text in ("[]", "{}"):
        found.write_text(text)
        with pytest.raises(InputError, match="holds no metrics with the settings of their runs"):
            predict.export(headed, [final], out, True, found)
    with pytest.raises(InputError, match=r"name a metrics.json of predict.py"):
        predict.export(headed, [final], out, True, tmp_path / "none.json")
    found.write_text(json.dumps(right))
    with pytest.raises(InputError, match="has a test part of its own"):
        predict.export(headed, [], out, True, found)
    assert out.read_bytes() == before


def test_photos_are_judged_from_paths_and_from_pil_images(headed: Config) -> None:
    model = melanoma.load(model_of(headed), "cpu")
    path = next(headed.train_image[0].iterdir())
    with Image.open(path) as image:
        table = model.predict([path, str(path), image])
        assert image.size == (40, 30)  # as it was
        assert model.predict(image)["path"].tolist() == ["image 0"]
    assert table["path"].tolist() == [str(path), str(path), "image 2"]
    np.testing.assert_allclose(table["probability"].astype(float), table["probability"][0], atol=0.02)
    assert table["decision"].isin(["melanoma", "benign"]).all()
    embeddings = model.embed([path, path])
    assert embeddings.shape == (2, headed.embedding_dim) and embeddings.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-5)


def test_the_example_of_the_readme_runs(headed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [example] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "models").symlink_to(ROOT / "models")
    shutil.copy(next(headed.train_image[0].iterdir()), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(example, found)
    assert {"probability", "decision", "familiarity", "nearest_name"} <= set(found["table"])
    assert found["table"]["error"].tolist() == [""] and found["embeddings"].shape == (
        1,
        found["model"].first.references.shape[1],
    )


def test_what_cannot_be_read_is_told_with_its_name(headed: Config, tmp_path: Path) -> None:
    model = melanoma.load(model_of(headed), "cpu")
    table = model.predict([tmp_path / "gone.jpg", next(headed.train_image[0].iterdir())])
    assert table["error"][0].startswith("FileNotFoundError") and table["error"][1] == ""
    with pytest.raises(InputError, match=r"image .*gone\.jpg cannot be read: FileNotFoundError"):
        model.embed(tmp_path / "gone.jpg")
    with pytest.raises(InputError, match="there is no image to judge"):
        model.predict([])


def test_runs_of_one_image_size_share_one_cache_on_the_device(
    headed: Config, trained: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    real = ensemble.Feed

    def feed(cache, device):
        made.append(cache)
        return real(cache, device)

    monkeypatch.setattr(ensemble, "Feed", feed)
    ensembles = predict.load_ensembles(headed, [headed.run_dir, trained.run_dir])
    labelled.score_part(ensembles, partial(predict.find_lesions, headed), partial(predict.decode, headed))
    assert len(made) == 1


# --- damage ---


def test_a_model_file_cut_or_changed_anywhere_is_refused(headed: Config, tmp_path: Path) -> None:
    whole, path = model_of(headed).read_bytes(), tmp_path / "model.pt"
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 40).tolist():
        path.write_bytes(whole[:place])
        refusal(KIND, [path], read_model, path, stored_network, CPU)
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        attempt(KIND, [path], read_model, path, stored_network, CPU)


def changed(headed: Config, path: Path, **changes) -> Path:
    contents = torch.load(model_of(headed), weights_only=True)
    contents["runs"][0] |= changes
    torch.save(contents, path)
    return path


def test_contents_that_do_not_fit_each_other_are_refused(headed: Config, tmp_path: Path) -> None:
    run = torch.load(model_of(headed), weights_only=True)["runs"][0]
    references, labels, validation = run["references"], run["reference_labels"], run["validation"]
    faults = {
        "no settings": {"settings": {}},
        "another size": {"settings": run["settings"] | {"image_size": 64}},
        "unknown setting": {"settings": run["settings"] | {"epocs": 1}},
        "no weights": {"network": {}},
        "few references": {"references": references[:-1]},
        "wide references": {"references": torch.cat([references, references], dim=1)},
        "infinite references": {"references": references / 0},
        "one class": {"reference_labels": torch.zeros_like(labels)},
        "a third class": {"reference_labels": labels + 1},
        "no validation": {"validation": {}},
        "no scores of the head": {"validation": {key: own for key, own in validation.items() if key != "head"}},
        "scores that are no numbers": {"validation": validation | {"head": validation["head"] * float("nan")}},
        "no curves": {"curves": {}},
        "a curve that is no number": {"curves": run["curves"] | {"head": (1.0, float("nan"))}},
        "lesions without parts": {"lesions": {"image_name": ["a"]}},
        "pictures": {"pictures": None},
    }
    for name, changes in faults.items():
        path = changed(headed, tmp_path / f"{name}.pt", **changes)
        assert "does not fit its own settings" in refusal(KIND, [path], read_model, path, stored_network, CPU)


def test_other_files_and_versions_are_refused(headed: Config, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    assert "there is no model" in refusal(KIND, [path], melanoma.load, path)
    torch.save({"format": "lesion-model-0", "runs": []}, path)
    assert f"of this version (format {FORMAT})" in refusal(KIND, [path], melanoma.load, path)
    torch.save({"format": FORMAT, "runs": []}, path)
    assert "does not fit" in refusal(KIND, [path], melanoma.load, path)
    refusal(KIND, ["best.pt"], melanoma.load, headed.run_dir / "best.pt")
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.jpg")
    refusal(KIND, ["photo.jpg"], melanoma.load, tmp_path / "photo.jpg")


def test_export_replaces_a_model_and_nothing_else(headed: Config, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    for _ in range(2):
        predict.export(headed, [], file)
    shutil.copy(headed.run_dir / "best.pt", file)
    before = file.read_bytes()
    with pytest.raises(InputError, match="is not a model of this version"):
        predict.export(headed, [], file)
    assert file.read_bytes() == before


def test_pictures_are_few_and_small(headed: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ensemble, "BENIGN_PICTURES", 3)
    monkeypatch.setattr(ensemble, "PICTURE_SIDE", 20)
    shutil.copytree(headed.run_dir, tmp_path / "run")
    (tmp_path / "run" / "model.pt").unlink()
    run = predict.load_run(dataclasses.replace(headed, run_dir=tmp_path / "run"))
    melanomas = int(run.reference_labels.sum())
    assert sorted(run.reference_labels[list(run.pictures)].tolist()) == [0] * 3 + [1] * melanomas
    write_model(tmp_path / "few.pt", [run])
    [read] = read_model(tmp_path / "few.pt", stored_network, CPU)
    assert read.pictures == run.pictures
    rows = list(read.pictures)
    assert {own.shape for own in map(read.picture, rows)} == {(20, 20, 3)}
    model = predict.Model(predict.load_ensembles(headed, [tmp_path / "few.pt"]))
    names = set(read.reference_names[rows])
    shown = model.neighbours(model.embed(next(headed.train_image[0].iterdir()))[0], 5)
    assert {name for own in shown for name, _, _ in own} <= names and [len(own) for own in shown] == [5, 3]
    bare = predict.Model([dataclasses.replace(model.ensembles[0], runs=[dataclasses.replace(run, pictures={})])])
    assert bare.neighbours(read.references[0], 5) == [[], []]


# --- what must not happen ---


def test_export_leaves_run_folders_cards_and_special_files_alone(
    headed: Config, trained: Config, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(trained.run_dir, tmp_path / "other"))
    for file, slim in ((other / "model.pt", False), (headed.run_dir / "model.pt", True), (other / "more.pt", False)):
        with pytest.raises(InputError, match=r"is in a run folder, which holds its own model\.pt alone"):
            predict.export(headed, [], file, slim)
    with pytest.raises(InputError, match="is no file: name another"):
        predict.export(headed, [], tmp_path)
    (tmp_path / "MODEL_CARD.md").write_text("# Mine")
    with pytest.raises(InputError, match=r"MODEL_CARD\.md is no card of a model file"):
        predict.export(headed, [], tmp_path / "model.pt")
    assert (tmp_path / "MODEL_CARD.md").read_text() == "# Mine" and not (tmp_path / "model.pt").exists()
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "model.pt").symlink_to(tmp_path / "target.pt")
    (tmp_path / "MODEL_CARD.md").unlink()
    predict.export(headed, [], tmp_path / "link" / "model.pt")
    assert (tmp_path / "link" / "model.pt").is_symlink() and (tmp_path / "target.pt").is_file()


def test_a_run_folder_with_a_file_of_several_runs_says_so(headed: Config, trained: Config, tmp_path: Path) -> None:
    predict.export(headed, [headed.run_dir, trained.run_dir], tmp_path / "run" / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt holds 2 runs, not that of its folder: pass --model"):
        predict.load_run(dataclasses.replace(headed, run_dir=tmp_path / "run"))


@pytest.mark.usefixtures("lean_evaluation")
@pytest.mark.parametrize("change", ["moved", "other choices", "another run of that name"])
def test_the_card_has_the_metrics_of_this_model_alone(
    headed: Config, trained: Config, tmp_path: Path, change: str
) -> None:
    run = Path(shutil.copytree(headed.run_dir, tmp_path / "run"))
    predict.main(headed, [run], choices=Choices(scorer="nearest") if change == "other choices" else Choices())
    if change == "moved":
        run = run.rename(tmp_path / "elsewhere")
    elif change == "another run of that name":
        shutil.copy(model_of(trained), run)
    predict.export(headed, [run], tmp_path / "out" / "model.pt")
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert ("ROC AUC" in card) == (change == "moved")


@pytest.mark.usefixtures("lean_evaluation")
def test_test_images_that_are_other_files_are_told(headed: Config, alone: Config, tmp_path: Path) -> None:
    images = Path(shutil.copytree(headed.train_image[0], tmp_path / "images"))
    first = sorted(predict.load_run(headed).part("test")["image_name"])[0]
    with Image.open(images / f"{first}.jpg") as image:
        image.load()
    image.save(images / f"{first}.jpg", quality=30)
    metrics = predict.main(dataclasses.replace(alone, train_image=(images,)), [model_of(headed)])
    assert metrics["notes"][0].startswith(f"1 images, {first} for one, are not the files that the run was split with")


@pytest.mark.usefixtures("lean_evaluation")
def test_a_slim_model_says_by_what_it_knows_its_images(headed: Config, alone: Config, tmp_path: Path) -> None:
    predict.export(headed, [], tmp_path / "slim.pt", slim=True)
    folder = another_folder(headed.train_image[0], headed.train_labels[0], tmp_path / "other")
    notes = predict.main(alone, [tmp_path / "slim.pt"], *folder)["notes"]
    assert notes[0].startswith("A slim model knows its training images by their pixels alone")


def test_settings_that_travel_name_no_folder(headed: Config, tmp_path: Path) -> None:
    run = predict.load_run(headed)
    settings = {**run.settings, "backbone_weights": "/home/someone/w.pt"}
    write_model(tmp_path / "model.pt", [dataclasses.replace(run, settings=settings)])
    assert b"someone" not in (tmp_path / "model.pt").read_bytes()


@pytest.mark.parametrize(("name", "value"), [("prevalence", 0), ("prevalence", 1), ("min_sensitivity", 1.5)])
def test_choices_out_of_range_are_refused(headed: Config, name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}: it must be above 0, at most"):
        melanoma.load(model_of(headed), "cpu", **{name: value})


def test_the_table_has_the_types_that_its_columns_need(headed: Config, tmp_path: Path) -> None:
    model = melanoma.load(model_of(headed), "cpu")
    paths = sorted(headed.train_image[0].iterdir())[:3]
    for photos in (paths, [tmp_path / "gone.jpg", *paths], [tmp_path / "gone.jpg"]):
        table = model.predict(photos)
        kinds = {name: str(kind) for name, kind in table.dtypes.items() if name not in ("path", "decision", "error")}
        assert kinds.pop("known") == "boolean" and kinds.pop("nearest_label") == "Int64" and kinds.pop("nearest_name")
        assert set(kinds.values()) == {"float64"}
        assert table["probability"].isna().tolist() == [path.name == "gone.jpg" for path in photos]


def test_one_pil_image_may_be_named_often_and_is_not_said_to_be_known(headed: Config) -> None:
    model = melanoma.load(model_of(headed), "cpu")
    name = predict.load_run(headed).reference_names[0]
    with Image.open(headed.train_image[0] / f"{name}.jpg") as image:
        table = model.predict([image] * 40)
    assert set(table["error"]) == {""} and table["known"].isna().all() and table["probability"].nunique() == 1
    for bad in (Image.new("RGB", (0, 0)), Image.new("L", (10**5, 1100))):
        assert model.predict(bad)["error"][0] != ""
    with pytest.raises(InputError, match="a photo is a path or a PIL image, not of type ndarray"):
        model.predict([np.zeros((4, 4, 3))])  # type: ignore[list-item]


def test_a_folder_with_a_model_alone_is_a_run_that_train_does_not_replace(headed: Config, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(model_of(headed), tmp_path / "run")
    with pytest.raises(InputError, match="already holds a run: pass --resume, --overwrite"):
        train.main(dataclasses.replace(headed, run_dir=tmp_path / "run"))
