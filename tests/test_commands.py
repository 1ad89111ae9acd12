"""The command line: bad input is one line and exit code 2, and the commands in README.md and docs/ are understood."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import controls
import pytest
from conftest import exit_code

import dataset
import predict
import train
from config import Config

ROOT = Path(__file__).parent.parent
SCRIPTS = {
    "train.py": lambda: train.run(train.make_parser().parse_args()),
    "predict.py": predict.run,
    "dataset.py": dataset.main,
}
PARSERS = {
    "train.py": train.make_parser,
    "predict.py": predict.make_parser,
    "dataset.py": dataset.make_parser,
    "benchmarks/controls.py": controls.make_parser,
}


def flags(quick: Config) -> list[str]:
    values = {name: getattr(quick, name) for name in ("cache_dir", "run_dir", "graph_dir")}
    values |= {"train_image": quick.train_image[0], "train_labels": quick.train_labels[0]}
    return [part for name, value in values.items() for part in (f"--{name.replace('_', '-')}", str(value))]


BAD_INPUT = [
    ("train.py", ["--train-image", "nowhere"], "train_image {here}/nowhere is not a folder"),
    ("train.py", ["--train-labels", "nowhere.csv"], "train_labels {here}/nowhere.csv does not exist"),
    ("train.py", ["--duplicates", "nowhere.csv"], "duplicates {here}/nowhere.csv does not exist"),
    ("train.py", ["--margin", "0"], "margin is 0.0: it must be a finite number above 0"),
    ("train.py", ["--image-size", "8"], "image_size is 8: it must be from 32 to 1024"),
    ("train.py", ["--device", "abacus"], "device 'abacus' cannot be used here"),
    ("train.py", ["--backbone", "vgg99"], "backbone is 'vgg99': it must be conv3 or a name of timm, as "),
    ("train.py", ["--config", "nowhere.json"], "--config {here}/nowhere.json does not exist: pass a run's config.json"),
    ("train.py", ["--resume"], "--resume: there is no"),
    ("predict.py", [], "there is no checkpoint"),
    ("dataset.py", ["--train-labels", "nowhere.csv"], "train_labels {here}/nowhere.csv does not exist"),
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
    assert exit_code(monkeypatch, SCRIPTS[script], script, *flags(quick), *extra) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message.format(here=Path.cwd()) in error


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--recipe", "lasagne"], "invalid choice: 'lasagne'"),
        ("train.py", ["--head", "conv9"], "invalid choice: 'conv9'"),
        ("train.py", ["--epoch", "3"], "unrecognized arguments: --epoch 3: did you mean --epochs?"),
        ("train.py", ["--learning-rat=1"], "did you mean --learning-rate?"),
        ("train.py", ["--xyzzy"], "unrecognized arguments: --xyzzy: --help-all lists all flags"),
        ("train.py", ["--loss", "triplet"], "unrecognized arguments: --loss"),
        ("train.py", ["--batch-size", "many"], "invalid int value: 'many'"),
        ("train.py", ["--resume", "--overwrite"], "not allowed with"),
        ("predict.py", ["--margin", "1"], "unrecognized arguments: --margin"),
        ("predict.py", ["--evaluate-image", "x"], "go together"),
        ("predict.py", ["--min-sensitivity", "1.5"], "1.5: it must be above 0, at most 1"),
        ("predict.py", ["--prevalence", "0"], "prevalence is 0.0: it must be above 0, at most 0.999"),
        ("predict.py", ["--scorer", "guess"], "invalid choice: 'guess'"),
        ("predict.py", ["--split-part", "4"], "invalid choice: '4'"),
        ("predict.py", ["--cards"], "--cards goes with photos"),
        (
            "predict.py",
            ["--figure-format", "png,gif"],
            "png,gif: it must be of png, pdf, svg, with commas between them",
        ),
        ("predict.py", ["--figure-dpi", "72"], "invalid choice: 72"),
        ("predict.py", ["a.jpg", "--figure-dpi", "300"], "--figure-dpi goes with an evaluation"),
        (
            "predict.py",
            ["--run-dir", "a", "b.JPG"],
            f"--run-dir {Path('b.JPG').absolute()} is no run: name photos before the flags",
        ),
        (
            "predict.py",
            ["--run-dir", "a", "b", "./a"],
            f"--run-dir names {Path('a').absolute()} twice: a run counts once",
        ),
        ("predict.py", ["--compare", "a", "a"], f"--compare names {Path('a').absolute()} twice"),
        ("predict.py", ["--submission", "--metrics-file", "x"], "--metrics-file goes with an evaluation"),
        ("dataset.py", ["--json", "--check"], "--json goes with the summary alone"),
    ],
)
def test_flags_that_do_not_exist_or_do_not_parse_stop_the_script(
    script: str, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(monkeypatch, SCRIPTS[script], script, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_process_of_its_own_exits_2_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: train_labels {tmp_path}/data/")
    assert done.stderr.count("\n") == 1


def commands(document: Path) -> list[str]:
    """Return the commands of a document's bash blocks that call a Python file of this project."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if re.match(r"(python [a-z]|torchrun )", line)]


README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [(path.name, line) for path in DOCUMENTS for line in commands(path)]


def test_the_readme_is_short_and_has_commands() -> None:
    assert len(README.read_bytes()) <= 12 * 1024
    assert len(commands(README)) >= 5


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_commands_in_the_documents_are_understood(document: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, flags = words[place], [word for word in words[place + 1 :] if not word.startswith("--help")]
    if script in PARSERS:
        PARSERS[script]().parse_args(flags)
    else:
        text = (ROOT / script).read_text(encoding="utf-8")
        assert [flag for flag in flags if flag.startswith("--") and f'"{flag}"' not in text] == []
