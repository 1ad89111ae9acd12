"""Train a Siamese network on pairs of lesions: `python train.py` (settings: config.py, or flags).

Each epoch draws balanced pairs, embeds both images of a pair with one network, and takes contrastive-loss steps;
then it measures loss and AUC on validation, saves, and plots. A run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import checkpoint
import dataset
import figures
from augment import ViewRanges, Views, draw_views, show
from classify import score_all
from config import Config, InputError, add_flags, experiment, from_flags
from dataset import Batch, PairDataset, in_batch_batches, independent_batches, sample_balanced, sample_pairs
from device import Ranks, autocast, choose_precision, describe_device, join_ranks, keep_freed_memory
from feed import Feed, embed_images
from images import ImageCache, build_cache, refuse_unreadable
from losses import MEASURES, SiameseLoss
from modules import SiameseNetwork, network_of
from script import run_script

LOG_STEPS = 20  # steps between two readings of the loss, each of which waits for the device
BENIGN_REFERENCES = 500  # of the training part, in each epoch's validation; predict.py uses all of them


def main(config: Config, resume: bool = False, overwrite: bool = False) -> None:
    """Train one run; everything it leaves is in `config.run_dir` and `config.graph_dir`."""
    keep_freed_memory()
    with join_ranks(config.device) as (device, ranks):
        train_run(config, device, ranks, resume, overwrite)


def train_run(config: Config, device: torch.device, ranks: Ranks, resume: bool, overwrite: bool) -> None:
    """Train one run as one of the processes that share it; the first prints and writes."""
    dtype = choose_precision(config.precision, device)
    processes = f", {ranks.count} processes" if ranks.count > 1 else ""
    ranks.say(f"training on {describe_device(device, dtype)}{processes}")
    checkpoint.check_run_dir(config, resume, overwrite)

    lesions = dataset.load_lesions(config)
    ranks.say(dataset.describe(dataset.summarise(lesions, config)))
    # before the images are decoded: what is wrong with the weights is said at once
    torch.manual_seed(config.seed)
    network = network_of(config, weights="none" if resume else config.backbone_weights).to(device)
    cache = build_cache(lesions.paths, config.image_size, config.cache_dir, config.workers)
    refuse_unreadable(cache.errors, config.skip_unreadable)
    table = dataset.without_images(lesions.table, cache.errors)
    train = Images.of_part(table, "train", cache)
    validation = Validation.of(table, cache, config.seed)
    feed = Feed(cache, device)

    loss_function = loss_of(config)
    log: list[dict[str, Any]] = []
    steps = len(epoch_batches(config, train, cache, epoch_generators(config.seed, 1)[0]))
    learner = Learner(network, config, config.epochs * steps)
    if resume:
        state = checkpoint.resume_run(config, table)
        learner.resume(state, config.run_dir / "last.pt")
        log = state["log"]
        learner.taken = len(log) * steps
    ranks.wait()  # until all have looked at the run folder: from here on the first one writes to it
    if ranks.first:
        checkpoint.write_start(config, table, describe_device(device, dtype), resume)

    ranges = view_ranges(config)
    what = figures.describe_parts({"training": train.labels, "validation": validation.images.labels})
    for epoch in range(len(log) + 1, config.epochs + 1):
        start = time.perf_counter()
        rng, views_generator = epoch_generators(config.seed, epoch)
        batches = epoch_batches(config, train, cache, rng)
        network.freeze(None if epoch <= config.frozen_epochs else config.frozen_blocks, config.frozen_norm)
        measured = train_epoch(
            DistributedDataParallel(network) if ranks.count > 1 else network,
            loss_function,
            learner,
            batches,
            feed,
            ranks,
            partial(draw_views, generator=views_generator, ranges=ranges) if config.augment else None,
            dtype,
            f"epoch {epoch}/{config.epochs}",
            config.hardest if epoch > config.mining_epochs else 1.0,
        )
        trained = time.perf_counter()
        if ranks.first:
            val_loss, val_aucs = validate(learner.kept, loss_function, feed, validation, dtype)
            scorer = max(val_aucs, key=lambda name: val_aucs[name])
            log.append(
                {
                    "epoch": epoch,
                    **measured,
                    "val_loss": val_loss,
                    "val_auc": val_aucs[scorer],
                    "scorer": scorer,
                    "val_aucs": val_aucs,
                    "seconds": round(time.perf_counter() - start, 3),
                    "images_per_second": round(
                        sum(len(batch.rows) for batch in batches) / (trained - start), 1
                    ),
                }
            )
            save_epoch(config, learner, log, what)
            ranks.say(describe_epoch(log[-1], config.epochs))
        ranks.wait()
        refuse_collapse(loss_function, measured, epoch)
    if ranks.first:
        best = checkpoint.best_entry(log)
        ranks.say(
            f"best validation AUC {best['val_auc']:.3f} (epoch {best['epoch']}); run folder {config.run_dir}"
        )


def loss_of(config: Config) -> SiameseLoss:
    """Return the loss that the settings describe."""
    return SiameseLoss(
        loss=config.loss,
        margin=config.margin,
        positive_margin=config.positive_margin,
        active_only=config.average == "active",
        melanoma_weight=config.melanoma_weight,
        pair_weight=config.pair_weight,
        head=config.head,
    )


def view_ranges(config: Config) -> ViewRanges:
    """Return how far views may differ from the image: the settings that begin with view_."""
    return ViewRanges(**{item.name: getattr(config, f"view_{item.name}") for item in fields(ViewRanges)})


class Learner:
    """Takes the steps of a training: AdamW at the learning rate's course, and the running mean of the weights.

    The backbone has parameter groups of its own, whose `share` is of the learning rate. Weight decay is for matrices
    and kernels, not for biases and the scales of normalisation.

    Parameters
    ----------
    network : on its device
    config : learning_rate, backbone_rate, schedule, warmup, weight_decay and ema are used
    total : steps of the whole training, which the learning rate's course is laid over
    """

    def __init__(self, network: SiameseNetwork, config: Config, total: int) -> None:
        self.network = network
        self.config = config
        self.total = total
        self.taken = 0
        groups = []
        for of_backbone, share in ((True, config.backbone_rate), (False, 1.0)):
            own = [p for name, p in network.named_parameters() if name.startswith("backbone.") == of_backbone]
            for matrix, decay in ((True, config.weight_decay), (False, 0.0)):
                members = [p for p in own if (p.ndim > 1) == matrix]
                groups.append({"params": members, "share": share, "weight_decay": decay})
        fused = next(network.parameters()).device.type != "mps"
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(network, multi_avg_fn=self._follow, use_buffers=True)

    @property
    def kept(self) -> SiameseNetwork:
        """What is validated and saved as the run's model: the running mean of the weights if there is one."""
        if self.average is None:
            return self.network
        assert isinstance(self.average.module, SiameseNetwork)
        return self.average.module

    @property
    def rate(self) -> float:
        """The learning rate of the next step: a rise from 0 in the warm-up, then constant or half a cosine to 0."""
        peak, rising = self.config.learning_rate, self.config.warmup * self.total
        if self.taken < rising:
            return peak * (self.taken + 1) / (rising + 1)
        if self.config.schedule == "constant":
            return peak
        return peak * (1 + math.cos(math.pi * (self.taken - rising) / (self.total - rising))) / 2

    def step(self, loss: Tensor) -> None:
        """Take one step down the gradient of a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["share"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.average:
            self.average.update_parameters(self.network)
        self.taken += 1

    def state(self) -> dict[str, Any]:
        """Return what is needed to go on, beside the weights that are kept."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict()}
        if self.average:
            state |= {"trained": self.network.state_dict(), "averaged": int(self.average.n_averaged)}
        return state

    def resume(self, state: dict[str, Any], path: Path) -> None:
        """Take up a checkpoint's weights and `state`."""
        checkpoint.load_weights(self.kept, state, path)
        if self.average:
            checkpoint.load_weights(self.network, state, path, "trained")
            with checkpoint.fitting(path):
                self.average.n_averaged.fill_(int(state["averaged"]))
        checkpoint.load_optimizer(self.optimizer, state, path)

    @torch.no_grad()
    def _follow(self, average: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor | int) -> None:
        """Move the running mean; its decay rises with the steps, so that the first ones are soon forgotten.

        `steps` is `taken` on the device: to read it would be to wait for it.
        """
        rate = 1 - min(self.config.ema, (1 + self.taken) / (10 + self.taken))
        for own, new in zip(average, current, strict=True):
            if own.is_floating_point():
                own.lerp_(new, rate)
            else:
                own.copy_(new)


def refuse_collapse(loss_function: SiameseLoss, measured: dict[str, float], epoch: int) -> None:
    """Stop a training whose embedding no longer tells images apart.

    Raises
    ------
    InputError
    """
    if loss_function.collapsed(measured["unlike_distance"]):
        raise InputError(
            f"the embedding has collapsed in epoch {epoch}: unlike images lie {measured['unlike_distance']:.2g} "
            f"apart on average, with a margin of {loss_function.margin}: lower --learning-rate, or try --normalize, "
            "--head bce or --pairs batch"
        )


@dataclass(frozen=True)
class Images:
    """The images of one part: cache rows and labels, int arrays of shape (N,)."""

    rows: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of_part(table: Any, part: str, cache: ImageCache) -> Images:
        own = table[table["part"] == part]
        return Images(cache.rows(own["image_name"]), own["label"].to_numpy(copy=True))


@dataclass(frozen=True)
class Validation:
    """What every epoch is measured on, drawn once: images, their pairs, and references from the training part."""

    images: Images
    pairs: np.ndarray
    same: np.ndarray
    references: Images

    @staticmethod
    def of(table: Any, cache: ImageCache, seed: int) -> Validation:
        rng = np.random.default_rng([seed, 0])  # epochs count from 1
        images = Images.of_part(table, "validation", cache)
        pairs, same = sample_pairs(images.labels, rng)
        train = Images.of_part(table, "train", cache)
        benign = rng.permutation(np.flatnonzero(train.labels == 0))[:BENIGN_REFERENCES]
        kept = np.sort(np.concatenate([np.flatnonzero(train.labels == 1), benign]))
        return Validation(images, pairs, same, Images(train.rows[kept], train.labels[kept]))


def epoch_generators(seed: int, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the sources of an epoch's pairs and views; they depend on nothing that came before.

    Also seeds torch's global generators, which layers such as dropout draw from.
    """
    pairs_seed, views_seed, layers_seed = np.random.SeedSequence([seed, epoch]).generate_state(3, np.uint64)
    torch.manual_seed(int(layers_seed))
    return np.random.default_rng(pairs_seed), torch.Generator().manual_seed(int(views_seed))


def epoch_batches(config: Config, train: Images, cache: ImageCache, rng: np.random.Generator) -> list[Batch]:
    """Draw the batches of one epoch."""
    if config.pairs == "batch":
        order = sample_balanced(train.labels, rng, config.epoch_share)
        return in_batch_batches(order, train.labels, train.rows, config.batch_size)
    pairs, same = sample_pairs(train.labels, rng)
    shown = slice(math.ceil(config.epoch_share * len(pairs)))  # their order is random
    dataset = PairDataset(cache, train.rows, pairs[shown], same[shown])
    return independent_batches(dataset, train.labels, config.batch_size)


def train_epoch(
    network: nn.Module,
    loss_function: SiameseLoss,
    learner: Learner,
    batches: Sequence[Batch],
    feed: Feed,
    ranks: Ranks,
    draw: Callable[[int], Views] | None,
    dtype: torch.dtype,
    name: str,
    mined_share: float = 1.0,
) -> dict[str, float]:
    """Take one step on each batch, in their order; return the mean loss and measures of its steps, by image.

    Every process embeds its share of a batch's images and compares the embeddings of all: views are drawn for the
    whole batch, so the step is the same for any number of processes.

    Parameters
    ----------
    network : the learner's, wrapped in DistributedDataParallel if there are several processes
    draw : gives the views of a number of images; None shows the images as they are
    mined_share : share of the pairs, the costliest, that are trained on

    Raises
    ------
    InputError : the loss is not finite
    """
    network.train()
    device = feed.device
    shares = [np.arange(len(batch.rows))[ranks.share(len(batch.rows))] for batch in batches]
    places = [
        share if len(share) else np.array([0]) for share in shares
    ]  # a process without a share embeds one
    rows = (batch.rows[place] for batch, place in zip(batches, places, strict=True))
    total, seen = torch.zeros(1 + len(MEASURES), device=device), 0
    bar = tqdm(feed.batches(rows), name, len(batches), unit="step", leave=False, disable=ranks.quiet)
    steps = zip(bar, batches, shares, places, strict=True)
    for step, (images, batch, share, place) in enumerate(steps, start=1):
        views = draw(len(batch.rows))[torch.from_numpy(place)].to(device) if draw else None
        shown = show(images, views)  # in float32: autocast would round what blur and noise compute
        with autocast(device, dtype):
            own = torch.cat([part.view(len(place), -1) for part in network(shown)], dim=1)
        outputs = ranks.gather(
            own[: len(share)], len(batch.rows)
        )  # embeddings, and the logit in the last column
        first, second, labels = (
            torch.from_numpy(part).to(device) for part in (batch.first, batch.second, batch.labels)
        )
        loss, measures = loss_function(outputs[:, :-1], outputs[:, -1], labels, first, second, mined_share)
        rate = learner.rate
        learner.step(loss * ranks.count)  # the gradient is averaged over the processes: their sum is wanted
        total += torch.cat([loss.detach().view(1), measures]) * len(batch.rows)
        seen += len(batch.rows)
        if step % LOG_STEPS == 0 or step == len(batches):
            means = (total / seen).tolist()  # waits for the device
            if not all(map(math.isfinite, means)):
                raise InputError(
                    f"the loss is not finite in {name}, step {step}, learning rate {rate:.3g}: "
                    "lower --learning-rate; the last epoch's checkpoint is kept"
                )
            bar.set_postfix(loss=f"{means[0]:.4f}")
    return dict(zip(("train_loss", *MEASURES), means, strict=True))


def validate(
    network: SiameseNetwork,
    loss_function: SiameseLoss,
    feed: Feed,
    validation: Validation,
    dtype: torch.dtype,
) -> tuple[float, dict[str, float]]:
    """Return the mean loss of the validation pairs and the AUC of the validation images by each way to score."""
    images, references = validation.images, validation.references
    embeddings, logits = embed_images(network, feed, images.rows, dtype)
    first, second = torch.from_numpy(validation.pairs.T)
    loss, _ = loss_function(
        torch.from_numpy(embeddings),
        torch.from_numpy(logits),
        torch.from_numpy(images.labels),
        first,
        second,
    )
    reference_embeddings, _ = embed_images(network, feed, references.rows, dtype)
    scores = score_all(embeddings, logits if network.head else None, reference_embeddings, references.labels)
    return float(loss), {name: float(roc_auc_score(images.labels, own)) for name, own in scores.items()}


def save_epoch(config: Config, learner: Learner, log: list[dict[str, Any]], what: str) -> None:
    """Save the state after an epoch: log, checkpoints, learning curves of `what`."""
    contents: dict[str, Any] = {"config": experiment(config), "log": log, "model": learner.kept.state_dict()}
    if checkpoint.best_entry(log) is log[-1]:
        checkpoint.save_checkpoint(config.run_dir / "best.pt", contents)
    checkpoint.save_checkpoint(config.run_dir / "last.pt", {**contents, **learner.state()})
    checkpoint.write_log(config.run_dir / "log.jsonl", log)
    figure = figures.learning_curves(log, checkpoint.best_entry(log)["epoch"], what)
    figures.save_figure(figure, config.graph_dir / "Train_average_loss.png")


def describe_epoch(entry: dict[str, Any], epochs: int) -> str:
    """Return an epoch's log entry as one line."""
    return (
        f"epoch {entry['epoch']:>3}/{epochs}  train loss {entry['train_loss']:.5f}  "
        f"validation loss {entry['val_loss']:.5f}  validation AUC {entry['val_auc']:.3f}  "
        f"{entry['seconds']:.1f} s  {entry['images_per_second']:,.0f} images/s"
    )


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description="Train a Siamese network on lesion pairs.", allow_abbrev=False
    )
    add_flags(parser)
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on with the run in run_dir")
    group.add_argument("--overwrite", action="store_true", help="replace the run in run_dir")
    return parser


def run() -> None:
    arguments = make_parser().parse_args()
    main(from_flags(arguments), resume=arguments.resume, overwrite=arguments.overwrite)


if __name__ == "__main__":
    run_script(run)
