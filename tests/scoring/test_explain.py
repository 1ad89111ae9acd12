"""explain.py: the heat map is where the score comes from, has the right sign, adds up and turns with the image."""

import numpy as np
import pytest
import torch
from conftest import build_network
from torch import Tensor, nn

from melanoma.data.augment import Normalize, flips_and_turns, show
from melanoma.scoring import explain
from melanoma.scoring.explain import bare_skin, heat_map
from melanoma.scoring.scores import SCORERS, score_all
from modules import Backbone, SiameseNetwork

BENIGN, MELANOMA = np.array([0.0, 0.0]), np.array([1.0, 0.0])
LABELS = np.array([0, 1])
SIDE = 9


class Centre(Backbone):
    """Its one feature is the brightness of the pixel in the middle of the image's upper half."""

    features = 1

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.still = nn.Parameter(torch.zeros(()))  # a parameter, which tells the device

    def forward(self, images: Tensor) -> Tensor:
        return images[:, :, 2, SIDE // 2].mean(dim=1, keepdim=True) + self.still


def one_place() -> SiameseNetwork:
    """An embedding (brightness of one place, 0)."""
    network = SiameseNetwork(Centre(), 2)
    nn.init.zeros_(network.fc_embedding.bias)
    network.fc_embedding.weight.data = torch.tensor([[1.0], [0.0]])
    return network


def spot() -> np.ndarray:
    """An image of brightness 0.3 with a dark square in its middle, 0.1."""
    pixels = np.full((SIDE, SIDE, 3), 76, np.uint8)
    pixels[2:-2, 2:-2] = 25
    return pixels


def heat_of(network, pixels, benign, melanoma, **settings) -> np.ndarray:
    return heat_map(network, pixels, "prototype", np.stack([benign, melanoma]), LABELS, **settings)


def noise(side: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def lesion(side: int) -> np.ndarray:
    """A dark disc on bright skin."""
    y, x = np.mgrid[:side, :side] - side / 2
    return np.where((np.hypot(x, y) < side / 3)[..., None], noise(side) // 3, 200).astype(np.uint8)


def test_bare_skin_is_the_colour_around_the_lesion():
    pixels = lesion(16)
    pixels[:, :, 2] //= 2
    pixels[0, :6] = 0  # a dark corner
    skin = bare_skin(torch.from_numpy(pixels).permute(2, 0, 1).float())
    assert skin.shape == (3, 16, 16)
    assert (skin == torch.tensor([200.0, 200.0, 100.0])[:, None, None]).all()


def test_what_the_score_owes_to_one_place_is_shown_there_alone_by_hand():
    expected = np.zeros((SIDE, SIDE))
    # the feature is 51 / 255 below that of bare skin: so much farther from the melanomas and nearer to the benign
    expected[2, SIDE // 2] = -0.2 * 2
    for benign, melanoma, sign in ((BENIGN, MELANOMA, 1), (MELANOMA, BENIGN, -1)):
        heat = heat_of(one_place(), spot(), benign, melanoma)
        assert (heat.shape, heat.dtype) == ((SIDE, SIDE), np.float32)
        np.testing.assert_allclose(heat, sign * expected, atol=2e-3)  # a little is smoothed into the neighbours


def test_eight_views_show_each_place_that_one_of_them_turns_to_the_same():
    expected, middle = np.zeros((SIDE, SIDE)), SIDE // 2
    expected[[2, -3, middle, middle], [middle, middle, 2, -3]] = -0.2 * 2 / 4
    np.testing.assert_allclose(heat_of(one_place(), spot(), BENIGN, MELANOMA, views=8), expected, atol=1e-3)


def test_the_map_is_smoothed_and_keeps_its_sum(monkeypatch):
    network = build_network("conv3", 64, 8)
    smooth = heat_of(network, noise(64), *np.random.default_rng(0).normal(size=(2, 8)))
    monkeypatch.setattr(explain, "SMOOTHING", 0.0)
    rough = heat_of(network, noise(64), *np.random.default_rng(0).normal(size=(2, 8)))
    assert smooth.sum() == pytest.approx(rough.sum(), rel=1e-3)
    assert np.abs(np.diff(smooth)).mean() < 0.3 * np.abs(np.diff(rough)).mean()


@pytest.mark.parametrize("views", [1, 8])
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("settings", [{"backbone": "conv3"}, {"backbone": "resnet18", "normalize": True}])
def test_the_map_adds_up_to_what_the_score_exceeds_that_of_bare_skin(settings, scorer, views, monkeypatch):
    """The completeness of integrated gradients: proposition 1 of their paper. The score is the one that judges."""
    torch.manual_seed(0)
    network = build_network(image_size=32, embedding_dim=4, head=True, **settings).eval()
    pixels = lesion(32)
    [image] = show(torch.from_numpy(pixels[None]), None, network.backbone.normalize)
    images = torch.stack([bare_skin(image), image])
    with torch.no_grad():
        embeddings = torch.stack([network.embed(view) for view in flips_and_turns(images, views)]).mean(dim=0)
    if network.unit_length:
        embeddings = nn.functional.normalize(embeddings, dim=1)
    labels = np.arange(60) % 2  # bare skin lies among the benign references, the lesion among the melanomas
    spread = 0.2 * (embeddings[1] - embeddings[0]).norm().item()
    references = embeddings.numpy()[labels] + spread * np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    assert network.head is not None
    network.head.weight.data = embeddings[1:] - embeddings[:1]
    logits = network.logits(embeddings).detach()
    scores = score_all(embeddings.numpy(), logits.numpy(), references, labels)[scorer]
    monkeypatch.setitem(explain.STEPS, views, 64)  # weights that are not trained bend more along the way
    heat = heat_map(network, pixels, scorer, references, labels, views)
    assert heat.sum() == pytest.approx(scores[1] - scores[0], rel=0.05)


@pytest.mark.parametrize("settings", [{"backbone": "conv3"}, {"backbone": "resnet18", "grid": 2}])
def test_a_turned_image_has_the_turned_map_in_eight_views(settings):
    torch.manual_seed(0)
    network = build_network(image_size=64, embedding_dim=8, normalize=True, **settings)
    prototypes = np.random.default_rng(0).normal(size=(2, 8))
    heat = heat_of(network, noise(64), *prototypes, views=8)
    for turned, expected in ((np.rot90(noise(64)), np.rot90(heat)), (noise(64)[:, ::-1], heat[:, ::-1])):
        again = heat_of(network, turned, *prototypes, views=8)
        np.testing.assert_allclose(again, expected, atol=1e-3 * np.abs(heat).max())
    assert np.abs(heat - heat[:, ::-1]).max() > 0.1 * np.abs(heat).max()


def test_an_image_that_is_a_reference_itself_has_a_map():
    network = one_place()
    references = np.array([[0.1 + i / 100, 0] for i in range(60)], np.float32)  # 0.3, the image's own, is among them
    assert np.isfinite(heat_map(network, spot(), "nearest", references, np.arange(60) % 2)).all()


@pytest.mark.parametrize("backbone", ["resnet18", "test_vit"])
def test_the_network_and_the_image_are_left_as_they_were(backbone):
    network = build_network(backbone, 32, 2, dropout=0.5).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pixels = noise(32)
    first, second = (heat_of(network, pixels, BENIGN, MELANOMA) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(pixels, noise(32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
