"""Subgroups, errors and coloured maps show what they were given, and name what could not be computed."""

import numpy as np
import pytest
from conftest import points_of, save
from matplotlib.colors import same_color
from scipy.special import logit

from melanoma.report import galleries
from melanoma.report import style as figures

WHAT = "test: 8 images, 3 melanoma"
LABELS = np.array([0, 0, 1, 0, 1, 1, 0, 0])
SCORES = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.65, 0.02])
POINTS = np.arange(16.0).reshape(8, 2)
ROWS = [
    {
        "attribute": "sex",
        "group": "female",
        "n": 1200,
        "n_melanoma": 80,
        "auc": 0.81,
        "auc_interval": [0.75, 0.86],
    },
    {"attribute": "sex", "group": "male", "n": 1300, "n_melanoma": 90, "auc": 0.79, "auc_interval": None},
    {
        "attribute": "site",
        "group": "soles $x",
        "n": 40,
        "n_melanoma": 2,
        "auc": None,
        "auc_interval": None,
        "note": "2 melanomas: too few",
    },
    {"attribute": "site", "group": "oral", "n": 3, "n_melanoma": 0, "auc": None},
]


def texts_of(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


# --- forest ---


def test_forest_shows_each_group_with_its_interval_and_counts():
    figure = galleries.forest(ROWS, 0.8, WHAT)
    axes, table = figure.axes
    assert figure.get_suptitle() == f"AUC of subgroups\n{WHAT}"
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "sex",
        "female",
        "male",
        "site",
        "soles $x",
        "oral",
    ]
    chance, overall, female, interval, male = axes.lines
    assert (points_of(chance)[0, 0], points_of(overall)[0, 0]) == (0.5, 0.8)
    assert points_of(female).tolist() == [[0.81, 1]]
    assert points_of(interval).tolist() == [[0.75, 1], [0.86, 1]]
    assert points_of(male).tolist() == [[0.79, 2]]
    assert texts_of(table)[2:] == [
        "1,200 / 80",
        "0.810 (0.750 to 0.860)",
        "1,300 / 90",
        "0.790",
        "40 / 2",
        "not computed",
        "3 / 0",
        "not computed",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["chance", "all images: 0.800"]


def test_groups_too_small_are_named_in_grey_with_the_reason():
    axes, table = galleries.forest(ROWS, 0.8, WHAT).axes
    assert texts_of(axes) == ["2 melanomas: too few", "too few images"]
    colours = [label.get_color() for label in axes.get_yticklabels()]
    assert colours == ["black", "black", "black", "black", figures.GREY, figures.GREY]
    assert [text.get_color() for text in table.texts if "/" in text.get_text()][1:] == [
        "black",
        "black",
        figures.GREY,
        figures.GREY,
    ]


@pytest.mark.parametrize("rows", [[], ROWS[:1], ROWS[2:], ROWS * 8])
def test_forest_of_any_length_is_drawn(tmp_path, rows):
    image = save(galleries.forest(rows, None, WHAT), tmp_path / "forest.png")
    assert image.width == 1440
    assert image.height == pytest.approx(
        150 * (1.9 + 0.3 * (len(rows) + len(rows) // 2 + len(rows) % 2)), abs=1
    )


def test_an_interval_below_chance_is_within_the_axes():
    row = {**ROWS[0], "auc": 0.4, "auc_interval": [0.2, 0.6]}
    assert galleries.forest([row], None, WHAT).axes[0].get_xlim()[0] < 0.2


# --- errors ---


def test_confident_errors_are_ordered_by_how_wrong_they_are():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    probabilities = np.array([0.4, 0.1, 0.9, 0.2, 0.6, 0.95, 0.1, 0.7])
    assert galleries.confident_errors(labels, probabilities, 0.5).tolist() == [1, 3, 0, 5, 7, 4]
    assert galleries.confident_errors(labels, probabilities, 0.5, most=1).tolist() == [1, 5]
    thresholds = np.array([0.3, 0.5, 0.5, 0.5, 0.65, 0.5, 0.05, 0.5])
    assert galleries.confident_errors(labels, probabilities, thresholds).tolist() == [1, 3, 5, 7, 6]


def test_a_probability_at_the_threshold_is_called_melanoma():
    assert galleries.confident_errors(np.array([0, 1]), np.array([0.5, 0.5]), 0.5).tolist() == [0]


def test_error_gallery_shows_each_image_with_its_name_and_probability(tmp_path):
    images = [np.full((4, 4, 3), shade, np.uint8) for shade in (10, 20, 30)]
    figure = galleries.error_gallery(
        images,
        np.array([1, 1, 0]),
        np.array([0.0123, 0.2, 0.987]),
        ["ISIC_1", "a_name_that_is_far_too_long", "a$b$"],
        {"fn": 14, "fp": 1},
        WHAT,
    )
    assert figure.get_suptitle() == f"Most confident errors\n{WHAT}"
    missed, alarms = figure.subfigs
    assert missed.get_suptitle() == "14 melanomas missed; the 2 of lowest probability"
    assert alarms.get_suptitle() == "1 benign lesions called melanoma; the 1 of highest probability"
    assert [axes.get_title() for axes in missed.axes[:3]] == [
        "ISIC_1\np = 0.0123",
        "a_name_t…too_long\np = 0.2",
        "",
    ]
    assert alarms.axes[0].get_title() == "a$b$\np = 0.987"
    shown = [np.asarray(axes.images[0].get_array())[0, 0, 0] for axes in figure.axes if axes.images]
    assert shown == [10, 20, 30]
    assert save(figure, tmp_path / "errors.png").width == 1440


def test_a_set_without_errors_says_so(tmp_path):
    figure = galleries.error_gallery([], np.array([], int), np.array([]), [], {"fn": 0, "fp": 0}, WHAT)
    assert [row.get_suptitle() for row in figure.subfigs] == [
        "0 melanomas missed",
        "0 benign lesions called melanoma",
    ]
    save(figure, tmp_path / "none.png")


# --- maps ---


def test_tsne_panels_colour_by_class_probability_and_size_with_melanomas_on_top():
    pixels = np.array([1e6, 24e6, 1e6, 2e6, 24e6, 1e6, np.nan, 2e6])
    figure = galleries.tsne_panels(POINTS, LABELS, SCORES, pixels, WHAT)
    by_class, by_score, by_size = figure.axes[:3]
    assert figure.get_suptitle() == f"t-SNE of the embeddings\n{WHAT}"
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "by class",
        "by probability of melanoma",
        "by source size, megapixels",
    ]
    assert same_color(np.asarray(by_class.collections[1].get_facecolor()).tolist()[0][:3], figures.MELANOMA)
    for axes, values, known in (
        (by_score, logit(SCORES), np.ones(8, bool)),
        (by_size, np.log10(pixels / 1e6), np.isfinite(pixels)),
    ):
        benign, melanoma = axes.collections[-2:]
        for drawn, label in ((benign, 0), (melanoma, 1)):
            own = known & (label == LABELS)
            assert points_of(drawn).tolist() == POINTS[own].tolist()
            np.testing.assert_allclose(np.asarray(drawn.get_array()), values[own])
            assert drawn.get_clim() == pytest.approx(
                (np.nanmin(values), np.nanmax(values))
            )  # one scale for both
        assert melanoma.get_zorder() >= benign.get_zorder()
        assert (np.max(benign.get_linewidth()), np.min(melanoma.get_linewidth()) > 0) == (0, True)  # ringed
    assert points_of(by_size.collections[0]).tolist() == [POINTS[6].tolist()]
    legend = by_size.get_legend()
    assert legend and [text.get_text() for text in legend.get_texts()] == ["not known"]
    ticks = [text.get_text() for text in figure.axes[3].get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("0.02", "0.7")
    ticks = [text.get_text() for text in figure.axes[4].get_xticklabels()]
    assert (ticks[0], ticks[-1]) == ("1", "24")


@pytest.mark.parametrize("pixels", [None, np.full(8, 1e6)])
@pytest.mark.parametrize("probabilities", [SCORES, np.full(8, 0.3), np.arange(8) % 2.0])
def test_tsne_panels_are_drawn_whatever_is_known(pixels, probabilities):
    for labels in (LABELS, np.zeros(8, int)):
        galleries.tsne_panels(POINTS, labels, probabilities, pixels, WHAT).draw_without_rendering()


def test_images_of_one_size_have_one_colour_whatever_their_class():
    figure = galleries.tsne_panels(POINTS, LABELS, SCORES, np.full(8, 1e6), WHAT)
    figure.draw_without_rendering()
    colours = np.concatenate([drawn.get_facecolor() for drawn in figure.axes[2].collections])
    assert len(colours) == 8 and len(np.unique(colours, axis=0)) == 1


def test_one_image_has_a_map(tmp_path):
    save(galleries.tsne_panels(POINTS[:1], LABELS[:1], SCORES[:1], None, WHAT), tmp_path / "map.png")
