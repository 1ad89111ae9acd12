"""Settings: a frozen dataclass whose values are plain lines of its file, as flags, as JSON, and back.

A field is declared with `opt`. Its value stands in the line `name = value  # help` of the same file, whose comment is
the help text of its flag. A value of None stands for the recipe's, where a recipe sets the field.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import os
import sys
import tokenize
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from melanoma.common.errors import InputError, brief, listed, printable, shown
from melanoma.common.files import read_json

LONGEST_TEXT = 4096  # characters of a path, Linux's limit

Allowed = tuple[str, Callable[[Any], bool]]  # in words for the error message, and as a test


def between(low: float, high: float) -> Allowed:
    """Allow numbers from low to high, both included."""
    return f"from {low} to {high}", lambda value: low <= value <= high


def at_least(low: int, most: int = 10**6) -> Allowed:
    """Allow counts from low to most."""
    return f"{low} or more, at most {most:,}", lambda value: low <= value <= most


POSITIVE: Allowed = ("a finite number above 0", lambda value: 0 < value < math.inf)
ZERO_OR_MORE: Allowed = ("0 or more, and finite", lambda value: 0 <= value < math.inf)
SHARE: Allowed = ("above 0, at most 1", lambda value: 0 < value <= 1)
SHARE_BELOW_1: Allowed = ("0 or more, below 1", lambda value: 0 <= value < 1)


def opt(
    line: Any,
    allowed: Allowed | Sequence[str] | None = None,
    *,
    group: str | None = None,
    machine: bool = False,
    rare: bool = False,
) -> Any:
    """Declare a setting: a dataclass field.

    Parameters
    ----------
    line : the value of the setting's line
    allowed : the range of its values, or its choices
    group : title of the group of flags that begins with this one
    machine : it belongs to this machine (paths, device), not to the experiment that a checkpoint stores
    rare : its flag is shown by --help-all alone
    """
    choices = None
    if allowed is not None and not callable(allowed[1]):
        choices = tuple(map(str, allowed))
        allowed = ("one of " + ", ".join(choices), lambda value: value in choices)
    metadata = {"allowed": allowed, "choices": choices, "group": group, "machine": machine, "rare": rare}
    return dataclasses.field(default=line, metadata=metadata)


def complete(settings: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Fill the fields of new settings that are None from a recipe, convert paths and numbers, and check all.

    Text serves for a path; paths become absolute and `~` the home folder. A whole number serves for a float.

    Returns
    -------
    what is wrong, a sentence for each field, which names file and line where the value stands in one
    """
    problems = []
    own: type = type(settings)
    kinds = field_types(own)
    for item in dataclasses.fields(settings):
        value, kind = getattr(settings, item.name), kinds[item.name]
        where = "" if value is None or value is not item.default else f"{_place(type(settings), item.name)}: "
        if value is None:
            value = recipe.get(item.name)
        if Path in _members(kind) and isinstance(value, (str, Path)) and _can_name(str(value)):
            value = Path(os.path.expanduser(value)).absolute()  # noqa: PTH111 (Path.expanduser raises for ~unknown)
        elif kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        object.__setattr__(settings, item.name, value)  # as a frozen dataclass does itself
        told, allowed = f"{where}{item.name} is {shown(value)}", item.metadata["allowed"]
        if isinstance(value, (str, Path)) and not _can_name(str(value)):
            problems.append(f"{told}: no file or device can have that name")
        elif not _is_a(value, kind):
            problems.append(f"{told}: it must be of type {_name(kind)}")
        elif allowed and not allowed[1](value):
            problems.append(f"{told}: it must be {allowed[0]}")
    return problems


def is_machine(settings: type, name: str) -> bool:
    """Return whether a field belongs to the machine (True) or to the experiment (False)."""
    return bool(settings.__dataclass_fields__[name].metadata["machine"])  # type: ignore[attr-defined]


def to_dict(settings: Any) -> dict[str, Any]:
    """Return the settings as JSON values (paths as text)."""
    values = dataclasses.asdict(settings)
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_dict(settings: type, values: Mapping[str, Any], source: str) -> Any:
    """Return the settings that `to_dict` or a JSON file gave; `source` names it in errors.

    Raises
    ------
    InputError : a name that is no setting, or a value of the wrong type or range
    """
    unknown = sorted(map(str, set(values) - set(field_types(settings))))
    if unknown:
        raise InputError(f"{source}: unknown settings {listed(unknown)}")
    try:
        return settings(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def experiment(settings: Any) -> dict[str, Any]:
    """Return the fields that define the experiment, as JSON values."""
    return {name: value for name, value in to_dict(settings).items() if not is_machine(type(settings), name)}


def with_machine(stored: Mapping[str, Any], machine: Any, source: str) -> Any:
    """Return the stored experiment on this machine: its paths and device come from `machine`."""
    here = {name: value for name, value in to_dict(machine).items() if is_machine(type(machine), name)}
    return from_dict(type(machine), {**stored, **here}, source)


# --- the command line ---


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, which names the nearest flag where one is misspelt.

    Flags are not abbreviated. `--help` shows the usual ones, `--help-all` all.
    """

    def __init__(self, description: str, usage: str) -> None:
        super().__init__(
            description=description,
            usage=usage,
            allow_abbrev=False,
            conflict_handler="resolve",
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=26, width=118),
        )
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all flags, the rare ones too")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        arguments, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(flag, known, 1)
            advice = f"did you mean {near[0]}?" if near else "--help-all lists all flags"
            self.error(f"unrecognized arguments: {printable(brief(' '.join(unknown)))}: {advice}")
        return arguments

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {printable(message)}\n")


class _HelpAll(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        for action in parser._actions:
            action.help = getattr(action, "rare", action.help)
        parser.print_help()
        parser.exit()


def add_flags(
    parser: Parser, settings: type, recipes: Mapping[str, Mapping[str, Any]], only_machine: bool = False
) -> None:
    """Add a flag for each field (`only_machine`: for the machine's fields alone) and, unless so, --config."""
    recipe = getattr(settings, "recipe", None)  # the value of its line
    of_recipe = recipes.get(recipe, {}) if isinstance(recipe, str) else {}
    kinds, comments = field_types(settings), _comments(settings)
    group: Any = parser
    if not only_machine:
        parser.add_argument("--config", type=Path, metavar="FILE", help="config.json of an earlier run")
    for item in dataclasses.fields(settings):
        own = item.metadata
        if own["group"]:
            group = parser.add_argument_group(own["group"])
        if only_machine and not own["machine"]:
            continue
        kind, rare, help = kinds[item.name], own["rare"], comments.get(item.name, (0, ""))[1]
        if item.default is not None:
            help += f" ({_text(item.default)})"
        elif item.name in of_recipe:
            help += f" ({recipe}: {_text(of_recipe[item.name])})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS}
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction
        else:
            options |= {"type": _reader(kind), "choices": own["choices"]}
            options["metavar"] = _name(kind).upper() if not own["choices"] else "NAME"
        action = group.add_argument(
            f"--{item.name.replace('_', '-')}", help=argparse.SUPPRESS if rare else help.replace("%", "%%"), **options
        )
        if rare:
            action.rare = help.replace("%", "%%")


def from_flags(settings: type, recipes: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> Any:
    """Return the settings that the command line asks for.

    Precedence, weakest first: the lines of the file, --config, --recipe, the other flags.
    """
    kinds = field_types(settings)
    flags = {name: value for name, value in vars(arguments).items() if name in kinds}
    base: dict[str, Any] = {}
    for name in ("config", "recipe"):
        if getattr(arguments, name, None) == []:  # some versions of argparse make this of `--recipe=--`
            raise InputError(f"--{name} has no value: give it one")
    if getattr(arguments, "config", None):
        base = _read_json(arguments.config)
        from_dict(settings, base, str(arguments.config))  # its faults are told as its own
    if "recipe" in flags:
        base |= recipes[flags["recipe"]]
    return settings(**base | flags)


def replaced_lines(settings: Any, recipe: Mapping[str, Any], arguments: argparse.Namespace) -> list[str]:
    """Return the lines of the file that `--config` or `--recipe` has replaced, as text: 'epochs = 30'.

    Parameters
    ----------
    settings : as `from_flags` returned them
    recipe : any recipe, for the names that recipes set
    """
    names = set(recipe) - set(vars(arguments))
    return [
        f"{item.name} = {shown(item.default)}"
        for item in dataclasses.fields(settings)
        if item.name in names and item.default not in (None, getattr(settings, item.name))
    ]


def _read_json(path: Path) -> dict[str, Any]:
    advice = "pass a run's config.json"
    values = read_json(path, f"--config {path.absolute()}", advice)
    if not isinstance(values, dict):
        raise InputError(f"--config {path.absolute()} holds no settings: {advice}")
    return values


@functools.cache
def _comments(settings: type) -> dict[str, tuple[int, str]]:
    """Return line number and comment of each plain line `name = value  # comment` of a class's file."""
    path = sys.modules[settings.__module__].__file__
    assert path is not None
    found: dict[str, tuple[int, str]] = {}
    name, before = "", None
    with Path(path).open(encoding="utf-8") as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.NAME and token.start[1] == 0:
                name = token.string
            elif token.type == tokenize.OP and before == name and token.string in "=:":
                found.setdefault(name, (token.start[0], ""))
            elif token.type == tokenize.COMMENT and found.get(name, (0,))[0] == token.start[0]:
                found[name] = (token.start[0], token.string.lstrip("# "))
            before = token.string
    return found


def _place(settings: type, name: str) -> str:
    """Return file and line of a setting's plain line."""
    path = Path(str(sys.modules[settings.__module__].__file__))
    return f"{path}, line {_comments(settings).get(name, (0, ''))[0]}"


@functools.cache
def field_types(settings: type) -> dict[str, Any]:
    """Return the type of each field."""
    return typing.get_type_hints(settings)


def _members(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)


def _is_a(value: Any, annotation: Any) -> bool:
    for kind in _members(annotation):
        if kind is Path and isinstance(value, Path):
            return True
        if type(value) is kind:  # exactly: True is no int here
            return True
    return False


def _can_name(text: str) -> bool:
    """Return whether a file can have this path: not too long, no NUL, no half of a character."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return len(text) <= LONGEST_TEXT and "\0" not in text


def _name(annotation: Any) -> str:
    names = [kind.__name__.replace("NoneType", "none") for kind in _members(annotation)]
    return " or ".join(names).lower()


def _reader(annotation: Any) -> Callable[[str], Any]:
    if type(None) not in _members(annotation):
        return annotation
    [kind] = set(_members(annotation)) - {type(None)}

    def read(text: str) -> Any:
        return None if text.lower() in ("", "none") else kind(text)

    read.__name__ = _name(kind)  # argparse names it in its error
    return read


def _text(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)
