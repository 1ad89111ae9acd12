"""explain.py: the heat map is where the score comes from, with the right sign, and turns with the image."""

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from conftest import build_network
from torch import Tensor, nn
from torch.nn import functional as F

from melanoma.data.augment import Normalize, show
from melanoma.scoring.explain import grad_cam
from melanoma.scoring.scores import SCORERS, score_all
from modules import Backbone, SiameseNetwork

BENIGN, MELANOMA = np.array([0.0, 0.0]), np.array([1.0, 0.0])
LABELS = np.array([0, 1])


class TopLeft(Backbone):
    """Its one feature is the brightness of the top left field of the image."""

    features = 1

    def __init__(self, field: int = 1) -> None:
        super().__init__()
        self.normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.brightness = nn.Conv2d(3, 1, kernel_size=field, stride=field, bias=False)
        nn.init.constant_(self.brightness.weight, 1 / (3 * field**2))

    def forward(self, images: Tensor) -> Tensor:
        return self.brightness(images)[:, :, 0, 0]

    def last_map(self) -> nn.Module:
        return self.brightness


def top_left(field: int = 1) -> SiameseNetwork:
    """An embedding (brightness of the top left field, 0)."""
    network = SiameseNetwork(TopLeft(field), 2)
    nn.init.zeros_(network.fc_embedding.bias)
    network.fc_embedding.weight.data = torch.tensor([[1.0], [0.0]])
    return network


def heat_of(network, pixels, benign, melanoma, **settings) -> np.ndarray:
    heat = grad_cam(network, pixels, "prototype", np.stack([benign, melanoma]), LABELS, **settings)
    assert heat is not None
    return heat


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_what_the_score_owes_to_one_corner_is_shown_there_alone_by_hand():
    pixels = np.full((6, 6, 3), 51, np.uint8)  # brightness 0.2 everywhere: e = (0.2, 0), score 0.2 - 0.8
    expected = np.zeros((6, 6))
    expected[0, 0] = 0.2 * 2  # feature × gradient: nearer the melanomas by as much as farther from the benign
    np.testing.assert_allclose(heat_of(top_left(), pixels, BENIGN, MELANOMA), expected, atol=1e-6)
    np.testing.assert_allclose(heat_of(top_left(), pixels, MELANOMA, BENIGN), -expected, atol=1e-6)


def test_eight_views_show_each_corner_that_one_of_them_turns_to_the_top_left():
    pixels = np.full((6, 6, 3), 51, np.uint8)
    expected = np.zeros((6, 6))
    expected[np.ix_([0, -1], [0, -1])] = 0.2 * 2 / 4
    heat = heat_of(top_left(), pixels, BENIGN, MELANOMA, views=8)
    np.testing.assert_allclose(heat, expected, atol=1e-6)


def test_a_coarse_map_is_spread_over_the_whole_image():
    heat = heat_of(top_left(field=8), np.full((32, 32, 3), 51, np.uint8), BENIGN, MELANOMA)
    assert (heat.shape, heat.dtype) == ((32, 32), np.float32)
    assert heat[:4, :4].min() == heat.max() > 0
    assert np.abs(heat[12:]).max() == np.abs(heat[:, 12:]).max() == 0


@pytest.mark.parametrize(("backbone", "normalize"), [("resnet18", False), ("regnet_y_400mf", True)])
def test_where_features_are_pooled_to_their_mean_it_is_captums_grad_cam(backbone, normalize):
    torch.manual_seed(0)
    network = build_network(backbone, 64, 8, weights="none", normalize=normalize).eval()
    benign, melanoma = np.random.default_rng(0).normal(size=(2, 8))

    def score(images: Tensor) -> Tensor:
        embeddings = network.embed(images)
        benign_distance, distance = ((embeddings - torch.tensor(mean)).norm(dim=1) for mean in (benign, melanoma))
        return benign_distance - distance

    image = show(torch.from_numpy(noise(64))[None], None, network.backbone.normalize)
    expected = LayerGradCam(score, network.backbone.last_map()).attribute(image).float()
    expected = F.interpolate(expected, (64, 64), mode="bilinear")[0, 0].detach().numpy()
    heat = heat_of(network, noise(64), benign, melanoma)
    assert np.abs(heat).max() > 1e-4
    np.testing.assert_allclose(heat, expected, atol=1e-4 * np.abs(heat).max())


@pytest.mark.parametrize("settings", [{"backbone": "conv3"}, {"backbone": "resnet18", "grid": 2}])
def test_a_turned_image_has_the_turned_map_in_eight_views(settings):
    torch.manual_seed(0)
    network = build_network(image_size=64, embedding_dim=8, normalize=True, **settings)
    prototypes = np.random.default_rng(0).normal(size=(2, 8))
    heat = heat_of(network, noise(64), *prototypes, views=8)
    for turned, expected in ((np.rot90(noise(64)), np.rot90(heat)), (noise(64)[:, ::-1], heat[:, ::-1])):
        again = heat_of(network, turned, *prototypes, views=8)
        np.testing.assert_allclose(again, expected, atol=1e-4 * np.abs(heat).max())
    assert np.abs(heat - heat[:, ::-1]).max() > 0.1 * np.abs(heat).max()


@pytest.mark.parametrize("scorer", SCORERS[:-1])
def test_the_score_that_is_explained_is_the_one_that_judges(scorer):
    rng = np.random.default_rng(0)
    references, labels = rng.normal(size=(200, 2)), (rng.random(200) < 0.3).astype(int)
    heat = grad_cam(top_left(), np.full((6, 6, 3), 51, np.uint8), scorer, references, labels)  # brightness 0.2
    scores = score_all(np.array([[0.2 - 1e-4, 0], [0.2 + 1e-4, 0]]), None, references, labels)[scorer]
    assert heat is not None and heat[0, 0] == pytest.approx(0.2 * np.diff(scores)[0] / 2e-4, rel=1e-3)


@pytest.mark.parametrize("views", [1, 8])
def test_the_map_of_a_linear_head_adds_up_to_its_logit(views):
    """feature × gradient over a network that is linear from its map on: what the places owe is the whole logit."""
    network = top_left(field=1)
    network.head = nn.Linear(2, 1, bias=False)
    pixels = noise(6)
    references = np.stack([BENIGN, MELANOMA])
    heat = grad_cam(network, pixels, "head", references, LABELS, views)
    corners = pixels[np.ix_([0, -1], [0, -1])] if views == 8 else pixels[:1, :1]
    expected = network.head.weight[0, 0].item() * corners.mean() / 255
    assert heat is not None and heat.sum() == pytest.approx(expected, rel=1e-4)


def test_the_network_and_the_image_are_left_as_they_were():
    network = build_network("resnet18", 32, 2, dropout=0.5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = noise(32)
    first, second = (heat_of(network, pixels, BENIGN, MELANOMA) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(pixels, noise(32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_vision_transformer_has_no_map():
    network = build_network("vit_b_32", 32, 2, weights="none")
    assert grad_cam(network, noise(32), "head", np.stack([BENIGN, MELANOMA]), LABELS) is None
