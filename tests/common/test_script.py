"""Scripts end with one line and the exit code that a shell expects."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from melanoma.common.errors import InputError
from melanoma.common.script import hold_signals, run_script

ROOT = Path(__file__).parents[2]


def stop_with(error: Exception | None) -> int:
    def main() -> None:
        if error:
            raise error

    with pytest.raises(SystemExit) as stop:
        run_script(main)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_a_script_that_works_exits_with_0(capsys):
    assert stop_with(None) == 0
    assert capsys.readouterr() == ("", "")


def test_bad_input_is_one_line_and_code_2(capsys):
    assert stop_with(InputError("no such thing:\n  do that")) == 2
    assert capsys.readouterr() == ("", "error: no such thing: do that\n")


@pytest.mark.parametrize("kind", [ValueError, KeyError, FileNotFoundError])
def test_a_bug_keeps_its_traceback(kind):
    def main() -> None:
        raise kind("bug")

    with pytest.raises(kind, match="bug"):
        run_script(main)


ENDING = """
import atexit, sys
from melanoma.common.errors import InputError
from melanoma.common.script import Stopped, run_script
atexit.register(print, "torn down")
def main():
    print("said")
    if sys.argv[1] == "bad":
        raise InputError("no such thing")
    if sys.argv[1] == "stopped":
        raise Stopped(15)
run_script(main)
"""


@pytest.mark.parametrize("processes, torn_down", [(None, True), ("1", True), ("2", False)])
@pytest.mark.parametrize("way, code", [("well", 0), ("bad", 2), ("stopped", 143)])
def test_one_of_several_processes_ends_without_python_being_torn_down(way, code, processes, torn_down):
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    if processes:
        environment |= {"RANK": "0", "WORLD_SIZE": processes}
    command = [sys.executable, "-c", ENDING, way]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert done.stdout == "said\n" + "torn down\n" * torn_down  # what was printed before is not lost
    assert len(done.stderr.splitlines()) == (way != "well")


# --- signals, sent to a process of its own ---


AT_WORK = """
import time
from melanoma.common.script import run_script
def main():
    try:
        print("ready", flush=True)
        time.sleep(30)
    finally:
        print("tidy", flush=True)
run_script(main)
"""
HOLDING = """
import time
from melanoma.common.script import Stopped, hold_signals, run_script
def main():
    with hold_signals() as held:
        print("ready", flush=True)
        while held.number is None:
            time.sleep(0.01)
        print("held", flush=True)
        time.sleep({wait})
    raise Stopped(held.number, "resume me")
run_script(main)
"""


def start(code: str) -> subprocess.Popen:
    """Start a script and wait until it is ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_script_tidily(number, code):
    process = start(AT_WORK)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "tidy\n")
    assert err == f"stopped by {number.name}: run the same command again to go on\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_held_signal_lets_the_work_finish(number, code):
    process = start(HOLDING.format(wait=0.1))
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (code, "held\n", f"stopped by {number.name}: resume me\n")


def test_a_second_signal_does_not_wait():
    process = start(HOLDING.format(wait=30))
    process.send_signal(signal.SIGTERM)
    assert process.stdout and process.stdout.readline() == "held\n"
    time.sleep(1.2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130


def test_a_signal_that_arrives_twice_is_one_signal():
    process = start(HOLDING.format(wait=0.3))
    process.send_signal(signal.SIGINT)
    assert process.stdout and process.stdout.readline() == "held\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "stopped by SIGINT: resume me\n")


def test_handlers_are_put_back():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with hold_signals():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_thread_holds_nothing():
    seen = []

    def work() -> None:
        with hold_signals() as held:
            seen.append(held.number)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
