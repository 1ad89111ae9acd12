"""train.py: the sign end to end, resuming, what the network gets to see, and refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

import checkpoint
import train
from config import Config, InputError
from dataset import sample_pairs
from feed import Feed, embed_images
from images import build_cache, find_images
from modules import build_network


def log_of(config: Config) -> list[dict]:
    return [json.loads(line) for line in (config.run_dir / "log.jsonl").read_text().splitlines()]


def last(config: Config) -> dict:
    return torch.load(config.run_dir / "last.pt", weights_only=True)


def test_like_pairs_end_closer_than_unlike_pairs(trained: Config) -> None:
    table = checkpoint.read_split(trained.run_dir)
    held_out = table[table["part"] == "validation"]
    cache = build_cache(find_images(trained.train_image), trained.image_size, trained.cache_dir)
    network = build_network(trained.backbone, trained.image_size, trained.embedding_dim)
    network.load_state_dict(torch.load(trained.run_dir / "best.pt", weights_only=True)["model"])
    feed = Feed(cache, torch.device("cpu"))
    embeddings = embed_images(network, feed, cache.rows(held_out["image_name"]), torch.float32)
    pairs, same = sample_pairs(held_out["label"].to_numpy(), np.random.default_rng(0))
    distance = np.linalg.norm(embeddings[pairs[:, 0]] - embeddings[pairs[:, 1]], axis=1)
    assert distance[same].mean() < 0.5 * distance[~same].mean()
    assert log_of(trained)[-1]["val_auc"] > 0.95


def test_log_has_one_object_an_epoch_with_every_figure(trained: Config) -> None:
    log = log_of(trained)
    assert [entry["epoch"] for entry in log] == list(range(1, trained.epochs + 1))
    for entry in log:
        assert {"epoch", "train_loss", "val_loss", "val_auc", "seconds", "images_per_second"} <= set(entry)
        assert all(np.isfinite(value) for value in entry.values())
    assert log[-1]["train_loss"] < log[0]["train_loss"]


def test_run_folder_explains_itself(trained: Config) -> None:
    [run] = json.loads((trained.run_dir / "run.json").read_text())
    assert set(run) == {"started", "command", "commit", "device", "python", "versions"}
    assert json.loads((trained.run_dir / "config.json").read_text())["margin"] == trained.margin
    assert (trained.graph_dir / "Train_average_loss.png").read_bytes().startswith(b"\x89PNG")


def test_best_checkpoint_is_of_the_epoch_with_the_best_validation_auc(trained: Config) -> None:
    log = log_of(trained)
    best = max(log, key=lambda entry: entry["val_auc"])["epoch"]
    assert torch.load(trained.run_dir / "best.pt", weights_only=True)["log"][-1]["epoch"] == best


def test_stop_and_resume_equals_never_stopping(quick: Config, tmp_path) -> None:
    whole = dataclasses.replace(quick, epochs=3, run_dir=tmp_path / "whole")
    train.main(whole)
    for epochs in (1, 3):
        train.main(dataclasses.replace(quick, epochs=epochs), resume=epochs > 1)
    straight, resumed = last(whole), last(quick)
    for name, weight in straight["model"].items():
        assert torch.equal(weight, resumed["model"][name]), name
    for i, state in straight["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, resumed["optimizer"]["state"][i][key]), (i, key)
    timeless = [
        [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in log]
        for log in (log_of(whole), log_of(quick))
    ]
    assert timeless[0] == timeless[1]


def test_same_seed_same_weights_other_seed_other_weights(quick: Config, tmp_path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(dataclasses.replace(quick, seed=seed, run_dir=tmp_path / name))
        weights.append(
            torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]["embedder.fc1.weight"]
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_training_images_are_trained_on_and_both_classes_through_views(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, shown = [], []
    real_pairs, real_show = train.PairDataset, train.show

    def pairs(cache, rows, pairs, same):
        seen.append((cache, rows[pairs]))
        return real_pairs(cache, rows, pairs, same)

    def show(images, views):
        shown.append(len(images))
        assert len(views.contrast) == len(images)
        return real_show(images, views)

    monkeypatch.setattr(train, "PairDataset", pairs)
    monkeypatch.setattr(train, "show", show)
    train.main(quick)
    [(cache, rows)] = seen  # the pairs of the one epoch
    table = checkpoint.read_split(quick.run_dir)
    allowed = set(cache.rows(table.loc[table["part"] == "train", "image_name"]))
    assert set(rows.ravel()) == allowed  # every training image, and no other
    assert sum(shown) == rows.size  # every image of every pair, whatever its class


def test_without_augmentation_no_view_is_drawn(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments):
        raise AssertionError("a view was drawn")

    monkeypatch.setattr(train, "draw_views", refuse)
    with pytest.raises(AssertionError, match="a view was drawn"):
        train.main(quick)
    train.main(dataclasses.replace(quick, augment=False))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, float]]:
    """Pairs, like pairs and loss of each training step, filled as training goes on."""
    seen: list[tuple[int, int, float]] = []
    real = train.ContrastiveLoss.forward

    def forward(self, first, second, same):
        loss = real(self, first, second, same)
        if loss.requires_grad:
            seen.append((len(same), int(same.sum()), float(loss.detach())))
        return loss

    monkeypatch.setattr(train.ContrastiveLoss, "forward", forward)
    return seen


def test_last_batch_may_be_short_and_counts_by_its_size(quick: Config, steps: list) -> None:
    train.main(dataclasses.replace(quick, batch_size=25))
    sizes = [size for size, _, _ in steps]
    assert sizes[-1] < 25 and set(sizes[:-1]) == {25}
    mean = sum(size * loss for size, _, loss in steps) / sum(sizes)
    assert log_of(quick)[0]["train_loss"] == pytest.approx(mean, rel=1e-5)


def test_in_batch_pairs_learn_from_every_pair_of_a_batch(quick: Config, steps: list) -> None:
    config = dataclasses.replace(quick, pairs="batch", batch_size=16, epochs=6)
    train.main(config)
    # 16 images, 8 of each class: 120 pairs, of which 56 are alike, less the pairs of one picture with itself
    whole = [step for step in steps if step[0] > 100]
    assert whole and all(same >= pairs - 64 and pairs <= 120 for pairs, same, _ in whole)
    assert log_of(config)[-1]["val_auc"] > 0.95


def test_non_finite_loss_stops_naming_epoch_step_and_rate(quick: Config) -> None:
    wild = dataclasses.replace(quick, learning_rate=1e30, epochs=5)
    with pytest.raises(InputError, match=r"not finite in epoch \d/5, step \d+, learning rate 1e\+30"):
        train.main(wild)


def test_a_run_is_not_replaced_unasked(quick: Config) -> None:
    train.main(quick)
    before = last(quick)["model"]["embedder.fc1.weight"]
    with pytest.raises(InputError, match="already holds a run: pass --resume"):
        train.main(dataclasses.replace(quick, seed=9))
    assert torch.equal(last(quick)["model"]["embedder.fc1.weight"], before)
    train.main(dataclasses.replace(quick, seed=9), overwrite=True)
    assert not torch.equal(last(quick)["model"]["embedder.fc1.weight"], before)


def test_resume_of_another_experiment_names_the_fields(quick: Config) -> None:
    train.main(quick)
    with pytest.raises(InputError, match=r"another experiment: margin 0\.5 there, 0\.7 asked for"):
        train.main(dataclasses.replace(quick, margin=0.7), resume=True)


def test_resume_with_changed_labels_is_refused(quick: Config) -> None:
    train.main(quick)
    lines = quick.train_labels.read_text().splitlines()
    changed = quick.train_labels.with_name("changed.csv")
    changed.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="differ from"):
        train.main(dataclasses.replace(quick, train_labels=changed, epochs=2), resume=True)


def test_unreadable_images_stop_the_run_unless_left_out(quick: Config) -> None:
    broken = sorted(quick.train_image.glob("*.jpg"))[3]
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=rf"1 images cannot be read, .*--skip-unreadable: {broken.stem}: "):
        train.main(quick)
    train.main(dataclasses.replace(quick, skip_unreadable=True))
    table = checkpoint.read_split(quick.run_dir)
    assert broken.stem not in set(table["image_name"])
    assert len(table) == len(list(quick.train_image.glob("*.jpg"))) - 1
