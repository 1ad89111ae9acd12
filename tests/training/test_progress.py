"""progress.py: how far an epoch is, and the time left of it and of the training."""

import pytest

from melanoma.training import progress
from melanoma.training.progress import Meter, duration


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_without_a_terminal_a_line_every_30_seconds_says_loss_and_time_left(clock, capsys):
    with Meter("epoch 2/3", 100, 0, 100, quiet=False) as meter:
        for step in range(1, 81):
            clock[0] = 100 + step  # a second for each step
            meter.update(0.25 if meter.due else None)
    assert capsys.readouterr().out.splitlines() == [
        "epoch 2/3, step 30/100, loss 0.25000, 1 min left of the epoch, 3 min of the training",
        "epoch 2/3, step 60/100, loss 0.25000, 40 s left of the epoch, 2 min of the training",
    ]


def test_a_resumed_epoch_counts_the_time_of_its_own_steps_alone(clock, capsys):
    with Meter("epoch 1/1", 100, 50, 0, quiet=False) as meter:
        clock[0] = 160
        for _ in range(10):
            meter.update()
        meter.update(0.5)
    assert "step 61/100" in capsys.readouterr().out


def test_other_processes_are_quiet(clock, capsys):
    with Meter("epoch 1/1", 10, 0, 0, quiet=True) as meter:
        clock[0] = 500
        meter.update(0.5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("seconds, text", [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "60 min"), (11160, "3.1 h")])
def test_a_duration_is_short(seconds, text):
    assert duration(seconds) == text
