"""Shared fixtures: a tiny data set in ISIC 2020's layout, and runs trained on it."""

import dataclasses
import io
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# one thread, in the processes that tests start too: the networks are small
os.environ["OMP_NUM_THREADS"] = "1"

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from faulty_server import FaultyServer
from matplotlib.lines import Line2D
from PIL import Image
from tally import COUNTS, summary, tally

import dataset
import predict
import train
from config import Config
from melanoma.common.errors import InputError
from melanoma.common.script import run_script
from melanoma.data import download
from melanoma.data.cache import ImageCache
from melanoma.data.feed import Feed
from melanoma.report.graph_folder import save_figure
from melanoma.scoring.ensemble import Run
from modules import SiameseNetwork, network_of

HEADER = "image_name,patient_id,sex,age_approx,anatom_site_general_challenge,diagnosis,benign_malignant,target"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


torch.set_num_threads(1)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand a worker's counts of generated cases to the main process."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["cases"] = {kind: dict(own) for kind, own in COUNTS.items()}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node) -> None:
    """Add a worker's counts of generated cases to those of the others."""
    for kind, own in getattr(node, "workeroutput", {}).get("cases", {}).items():
        for outcome, number in own.items():
            tally(kind, outcome, number)


def pytest_terminal_summary(terminalreporter):  # no type: pytest 8.2 did not export it
    """Print how many generated cases were run, and how they ended."""
    if COUNTS:
        terminalreporter.section("generated cases")
        for line in summary(COUNTS):
            terminalreporter.write_line(line)


def build_network(
    backbone: str, image_size: int, embedding_dim: int, weights: str = "none", head: bool = False, **settings: Any
) -> SiameseNetwork:
    """The network of the outline's settings, but for these."""
    settings |= {"backbone": backbone, "image_size": image_size, "embedding_dim": embedding_dim}
    return network_of(Config(recipe="baseline", head="bce" if head else "none", **settings), weights)


@pytest.fixture(scope="session")
def lesion_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/*.jpg and train.csv: 30 patients of 2 images, 12 of them with one (dark) melanoma.

    All tests share it: a test that changes files works in a copy.
    """
    folder = tmp_path_factory.mktemp("lesions")
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    rows = [HEADER]
    for i in range(60):
        melanoma = i < 12
        name = f"ISIC_{i:07d}"
        pixels = rng.integers(0, 90, (30, 40, 3)) + (20 if melanoma else 140)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "train" / f"{name}.jpg")
        verdict = "melanoma,malignant,1" if melanoma else "nevus,benign,0"
        rows.append(f"{name},IP_{i % 30:07d},female,45,torso,{verdict}")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")
    return folder


def cache_of(pixels: np.ndarray) -> ImageCache:
    """Return a cache that holds these pixels, uint8 (N, S, S, 3), as image0, image1, ..."""
    return ImageCache(pixels, {f"image{row}": row for row in range(len(pixels))}, {})


@pytest.fixture
def cache() -> ImageCache:
    """12 images of noise of 32 px."""
    return cache_of(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))


def feed_of(config: Config, run: Run) -> Feed:
    """Return the images of a run's split parts."""
    assert run.lesions is not None
    paths = predict.find_lesions(config, run.sources, set(run.lesions["image_name"]))
    return Feed(predict.decode(config, paths, run.image_size), run.device)


def save(figure, path) -> Image.Image:
    """Return the picture of a figure, which leaves nothing behind."""
    settings = dict(matplotlib.rcParams)
    save_figure(figure, path, "mark")
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == settings
    with Image.open(path) as image:
        image.load()
    return image


def titles_of(figure) -> list[str]:
    """Return the texts of a figure outside its axes: its name and its subtitle, or all those of a card."""
    return [text.get_text() for text in figure.texts]


def points_of(drawn) -> np.ndarray:
    """Return the points of a line or of a scatter plot, (N, 2)."""
    return np.asarray(drawn.get_xydata() if isinstance(drawn, Line2D) else drawn.get_offsets())


def quick_config(folder: Path, **changes: Any) -> Config:
    """Return settings that train on such a folder within a second, bit for bit the same each time."""
    settings: dict[str, Any] = {
        "train_image": (folder / "train",),
        "train_labels": (folder / "train.csv",),
        "cache_dir": folder / "cache",
        "run_dir": folder / "run",
        "graph_dir": folder / "graph",
        "recipe": "baseline",
        "device": "cpu",
        "precision": "float32",
        "image_size": 32,
        "batch_size": 16,
        "learning_rate": 1e-3,
        "epochs": 1,
    }
    return Config(**(settings | changes))


def another_folder(images: Path, labels: Path, to: Path) -> tuple[Path, Path]:
    """Copy labelled images, a shade brighter, under names that no run knows, which begin with `new_`."""
    table = pd.read_csv(labels, dtype=str, keep_default_na=False)
    (to / "train").mkdir(parents=True)
    for name in table["image_name"]:
        with Image.open(images / f"{name}.jpg") as image:
            image.point(lambda value: min(value + 2, 255)).save(to / "train" / f"new_{name}.jpg", quality=95)
    table.assign(image_name="new_" + table["image_name"]).to_csv(to / "train.csv", index=False)
    return to / "train", to / "train.csv"


def everything(quick: Config) -> Config:
    """Return settings that use what has a state: dropout, moving average and schedule, views, mining."""
    return dataclasses.replace(
        quick,
        pairs="batch",
        batch_size=12,
        epochs=3,
        ema=0.9,
        schedule="cosine",
        head="bce",
        normalize=True,
        dropout=0.3,
        hardest=0.5,
        weight_decay=0.01,
        views="wider",
    )


@pytest.fixture
def quick(lesion_folder: Path, tmp_path: Path) -> Config:
    """Settings of a one-epoch training; data and run are the test's own."""
    return quick_config(Path(shutil.copytree(lesion_folder, tmp_path / "lesions")))


@pytest.fixture(scope="session")
def trained(lesion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that tells dark from bright, shared by all tests: read it, do not change it."""
    folder = Path(shutil.copytree(lesion_folder, tmp_path_factory.mktemp("trained") / "lesions"))
    config = quick_config(folder, epochs=6)
    train.main(config)
    return config


@pytest.fixture(scope="session")
def straight(lesion_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run with the settings that use everything, trained without a fault; shared by all tests: read it only."""
    folder = tmp_path_factory.mktemp("straight")
    folders = {name: folder / name for name in ("cache_dir", "run_dir", "graph_dir")}
    config = everything(quick_config(lesion_folder, **folders, workers=1))
    train.main(config)
    return config


@pytest.fixture
def lean_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """predict.py without figures and controls, for tests of scores; test_predict.py has one of the whole."""
    monkeypatch.setattr("predict.draw_all", lambda *_: ({}, {}))
    monkeypatch.setattr("predict.learning_curves", lambda *_: None)
    monkeypatch.setattr("predict.measure_controls", lambda *_: [])


@dataclass(frozen=True)
class DataSite:
    """ISIC 2020 in small, as the challenge serves it.

    files : (path on the server, body, entries) by the name in DOWNLOADS
    train, test : bytes of each image by file name
    """

    files: dict[str, tuple[str, bytes, int]]
    train: dict[str, bytes]
    test: dict[str, bytes]


def data_site(n_train: int = 40, n_test: int = 6, side: int = 48) -> DataSite:
    """Return a data set of noise: an image is some 5 kB, as incompressible as the real ones."""
    rng = np.random.default_rng(0)

    def image() -> bytes:
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3)).astype(np.uint8)).save(file, "JPEG", quality=95)
        return file.getvalue()

    train = {f"ISIC_{i:07d}.jpg": image() for i in range(n_train)}
    test = {f"ISIC_9{i:06d}.jpg": image() for i in range(n_test)}
    stems = [Path(name).stem for name in train]
    labels = [HEADER] + [f"{name},IP_{i},male,45,torso,nevus,benign,0" for i, name in enumerate(stems)]
    tested = ["image,patient,age_approx,anatom_site_general,sex"]
    tested += [f"{Path(name).stem},IP_1,45,torso,male" for name in test]
    pairs = ["image_name_1,image_name_2", f"{stems[0]},{stems[1]}", f"{stems[2]},{stems[3]}"]
    folder = "/2020/ISIC_2020_"
    files = {
        "train_labels": (folder + "Training_GroundTruth.csv", "\n".join(labels).encode(), n_train),
        "duplicates": (folder + "Training_Duplicates.csv", ("\r\n".join(pairs) + "\r\n").encode(), 2),
        "train_image": (folder + "Training_JPEG.zip", zip_of(train, "train/"), n_train),
        "test_labels": (folder + "Test_Metadata.csv", ("\n".join(tested) + "\n").encode(), n_test),
        "test_image": (folder + "Test_JPEG.zip", zip_of(test, "ISIC_2020_Test_Input/"), n_test),
    }
    return DataSite(files, train, test)


def zip_of(files: dict[str, bytes], folder: str = "") -> bytes:
    """Return a zip with a folder and files in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as zipped:
        if folder:
            zipped.writestr(folder, b"")
        for name, data in files.items():
            zipped.writestr(folder + name, data)
    return out.getvalue()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    """A web server that can be told to misbehave; transfers from it are in small chunks and do not wait."""
    monkeypatch.setattr(download, "CHUNK", 512)
    monkeypatch.setattr(download, "sleep", lambda _: None)
    monkeypatch.setenv("NO_PROXY", "*")
    server = FaultyServer()
    yield server
    server.close()


@pytest.fixture
def tiny_disk(tmp_path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(folder)]
    if not hasattr(os, "geteuid") or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def refusal(function: Callable, *arguments: Any, **settings: Any) -> str:
    """Return the message of an InputError, which must be one line."""
    with pytest.raises(InputError) as caught:
        function(*arguments, **settings)
    message = str(caught.value)
    assert "\n" not in message
    return message


def exit_code(monkeypatch: pytest.MonkeyPatch, main: Callable[[], None], script: str, *arguments: object) -> object:
    """Run a script's `main` with these arguments and return how it exits."""
    monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_script(main)
    return stopped.value.code


def run_dataset(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    return exit_code(monkeypatch, dataset.main, "dataset.py", *arguments)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
