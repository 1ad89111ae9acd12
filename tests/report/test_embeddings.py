"""Maps of embeddings and distances of pairs show what they were given."""

from typing import Any

import numpy as np
import pytest
from conftest import points_of, save, titles_of
from matplotlib.colors import same_color
from scipy.special import logit
from test_curves import LABELS, SCORES, WHAT, legend_texts

from melanoma.report import embeddings, style

POINTS = np.arange(16.0).reshape(8, 2)


def a_map():
    return embeddings.tsne_map(POINTS, LABELS, WHAT)


def test_pair_distances_are_shares_of_their_kind_with_the_margin():
    same = np.array([True, True, True, False, False])
    figure = embeddings.pair_distances(np.array([0.1, 0.2, 0.3, 0.6, 0.8]), same, 0.5, WHAT)
    axes = figure.axes[0]
    patches: Any = axes.patches
    for patch, values, colour in zip(
        patches, ([0.1, 0.2, 0.3], [0.6, 0.8]), (style.SAME, style.DIFFERENT), strict=True
    ):
        corners = patch.get_xy()
        assert corners[:, 1].max() == pytest.approx(1 / len(values))
        high = corners[corners[:, 1] > 0][:, 0]
        assert all(np.abs(high - value).min() < 0.02 for value in values)
        assert same_color(patch.get_edgecolor(), colour)
    [margin] = axes.lines
    assert points_of(margin)[:, 0].tolist() == [0.5, 0.5]
    assert legend_texts(figure) == [
        "same-class pairs (3, median 0.200)",
        "different-class pairs (2, median 0.700)",
        "margin 0.5",
    ]


def test_pairs_of_no_distance_are_drawn(tmp_path):
    figure = embeddings.pair_distances(np.zeros(3), np.arange(3) > 0, 0.5, WHAT)
    assert legend_texts(figure) == [
        "same-class pairs (2, median 0.000)",
        "different-class pairs (1, median 0.000)",
        "margin 0.5",
    ]
    save(figure, tmp_path / "figure.png")


def test_tsne_draws_melanomas_last_and_counts_both():
    benign, melanoma = a_map().axes[0].collections
    assert points_of(benign).tolist() == POINTS[LABELS == 0].tolist()
    assert points_of(melanoma).tolist() == POINTS[LABELS == 1].tolist()
    assert melanoma.get_zorder() >= benign.get_zorder()  # equal ones are drawn in their order
    assert same_color(np.asarray(benign.get_facecolor()).tolist()[0][:3], style.BENIGN)
    assert same_color(np.asarray(melanoma.get_facecolor()).tolist()[0][:3], style.MELANOMA)
    assert legend_texts(a_map()) == ["benign (5)", "melanoma (3)"]


def test_the_legend_hides_no_point_of_a_tsne_map():
    figure = a_map()
    figure.draw_without_rendering()
    axes = figure.axes[0]
    [legend] = (legend.get_window_extent() for legend in figure.legends)
    assert not legend.overlaps(axes.get_window_extent())
    assert not legend.overlaps(axes.xaxis.label.get_window_extent())
    assert figure.bbox.contains(*legend.min) and figure.bbox.contains(*legend.max)


def test_tsne_of_one_class_is_drawn():
    figure = embeddings.tsne_map(POINTS, np.zeros(8, int), "benign alone")
    assert legend_texts(figure) == ["benign (8)", "melanoma (0)"]


def test_tsne_panels_colour_by_class_probability_and_size_with_melanomas_on_top():
    megapixels = np.array([1, 24, 1, 2, 24, 1, 4, 2])
    figure = embeddings.tsne_panels(POINTS, LABELS, SCORES, megapixels, WHAT)
    by_class, by_score, by_size = figure.axes[:3]
    assert titles_of(figure) == ["t-SNE of the embeddings in three colourings", WHAT]
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "class",
        "probability of melanoma",
        "source image, megapixels",
    ]
    assert same_color(np.asarray(by_class.collections[1].get_facecolor()).tolist()[0][:3], style.MELANOMA)
    for axes, values in ((by_score, logit(SCORES)), (by_size, np.log10(megapixels))):
        benign, melanoma = axes.collections
        for drawn, label in ((benign, 0), (melanoma, 1)):
            own = label == LABELS
            assert points_of(drawn).tolist() == POINTS[own].tolist()
            np.testing.assert_allclose(np.asarray(drawn.get_array()), values[own])
            assert drawn.get_clim() == pytest.approx((values.min(), values.max()))  # one scale for both
        assert melanoma.get_zorder() >= benign.get_zorder()
        assert (np.max(benign.get_linewidth()), np.min(melanoma.get_linewidth()) > 0) == (0, True)  # ringed
    for below, ends in ((figure.axes[4], ("0.02", "0.7")), (figure.axes[5], ("1", "24"))):
        ticks = [text.get_text() for text in below.get_xticklabels()]
        assert (ticks[0], ticks[-1]) == ends
    legend: Any = figure.axes[3].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["benign (5)", "melanoma (3)"]


@pytest.mark.parametrize("probabilities", [SCORES, np.full(8, 0.3), np.arange(8) % 2.0])
def test_tsne_panels_of_any_probabilities_are_drawn(probabilities):
    for labels in (LABELS, np.zeros(8, int)):
        embeddings.tsne_panels(POINTS, labels, probabilities, np.ones(8), WHAT).draw_without_rendering()


def test_images_of_one_size_have_one_colour_whatever_their_class_and_no_scale():
    figure = embeddings.tsne_panels(POINTS, LABELS, SCORES, np.ones(8), WHAT)
    figure.draw_without_rendering()
    colours = np.concatenate([drawn.get_facecolor() for drawn in figure.axes[2].collections])
    assert len(colours) == 8 and len(np.unique(colours, axis=0)) == 1
    below = figure.axes[5]
    assert not below.axison and [text.get_text() for text in below.texts] == ["all images: 1"]


def test_one_image_has_a_map(tmp_path):
    save(embeddings.tsne_panels(POINTS[:1], LABELS[:1], SCORES[:1], np.ones(1), WHAT), tmp_path / "map.png")
