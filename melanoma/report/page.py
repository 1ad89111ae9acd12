"""The evaluation on one page: `render` returns graph/report.html as text, with everything that it shows inside.

It opens offline: figures are embedded, nothing is fetched, no script runs. templates/report.html lays it out and
escapes all that is put into it; tables.py turns the metrics into text.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from melanoma.report.tables import (
    control_table,
    describe_intervals,
    describe_set,
    fold_table,
    headline,
    merit_table,
    reason_for,
    run_table,
    setting_tables,
    subgroup_table,
)

TEMPLATES = Path(__file__).parent
WIDE = 1200  # pixels; wider figures have a row of their own


class Picture(NamedTuple):
    """What stands with a figure, and the figure of merit whose reason counts if it could not be drawn."""

    title: str
    caption: str
    of: str


# In the order in which they are shown, by file name; others follow under their own name.
PICTURES = {
    "ROC_curve.png": Picture(
        "ROC curve",
        "Sensitivity against 1 - specificity over all thresholds. At each specificity the band has the sensitivity of "
        "95 % of bootstrap samples of the patients. The dot is the threshold in use, the dashed line a blind guess.",
        "auc",
    ),
    "Precision_recall.png": Picture(
        "Precision and recall",
        "Of the lesions called melanoma, the share that are, against the share of melanomas found. The dashed line is "
        "the prevalence, a blind guess's precision.",
        "average_precision",
    ),
    "Confusion_matrix.png": Picture(
        "Confusion matrix", "Counts at the threshold in use, and their share of the true class.", "counts"
    ),
    "Threshold.png": Picture(
        "Sensitivity and specificity by threshold",
        "What another threshold would give; the marks are the one in use. The axis is laid out by log odds.",
        "sensitivity",
    ),
    "Score_histogram.png": Picture(
        "Probabilities by class",
        "How many images of each class have which probability; the dotted line is the threshold.",
        "counts",
    ),
    "Calibration.png": Picture(
        "Calibration",
        "Share of melanomas among images of about one probability, with Wilson's 95 % intervals; below, how many "
        "images that is. On the dashed line a probability says what it means.",
        "ece",
    ),
    "Subgroups.png": Picture(
        "Subgroups",
        "AUC within each group, with its 95 % interval. Groups too small are named in grey.",
        "subgroups",
    ),
    "Errors.png": Picture(
        "Most confident errors",
        "The missed melanomas of lowest and the benign lesions of highest probability.",
        "counts",
    ),
    "Train_average_loss.png": Picture(
        "Learning curves",
        "Average loss of the training and validation pairs, validation AUC and the mean distances of like and unlike "
        "pairs, by epoch.",
        "training",
    ),
    "Pair_distances.png": Picture(
        "Distances of pairs",
        "How far apart the embeddings of like and of unlike pairs lie, and the loss's margin.",
        "pairs",
    ),
    "t_SNE.png": Picture(
        "t-SNE map",
        "The embeddings mapped to the plane, melanomas on top. Distances far apart mean little in such a map.",
        "embeddings",
    ),
    "t_SNE_panels.png": Picture(
        "t-SNE map in three colours",
        "The same map by class, by probability of melanoma and by the size of the source image: if size tells the "
        "regions apart, the network may use it.",
        "embeddings",
    ),
}


@dataclass(frozen=True)
class ModelCard:
    """What a reader must know of a model before using it (Mitchell et al. 2019), as plain text."""

    training_data: str
    evaluation_data: str
    model: str
    intended_use: str = (
        "Research and teaching: comparing ways to train and to judge such networks on dermoscopic images. Out of "
        "scope: diagnosis, triage, or any other decision about a patient, and photographs that are not dermoscopic."
    )
    limits: str = (
        "A probability holds for the prevalence and the kind of images it was calibrated on. Other clinics, cameras "
        "and populations can make every figure here worse. Image size, hairs, rulers and colour go with the diagnosis "
        "in public collections, and a network may use them as shortcuts: see the controls and the subgroups. Accuracy "
        "says little where melanomas are rare."
    )
    ethics: str = (
        "The public collections show mostly light skin: how the network does on dark skin is not known well, and a "
        "figure over all images hides it. Skin tone, where it is shown, is estimated from pixels at the image's border "
        "and is no person's own account. A missed melanoma can cost a life, a false alarm an operation: the "
        "threshold weighs the one against the other and is a choice of people."
    )
    medical_device: str = (
        "This is not a medical device. It has not been tested in a clinic and is cleared by no authority."
    )


def render(
    metrics: Mapping[str, Any],
    figures: Mapping[str, bytes | None],
    settings: Mapping[str, Any],
    card: ModelCard,
) -> str:
    """Return the page as HTML.

    Parameters
    ----------
    metrics : contents of metrics.json: set, n, n_melanoma, and whatever else there is; a section without its key is
        left out, a figure that is None is shown as not computed, with its reason in `not_computed`
    figures : PNG by file name; None for one that could not be drawn
    settings : what was run and with what, of any depth; each dict in it becomes a table

    Raises
    ------
    ValueError : a figure is no PNG
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = [make(metrics) for make in (merit_table, fold_table, control_table, subgroup_table, run_table)]
    return environment.get_template("report.html").render(
        what=describe_set(metrics),
        tiles=headline(metrics),
        intervals=describe_intervals(metrics),
        pictures=show_pictures(metrics, figures),
        tables=[table for table in tables if table.rows],
        settings=setting_tables(settings),
        card=card_sections(card, metrics),
    )


def card_sections(card: ModelCard, metrics: Mapping[str, Any]) -> dict[str, str]:
    """Return the model card's texts under their headings."""
    merits = "; ".join(f"{tile['name']} {tile['value']} ({tile['detail']})" for tile in headline(metrics))
    return {
        "Model": card.model,
        "Intended use": card.intended_use,
        "Training data": card.training_data,
        "Evaluation data": card.evaluation_data,
        "Metrics": f"On {describe_set(metrics)}: {merits}.",
        "Limits": card.limits,
        "Ethical considerations": card.ethics,
        "Not a medical device": card.medical_device,
    }


def show_pictures(metrics: Mapping[str, Any], figures: Mapping[str, bytes | None]) -> list[dict[str, Any]]:
    """Return each figure with its caption, size in pixels and data URI, or the reason why there is none."""
    shown = []
    for name in [
        *(name for name in PICTURES if name in figures),
        *(name for name in figures if name not in PICTURES),
    ]:
        about = PICTURES.get(name, Picture(Path(name).stem.replace("_", " "), "", name))
        entry: dict[str, Any] = {"title": about.title, "caption": about.caption, "source": "", "wide": False}
        png = figures[name]
        if png is None:
            reasons = metrics.get("not_computed") or {}
            entry["reason"] = reasons.get(name) or reason_for(metrics, (about.of,))
        else:
            if not png.startswith(b"\x89PNG\r\n\x1a\n") or len(png) < 24:
                raise ValueError(f"figure {name} is no PNG")
            entry["width"], entry["height"] = struct.unpack(">II", png[16:24])
            entry["source"] = "data:image/png;base64," + base64.b64encode(png).decode("ascii")
            entry["wide"] = entry["width"] > WIDE
        shown.append(entry)
    return shown
