"""What the tests of bad input share: the number of generated cases, and what a clean error is."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from tally import tally

from melanoma.common.errors import InputError

REFUSED = object()
LONGEST = 600  # characters of a message beside the path that it names
EVIL = "<b onclick='x'>\" & \x1b[31mred\x07 \u202e {{7*7}} javascript:alert(1) %s $x^$"


def cases(number: int) -> settings:
    """Settings of hypothesis: the same cases in each run; all of them with CI set (`make test-all`), else a quarter."""
    return settings(
        max_examples=number if os.environ.get("CI") else -(-number // 4),
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check_message(message: str, named: Iterable[object]) -> None:
    """A message is one line of bounded length that a terminal shows, and names what it is about."""
    assert message.isprintable(), message[:1000]
    paths = [str(name) for name in named]
    most = LONGEST + 2 * max(map(len, paths), default=0)
    assert len(message) <= most, message[:1000]
    missing = [name for name in paths if name not in message]
    assert not missing, f"{missing} not named in: {message}"


def attempt(kind: str, named: Iterable[object], function: Callable, *arguments: Any, **more: Any) -> Any:
    """Return what a case gives, for the caller to compare and count, or REFUSED after a clean error, which counts."""
    try:
        return function(*arguments, **more)
    except InputError as error:
        check_message(str(error), named)
        tally(kind, "clean error")
        return REFUSED


def refusal(kind: str, named: Iterable[object], function: Callable, *arguments: Any, **more: Any) -> str:
    """Return the message of a case that must be refused, and count it."""
    try:
        value = function(*arguments, **more)
    except InputError as error:
        check_message(str(error), named)
        tally(kind, "clean error")
        return str(error)
    raise AssertionError(f"not refused but read as {value!r:.500}")


class Command:
    """An object whose unpickling makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def no_files(folder: Path) -> dict[str, Path]:
    """Paths at which there is no file to read, each in its own way."""
    (folder / "a_folder").mkdir()
    os.mkfifo(folder / "a_pipe")
    (folder / "to_nothing").symlink_to(folder / "nowhere")
    (folder / "to_itself").symlink_to(folder / "to_itself")
    (folder / "a_file").touch()
    return {
        "missing": folder / "missing",
        "folder": folder / "a_folder",
        "pipe": folder / "a_pipe",
        "link to nothing": folder / "to_nothing",
        "link to itself": folder / "to_itself",
        "below a file": folder / "a_file" / "x",
        "name too long": folder / ("x" * 300),
        "device": Path("/dev/null"),
    }
