"""threads.py: results come in order, and only a few ahead of their use."""

import pytest

from melanoma.common.threads import map_ahead


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
