"""A photo judged, and a test part evaluated, with the model file of a run and without it.

    python benchmarks/model_file.py RUN_DIR PHOTO [--FLAG VALUE ...]

Without model.pt predict.py embeds the training and validation part anew, as every prediction did before there was such
a file. Both take turns in processes of their own; the smaller of two times counts. Flags are those of predict.py, such
as --train-image; the cache is filled before the first time is taken.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def seconds(*arguments: str) -> float:
    """Return how long a command of Python takes in the repository."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("photo", type=lambda text: str(Path(text).absolute()))
    arguments, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        graph = ["--graph-dir", f"{folder}/graph"]
        runs = {name: Path(folder) / name for name in ("with model.pt", "without")}
        for run_dir in runs.values():
            shutil.copytree(arguments.run_dir, run_dir)
            (run_dir / "model.pt").unlink(missing_ok=True)
        with_file = str(runs["with model.pt"])
        seconds("predict.py", "--run-dir", with_file, "--export", f"{with_file}/model.pt", *graph, *flags)
        print(f"{'imports':<24} {min(seconds('-c', 'import predict') for _ in range(2)):6.1f} s")
        for task, photos in (("a photo and its card", [arguments.photo]), ("the test part", [])):
            command = ["predict.py", *photos, *graph, *flags, "--run-dir"]
            times = [[seconds(*command, str(run_dir)) for run_dir in runs.values()] for _ in range(2)]
            fast, slow = map(min, zip(*times, strict=True))
            print(f"{task:<24} {fast:6.1f} s with model.pt, {slow:6.1f} s without: {slow / fast:.1f} ×", flush=True)


if __name__ == "__main__":
    main()
