"""How a script ends: a line for what is wrong, and the exit code that a shell expects.

0: done. 2: bad input. 130 and 143: stopped by Ctrl-C (SIGINT) or SIGTERM. 141: the reader of a pipe has gone.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import threading
import time
import typing
from collections.abc import Callable, Iterator
from types import FrameType

from melanoma.common.errors import InputError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
TWICE = 1.0  # seconds within which a second signal is taken for the first


class Stopped(BaseException):
    """A signal asked the script to end; like KeyboardInterrupt it is no Exception, so that nothing swallows it.

    Parameters
    ----------
    number : of the signal
    advice : how to go on
    told : see `InputError`
    """

    told: bool | None = None

    def __init__(self, number: int, advice: str = "run the same command again to go on") -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {advice}")
        self.number = number


class Held:
    """The signal, if any, that came while signals were held back, and when."""

    number: int | None = None
    since = 0.0


def run_script(main: Callable[[], None]) -> typing.NoReturn:
    """Run a script's `main` and exit: 0, or the code and one line on standard error for what ended it early."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    with _handlers(_stop):
        code = 0
        try:
            main()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader, such as head, has all that it wants
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 141  # 128 + SIGPIPE, which Windows has no number for
        except InputError as error:
            _tell(f"error: {error}", error.told)
            code = 2
        except Stopped as stopped:
            _tell(str(stopped), stopped.told)
            code = 128 + stopped.number
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # DistributedDataParallel leaves gloo's threads running, and one that frees a tensor while Python is torn down
        # aborts the process
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


@contextlib.contextmanager
def hold_signals() -> Iterator[Held]:
    """Note the first Ctrl-C or SIGTERM in place of ending at once; a second one, a second later, ends at once.

    Within that second it is taken for the same one: Ctrl-C reaches a process under torchrun twice, from the terminal
    and from torchrun. Outside the main thread, which alone gets signals, nothing is held.
    """
    held = Held()

    def note(number: int, frame: FrameType | None) -> None:
        if held.number is None:
            held.number, held.since = number, time.monotonic()
        elif time.monotonic() - held.since > TWICE:
            _stop(number, frame)

    with _handlers(note):
        yield held


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function take SIGINT and SIGTERM for a while."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, earlier in zip(SIGNALS, before, strict=True):
            signal.signal(number, earlier)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _tell(line: str, told: bool | None) -> None:
    """Say it on standard error; of several processes under torchrun, one does."""
    if told is None:
        told = os.environ.get("RANK", "0") != "0"
    if not told:
        print(line, file=sys.stderr)
