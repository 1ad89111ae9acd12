"""Siamese networks that tell melanoma from benign skin lesions: the library of the five scripts.

>>> import melanoma
>>> model = melanoma.load("model.pt")
>>> table = model.predict(["photo.jpg"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from melanoma.scoring.model import Model


def load(
    path: str | Path, device: str = "auto", prevalence: float | None = None, min_sensitivity: float | None = None
) -> Model:
    """Read a trained model from the file that train.py or `predict.py --export` wrote; see `Model` for what it can do.

    Parameters
    ----------
    device : cuda, cuda:1, mps, cpu; auto takes the first that is there
    prevalence : share of melanomas that the probabilities are for (None: that of the model's validation part)
    min_sensitivity : share of the melanomas of validation that the threshold finds at least (None: the threshold whose
        smaller one of sensitivity and specificity is largest)

    Raises
    ------
    melanoma.common.errors.InputError : no such file, a damaged one, or one of another version
    """
    from melanoma.common.device import choose_device
    from melanoma.scoring.ensemble import Choices, by_test_part, make_ensemble
    from melanoma.scoring.model import Model
    from melanoma.scoring.model_file import read_model
    from modules import stored_network  # the one import of a script: the networks stand in modules.py

    choices = Choices(min_sensitivity, prevalence)
    runs = read_model(Path(path).expanduser(), stored_network, choose_device(device))
    return Model([make_ensemble(own, choices) for own in by_test_part(runs)])
