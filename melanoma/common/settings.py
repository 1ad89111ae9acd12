"""Settings: a frozen dataclass whose values are plain lines of its file, as flags, as JSON, and back.

A field is declared with `opt`. Its value stands in the line `name = value  # help` of the same file, whose comment is
the help text of its flag. A value of None stands for the recipe's, where a recipe sets the field.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import inspect
import json
import math
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from melanoma.common.errors import InputError, brief, listed, printable, shown
from melanoma.common.files import read_json

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
    return dataclasses.field(default=tuple(line) if isinstance(line, list) else line, metadata=metadata)


def complete(settings: Any, recipe: Mapping[str, Any]) -> list[str]:
    """Fill the fields of new settings that are None from a recipe, convert paths and numbers, and check all.

    Text serves for a path; paths become absolute and `~` the home folder. A whole number serves for a float, and one
    value for a list of one.

    Returns
    -------
    a sentence for each invalid field, with file and line if the value comes from a line of a file
    """
    problems = []
    own: type = type(settings)
    for item in dataclasses.fields(settings):
        value, told = getattr(settings, item.name), item.name
        kinds, allowed = _kinds(item), item.metadata["allowed"]
        if value is None:
            value = recipe.get(item.name)
        elif value is item.default:
            told = f"{inspect.getfile(own)}, line {_line(own, item.name)[0]}: {told}"
        values = [_convert(one, kinds) for one in _values(item, value)]
        object.__setattr__(settings, item.name, tuple(values) if _is_list(item) else values[0])  # as dataclasses do
        for value in values:
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                problems.append(f"{told} is {shown(value)}: it must be of type {_name(kinds)}")
            elif allowed and not allowed[1](value):
                problems.append(f"{told} is {shown(value)}: it must be {allowed[0]}")
    return problems


def _values(item: dataclasses.Field[Any], value: Any) -> list[Any]:
    """Return the values of a field: those of a list, without None, or the one."""
    if not _is_list(item):
        return [value]
    return [one for one in (value if isinstance(value, (list, tuple)) else [value]) if one is not None]


def _convert(value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return text as an absolute path, and a whole number as a float, where the kinds of a field ask for it."""
    if Path in kinds and isinstance(value, (str, Path)):
        return Path(os.path.expanduser(value)).absolute()  # noqa: PTH111 (Path.expanduser raises for ~unknown)
    return float(value) if float in kinds and type(value) is int and abs(value) < 2**53 else value


def to_dict(settings: Any) -> dict[str, Any]:
    """Return the settings as JSON values (paths as text)."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    return values


def from_dict(settings: type, values: Mapping[str, Any], source: str) -> Any:
    """Return the settings that `to_dict` or a JSON file gave; `source` names it in errors.

    Settings that are gone (`RETIRED` of the type) are left out where they had changed nothing.

    Raises
    ------
    InputError : a name that is no setting, or a value of the wrong type or range
    """
    retired = getattr(settings, "RETIRED", {}).items()
    values = {name: value for name, value in values.items() if (name, value) not in retired}
    unknown = sorted(map(str, set(values) - _names(settings)))
    if unknown:
        raise InputError(f"{source}: unknown settings {listed(unknown)}")
    try:
        return settings(**values)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def experiment(settings: Any) -> dict[str, Any]:
    """Return the fields that define the experiment, as JSON values."""
    machine = {item.name for item in dataclasses.fields(settings) if item.metadata["machine"]}
    return {name: value for name, value in to_dict(settings).items() if name not in machine}


def with_machine(stored: Mapping[str, Any], machine: Any, source: str) -> Any:
    """Return the stored experiment on this machine: its paths and device come from `machine`."""
    replaced = experiment(machine)
    here = {name: value for name, value in to_dict(machine).items() if name not in replaced}
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
            action.help = getattr(action, "full_help", action.help)
        parser.print_help()
        parser.exit()


def add_flags(
    parser: Parser, settings: type, recipes: Mapping[str, Mapping[str, Any]], only_machine: bool = False
) -> None:
    """Add a flag for each field (`only_machine`: for the machine's fields alone) and, unless so, --config."""
    recipe = settings.recipe  # type: ignore[attr-defined]
    of_recipe = recipes.get(recipe, {})
    group: Any = parser
    if not only_machine:
        parser.add_argument("--config", type=Path, metavar="FILE", help="config.json of an earlier run")
    for item in dataclasses.fields(settings):
        own, kinds = item.metadata, _kinds(item)
        if own["group"]:
            group = parser.add_argument_group(own["group"])
        if only_machine and not own["machine"]:
            continue
        value, source = item.default, ""
        if value is None and item.name in of_recipe:
            value, source = of_recipe[item.name], f"{recipe}: "
        if isinstance(value, bool):
            value = str(value).lower()
        shown_value = "" if value is None else f" ({source}{value})"
        help = (_line(settings, item.name)[1] + shown_value).replace("%", "%%")
        options: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        if bool not in kinds:
            metavar = "NAME" if own["choices"] else _name(kinds).upper()
            options = {"type": _reader(item), "choices": own["choices"], "metavar": metavar}
            options |= {"nargs": "+"} if _is_list(item) else {}
        action = group.add_argument(
            f"--{item.name.replace('_', '-')}",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS if own["rare"] else help,
            **options,
        )
        action.full_help = help


def from_flags(settings: type, recipes: Mapping[str, Mapping[str, Any]], arguments: argparse.Namespace) -> Any:
    """Return the settings that the command line asks for.

    Precedence, weakest first: the lines of the file, --config, --recipe, the other flags.
    """
    names = _names(settings)
    flags = {name: value for name, value in vars(arguments).items() if name in names}
    base: dict[str, Any] = {}
    if getattr(arguments, "config", None):
        what, advice = f"--config {arguments.config.absolute()}", "pass a run's config.json"
        base = read_json(arguments.config, what, advice)
        if not isinstance(base, dict):
            raise InputError(f"{what} holds no settings: {advice}")
        base = to_dict(from_dict(settings, base, str(arguments.config)))  # errors then name this file
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


@functools.cache
def _line(settings: type, name: str) -> tuple[int, str]:
    """Return number and comment of the plain line `name = value  # comment` of a class's file."""
    text = Path(inspect.getfile(settings)).read_text(encoding="utf-8")
    found = re.search(rf"^{name}\b[^=\n]*=.*?(?:# (.*))?$", text, re.MULTILINE)
    return (text.count("\n", 0, found.start()) + 1, found[1] or "") if found else (0, "")


def _names(settings: type) -> set[str]:
    return {item.name for item in dataclasses.fields(settings)}


def _kinds(item: dataclasses.Field[Any]) -> tuple[Any, ...]:
    """Return the types that a field's value, or each value of a list, may have."""
    return tuple(kind for kind in typing.get_args(item.type) if kind is not ...) or (item.type,)


def _is_list(item: dataclasses.Field[Any]) -> bool:
    """Return whether a field, of type `tuple[kind, ...]`, holds any number of values."""
    return typing.get_origin(item.type) is tuple


def _name(kinds: tuple[Any, ...]) -> str:
    return " or ".join(kind.__name__.replace("NoneType", "none") for kind in kinds).lower()


def _reader(item: dataclasses.Field[Any]) -> Callable[[str], Any]:
    """Return what makes a flag's text a value."""
    kinds = _kinds(item)
    nullable = type(None) in kinds or Path in kinds or _is_list(item)

    def read(text: str) -> Any:
        empty = ("none",) if kinds[0] is int else ("", "none")
        return None if nullable and text.lower() in empty else kinds[0](text)

    read.__name__ = kinds[0].__name__  # argparse names it in its error
    return read
