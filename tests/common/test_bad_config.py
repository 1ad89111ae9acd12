"""Settings of every value and type, from Python, JSON files and flags: taken as they are, or refused by name."""

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import controls
import pytest
from bad_input import EVIL, REFUSED, attempt, cases, no_files, refusal
from conftest import exit_code
from hypothesis import given
from hypothesis import strategies as st
from tally import tally

import dataset
import predict
import train
from config import BASELINE, RECIPES, Config
from melanoma.common.device import choose_device
from melanoma.common.errors import InputError
from melanoma.common.settings import Parser, add_flags, from_dict, from_flags, to_dict, with_machine

KIND = "bad settings"
TINY, NEXT = math.ulp(0.0), 1 - math.ulp(0.5)  # the least float above 0, and the largest below 1
HUGE = 1.7976931348623157e308

# What each field may be, said once more: whole numbers from - to; floats as those that are in and those just out.
WHOLE = {
    "workers": (0, 1024),
    "image_size": (32, 1024),
    "fold": (0, 4),
    "validation_fold": (1, 4),  # 0, by default, tests
    "split_seed": (0, 2**32 - 1),
    "seed": (0, 2**63 - 1),
    "grid": (1, 32),
    "embedding_dim": (2, 4096),
    "frozen_blocks": (0, 10**6),
    "batch_size": (2, 10**6),  # 1 with independent pairs alone
    "epochs": (1, 10**6),
}
POSITIVE = ([TINY, 1.0, HUGE], [0.0, -TINY])
ZERO_OR_MORE = ([0.0, TINY, HUGE], [-TINY, -1.0])
SHARE = ([TINY, 1.0], [0.0, 1 + math.ulp(1.0)])
BELOW_1 = ([0.0, NEXT], [1.0, -TINY])
FLOATS = {
    "dropout": BELOW_1,
    "epoch_share": SHARE,
    "margin": POSITIVE,
    "positive_margin": ZERO_OR_MORE,
    "pair_weight": ([TINY, HUGE], [-TINY]),  # 0 needs a head
    "hardest": SHARE,
    "learning_rate": POSITIVE,
    "backbone_rate": SHARE,
    "weight_decay": ZERO_OR_MORE,
    "ema": BELOW_1,
}
CHOICES = {
    "split": ["patient", "published"],
    "head": ["none", "bce", "focal"],
    "pairs": ["independent", "batch"],
    "recipe": list(RECIPES),
    "views": ["none", "mild", "wide", "wider"],
    "average": ["all", "active"],
    "schedule": ["constant", "cosine"],
    "precision": ["auto", "float32", "bfloat16"],
}
SWITCHES = ["deterministic", "skip_unreadable", "normalize", "pairs_within_source", "colour_constancy"]
PATHS = ["test_image", "test_labels", "duplicates", "cache_dir", "run_dir", "graph_dir"]
TEXTS = ["device", "backbone", "backbone_weights", "image_column", "label_column"]
PATH_LISTS = ["train_image", "train_labels", "train_metadata"]
TEXT_LISTS = ["melanoma_values", "group_columns"]
ODD = [
    *(None, True, False, -1, 10**400, -(10**400), "", "1", "nan", "x" * 10**7, EVIL, "a\0b", "\ud800", b"1"),
    *(math.nan, math.inf, -math.inf, [], [[[[1]]]], ["x" * 10**6] * 3, {}, {"a": {"b": 1}}, 1j, (1,), object()),
]


def path_of(text: str) -> Path:
    """Return the path that a text stands for."""
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111 (as for any text)


def good_and_bad(name: str) -> tuple[list[Any], list[Any]]:
    """Return values that a field takes and values that it does not, as they stand in a JSON file.

    None stands for the recipe's value where it has one.
    """
    good, bad = values_of(name)
    return good, [value for value in bad if value is not None or name not in BASELINE]


def values_of(name: str) -> tuple[list[Any], list[Any]]:
    good: list[Any]
    bad: list[Any]
    if name in WHOLE:
        low, high = WHOLE[name]
        good, bad = [low, high], [low - 1, high + 1, float(low), str(low), *(v for v in ODD if v is not True)]
        if name == "workers":
            bad = [value for value in bad if value is not False]
        if name in ("fold", "validation_fold"):
            good, bad = [*good, None], [value for value in bad if value is not None]
        return good, [*bad, True, False]
    if name == "test_views":
        return [1, 8], [0, 2, 7, 9, 1.0, *ODD]
    if name in FLOATS:
        floats, no_floats = FLOATS[name]
        return floats, [*no_floats, *(value for value in ODD if value is not None), None]
    if name in CHOICES:
        return CHOICES[name], [CHOICES[name][0].upper(), CHOICES[name][0] + " ", 0, *ODD]
    if name in SWITCHES:
        return [True, False], [0, 1, "true", *(value for value in ODD if type(value) is not bool)]
    good = ["", "1", "nan", EVIL, "/" + "x" * 4095, "~", "-", " ", "ü", "皮膚", "\udcff"]
    bad = [value for value in ODD if not isinstance(value, str)]
    if name in ("duplicates", "image_column", "label_column"):
        good, bad = [*good, None], [value for value in bad if value is not None]
    if name in PATH_LISTS + TEXT_LISTS:  # an empty list, or a list of texts, is fine
        good = [[text] for text in good] + [["a", "b"]]
        good += [[]] if name != "train_image" else []
        bad = [value for value in bad if value is not None and not isinstance(value, (list, tuple))] + [[1], ["a", [1]]]
    return good, bad


def test_the_fields_are_all_here():
    named = [*WHOLE, *FLOATS, *CHOICES, *SWITCHES, *PATHS, *TEXTS, *PATH_LISTS, *TEXT_LISTS, "test_views"]
    assert sorted(named) == sorted(item.name for item in dataclasses.fields(Config))


@pytest.mark.parametrize("name", [item.name for item in dataclasses.fields(Config)])
def test_a_field_takes_what_it_should_and_nothing_else(name):
    good, bad = good_and_bad(name)
    for value in good:
        config = from_dict(Config, {name: value}, "best.pt")
        expected = path_of(value) if name in PATHS and value is not None else value
        if isinstance(value, list):
            expected = tuple(path_of(one) if name in PATH_LISTS else one for one in value)
        assert getattr(config, name) == expected
        assert type(getattr(config, name)) is type(expected)
        others = RECIPES[value] if name == "recipe" else {}
        stored = str(expected) if isinstance(expected, Path) else value
        if isinstance(expected, tuple):
            stored = list(map(str, expected))
        assert to_dict(config) == {**to_dict(Config()), **others, name: stored}
        tally(KIND, "correct")
    for value in bad:
        message = refusal(KIND, ["best.pt: ", f"{name} is "], from_dict, Config, {name: value}, "best.pt")
        assert "unknown" not in message


def test_everything_wrong_at_once_is_one_bounded_line():
    values = {item.name: {"x": "y" * 10**6} for item in dataclasses.fields(Config)}
    with pytest.raises(InputError) as error:
        from_dict(Config, values, "best.pt")
    message = str(error.value)
    assert message.isprintable()
    assert len(message) < 200 * len(values)
    assert all(f"{name} is " in message for name in values)
    tally(KIND, "clean error")


@pytest.mark.parametrize(
    "values",
    [{"epocs": 1}, {"": 1}, {"x" * 10**7: 1}, {EVIL: 1}, {1: 2, "a": 3, None: 4}, {f"a{i}": i for i in range(10**4)}],
)
def test_unknown_settings_are_named_and_not_at_length(values):
    refusal(KIND, ["best.pt: unknown settings"], from_dict, Config, values, "best.pt")
    refusal(KIND, ["best.pt: unknown settings"], with_machine, values, Config(), "best.pt")


# --- JSON files ---


def parse(*flags: str) -> Config:
    parser = Parser("", "")
    add_flags(parser, Config, RECIPES)
    return from_flags(Config, RECIPES, parser.parse_args(flags))


GOOD_FILES = {
    "empty object": (b"{}", {}),
    "a mark and CRLF": (b'\xef\xbb\xbf{\r\n"epochs": 3\r\n}\r\n', {"epochs": 3}),
    "whole number for a float": (b'{"margin": 2}', {"margin": 2.0}),
    "exponent": (b'{"margin": 5e-1}', {"margin": 0.5}),
    "escapes": (b'{"run_dir": "\\u00fc\\n"}', {"run_dir": path_of("ü\n")}),
    "null": (b'{"duplicates": null}', {"duplicates": None}),
}
BAD_FILES = {
    "empty": b"",
    "text": b"epochs: 3",
    "list": b"[3]",
    "number": b"3",
    "null": b"null",
    "text in quotes": b'"epochs"',
    "cut": b'{"epochs": 3',
    "two objects": b'{"epochs": 3}{"epochs": 3}',
    "deep list": b"[" * 100_000 + b"]" * 100_000,
    "deep object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a little deep": b'{"margin": ' + b"[" * 30 + b"]" * 30 + b"}",
    "NaN": b'{"margin": NaN}',
    "Infinity": b'{"margin": Infinity}',
    "beyond floats": b'{"margin": 1e999}',
    "10,000 digits": b'{"epochs": ' + b"1" * 10_000 + b"}",
    "400 digits": b'{"margin": ' + b"1" * 400 + b"}",
    "Latin-1": '{"run_dir": "ü"}'.encode("latin-1"),
    "UTF-16": '{"epochs": 3}'.encode("utf-16"),
    "NUL": b'{"epochs": 3}\0',
    "binary": bytes(range(256)),
    "comment": b'{"epochs": 3} // three',
    "comma": b'{"epochs": 3,}',
    "Python": b"{'epochs': 3}",
}


@pytest.mark.parametrize("content, changed", GOOD_FILES.values(), ids=GOOD_FILES)
def test_a_config_file_is_read_as_what_it_means(tmp_path, content, changed):
    (tmp_path / "c.json").write_bytes(content)
    assert parse("--config", str(tmp_path / "c.json")) == dataclasses.replace(Config(), **changed)
    tally(KIND, "correct")


@pytest.mark.parametrize("content", BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_config_file_is_refused(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    refusal(KIND, [tmp_path / "c.json"], parse, "--config", str(tmp_path / "c.json"))


def test_what_is_no_config_file_is_refused_and_not_waited_for(tmp_path):
    for path in no_files(tmp_path).values():
        refusal(KIND, [path], parse, "--config", str(path))


def stored_as(values: dict[str, Any]) -> dict[str, Any]:
    """Return how settings of a JSON file are stored."""
    settings = {name: RECIPES["scratch"].get(name) if value is None else value for name, value in values.items()}
    stored: dict[str, Any] = {}
    for name, value in settings.items():
        stored[name] = str(path_of(value)) if name in PATHS and value is not None else value
        if name in PATH_LISTS + TEXT_LISTS:
            several = value if isinstance(value, list) else [] if value is None else [value]
            stored[name] = [str(path_of(one)) if name in PATH_LISTS else one for one in several]
    return stored


def test_a_config_file_cut_or_changed_anywhere_is_read_as_what_it_says_or_refused(tmp_path):
    path = tmp_path / "c.json"
    whole = json.dumps({"epochs": 3, "margin": 0.25, "run_dir": "r", "normalize": False}).encode()
    changed = [whole[:cut] for cut in range(len(whole))]
    changed += [whole[:i] + bytes([whole[i] ^ bit]) + whole[i + 1 :] for i in range(len(whole)) for bit in (1, 4, 128)]
    for content in changed:
        path.write_bytes(content)
        config = attempt(KIND, [path], parse, "--config", str(path))
        if config is not REFUSED:
            values = json.loads(content)
            assert {name: to_dict(config)[name] for name in values} == stored_as(values)
            tally(KIND, "correct")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([item.name for item in dataclasses.fields(Config)])


@cases(150)
@given(values=st.dictionaries(NAMES, JSON, min_size=1, max_size=3))
def test_any_json_for_settings_is_taken_as_it_is_or_refused(tmp_path, values):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(values))
    config = attempt(KIND, [path], parse, "--config", str(path))
    if config is not REFUSED:
        assert {name: to_dict(config)[name] for name in values} == stored_as(values)
        tally(KIND, "correct")


# --- flags ---

FLAGS = ["--epochs", "--margin", "--seed", "--split", "--normalize", "--fold", "--workers", "--run-dir", "--recipe"]
VALUES = ["", "0", "-1", "1", "1.0", "1e3", "nan", "inf", "1" * 5000, "１", "0x10", "yes", "patient", EVIL, "strong"]


@pytest.mark.parametrize("flag", [*FLAGS, "--epoch", "-x", "--no-normalize", "--no-epochs", "--", ""])
def test_a_flag_is_understood_or_stops_the_program(flag, capsys):
    for value in VALUES:
        for flags in ([flag, value], [f"{flag}={value}"]):
            try:
                config: Any = attempt(KIND, [], parse, *flags)
            except SystemExit as stop:
                assert stop.code == 2
                error = capsys.readouterr().err
                assert error.startswith("error: ") and error.count("\n") == 1
                tally(KIND, "clean error")
                continue
            if config is REFUSED:
                continue
            expected: Any = {
                "--epochs": lambda text: {"epochs": int(text)},
                "--margin": lambda text: {"margin": float(text)},
                "--seed": lambda text: {"seed": int(text)},
                "--split": lambda text: {"split": text},
                "--fold": lambda text: {"fold": int(text)},
                "--workers": lambda text: {"workers": int(text)},
                "--run-dir": lambda text: {"run_dir": path_of(text)},
            }
            if flag == "--recipe":
                assert value == "strong"
                assert config.backbone == "tf_efficientnet_lite0"
            else:
                assert config == dataclasses.replace(Config(), **expected[flag](value))
            tally(KIND, "correct")


# --- devices ---

DEVICES = ["", "cpu:", "cpu:x", "cpu:-1", "cpu:" + "9" * 4000, "cpu\x1b", "CPU", "cuda:0:0", "cuda:99", "meta", EVIL]


@pytest.mark.parametrize("name", [*DEVICES, "x" * 4000, "auto ", "皮膚"], ids=range(len(DEVICES) + 3))
def test_a_device_that_is_not_here_is_refused(name):
    refusal(KIND, ["--device"], choose_device, name)


@pytest.mark.parametrize("flag", ["run-dir", "train-image", "train-labels", "cache-dir", "duplicates", "test-labels"])
@pytest.mark.parametrize("script", ["train", "predict", "dataset", "dataset --cache", "controls"])
def test_a_path_that_no_file_can_have_ends_every_script_in_one_line(flag, script, monkeypatch, capsys, tmp_path):
    work = {
        "train": lambda: train.run(train.make_parser().parse_args()),
        "predict": predict.run,
        "dataset": dataset.main,
        "dataset --cache": dataset.main,
        "controls": controls.main,
    }[script]
    for path in ("x" * 300, "\udcff" * 100, "/proc/self/mem/x", "/dev/null/x", f"{tmp_path}/\x1b[31m"):
        monkeypatch.chdir(tmp_path)
        code = exit_code(monkeypatch, work, *script.split(), f"--{flag}={path}")
        _out, err = capsys.readouterr()
        assert (code, err.count("\n")) == (2, 1)
        assert err[:-1].isprintable()
        tally(KIND, "clean error")
