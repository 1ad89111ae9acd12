"""ranks.py: how processes share a batch, and which device each takes."""

import pytest
import torch

from melanoma.common.errors import InputError
from melanoma.training import ranks
from melanoma.training.ranks import Ranks, join_ranks

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [256, 7, 1])
def test_shares_make_up_the_batch_and_are_nearly_equal(size, count):
    shares = [Ranks(rank, count).share(size) for rank in range(count)]
    assert [i for share in shares for i in share] == list(range(size))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [256, 7, 1])
def test_every_process_embeds_its_share_and_of_several_two_images_at_least(size, count):
    for rank in range(count):
        places = Ranks(rank, count).places(size).tolist()
        own = list(Ranks(rank, count).share(size))
        assert places[: len(own)] == own
        assert len(places) == max(len(own), 1 if count == 1 else 2)  # batch normalisation needs two
        assert set(places) <= set(range(size))
        assert size == 1 or len(set(places)) == len(places)  # company is another image


def test_places_are_those_of_an_example():
    assert [Ranks(rank, 2).places(3).tolist() for rank in range(2)] == [[0, 1], [1, 2]]
    assert [Ranks(rank, 4).places(3).tolist() for rank in range(4)] == [[0, 1], [0, 1], [1, 2], [2, 0]]


def test_what_one_process_refuses_ends_it(monkeypatch):
    with Ranks().together(CPU):
        pass
    with pytest.raises(InputError, match="the disk is full"), Ranks().together(CPU):
        raise InputError("the disk is full")
    asked = []

    def somewhere(self: Ranks, here: bool, device: torch.device) -> bool:
        asked.append(here)
        return True

    monkeypatch.setattr(Ranks, "any", somewhere)
    with pytest.raises(InputError, match="another process has stopped"), Ranks(1, 2).together(CPU):
        pass
    with pytest.raises(InputError, match="the disk is full"), Ranks(0, 2).together(CPU):
        raise InputError("the disk is full")
    assert asked == [False, True]


def test_one_process_asks_itself_alone():
    assert Ranks().any(True, CPU) and not Ranks().any(False, CPU)


@pytest.mark.parametrize(
    ("name", "taken"), [("cuda", "cuda:2"), ("cuda:0", "cuda:2"), ("auto", "cuda:2"), ("cpu", "cpu")]
)
def test_each_process_of_a_machine_takes_a_gpu_of_its_own_and_no_other(name, taken, monkeypatch):
    for key, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "2", "RANK": "2"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    asked = []

    def choose(device_name):
        asked.append(device_name)
        raise InputError("as far as this test goes")

    monkeypatch.setattr(ranks, "choose_device", choose)
    with pytest.raises(InputError, match="as far as"), join_ranks(name):
        pass
    assert asked == [taken]


def test_several_processes_on_an_apple_gpu_are_refused(monkeypatch):
    for key, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "RANK": "0"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(ranks, "choose_device", lambda name: torch.device("mps"))
    with pytest.raises(InputError, match=r"^several processes cannot share an Apple GPU: "), join_ranks("auto"):
        pass


def test_without_torchrun_there_is_one_process(monkeypatch, capsys):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks("cpu") as (chosen, ranks):
        assert chosen == CPU
        assert ranks == Ranks(0, 1)
        assert ranks.first
        embeddings = torch.rand(3, 2)
        assert ranks.gather(embeddings, 3) is embeddings
    ranks.say("heard")
    Ranks(1, 2).say("not heard")
    assert capsys.readouterr().out == "heard\n"
