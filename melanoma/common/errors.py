"""Errors in the user's input: one line, in which any text is escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input (a file, a flag, a setting) is wrong; the message says what, where and what to do.

    Scripts show it as one line, without a traceback. Any other exception is a bug and keeps its traceback.

    told : whether another process has printed it already; None: unknown, the first process prints it
    """

    told: bool | None = None

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


def printable(text: str) -> str:
    """Return text as one line; what a terminal would obey or cannot show is escaped as Python does it."""
    line = re.sub(r"\s*[\r\n]\s*", " ", text).strip()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def brief(text: str, most: int = 80) -> str:
    """Return text shortened in its middle to at most so many characters."""
    head = (most - 1) // 2
    return text if len(text) <= most else f"{text[:head]}…{text[head + 1 - most :]}"


def shown(value: object) -> str:
    """Return a value as a message quotes it: as Python writes it, shortened."""
    return brief(repr(value))


def listed(names: Iterable[object], most: int = 5) -> str:
    """Return names as a message lists them: the first ones, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(brief(printable(str(name)), 40) for name in names[:most]) + more


def settable(argument: str) -> str:
    """Return what to do about a path: which flag names it, and that config.py does, unless it is predict.py's alone."""
    flag = f"--{argument.replace('_', '-')}"
    return f"check {flag}" if argument.startswith("evaluate_") else f"edit config.py or pass {flag}"


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 melanoma`, `1,200 images`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
