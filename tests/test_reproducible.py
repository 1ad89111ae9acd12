"""The same settings give the same bits: again, from the stored settings, with any number of workers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import everything, exit_code
from test_train import assert_same_run

import train
from config import Config
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images


@pytest.mark.parametrize("workers", [1, 4])
def test_a_cache_is_the_same_file_whatever_the_number_of_workers(quick: Config, workers: int) -> None:
    paths = find_images(quick.train_image)
    caches = [build_cache(paths, 32, quick.cache_dir / str(n), n) for n in (2, workers)]
    assert caches[0].row_of == caches[1].row_of
    assert caches[0].pixels.tobytes() == caches[1].pixels.tobytes()
    assert caches[0].sources == caches[1].sources


def elsewhere(config: Config, folder: Path, **changes: Any) -> Config:
    """Return settings of the same experiment that write to another folder."""
    folders: dict[str, Any] = {name: folder / name for name in ("cache_dir", "run_dir", "graph_dir")}
    return dataclasses.replace(config, **folders, **changes)


def test_one_worker_and_four_train_the_same_network(straight: Config, tmp_path: Path) -> None:
    assert straight.workers == 1
    four = elsewhere(straight, tmp_path, workers=4)
    train.main(four)
    assert_same_run(straight, four)


def test_the_stored_settings_repeat_a_run(straight: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    again = elsewhere(straight, tmp_path)
    command = ["--config", str(straight.run_dir / "config.json")]
    command += [f"--{name}-dir={tmp_path}/{name}_dir" for name in ("cache", "run", "graph")]
    assert exit_code(monkeypatch, lambda: train.run(train.make_parser().parse_args()), "train.py", *command) == 0
    assert_same_run(straight, again)
    first = torch.load(straight.run_dir / "last.pt", weights_only=True)
    assert first["config"] == torch.load(again.run_dir / "last.pt", weights_only=True)["config"]


def test_deterministic_algorithms_exist_for_all_that_is_used(straight: Config, tmp_path: Path) -> None:
    config = elsewhere(straight, tmp_path, deterministic=True)
    train.main(config)
    assert_same_run(straight, config)  # on the CPU there is no difference


@pytest.mark.slow
def test_the_statistics_of_batch_normalisation_survive_a_resume(quick: Config, tmp_path: Path) -> None:
    network: dict[str, Any] = {"backbone": "mobilenetv2_100", "backbone_weights": "none", "ema": 0.9}
    config = dataclasses.replace(quick, **network, epoch_share=0.5)
    whole = elsewhere(config, tmp_path, epochs=2)
    train.main(whole)
    for epochs in (1, 2):
        train.main(dataclasses.replace(config, epochs=epochs), resume=epochs > 1)
    assert_same_run(whole, dataclasses.replace(config, epochs=2))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "settings",
    [{}, {"backbone": "mobilenetv2_100", "backbone_weights": "none", "image_size": 128, "grid": 4}],
    ids=["conv3", "mobilenetv2_100"],
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
