"""train.py: the sign end to end, how it learns, resuming, what the network gets to see, and refusals."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from functools import partial

import numpy as np
import pytest
import torch
from conftest import build_network, cache_of, everything
from sklearn.metrics import roc_auc_score

import train
from config import RECIPES, Config
from dataset import sample_pairs
from melanoma.backbones import import_torchvision
from melanoma.common.errors import InputError
from melanoma.data import augment
from melanoma.data.augment import show
from melanoma.data.cache import build_cache
from melanoma.data.decoding import find_images
from melanoma.data.feed import Feed
from melanoma.scoring.embedding import embed_images
from melanoma.scoring.scores import SCORERS, score_all
from melanoma.training import learner as learning
from melanoma.training import run_folder
from melanoma.training.progress import Meter
from modules import MEASURES, SiameseLoss, loss_of, network_of


def log_of(config: Config) -> list[dict]:
    return [json.loads(line) for line in (config.run_dir / "log.jsonl").read_text().splitlines()]


def last(config: Config) -> dict:
    return torch.load(config.run_dir / "last.pt", weights_only=True)


def test_like_pairs_end_closer_than_unlike_pairs(trained: Config) -> None:
    table = run_folder.read_split(trained.run_dir)
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
        assert set(entry) == numbers | {"val_aucs"}
        assert all(np.isfinite(entry[name]) for name in numbers)
        assert list(entry["val_aucs"]) == [name for name in SCORERS if name != "head"]  # it has none
        assert entry["val_auc"] == entry["val_aucs"]["neighbours"]
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
    config = everything(quick)
    whole = dataclasses.replace(config, run_dir=tmp_path / "whole")
    train.main(whole)
    real = train.save_epoch

    def save_and_die(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "save_epoch", save_and_die)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            train.main(config, resume=resume)
    monkeypatch.setattr(train, "save_epoch", real)
    train.main(config, resume=True)
    assert_same_run(whole, config)
    images, cache = train_images(config)
    steps = max(int(state["step"]) for state in last(config)["optimizer"]["state"].values())
    assert steps == 3 * len(train.epoch_batches(config, images, cache, np.random.default_rng(0)))


def train_images(config: Config) -> tuple:
    table = run_folder.read_split(config.run_dir)
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
        weights.append(torch.load(tmp_path / name / "last.pt", weights_only=True)["model"]["backbone.fc1.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_only_training_images_are_trained_on_and_both_classes_through_views(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, shown = [], []
    real_pairs = train.PairDataset

    def pairs(cache, rows, labels, pairs, same):
        seen.append((cache, rows[pairs]))
        return real_pairs(cache, rows, labels, pairs, same)

    def show(images, views, *others):
        shown.append(len(images))
        assert len(views.contrast) == len(images)
        return augment.show(images, views, *others)

    monkeypatch.setattr(train, "PairDataset", pairs)
    monkeypatch.setattr(learning, "show", show)
    train.main(quick)
    cache, rows = seen[-1]  # the pairs of the one epoch
    table = run_folder.read_split(quick.run_dir)
    allowed = set(cache.rows(table.loc[table["part"] == "train", "image_name"]))
    assert set(rows.ravel()) == allowed  # every training image, and no other
    assert sum(shown) == rows.size  # every image of every pair, whatever its class


def test_views_are_drawn_in_float32_whatever_the_network_computes_in(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: dict[str, list[torch.Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        own = shown[precision] = []

        def note(*arguments, own=own):
            own.append(show(*arguments))
            return own[-1]

        monkeypatch.setattr(learning, "show", note)
        train.main(dataclasses.replace(quick, precision=precision, views="wider"), overwrite=True)
    for rounded, exact in zip(shown["bfloat16"], shown["float32"], strict=True):
        assert torch.equal(rounded, exact.bfloat16())


def test_without_views_no_view_is_drawn(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments, **settings):
        raise AssertionError("a view was drawn")

    monkeypatch.setattr(train, "draw_views", refuse)
    with pytest.raises(AssertionError, match="a view was drawn"):
        train.main(quick)
    train.main(dataclasses.replace(quick, views="none"))


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

    def call(self, embeddings, logits, labels, same, met=None, mined_share=1.0):
        loss, measures = real(self, embeddings, logits, labels, same, met, mined_share)
        first, second = labels.chunk(2) if met is None else (labels[:, None], labels)
        assert torch.equal(same, first == second)
        if loss.requires_grad:
            pairs, like = (
                (len(same), int(same.sum())) if met is None else (int(met.sum()) // 2, int((met & same).sum()) // 2)
            )
            seen.append(Step(len(labels), pairs, like, mined_share, float(loss.detach()), measures.tolist()))
        return loss, measures

    monkeypatch.setattr(SiameseLoss, "__call__", call)
    return seen


@pytest.mark.parametrize(("pairs", "images"), [("independent", 50), ("batch", 25)])
def test_last_batch_may_be_short_and_counts_by_its_images(quick: Config, steps: list, pairs: str, images: int) -> None:
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


def test_mining_begins_after_the_first_epoch(quick: Config, steps: list) -> None:
    train.main(dataclasses.replace(quick, epochs=3, hardest=0.25))
    shares = [step.mined_share for step in steps]
    assert len(shares) % 3 == 0
    assert shares == [1.0] * (len(shares) // 3) + [0.25] * (len(shares) * 2 // 3)


@pytest.mark.parametrize(("pairs", "size"), [("independent", 16), ("batch", 16)])
def test_a_share_of_an_epoch_is_drawn_anew_each_time(quick: Config, pairs: str, size: int) -> None:
    labels = (np.arange(50) % 5 == 0).astype(int)
    images, cache = train.Images(np.arange(100, 150), labels), cache_of(np.empty((0, 1, 1, 3), np.uint8))
    config = dataclasses.replace(quick, pairs=pairs, batch_size=size, epoch_share=0.33)
    firsts = []
    for seed in (0, 1):
        batches = train.epoch_batches(config, images, cache, np.random.default_rng(seed))
        shown = sum(len(batch.same if pairs == "independent" else batch.rows) for batch in batches)
        assert shown == (27 if pairs == "independent" else 28)  # 80 pairs; 14 of 40 benign images, twice
        firsts.append(np.concatenate([batch.rows for batch in batches]))
    assert set(firsts[0]) != set(firsts[1])
    assert set(np.concatenate(firsts)) <= set(range(100, 150))


@pytest.mark.parametrize(
    "settings",
    [
        {"recipe": "baseline"},
        {"recipe": "scratch", "hardest": 0.5, "head": "focal"},
        {"recipe": "strong", "hardest": 0.5, "views": "wider"},
        {"recipe": "strong", "views": "none"},
    ],
    ids=["baseline", "scratch", "strong", "without views"],
)
def test_a_step_waits_for_nothing_that_a_gpu_computes(settings: dict) -> None:
    """The device "meta" holds no numbers: whoever reads one gets an error."""
    config, meta = Config(**settings, backbone_weights="none", batch_size=8), torch.device("meta")
    network = network_of(config).to(meta)
    network.freeze(config.frozen_blocks)
    learner = learning.Learner(network, 9, 0.01, config.schedule, ema=config.ema)
    images = train.Images(np.arange(60), (np.arange(60) % 5 == 0).astype(int))
    cache = cache_of(np.zeros((60, config.image_size, config.image_size, 3), np.uint8))
    batches = train.epoch_batches(config, images, cache, np.random.default_rng(0))
    ranges = augment.VIEWS[config.views]
    draw = partial(augment.draw_views, generator=torch.Generator(), ranges=ranges) if ranges else None
    progress, meter = train.Progress.start(meta), Meter("", len(batches), 0, 0, quiet=True)
    train.train_epoch(
        learner,
        batches,
        Feed(cache, meta),
        draw,
        loss_of(config),
        config.hardest,
        progress,
        meter,
        lambda: progress.steps == 2,
    )
    assert progress.steps == learner.taken == 2
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        progress.means()


# --- saving aside ---


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_checkpoint_is_of_its_epoch_however_late_it_is_written(
    quick: Config, tmp_path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    """Once each epoch is written before the next one is trained, once after."""
    save, train_epoch, trained = train.save_epoch, train.train_epoch, threading.Event()

    def note(*arguments):
        train_epoch(*arguments)
        trained.set()

    def run(late: bool) -> list[dict]:
        states = []
        config = dataclasses.replace(quick, epochs=3, ema=ema, run_dir=tmp_path / str(late))

        def save_then(_, checkpoint, *others):
            if late and len(checkpoint["log"]) < config.epochs:
                assert trained.wait(60)
            save(config, checkpoint, *others)
            states.append(last(config))

        def start_and_wait(aside, work):
            trained.clear()
            aside.work = aside.pool.submit(work)
            if not late:
                aside.work.result()

        monkeypatch.setattr(train, "save_epoch", save_then)
        monkeypatch.setattr(train.Aside, "start", start_and_wait)
        train.main(config)
        return states

    monkeypatch.setattr(train, "train_epoch", note)
    for early, late in zip(run(late=False), run(late=True), strict=True):
        for part in {"model", "trained"} & set(early):
            assert all(torch.equal(weight, late[part][name]) for name, weight in early[part].items())
        for i, state in early["optimizer"]["state"].items():
            assert all(torch.equal(value, late["optimizer"]["state"][i][key]) for key, value in state.items())


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_save_that_fails_aside_stops_the_run_with_its_line(
    quick: Config, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    save = run_folder.save_checkpoint

    def fill_the_disk(path, contents):
        if path.name == "last.pt" and len(contents["log"]) == failing:
            raise InputError(f"{path} cannot be written: no space left")
        save(path, contents)

    monkeypatch.setattr(run_folder, "save_checkpoint", fill_the_disk)
    with pytest.raises(InputError, match=r"last\.pt cannot be written: no space left"):
        train.main(dataclasses.replace(quick, epochs=3))
    assert (quick.run_dir / "last.pt").exists() == (failing > 1)
    if failing > 1:
        assert len(last(quick)["log"]) == len(log_of(quick)) == failing - 1


def test_curves_are_drawn_now_and_then_and_the_log_counts_the_time_of_saving(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, drawn = train.save_epoch, []

    def save_slowly(config, saved, what, plot):
        drawn.append(plot)
        time.sleep(0.3)
        save(config, saved, what, plot)

    monkeypatch.setattr(train, "save_epoch", save_slowly)
    start = time.perf_counter()
    train.main(dataclasses.replace(quick, epochs=4))
    whole = time.perf_counter() - start
    assert drawn == [True, False, False, True]  # the first and the last one: all within PLOT_EVERY
    assert 3 * 0.3 < sum(entry["seconds"] for entry in log_of(quick)) < whole - 0.3


# --- how it learns ---


LEARNING = {
    "mined": {"pairs": "batch", "hardest": 0.5, "average": "active"},
    "unit length": {"normalize": True, "positive_margin": 0.1},
    "head": {"head": "bce", "pair_weight": 0.0, "dropout": 0.2},
    "focal": {"head": "focal", "normalize": True, "ema": 0.9, "schedule": "cosine"},
    "wide views": {"pairs": "batch", "weight_decay": 0.1, "views": "wider"},
}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(settings, id=name, marks=() if name in ("mined", "focal") else pytest.mark.slow)
        for name, settings in LEARNING.items()
    ],
)
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
    table = run_folder.read_split(trained.run_dir)
    cache = build_cache(find_images(trained.train_image), trained.image_size, trained.cache_dir)
    validation = train.Validation.of(table, cache, seed=0)
    network = build_network("conv3", 32, 8, head=True)
    assert network.head is not None
    torch.nn.init.normal_(network.head.weight)
    feed = Feed(cache, torch.device("cpu"))
    loss_function = SiameseLoss(head="bce", pair_weight=0.5)
    found = train.validate(network, loss_function, feed, validation, torch.float32, "epoch 1/1")
    loss, aucs = found["val_loss"], found["val_aucs"]

    own, train_part = (table[table["part"] == part] for part in ("validation", "train"))
    (embeddings, logits), (references, _) = (
        embed_images(network, feed, cache.rows(part["image_name"]), torch.float32) for part in (own, train_part)
    )
    scores = score_all(embeddings, logits, references, train_part["label"].to_numpy())
    expected = {name: roc_auc_score(own["label"], values) for name, values in scores.items()}
    assert list(aucs) == list(SCORERS)
    assert aucs == pytest.approx(expected)
    assert found["val_auc"] == aucs["head"]
    distance = np.linalg.norm(embeddings[validation.pairs[:, 0]] - embeddings[validation.pairs[:, 1]], axis=1)
    costs = np.where(validation.same, distance, np.maximum(0, 0.5 - distance)) ** 2 / 2
    shown = validation.pairs.ravel()  # half of them melanomas, as in training
    labels = own["label"].to_numpy()[shown]
    assert labels.mean() == 0.5 and own["label"].mean() < 0.25
    chance = 1 / (1 + np.exp(-np.where(labels == 1, logits[shown], -logits[shown]).astype(float)))
    assert loss == pytest.approx(0.5 * costs.mean() - np.log(chance).mean(), rel=1e-4)


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


def test_the_loss_is_that_of_the_settings() -> None:
    config = Config(margin=0.7, positive_margin=0.1, average="active", pair_weight=0.4, head="focal")
    assert loss_of(config) == SiameseLoss(0.7, 0.1, True, 0.4, "focal")
    assert loss_of(Config(recipe="baseline")) == SiameseLoss()


def test_frozen_blocks_and_all_statistics_are_left_alone(quick: Config) -> None:
    config = dataclasses.replace(
        quick,
        backbone="mobilenetv2_100",
        backbone_weights="none",
        frozen_blocks=2,
        epoch_share=0.3,
        head="bce",
        pair_weight=0.0,  # random weights embed all images alike
    )
    torch.manual_seed(config.seed)
    start = network_of(config).state_dict()
    train.main(config)
    model = last(config)["model"]
    kept = {name for name, value in start.items() if torch.equal(model[name], value)}
    statistics = {name for name in start if name.endswith(("mean", "var", "num_batches_tracked"))}
    parts = ("conv_stem.", "bn1.", "blocks.0.0.")
    frozen = {name for name in start if name.startswith(tuple(f"backbone.model.{part}" for part in parts))}
    assert len(statistics) == 3 * 52 and len(frozen) == 6 + 12
    assert kept == statistics | frozen


def test_the_first_lines_say_the_recipe_what_differs_and_what_is_replaced(quick: Config, capsys) -> None:
    train.main(quick, replaced=["margin = 0.9"])
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first.startswith("recipe baseline; changed: image_size 32 (recipe: 128), batch_size 16 (recipe: 256)")
    assert "margin" not in first
    assert second == "the command line replaces these lines of config.py: margin = 0.9"


def test_the_last_line_names_the_next_command_and_a_failed_start_leaves_nothing(quick: Config, capsys) -> None:
    with pytest.raises(InputError):
        train.main(dataclasses.replace(quick, train_labels=(quick.train_image[0] / "none.csv",)))
    assert not quick.run_dir.exists()
    train.main(quick)
    lines = capsys.readouterr().out.splitlines()
    assert str(quick.graph_dir) in lines[-2]
    [folder] = quick.train_image
    assert lines[-1] == f"next: python predict.py --run-dir {quick.run_dir} --train-image {folder}"
    assert not (quick.run_dir / "lock").exists()


def test_a_backbone_starts_from_a_file_and_a_resumed_run_does_not_ask_for_it(quick: Config, tmp_path) -> None:
    torch.manual_seed(7)
    state = import_torchvision().models.resnet18().state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    config = dataclasses.replace(
        quick, backbone="resnet18", backbone_weights=str(tmp_path / "resnet.pt"), frozen_blocks=99, epoch_share=0.3
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
    (labels,) = quick.train_labels
    lines, changed = labels.read_text().splitlines(), labels.with_name("changed.csv")
    changed.write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="differ from"):
        train.main(dataclasses.replace(quick, train_labels=(changed,), epochs=2), resume=True)


def test_unreadable_images_stop_the_run_unless_left_out(quick: Config) -> None:
    (images,) = quick.train_image
    broken = sorted(images.glob("*.jpg"))[3]
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=rf"1 images cannot be read, .*--skip-unreadable: {broken.stem}: "):
        train.main(quick)
    train.main(dataclasses.replace(quick, skip_unreadable=True))
    table = run_folder.read_split(quick.run_dir)
    assert broken.stem not in set(table["image_name"])
    assert len(table) == len(list(images.glob("*.jpg"))) - 1


# --- trainings that go wrong ---


def saved(config: Config) -> dict[str, bytes]:
    """Return what a training has saved, of the files that a next epoch would replace."""
    names = ("last.pt", "best.pt", "log.jsonl")
    return {name: (config.run_dir / name).read_bytes() for name in names if (config.run_dir / name).exists()}


def stopped_by(config: Config, resume: bool = False) -> str:
    """Return the line that a training ends with."""
    with pytest.raises(InputError) as caught:
        train.main(config, resume)
    return str(caught.value)


@pytest.mark.parametrize("rate", [1.0, 100.0, 1e5])
def test_a_training_that_diverges_in_its_last_step_is_refused_before_it_is_saved(quick: Config, rate: float) -> None:
    """One step an epoch: the loss before it is that of the untrained network, and looks well."""
    config = dataclasses.replace(quick, learning_rate=rate, epochs=4, batch_size=256)
    line = stopped_by(config)
    assert line.startswith("the training has diverged in epoch 1/4: its validation loss is ")
    assert line.endswith(
        ", that of all images on one point 0.125 at most: lower --learning-rate; the last checkpoint is kept"
    )
    assert saved(config) == {}


@pytest.mark.parametrize(
    ("group", "what"),
    [({"share": 1e6}, "the training has diverged"), ({"weight_decay": 900.0}, "the embedding has collapsed")],
    ids=["diverged", "collapsed"],  # by the learning rate; by so large a decay that only biases remain
)
def test_the_checkpoints_of_the_epochs_before_are_kept_and_can_be_resumed(
    quick: Config, group: dict[str, float], what: str
) -> None:
    config = dataclasses.replace(quick, batch_size=256)  # one step an epoch, whose loss is computed before it
    train.main(config)
    before = saved(config)
    real = train.Learner.take_step

    def step(self, *arguments):
        for own in self.optimizer.param_groups:
            own.update(group)
        return real(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Learner, "take_step", step)
        line = stopped_by(dataclasses.replace(config, epochs=3), resume=True)
    assert line.startswith(f"{what} in epoch 2/3: ") and line.endswith("; the last checkpoint is kept")
    assert len(before) == 3 and saved(config) == before
    train.main(dataclasses.replace(config, epochs=2), resume=True)
    assert len(log_of(config)) == 2


@pytest.mark.parametrize("part", ["trained", "kept"])
@pytest.mark.parametrize("stop", [False, True], ids=["epoch", "part of an epoch"])
def test_weights_that_are_not_finite_after_the_last_step_are_not_saved(quick: Config, part: str, stop: bool) -> None:
    """The loss of each step was finite: it was computed before the step."""
    config = dataclasses.replace(quick, ema=0.5)
    train.main(config)
    before, real, taken = saved(config), train.Learner.take_step, []

    def step(self, *arguments):
        result = real(self, *arguments)
        taken.append(result)
        if stop or len(taken) == steps:
            network = self.network if part == "trained" else self.kept
            network.state_dict()["backbone.fc1.bias"][:] = -torch.inf  # ReLU makes them zeros, which look well
        return result

    images, cache = train_images(config)
    steps = len(train.epoch_batches(config, images, cache, np.random.default_rng(0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Learner, "take_step", step)
        patch.setattr(train.Ranks, "any", lambda self, here, device: (stop and bool(taken)) or here)
        line = stopped_by(dataclasses.replace(config, epochs=2), resume=True)
    assert line == "the weights are not finite after epoch 2/2: lower --learning-rate; the last checkpoint is kept"
    assert len(taken) == (1 if stop else steps)
    assert saved(config) == before


@pytest.mark.parametrize(("dropout", "rate"), [(0.0, 100.0), (0.4, 10.0)])
def test_a_collapse_is_seen_whether_or_not_dropout_keeps_training_embeddings_apart(
    quick: Config, dropout: float, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[dict[str, float]] = []
    real = train.Progress.means

    def means(self):
        measured.append(real(self))
        return measured[-1]

    monkeypatch.setattr(train.Progress, "means", means)
    settings = {name: value for name, value in RECIPES["scratch"].items() if name not in ("image_size", "epochs")}
    normal = dataclasses.replace(quick, **settings | {"recipe": "scratch", "head": "none", "dropout": dropout})
    train.main(dataclasses.replace(normal, epochs=4))
    assert len(log_of(normal)) == 4
    measured.clear()
    line = stopped_by(dataclasses.replace(normal, epochs=4, learning_rate=rate, run_dir=quick.run_dir / "wild"))
    assert line.startswith("the embedding has collapsed in epoch ")
    assert "lower --learning-rate, or try --normalize, --head bce" in line
    assert line.endswith("; the last checkpoint is kept")
    if dropout:
        assert measured[-1]["unlike_distance"] > 0.01 * normal.margin  # training alone does not show it


def test_a_network_whose_batch_statistics_have_not_settled_has_not_collapsed(quick: Config) -> None:
    """In evaluation mode these random weights embed all images alike for some 50 steps, and yet they learn."""
    config = dataclasses.replace(quick, backbone="efficientnet_b0", backbone_weights="none", epoch_share=0.2)
    found: list[float] = []
    real = train.refuse_broken

    def note(loss, value, unlike_distance, settled, name):
        found.append(unlike_distance / loss.margin)
        real(loss, value, unlike_distance, settled, name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "refuse_broken", note)
        train.main(config)
    assert found[0] < 0.01
