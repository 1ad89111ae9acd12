"""The same settings give the same bits: again, from the stored settings, with any number of workers."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from conftest import everything
from test_train import assert_same_run

import train
from config import Config
from melanoma.common.script import run_script
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images


@pytest.mark.parametrize("workers", [1, 4])
def test_a_cache_is_the_same_file_whatever_the_number_of_workers(quick: Config, workers: int) -> None:
    paths = find_images(quick.train_image)
    caches = [build_cache(paths, 32, quick.cache_dir / str(n), n) for n in (2, workers)]
    assert caches[0].row_of == caches[1].row_of
    assert caches[0].pixels.tobytes() == caches[1].pixels.tobytes()
    assert caches[0].sources == caches[1].sources


def test_one_worker_and_four_train_the_same_network(quick: Config, tmp_path) -> None:
    runs = [
        dataclasses.replace(
            everything(quick), workers=n, cache_dir=tmp_path / f"cache{n}", run_dir=tmp_path / str(n)
        )
        for n in (1, 4)
    ]
    for config in runs:
        train.main(config)
    assert_same_run(*runs)


def test_the_stored_settings_repeat_a_run(quick: Config, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = everything(quick)
    train.main(config)
    again = dataclasses.replace(config, run_dir=tmp_path / "again")
    command = ["train.py", "--config", str(config.run_dir / "config.json"), "--run-dir", str(again.run_dir)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        run_script(train.run)
    assert stopped.value.code == 0
    assert_same_run(config, again)
    straight = torch.load(config.run_dir / "last.pt", weights_only=True)
    assert straight["config"] == torch.load(again.run_dir / "last.pt", weights_only=True)["config"]


def test_deterministic_algorithms_exist_for_all_that_is_used(quick: Config, tmp_path) -> None:
    config = dataclasses.replace(everything(quick), deterministic=True)
    train.main(config)
    plain = dataclasses.replace(config, deterministic=False, run_dir=tmp_path / "plain")
    train.main(plain)
    assert_same_run(plain, config)  # on the CPU there is no difference


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "settings",
    [{}, {"backbone": "mobilenet_v2", "backbone_weights": "none", "image_size": 128, "grid": 4}],
    ids=["conv3", "mobilenet_v2"],
)
def test_cuda_gives_the_same_bits_when_asked_to(quick: Config, tmp_path, settings: dict) -> None:
    runs = [
        dataclasses.replace(
            everything(quick),
            **{"backbone": "conv3", "device": "cuda", "precision": "auto", "deterministic": True, **settings},
            run_dir=tmp_path / name,
        )
        for name in "ab"
    ]
    for config in runs:
        train.main(config)
    assert_same_run(*runs)
