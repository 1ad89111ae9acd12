"""Does the heat map point at the lesion? `python benchmarks/heat_map.py --run-dir runs/demo [--FLAG VALUE ...]`.

On generated melanomas, whose outline is known: the share of the heat above 0 that lies inside, and the seconds a map
takes. A map that is the same everywhere has the share of the lesion's area.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image

import predict
from config import RECIPES, Config
from melanoma.common.script import run_script
from melanoma.common.settings import Parser, add_flags, from_flags
from melanoma.data.synthetic import FAIR, lesion_image, pigment
from melanoma.scoring.ensemble import make_ensemble
from melanoma.scoring.model import Model

SEEDS = range(1000, 1080)  # bare skin and smoothing were chosen on others
SIZE = (400, 300)  # width, height of the photographs
PIGMENTED = 0.1  # of the darkest place's absorption: from there on a place is part of the lesion


def draw_melanoma(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a generated melanoma as a network sees it, uint8 (side, side, 3), and its mask, bool (side, side)."""
    image = lesion_image(np.random.default_rng(seed), True, *SIZE, FAIR.tolist())
    absorption = pigment(np.random.default_rng(seed), True, *SIZE).mean(axis=0)  # is drawn before all else
    mask = Image.fromarray(absorption > PIGMENTED * absorption.max()).convert("L")
    pixels = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(pixels), np.asarray(mask.resize((side, side))) > 127


def main() -> None:
    parser = Parser("Measure the heat map.", "python benchmarks/heat_map.py [--FLAG VALUE ...]")
    add_flags(parser, Config, RECIPES)
    run = predict.load_run(from_flags(Config, RECIPES, parser.parse_args()))
    model = Model([make_ensemble([run])])
    inside, area, seconds = [], [], []
    for seed in SEEDS:
        pixels, mask = draw_melanoma(seed, run.image_size)
        start = time.perf_counter()
        heat = model.heat_map(pixels)
        seconds.append(time.perf_counter() - start)
        positive = heat.clip(0)
        inside.append(positive[mask].sum() / positive.sum() if positive.any() else np.nan)
        area.append(mask.mean())
    low, high = np.nanquantile(inside, (0.1, 0.9))
    print(f"{len(SEEDS)} generated melanomas, {run.image_size} px, {run.test_views} views")
    print(
        f"  share of the positive heat inside the lesion {np.nanmean(inside):.3f} (10 to 90 %: {low:.3f} to {high:.3f})"
    )
    print(f"  share of the image's area                    {np.mean(area):.3f}")
    print(f"  seconds a map                                {np.median(seconds):.2f}")


if __name__ == "__main__":
    run_script(main)
