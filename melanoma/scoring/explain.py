"""Why a lesion was judged as it was: which parts of the image speak for melanoma, and which for benign."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from melanoma.data.augment import flips_and_turns, show
from melanoma.scoring.scores import reference_scores

# By number of views, the steps from bare skin to the image: of trained runs, maps then add up to the score within 5 %.
STEPS = {1: 32, 8: 16}
AT_A_TIME = 32  # images computed at a time: bounds memory
SMOOTHING = 0.02  # standard deviation of the Gaussian, as a share of the image's side


def heat_map(
    network: Any, pixels: np.ndarray, scorer: str, references: np.ndarray, labels: np.ndarray, views: int = 1
) -> np.ndarray:
    """Return a heat map of one image: what its score, large = melanoma, owes to each place.

    Integrated gradients (Sundararajan et al. 2017, eq. 1) of the very score by which the image is judged, on the
    straight line from bare skin to the image; added over the colour channels and smoothed. The map adds up to how much
    the score of the image exceeds that of bare skin.

    Parameters
    ----------
    network : a Siamese network with a `backbone` and `unit_length`; in evaluation mode afterwards
    pixels : uint8 array of shape (S, S, 3)
    scorer, references, labels : the way of scoring, embeddings (R, D) and labels (R,), see `scores.score_all`
    views : 1 or 8, the views whose mean is scored, see `embedding.embed_images`

    Returns
    -------
    float32 array of shape (S, S): above 0 speaks for melanoma, below 0 for benign
    """
    from scipy.ndimage import gaussian_filter  # slow to import

    network.eval()
    steps = STEPS[views]

    def score(images: Tensor) -> Tensor:  # (B, 3, S, S) -> (B,)
        seen = network(torch.cat(list(flips_and_turns(images, views))))
        mean, logit = (own.unflatten(0, (views, -1)).mean(dim=0) for own in seen)
        if scorer == "head":
            return logit
        mean = F.normalize(mean, dim=1) if network.unit_length else mean
        return reference_scores(mean, references, labels)[scorer]

    device = next(network.parameters()).device
    [image] = show(torch.from_numpy(pixels.copy())[None].to(device), None, network.backbone.normalize)
    skin = bare_skin(image)
    gradient = torch.zeros_like(image)
    for part in ((torch.arange(steps, device=device) + 0.5) / steps).split(AT_A_TIME // views):
        images = torch.lerp(skin, image, part[:, None, None, None]).requires_grad_()
        gradient += torch.autograd.grad(score(images).sum(), images)[0].sum(dim=0) / steps
    evidence = ((image - skin) * gradient).sum(dim=0).cpu().numpy()
    return gaussian_filter(evidence, SMOOTHING * len(pixels))  # mirrored at the border: the sum stays


def bare_skin(image: Tensor) -> Tensor:
    """Return an image of one colour, like an image (3, S, S), each channel brighter than three quarters of the pixels.

    Lesion, hair and the shadow of the lens are darker than skin. The median along the border, which such a shadow
    darkens, let a tenth more of the heat fall outside the lesion.
    """
    return image.flatten(1).quantile(0.75, dim=1)[:, None, None].expand_as(image)
