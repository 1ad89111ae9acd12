"""Counts of generated cases by kind and outcome, for the summary at the end of a test run.

A test calls `tally("CSV", "clean error")` once for each case that it has really run and checked; conftest.py prints
what came together.
"""

from collections import Counter

COUNTS: dict[str, Counter[str]] = {}


def tally(kind: str, outcome: str, cases: int = 1) -> None:
    """Count checked cases of a kind by what they ended in."""
    COUNTS.setdefault(kind, Counter())[outcome] += cases


def summary(counts: dict[str, Counter[str]]) -> list[str]:
    """Return a line for each kind, and one for all: `CSV: 1,200 (700 clean error, 500 correct)`."""
    total: Counter[str] = sum(counts.values(), Counter())
    rows = {**counts, **({"all": total} if len(counts) > 1 else {})}
    return [
        f"{kind}: {own.total():,} ({', '.join(f'{n:,} {outcome}' for outcome, n in own.most_common())})"
        for kind, own in rows.items()
    ]
