"""Imports point one way only, and importing a file does nothing that can be seen."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The project files that each file may import. A new file needs a line here, and thereby a place.
MAY_IMPORT = {
    "errors": set(),
    "files": set(),
    "config": {"files"},
    "lock": {"files"},
    "script": set(),
    "decoding": {"files"},
    "images": {"config", "decoding", "files", "script"},
    "labels": {"files"},
    "archive": {"decoding", "files"},
    "transfer": {"config", "files"},
    "download": {"archive", "config", "decoding", "files", "lock", "transfer"},
    "check": {"archive", "config", "decoding", "files", "labels"},
    "dataset": {"check", "config", "decoding", "download", "files", "images", "labels", "script"},
    "augment": set(),
    "modules": {"config", "files"},
    "losses": {"modules"},
    "classify": set(),
    "metrics": set(),
    "bootstrap": {"metrics"},
    "subgroups": {"bootstrap", "images"},
    "figures": {"files"},
    "curves": {"figures"},
    "galleries": {"figures"},
    "tables": set(),
    "report": {"tables"},
    "device": set(),
    "feed": {"augment", "device", "images", "modules"},
    "checkpoint": {"config", "dataset", "files", "labels", "lock"},
    "learner": {"augment", "checkpoint", "config", "dataset", "device", "losses", "modules"},
    "panel": {
        "checkpoint",
        "classify",
        "config",
        "dataset",
        "decoding",
        "device",
        "feed",
        "images",
        "labels",
        "modules",
    },
    "explain": {"augment", "classify", "modules"},
    "cards": {"figures"},
    "unlabelled": {
        "cards",
        "classify",
        "config",
        "decoding",
        "device",
        "explain",
        "feed",
        "figures",
        "files",
        "images",
        "labels",
        "panel",
    },
    "measure": {"bootstrap", "controls", "files", "images", "labels", "metrics", "panel", "subgroups"},
    "draw": {"bootstrap", "checkpoint", "curves", "dataset", "figures", "galleries", "images", "panel"},
    "demo": set(),
    "controls": {"bootstrap", "config", "dataset", "images", "metrics", "script"},
}
BELOW_THE_SCRIPTS = set(MAY_IMPORT) - {"demo", "controls"}
FOR_TRAIN = {"learner"}
FOR_PREDICT = {"panel", "explain", "cards", "unlabelled", "measure", "draw"}
MAY_IMPORT |= {"train": BELOW_THE_SCRIPTS - FOR_PREDICT, "predict": BELOW_THE_SCRIPTS - FOR_TRAIN}


def imported(name: str) -> set[str]:
    """Return the top-level names that a project file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / f"{name}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}.py, line {node.lineno}: the files are no package"
            names.add(node.module or "")
    return {imported.partition(".")[0] for imported in names}


def test_every_file_has_its_place():
    assert {path.stem for path in ROOT.glob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_imports_point_down(name):
    allowed = MAY_IMPORT[name] | {"errors"}  # anyone may tell the user what is wrong
    assert imported(name) & set(MAY_IMPORT) <= allowed - {name}


def test_settings_need_the_standard_library_alone():
    for name in ("config", *MAY_IMPORT["config"], "errors"):
        assert imported(name) <= sys.stdlib_module_names | set(MAY_IMPORT)


IMPORT_EACH = """
import os, sys
import matplotlib.font_manager  # says so when it builds its font cache for the first time on a machine
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
    print(name, os.listdir())
"""


def test_importing_a_file_does_nothing(tmp_path):
    command = [sys.executable, "-c", IMPORT_EACH, str(ROOT), *MAY_IMPORT]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name} []" for name in MAY_IMPORT]


def test_the_oldest_versions_tried_are_the_lower_bounds():
    text = {name: (ROOT / name).read_text() for name in ("requirements.txt", "constraints-oldest.txt")}
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", text["requirements.txt"], re.MULTILINE))
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)", text["constraints-oldest.txt"], re.MULTILINE))
    assert len(bounds) == len([line for line in text["requirements.txt"].splitlines() if line[0] != "#"])
    for name, bound in bounds.items():
        numbers = [*bound.split("."), "0", "0"][:3]
        assert tried[name] == ".".join(numbers), name
