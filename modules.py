"""The network and its loss: embed both images of a pair, pull like pairs together, push unlike ones apart."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Mean and standard deviation of the colour channels of ImageNet, torchvision's convention
CHANNEL_MEAN = (0.485, 0.456, 0.406)
CHANNEL_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Shift and scale the colour channels of images in 0..1 to about zero mean and unit spread."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(CHANNEL_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(CHANNEL_STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images, float (B, 3, S, S), normalised."""
        return (images - self.mean) / self.std


class Conv3(nn.Module):
    """The outline's embedding network: three 3×3 convolutions (16, 32, 64 channels) and two linear layers.

    Each convolution is followed by 2×2 max pooling and ReLU; ReLU and maximum commute, and pooling first leaves a
    quarter of the values to rectify and to keep for the backward pass.

    Parameters
    ----------
    image_size : side S of the input in pixels, 32 or more (7 or less would pool to nothing)
    embedding_dim : D, length of the embedding
    """

    def __init__(self, image_size: int, embedding_dim: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64)
        self.normalize = Normalize()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inner, outer, kernel_size=3, padding=1) for inner, outer in pairwise(channels)
        )
        self.fc1 = nn.Linear(channels[-1] * (image_size // 8) ** 2, 512)
        self.fc_embedding = nn.Linear(512, embedding_dim)

    def forward(self, images: Tensor) -> Tensor:
        """Embed images, float (B, 3, S, S) in 0..1, as (B, D)."""
        images = self.normalize(images)
        for convolution in self.convolutions:
            images = F.relu(F.max_pool2d(convolution(images), 2))
        return self.fc_embedding(F.relu(self.fc1(images.flatten(1))))


class SiameseNetwork(nn.Module):
    """One embedding network for both images of a pair."""

    def __init__(self, embedder: nn.Module) -> None:
        super().__init__()
        self.embedder = embedder

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (B, D), of images, float (B, 3, S, S) in 0..1."""
        return self.embedder(images).float()

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the first and of the second images, (B, D) each."""
        return self.embed(first), self.embed(second)


def build_network(backbone: str, image_size: int, embedding_dim: int) -> SiameseNetwork:
    """Return the Siamese network around a backbone by name, weights drawn from torch's global generator.

    It is in channels-last memory, the layout in which pixels are stored and convolutions are fastest.

    Raises
    ------
    ValueError : unknown backbone
    """
    if backbone != "conv3":
        raise ValueError(f"backbone is {backbone!r}: it must be conv3")
    network = SiameseNetwork(Conv3(image_size, embedding_dim))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def pair_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the Euclidean distance of each pair, (P,), of embeddings (P, D); its gradient at 0 is 0."""
    return torch.linalg.vector_norm(first - second, dim=1)


def contrastive_loss(distance: Tensor, same: Tensor, margin: float) -> Tensor:
    """Mean contrastive loss over pairs (Hadsell et al. 2006, eq. 4; same=True is their Y=0).

    Like pairs cost ½ d², unlike pairs ½ max(0, margin - d)².

    Parameters
    ----------
    distance : float tensor of shape (P,), >= 0
    same : bool tensor of shape (P,)
    margin : distance past which unlike pairs add nothing
    """
    short = torch.where(same, distance, F.relu(margin - distance))
    return 0.5 * short.square().mean()


class ContrastiveLoss(nn.Module):
    """`contrastive_loss` of two batches of embeddings, with a margin > 0."""

    def __init__(self, margin: float) -> None:
        super().__init__()
        if not margin > 0:
            raise ValueError(f"margin is {margin}: it must be above 0")
        self.margin = margin

    def forward(self, first: Tensor, second: Tensor, same: Tensor) -> Tensor:
        """Return the mean loss, a scalar, of embeddings (P, D) twice and bool (P,)."""
        return contrastive_loss(pair_distance(first, second), same, self.margin)
