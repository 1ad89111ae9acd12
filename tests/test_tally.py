"""The counts of generated cases are those that were counted, by kind and outcome."""

from collections import Counter

import tally


def test_cases_are_counted_by_kind_and_outcome(monkeypatch):
    monkeypatch.setattr(tally, "COUNTS", {})
    for _ in range(1200):
        tally.tally("CSV", "clean error")
    tally.tally("CSV", "correct", 7)
    assert tally.summary(tally.COUNTS) == ["CSV: 1,207 (1,200 clean error, 7 correct)"]
    tally.tally("kills", "resumed", 3)
    assert tally.summary(tally.COUNTS)[1:] == [
        "kills: 3 (3 resumed)",
        "all: 1,210 (1,200 clean error, 7 correct, 3 resumed)",
    ]


def test_without_cases_there_is_no_summary():
    assert tally.summary({}) == []
    assert tally.summary({"CSV": Counter({"correct": 1})}) == ["CSV: 1 (1 correct)"]
