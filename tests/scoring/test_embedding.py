"""embedding.py: embeddings do not depend on the batches."""

import numpy as np
import pytest
import torch
from conftest import build_network

from melanoma.data.augment import show
from melanoma.data.feed import Feed
from melanoma.scoring.embedding import embed_images
from modules import SiameseNetwork

CPU = torch.device("cpu")


@pytest.fixture
def network() -> SiameseNetwork:
    return with_head()


def with_head(normalize: bool = False) -> SiameseNetwork:
    """A network whose head, which starts at 0, has learnt something."""
    torch.manual_seed(0)
    network = build_network("conv3", 32, 8, normalize=normalize, head=True)
    assert network.head is not None
    torch.nn.init.normal_(network.head.weight)
    return network


@pytest.mark.parametrize("batch_size", [1, 4, 10, 256])
def test_embeddings_are_the_networks_own_in_order_whatever_the_batch(cache, network, batch_size):
    rows = np.array([3, 11, 0, 3, 5, 1, 2, 9, 8, 7])
    result = embed_images(network, Feed(cache, CPU), rows, torch.float32, batch_size=batch_size)
    with torch.no_grad():
        expected = network(show(torch.from_numpy(cache.pixels[rows]), None, network.backbone.normalize))
    for own, theirs in zip(result, expected, strict=True):
        assert isinstance(own, np.ndarray)
        assert own.dtype == np.float32
        np.testing.assert_allclose(own, theirs.numpy(), atol=1e-5)
    assert np.ptp(result[1]) > 0  # a head that says something


@pytest.mark.parametrize("unit_length", [False, True])
def test_eight_views_are_the_mean_over_all_flips_and_turns(cache, unit_length):
    network = with_head(normalize=unit_length)
    embeddings, logits = embed_images(network, Feed(cache, CPU), np.arange(12), torch.float32, views=8)
    once, _ = embed_images(network, Feed(cache, CPU), np.arange(12), torch.float32)
    for pixels, embedding, logit in zip(cache.pixels, embeddings, logits, strict=True):
        turned = [np.rot90(side, k) for side in (pixels, pixels[:, ::-1]) for k in range(4)]
        with torch.no_grad():
            own, odds = network(show(torch.from_numpy(np.stack(turned)), None, network.backbone.normalize))
        mean = own.numpy().mean(axis=0)
        expected = mean / np.linalg.norm(mean) if unit_length else mean
        np.testing.assert_allclose(embedding, expected, atol=1e-5)
        assert logit == pytest.approx(float(odds.mean()), abs=1e-5)
    assert np.abs(embeddings - once).max() > 1e-3


def test_embedding_leaves_no_trace_in_the_network(cache, network):
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    embed_images(network, Feed(cache, CPU), np.arange(12), torch.float32)
    assert all(torch.equal(weight, before[name]) for name, weight in network.state_dict().items())
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_images_are_embedded_without_chance_after_training(cache):
    network = build_network("conv3", 32, 8, dropout=0.5)
    network.train()
    once, again = (embed_images(network, Feed(cache, CPU), np.arange(12), torch.float32)[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert np.ptp(once) > 0


def test_bfloat16_embeddings_are_close_and_float32(cache, network):
    exact, rough = (
        embed_images(network, Feed(cache, CPU), np.arange(12), dtype)[0] for dtype in (torch.float32, torch.bfloat16)
    )
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max() < 0.05


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_embeds_as_the_cpu_does(cache, network):
    rows, cuda = np.arange(12), torch.device("cuda")
    expected = embed_images(network, Feed(cache, CPU), rows, torch.float32)
    result = embed_images(network.to(cuda), Feed(cache, cuda), rows, torch.float32, batch_size=5)
    for own, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(own, theirs, atol=1e-3)
