"""Why a lesion was judged as it was: which parts of the image speak for melanoma, and which for benign."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from captum.attr import LayerGradientXActivation
from torch import Tensor
from torch.nn import functional as F

from melanoma.data.augment import flips_and_turns, to_float, turn_back
from melanoma.scoring.scores import COUNTED, by_class, count_nearest, prototypes
from modules import SiameseNetwork


def grad_cam(
    network: SiameseNetwork,
    pixels: np.ndarray,
    scorer: str,
    references: np.ndarray,
    labels: np.ndarray,
    views: int = 1,
) -> np.ndarray | None:
    """Return a heat map of one image: what its score, large = melanoma, owes to each place.

    Each place of the backbone's last map of features counts with the sum over its channels of feature × gradient of
    the score: of the very score by which the image is judged, be it distances to references or the head's logit.
    Grad-CAM (Selvaraju et al. 2017) takes the gradient's mean over all places, which is the same thing where the
    features are pooled to their mean. Here most backbones tell places apart (conv3's linear layer, `--grid`), and the
    mean would blame a feature everywhere for what it does in one place: so each place keeps its own gradient, as in
    HiResCAM (Draelos and Carin 2020). Both signs are kept.

    Parameters
    ----------
    network : in evaluation mode afterwards
    pixels : uint8 array of shape (S, S, 3)
    scorer, references, labels : the way of scoring, embeddings (R, D) and labels (R,), see `classify.score_all`
    views : 1 or 8, the views whose mean is scored, see `feed.embed_images`; the map is their mean, turned back

    Returns
    -------
    float32 array of shape (S, S): above 0 speaks for melanoma, below 0 for benign; None if the backbone has no map
    """
    layer = network.backbone.last_map()
    if layer is None:
        return None
    network.eval()
    device = next(network.parameters()).device
    score_of = scoring(scorer, references, labels, device)

    def score(images: Tensor) -> Tensor:  # (V, 3, S, S) -> (1,)
        embeddings, logits = network(images)
        mean = embeddings.mean(dim=0)
        return score_of(F.normalize(mean, dim=0) if network.unit_length else mean, logits.mean())[None]

    image = to_float(torch.from_numpy(pixels.copy())[None].to(device))
    images = torch.cat(list(flips_and_turns(image, views)))
    products = LayerGradientXActivation(score, layer).attribute(images)  # (V, C, H, H)
    heat = turn_back(products.detach().sum(dim=1)).sum(dim=0)
    shape = (len(pixels), len(pixels))
    return F.interpolate(heat[None, None], shape, mode="bilinear", align_corners=False)[0, 0].cpu().numpy()


def scoring(
    scorer: str, references: np.ndarray, labels: np.ndarray, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a way of scoring as a function with a gradient, of an embedding (D,) and its logit, both on the device.

    Parameters
    ----------
    scorer, references, labels : see `classify.score_all`
    """
    if scorer == "head":
        return lambda embedding, logit: logit
    own = prototypes(references, labels) if scorer == "prototype" else by_class(references, labels)
    classes = [torch.from_numpy(np.atleast_2d(part).astype(np.float32)).to(device) for part in own]
    counts = [count_nearest(len(part), **COUNTED.get(scorer, {})) for part in classes]

    def score(embedding: Tensor, logit: Tensor) -> Tensor:
        benign, melanoma = (
            torch.linalg.vector_norm(part - embedding, dim=1).topk(count, largest=False).values.mean()
            for part, count in zip(classes, counts, strict=True)
        )
        return benign - melanoma

    return score
