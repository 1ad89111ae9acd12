"""train.py: the sign end to end, how it learns, resuming, what the network gets to see, and refusals."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from conftest import cache_of, everything
from sklearn.metrics import roc_auc_score
from torch import Tensor

import train
from config import Config
from dataset import sample_pairs
from melanoma.common.errors import InputError
from melanoma.data import augment
from melanoma.data.augment import ViewRanges, show
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images
from melanoma.data.feed import Feed, embed_images
from melanoma.scoring.scores import SCORERS, score_all
from melanoma.training import learner as learning
from melanoma.training import run_folder as checkpoint
from melanoma.training.learner import Learner
from modules import MEASURES, SiameseLoss, SiameseNetwork, build_network, import_torchvision, network_of


def log_of(config: Config) -> list[dict]:
    return [json.loads(line) for line in (config.run_dir / "log.jsonl").read_text().splitlines()]


def last(config: Config) -> dict:
    return torch.load(config.run_dir / "last.pt", weights_only=True)


def test_like_pairs_end_closer_than_unlike_pairs(trained: Config) -> None:
    table = checkpoint.read_split(trained.run_dir)
    held_out = table[table["part"] == "validation"]
    cache = build_cache(find_images(trained.train_image), trained.image_size, trained.cache_dir)
    network = network_of(trained)
    network.load_state_dict(torch.load(trained.run_dir / "best.pt", weights_only=True)["model"])
    feed = Feed(cache, torch.device("cpu"))
    embeddings, _ = embed_images(network, feed, cache.rows(held_out["image_name"]), torch.float32)
    pairs, same = sample_pairs(held_out["label"].to_numpy(), np.random.default_rng(0))
    distance = np.linalg.norm(embeddings[pairs[:, 0]] - embeddings[pairs[:, 1]], axis=1)
    assert distance[same].mean() < 0.5 * distance[~same].mean()
    assert log_of(trained)[-1]["val_auc"] > 0.95


def test_log_has_one_object_an_epoch_with_every_figure(trained: Config) -> None:
    log = log_of(trained)
    assert [entry["epoch"] for entry in log] == list(range(1, trained.epochs + 1))
    numbers = {"epoch", "train_loss", *MEASURES, "val_loss", "val_auc", "seconds", "images_per_second"}
    for entry in log:
        assert set(entry) == numbers | {"scorer", "val_aucs"}
        assert all(np.isfinite(entry[name]) for name in numbers)
        assert list(entry["val_aucs"]) == [name for name in SCORERS if name != "head"]  # it has none
        assert entry["val_auc"] == max(entry["val_aucs"].values()) == entry["val_aucs"][entry["scorer"]]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    assert log[-1]["like_distance"] < 0.5 * log[-1]["unlike_distance"]


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
    assert_same_run(whole, quick)


def test_a_run_killed_and_resumed_equals_one_that_was_not_whatever_it_uses(
    quick: Config, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(everything(quick), frozen_epochs=1)
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    train.main(whole)
    real = train.save_state

    def save_and_die(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_state", save_and_die)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train.main(config, resume=resume)
    monkeypatch.setattr(train, "save_state", real)
    train.main(config, resume=True)
    assert_same_run(whole, config)
    images, cache = train_images(config)
    steps = max(int(state["step"]) for state in last(config)["optimizer"]["state"].values())
    assert steps == 3 * len(train.epoch_batches(config, images, cache, np.random.default_rng(0)))


def train_images(config: Config) -> tuple:
    table = checkpoint.read_split(config.run_dir)
    cache = build_cache(find_images(config.train_image), config.image_size, config.cache_dir)
    return train.Images.of_part(table, "train", cache), cache


def assert_same_run(whole: Config, other: Config) -> None:
    """The checkpoints of two runs are the same bit for bit, and so are their logs but for the time."""
    straight, resumed = last(whole), last(other)
    for part in {"model", "trained"} & set(straight):
        for name, weight in straight[part].items():
            assert torch.equal(weight, resumed[part][name]), (part, name)
    assert straight["optimizer"]["state"]
    for i, state in straight["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, resumed["optimizer"]["state"][i][key]), (i, key)
    assert set(straight) == set(resumed)
    timeless = [
        [{k: v for k, v in entry.items() if k not in ("seconds", "images_per_second")} for entry in log]
        for log in (log_of(whole), log_of(other))
    ]
    assert timeless[0] == timeless[1]


def test_same_seed_same_weights_other_seed_other_weights(quick: Config, tmp_path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(dataclasses.replace(quick, seed=seed, run_dir=tmp_path / name))
        weights.append(
            torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]["backbone.fc1.weight"]
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_training_images_are_trained_on_and_both_classes_through_views(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, shown = [], []
    real_pairs = train.PairDataset

    def pairs(cache, rows, pairs, same):
        seen.append((cache, rows[pairs]))
        return real_pairs(cache, rows, pairs, same)

    def show(images, views):
        shown.append(len(images))
        assert len(views.contrast) == len(images)
        return augment.show(images, views)

    monkeypatch.setattr(train, "PairDataset", pairs)
    monkeypatch.setattr(learning, "show", show)
    train.main(quick)
    cache, rows = seen[-1]  # the pairs of the one epoch
    table = checkpoint.read_split(quick.run_dir)
    allowed = set(cache.rows(table.loc[table["part"] == "train", "image_name"]))
    assert set(rows.ravel()) == allowed  # every training image, and no other
    assert sum(shown) == rows.size  # every image of every pair, whatever its class


def test_views_are_drawn_in_float32_whatever_the_network_computes_in(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[torch.Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        own = shown[precision] = []

        def note(images, views, own=own):
            own.append(show(images, views))
            return own[-1]

        monkeypatch.setattr(learning, "show", note)
        every: dict[str, Any] = {
            f"view_{name}": 1.0 for name in ("blur", "noise", "hair", "cutout", "corners")
        }
        train.main(dataclasses.replace(quick, precision=precision, **every), overwrite=True)
    torch.testing.assert_close(shown["bfloat16"], shown["float32"], rtol=0, atol=0)


def test_without_augmentation_no_view_is_drawn(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **settings):
        raise AssertionError("a view was drawn")

    monkeypatch.setattr(train, "draw_views", refuse)
    with pytest.raises(AssertionError, match="a view was drawn"):
        train.main(quick)
    train.main(dataclasses.replace(quick, augment=False))


@dataclasses.dataclass
class Step:
    """What the loss was asked in a training step, and what it said."""

    images: int
    pairs: int
    like: int
    mined_share: float
    loss: float
    measures: list[float]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """Each training step, filled as training goes on."""
    seen: list[Step] = []
    real = SiameseLoss.__call__

    def call(self, embeddings, logits, labels, first, second, mined_share=1.0):
        loss, measures = real(self, embeddings, logits, labels, first, second, mined_share)
        if loss.requires_grad:
            like = int((labels[first] == labels[second]).sum())
            seen.append(
                Step(len(labels), len(first), like, mined_share, float(loss.detach()), measures.tolist())
            )
        return loss, measures

    monkeypatch.setattr(SiameseLoss, "__call__", call)
    return seen


@pytest.mark.parametrize(("pairs", "images"), [("independent", 50), ("batch", 25)])
def test_last_batch_may_be_short_and_counts_by_its_images(
    quick: Config, steps: list, pairs: str, images: int
) -> None:
    train.main(dataclasses.replace(quick, batch_size=25, pairs=pairs))
    sizes = [step.images for step in steps]
    assert sizes[-1] < images and set(sizes[:-1]) == {images}
    values = [[step.loss, *step.measures] for step in steps]
    [entry] = log_of(quick)
    for name, mean in zip(("train_loss", *MEASURES), np.average(values, axis=0, weights=sizes), strict=True):
        assert entry[name] == pytest.approx(mean, rel=1e-5), name


def test_in_batch_pairs_learn_from_every_pair_of_a_batch(quick: Config, steps: list) -> None:
    config = dataclasses.replace(quick, pairs="batch", batch_size=16, epochs=6)
    train.main(config)
    # 16 images, 8 of each class: 120 pairs, of which 56 are alike, less the pairs of one picture with itself
    whole = [step for step in steps if step.pairs > 100]
    assert whole and all(step.like >= step.pairs - 64 and step.pairs <= 120 for step in whole)
    assert log_of(config)[-1]["val_auc"] > 0.95


def test_mining_begins_after_its_epochs(quick: Config, steps: list) -> None:
    train.main(dataclasses.replace(quick, epochs=3, hardest=0.25, mining_epochs=2))
    shares = [step.mined_share for step in steps]
    assert len(shares) % 3 == 0
    assert shares == [1.0] * (len(shares) * 2 // 3) + [0.25] * (len(shares) // 3)


@pytest.mark.parametrize(("pairs", "size"), [("independent", 16), ("batch", 16)])
def test_a_share_of_an_epoch_is_drawn_anew_each_time(quick: Config, pairs: str, size: int) -> None:
    labels = (np.arange(50) % 5 == 0).astype(int)
    images, cache = train.Images(np.arange(100, 150), labels), cache_of(np.empty((0, 1, 1, 3), np.uint8))
    config = dataclasses.replace(quick, pairs=pairs, batch_size=size, epoch_share=0.33)
    firsts = []
    for seed in (0, 1):
        batches = train.epoch_batches(config, images, cache, np.random.default_rng(seed))
        shown = sum(len(batch.first if pairs == "independent" else batch.rows) for batch in batches)
        assert shown == (27 if pairs == "independent" else 28)  # 80 pairs; 14 of 40 benign images, twice
        firsts.append(np.concatenate([batch.rows for batch in batches]))
    assert set(firsts[0]) != set(firsts[1])
    assert set(np.concatenate(firsts)) <= set(range(100, 150))


# --- how it learns ---


LEARNING = {
    "mined": {"pairs": "batch", "hardest": 0.5, "average": "active"},
    "triplet": {"pairs": "batch", "loss": "triplet", "margin": 0.2, "hardest": 0.5},
    "unit length": {"normalize": True, "positive_margin": 0.1, "melanoma_weight": 3.0},
    "head": {"head": "bce", "pair_weight": 0.0, "melanoma_weight": 2.0, "dropout": 0.2},
    "focal": {"head": "focal", "normalize": True, "ema": 0.9, "schedule": "cosine", "warmup": 0.1},
    "norm": {"backbone": "conv3_norm", "pairs": "batch", "weight_decay": 0.1, "view_hair": 0.5},
}


@pytest.mark.parametrize("settings", LEARNING.values(), ids=LEARNING)
def test_every_way_to_train_tells_dark_from_bright(quick: Config, settings: dict) -> None:
    config = dataclasses.replace(quick, epochs=8, **settings)
    train.main(config)
    log = log_of(config)
    assert log[-1]["val_auc"] > 0.95
    assert log[-1]["train_loss"] < log[0]["train_loss"] or config.hardest < 1  # mined losses are dearer
    assert ("head" in log[-1]["val_aucs"]) == (config.head != "none")
    if config.head != "none":
        assert log[-1]["val_aucs"]["head"] > 0.95


def test_validation_scores_each_way_against_references_of_training(trained: Config) -> None:
    table = checkpoint.read_split(trained.run_dir)
    cache = build_cache(find_images(trained.train_image), trained.image_size, trained.cache_dir)
    validation = train.Validation.of(table, cache, seed=0)
    network = build_network("conv3_norm", 32, 8, head=True)
    assert network.head is not None
    torch.nn.init.normal_(network.head.weight)
    feed = Feed(cache, torch.device("cpu"))
    loss_function = SiameseLoss(head="bce", pair_weight=0.5)
    found = train.validate(network, loss_function, feed, validation, torch.float32)
    loss, aucs = found["val_loss"], found["val_aucs"]

    own, train_part = (table[table["part"] == part] for part in ("validation", "train"))
    (embeddings, logits), (references, _) = (
        embed_images(network, feed, cache.rows(part["image_name"]), torch.float32)
        for part in (own, train_part)
    )
    scores = score_all(embeddings, logits, references, train_part["label"].to_numpy())
    expected = {name: roc_auc_score(own["label"], values) for name, values in scores.items()}
    assert list(aucs) == list(SCORERS)
    assert aucs == pytest.approx(expected)
    assert found["val_auc"] == aucs[found["scorer"]] == max(aucs.values())
    distance = np.linalg.norm(embeddings[validation.pairs[:, 0]] - embeddings[validation.pairs[:, 1]], axis=1)
    costs = np.where(validation.same, distance, np.maximum(0, 0.5 - distance)) ** 2 / 2
    shown = validation.pairs.ravel()  # half of them melanomas, as in training
    labels = own["label"].to_numpy()[shown]
    assert labels.mean() == 0.5 and own["label"].mean() < 0.25
    chance = 1 / (1 + np.exp(-np.where(labels == 1, logits[shown], -logits[shown]).astype(float)))
    assert loss == pytest.approx(0.5 * costs.mean() - np.log(chance).mean(), rel=1e-4)


def small() -> SiameseNetwork:
    torch.manual_seed(0)
    return build_network("conv3_norm", 32, 4)


def noise(n: int, seed: int) -> Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def walk(learner: Learner, steps: int, start: int = 0) -> list[float]:
    """Take steps on arbitrary images; return the learning rates of the optimizer's steps."""
    rates = []
    for step in range(start, start + steps):
        learner.step(learner.network.embed(noise(4, step)).square().mean())
        rates.append(learner.optimizer.param_groups[-1]["lr"])
    return rates


def test_the_learning_rate_is_constant_unless_asked_otherwise() -> None:
    assert walk(Learner(small(), Config(learning_rate=0.01), 5), 5) == [0.01] * 5


def test_the_learning_rate_rises_from_0_and_falls_along_a_cosine() -> None:
    config = Config(learning_rate=0.01, schedule="cosine", warmup=0.3)
    rates = walk(Learner(small(), config, 10), 10)
    rising = [0.25, 0.5, 0.75]  # a quarter of the way at each of three steps, the peak at the fourth
    falling = [(1 + math.cos(math.pi * step / 7)) / 2 for step in range(7)]
    assert rates == pytest.approx([0.01 * share for share in rising + falling])
    assert rates[3] == 0.01 and rates[-1] < 0.0006


def test_a_warm_up_without_a_cosine_stays_at_its_peak() -> None:
    rates = walk(Learner(small(), Config(learning_rate=0.01, warmup=0.5), 8), 8)
    assert rates == pytest.approx([0.002, 0.004, 0.006, 0.008] + [0.01] * 4)


def test_without_a_warm_up_a_cosine_starts_at_its_peak() -> None:
    rates = walk(Learner(small(), Config(learning_rate=0.01, schedule="cosine"), 4), 4)
    assert rates == pytest.approx(
        [0.01, 0.01 * (1 + math.sqrt(0.5)) / 2, 0.005, 0.01 * (1 - math.sqrt(0.5)) / 2]
    )


def test_the_first_step_is_the_learning_rate_of_each_part_and_decay_is_for_matrices() -> None:
    config = Config(learning_rate=0.01, backbone_rate=0.1, weight_decay=0.5)
    network = small()
    learner = Learner(network, config, 1)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    walk(learner, 1)
    assert any(name.startswith("backbone") and p.ndim == 1 for name, p in network.named_parameters())
    for name, p in network.named_parameters():
        rate = 0.001 if name.startswith("backbone") else 0.01
        kept = 1 - rate * 0.5 if p.ndim > 1 else 1.0
        assert p.grad is not None
        sure = p.grad.abs() > 1e-5  # Adam's first step is the rate, whatever the gradient's size
        expected = kept * before[name] - rate * p.grad.sign()
        torch.testing.assert_close(p.detach()[sure], expected[sure], rtol=0, atol=3e-3 * rate)
        assert sure.float().mean() > 0.5, name


def test_the_running_mean_is_that_of_a_slow_loop_and_is_what_is_kept() -> None:
    decay, learner = 0.3, Learner(small(), Config(learning_rate=0.01, ema=0.3), 9)
    mean: dict[str, Tensor] = {}
    for step in range(9):
        walk(learner, 1, start=step)
        for name, value in learner.network.state_dict().items():
            share = min(decay, (1 + step) / (10 + step))
            if step == 0 or not value.is_floating_point():
                mean[name] = value.clone()
            else:
                mean[name] = share * mean[name] + (1 - share) * value
        kept = learner.kept.state_dict()
        assert set(kept) == set(mean)
        for name, value in mean.items():
            torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=1e-6)
    assert learner.kept is not learner.network
    weight = "fc_embedding.weight"
    assert (kept[weight] - learner.network.state_dict()[weight]).abs().max() > 1e-4


def test_what_is_validated_is_what_is_kept(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    validated = []
    real = train.validate

    def validate(network, *others):
        validated.append({name: value.clone() for name, value in network.state_dict().items()})
        return real(network, *others)

    monkeypatch.setattr(train, "validate", validate)
    train.main(dataclasses.replace(quick, ema=0.9))
    state, weight = last(quick), "fc_embedding.weight"
    assert torch.equal(validated[0][weight], state["model"][weight])
    assert not torch.equal(state["trained"][weight], state["model"][weight])


def test_without_a_running_mean_the_network_itself_is_kept() -> None:
    learner = Learner(small(), Config(), 1)
    assert learner.kept is learner.network
    assert set(learner.state()) == {"optimizer"}


def test_the_loss_and_the_views_are_those_of_the_settings() -> None:
    config = Config(
        pairs="batch",
        loss="triplet",
        margin=0.7,
        positive_margin=0.1,
        average="active",
        melanoma_weight=3.0,
        pair_weight=0.4,
        head="focal",
    )
    assert learning.loss_of(config) == SiameseLoss("triplet", 0.7, 0.1, True, 3.0, 0.4, "focal")
    assert learning.loss_of(Config()) == SiameseLoss()
    names = [name.removeprefix("view_") for name in Config.__dataclass_fields__ if name.startswith("view_")]
    assert sorted(names) == sorted(item.name for item in dataclasses.fields(ViewRanges))
    assert train.view_ranges(Config()) == ViewRanges()
    for number, name in enumerate(names, start=1):
        value: Any = False if name == "flip" else 1.0 + number / 100 if name == "scale" else number / 100
        assert train.view_ranges(Config(**{f"view_{name}": value})) == ViewRanges(**{name: value})


def test_a_frozen_backbone_is_left_alone_in_its_epochs_and_trained_after(quick: Config, tmp_path) -> None:
    config = dataclasses.replace(quick, backbone="conv3_norm", frozen_epochs=1, frozen_blocks=1)
    torch.manual_seed(config.seed)
    start = network_of(config).state_dict()
    states = []
    for epochs in (1, 2):
        own = dataclasses.replace(config, epochs=epochs, run_dir=tmp_path / str(epochs))
        train.main(own)
        states.append(last(own)["model"])
    changed = [{name for name in start if not torch.equal(state[name], start[name])} for state in states]
    assert changed[0] == {"fc_embedding.weight", "fc_embedding.bias"}
    assert changed[1] == {name for name in start if "convolutions.0." not in name}


def test_frozen_norm_keeps_the_statistics(quick: Config) -> None:
    train.main(dataclasses.replace(quick, backbone="conv3_norm", frozen_norm=True))
    model = last(quick)["model"]
    assert all((model[f"backbone.convolutions.{i}.1.running_mean"] == 0).all() for i in range(3))
    assert all((model[f"backbone.convolutions.{i}.1.running_var"] == 1).all() for i in range(3))


def test_a_collapsed_embedding_stops_the_training_with_what_to_do(quick: Config) -> None:
    # so large a decay leaves nothing of any weight but the biases, which are the same for all images
    config = dataclasses.replace(quick, epochs=9, weight_decay=900.0)
    with pytest.raises(
        InputError, match=r"the embedding has collapsed in epoch \d: unlike images lie"
    ) as caught:
        train.main(config)
    log = log_of(config)
    assert 1 <= len(log) < 9
    assert log[-1]["unlike_distance"] < 0.01 * config.margin
    assert all(entry["unlike_distance"] >= 0.01 * config.margin for entry in log[:-1])
    assert f"in epoch {len(log)}:" in str(caught.value) and "lower --learning-rate" in str(caught.value)


def test_a_backbone_starts_from_a_file_and_a_resumed_run_does_not_ask_for_it(quick: Config, tmp_path) -> None:
    torch.manual_seed(7)
    state = import_torchvision().models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    config = dataclasses.replace(
        quick,
        backbone="resnet18",
        backbone_weights=str(tmp_path / "resnet.pt"),
        frozen_blocks=99,
        epoch_share=0.3,
    )
    train.main(config)
    (tmp_path / "resnet.pt").unlink()
    for epochs in (1, 2):
        if epochs == 2:
            train.main(dataclasses.replace(config, epochs=2), resume=True)
        model = last(config)["model"]
        assert all(
            torch.equal(model[f"backbone.model.{name}"], value)
            for name, value in state.items()
            if not name.startswith("fc.")
        )
    assert [entry["epoch"] for entry in log_of(config)] == [1, 2]


# --- refusals ---


def test_non_finite_loss_stops_naming_epoch_step_and_rate(quick: Config) -> None:
    wild = dataclasses.replace(quick, learning_rate=1e30, epochs=5)
    with pytest.raises(InputError, match=r"not finite in epoch \d/5, step \d+, learning rate 1e\+30"):
        train.main(wild)


def test_a_run_is_not_replaced_unasked(quick: Config) -> None:
    train.main(quick)
    before = last(quick)["model"]["backbone.fc1.weight"]
    with pytest.raises(InputError, match="already holds a run: pass --resume"):
        train.main(dataclasses.replace(quick, seed=9))
    assert torch.equal(last(quick)["model"]["backbone.fc1.weight"], before)
    train.main(dataclasses.replace(quick, seed=9), overwrite=True)
    assert not torch.equal(last(quick)["model"]["backbone.fc1.weight"], before)


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
