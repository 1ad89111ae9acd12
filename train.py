"""Train a Siamese network on pairs of lesions: `python train.py` (settings: config.py, or flags).

Each epoch draws balanced pairs, embeds both images of a pair with one network, and takes contrastive-loss steps. It
then measures loss and AUC on validation, saves, and plots. A run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from config import RECIPES, Config
from melanoma.common.settings import Parser, add_flags, experiment, from_flags, replaced_lines, to_dict


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("Train a Siamese network on pairs of lesions.", "python train.py [--FLAG VALUE ...]")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the run in run_dir")
    group.add_argument("--overwrite", action="store_true", help="replace the run in run_dir")
    parser.add_argument("--compile", action="store_true", help="fuse operations with torch.compile, for long trainings")
    add_flags(parser, Config, RECIPES)
    return parser


ARGUMENTS = argparse.Namespace()
if __name__ == "__main__":  # --help and misspelt flags are answered before the slow imports below
    ARGUMENTS = make_parser().parse_args()

import contextlib
import copy
import math
import shlex
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import dataset
from dataset import Batch, PairDataset, in_batch_batches, sample_balanced, sample_pairs
from melanoma.common.device import (
    choose_precision,
    describe_device,
    deterministic,
    keep_freed_memory,
    random_state,
    set_random_state,
    upload,
)
from melanoma.common.errors import InputError, shown
from melanoma.common.script import Held, Stopped, hold_signals, run_script
from melanoma.common.threads import Aside
from melanoma.data.augment import VIEWS, Views, draw_views
from melanoma.data.cache import ImageCache
from melanoma.data.feed import Feed
from melanoma.data.sources import Sources, describe_folders
from melanoma.data.split import LESIONS
from melanoma.data.synthetic import is_generated
from melanoma.evaluation.controls import METADATA
from melanoma.evaluation.evaluate import with_features
from melanoma.report.curves import describe_parts, learning_curves
from melanoma.report.graph_folder import Origin, clear_others, save_figure
from melanoma.scoring.embedding import embed_images
from melanoma.scoring.ensemble import make_run
from melanoma.scoring.model_file import write_model
from melanoma.scoring.scores import score_all, usual_scorer
from melanoma.training import run_folder
from melanoma.training.learner import Learner
from melanoma.training.progress import Meter
from melanoma.training.ranks import Ranks, join_ranks
from modules import MEASURES, SiameseLoss, SiameseNetwork, loss_of, network_of

LOG_STEPS = 20  # steps between two readings of the loss at most; each waits for the device
PLOT_EVERY = 5.0  # seconds between two drawings of the learning curves at least
BENIGN_REFERENCES = 500  # of the training part, in each epoch's validation; predict.py uses all of them
KEPT = "the last checkpoint is kept"


def main(
    config: Config, resume: bool = False, overwrite: bool = False, replaced: Sequence[str] = (), compiled: bool = False
) -> None:
    """Train one run; everything it leaves is in `config.run_dir` and `config.graph_dir`.

    Parameters
    ----------
    replaced : lines of config.py that the command line replaces, to be printed
    compiled : see `Learner`
    """
    keep_freed_memory()
    with (
        join_ranks(config.device) as (device, ranks),
        run_folder.lock_run(config.run_dir) if ranks.first else contextlib.nullcontext(),
        deterministic(config.deterministic),
    ):
        ranks.say(describe_settings(config, replaced))
        train_run(config, device, ranks, resume, overwrite, compiled)


def describe_settings(config: Config, replaced: Sequence[str]) -> str:
    """Return the recipe, the settings that differ from it, and the lines of config.py that were replaced, as text."""
    settings = to_dict(config)
    differ = [
        f"{name} {shown(settings[name])} (recipe: {shown(value)})"
        for name, value in RECIPES[config.recipe].items()
        if settings[name] != value
    ]
    lines = [f"recipe {config.recipe}" + (f"; changed: {', '.join(differ)}" if differ else "")]
    if replaced:
        lines.append(f"the command line replaces these lines of config.py: {', '.join(replaced)}")
    return "\n".join(lines)


def train_run(
    config: Config, device: torch.device, ranks: Ranks, resume: bool, overwrite: bool, compiled: bool
) -> None:
    """Train one run as one of the processes that share it; the first prints and writes."""
    dtype = choose_precision(config.precision, device)
    processes = f", {ranks.count} processes" if ranks.count > 1 else ""
    where = describe_device(device, dtype)
    ranks.say(f"training on {where}{processes}")
    run_folder.check_run_dir(config.run_dir, experiment(config), resume, overwrite)

    lesions = dataset.load_lesions(config)
    ranks.say(dataset.describe(dataset.summarise(lesions, config)))
    # before the images are decoded, so that an error in the weights is reported at once
    torch.manual_seed(config.seed)
    network = network_of(config, weights="none" if resume else config.backbone_weights).to(device)
    network.freeze(config.frozen_blocks)
    data = Data.of(lesions, config, device)
    if data.joined:
        ranks.say(data.joined)

    log: list[dict[str, Any]] = []
    partway: dict[str, Any] | None = None
    steps = len(epoch_batches(config, data.train, data.feed.cache, epoch_generators(config.seed, 1)[0]))
    learner = Learner(
        network,
        config.epochs * steps,
        config.learning_rate,
        schedule=config.schedule,
        backbone_rate=config.backbone_rate,
        weight_decay=config.weight_decay,
        ema=config.ema,
        ranks=ranks,
        dtype=dtype,
        batch_size=config.batch_size,
        compiled=compiled,
    )
    if resume:
        last = config.run_dir / "last.pt"
        state = run_folder.resume_run(config.run_dir, data.table)
        learner.resume(state, last)
        log, partway = state["log"], state.get("partway")
        with run_folder.fitting(last):
            # an IndexError if the epoch has no such step
            learner.taken = len(log) * steps + (range(steps)[partway["steps"]] if partway else 0)
    ranks.wait()  # until all have looked at the run folder: from here on the first one writes to it
    if ranks.first:
        starts = run_folder.write_start(config.run_dir, to_dict(config), data.table, where, resume)
        folders, synthetic = describe_folders(config.train_image), any(map(is_generated, config.train_image))
        origin = Origin([config.run_dir.name], [config.recipe], [folders], [starts[0]["started"]], synthetic)
        ranks.say(origin.line)
        clear_others(config.graph_dir, origin.mark)
        data = replace(data, origin=origin)
        if log:
            write_progress(config, state, data, plot=True)  # the run may have been killed before these were written
    with hold_signals() as held, Aside() as saving:
        train_epochs(config, learner, data, log, partway, held, saving)
    with ranks.together(device):
        if ranks.first:
            ranks.say("writing model.pt: embedding the references")
            best = write_run(config, learner.kept, data, origin, log, dtype)
            ranks.say(
                f"best validation AUC {best['val_auc']:.3f} (epoch {best['epoch']}); run folder {config.run_dir}, "
                f"learning curves in {config.graph_dir}\nnext: {next_command(config)}"
            )


def train_epochs(
    config: Config,
    learner: Learner,
    data: Data,
    log: list[dict[str, Any]],
    partway: dict[str, Any] | None,
    held: Held,
    saving: Aside,
) -> None:
    """Train the epochs that the log does not have yet: draw pairs, take steps, validate, save.

    Parameters
    ----------
    log : of the epochs before; grows by an entry for each epoch
    partway : state of the first epoch, if a part of it has been trained: see `Progress.state`
    held : the signal that asks to stop, which ends the step, saves and raises
    saving : saves and plots an epoch while the next one is trained

    Raises
    ------
    InputError : the training diverges, the embedding collapses, the memory or the disk is too small
    Stopped : a signal came
    """
    ranks, device, feed, loss = learner.ranks, data.feed.device, data.feed, loss_of(config)
    ranges = VIEWS[config.views]
    ended, plotted = time.perf_counter(), -math.inf

    def stopping() -> bool:
        return ranks.any(held.number is not None, device)

    def stopped(saved: str) -> Stopped:
        return Stopped(held.number or signal.SIGTERM, saved)  # of several processes another may have got it

    for epoch in range(len(log) + 1, config.epochs + 1):
        start, name = time.perf_counter(), f"epoch {epoch}/{config.epochs}"
        rng, views_generator = epoch_generators(config.seed, epoch)
        batches = epoch_batches(config, data.train, feed.cache, rng)
        draw = partial(draw_views, generator=views_generator, ranges=ranges) if ranges else None
        progress = Progress.start(device)
        if partway:
            with run_folder.fitting(config.run_dir / "last.pt"):
                progress, partway = Progress.resume(partway, views_generator, device), None
        done = progress.images
        mined = config.hardest if epoch > 1 else 1.0
        later = (config.epochs - epoch) * len(batches)
        with Meter(name, len(batches), progress.steps, later, quiet=not ranks.first) as meter:
            train_epoch(learner, batches, feed, draw, loss, mined, progress, meter, stopping)
        if not learner.finite():
            raise InputError(f"the weights are not finite after {name}: lower --learning-rate; {KEPT}")
        if progress.steps < len(batches):
            with ranks.together(device):
                if ranks.first:
                    saving.join()
                    state = {"partway": progress.state(views_generator, device)}
                    last = config.run_dir / "last.pt"
                    run_folder.save_checkpoint(last, checkpoint_of(config, learner, log) | state)
            raise stopped(f"saved after step {progress.steps} of {len(batches)} of {name}; --resume goes on from there")
        trained, measured = time.perf_counter(), progress.means()
        with ranks.together(device):
            if ranks.first:
                validated = validate(learner.kept, loss, feed, data.validation, learner.dtype, name)
                saving.join()
                before, ended = ended, time.perf_counter()  # the wait for the epoch before's files counts
                rate = (progress.images - done) / (trained - start)
                log.append(
                    {"epoch": epoch, **measured, **validated}
                    | {"seconds": round(ended - before, 3), "images_per_second": round(rate, 1)}
                )
                plot = ended - plotted >= PLOT_EVERY or epoch == config.epochs
                plotted = ended if plot else plotted
                checkpoint = copy.deepcopy(checkpoint_of(config, learner, log))  # the next step changes the weights
                saving.start(partial(save_epoch, config, checkpoint, data, plot))
                ranks.say(describe_epoch(log[-1], config.epochs))
        if stopping():
            with ranks.together(device):
                saving.join()
            rest = "goes on from there" if epoch < config.epochs else "writes model.pt"
            raise stopped(f"saved after {name}; --resume {rest}")


def refuse_broken(loss: SiameseLoss, value: float, unlike_distance: float, settled: bool, name: str) -> None:
    """Stop a training that has diverged, or whose embedding no longer tells images apart.

    Parameters
    ----------
    value, unlike_distance : loss, and mean distance of unlike pairs, in the validation after an epoch
    settled : see `SiameseNetwork.settled`; before, only a loss that is no number stops the training
    name : of the epoch

    Raises
    ------
    InputError
    """
    if not math.isfinite(value) or (settled and loss.diverged(value)):
        raise InputError(
            f"the training has diverged in {name}: its validation loss is {value:.3g}, that of all images on one point "
            f"{loss.on_one_point:.3g} at most: lower --learning-rate; {KEPT}"
        )
    if settled and loss.collapsed(unlike_distance):
        raise InputError(
            f"the embedding has collapsed in {name}: unlike validation images lie {unlike_distance:.2g} apart on "
            f"average, with a margin of {loss.margin}: lower --learning-rate, or try --normalize, --head bce or "
            f"--pairs batch; {KEPT}"
        )


@dataclass(frozen=True)
class Images:
    """The images of one part: cache rows and labels, int arrays of shape (N,), and sources if pairs are within them."""

    rows: np.ndarray
    labels: np.ndarray
    source: np.ndarray | None = None

    @staticmethod
    def of_part(table: Any, part: str, cache: ImageCache, within_source: bool = False) -> Images:
        own = table[table["part"] == part]
        source = own["source"].to_numpy(str) if within_source else None
        return Images(cache.rows(own["image_name"]), own["label"].to_numpy(copy=True), source)


@dataclass(frozen=True)
class Validation:
    """What every epoch is measured on, drawn once: images, their pairs, and references from the training part."""

    images: Images
    pairs: np.ndarray
    same: np.ndarray
    references: Images

    @staticmethod
    def of(table: Any, cache: ImageCache, seed: int, within_source: bool = False) -> Validation:
        rng = np.random.default_rng([seed, 0])  # epochs count from 1
        images = Images.of_part(table, "validation", cache, within_source)
        pairs, same = sample_pairs(images.labels, rng, images.source)
        train = Images.of_part(table, "train", cache)
        benign = rng.permutation(np.flatnonzero(train.labels == 0))[:BENIGN_REFERENCES]
        kept = np.sort(np.concatenate([np.flatnonzero(train.labels == 1), benign]))
        return Validation(images, pairs, same, Images(train.rows[kept], train.labels[kept]))


@dataclass(frozen=True)
class Data:
    """What a run is trained and validated on."""

    table: Any
    train: Images
    validation: Validation
    feed: Feed
    what: str  # the parts in words, for figures
    joined: str  # what equal pictures changed in the split, see `dataset.join_equal_pictures`
    origin: Origin | None = None  # of the figures, once the run has started

    @staticmethod
    def of(lesions: Sources, config: Config, device: torch.device) -> Data:
        cache = dataset.decode(config, lesions.paths, config.image_size)
        table, joined = dataset.join_equal_pictures(lesions, cache, config)
        train = Images.of_part(table, "train", cache, config.pairs_within_source)
        validation = Validation.of(table, cache, config.seed, config.pairs_within_source)
        labels = {"training": train.labels, "validation": validation.images.labels}
        return Data(table, train, validation, Feed(cache, device), describe_parts(labels), joined)


def epoch_generators(seed: int, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the generators of an epoch's pairs and views; they depend on nothing that came before.

    Also seeds torch's global generators, which layers such as dropout draw from.
    """
    pairs_seed, views_seed, layers_seed = np.random.SeedSequence([seed, epoch]).generate_state(3, np.uint64)
    torch.manual_seed(int(layers_seed))
    return np.random.default_rng(pairs_seed), torch.Generator().manual_seed(int(views_seed))


def epoch_batches(config: Config, train: Images, cache: ImageCache, rng: np.random.Generator) -> list[Batch]:
    """Draw the batches of one epoch."""
    if config.pairs == "batch":
        order = sample_balanced(train.labels, rng, config.epoch_share, train.source)
        return in_batch_batches(order, train.labels, train.rows, config.batch_size, train.source)
    pairs, same = sample_pairs(train.labels, rng, train.source)
    kept = slice(math.ceil(config.epoch_share * len(pairs)))  # their order is random
    return PairDataset(cache, train.rows, train.labels, pairs[kept], same[kept]).batches(config.batch_size)


@dataclass
class Progress:
    """How far an epoch has come.

    sums : float tensor of shape (1 + len(MEASURES),) on the device: loss and measures of each step, times its images
    steps, images : taken and seen so far
    """

    sums: Tensor
    steps: int = 0
    images: int = 0

    @staticmethod
    def start(device: torch.device) -> Progress:
        return Progress(torch.zeros(1 + len(MEASURES), device=device))

    def means(self) -> dict[str, float]:
        """Return the mean loss and measures by image; waits for the device."""
        return dict(zip(("train_loss", *MEASURES), (self.sums / self.images).tolist(), strict=True))

    def state(self, views: torch.Generator, device: torch.device) -> dict[str, Any]:
        """Return what a checkpoint needs to go on from here, with the random number generator states."""
        states = {"views": views.get_state(), "layers": random_state(device)}
        return {"sums": self.sums.cpu(), "steps": self.steps, "images": self.images, **states}

    @staticmethod
    def resume(state: dict[str, Any], views: torch.Generator, device: torch.device) -> Progress:
        """Return the progress of a `state`, and restore its random number generator states."""
        views.set_state(state["views"])
        set_random_state(state["layers"], device)
        return Progress(state["sums"].to(device), state["steps"], state["images"])


def train_epoch(
    learner: Learner,
    batches: Sequence[Batch],
    feed: Feed,
    draw: Callable[[int], Views] | None,
    loss: SiameseLoss,
    mined_share: float,
    progress: Progress,
    meter: Meter,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Take one step on each batch that is still to come, in their order, and note them in `progress`.

    Views are drawn for the whole batch, so the step is the same for any number of processes: see
    `Learner.take_step`.

    Parameters
    ----------
    draw : gives the views of a number of images; None shows the images as they are
    mined_share : share of the pairs, the costliest, that count
    stopping : asked between steps whether to leave the rest of the epoch

    Raises
    ------
    InputError : the loss is not finite, or the device's memory too small
    """
    learner.network.train()
    ranks, left, device = learner.ranks, batches[progress.steps :], feed.device
    places = [ranks.places(len(batch.rows)) for batch in left]
    images = feed.batches(batch.rows[place] for batch, place in zip(left, places, strict=True))
    for shown_images, batch, place in zip(images, left, places, strict=True):
        size = len(batch.rows)
        views = draw(size)[torch.from_numpy(place)].to(device) if draw else None
        labels, same = (upload(torch.from_numpy(part), device) for part in (batch.labels, batch.same))
        met = None if batch.met is None else upload(torch.from_numpy(batch.met), device)
        cost = partial(loss, labels=labels, same=same, met=met, mined_share=mined_share)
        rate = learner.rate
        progress.sums += learner.take_step(shown_images, size, views, cost) * size
        progress.steps += 1
        progress.images += size
        regular = progress.steps % LOG_STEPS == 0 or progress.steps == len(batches)
        means = progress.means() if regular or meter.due else {}
        if regular and not all(map(math.isfinite, means.values())):  # where all processes read it
            raise InputError(
                f"the loss is not finite in {meter.name}, step {progress.steps}, learning rate {rate:.3g}: "
                f"lower --learning-rate; {KEPT}"
            )
        meter.update(means.get("train_loss"))
        # several processes must agree, which takes time
        if (regular or ranks.count == 1) and progress.steps < len(batches) and stopping():
            return


def validate(
    network: SiameseNetwork, loss: SiameseLoss, feed: Feed, validation: Validation, dtype: torch.dtype, name: str
) -> dict[str, Any]:
    """Return the log's figures of validation: its loss, the AUC of its images by the usual scorer, and by each.

    The head's loss is over the images of the pairs, half of which are melanomas, as they are in training.

    name : of the epoch

    Raises
    ------
    InputError : the training has diverged, or the embedding collapsed
    """
    images, references = validation.images, validation.references
    embeddings, logits = embed_images(network, feed, images.rows, dtype)
    paired = validation.pairs.T.ravel()
    seen, odds, labels, same = map(
        torch.from_numpy, (embeddings[paired], logits[paired], images.labels[paired], validation.same)
    )
    of_pairs, measures = loss(seen, odds, labels, same)
    value = float(of_pairs)
    unlike_distance = float(measures[MEASURES.index("unlike_distance")])
    refuse_broken(loss, value, unlike_distance, network.settled, name)
    reference_embeddings, _ = embed_images(network, feed, references.rows, dtype)
    head = logits if loss.head != "none" else None
    scores = score_all(embeddings, head, reference_embeddings, references.labels)
    aucs = {name: float(roc_auc_score(images.labels, own)) for name, own in scores.items()}
    return {"val_loss": value, "val_auc": aucs[usual_scorer(head is not None)], "val_aucs": aucs}


def checkpoint_of(config: Config, learner: Learner, log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the checkpoint to resume from, of the very tensors that the next step changes."""
    return {"config": experiment(config), "log": log, "model": learner.kept.state_dict(), **learner.state()}


def save_epoch(config: Config, checkpoint: dict[str, Any], data: Data, plot: bool) -> None:
    """Save an epoch: last.pt first, from which a resume after a kill writes the rest."""
    run_folder.save_checkpoint(config.run_dir / "last.pt", checkpoint)
    write_progress(config, checkpoint, data, plot)


def write_progress(config: Config, checkpoint: Mapping[str, Any], data: Data, plot: bool) -> None:
    """Write best.pt if the checkpoint is of the best epoch so far, and the log; plot the learning curves if wanted."""
    log = checkpoint["log"]
    if "partway" not in checkpoint and run_folder.best_entry(log) is log[-1]:
        best = {name: checkpoint[name] for name in ("config", "log", "model")}
        run_folder.save_checkpoint(config.run_dir / "best.pt", best)
    run_folder.write_log(config.run_dir / "log.jsonl", log)
    if plot and data.origin:
        what = f"{data.what}\n{data.origin.line}"
        figure = learning_curves(log, run_folder.best_entry(log)["epoch"], what)
        save_figure(figure, config.graph_dir / "Train_average_loss.png", data.origin.mark)


def write_run(
    config: Config, network: SiameseNetwork, data: Data, origin: Origin, log: list[dict[str, Any]], dtype: torch.dtype
) -> Mapping[str, Any]:
    """Write model.pt, all that judging needs, from the weights of the best epoch; return that epoch's log entry.

    network : is loaded with these weights
    """
    best, path = run_folder.best_entry(log), config.run_dir / "best.pt"
    state = run_folder.load_checkpoint(path)
    with run_folder.fitting(path):
        network.load_state_dict(state["model"])
    lesions = data.table[[*LESIONS, "part", *METADATA]]
    run = make_run(
        network,
        data.feed,
        with_features(lesions, data.feed.cache),
        dtype,
        name=config.run_dir.name,
        settings=experiment(config),
        validation_fold=dataset.validating_fold(config),
        epoch=best["epoch"],
        log=log,
        starts=run_folder.read_starts(config.run_dir),
        data=origin.data[0],
        synthetic=origin.synthetic,
    )
    write_model(config.run_dir / run_folder.MODEL, [run])
    return best


def next_command(config: Config) -> str:
    """Return the command that evaluates the run, with the folders of its images: config.py may have others."""
    words = ["python", "predict.py", "--run-dir", str(config.run_dir)]
    if config.fold is None:
        words += ["--split-part", "validation"]
    return shlex.join([*words, "--train-image", *map(str, config.train_image)])


def describe_epoch(entry: dict[str, Any], epochs: int) -> str:
    """Return an epoch's log entry as one line."""
    return (
        f"epoch {entry['epoch']:>3}/{epochs}  train loss {entry['train_loss']:.5f}  "
        f"validation loss {entry['val_loss']:.5f}  validation AUC {entry['val_auc']:.3f}  "
        f"{entry['seconds']:.1f} s  {entry['images_per_second']:,.0f} images/s"
    )


def run(arguments: argparse.Namespace) -> None:
    """Train as the command line asks."""
    config = from_flags(Config, RECIPES, arguments)
    replaced = replaced_lines(config, RECIPES[config.recipe], arguments)
    main(config, arguments.resume, arguments.overwrite, replaced, arguments.compile)


if __name__ == "__main__":
    run_script(lambda: run(ARGUMENTS))
