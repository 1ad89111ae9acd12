"""The command line: bad input is one line and exit code 2, and the README's commands are understood."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import dataset
import predict
import train
from config import Config
from melanoma.common import script as scripts
from melanoma.data import cache as images
from melanoma.data import synthetic as demo
from melanoma.evaluation import controls

ROOT = Path(__file__).parent.parent
SCRIPTS = {"train.py": train.run, "predict.py": predict.run, "dataset.py": dataset.main}
PARSERS = {
    "train.py": train.make_parser,
    "predict.py": predict.make_parser,
    "dataset.py": dataset.make_parser,
    "images.py": images.make_parser,
    "demo.py": demo.make_parser,
    "controls.py": controls.make_parser,
}


def call(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit) as stopped:
        scripts.run_script(SCRIPTS[script])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def flags(quick: Config) -> list[str]:
    names = ("train_image", "train_labels", "cache_dir", "run_dir", "graph_dir")
    return [part for name in names for part in (f"--{name.replace('_', '-')}", str(getattr(quick, name)))]


BAD_INPUT = [
    ("train.py", ["--train-image", "nowhere"], "train_image nowhere is not a folder"),
    ("train.py", ["--train-labels", "nowhere.csv"], "train_labels nowhere.csv does not exist"),
    ("train.py", ["--duplicates", "nowhere.csv"], "duplicates nowhere.csv does not exist"),
    ("train.py", ["--margin", "0"], "margin is 0.0: it must be a finite number above 0"),
    ("train.py", ["--image-size", "8"], "image_size is 8: it must be from 32 to 1024"),
    ("train.py", ["--device", "abacus"], "device 'abacus' cannot be used here"),
    ("train.py", ["--backbone", "vgg99"], "backbone is 'vgg99': it must be conv3, conv3_norm or one of "),
    ("train.py", ["--loss", "triplet"], "loss is 'triplet': it needs pairs batch"),
    (
        "train.py",
        ["--config", "nowhere.json"],
        "--config nowhere.json does not exist: pass a run's config.json",
    ),
    ("train.py", ["--resume"], "--resume: there is no"),
    ("predict.py", [], "there is no checkpoint"),
    ("dataset.py", ["--train-labels", "nowhere.csv"], "train_labels nowhere.csv does not exist"),
]


@pytest.mark.parametrize(("script", "extra", "message"), BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_2(
    script: str,
    extra: list[str],
    message: str,
    quick: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(script, *flags(quick), *extra, monkeypatch=monkeypatch) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--recipe", "lasagne"], "invalid choice: 'lasagne'"),
        ("train.py", ["--head", "conv9"], "invalid choice: 'conv9'"),
        ("train.py", ["--epoch", "3"], "unrecognized arguments: --epoch"),
        ("train.py", ["--batch-size", "many"], "invalid int value: 'many'"),
        ("train.py", ["--resume", "--overwrite"], "not allowed with"),
        ("predict.py", ["--margin", "1"], "unrecognized arguments: --margin"),
        ("predict.py", ["--evaluate-image", "x"], "go together"),
        ("predict.py", ["--min-sensitivity", "1.5"], "1.5: it must be above 0, at most 1"),
        ("predict.py", ["--prevalence", "0"], "0: it must be above 0, at most 0.999"),
        ("predict.py", ["--calibration", "guess"], "invalid choice: 'guess'"),
        ("predict.py", ["--scorer", "guess"], "invalid choice: 'guess'"),
        ("predict.py", ["--test-views", "4"], "invalid choice: 4"),
        ("predict.py", ["--cards"], "--cards goes with photos"),
        (
            "predict.py",
            ["--run-dir", "a", "b.JPG"],
            "--run-dir b.JPG is no run: name photos before the flags",
        ),
        ("predict.py", ["--run-dir", "a", "b", "./a"], "--run-dir names a twice: a run counts once"),
        ("predict.py", ["--compare", "a", "a"], "--compare names a twice"),
        ("predict.py", ["--submission", "--metrics-file", "x"], "--metrics-file goes with an evaluation"),
        ("dataset.py", ["--json", "--check"], "--json goes with the summary alone"),
    ],
)
def test_flags_that_do_not_exist_or_do_not_parse_stop_the_script(
    script: str,
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(script, *arguments, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err


def test_a_process_of_its_own_exits_2_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: train_labels data/")
    assert "Traceback" not in done.stderr


def readme_commands() -> list[str]:
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        line for line in lines if re.match(r"(python [a-z]|torchrun )", line) and "benchmarks/" not in line
    ]


def test_the_readme_has_commands() -> None:
    assert len(readme_commands()) >= 5


@pytest.mark.parametrize("line", readme_commands())
def test_commands_in_the_readme_are_understood(line: str) -> None:
    words = shlex.split(line, comments=True)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    PARSERS[words[place]]().parse_args(words[place + 1 :])
