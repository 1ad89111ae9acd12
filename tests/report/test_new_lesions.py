"""new_lesions.py: photos are judged as the test part is, bad ones have their error, and a submission is complete."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import another_folder, exit_code, feed_of, quick_config
from matplotlib.figure import Figure
from PIL import Image

import predict
import train
from config import Config
from melanoma.common.errors import InputError
from melanoma.report import lesions, new_lesions
from melanoma.report.new_lesions import describe_verdict, probability_text, unique_name
from melanoma.scoring import ensemble
from melanoma.scoring import model as models
from melanoma.scoring.ensemble import Choices
from melanoma.scoring.explain import heat_map
from melanoma.scoring.model import COLUMNS
from melanoma.training import run_folder
from predict import judge_photos, write_submission


@pytest.fixture
def machine(trained: Config, tmp_path: Path) -> Config:
    """The trained run on a machine with a folder of one's own for the results."""
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    return dataclasses.replace(trained, run_dir=run, graph_dir=tmp_path / "graph")


@pytest.fixture(scope="module")
def second(lesion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another run on the same lesions: of another fold, seed and size, with a head and eight views."""
    folder = Path(shutil.copytree(lesion_folder, tmp_path_factory.mktemp("second") / "lesions"))
    settings = {"epochs": 3, "fold": 1, "seed": 1, "image_size": 40, "head": "bce", "test_views": 8}
    train.main(quick_config(folder, normalize=True, **settings))
    return folder / "run"


@pytest.fixture
def folder(machine: Config, tmp_path: Path) -> Path:
    """Six photos, a to f, and something else."""
    (tmp_path / "photos").mkdir()
    for name, path in zip("abcdef", sorted(machine.train_image[0].iterdir())[8:14], strict=True):
        shutil.copy(path, tmp_path / "photos" / f"{name}.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def written(path: Path) -> pd.DataFrame:
    """The table as a reader of the CSV has it: blanks are NaN, but for texts."""
    return pd.read_csv(path / "new_lesions.csv", keep_default_na=False, na_values={"probability": [""]})


@pytest.fixture
def quick_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards are empty files: to draw one takes half a second."""

    def touch(card: Figure, path: Path, mark: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    monkeypatch.setattr(new_lesions, "save_figure", touch)


def shown_cards(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What is put on each card."""
    seen = []

    def draw(*arguments):
        seen.append(dict(zip(("name", "origin", "pixels", "heat", "verdict", 1, 0), arguments, strict=True)))
        return lesions.lesion_card(*arguments)

    monkeypatch.setattr(new_lesions, "lesion_card", draw)
    return seen


# --- photos ---


@pytest.mark.usefixtures("lean_evaluation")
def test_test_images_as_photos_are_judged_as_in_predictions_csv(machine):
    predict.main(machine)
    test = pd.read_csv(machine.run_dir / "predictions.csv")
    paths = [machine.train_image[0] / f"{name}.jpg" for name in test["image_name"]]
    table = judge_photos(machine, (), paths, cards=False)
    assert list(table) == COLUMNS
    assert table["path"].tolist() == [str(path) for path in paths]
    for column in ("probability", "threshold"):
        np.testing.assert_allclose(table[column].astype(float), test[column], rtol=1e-5)
    assert table["decision"].tolist() == [("benign", "melanoma")[own] for own in test["predicted"]]
    assert table["decision"].nunique() == 2
    assert set(table["error"]) == {""}


@pytest.mark.usefixtures("lean_evaluation")
def test_several_runs_judge_a_photo_together_as_they_do_a_labelled_folder(machine, second, capsys, tmp_path):
    images, labels = another_folder(machine.train_image[0], machine.train_labels[0], tmp_path / "another")
    run_dirs = [machine.run_dir, second]
    choices = Choices(prevalence=0.05)
    predict.main(machine, run_dirs, images, labels, choices)
    expected = pd.read_csv(machine.graph_dir / "evaluate_predictions.csv")
    before = sorted(machine.cache_dir.rglob("*"))
    table = judge_photos(machine, run_dirs, [images], choices, cards=False)
    assert [Path(path).stem for path in table["path"]] == expected["image_name"].tolist()
    for column in ("probability", "threshold"):
        np.testing.assert_allclose(table[column].astype(float), expected[column], rtol=1e-5)
    out = capsys.readouterr().out
    assert f"nearest, familiarity and cards are by {machine.run_dir}, probabilities by all runs" in out
    assert (machine.graph_dir / "new_lesions.csv").is_file()
    assert not (machine.run_dir / "new_lesions.csv").exists()
    assert sorted(machine.cache_dir.rglob("*")) == before  # photos leave nothing in the cache


def test_nearest_distance_and_familiarity_equal_a_slow_loop(machine, folder):
    table = judge_photos(machine, (), [folder], cards=False)
    run = predict.load_run(machine)
    feed = feed_of(machine, run)

    def nearest(names: pd.Series) -> list[tuple[float, int]]:
        _, embeddings = ensemble.score_images(run, feed, names)
        return [min((math.dist(own, other), row) for row, other in enumerate(run.references)) for own in embeddings]

    usual = [distance for distance, _ in nearest(run.part("validation")["image_name"])]
    originals = pd.Series([path.stem for path in sorted(machine.train_image[0].iterdir())[8:14]])
    distances, rows = zip(*nearest(originals), strict=True)
    assert table["nearest_label"].tolist() == run.reference_labels[list(rows)].tolist()
    assert table["nearest_name"].tolist() == run.part("train")["image_name"].iloc[list(rows)].tolist()
    np.testing.assert_allclose(table["nearest_distance"].astype(float), distances, atol=1e-5)
    expected = [np.mean([other >= own for other in usual]) for own in distances]
    np.testing.assert_allclose(table["familiarity"].astype(float), expected, atol=1e-9)
    in_training = originals.isin(run.part("train")["image_name"])
    assert 0 < in_training.sum() < 6
    assert ((table["familiarity"] == 1) >= in_training).all()
    learnt = ~originals.isin(run.part("test")["image_name"])
    assert table["known"].tolist() == learnt.tolist()  # the photos are copies under other names


@pytest.mark.usefixtures("quick_cards")
def test_a_photo_unlike_anything_seen_is_flagged(machine, folder, capsys, monkeypatch):
    stripes = np.zeros((30, 40, 3), np.uint8)
    stripes[::2] = 255, 0, 255
    Image.fromarray(stripes).save(folder / "stripes.png")
    seen = shown_cards(monkeypatch)
    table = judge_photos(machine, (), [folder / "a.jpg", folder / "stripes.png"])
    assert table["familiarity"].iloc[1] < 0.01 < table["familiarity"].iloc[0]
    known, strange = (line for line in capsys.readouterr().out.splitlines() if "a.jpg  " in line or ".png  " in line)
    assert "unlike anything seen" not in known and strange.endswith("unlike anything seen")
    flags = [card["verdict"][0] == "unlike anything seen: do not trust it" for card in seen]
    assert flags == [False, True]


@pytest.mark.usefixtures("quick_cards")
def test_an_image_that_cannot_be_read_has_its_error_and_the_others_are_judged(machine, folder, capsys, monkeypatch):
    alone = judge_photos(machine, (), [folder], cards=False)
    (folder / "c.jpg").write_bytes((folder / "c.jpg").read_bytes()[:300])
    (folder / "d.jpg").write_bytes(b"")
    named = [folder, folder / "notes.txt", folder / "nowhere.png"]
    assert call(monkeypatch, *named, *flags(machine)) == 0
    table = written(machine.run_dir)
    assert [Path(path).name for path in table["path"]] == [
        *(f"{name}.jpg" for name in "abcdef"),
        "notes.txt",
        "nowhere.png",
    ]
    bad = [2, 3, 6, 7]
    assert table.index[table["error"] != ""].tolist() == bad
    assert table.loc[bad, ["threshold", "decision", "nearest_distance", "familiarity"]].eq("").all(axis=None)
    assert table.loc[bad, "probability"].isna().all()
    for row, kind in zip(bad, ("OSError", "UnidentifiedImageError", "Unidentified", "FileNotFound"), strict=True):
        assert table["error"][row].startswith(kind)
    good = [0, 1, 4, 5]
    np.testing.assert_allclose(table["probability"][good], alone["probability"][good].astype(float), rtol=1e-5)
    assert table["decision"][good].tolist() == alone["decision"][good].tolist()
    out = capsys.readouterr().out
    assert "4 judged: " in out and "; 4 could not be read" in out
    assert len(list((machine.graph_dir / "lesions").iterdir())) == 4


def flags(machine: Config) -> list[str]:
    values = {name: getattr(machine, name) for name in ("run_dir", "cache_dir", "graph_dir", "device")}
    values["train_image"] = machine.train_image[0]
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def test_if_no_image_can_be_read_that_is_an_error_of_one_line(machine, folder):
    with pytest.raises(InputError, match=r"none of the 2 images can be read: UnidentifiedImageError: [^\n]*$"):
        judge_photos(machine, (), [folder / "notes.txt", folder / "nowhere.png"])
    assert (written(machine.run_dir)["error"] != "").all()


def test_a_folder_without_images_is_refused_before_any_run_is_loaded(machine, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    nowhere = dataclasses.replace(machine, run_dir=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no image in .*empty: name image files, or folders with \.jpg"):
        judge_photos(nowhere, (), [tmp_path / "empty"])


NAMES = ["a, b.jpg", 'say "x".jpg', "皮膚 $x$.jpg", "läsion.png", "=1+1.jpg", "-.jpg"]


@pytest.mark.usefixtures("quick_cards")
def test_names_survive_the_csv_and_are_made_safe_for_the_cards(machine, folder, tmp_path):
    odd = tmp_path / "odd"
    odd.mkdir()
    for name in NAMES:
        Image.open(folder / "a.jpg").save(odd / name)
    (odd / 'broken, "too".jpg').write_text("x")
    judge_photos(machine, (), [odd, folder / "a.jpg"])
    table = written(machine.run_dir)
    assert sorted(table["path"]) == sorted(
        [*(str(odd / name) for name in [*NAMES, 'broken, "too".jpg']), str(folder / "a.jpg")]
    )
    files = {path.name for path in (machine.graph_dir / "lesions").iterdir()}
    assert files == {"a_b.png", "say_x.png", "皮膚_x.png", "läsion.png", "1_1.png", "-.png", "a.png"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_text_is_escaped(machine, folder, capsys):
    name = os.fsdecode(b"\xff\xfe.jpg")
    shutil.copy(folder / "a.jpg", folder / name)
    judge_photos(machine, (), [folder / name])
    assert written(machine.run_dir)["path"].tolist() == [str(folder / "\\udcff\\udcfe.jpg")]


def test_names_of_cards_are_unique_and_safe():
    taken: set[str] = set()
    stems = ["a", "a", "A", "a_2", "a/../b", "..", "", "x" * 300, "x" * 300]
    names = [unique_name(stem, taken) for stem in stems]
    assert names[:7] == ["a", "a_2", "A_3", "a_2_2", "a_.._b", "lesion", "lesion_2"]
    assert len({name.casefold() for name in names}) == len(stems)
    assert all(len(name) < 70 for name in names)


def test_photos_judged_a_few_at_a_time_give_the_same_table(machine, folder, monkeypatch):
    (folder / "e.jpg").write_bytes(b"")
    whole = judge_photos(machine, (), [folder], cards=False)
    monkeypatch.setattr(models, "AT_A_TIME", 4)
    parts = judge_photos(machine, (), [folder], cards=False)
    # a photo that lies as far as a validation image, but for the rounding, may count it or not
    one = 1 / (run_folder.read_split(machine.run_dir)["part"] == "validation").sum()
    pd.testing.assert_series_equal(parts.pop("familiarity"), whole.pop("familiarity"), atol=1.01 * one)
    pd.testing.assert_frame_equal(parts, whole, check_exact=False, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("asked", "limit", "drawn"), [(None, 6, 6), (None, 5, 0), (True, 5, 6), (False, 6, 0)])
@pytest.mark.usefixtures("quick_cards")
def test_cards_are_drawn_for_few_photos_or_if_asked_for(machine, folder, monkeypatch, capsys, asked, limit, drawn):
    monkeypatch.setattr(new_lesions, "CARDS", limit)
    judge_photos(machine, (), [folder], cards=asked)
    assert len(list((machine.graph_dir / "lesions").glob("*.png"))) == drawn
    out = capsys.readouterr().out
    assert ("6 photos: no cards drawn, --cards draws them" in out) == (drawn == 0)
    assert sum(".jpg  " in line for line in out.splitlines()) == limit
    assert ("... and 1 more" in out) == (limit == 5)


@pytest.mark.usefixtures("quick_cards")
def test_a_card_shows_the_nearest_references_of_each_class(machine, folder, monkeypatch):
    seen = shown_cards(monkeypatch)
    judge_photos(machine, (), [folder / "a.jpg", folder / "f.jpg"])
    run = predict.load_run(machine)
    names, feed = run.part("train")["image_name"].tolist(), feed_of(machine, run)
    assert [card["name"] for card in seen] == ["a.jpg", "f.jpg"]
    for card, number in zip(seen, (8, 13), strict=True):
        original = sorted(machine.train_image[0].iterdir())[number].stem
        _, [embedding] = ensemble.score_images(run, feed, pd.Series([original]))
        for label in (0, 1):
            expected = sorted(
                (math.dist(embedding, own), name)
                for own, name, other in zip(run.references, names, run.reference_labels, strict=True)
                if other == label
            )[:5]
            assert [name for name, _, _ in card[label]] == [name for _, name in expected]
            distances = [distance for _, _, distance in card[label]]
            np.testing.assert_allclose(distances, [own for own, _ in expected], atol=1e-5)
            for name, pixels, _ in card[label]:
                bright = Image.open(machine.train_image[0] / f"{name}.jpg")
                assert pixels.shape == (32, 32, 3)
                assert pixels.mean() == pytest.approx(np.asarray(bright).mean(), abs=2)
    assert {card["verdict"][0].partition(":")[0] for card in seen} == {"called melanoma", "called benign"}


@pytest.mark.usefixtures("quick_cards")
def test_the_heat_map_explains_the_runs_own_score(machine, folder, monkeypatch):
    seen = shown_cards(monkeypatch)
    judge_photos(machine, (), [folder / "a.jpg", folder / "f.jpg"])
    dark, bright = (card["heat"] for card in seen)  # the run has learnt that dark is melanoma
    assert dark.shape == (32, 32)
    assert np.abs(dark - bright).max() > 0
    run = predict.load_run(machine)
    cache = feed_of(machine, run).cache
    [view] = cache.gather(cache.rows([sorted(machine.train_image[0].iterdir())[8].stem]))
    [scorer] = ensemble.make_ensemble([run]).scorers
    by_hand = heat_map(run.network, view, scorer, run.references, run.reference_labels)
    np.testing.assert_allclose(dark, by_hand, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("quick_cards")
def test_a_card_of_several_runs_says_what_the_first_one_alone_shows(machine, second, folder, monkeypatch):
    seen = shown_cards(monkeypatch)
    for run_dirs in ([machine.run_dir], [machine.run_dir, second]):
        judge_photos(machine, run_dirs, [folder / "a.jpg"])
    assert ["map and distances: by the first run" in card["verdict"] for card in seen] == [False, True]


ROW = {"decision": "melanoma", "probability": 0.31, "threshold": 0.25, "familiarity": 0.5, "known": False}
ROW |= {"nearest_distance": 0.125, "nearest_label": 0}


def test_a_verdict_leads_with_the_call_and_explains_its_numbers():
    assert describe_verdict({**ROW, "familiarity": 0.5}, alone=True) == [
        "called melanoma: probability of melanoma 0.310",
        "called melanoma from 0.250 on",
        "",
        "nearest training lesion, benign, 0.125 away in the embedding",
        "familiarity 50.0 %: share of validation images as far from theirs",
        "",
        "research software, not a medical device",
    ]


def test_of_an_unfamiliar_lesion_the_warning_leads_and_no_call_is_made():
    lines = describe_verdict({**ROW, "familiarity": 0.009}, alone=True)
    assert lines[:2] == ["unlike anything seen: do not trust it", "probability of melanoma 0.310"]
    assert not any("called" in line for line in lines)


@pytest.mark.parametrize(
    ("probability", "text"),
    [(0.0, "< 0.001"), (0.0004, "< 0.001"), (0.0006, "0.001"), (0.9994, "0.999"), (0.9996, "> 0.999")],
)
def test_no_probability_is_said_to_be_0_or_1(probability, text):
    assert probability_text(probability) == text


# --- the challenge's test set ---


@pytest.fixture
def challenge(machine: Config, folder: Path, tmp_path: Path) -> Config:
    """The machine with the six photos as the challenge's test set, in an order of its own."""
    text = "image,patient,age_approx,anatom_site,sex\n" + "".join(f"{name},IP_1,45,torso,male\n" for name in "ecafdb")
    (tmp_path / "test.csv").write_text(text)
    return dataclasses.replace(
        machine, test_image=folder, test_labels=tmp_path / "test.csv", cache_dir=tmp_path / "cache"
    )


def test_a_submission_has_a_row_for_every_name_in_the_files_order(challenge):
    table = write_submission(challenge, ())
    lines = (challenge.run_dir / "submission.csv").read_text().splitlines()
    assert lines[0] == "image_name,target"
    assert [line.partition(",")[0] for line in lines[1:]] == list("ecafdb")
    photos = judge_photos(challenge, (), [challenge.test_image / f"{name}.jpg" for name in "ecafdb"], cards=False)
    np.testing.assert_allclose(table["target"], photos["probability"].astype(float), rtol=1e-5)
    assert table["target"].nunique() == 6


def test_kaggles_file_is_understood_and_several_runs_submit_to_the_graph_dir(challenge, second):
    challenge.test_labels.write_text("image_name,patient_id,sex\nb,IP_1,male\na,IP_2,male\n")
    run_dirs = [challenge.run_dir, second]
    table = write_submission(challenge, run_dirs)
    assert table["image_name"].tolist() == ["b", "a"]
    photos = judge_photos(
        challenge, run_dirs, [challenge.test_image / "b.jpg", challenge.test_image / "a.jpg"], cards=False
    )
    np.testing.assert_allclose(table["target"], photos["probability"].astype(float), rtol=1e-5)
    pd.testing.assert_frame_equal(pd.read_csv(challenge.graph_dir / "submission.csv"), table)


def test_missing_test_images_are_counted_and_the_first_is_named(challenge):
    for name in "cd":
        (challenge.test_image / f"{name}.jpg").unlink()
    skipping = dataclasses.replace(challenge, skip_unreadable=True)
    for machine in (challenge, skipping):
        with pytest.raises(
            InputError, match=r"test_image .* lacks 2 of the 6 images that .*test\.csv names, c for one"
        ):
            write_submission(machine, ())


@pytest.mark.parametrize("prevalence", [None, 0.0176])
def test_an_unreadable_test_image_stops_or_has_the_prevalence(challenge, capsys, prevalence):
    (challenge.test_image / "f.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="1 images cannot be read, replace them or pass --skip-unreadable: f:"):
        write_submission(challenge, ())
    machine = dataclasses.replace(challenge, skip_unreadable=True)
    table = write_submission(machine, (), Choices(prevalence=prevalence)).set_index("image_name")["target"]
    split = pd.read_csv(machine.run_dir / "split.csv")
    usual = split.loc[split["part"] == "validation", "label"].mean()
    assert table["f"] == pytest.approx(prevalence or usual)
    assert table.index.tolist() == list("ecafdb")
    assert (table.drop("f") != table["f"]).all()
    assert "1 images cannot be read and have the prevalence: f" in capsys.readouterr().out


def test_a_test_set_of_which_nothing_can_be_read_is_refused(challenge):
    for name in "abcdef":
        (challenge.test_image / f"{name}.jpg").write_bytes(b"x")
    with pytest.raises(InputError, match="none of the 6 test images can be read"):
        write_submission(dataclasses.replace(challenge, skip_unreadable=True), ())


# --- the command line ---


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    return exit_code(monkeypatch, predict.run, "predict.py", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["a.jpg", "--submission"],
        ["--submission", "--evaluate-image", "x", "--evaluate-labels", "y"],
        ["a.jpg", "--compare", "other"],
        ["a.jpg", "--serve"],
        ["--serve", "--export", "x"],
    ],
)
def test_two_things_at_once_are_refused(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 2
    assert "are different things: ask for one" in capsys.readouterr().err


def test_a_photo_among_the_runs_is_told_from_one(monkeypatch, capsys, folder):
    assert call(monkeypatch, "--run-dir", "runs/a", folder / "a.jpg") == 2
    assert "a.jpg is a file: name photos before the flags" in capsys.readouterr().err


def test_without_a_run_the_first_model_judges_what_is_new(monkeypatch, tmp_path, capsys):
    calls = []
    for name in ("judge_photos", "write_submission", "serve_page", "main", "export"):
        monkeypatch.setattr(predict, name, lambda machine, run_dirs, *others, name=name: calls.append((name, run_dirs)))
    new = (["a.jpg"], ["--submission"], ["--serve"], ["--evaluate-image", "i", "--evaluate-labels", "l.csv"])
    run_dir = ["--run-dir", str(tmp_path / "siamese")]
    monkeypatch.chdir(tmp_path)
    for arguments in (*new, [], ["--export", "m.pt"]):
        assert call(monkeypatch, *arguments) == 0
    told = f"is not there: judging with {predict.FIRST_MODEL}"
    assert capsys.readouterr().out.count(told) == 4
    assert [places for _, places in calls] == [[predict.FIRST_MODEL]] * 4 + [[]] * 2
    calls.clear()
    for arguments in new:
        assert call(monkeypatch, *arguments, *run_dir) == 0
    assert [places for _, places in calls] == [[tmp_path / "siamese"]] * 4


def test_flags_reach_what_they_are_for(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "siamese").mkdir(parents=True)
    calls = []

    def spy(name: str) -> Callable:
        return lambda *arguments: calls.append((name, *arguments[1:]))

    for name in ("judge_photos", "write_submission", "main"):
        monkeypatch.setattr(predict, name, spy(name))
    for arguments in (
        ["a.jpg", "b", "--no-cards", "--run-dir", "r", "s", "--scorer", "nearest"],
        ["--graph-dir", "g", "a.jpg"],
        ["--submission", "--prevalence", "0.02"],
        [],
        ["--figure-format", "pdf,svg", "--figure-dpi", "300"],
    ):
        assert call(monkeypatch, *arguments) == 0
    photos, one, submission, evaluation, figures = calls
    assert photos == (
        "judge_photos",
        [Path("r").absolute(), Path("s").absolute()],
        [Path("a.jpg"), Path("b")],
        Choices(scorer="nearest"),
        False,
    )
    assert one == ("judge_photos", [], [Path("a.jpg")], Choices(), None)
    assert submission == ("write_submission", [], Choices(prevalence=0.02))
    assert evaluation == ("main", [], None, None, Choices(), None, "test", (), 150)
    assert figures[-2:] == (("pdf", "svg"), 300)
