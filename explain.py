"""Why a lesion was judged as it was: which parts of the image speak for melanoma, and which for benign."""

from __future__ import annotations

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor
from torch.nn import functional as F

from augment import flips_and_turns, to_float, turn_back
from modules import SiameseNetwork


def grad_cam(
    network: SiameseNetwork, pixels: np.ndarray, benign: np.ndarray, melanoma: np.ndarray, views: int = 1
) -> np.ndarray | None:
    """Return a heat map of one image: what its embedding's distances to the two class means owe to each place.

    The score explained is |e - benign| - |e - melanoma|, large = melanoma, of the embedding e. Each place of the
    backbone's last map of features counts with the sum over its channels of feature × gradient of the score.
    Grad-CAM (Selvaraju et al. 2017) takes the gradient's mean over all places, which is the same thing where the
    features are pooled to their mean. Here most backbones tell places apart (conv3's linear layer, `--grid`), and the
    mean would blame a feature everywhere for what it does in one place: so each place keeps its own gradient, as in
    HiResCAM (Draelos and Carin 2020). Both signs are kept.

    Parameters
    ----------
    network : in evaluation mode afterwards
    pixels : uint8 array of shape (S, S, 3)
    benign, melanoma : float arrays of shape (D,), mean embedding of each class of the references
    views : 1 or 8, the views of which e is the mean, see `feed.embed_images`; the map is their mean, turned back

    Returns
    -------
    float32 array of shape (S, S): above 0 speaks for melanoma, below 0 for benign; None if the backbone has no map
    """
    layer = network.backbone.last_map()
    if layer is None:
        return None
    network.eval()
    device = next(network.parameters()).device
    prototypes = [torch.from_numpy(mean.astype(np.float32)).to(device) for mean in (benign, melanoma)]

    def score(images: Tensor) -> Tensor:  # (V, 3, S, S) -> (1,)
        mean = network.embed(images).mean(dim=0)
        if network.unit_length:
            mean = F.normalize(mean, dim=0)
        to_benign, to_melanoma = (torch.linalg.vector_norm(mean - own) for own in prototypes)
        return (to_benign - to_melanoma)[None]

    image = to_float(torch.from_numpy(pixels.copy())[None].to(device))
    images = torch.cat(list(flips_and_turns(image, views)))
    products = LayerGradientXActivation(score, layer).attribute(images)  # (V, C, H, H)
    heat = turn_back(products.detach().sum(dim=1)).sum(dim=0)
    shape = (len(pixels), len(pixels))
    return F.interpolate(heat[None, None], shape, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()
