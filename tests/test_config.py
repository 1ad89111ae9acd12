"""config.py: defaults, ranges, flags, recipes, and what a user sees when a setting is wrong."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import config
from config import RECIPES, Config
from melanoma.common import settings as lib
from melanoma.common.errors import InputError
from melanoma.common.settings import Parser, add_flags, from_flags, to_dict

ROOT = Path(__file__).parents[1]

LISTS = ["train_image", "train_labels", "train_metadata"]  # of paths
PATHS = ["test_image", "test_labels", "duplicates", "cache_dir", "run_dir", "graph_dir"]
TEXTS = {
    "image_column": "No",
    "label_column": "No",
    "melanoma_values": ("MM", "LM"),
    "group_columns": ("person", "spot"),
}
MACHINE = {*LISTS, *PATHS, *TEXTS, "device", "workers", "deterministic", "skip_unreadable"}
FIELDS = {item.name: item for item in dataclasses.fields(Config)}
OUTLINE = {
    "image_size": 128,
    "embedding_dim": 128,
    "margin": 0.5,
    "batch_size": 256,
    "learning_rate": 1e-4,
    "epochs": 12,
    "backbone": "conv3",
}


def parse(*flags: str, only_machine: bool = False) -> Config:
    parser = Parser("", "")
    add_flags(parser, Config, RECIPES, only_machine)
    return from_flags(Config, RECIPES, parser.parse_args(flags))


def from_dict(values: dict[str, typing.Any], source: str) -> Config:
    return lib.from_dict(Config, values, source)


def with_machine(stored: dict[str, typing.Any], machine: Config, source: str) -> Config:
    return lib.with_machine(stored, machine, source)


def other_value(name: str) -> typing.Any:
    """Return a valid value of a field, not its default where there is a choice."""
    default: typing.Any = getattr(Config(), name)
    choices, allowed = FIELDS[name].metadata["choices"], FIELDS[name].metadata["allowed"]
    if choices:
        return next(choice for choice in reversed(choices) if choice != default)
    if name in PATHS:
        return Path("/Else where/x.csv")
    if name in LISTS:
        return (Path("/Else where/x.csv"), Path("/y"))
    if name in TEXTS:
        return TEXTS[name]
    if name == "validation_fold":
        return 2
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return "cpu"
    others = (default + 1, 1) if isinstance(default, int) else (default + 1, default + 0.25, default / 2)
    return next(value for value in others if allowed is None or allowed[1](value))


def all_changed() -> Config:
    by_image = {"fold": 0, "validation_fold": None}  # as published is
    return Config(**{name: other_value(name) for name in FIELDS} | by_image)


def refusal(**settings: typing.Any) -> str:
    with pytest.raises(InputError) as error:
        Config(**settings)
    return str(error.value)


# --- fields and their ranges ---


def test_the_default_recipe_is_scratch_on_a_split_by_patient():
    settings = to_dict(Config())
    expected = (
        RECIPES["scratch"]
        | {"recipe": "scratch"}
        | {"split": "patient", "fold": 0, "device": "auto", "duplicates": None}
    )
    assert {name: settings[name] for name in expected} == expected


def test_there_are_at_most_51_settings():
    assert len(FIELDS) <= 51


def test_all_recipes_set_the_same_names_which_are_left_to_them():
    for recipe in RECIPES.values():
        assert set(recipe) == set(config.BASELINE)
    assert all(FIELDS[name].default is None for name in config.BASELINE)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().epochs = 3  # type: ignore[misc]  # mypy says so too


INF, NAN = float("inf"), float("nan")
OUT_OF_RANGE = [
    *[("image_size", 31, "from 32 to 1024"), ("image_size", 1025, "from 32 to 1024")],
    ("embedding_dim", 1, "2 or more"),
    *[("margin", value, "a finite number above 0") for value in (0.0, -0.5, NAN, INF)],
    ("batch_size", 0, "1 or more"),
    *[("learning_rate", value, "a finite number above 0") for value in (0.0, -1e-4, NAN, INF)],
    ("epochs", 0, "1 or more"),
    *[("fold", -1, "from 0 to 4"), ("fold", 5, "from 0 to 4")],
    *[("seed", -1, "from 0 to 9223372036854775807"), ("seed", 2**63, "from 0 to 9223372036854775807")],
    *[("split_seed", -1, "from 0 to 4294967295"), ("split_seed", 2**32, "from 0 to 4294967295")],
    ("workers", -1, "0 or more"),
    ("split", "random", "one of patient, published"),
    *[("dropout", value, "0 or more, below 1") for value in (-0.1, 1.0, NAN)],
    ("head", "hinge", "one of none, bce, focal"),
    *[("grid", value, "from 1 to 32") for value in (0, 33)],
    ("frozen_blocks", -1, "0 or more"),
    *[("epoch_share", value, "above 0, at most 1") for value in (0.0, 1.1, NAN)],
    ("positive_margin", -0.1, "0 or more, and finite"),
    *[("hardest", value, "above 0, at most 1") for value in (0.0, 1.1)],
    *[("ema", value, "0 or more, below 1") for value in (-0.1, 1.0)],
    *[("weight_decay", value, "0 or more, and finite") for value in (-1.0, INF)],
    ("views", "wild", "one of none, mild, wide, wider"),
    ("recipe", "best", "one of scratch, strong, baseline, demo"),
    *[("test_views", value, "1 or 8") for value in (0, 4, 9)],
    ("precision", "int8", "one of auto, float32, bfloat16"),
]


@pytest.mark.parametrize("name, value, allowed", OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_what_is_allowed(name, value, allowed):
    assert refusal(**{name: value}).startswith(f"{name} is {value!r}: it must be {allowed}")


def test_the_ends_of_the_ranges_are_allowed():
    least: dict[str, typing.Any] = {
        "image_size": 32,
        "embedding_dim": 2,
        "batch_size": 1,
        "pairs": "independent",
        "epochs": 1,
        "fold": 0,
        "seed": 0,
    }
    most = {"image_size": 1024, "fold": 4, "seed": 2**63 - 1, "split_seed": 2**32 - 1}
    for settings in (least, most):
        stored = to_dict(Config(**settings))
        assert {name: stored[name] for name in settings} == settings


WRONG_TYPE = [
    *[("epochs", value, "int") for value in (1.5, True, "12")],
    *[("margin", value, "float") for value in ("0.5", True)],
    *[("deterministic", value, "bool") for value in (1, "yes")],
    ("train_image", 3, "path"),
    ("duplicates", 3, "path or none"),
    ("device", 0, "str"),
]


@pytest.mark.parametrize("name, value, kind", WRONG_TYPE)
def test_a_value_of_the_wrong_type_is_named_with_the_type(name, value, kind):
    assert refusal(**{name: value}) == f"{name} is {value!r}: it must be of type {kind}"


@pytest.mark.parametrize(
    "settings",
    [
        {"image_size": 1, "margin": 0.0, "epochs": 0, "split": "random"},
        {"image_size": "x", "margin": True, "deterministic": 1},
        {"margin": "x", "epochs": 0, "split": "random"},
    ],
    ids=["ranges", "types", "types and ranges"],
)
def test_all_problems_are_reported_at_once(settings):
    message = refusal(**settings)
    for name, value in settings.items():
        assert f"{name} is {value!r}: it must be " in message


def test_the_published_split_has_no_folds():
    assert refusal(split="published", fold=1) == "fold is 1: it must be 0 with the published split"
    message = "validation_fold is 2: it must be none with the published split"
    assert refusal(split="published", validation_fold=2) == message


def test_the_fold_that_tests_cannot_validate():
    assert refusal(fold=2, validation_fold=2) == "validation_fold is 2: that fold tests, choose another"


def test_the_fold_that_validates_can_be_chosen_and_given_back_by_a_flag(tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text('{"validation_fold": 3}')
    assert parse("--config", str(stored)).validation_fold == 3
    assert parse("--config", str(stored), "--validation-fold", "none").validation_fold is None
    assert parse("--validation-fold", "4").validation_fold == 4


def test_an_image_needs_another_to_meet_in_a_batch():
    message = refusal(pairs="batch", batch_size=1)
    assert message == "batch_size is 1: with pairs batch it must be 2 or more, to make a pair"
    assert Config(pairs="independent", batch_size=1).batch_size == 1  # pair


def test_something_has_to_be_trained():
    message = refusal(pair_weight=0.0, head="none")
    assert message == "pair_weight is 0 and head is 'none': nothing would be trained, change one"
    assert Config(pair_weight=0.0, head="bce").pair_weight == 0


# --- flags ---


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_flag_and_changes_that_field_alone(name):
    value = other_value(name)
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        changed = parse(f"--{flag}" if value else f"--no-{flag}")
        assert parse(f"--no-{flag}" if value else f"--{flag}") == Config()
    else:
        changed = parse(f"--{flag}", *map(str, value if isinstance(value, tuple) else [value]))
    expected = RECIPES[value] | {name: value} if name == "recipe" else {name: value}
    assert changed == dataclasses.replace(Config(), **expected)
    assert value != getattr(Config(), name)
    assert type(getattr(changed, name)) is type(value)


def test_duplicates_can_be_switched_off_by_a_flag(tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text('{"duplicates": "/pairs.csv"}')
    assert parse("--config", str(stored)).duplicates == Path("/pairs.csv")
    assert parse("--config", str(stored), "--duplicates", "none").duplicates is None


@pytest.mark.parametrize("name", ["train_metadata", "melanoma_values", "group_columns"])
def test_a_list_can_be_emptied_by_a_flag(name, tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({name: ["/a", "/b"]}))
    assert len(getattr(parse("--config", str(stored)), name)) == 2
    assert getattr(parse("--config", str(stored), f"--{name.replace('_', '-')}", "none"), name) == ()


@pytest.mark.parametrize(
    "flags",
    [
        ["--epocs", "3"],
        ["--epoch", "3"],
        ["--epochs", "three"],
        ["--validation-fold", "two"],
        ["--epochs", "1.5"],
        ["--epochs"],
        ["--margin", "wide"],
        ["--split", "random"],
        ["--head", "hinge"],
        ["--recipe", "best"],
        ["--views", "wild"],
    ],
    ids=" ".join,
)
def test_a_wrong_flag_stops_with_code_2_and_is_named(flags, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*flags)
    assert stop.value.code == 2
    assert (flags[0] if len(flags) < 2 else flags[-1]) in capsys.readouterr().err


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_flag_out_of_range_is_refused_like_a_setting(value):
    with pytest.raises(InputError, match=r"^margin is .*: it must be a finite number above 0"):
        parse(f"--margin={value}")


def test_help_tells_the_meaning_and_the_exact_default_of_every_flag(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "500")
    with pytest.raises(SystemExit):
        parse("--help-all")
    text = " ".join(capsys.readouterr().out.split())
    comments = dict(re.findall(r"^(\w+) = .*?  # (.*)$", (ROOT / "config.py").read_text(), re.MULTILINE))
    for name, item in FIELDS.items():
        default = f"scratch: {RECIPES['scratch'][name]}" if name in RECIPES["scratch"] else str(item.default)
        default = default.lower() if default.endswith(("True", "False")) else default
        assert f" --{name.replace('_', '-')}" in text
        assert f"{comments[name]} ({default})" in text or (default == "None" and comments[name] in text)


def test_a_list_takes_one_value_many_or_none():
    edits: list[typing.Any] = ["a", ["a", Path("b")], None]
    one, two, none = (Config(train_labels=edit).train_labels for edit in edits)
    assert one == (Path("a").absolute(),) and two == (Path("a").absolute(), Path("b").absolute())
    assert none == parse("--train-labels", "none").train_labels == ()
    assert parse("--melanoma-values", "mel", "mm").melanoma_values == ("mel", "mm")


# --- recipes and config files ---


def test_the_baseline_recipe_is_the_outlines_hyperparameters():
    assert to_dict(parse("--recipe", "baseline")).items() >= OUTLINE.items()


@pytest.mark.parametrize("name", config.RECIPES)
def test_a_recipe_overrides_what_it_names_and_nothing_else(name):
    assert parse("--recipe", name) == Config(recipe=name, **RECIPES[name]) == Config(recipe=name)


def test_precedence_is_defaults_config_recipe_flags(tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"fold": 3, "image_size": 33, "batch_size": 33}))
    settings = parse("--batch-size", "5", "--recipe", "demo", "--config", str(stored))
    assert settings == Config(recipe="demo", fold=3, batch_size=5)
    assert settings.image_size == 64


def test_a_config_file_of_an_earlier_version_may_have_settings_that_are_gone(tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps({"fold": 3, "melanoma_weight": 1.0}))
    assert parse("--config", str(stored)) == Config(fold=3)


BAD_CONFIG_FILES = {
    "epochs: 3": "is not valid JSON",
    "[3]": "holds no settings",
    '{"epocs": 3}': "unknown settings epocs",
    '{"epochs": "3"}': "epochs is '3': it must be of type int",
    '{"margin": 0}': "margin is 0.0: it must be a finite number above 0",
    '{"margin": NaN}': "margin is nan: it must be a finite number above 0",
}


@pytest.mark.parametrize("text, message", BAD_CONFIG_FILES.items())
def test_a_bad_config_file_is_named_with_its_problem(text, message, tmp_path):
    stored = tmp_path / "config.json"
    stored.write_text(text)
    with pytest.raises(InputError) as error:
        parse("--config", str(stored))
    assert str(stored) in str(error.value)
    assert message in str(error.value)


def test_a_missing_config_file_is_named():
    with pytest.raises(InputError, match=r"^--config .*/nowhere\.json does not exist: pass a run's config"):
        parse("--config", "nowhere.json")


def test_a_config_survives_json():
    settings = all_changed()
    stored = json.loads(json.dumps(to_dict(settings), allow_nan=False))
    assert from_dict(stored, "test") == settings
    assert from_dict(to_dict(Config()), "test") == Config()


def test_whole_numbers_in_json_are_good_for_floats():
    assert from_dict({"margin": 2}, "test").margin == 2.0


# --- machine and experiment ---


def test_each_field_belongs_to_the_machine_or_to_the_experiment():
    assert set(lib.experiment(Config())) == set(FIELDS) - MACHINE


@pytest.mark.parametrize("name", [*sorted(set(FIELDS) - MACHINE), "config"])
def test_machine_flags_refuse_the_experiment(name, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(f"--{name.replace('_', '-')}", only_machine=True)
    assert stop.value.code == 2
    assert f"unrecognized arguments: --{name.replace('_', '-')}" in capsys.readouterr().err


def test_machine_flags_take_the_machine():
    settings = parse("--run-dir", "runs/b", "--workers", "3", only_machine=True)
    assert settings == Config(run_dir=Path("runs/b"), workers=3)


def test_a_stored_experiment_moves_to_this_machine():
    there = all_changed()
    here = Config(train_image=(Path("here"),), image_size=64, seed=9)
    moved = to_dict(with_machine(to_dict(there), here, "checkpoint"))
    assert moved == {name: to_dict(here if name in MACHINE else there)[name] for name in FIELDS}


def test_a_stored_experiment_with_unknown_settings_names_its_source():
    with pytest.raises(InputError, match=r"^best\.pt: unknown settings depth$"):
        with_machine({"depth": 4}, Config(), "best.pt")


# --- config.py as a user edits it ---


def edited(tmp_path: Path, *lines: str) -> Path:
    """Return a copy of the scripts whose config.py has these lines in place of those of the same names."""
    for name in ("dataset.py", "modules.py", "train.py", "predict.py"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / "melanoma").symlink_to(ROOT / "melanoma")
    text = (ROOT / "config.py").read_text()
    for line in lines:
        name = re.split(r"\W", line)[0]
        text, found = re.subn(rf"^{name} = .*$", line.replace("\\", r"\\"), text, count=1, flags=re.MULTILINE)
        assert found == 1, line
    (tmp_path / "config.py").write_text(text)
    return tmp_path


SHOW = (
    "import json, sys; from config import RECIPES, Config; from melanoma.common.errors import InputError\n"
    "from melanoma.common.settings import Parser, add_flags, from_flags, replaced_lines, to_dict\n"
    "parser = Parser('', ''); add_flags(parser, Config, RECIPES); arguments = parser.parse_args()\n"
    "try:\n config = from_flags(Config, RECIPES, arguments)\n"
    " print(json.dumps([to_dict(config), replaced_lines(config, RECIPES[config.recipe], arguments)]))\n"
    "except InputError as error: sys.exit(str(error))"
)


def settings_in(folder: Path, *flags: str) -> tuple[dict[str, typing.Any], list[str]]:
    done = subprocess.run([sys.executable, "-c", SHOW, *flags], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    values, replaced = json.loads(done.stdout)
    return values, replaced


@pytest.mark.parametrize(
    "line, name, value",
    [
        ('train_image = "/path"', "train_image", ["/path"]),
        ('train_image = "~/images"', "train_image", [str(Path.home() / "images")]),
        ('import pathlib; train_image = pathlib.Path("/a b")', "train_image", ["/a b"]),
        ('train_image = ["/a", "/b"]', "train_image", ["/a", "/b"]),
        ("epochs: int = 30", "epochs", 30),
        ("margin = 0.9", "margin", 0.9),
        ("margin = 1  # whole", "margin", 1.0),
        ('recipe = "strong"', "backbone", "tf_efficientnet_lite0"),
        ("epochs = None", "epochs", 20),
    ],
    ids=lambda value: str(value)[:24],
)
def test_whatever_line_of_config_py_is_edited_is_used(line, name, value, tmp_path):
    if line.startswith("import"):
        folder = edited(tmp_path)
        text = (folder / "config.py").read_text()
        (folder / "config.py").write_text(re.sub(r"^train_image = .*$", lambda _: line, text, flags=re.MULTILINE))
    else:
        folder = edited(tmp_path, line)
    values, replaced = settings_in(folder)
    assert values[name] == value
    assert replaced == []
    (folder / "config.json").write_text(json.dumps(values))
    shutil.copyfile(ROOT / "config.py", folder / "config.py")
    assert settings_in(folder, "--config", "config.json")[0] == values  # recorded, and repeated


@pytest.mark.parametrize(
    "line, message",
    [
        ('epochs = "many"', "epochs is 'many': it must be of type int"),
        ("margin = -1", "margin is -1.0: it must be a finite number above 0"),
        ("train_image = 3", "train_image is 3: it must be of type path"),
        ('recipe = "best"', "recipe is 'best': it must be one of scratch, strong, baseline, demo"),
    ],
)
def test_a_wrong_line_of_config_py_is_named_with_file_and_line(line, message, tmp_path):
    folder = edited(tmp_path, line)
    number = (folder / "config.py").read_text().splitlines().index(line) + 1
    done = subprocess.run([sys.executable, "-c", SHOW], cwd=folder, capture_output=True, text=True)
    assert done.stderr.strip() == f"{folder / 'config.py'}, line {number}: {message}"


def test_a_recipe_of_the_command_line_replaces_edits_and_says_which(tmp_path):
    folder = edited(tmp_path, "epochs = 30", "margin = 0.9", 'train_image = "/path"')
    values, replaced = settings_in(folder, "--recipe", "strong", "--margin", "0.7")
    assert (values["epochs"], values["margin"], values["train_image"]) == (12, 0.7, ["/path"])
    assert replaced == ["epochs = 30"]


def test_an_edit_beside_a_recipe_of_config_py_wins(tmp_path):
    values, replaced = settings_in(edited(tmp_path, 'recipe = "strong"', "epochs = 30"))
    assert (values["recipe"], values["epochs"], values["grid"]) == ("strong", 30, 4)
    assert replaced == []


def test_a_config_file_replaces_the_lines_that_it_names_and_no_others(tmp_path):
    folder = edited(tmp_path, "epochs = 30", "margin = 0.9")
    (folder / "part.json").write_text('{"epochs": 5}')
    values, replaced = settings_in(folder, "--config", "part.json")
    assert (values["epochs"], values["margin"]) == (5, 0.9)
    assert replaced == ["epochs = 30"]
