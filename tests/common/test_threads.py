"""threads.py: results come in order and only a few ahead of their use; work aside is awaited, and its errors raised."""

import threading

import pytest

from melanoma.common.threads import Aside, map_ahead


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 50])
def test_results_come_in_order_and_stay_few(threads, n):
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        return 2 * item

    results = []
    for result in map_ahead(work, iter(range(n)), threads, 3):
        results.append(result)
        assert len(begun) <= len(results) + 3
    assert results == [2 * item for item in range(n)]


def test_an_error_reaches_the_caller():
    def work(item: int) -> None:
        raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        list(map_ahead(work, range(5), 1, 3))


def test_work_aside_runs_in_a_thread_of_its_own_and_is_awaited():
    done, go_on = [], threading.Event()

    def work() -> None:
        go_on.wait(10)
        done.append(threading.current_thread())

    with Aside() as aside:
        aside.join()  # nothing was started
        aside.start(work)
        assert not done  # the caller goes on
        go_on.set()
        aside.join()
        assert done and done[0] is not threading.current_thread()
        aside.start(work)
    assert len(done) == 2  # the block's end waits too


def test_an_error_of_work_aside_is_raised_once_where_it_is_joined_or_at_the_end():
    def fail() -> None:
        raise OSError("disk gone")

    with Aside() as aside:
        aside.start(fail)
        with pytest.raises(OSError, match="disk gone"):
            aside.join()
        aside.join()
    with pytest.raises(OSError, match="disk gone"), Aside() as aside:
        aside.start(fail)
    with pytest.raises(KeyError, match="the caller's own"), Aside() as aside:
        aside.start(fail)
        raise KeyError("the caller's own")
