"""The evaluation on one page: `render` returns graph/report.html as text.

The page works offline: figures are embedded, nothing is fetched, no script runs. report.html beside this file is the
template, which escapes all values; tables.py turns the metrics into text.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from melanoma.report import tables

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)

# Title and caption of each figure by its file name, in the order of the page.
PICTURES = {
    "ROC_curve.png": (
        "ROC curve",
        "Sensitivity against 1 - specificity over all thresholds. The band is the pointwise 95 % interval from "
        "bootstrap samples of the groups, where they are enough. The dot is the threshold in use, the dashed line is "
        "chance.",
    ),
    "Precision_recall.png": (
        "Precision and recall",
        "Precision against recall (sensitivity) over the thresholds from which at least 5 images are called melanoma. "
        "The dashed line is the prevalence, which is the precision of chance.",
    ),
    "Confusion_matrix.png": ("Confusion matrix", "Counts at the threshold in use, and their share of the true class."),
    "Threshold.png": (
        "Sensitivity and specificity by threshold",
        "Both rates at every threshold; the markers are the threshold in use. The axis has probabilities on the scale "
        "of their log odds.",
    ),
    "Score_histogram.png": (
        "Probabilities by class",
        "Number of images of each class by predicted probability, on the scale of its log odds; the dotted line is the "
        "threshold.",
    ),
    "Calibration.png": (
        "Calibration",
        "Reliability diagram: the images sorted by predicted probability, in groups of equally many; share of "
        "melanomas of each with Wilson's 95 % interval. On the dashed line calibration is perfect. The calibration "
        "error (ECE) is over 10 bins of equal width.",
    ),
    "Subgroups.png": (
        "Subgroups",
        "AUC of each subgroup, with its 95 % interval. Groups too small for an AUC or an interval are grey.",
    ),
    "Errors.png": (
        "Most confident errors",
        "The false negatives of lowest and the false positives of highest probability.",
    ),
    "Train_average_loss.png": (
        "Learning curves",
        "Average loss of training and validation pairs (with a classification head, its loss is added), AUC of the "
        "validation images, and mean distances of same-class and different-class pairs, by epoch. The loss is a mean "
        "over pairs and does not depend on the batch size; its axis does not begin at 0.",
    ),
    "Pair_distances.png": (
        "Distances of pairs",
        "Distances between the embeddings of same-class and of different-class pairs, and the margin of the loss.",
    ),
    "t_SNE.png": (
        "t-SNE map",
        "Map of the embeddings, melanomas on top. Large distances have little meaning in such a map.",
    ),
    "t_SNE_panels.png": (
        "t-SNE map in three colours",
        "The same map coloured by class, by probability of melanoma and by the size of the source image: if regions "
        "differ in size, the network may use it. Melanomas have a black outline.",
    ),
}
WIDE = ("Errors.png", "t_SNE_panels.png")  # a row of the page each, after the others


def render(
    metrics: Mapping[str, Any],
    figures: Mapping[str, bytes | None],
    settings: Mapping[str, Any],
    card: Mapping[str, str],
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    metrics : contents of metrics.json; a metric that is None is shown as not computed, with its reason
    figures : PNG by file name; None if it could not be drawn
    settings : settings, command and versions of the run, nested to any depth; each dict becomes a table
    card : see `model_card.model_card`
    """
    shown = [show_picture(metrics, name, figures[name]) for name in PICTURES if name in figures]
    return TEMPLATES.get_template("report.html").render(
        what=tables.describe_set(metrics),
        origin=metrics["origin"],
        tiles=tables.headline(metrics),
        interval_notes=tables.interval_notes(metrics),
        pictures=sorted(shown, key=lambda picture: picture["wide"]),
        tables=tables.all_tables(metrics),
        settings=tables.setting_tables(settings),
        card=card,
    )


def show_picture(metrics: Mapping[str, Any], name: str, png: bytes | None) -> dict[str, Any]:
    """Return a figure's title and caption with its size in pixels and data URI, or the reason why it is missing."""
    title, caption = PICTURES[name]
    picture = {"title": title, "caption": caption, "wide": name in WIDE}
    if png is None:
        return picture | {"reason": tables.reason_for(metrics, name)}
    width, height = Image.open(BytesIO(png)).size
    return picture | {"source": data_uri(png), "width": width, "height": height}


def data_uri(png: bytes) -> str:
    """Return a PNG file within a URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
