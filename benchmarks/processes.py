"""Processes: train.py alone and under torchrun with two processes, one thread each on the CPU, one GPU each on CUDA.

    python benchmarks/processes.py [--images 900] [--epochs 3]

On generated lesions. Losses are printed beside the times: they agree but for the order of additions.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from melanoma.data.synthetic import write_demo

ROOT = Path(__file__).parent.parent


def run(folder: Path, processes: int, epochs: int) -> dict[str, float]:
    """Train in so many processes; return the log of the last epoch."""
    run_dir = folder / f"run{processes}"
    flags = {
        "train-image": folder / "demo/train",
        "train-labels": folder / "demo/ISIC_2020_Training_GroundTruth.csv",
        "cache-dir": folder / "cache",
        "run-dir": run_dir,
        "graph-dir": run_dir,
        "epochs": epochs,
        "recipe": "baseline",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += [str(ROOT / "train.py"), *(f"--{name}={value}" for name, value in flags.items())]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads((run_dir / "log.jsonl").read_text().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--epochs", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        write_demo(Path(scratch) / "demo", arguments.images, seed=0)
        logs = {processes: run(Path(scratch), processes, arguments.epochs) for processes in (1, 2)}
    print("processes  images/s  ratio  train loss  validation AUC")
    for processes, log in logs.items():
        ratio = log["images_per_second"] / logs[1]["images_per_second"]
        print(
            f"{processes:>9} {log['images_per_second']:>9,.0f} {ratio:>6.2f} {log['train_loss']:>11.6f} "
            f"{log['val_auc']:>15.4f}"
        )


if __name__ == "__main__":
    main()
