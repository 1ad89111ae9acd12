"""Why a lesion was judged as it was: which parts of the image speak for melanoma, and which for benign."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor
from torch.nn import functional as F

from melanoma.data.augment import flips_and_turns, show, turn_back
from melanoma.scoring.scores import reference_scores


def grad_cam(
    network: Any, pixels: np.ndarray, scorer: str, references: np.ndarray, labels: np.ndarray, views: int = 1
) -> np.ndarray | None:
    """Return a heat map of one image: what its score, large = melanoma, owes to each place.

    Each place of the backbone's last map counts with the sum over its channels of feature × gradient of the very score
    by which the image is judged, both signs kept. Grad-CAM (Selvaraju et al. 2017) takes the gradient's mean over all
    places; most backbones here tell places apart, so each place keeps its own gradient, as in HiResCAM (Draelos and
    Carin 2020). Where features are pooled to their mean the two are one.

    Parameters
    ----------
    network : a Siamese network with a `backbone` and `unit_length`; in evaluation mode afterwards
    pixels : uint8 array of shape (S, S, 3)
    scorer, references, labels : the way of scoring, embeddings (R, D) and labels (R,), see `scores.score_all`
    views : 1 or 8, the views whose mean is scored, see `embedding.embed_images`; the map is their mean, turned back

    Returns
    -------
    float32 array of shape (S, S): above 0 speaks for melanoma, below 0 for benign; None if the backbone has no map
    """
    layer = network.backbone.last_map()
    if layer is None:
        return None
    network.eval()

    def score(images: Tensor) -> Tensor:  # (V, 3, S, S) -> (1,)
        embeddings, logits = network(images)
        if scorer == "head":
            return logits.mean(dim=0, keepdim=True)
        mean = embeddings.mean(dim=0, keepdim=True)
        mean = F.normalize(mean, dim=1) if network.unit_length else mean
        return reference_scores(mean, references, labels)[scorer]

    device = next(network.parameters()).device
    image = show(torch.from_numpy(pixels.copy())[None].to(device), None, network.backbone.normalize)
    images = torch.cat(list(flips_and_turns(image, views)))
    products = LayerGradientXActivation(score, layer).attribute(images)  # (V, C, H, H)
    heat = turn_back(products.detach().sum(dim=1)).sum(dim=0)
    shape = (len(pixels), len(pixels))
    return F.interpolate(heat[None, None], shape, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
