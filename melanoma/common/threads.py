"""Background threads: compute results a few items ahead, or do one piece of work while the caller goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Aside:
    """Does one piece of work at a time in a thread; what it raises, the next `join` raises."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.work: Future[None] | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for the work; what it raised is raised unless the block has met an error of its own."""
        self.pool.shutdown()
        if kind is None:
            self.join()

    def start(self, work: Callable[[], None]) -> None:
        """Begin a piece of work; call `join` for the one before first."""
        self.work = self.pool.submit(work)

    def join(self) -> None:
        """Wait for the work that was started, and raise what it raised."""
        work, self.work = self.work, None
        if work:
            work.result()


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """Yield function(item) in the order of the items; at most `ahead` results wait or are being computed."""
    window: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for item in items:
            window.append(pool.submit(function, item))
            if len(window) > ahead:
                yield window.popleft().result()
        while window:
            yield window.popleft().result()
