"""The model card (Mitchell et al. 2019): a section of the page, and MODEL_CARD.md beside a model file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from melanoma.report import tables
from melanoma.report.curves import describe_images
from melanoma.scoring.ensemble import Choices, Ensemble, Run, runs_of

INTENDED_USE = (
    "Research and teaching: to compare methods of training and scoring such networks on dermoscopic images. Out of "
    "scope: diagnosis, triage, any other decision about a patient, and images that are not dermoscopic."
)
LIMITS = (
    "Probabilities hold for the prevalence and the kind of images of the calibration data. Other clinics, cameras and "
    "populations can make all metrics worse. In public collections image size, hairs, rulers and colour correlate with "
    "the diagnosis, and a network may use them as shortcuts: see the controls and the subgroups. Accuracy means little "
    "at low prevalence."
)
ETHICS = (
    "The public collections show mostly light skin: performance on dark skin is not well known, and metrics over all "
    "images hide it. Skin tone is estimated from pixels at the image border, not reported by the patients. A missed "
    "melanoma can cost a life, a false positive an operation: the threshold weighs one against the other, and people "
    "must choose it."
)
EXPECTED = (
    "The metrics are what to expect of this model, whose own images leave none to test it on: they are those of runs "
    "with the same settings, which did not learn from the images that they judged"
)
NO_DEVICE = "This is not a medical device. It has not been tested in a clinic and no authority has approved it."
LICENCE = (
    "The licence of the training images holds for what is made from them. ISIC 2020 and HAM10000 are CC BY-NC 4.0: for "
    "research, not for commercial use."
)
TITLE = "# Melanoma Siamese network"
HUB = """\
---
license: cc-by-nc-4.0
library_name: pytorch
pipeline_tag: image-classification
tags: [dermoscopy, melanoma, siamese-network, contrastive-loss]
---

{title}: {file}

```bash
python predict.py photo.jpg --model path/to/{file}
```

A lesion is called melanoma from a probability of {threshold:.4g} on. Where the familiarity is below 1 %, the photo is
unlike anything seen in training: do not trust its probability.

{sections}
"""


def model_card(
    metrics: Mapping[str, Any] | None,
    training_data: str,
    learnt: Sequence[tuple[str, np.ndarray]],
    model: str,
    of_others: bool = False,
) -> dict[str, str]:
    """Return the texts of the card by their headings.

    Parameters
    ----------
    metrics : contents of metrics.json; None if the model has not been evaluated
    training_data : folder and split
    learnt : fold that tests, in words, and labels (N,) of each training part
    model : the method, in words
    of_others : the metrics are of other runs with the same settings, as a cross-validation gives them
    """
    sizes = "; ".join(f"{fold}: {describe_images(labels)}" for fold, labels in learnt)
    card = {
        "Model": model,
        "Intended use": INTENDED_USE,
        "Training data": f"The training parts of {training_data}: {sizes}.",
        "Evaluation data": "The model has not been evaluated.",
        "Metrics": "None.",
        "Limits": LIMITS,
        "Ethical considerations": ETHICS,
        "Not a medical device": NO_DEVICE,
    }
    if metrics:
        notes = "".join(f"{note}. " for note in metrics["notes"])
        tiles = "; ".join("{name} {value} ({detail})".format_map(tile) for tile in tables.headline(metrics))
        what = tables.describe_set(metrics)
        times = "" if of_others else describe_evaluations(metrics)
        card["Evaluation data"] = f"{what}. {times}{notes}".rstrip()
        card["Metrics"] = "\n\n".join([f"On {what}: {tiles}.", *tables.by_source(metrics)])
        if of_others:
            card["Metrics"] = f"{EXPECTED} ({metrics['origin']}).\n\n{card['Metrics']}"
    return card


def card_of(
    ensembles: Sequence[Ensemble], choices: Choices, metrics: Mapping[str, Any] | None, of_others: bool = False
) -> dict[str, str]:
    """Return the model card of runs with their metrics, if there are any, or those of others; see `model_card`."""
    first = ensembles[0].runs[0]
    learnt = [(ensemble.fold_name, ensemble.learnt) for ensemble in ensembles]
    data = f"{first.data} (split {first.settings['split']!r})"
    return model_card(metrics, data, learnt, describe_method(ensembles, choices), of_others)


def describe_method(ensembles: Sequence[Ensemble], choices: Choices) -> str:
    """Return how the runs were trained and how they score, for a model card."""
    runs = runs_of(ensembles)
    losses = ["contrastive loss"] if any(run.settings["pair_weight"] for run in runs) else []
    if any(run.network.head is not None for run in runs):
        losses.append("a classification head")
    scorers = {scorer for ensemble in ensembles for scorer in ensemble.scorers}
    ways = ["where it lies among the training lesions"] if scorers - {"head"} else []
    if "head" in scorers:
        ways.append("the classification head's logit")
    several = ", and of several runs' log odds the mean is taken" if len(runs) > len(ensembles) else ""
    moved = "" if choices.prevalence is None else f", moved to a prevalence of {100 * choices.prevalence:g} %"
    return (
        "A Siamese network: one embedding network for both images of a pair, trained with "
        f"{' and '.join(losses)} so that melanomas and benign lesions lie apart. A lesion is judged by "
        f"{' or '.join(ways)}{several}; a logistic curve fitted on validation makes the score a probability{moved}."
    )


def describe_run(run: Run) -> str:
    """Return what a run is as a line, for a model card."""
    start = run.starts[-1] if run.starts else {"started": "unknown", "commit": None}
    return (
        f"{Path(run.name).name}: recipe {run.settings['recipe']}, seed {run.settings['seed']}, epoch {run.epoch} of "
        f"{len(run.log)}, started {start['started']}, commit {start['commit']}; split {run.tested[:12]}"
    )


def describe_evaluations(metrics: Mapping[str, Any]) -> str:
    """Return how often the test part was evaluated, and with how many different choices, as a sentence; or ""."""
    evaluations = metrics.get("test_evaluations")
    if not evaluations:
        return ""
    different = len({json.dumps(choices, sort_keys=True) for choices in evaluations})
    times = "once" if len(evaluations) == 1 else f"{len(evaluations)} times, with {different} different choices"
    return f"This test part was evaluated {times} for this run. "


def hub_card(file: str, threshold: float, card: Mapping[str, str], made: Sequence[str]) -> str:
    """Return MODEL_CARD.md, in the form of the Hugging Face Hub.

    Parameters
    ----------
    file : name of the model file
    threshold : probability from which on a lesion is called melanoma
    card : see `model_card`
    made : how each run was made, a line each
    """
    runs = "\n".join(f"- {line}" for line in made)
    sections = [f"## {heading}\n\n{text}" for heading, text in {**card, "Licence": LICENCE, "Runs": runs}.items()]
    return HUB.format(title=TITLE, file=file, threshold=threshold, sections="\n\n".join(sections))
