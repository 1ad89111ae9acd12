"""Write a small generated data set in ISIC 2020's layout, so that everything runs without the real 23 GB.

    <out>/train/<image_name>.jpg   ISIC_2020_Training_GroundTruth.csv, ISIC_2020_Training_Duplicates.csv
    <out>/test/<image>.jpg         ISIC_2020_Test_Metadata.csv (no labels)

The images follow the ABCD rule of dermoscopy: on average, and with overlap, a melanoma is more asymmetric, has a more
ragged border, more colours and a larger diameter than a benign lesion. Skin, light, lens, hairs and image size do not
depend on the class. Results on these images show that the code works, not how well it does on skin.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from melanoma.common.errors import InputError
from melanoma.common.files import cannot_write, is_file, make_folder

# Pixels are computed as planes, shape (H, W) or (3, H, W): NumPy is slow where the last axis has length 3.
Array = NDArray[np.floating[Any]]

MIN_IMAGES = 60  # 6 melanomas: with fewer, a split leaves a part without any
TEST_IMAGES = 40
SIZES = ((640, 480), (480, 320), (400, 300), (320, 240))  # width, height in pixels

# Second word of a generator's seed; pictures have a third. NumPy pads seeds with zeros, so each use has its own.
TABLE, TRAIN, TEST = 1, 2, 3

FAIR, DARK = np.array([236, 192, 174], np.float32), np.array([176, 124, 98], np.float32)  # skin, RGB
# How strongly one unit of pigment absorbs red, green and blue light, shape (3, 1, 1).
BROWN = np.array([0.55, 1.0, 1.25], np.float32)[:, None, None]  # melanin near the surface
BLUE = np.array([1.35, 1.05, 0.9], np.float32)[:, None, None]  # melanin deep in the skin looks blue-grey
RED = np.array([0.15, 0.95, 0.75], np.float32)[:, None, None]  # blood

SITES = ("torso", "lower extremity", "upper extremity", "head/neck", "palms/soles", "oral/genital")
SITE_SHARE = (0.52, 0.26, 0.15, 0.05, 0.01, 0.01)
METADATA = ["image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "diagnosis"]
# Comment in each image file, which tells them from photographs.
COMMENT = b"generated image, not a photograph (melanoma siamese network demo)"
TEST_HEADER = ["image", "patient", "age_approx", "anatom_site_general", "sex"]


def patches(rng: np.random.Generator, width: int, height: int, cells: int) -> Array:
    """Smooth random field, shape (H, W), mean 0, deviation about 1, `cells` knots along the short side."""
    short = min(width, height)
    knots = rng.standard_normal((cells * height // short + 1, cells * width // short + 1), np.float32)
    field = np.asarray(Image.fromarray(knots).resize((width, height), Image.Resampling.BICUBIC))
    return (field / 0.7).astype(np.float32)  # interpolation takes about 30 % of the deviation


def step(x: Array) -> Array:
    """Smooth step from 0 to 1 about 0, of the shape of x."""
    return (1 + np.tanh(x / 2)) / 2


def depth_inside(rng: np.random.Generator, asymmetry: float, border: float, x: Array, y: Array) -> Array:
    """How far inside the border each pixel lies, shape (H, W), < 0 outside; unit: the lesion's mean radius.

    x, shape (W,), and y, shape (H, 1), are the distances to the right of and below its middle, in that unit.
    """
    turn, stretch = rng.uniform(0, np.pi), rng.uniform(1, 1.25)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = cos * x + sin * y, cos * y - sin * x
    away = np.hypot(u * stretch, v / stretch)
    angle = np.arctan2(v, u)
    for lobes in (2, 3, 5):
        size = (0.02 + 0.25 * asymmetry) * rng.normal() / lobes**0.5
        away += size * np.cos(lobes * angle + rng.uniform(0, 2 * np.pi))
    height, width = away.shape
    ragged = patches(rng, width, height, 12) + 0.7 * patches(rng, width, height, 24)
    return 1 - away + (0.02 + 0.14 * border) * ragged


def pigment(rng: np.random.Generator, melanoma: bool, width: int, height: int) -> Array:
    """Absorption of one lesion, shape (3, H, W), 0 on bare skin: exp(-absorption) of the light comes back."""
    # each in (0, 1); the classes overlap in each
    asymmetry, border, colours, diameter = (rng.beta(5, 2, 4) if melanoma else rng.beta(2, 5, 4)).tolist()
    radius = (0.17 + 0.12 * diameter + rng.uniform(0, 0.12)) * min(width, height)
    left, top = (rng.normal(0.5, 0.05, 2) * (width, height)).astype(np.float32)
    x = (np.arange(width, dtype=np.float32) - left) / radius
    y = (np.arange(height, dtype=np.float32)[:, None] - top) / radius
    inside = depth_inside(rng, asymmetry, border, x, y)
    cover = step(inside / rng.uniform(0.04, 0.12))

    # The darkest part sits in the middle of a benign lesion and to one side of an asymmetric one.
    side, tilt = rng.uniform(0, 2 * np.pi), asymmetry * rng.uniform(0.2, 0.7)
    density = 1 + np.float32(tilt * np.cos(side)) * x + np.float32(tilt * np.sin(side)) * y
    density += rng.uniform(-0.3, 0.5) * np.clip(inside, -1, 1)
    density += (0.05 + 0.5 * colours) * patches(rng, width, height, 7)
    density += 0.15 * patches(rng, width, height, 40)  # globules and network
    shades = BROWN
    for hue in (BLUE, RED):
        share = 0.8 * colours * step(4 * patches(rng, width, height, 6) - 2)
        shades = shades + share * (hue - shades)
    absorbed = cover * np.maximum(density, 0.1) * shades

    # A lesion of many colours takes as much light as one of its size in plain brown would: without this the
    # mean colour of the picture would tell the class.
    strength = rng.uniform(0.35, 1.0)
    return absorbed * np.float32(strength * cover.sum() * BROWN.sum() / absorbed.sum())


def hairs(rng: np.random.Generator, width: int, height: int) -> Array:
    """Cover of dark hairs, shape (H, W), in [0, 1]; two pictures in three have none."""
    picture = Image.new("L", (width, height))
    if rng.random() > 0.35:
        return np.asarray(picture, np.float32)
    draw, t = ImageDraw.Draw(picture), np.linspace(0, 1, 24)[:, None]
    for _ in range(rng.integers(3, 18)):
        start, bend, end = rng.uniform(-0.2, 1.2, (3, 2)) * (width, height)
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * (start + bend + end) / 3 + t**2 * end
        draw.line([tuple(point) for point in curve], fill=220, width=1 + height // 300)
    cover: Array = np.asarray(picture.filter(ImageFilter.GaussianBlur(height / 600)), np.float32)
    return cover / 255


def light(rng: np.random.Generator, width: int, height: int) -> Array:
    """Gain of lamp, white balance and lens, shape (3, H, W), about 1; some pictures have dark corners."""
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    across, down = rng.normal(0, 0.05, 2).astype(np.float32)
    from_centre = np.hypot(x * (width / height), y)  # 1 at the long sides
    gain = 1 + across * x + down * y - rng.uniform(0, 0.08) * from_centre**2
    if rng.random() < 0.3:
        gain *= 0.06 + 0.94 * step((rng.uniform(1.1, 1.5) - from_centre) * 30)
    balance = rng.normal(1, 0.07) * rng.normal(1, 0.03, (3, 1, 1))
    return gain * balance.astype(np.float32)


def lesion_image(
    rng: np.random.Generator, melanoma: bool, width: int, height: int, tone: Sequence[float]
) -> NDArray[np.uint8]:
    """One synthetic dermoscopic picture, uint8 of shape (height, width, 3), RGB.

    tone : 3 numbers, RGB of the bare skin in [0, 255]
    """
    absorbed = pigment(rng, melanoma, width, height)
    for size, cells in ((0.03, 8), (0.02, 60)):  # mottled skin
        absorbed += size * patches(rng, width, height, cells) * RED
    seen = np.exp(-absorbed) * light(rng, width, height)
    seen *= 1 - 0.8 * hairs(rng, width, height)
    seen *= np.asarray(tone, np.float32)[:, None, None]
    seen += 2.5 * rng.standard_normal((height, width), np.float32)  # grain
    return np.ascontiguousarray(np.clip(seen, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def jpeg(photo: Any) -> bytes:
    """The file of one picture, a row of `draw_photos`, drawn from its own generator."""
    rng = np.random.default_rng(photo.stream)
    width, height = SIZES[rng.integers(len(SIZES))]
    file = io.BytesIO()
    picture = lesion_image(rng, photo.diagnosis == "melanoma", width, height, photo.tone)
    Image.fromarray(picture).save(file, "JPEG", quality=88, comment=COMMENT)
    return file.getvalue()


def draw_photos(
    rng: np.random.Generator, numbers: NDArray[np.int64], n_melanoma: int, stream: tuple[int, int]
) -> pd.DataFrame:
    """Draw the metadata of pictures: 2 to 10 pictures a patient, `n_melanoma` melanomas, some blank cells.

    Parameters
    ----------
    numbers : int array of shape (2, N): numbers for the names of the N pictures and of up to N patients
    stream : seed and set; with i they seed the generator of picture i

    Returns
    -------
    columns METADATA (str), tone (RGB of the bare skin of its patient, in [0, 255]), stream (seed of its generator)
    """
    n = numbers.shape[1]
    owner = np.repeat(np.arange(n), rng.integers(2, 10, n))[:n]
    owner[-1] = owner[-2]  # nobody has a single picture
    sex = rng.choice(["female", "male"], n)[owner]
    age = np.clip(5 * np.round(rng.normal(10, 2.6, n)), 15, 90).astype(int).astype(str)[owner]
    sex[owner == 0] = age[owner == 0] = ""
    tone = (FAIR + rng.uniform(size=(n, 1)) ** 2 * (DARK - FAIR) + rng.normal(0, 4, (n, 3)))[owner]
    site = rng.choice(SITES, n, p=SITE_SHARE)
    site[rng.choice(n, 1 + n // 60, replace=False)] = ""
    diagnosis = rng.choice(["unknown", "nevus", "melanoma"], n, p=[0.84, 0.16, 0])
    diagnosis[rng.choice(n, n_melanoma, replace=False)] = "melanoma"
    names = [f"ISIC_{number:07d}" for number in numbers[0]]
    patients = [f"IP_{number:07d}" for number in numbers[1, owner]]
    columns = (names, patients, sex, age, site, diagnosis)
    table = pd.DataFrame(dict(zip(METADATA, columns, strict=True)))
    return table.assign(tone=list(tone), stream=[(*stream, i) for i in range(n)])


def is_generated(folder: Path) -> bool:
    """Return whether the first JPEG in a folder, at any depth, is a generated one; False where there is none."""
    with contextlib.suppress(OSError):
        first = next(filter(is_file, folder.rglob("*.jpg")), None)
        if first:
            with first.open("rb") as file:
                return COMMENT in file.read(1024)
    return False


def csv_bytes(table: pd.DataFrame) -> bytes:
    """A CSV file as ISIC writes it."""
    return table.to_csv(index=False, lineterminator="\n").encode()


def write_file(path: Path, content: bytes) -> None:
    """Write a file unless it has this content already, so that caches of it stay valid."""
    try:
        if not (path.is_file() and path.read_bytes() == content):
            path.write_bytes(content)
    except OSError as error:
        raise cannot_write(path, error) from error


def write_demo(out: Path, n_images: int, seed: int) -> None:
    """Write the data set into folder `out`; n_images is of the training set, melanomas are a tenth of it.

    The same arguments give the same bytes. A folder that holds the same data set is completed or repaired; nothing is
    deleted.

    Raises
    ------
    InputError : n_images is out of range, `out` is a file or holds anything else, or it cannot be written
    """
    if n_images < MIN_IMAGES:
        raise InputError(f"--images is {n_images}: it must be {MIN_IMAGES} or more")
    rng = np.random.default_rng([seed, TABLE])
    numbers = rng.choice(10**7, (2, n_images + TEST_IMAGES), replace=False)
    train = draw_photos(rng, numbers[:, 1:n_images], round(n_images / 10), (seed, TRAIN))
    test = draw_photos(rng, numbers[:, n_images:], TEST_IMAGES // 10, (seed, TEST))

    # As in ISIC 2020, one picture appears twice, under two names.
    original = train[train["diagnosis"] != "melanoma"].head(1)
    duplicate = original.assign(image_name=f"ISIC_{numbers[0, 0]:07d}")
    train = pd.concat([train, duplicate]).iloc[rng.permutation(n_images)]
    melanoma = train["diagnosis"] == "melanoma"
    train = train.assign(benign_malignant=np.where(melanoma, "malignant", "benign"), target=melanoma.astype(int))
    pair = pd.DataFrame({"image_name_1": original["image_name"], "image_name_2": duplicate["image_name"]})
    metadata = test[["image_name", "patient_id", "age_approx", "anatom_site_general_challenge", "sex"]]

    # The ground truth is written first: a later run recognises the folder by it.
    truth_path = out / "ISIC_2020_Training_GroundTruth.csv"
    truth = csv_bytes(train[[*METADATA, "benign_malignant", "target"]])
    known = truth_path.is_file() and truth_path.read_bytes() == truth
    if out.exists() and not known and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder and not this data set: choose another")
    for folder in ("train", "test"):
        make_folder(out / folder)
    write_file(truth_path, truth)
    write_file(out / "ISIC_2020_Training_Duplicates.csv", csv_bytes(pair))
    write_file(out / "ISIC_2020_Test_Metadata.csv", csv_bytes(metadata.set_axis(TEST_HEADER, axis=1)))

    # Threads: NumPy and Pillow release Python's lock while they compute.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for folder, table in (("train", train), ("test", test)):
            photos = list(table.itertuples())
            for photo, content in zip(photos, pool.map(jpeg, photos), strict=True):
                write_file(out / folder / f"{photo.image_name}.jpg", content)
    print(
        f"{out}: {n_images} training images ({melanoma.sum()} melanomas, {train['patient_id'].nunique()} patients) "
        f"and {TEST_IMAGES} test images without labels"
    )
