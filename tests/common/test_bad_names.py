"""Names that came from files stay names: in the report, on the terminal, in figures."""

import io
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bad_input import EVIL, cases, check_message
from conftest import exit_code, quick_config
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from tally import tally
from test_page import CARD, FIGURES, METRICS, SETTINGS, Page

import predict
from melanoma.common.errors import InputError, brief, listed, printable, shown
from melanoma.report import curves
from melanoma.report import page as report
from melanoma.report.lesions import error_gallery, lesion_card
from melanoma.report.new_lesions import describe_photos
from melanoma.scoring.model import COLUMNS

KIND = "bad name"
ROOT = Path(__file__).parents[2]
PIECES = [
    *(
        "<script>alert(1)</script>",
        '"',
        "'",
        "&",
        "<",
        ">",
        "&amp;",
        "javascript:alert(1)",
        "{{7*7}}",
        "{%raw%}",
        "-->",
    ),
    *(
        "onerror=x",
        "</style>",
        "<!--",
        "]]>",
        "\x1b[31m",
        "\x07",
        "\0",
        "\x9b",
        "\u202e",
        "\ud800",
        "\udcff",
        "\r",
        "\n",
    ),
    *("皮膚", "$x^$", "%s", "\\", "`", "=1+1", "🙂", " ", "a"),
]
NAMES = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), min_size=1, max_size=6).map("".join)


def page_of(name: str) -> str:
    plain: dict[str, Any] = METRICS
    metrics = {
        **plain,
        "set": name,
        "runs": [{**plain["runs"][0], "run_dir": name}],
        "controls": [{**row, "note": name} for row in plain["controls"]],
        "subgroups": [{**row, "group": name, "note": name} for row in plain["subgroups"]],
        "not_computed": {**plain["not_computed"], "npv": name},
    }
    settings = {**SETTINGS, "command": name, "config": {"train_image": name, name: 1}, name: [{name: name}]}
    card = {**CARD, "training_data": name}
    return report.render(metrics, {key: FIGURES[key] for key in list(FIGURES)[:3]}, settings, card)


def skeleton(page: str) -> list[tuple[str, list[str]]]:
    """The elements of a page, each with its attributes, and their values where no name may be in them."""
    free = {"alt", "aria-label"}
    return [
        (tag, sorted(key if key in free else f"{key}={value}" for key, value in attributes.items()))
        for tag, attributes in Page(page).tags
    ]


@cases(40)
@given(name=NAMES)
@example(name=EVIL)
def test_a_name_in_the_report_is_text_and_makes_no_element_or_attribute(name):
    page = page_of(name)
    assert skeleton(page) == skeleton(page_of("x" * len(name)))
    seen = "".join(Page(page).texts)
    assert re.sub(r"\s", "", name.replace("\0", "")) in re.sub(r"\s", "", seen.replace("\0", "")) or "\0" in name
    tally(KIND, "correct")


@cases(80)
@given(names=st.lists(NAMES, min_size=1, max_size=4, unique=True), error=NAMES)
def test_names_of_photos_and_their_errors_are_shown_and_not_obeyed(names, error):
    rows = [
        [0.5, 0.4, "melanoma", 0.1, 1, name, 0.5, False, ""] if i % 2 else [*[""] * 8, printable(f"OSError: {error}")]
        for i, name in enumerate(names)
    ]
    table = pd.DataFrame([[name, *row] for name, row in zip(names, rows, strict=True)], columns=COLUMNS)
    lines = describe_photos(table).split("\n")
    assert len(lines) == len(names) + 2
    assert all(line.isprintable() for line in lines)
    tally(KIND, "correct")


@cases(150)
@given(text=NAMES | st.text(max_size=300), most=st.integers(3, 90))
def test_a_message_is_one_printable_line_whatever_it_quotes(text, most):
    for message in (str(InputError(f"a {text} b")), printable(text), shown(text), printable(listed([text] * 9))):
        assert message.isprintable()
    assert len(shown(text * 1000)) <= 80
    assert len(brief(text, most)) <= most
    assert printable(printable(text)) == printable(text)
    plain = "".join(c for c in text if c.isprintable()).strip()
    assert printable(plain) == plain
    check_message(str(InputError(f"{shown(text * 10**5)}: {listed([text * 10**4] * 10**3)}")), [])
    tally(KIND, "clean error")


LARGE = [[[1] * 1000] * 1000, {"a": {"b": {"c": {"d": {"e": 1}}}}}, object(), b"\xff" * 10**6]


@pytest.mark.parametrize("value", LARGE, ids=["lists", "dicts", "object", "bytes"])
def test_any_value_is_quoted_briefly(value):
    assert len(shown(value)) <= 80
    tally(KIND, "clean error")


PICTURE = np.full((8, 8, 3), 100, np.uint8)
HARD = [EVIL, "皮膚 $x^$ \\frac{", "\x1b]0;title\x07\r\nsecond line", "\udcff\ud800", "🙂" * 200, "_^{}%&#~"]


@pytest.mark.parametrize("name", HARD, ids=range(len(HARD)))
def test_a_figure_draws_any_name_without_a_warning(name):
    row = {"attribute": name, "group": name, "n": 9, "n_melanoma": 5, "auc": None, "auc_interval": None, "note": name}
    drawn = [
        curves.confusion_matrix({"tp": 1, "fp": 2, "tn": 3, "fn": 4}, name),
        curves.forest([row, {**row, "auc": 0.5, "auc_interval": [0.4, 0.6]}], 0.7, name),
        error_gallery([PICTURE], np.array([1]), np.array([0.1]), [name], {"fn": 1, "fp": 0}, name),
        lesion_card(name, name, PICTURE, PICTURE[..., 0], ["called benign"], [(name, PICTURE, 0.1)], []),
    ]
    for figure in drawn:
        figure.savefig(io.BytesIO(), dpi=20)
    tally(KIND, "correct")


# --- scripts ---


def test_an_error_of_a_script_is_one_line_that_a_terminal_only_shows(monkeypatch, capsys):
    def main() -> None:
        raise InputError(f"a\n  b {EVIL} \udcff")

    assert exit_code(monkeypatch, main, "script.py") == 2
    out, err = capsys.readouterr()
    assert (out, err[:11], err.count("\n"), err[-1]) == ("", "error: a b ", 1, "\n")
    assert err[:-1].isprintable()
    tally(KIND, "clean error")


def test_a_script_prints_names_that_are_no_text():
    code = "from melanoma.common.script import run_script; run_script(lambda: print('a\\udcffb'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a\\udcffb\n", b"")
    tally(KIND, "correct")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.usefixtures("lean_evaluation")
def test_an_evaluation_of_evil_names_is_whole_and_obeys_none(trained, tmp_path, capsys, monkeypatch):
    evil = EVIL.replace("/", "_")
    run_dir = tmp_path / os.fsdecode(b"run \xff <i>")
    shutil.copytree(trained.run_dir, run_dir)
    folder = tmp_path / evil
    folder.mkdir()
    rows = ["image_name,patient_id,sex,age_approx,anatom_site_general_challenge,target"]
    rng = np.random.default_rng(1)
    for i in range(24):
        name = f"<u>{i} 皮 & 'x' $^$ =1+1"
        melanoma = i % 3 == 0
        pixels = rng.integers(0, 90, (30, 40, 3)) + (20 if melanoma else 140) * (i % 5 != 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.jpg")
        rows.append(f'"{name}","<b>{i}","<i>","{i}","<script>皮$^$</script>",{int(melanoma)}')
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    machine = quick_config(trained.train_image[0].parent, graph_dir=tmp_path / "graph")
    flags = [f"--{name.replace('_', '-')}={getattr(machine, name)}" for name in ("cache_dir", "graph_dir", "device")]
    flags += [f"--train-image={machine.train_image[0]}"]
    new = ["--run-dir", run_dir, "--evaluate-image", folder, "--evaluate-labels", tmp_path / "labels.csv"]
    with warnings.catch_warnings():
        assert exit_code(monkeypatch, predict.run, "predict.py", *flags, *new) == 0
    assert f"{printable(evil)}: 24 images" in capsys.readouterr().out
    page = Page((tmp_path / "graph" / "report.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "b", "i", "u"})
    assert all(not key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert "<script>皮$^$</script>" in "".join(page.texts)
    predictions = pd.read_csv(run_dir / "evaluate_predictions.csv")
    assert sorted(predictions["image_name"]) == sorted(f"<u>{i} 皮 & 'x' $^$ =1+1" for i in range(24))
    tally(KIND, "correct")
