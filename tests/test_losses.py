"""The losses against slow loops, mining, what is said of the embedding, and the sign of it all."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from dataset import sample_pairs
from melanoma.scoring.scores import score_all
from modules import (
    FOCUS,
    MEASURES,
    Conv3,
    SiameseLoss,
    SiameseNetwork,
    contrastive_terms,
    hardest,
    masked_mean,
    pair_distance,
)


def grad_of(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def random_pairs(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """First and second embeddings (n, 4) and whether they are of one label (n,)."""
    generator = torch.Generator().manual_seed(seed)
    first, second = 0.3 * torch.randn(2, n, 4, generator=generator)
    return first, second, torch.rand(n, generator=generator) < 0.5


def random_batch(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Embeddings (n, 4), logits (n,), labels (n,); whether two are of one label, and which of them meet, (n, n)."""
    generator = torch.Generator().manual_seed(seed)
    embeddings, logits = 0.3 * torch.randn(n, 4, generator=generator), torch.randn(n, generator=generator)
    met = (torch.rand(n, n, generator=generator) < 0.9).triu(1)
    labels = torch.arange(n) % 3 % 2
    return embeddings, logits, labels, labels[:, None] == labels, met | met.T


# --- contrastive ---


@pytest.mark.parametrize(
    ("distance", "same", "margin", "positive_margin", "loss"),
    [
        (0.0, True, 1.0, 0.0, 0.0),
        (0.6, True, 1.0, 0.0, 0.18),  # ½ 0.6²
        (3.0, True, 1.0, 0.0, 4.5),  # like pairs know no margin
        (0.0, False, 1.0, 0.0, 0.5),  # ½ 1²
        (0.6, False, 1.0, 0.0, 0.08),  # ½ 0.4²
        (0.6, False, 2.0, 0.0, 0.98),  # ½ 1.4²
        (1.0, False, 1.0, 0.0, 0.0),
        (3.0, False, 1.0, 0.0, 0.0),
        (0.6, True, 1.0, 0.2, 0.08),  # ½ 0.4²
        (0.2, True, 1.0, 0.2, 0.0),
        (0.1, True, 1.0, 0.2, 0.0),
        (0.6, False, 1.0, 0.2, 0.08),  # unlike pairs know no positive margin
    ],
)
def test_contrastive_loss_of_one_pair(distance, same, margin, positive_margin, loss):
    value = contrastive_terms(torch.tensor([distance]), torch.tensor([same]), margin, positive_margin)
    assert value.tolist() == pytest.approx([loss], abs=1e-6)


@pytest.mark.parametrize("margin", [0.5, 2.0])
@pytest.mark.parametrize("positive_margin", [0.0, 0.3])
def test_contrastive_loss_equals_a_slow_loop(margin, positive_margin):
    first, second, same = random_pairs(50)
    expected = []
    for a, b, alike in zip(first.tolist(), second.tolist(), same.tolist(), strict=True):
        distance = math.dist(a, b)
        expected.append(
            max(0.0, distance - positive_margin) ** 2 / 2 if alike else max(0.0, margin - distance) ** 2 / 2
        )
    terms = contrastive_terms(pair_distance(first, second), same, margin, positive_margin)
    assert terms.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_contrastive_loss_is_symmetric_in_the_pair():
    first, second, same = random_pairs(50)
    terms = [contrastive_terms(pair_distance(*pair), same, 0.5) for pair in ((first, second), (second, first))]
    assert torch.equal(*terms)


def test_gradient_of_a_pair_at_distance_0_is_0():
    first = torch.ones(2, 4, requires_grad=True)
    distance = pair_distance(first, torch.ones(2, 4))
    contrastive_terms(distance, torch.tensor([True, False]), 0.5).mean().backward()
    assert torch.equal(grad_of(first), torch.zeros(2, 4))


def test_a_gradient_step_pulls_like_pairs_together_and_pushes_unlike_ones_apart():
    first, second, same = random_pairs(200)
    margin = 0.5
    before = pair_distance(first, second)
    first.requires_grad_()
    second.requires_grad_()
    contrastive_terms(pair_distance(first, second), same, margin).mean().backward()
    after = pair_distance(first - grad_of(first), second - grad_of(second)).detach()

    inside = ~same & (before < margin)
    beyond = ~same & (before >= margin)
    assert min(same.sum(), inside.sum(), beyond.sum()) > 5
    assert (after[same] < before[same]).all()
    assert (after[inside] > before[inside]).all()
    assert torch.equal(after[beyond], before[beyond])


# --- mining and means ---


@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.77, 1.0])
def test_the_hardest_are_the_costliest_share_of_each_group(share):
    generator = torch.Generator().manual_seed(0)
    terms, groups = torch.rand(40, generator=generator), torch.rand(40, generator=generator) < 0.3
    kept = hardest(terms, (groups, ~groups), share)
    for group in (True, False):
        own = sorted(terms[groups == group].tolist(), reverse=True)
        expected = own[: math.ceil(share * len(own))]
        assert sorted(terms[kept & (groups == group)].tolist(), reverse=True) == expected


def test_of_equal_costs_at_the_border_all_are_kept():
    terms = torch.tensor([3.0, 2.0, 2.0, 1.0, 0.0, 0.0])
    groups = torch.tensor([True, True, True, True, False, False])
    assert hardest(terms, (groups, ~groups), 0.5).tolist() == [True, True, True, False, True, True]


def test_a_group_may_be_empty_and_a_term_in_none():
    of_all, of_none = torch.tensor([True, True]), torch.tensor([False, False])
    assert hardest(torch.tensor([1.0, 2.0]), (of_all, of_none), 0.5).tolist() == [False, True]
    assert hardest(torch.tensor([1.0, 2.0]), (of_none, torch.tensor([True, False])), 0.5).tolist() == [True, False]
    assert hardest(torch.zeros(2), (of_none, of_none), 1.0).tolist() == [False, False]


def test_masked_mean_by_hand():
    terms = torch.tensor([4.0, 0.0, 1.0, 0.0])
    assert float(masked_mean(terms, torch.tensor([True, True, True, True]))) == 5 / 4
    assert float(masked_mean(terms, torch.tensor([False, True, True, False]))) == 1 / 2


def test_the_mean_over_active_pairs_leaves_out_those_without_loss():
    embeddings = torch.tensor([[0.0], [0.3], [0.0], [0.1]])  # pairs (0, 2) at distance 0 and (1, 3) at 0.2, both like
    both = torch.tensor([True, True])
    means = [float(SiameseLoss(0.5, 0.0, active_only).of_pairs(embeddings, both)[0]) for active_only in (False, True)]
    assert means == pytest.approx([0.01, 0.02])


def test_the_mean_of_nothing_is_0_and_moves_nothing():
    terms = torch.ones(3, requires_grad=True)
    mean = masked_mean(terms.relu(), torch.zeros(3, dtype=torch.bool))
    mean.backward()
    assert float(mean.detach()) == 0
    assert torch.equal(grad_of(terms), torch.zeros_like(terms))


# --- head ---


def head_loss(logits: Tensor, labels: Tensor, kind: str) -> Tensor:
    return SiameseLoss(head=kind).of_head(logits, labels)


def slow_head(logits: Tensor, labels: Tensor, kind: str) -> float:
    total = 0.0
    for logit, label in zip(logits.tolist(), labels.tolist(), strict=True):
        chance = 1 / (1 + math.exp(-logit))
        right = chance if label else 1 - chance
        focus = (1 - right) ** FOCUS if kind == "focal" else 1.0
        total -= focus * math.log(right)
    return total / len(labels)


@pytest.mark.parametrize("kind", ["bce", "focal"])
def test_the_heads_loss_equals_its_formula(kind):
    _, logits, labels, *_ = random_batch(30)
    assert float(head_loss(logits, labels, kind)) == pytest.approx(slow_head(logits, labels, kind), rel=1e-5)


def test_the_heads_loss_by_hand():
    logits, labels = torch.tensor([math.log(3), 0.0, -math.log(3)]), torch.tensor([1, 0, 1])  # ¾, ½, ¼
    costs = [-math.log(0.75), -math.log(0.5), -math.log(0.25)]
    assert float(head_loss(logits, labels, "bce")) == pytest.approx(sum(costs) / 3)
    focal = (0.25**2 * costs[0] + 0.5**2 * costs[1] + 0.75**2 * costs[2]) / 3
    assert float(head_loss(logits, labels, "focal")) == pytest.approx(focal)


# --- a whole batch ---

LOSSES = [
    SiameseLoss(0.5),
    SiameseLoss(0.8, positive_margin=0.3, active_only=True),
    SiameseLoss(0.5, pair_weight=0.3, head="bce"),
    SiameseLoss(0.5, active_only=True, head="focal"),
    SiameseLoss(0.5, pair_weight=0.0, head="bce"),
]


def slow_pairs(embeddings: Tensor, labels: Tensor, met: Tensor, loss: SiameseLoss) -> list[tuple[float, bool]]:
    """Cost, and group that it is mined in, of each pair."""
    found = []
    for i, j in met.triu().nonzero().tolist():
        distance, same = (math.dist(embeddings[i].tolist(), embeddings[j].tolist()), bool(labels[i] == labels[j]))
        gap = distance - loss.positive_margin if same else loss.margin - distance
        found.append((max(0.0, gap) ** 2 / 2, same))
    return found


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
@pytest.mark.parametrize("mined_share", [1.0, 0.3])
def test_the_loss_of_a_batch_equals_a_slow_loop(loss, mined_share):
    embeddings, logits, labels, same, met = random_batch(seed=3)
    embeddings /= 2  # near enough that of the unlike pairs more than the mined ones cost something
    parts = slow_pairs(embeddings, labels, met, loss)
    mined = []
    for group in (True, False):
        own = sorted((part for part in parts if part[1] is group), reverse=True)
        mined += own[: math.ceil(mined_share * len(own))]
    costs = [cost for cost, _ in mined]
    counted = [cost for cost in costs if cost > 1e-9 or not loss.active_only]
    expected = loss.pair_weight * sum(costs) / len(counted)
    if loss.head != "none":
        expected += slow_head(logits, labels, loss.head)
    value, _ = loss(embeddings, logits, labels, same, met, mined_share)
    assert value.shape == ()
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
@pytest.mark.parametrize("mined_share", [1.0, 0.3])
def test_independent_pairs_cost_what_they_do_among_all(loss, mined_share):
    embeddings, logits, labels, same, _ = random_batch(seed=4)
    pairs = torch.arange(6), torch.arange(6, 12)
    met = torch.zeros(12, 12, dtype=torch.bool)
    met[pairs] = met.T[pairs] = True
    own = loss(embeddings, logits, labels, same[pairs], None, mined_share)
    for value, among_all in zip(own, loss(embeddings, logits, labels, same, met, mined_share), strict=True):
        torch.testing.assert_close(value, among_all)


def test_a_pair_that_is_not_mined_moves_nothing():
    # on a line: of the like pairs 0-1 is near and 2-3 far, of the unlike ones 1-2 is nearest
    embeddings = torch.tensor([[0.0], [0.1], [0.3], [5.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1])
    batch = (embeddings, torch.zeros(4), labels, labels[:, None] == labels, ~torch.eye(4, dtype=torch.bool))
    for share, moved in ((1e-6, [False, True, True, True]), (1.0, [True] * 4)):
        embeddings.grad = None
        SiameseLoss(1.0)(*batch, share)[0].backward()
        assert (grad_of(embeddings)[:, 0] != 0).tolist() == moved


def test_measures_say_what_the_embedding_looks_like():
    embeddings = torch.tensor([[0.0, 0.0], [0.3, 0.4], [3.0, 4.0], [3.0, 4.0]])
    labels, met = torch.tensor([0, 0, 1, 1]), torch.zeros(4, 4, dtype=torch.bool)
    # like: 0-1 at 0.5 and 2-3 at 0; unlike: 0-2 at 5 and 1-2 at 4.5, of margin 4.8
    met[[0, 0, 1, 2], [1, 2, 2, 3]] = True
    _, measures = SiameseLoss(4.8)(embeddings, torch.zeros(4), labels, labels[:, None] == labels, met)
    spread = math.sqrt(np.var([0, 0.3, 3, 3]) + np.var([0, 0.4, 4, 4]))
    assert dict(zip(MEASURES, measures.tolist(), strict=True)) == pytest.approx(
        {"like_distance": 0.25, "unlike_distance": 4.75, "active_share": 2 / 4, "spread": spread}
    )


def test_measures_are_of_all_pairs_whatever_the_loss_and_have_no_gradient():
    batch = random_batch()
    batch[0].requires_grad_()
    results = [SiameseLoss(0.5)(*batch)[1]]
    results.append(SiameseLoss(0.5, head="bce")(*batch, 0.1)[1])
    assert torch.equal(results[0], results[1])
    assert not results[0].requires_grad


def test_the_loss_takes_same_from_the_batch_not_from_the_labels():
    embeddings, logits, labels, same, met = random_batch()
    turned, _ = SiameseLoss(0.5)(embeddings, logits, labels, ~same, met)
    distance = pair_distance(embeddings[:, None], embeddings)
    assert float(turned) == pytest.approx(float(contrastive_terms(distance, ~same, 0.5)[met].mean()))


def test_an_embedding_on_one_point_has_collapsed():
    batch = random_batch()
    loss = SiameseLoss(0.5)
    for scale, collapsed in ((1.0, False), (0.1, False), (1e-3, True), (0.0, True)):
        _, measures = loss(scale * batch[0], *batch[1:])
        assert loss.collapsed(float(measures[MEASURES.index("unlike_distance")])) is collapsed
    assert loss.collapsed(0.0049) and not loss.collapsed(0.0051)  # a hundredth of the margin
    assert not SiameseLoss(pair_weight=0.0, head="bce").collapsed(0.0)  # nothing holds it apart


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
def test_a_loss_a_million_times_that_of_one_point_has_diverged(loss):
    embeddings, logits, labels, same, met = random_batch()
    value, _ = loss(torch.ones_like(embeddings), torch.zeros_like(logits), labels, torch.zeros_like(same), met)
    focal = 0.75 * math.log(2) if loss.head == "focal" else 0.0  # at even odds it costs a quarter of cross-entropy
    assert loss.on_one_point == pytest.approx(float(value) + focal)
    assert not loss.diverged(0.9e6 * loss.on_one_point) and loss.diverged(1.1e6 * loss.on_one_point)
    assert loss.diverged(math.inf)


@pytest.mark.parametrize("loss", LOSSES, ids=range(len(LOSSES)))
@pytest.mark.parametrize("mined_share", [1.0, 0.3])
def test_a_batch_on_one_point_has_a_finite_gradient(loss, mined_share):
    embeddings, *others = random_batch()
    embeddings = torch.ones_like(embeddings).requires_grad_()
    value, _ = loss(embeddings, *others, mined_share)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(grad_of(embeddings)).all()


# --- the sign, end to end ---

SIDE = 16


def draw_lesions(n_benign: int, n_melanoma: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Dark spots on skin of varying tone: round (benign) or drawn out (melanoma), of one area."""
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [n_benign, n_melanoma])
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    images = np.empty((len(labels), 3, SIDE, SIDE), np.float32)
    for image, label in zip(images, labels, strict=True):
        skin, spot = rng.uniform(0.5, 0.9), rng.uniform(0.1, 0.4)
        right, down = x - rng.uniform(-0.1, 0.1), y - rng.uniform(-0.1, 0.1)
        radius, turn, ratio = rng.uniform(0.2, 0.3), rng.uniform(0, np.pi), 0.45 if label else 1.0
        long, short = np.cos(turn) * right + np.sin(turn) * down, np.cos(turn) * down - np.sin(turn) * right
        inside = long**2 * ratio + short**2 / ratio < radius**2
        image[:] = np.where(inside, spot, skin) + rng.normal(0, 0.05, image.shape)
    return torch.from_numpy(images.clip(0, 1) * 2 - 1), labels


def train_and_measure(seed: int, inverted: bool) -> tuple[float, float, float]:
    """Return mean distance of like and of unlike pairs, and AUC, on lesions that were not trained on."""
    images, labels = draw_lesions(128, 32, seed)
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    network = SiameseNetwork(Conv3(SIDE), 16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(8):
        pairs, same = sample_pairs(labels, rng)
        for start in range(0, len(pairs), 32):
            first, second = pairs[start : start + 32].T
            alike = torch.from_numpy(same[start : start + 32])
            optimizer.zero_grad()
            distance = pair_distance(network.embed(images[first]), network.embed(images[second]))
            contrastive_terms(distance, ~alike if inverted else alike, 0.5).mean().backward()
            optimizer.step()

    held_out, truth = draw_lesions(70, 30, seed + 1000)
    with torch.no_grad():
        embeddings, references = network.embed(held_out), network.embed(images)
    first, second = np.triu_indices(len(truth), 1)
    apart = pair_distance(embeddings[first], embeddings[second]).numpy()
    same = truth[first] == truth[second]
    scores = score_all(embeddings.numpy(), None, references.numpy(), labels)["distance"]
    return apart[same].mean(), apart[~same].mean(), roc_auc_score(truth, scores)


@pytest.mark.parametrize("seed", [0, 1])
def test_like_lesions_are_closer_than_unlike_ones_after_training(seed):
    like, unlike, auc = train_and_measure(seed, inverted=False)
    assert like < 0.6 * unlike
    assert auc > 0.9

    # the first published attempt's fault: 1 meant "same" in its data set and "different" in its loss
    like, unlike, inverted_auc = train_and_measure(seed, inverted=True)
    assert like > 0.9 * unlike
    assert inverted_auc < auc - 0.2
