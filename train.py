"""Train a Siamese network on pairs of lesions: `python train.py` (settings: config.py, or flags).

Each epoch draws balanced pairs, embeds both images of a pair with one network, and takes contrastive-loss steps;
then it measures loss and AUC on validation, saves, and plots. A run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import checkpoint
import dataset
import figures
from augment import Views, draw_views, show
from classify import reference_score
from config import Config, InputError, add_flags, experiment, from_flags, run_script
from dataset import Batch, PairDataset, in_batch_batches, independent_batches, sample_balanced, sample_pairs
from device import Ranks, autocast, choose_precision, describe_device, join_ranks, keep_freed_memory
from feed import Feed, embed_images
from images import ImageCache, build_cache, refuse_unreadable
from modules import ContrastiveLoss, SiameseNetwork, build_network

LOG_STEPS = 20  # steps between two readings of the loss, each of which waits for the device
BENIGN_REFERENCES = 2000  # of the training part, in each epoch's validation; predict.py uses all of them


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
    cache = build_cache(lesions.paths, config.image_size, config.cache_dir, config.workers)
    refuse_unreadable(cache.errors, config.skip_unreadable)
    table = dataset.without_images(lesions.table, cache.errors)
    train = Images.of_part(table, "train", cache)
    validation = Validation.of(table, cache, config.seed)
    feed = Feed(cache, device)

    torch.manual_seed(config.seed)
    network = build_network(config.backbone, config.image_size, config.embedding_dim).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=device.type != "mps")
    loss_function = ContrastiveLoss(config.margin)
    log: list[dict[str, Any]] = []
    if resume:
        state = checkpoint.resume_run(config, table)
        checkpoint.load_weights(network, state, config.run_dir / "last.pt")
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
    ranks.wait()  # until all have looked at the run folder: from here on the first one writes to it
    if ranks.first:
        checkpoint.write_start(config, table, describe_device(device, dtype), resume)
    shared = DistributedDataParallel(network) if ranks.count > 1 else network

    for epoch in range(len(log) + 1, config.epochs + 1):
        start = time.perf_counter()
        rng, views_generator = epoch_generators(config.seed, epoch)
        batches = epoch_batches(config, train, cache, rng)
        train_loss = train_epoch(
            shared,
            loss_function,
            optimizer,
            batches,
            feed,
            ranks,
            views_generator if config.augment else None,
            dtype,
            f"epoch {epoch}/{config.epochs}",
        )
        trained = time.perf_counter()
        if ranks.first:
            val_loss, val_auc = validate(network, loss_function, feed, validation, dtype)
            log.append(
                {
                    "epoch": epoch,
                    "train_loss": train_loss,
                    "val_loss": val_loss,
                    "val_auc": val_auc,
                    "seconds": round(time.perf_counter() - start, 3),
                    "images_per_second": round(
                        sum(len(batch.rows) for batch in batches) / (trained - start), 1
                    ),
                }
            )
            save_epoch(config, network, optimizer, log)
            ranks.say(describe_epoch(log[-1], config.epochs))
        ranks.wait()
    if ranks.first:
        best = best_entry(log)
        ranks.say(
            f"best validation AUC {best['val_auc']:.3f} (epoch {best['epoch']}); run folder {config.run_dir}"
        )


@dataclass(frozen=True)
class Images:
    """The images of one part: cache rows and labels, int arrays of shape (N,)."""

    rows: np.ndarray
    labels: np.ndarray

    @staticmethod
    def of_part(table: Any, part: str, cache: ImageCache) -> Images:
        own = table[table["part"] == part]
        return Images(cache.rows(own["image_name"]), own["label"].to_numpy())


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
        order = sample_balanced(train.labels, rng)
        return in_batch_batches(order, train.labels, train.rows, config.batch_size)
    pairs = PairDataset(cache, train.rows, *sample_pairs(train.labels, rng))
    return independent_batches(pairs, config.batch_size)


def train_epoch(
    network: nn.Module,
    loss_function: ContrastiveLoss,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Batch],
    feed: Feed,
    ranks: Ranks,
    views_generator: torch.Generator | None,
    dtype: torch.dtype,
    name: str,
) -> float:
    """Take one step on each batch, in their order; return the mean loss of a pair.

    Every process embeds its share of a batch's images and compares the embeddings of all: views are drawn for the
    whole batch, so the step is the same for any number of processes.

    Parameters
    ----------
    network : embeds first and second images; wrapped in DistributedDataParallel if there are several processes
    views_generator : None shows the images as they are

    Raises
    ------
    InputError : the loss is not finite
    """
    network.train()
    device = feed.device
    shares = [np.arange(len(batch.rows))[ranks.share(len(batch.rows))] for batch in batches]
    places = [
        _at_least_two(share) for share in shares
    ]  # in the batch, of the images that this process embeds
    rows = (batch.rows[place] for batch, place in zip(batches, places, strict=True))
    total, seen = torch.zeros((), device=device), 0
    bar = tqdm(feed.batches(rows), name, len(batches), unit="step", leave=False, disable=ranks.quiet)
    steps = zip(bar, batches, shares, places, strict=True)
    for step, (images, batch, share, place) in enumerate(steps, start=1):
        views = None
        if views_generator is not None:
            views = draw_views(len(batch.rows), views_generator)[torch.from_numpy(place)].to(device)
        own = _embed(network, images, views, dtype)[: len(share)]
        embeddings = ranks.gather(own, len(batch.rows))
        first, second, same = (
            torch.from_numpy(part).to(device) for part in (batch.first, batch.second, batch.same)
        )
        loss = loss_function(embeddings[first], embeddings[second], same)
        optimizer.zero_grad()
        (loss * ranks.count).backward()  # the gradient is averaged over the processes: their sum is wanted
        optimizer.step()
        total += loss.detach() * len(same)
        seen += len(same)
        if step % LOG_STEPS == 0 or step == len(batches):
            mean = float(total) / seen  # waits for the device
            if not math.isfinite(mean):
                rate = optimizer.param_groups[0]["lr"]
                raise InputError(
                    f"the loss is not finite in {name}, step {step}, learning rate {rate}: "
                    "lower --learning-rate; the last epoch's checkpoint is kept"
                )
            bar.set_postfix(loss=f"{mean:.4f}")
    return mean


def _embed(network: nn.Module, images: Tensor, views: Views | None, dtype: torch.dtype) -> Tensor:
    """Return the embeddings (N, D) of uint8 images (N, S, S, 3) seen through their views, N >= 2."""
    shown = show(images, views)
    with autocast(images.device, dtype):
        return torch.cat(network(*shown.split((len(shown) + 1) // 2)))


def _at_least_two(share: np.ndarray) -> np.ndarray:
    """Fill a share up so that both halves have an image; train_epoch drops the embeddings that are too many."""
    return share if len(share) >= 2 else np.resize(share if len(share) else [0], 2)


def validate(
    network: SiameseNetwork,
    loss_function: ContrastiveLoss,
    feed: Feed,
    validation: Validation,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Return the mean contrastive loss of the validation pairs and the AUC of the validation images."""
    images, references = validation.images, validation.references
    embeddings = embed_images(network, feed, images.rows, dtype)
    first, second = torch.from_numpy(embeddings)[validation.pairs.T]
    loss = loss_function(first, second, torch.from_numpy(validation.same))
    reference_embeddings = embed_images(network, feed, references.rows, dtype)
    scores = reference_score(embeddings, reference_embeddings, references.labels)
    return float(loss), float(roc_auc_score(images.labels, scores))


def best_entry(log: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the epoch of the highest validation AUC, the first of equals."""
    return max(log, key=lambda entry: entry["val_auc"])


def save_epoch(
    config: Config, network: SiameseNetwork, optimizer: torch.optim.Optimizer, log: list[dict[str, Any]]
) -> None:
    """Save the state after an epoch: log, checkpoints, loss curve."""
    contents = {"config": experiment(config), "log": log, "model": network.state_dict()}
    if best_entry(log) is log[-1]:
        checkpoint.save_checkpoint(config.run_dir / "best.pt", contents)
    checkpoint.save_checkpoint(config.run_dir / "last.pt", {**contents, "optimizer": optimizer.state_dict()})
    checkpoint.write_log(config.run_dir / "log.jsonl", log)
    epochs, train_loss, val_loss, val_auc = (
        [entry[key] for entry in log] for key in ("epoch", "train_loss", "val_loss", "val_auc")
    )
    figure = figures.loss_curves(epochs, train_loss, val_loss, val_auc, best_entry(log)["epoch"])
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
