"""Work for processes that are killed; it stands apart from the tests so that a process need not import them."""

from pathlib import Path

import torch

from melanoma.training.run_folder import save_checkpoint


def write_checkpoints(path: Path) -> None:
    """Write checkpoint after checkpoint over each other; each is full of its own number."""
    for number in range(10**6):
        save_checkpoint(path, {"config": {}, "number": number, "weights": torch.full((2**20,), float(number))})
