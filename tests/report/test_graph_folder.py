"""Figures carry the mark of their runs, those of other runs are removed, and what a user keeps there stays."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import names, quick_config
from matplotlib.figure import Figure
from PIL import Image

import predict
import train
from melanoma.data import synthetic
from melanoma.report import graph_folder, new_lesions
from melanoma.report.graph_folder import Origin, clear_others, marks_of, origin_of, save_drawn, save_figure

OURS = Origin(["siamese"], ["scratch"], ["data/train"], ["2026-11-27T02:43:01+00:00"], synthetic=False)
THEIRS = dataclasses.replace(OURS, started=["2026-11-26T02:43:01+00:00"])


def test_the_line_names_run_recipe_data_and_date():
    assert OURS.line == "run siamese · recipe scratch · data data/train · 2026-11-27"
    assert dataclasses.replace(OURS, synthetic=True).line == f"SYNTHETIC images · {OURS.line}"
    assert dataclasses.replace(OURS, started=[""]).line == "run siamese · recipe scratch · data data/train"
    several = Origin(["a", "b"], ["demo", "strong"], ["x", "y"], [THEIRS.started[0], OURS.started[0]], False)
    assert several.line == "2 runs a, b · recipe demo, strong · data x, y · 2026-11-26 to 2026-11-27"
    assert len(dataclasses.replace(OURS, runs=["r" * 500]).line) < 120


def test_the_mark_tells_runs_apart_and_does_not_depend_on_their_order():
    later = dataclasses.replace(OURS, started=["2026-11-27T02:43:02+00:00"])
    other = dataclasses.replace(OURS, runs=["another"])
    assert len({OURS.mark, THEIRS.mark, later.mark, other.mark}) == 4
    both = Origin(["a", "b"], [], [], ["1", "2"], False)
    assert both.mark == Origin(["b", "a"], [], [], ["2", "1"], False).mark


def run_of(name: str, *started: str, synthetic: bool = False) -> Any:
    """What an origin takes of a run."""
    starts = [{"started": time} for time in started]
    return SimpleNamespace(
        name=name, settings={"recipe": "demo"}, data="demo/train", starts=starts, synthetic=synthetic
    )


def test_the_origin_of_runs_is_what_they_say():
    runs = [run_of("/far/away/seed0", "2026-11-25T01:00:00+00:00", "2026-11-26"), run_of("bare")]
    origin = origin_of(runs)
    expected = Origin(["seed0", "bare"], ["demo"], ["demo/train"], ["2026-11-25T01:00:00+00:00", ""], synthetic=False)
    assert origin == expected


@pytest.mark.parametrize("place", ["training", "evaluated"])
def test_generated_images_make_an_origin_synthetic(tmp_path, monkeypatch, place):
    monkeypatch.setattr(graph_folder, "is_generated", lambda folder: folder.name == "generated")
    evaluated = tmp_path / ("generated" if place == "evaluated" else "photos")
    assert origin_of([run_of("a"), run_of("b", synthetic=place == "training")], [evaluated]).synthetic
    assert not origin_of([run_of("a")], [tmp_path / "photos"]).synthetic


@pytest.mark.parametrize("suffix", graph_folder.FORMATS)
def test_a_saved_figure_carries_its_mark(tmp_path, suffix):
    path = tmp_path / f"figure.{suffix}"
    save_figure(Figure(), path, OURS.mark)
    assert marks_of(path) == {OURS.mark}


def test_formats_and_resolution_are_those_asked_for(tmp_path):
    drawn = {"a.png": Figure(figsize=(2, 1)), "b.png": None}
    found = save_drawn(drawn, tmp_path, OURS.mark, ("png", "pdf", "svg"), dpi=300)
    assert names(tmp_path) == ["a.pdf", "a.png", "a.svg"]
    assert found == {"a.png": (tmp_path / "a.png").read_bytes(), "b.png": None}
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (600, 300)
    (tmp_path / "b.pdf").write_bytes(b"of a user")
    save_drawn(drawn, tmp_path, OURS.mark)
    assert names(tmp_path) == ["a.png", "b.pdf"]  # no other format is left from before
    save_drawn({"a.png": None}, tmp_path, OURS.mark)
    assert names(tmp_path) == ["b.pdf"]


def test_files_of_another_run_are_removed_and_all_others_kept(tmp_path, capsys):
    for origin, name in ((OURS, "ROC_curve.png"), (THEIRS, "t_SNE.pdf"), (THEIRS, "lesions/photo.png")):
        save_figure(Figure(), tmp_path / name, origin.mark)
    (tmp_path / "report.html").write_text(f"<html></html><!-- {THEIRS.mark} -->")
    kept = {"a.png": b"\x89PNG of a user", "notes.txt": THEIRS.mark.encode(), "metrics.json": b"{}"}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder.png").mkdir()
    clear_others(tmp_path, OURS.mark)
    assert names(tmp_path) == sorted(["ROC_curve.png", *kept, "folder.png", "lesions"])
    assert names(tmp_path / "lesions") == []
    assert capsys.readouterr().out == (
        f"removed from {tmp_path} 3 files of another run: photo.png, report.html, t_SNE.pdf\n"
    )
    clear_others(tmp_path, OURS.mark)
    clear_others(tmp_path / "nowhere", OURS.mark)
    assert capsys.readouterr().out == ""


def test_a_run_on_generated_images_says_so_and_clears_the_figures_of_another(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(synthetic, "SIZES", ((80, 60),))
    synthetic.write_demo(tmp_path / "demo", 120, seed=0)
    labels = tmp_path / "demo" / "ISIC_2020_Training_GroundTruth.csv"
    config = quick_config(tmp_path, train_image=(tmp_path / "demo" / "train",), train_labels=(labels,))
    save_figure(Figure(), config.graph_dir / "ROC_curve.png", THEIRS.mark)
    train.main(config)
    line = "SYNTHETIC images · run run · recipe baseline · data demo/train · 20"
    told = capsys.readouterr().out
    assert line in told and "1 file of another run: ROC_curve.png" in told
    assert names(config.graph_dir) == ["Train_average_loss.png"]
    mark = origin_of([predict.load_run(config)]).mark
    metrics = predict.main(config)
    assert line in metrics["origin"] and line in capsys.readouterr().out
    for path in config.graph_dir.iterdir():
        assert marks_of(path) == {mark}, path
    assert line in (config.graph_dir / "report.html").read_text(encoding="utf-8")

    signed, draw = [], new_lesions.lesion_card

    def spy(name, origin, *others):
        signed.append(origin)
        return draw(name, origin, *others)

    monkeypatch.setattr(new_lesions, "lesion_card", spy)
    predict.judge_photos(config, [], [next(config.train_image[0].iterdir())])
    [card] = (config.graph_dir / "lesions").iterdir()
    assert signed == [metrics["origin"]] and marks_of(card) == {mark}
    assert line in capsys.readouterr().out
