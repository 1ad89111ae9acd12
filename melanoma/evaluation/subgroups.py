"""Metrics by source, sex, age, site, image size and estimated skin tone; small groups are listed with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from melanoma.data.cache import ImageCache
from melanoma.evaluation.bootstrap import DRAWS, brief_metrics

UNKNOWN = "unknown"
LEAST = 5  # melanomas, and benign lesions, that a group needs for its metrics
# Lower bound of each band.
AGE_BANDS = {"under 30": 0.0, "30 to 44": 30.0, "45 to 59": 45.0, "60 to 74": 60.0, "75 and older": 75.0}
SIZE_BANDS = {"under 1 megapixel": 0.0, "1 to 4": 1.0, "4 to 16": 4.0, "16 megapixels and more": 16.0}
# Chardon et al. 1991, named as in Kinyanjui et al. 2020; degrees of the individual typology angle.
SKIN_TONES = {"dark": -180.0, "brown": -30.0, "tan": 10.0, "intermediate": 28.0, "light": 41.0, "very light": 55.0}

BORDER = 16  # the border that counts as skin is 1/16 of the side wide
BLACK = 12.0  # lightness below which a pixel is the dark rim of the lens; the darkest skin has about 18
HAIR = 15.0  # a pixel darker than the border's median by more than this is hair or lesion
LEAST_SKIN = 0.1  # share of the border's pixels that must remain
BLOCK = 256  # images at a time


def subgroup_table(table: pd.DataFrame, rng: np.random.Generator, draws: int = DRAWS) -> list[dict[str, Any]]:
    """Return the metrics of each group of judged lesions, as JSON values.

    Parameters
    ----------
    table : columns label, probability, threshold and group, and any of source, sex, age, site (as
        `labels.read_labels`), megapixels (of the source file) and typology_angle (as `typology_angles`); blanks and NaN
        are unknown, a single source is no attribute
    rng, draws : see `bootstrap.intervals`

    Returns
    -------
    rows {attribute, group} and `bootstrap.brief_metrics`. If a class has fewer than 5 images, auc, auc_interval,
    sensitivity and specificity are None, and note is the reason
    """
    rows = []
    for attribute, groups in memberships(table).items():
        for group in groups.categories:
            metrics = _metrics(table[groups == group], rng, draws)
            rows.append({"attribute": attribute, "group": group, **metrics})
    return rows


def memberships(table: pd.DataFrame) -> dict[str, pd.Categorical]:
    """Return the group of each lesion, by attribute; the categories are all groups in their order.

    Bands are in their order, other groups from the largest down. Empty bands are categories too, `unknown` only if it
    has lesions.
    """
    found = {}
    for attribute in ("source", "sex", "site"):
        if attribute in table and (attribute != "source" or table["source"].nunique() > 1):
            values = table[attribute].where(~table[attribute].isin(["", UNKNOWN]))
            sizes = values.value_counts()
            found[attribute] = pd.Categorical(values, sorted(sizes.index, key=lambda name: (-sizes[name], name)))
    for column, attribute, bands in (
        ("age", "age", AGE_BANDS),
        ("megapixels", "image size", SIZE_BANDS),
        ("typology_angle", "skin tone (estimate)", SKIN_TONES),
    ):
        if column in table:
            edges = [*bands.values(), np.inf]
            found[attribute] = pd.cut(table[column].to_numpy(float), edges, right=False, labels=list(bands))
    for attribute, groups in found.items():
        if groups.isna().any():
            found[attribute] = groups.add_categories(UNKNOWN).fillna(UNKNOWN)
    return found


def _metrics(table: pd.DataFrame, rng: np.random.Generator, draws: int) -> dict[str, Any]:
    """Return `brief_metrics`, or why the group is too small for them."""
    n, n_melanoma = len(table), int(table["label"].sum())
    for count, name in ((n_melanoma, "melanomas"), (n - n_melanoma, "benign lesions")):
        if count < LEAST:
            metrics = dict.fromkeys(("auc", "auc_interval", "sensitivity", "specificity"))
            note = f"fewer than {LEAST} {name}"
            return {"n": n, "n_melanoma": n_melanoma, **metrics, "note": note}
    return brief_metrics(table, rng, draws)


# --- skin tone ---


def typology_angles(cache: ImageCache, names: Iterable[str]) -> np.ndarray:
    """Return the typology angle of named images, float64 (N,): see `typology_angle`."""
    rows = cache.rows(names)
    starts = range(0, len(rows), BLOCK)
    blocks = [typology_angle(cache.gather(rows[start : start + BLOCK])) for start in starts]
    return np.concatenate([*blocks, np.empty(0)])


def typology_angle(images: np.ndarray) -> np.ndarray:
    """Estimate the individual typology angle of the skin around lesions, in degrees; large = light.

    ITA = atan2(L* - 50, b*) 180/π (Chardon et al. 1991), of the median L* and b* of the skin in the image border. Dark
    rim, hairs and parts of the lesion are excluded by their lightness. This is only an estimate: light and colours of
    dermoscopic photographs are not calibrated.

    images : uint8 array of shape (N, S, S, 3), sRGB

    Returns
    -------
    float64 array of shape (N,), NaN where less than a tenth of the border remains
    """
    side = images.shape[1]
    inside = slice(max(1, side // BORDER), side - max(1, side // BORDER))
    border = np.ones((side, side), bool)
    border[inside, inside] = False
    border[1::2] = border[:, 1::2] = False  # a quarter of the pixels is enough for the median
    lab = srgb_to_lab(images[:, border])
    light = np.where(lab[..., 0] >= BLACK, lab[..., 0], np.nan)
    skin = light >= _median(light)[:, None] - HAIR
    lightness, yellow = (_median(np.where(skin, lab[..., channel], np.nan)) for channel in (0, 2))
    angle = np.degrees(np.arctan2(lightness - 50, yellow))
    return np.where(skin.mean(axis=1) >= LEAST_SKIN, angle, np.nan)


def srgb_to_lab(pixels: np.ndarray) -> np.ndarray:
    """Return CIE 1976 L*a*b* (white D65, 2° observer), float32 (..., 3), of sRGB pixels, uint8 (..., 3).

    sRGB to XYZ as in IEC 61966-2-1, XYZ to L*a*b* as in CIE 15:2004, 8.2.1.
    """
    value = np.arange(256) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4).astype(np.float32)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]], np.float32)
    xyz = linear[pixels] @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T  # white is (1, 1, 1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * np.float32((29 / 6) ** 2 / 3) + np.float32(4 / 29))
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of each row without its NaNs, float64 (N,); NaN where all are."""
    return pd.DataFrame(values, dtype=float).median(axis=1).to_numpy()
