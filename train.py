"""Train a Siamese network on pairs of lesions: `python train.py` (settings: config.py, or flags).

Each epoch draws balanced pairs, embeds both images of a pair with one network, and takes contrastive-loss steps;
then it measures loss and AUC on validation, saves, and plots. A run that was stopped goes on with `--resume`.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoint
import dataset
import figures
from augment import apply_views, draw_views, to_float
from classify import reference_score
from config import Config, InputError, add_flags, experiment, from_flags, run_script
from dataset import PairDataset, sample_pairs
from device import autocast, choose_device, choose_precision, describe_device, embed_images, keep_freed_memory
from images import ImageCache, build_cache, refuse_unreadable
from modules import ContrastiveLoss, SiameseNetwork, build_network, contrastive_loss, pair_distance

LOG_STEPS = 20  # steps between two readings of the loss, each of which waits for the device
BENIGN_REFERENCES = 2000  # of the training part, in each epoch's validation; predict.py uses all of them


def main(config: Config, resume: bool = False, overwrite: bool = False) -> None:
    """Train one run; everything it leaves is in `config.run_dir` and `config.graph_dir`."""
    keep_freed_memory()
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    print(f"training on {describe_device(device, dtype)}")
    checkpoint.check_run_dir(config, resume, overwrite)

    lesions = dataset.load_lesions(config)
    print(dataset.describe(dataset.summarise(lesions, config)))
    cache = build_cache(lesions.paths, config.image_size, config.cache_dir, config.workers)
    refuse_unreadable(cache.errors, config.skip_unreadable)
    table = dataset.without_images(lesions.table, cache.errors)
    train = Images.of_part(table, "train", cache)
    validation = Validation.of(table, cache, config.seed)

    torch.manual_seed(config.seed)
    network = build_network(config.backbone, config.image_size, config.embedding_dim)
    network = network.to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, fused=device.type != "mps")
    loss_function = ContrastiveLoss(config.margin)
    log: list[dict[str, Any]] = []
    if resume:
        state = checkpoint.resume_run(config, table)
        checkpoint.load_weights(network, state, config.run_dir / "last.pt")
        optimizer.load_state_dict(state["optimizer"])
        log = state["log"]
    else:
        checkpoint.start_run(config, table, describe_device(device, dtype))

    for epoch in range(len(log) + 1, config.epochs + 1):
        start = time.perf_counter()
        rng, views_generator = epoch_generators(config.seed, epoch)
        pairs = PairDataset(cache, train.rows, *sample_pairs(train.labels, rng))
        train_loss = train_epoch(
            network,
            loss_function,
            optimizer,
            load_batches(pairs, config.batch_size, device),
            views_generator if config.augment else None,
            dtype,
            f"epoch {epoch}/{config.epochs}",
        )
        trained = time.perf_counter()
        val_loss, val_auc = validate(network, cache, validation, config.margin, device, dtype)
        log.append(
            {
                "epoch": epoch,
                "train_loss": train_loss,
                "val_loss": val_loss,
                "val_auc": val_auc,
                "seconds": round(time.perf_counter() - start, 3),
                "images_per_second": round(2 * len(pairs) / (trained - start), 1),
            }
        )
        save_epoch(config, network, optimizer, log)
        print(describe_epoch(log[-1], config.epochs))
    best = best_entry(log)
    print(f"best validation AUC {best['val_auc']:.3f} (epoch {best['epoch']}); run folder {config.run_dir}")


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


def load_batches(
    pairs: PairDataset, batch_size: int, device: torch.device
) -> DataLoader[tuple[Tensor, Tensor, Tensor]]:
    """Return the loader of (first, second, same): uint8 (B, S, S, 3) twice and bool (B,), in the pairs' order."""
    return DataLoader(
        pairs,  # type: ignore[arg-type]
        batch_size,
        collate_fn=lambda batch: tuple(torch.from_numpy(array) for array in batch),
        pin_memory=device.type == "cuda",
    )


def train_epoch(
    network: SiameseNetwork,
    loss_function: ContrastiveLoss,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    views_generator: torch.Generator | None,
    dtype: torch.dtype,
    name: str,
) -> float:
    """Take one step on each batch of pairs; return the mean loss of a pair.

    views_generator : None shows the images as they are

    Raises
    ------
    InputError : the loss is not finite
    """
    network.train()
    device = next(network.parameters()).device
    total = torch.zeros((), device=device)
    seen = 0
    bar = tqdm(batches, desc=name, unit="step", leave=False, disable=None)
    for step, batch in enumerate(bar, start=1):
        first, second, same = (part.to(device, non_blocking=True) for part in batch)
        first, second = to_float(first), to_float(second)
        if views_generator is not None:
            views = draw_views(2 * len(same), views_generator).to(device)
            first = apply_views(first, views[: len(same)])
            second = apply_views(second, views[len(same) :])
        with autocast(device, dtype):
            embeddings = network(first, second)
        loss = loss_function(*embeddings, same)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(same)
        seen += len(same)
        if step % LOG_STEPS == 0 or step == len(bar):
            mean = float(total) / seen  # waits for the device
            if not math.isfinite(mean):
                rate = optimizer.param_groups[0]["lr"]
                raise InputError(
                    f"the loss is not finite in {name}, step {step}, learning rate {rate}: "
                    "lower --learning-rate; the last epoch's checkpoint is kept"
                )
            bar.set_postfix(loss=f"{mean:.4f}")
    return mean


def validate(
    network: SiameseNetwork,
    cache: ImageCache,
    validation: Validation,
    margin: float,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[float, float]:
    """Return the mean contrastive loss of the validation pairs and the AUC of the validation images."""
    images, references = validation.images, validation.references
    embeddings = embed_images(network, cache, images.rows, device, dtype)
    first, second = torch.from_numpy(embeddings)[validation.pairs.T]
    loss = contrastive_loss(pair_distance(first, second), torch.from_numpy(validation.same), margin)
    reference_embeddings = embed_images(network, cache, references.rows, device, dtype)
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
