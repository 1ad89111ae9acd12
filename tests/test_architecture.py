"""Five scripts over one library: imports point one way, and importing a file has no visible effect."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What each script may import of the others.
SCRIPTS: dict[str, set[str]] = {
    "config": set(),
    "dataset": {"config"},
    "modules": {"config"},
    "train": {"config", "dataset", "modules"},
    "predict": {"config", "dataset", "modules"},
}
# The levels of the library. A file may import its own room and those of lower levels, but not its neighbours.
LEVELS = [{"common"}, {"data"}, {"backbones", "training", "scoring"}, {"evaluation"}, {"report"}]
# melanoma/__init__.py is the front door of the library for Python: it alone imports a script, for the network.
LIBRARY = sorted(path for path in (ROOT / "melanoma").rglob("*.py") if path.name != "__init__.py")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def room_of(module: str) -> str:
    """Return the room of a module of the library: `data` for `melanoma.data.labels`."""
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, wherever in the file it does."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: imports are absolute"
            assert node.module not in (None, "melanoma"), f"{path}, line {node.lineno}: name the room"
            names.add(str(node.module))
    return names


def scripts_in(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} & set(SCRIPTS)


def test_the_top_level_has_five_python_files():
    assert {path.stem for path in ROOT.glob("*.py")} == set(SCRIPTS)


def test_every_file_of_the_library_is_in_a_room():
    assert {room_of(module_name(path)) for path in LIBRARY} == set().union(*LEVELS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_only_scripts_before_them(name):
    assert scripts_in(imported(ROOT / f"{name}.py")) <= SCRIPTS[name]


@pytest.mark.parametrize("path", LIBRARY, ids=module_name)
def test_the_library_imports_no_script_and_only_lower_rooms(path):
    names = imported(path)
    assert scripts_in(names) == set()
    own = room_of(module_name(path))
    level = next(number for number, rooms in enumerate(LEVELS) if own in rooms)
    allowed = {own}.union(*LEVELS[:level])
    assert {room_of(name) for name in names if name.startswith("melanoma.")} <= allowed


WHICH_ARE_LOADED = """
import sys
sys.path.insert(0, sys.argv[1])
import config
print(*sorted({"torch", "numpy", "pandas", "matplotlib", "sklearn", "PIL"} & set(sys.modules)))
"""


def test_settings_need_no_heavy_library(tmp_path):
    command = [sys.executable, "-c", WHICH_ARE_LOADED, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("\n", "")


IMPORT_EACH = """
import os, sys
import matplotlib.font_manager  # prints a line when it builds its font cache for the first time on a machine
sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)
    print(name, os.listdir())
"""


def test_importing_a_file_does_nothing(tmp_path):
    names = [*SCRIPTS, *map(module_name, LIBRARY)]
    command = [sys.executable, "-c", IMPORT_EACH, str(ROOT), *names]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [f"{name} []" for name in names]


def test_the_oldest_versions_tried_are_the_lower_bounds():
    text = {name: (ROOT / name).read_text() for name in ("requirements.txt", "constraints-oldest.txt")}
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", text["requirements.txt"], re.MULTILINE))
    tried = dict(re.findall(r"^([\w-]+)==([\d.]+)", text["constraints-oldest.txt"], re.MULTILINE))
    assert len(bounds) == len([line for line in text["requirements.txt"].splitlines() if line[0] != "#"])
    for name, bound in bounds.items():
        numbers = [*bound.split("."), "0", "0"][:3]
        assert tried[name] == ".".join(numbers), name
