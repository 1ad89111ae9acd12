"""Cards and the gallery of errors show what they were given, and draw any name."""

import numpy as np
import pytest
from conftest import save, titles_of
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color, to_rgba
from matplotlib.figure import Figure

from melanoma.report.lesions import Neighbour, confident_errors, error_gallery, heat_overlay, lesion_card
from melanoma.report.new_lesions import describe_verdict
from melanoma.report.style import BENIGN, GREY, MELANOMA, one_line

WHAT = "test: 8 images, 3 melanoma"
VERDICT = ["called melanoma", "probability 0.310", "", "familiarity 50.0 %"]
ORIGIN = "run runs/demo, generated images"
HEAT = np.eye(4)


def grey(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


def neighbours(prefix: str, count: int) -> list[Neighbour]:
    return [(f"{prefix}{i}", grey(10 * i), 0.25 * i) for i in range(count)]


def card(heat: np.ndarray = HEAT, benign: int = 5) -> Figure:
    return lesion_card("photo.jpg", ORIGIN, grey(200), heat, VERDICT, neighbours("M", 5), neighbours("B", benign))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def test_a_card_names_the_lesion_the_verdict_and_all_neighbours_with_their_distances():
    figure = card()
    explained = "by distance in the embedding: small = alike"
    assert titles_of(figure) == [
        "photo.jpg",
        ORIGIN,
        "called melanoma",
        "probability 0.310\n\nfamiliarity 50.0 %",
        *("nearest melanomas of the training part", explained),
        *("nearest benign lesions of the training part", explained),
    ]
    assert [text.get_text() for text in figure.axes[2].texts] == ["for benign", "for melanoma"]
    assert titles(figure) == [
        "lesion",
        "evidence (integrated gradients)",
        *(f"M{i}\ndistance {0.25 * i:.3f}" for i in range(5)),
        *(f"B{i}\ndistance {0.25 * i:.3f}" for i in range(5)),
    ]


def test_images_are_those_of_their_titles_and_framed_in_the_colour_of_their_class():
    figure = card()
    for axes in figure.axes:
        kind, number = axes.get_title()[:1], axes.get_title()[1:2]
        if kind in ("M", "B"):
            assert (np.asarray(axes.images[0].get_array()) == 10 * int(number)).all()
            frame = axes.spines["left"].get_edgecolor()
            assert same_color(frame, MELANOMA if kind == "M" else BENIGN)
    assert (np.asarray(figure.axes[0].images[0].get_array()) == 200).all()


def test_the_heat_is_opaque_where_it_is_strong_and_coloured_by_its_sign():
    pixels = np.full((2, 2, 3), (180, 200, 220), np.uint8)  # mean 200
    drawn = heat_overlay(pixels, np.array([[2.0, 1.0], [0.0, -1.0]]))
    for place, opacity, colour in (((0, 0), 0.85, MELANOMA), ((0, 1), 0.425, MELANOMA), ((1, 1), 0.425, BENIGN)):
        expected = opacity * 255 * np.array(to_rgba(colour)[:3]) + (1 - opacity) * 200
        np.testing.assert_allclose(drawn[place], expected, atol=0.5)
    assert (drawn[1, 0] == 200).all()


def test_the_heat_map_is_drawn_at_the_resolution_of_the_lesion():
    figure = card(heat=np.array([[2.0, 1.0], [0.0, -1.0]]))
    [drawn] = figure.axes[1].images
    expected = heat_overlay(grey(200), np.array([[2.0, 1.0], [0.0, -1.0]]))
    assert expected.shape == (8, 8, 3)
    np.testing.assert_array_equal(np.asarray(drawn.get_array()), expected)


def test_only_the_first_sentence_of_the_verdict_is_bold_and_black():
    headline, body = card().texts[2:4]
    assert (headline.get_fontweight(), headline.get_color()) == ("bold", "black")
    assert (body.get_fontweight(), body.get_color()) == ("normal", GREY)


def test_a_card_without_neighbours_is_its_upper_part_alone():
    whole = card()
    alone = lesion_card("photo.jpg", ORIGIN, grey(200), np.eye(4), VERDICT, [], [])
    assert len(alone.axes) == 3  # lesion, heat map, colour bar
    assert titles_of(alone) == titles_of(whole)[:4]
    heights = [figure.get_size_inches()[1] for figure in (whole, alone)]
    for ours, theirs in zip(alone.axes, whole.axes, strict=False):  # as far from the upper edge, and as large
        for edge in ("y0", "y1"):
            places = [(1 - getattr(axes.get_position(True), edge)) for axes in (theirs, ours)]
            assert places[1] * heights[1] == pytest.approx(places[0] * heights[0])
    assert heights[1] < heights[0] / 2


def test_a_class_with_few_references_has_a_shorter_row():
    assert sum(title.startswith("B") for title in titles(card(benign=2))) == 2


@pytest.mark.parametrize(
    ("name", "heat"),
    [
        ("$x_1$ 100 %.jpg", np.eye(4)),
        ("a, \"b\" 'c'.png", np.zeros((4, 4))),
        ("皮膚\n\t.jpg", np.eye(4) - 0.5),
        ("ä" * 300, -np.eye(4)),
        ("$", np.eye(4)),
    ],
)
def test_a_card_of_any_name_and_heat_is_drawn(tmp_path, name, heat):
    figure = lesion_card(name, name, grey(0), heat, VERDICT, [(name, grey(1), 0.0)], neighbours("B", 5))
    image = save(figure, tmp_path / "card.png")
    assert image.size == (1500, 1410)
    assert image.convert("L").getextrema() == (0, 255)


def test_texts_are_shortened_in_their_middle_and_odd_characters_replaced():
    assert one_line("abc.jpg", 7) == "abc.jpg"
    assert one_line("abcdefghij", 6) == "ab…hij"
    assert one_line("ä皮\n$", 10) == "ä??$"
    assert all(len(one_line("x" * 50, most)) == most for most in (5, 6, 49, 50))


@pytest.mark.parametrize("familiarity", [0.0, 1.0])
@pytest.mark.parametrize("count", [5, 0])
def test_no_text_of_a_card_covers_another_or_leaves_it(familiarity, count):
    row = {"decision": "melanoma", "probability": 0.3, "threshold": 0.1, "known": True, "nearest_label": 1}
    long = describe_verdict({**row, "nearest_distance": 12.345, "familiarity": familiarity}, alone=False)
    neighbours = [("ISIC_0000000_downsampled_more", grey(1), 12.345)] * count
    figure = lesion_card("name" * 40, "runs/" * 40, grey(0), np.eye(4), long, neighbours, neighbours)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    shown = [*figure.texts, *(text for axes in figure.axes for text in (axes.title, *axes.texts))]
    boxes = [text.get_window_extent(renderer) for text in shown if text.get_text()]
    for i, box in enumerate(boxes):
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:i])


# --- errors ---


def test_confident_errors_are_ordered_by_how_wrong_they_are():
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    probabilities = np.array([0.4, 0.1, 0.9, 0.2, 0.6, 0.95, 0.1, 0.7])
    assert confident_errors(labels, probabilities, 0.5).tolist() == [1, 3, 0, 5, 7, 4]
    thresholds = np.array([0.3, 0.5, 0.5, 0.5, 0.65, 0.5, 0.05, 0.5])
    assert confident_errors(labels, probabilities, thresholds).tolist() == [1, 3, 5, 7, 6]


def test_at_most_six_errors_of_either_kind_are_returned():
    probabilities = np.append(np.arange(8) / 100, 0.9)
    assert confident_errors(np.append(np.ones(8, int), 0), probabilities, 0.5).tolist() == [0, 1, 2, 3, 4, 5, 8]


def test_a_probability_at_the_threshold_is_called_melanoma():
    assert confident_errors(np.array([0, 1]), np.array([0.5, 0.5]), 0.5).tolist() == [0]


def test_error_gallery_shows_each_image_with_its_name_and_probability(tmp_path):
    images = [np.full((4, 4, 3), shade, np.uint8) for shade in (10, 20, 30)]
    figure = error_gallery(
        images,
        np.array([1, 1, 0]),
        np.array([0.0123, 0.2, 0.987]),
        ["ISIC_1", "a_name_that_is_far_too_long", "a$b$"],
        {"fn": 14, "fp": 1},
        WHAT,
    )
    assert titles_of(figure) == ["Most confident errors", WHAT]
    missed, alarms = figure.subfigs
    assert missed.get_suptitle() == "14 false negatives (melanomas called benign); the 2 of lowest probability"
    assert alarms.get_suptitle() == "1 false positive (benign lesions called melanoma); the 1 of highest probability"
    assert [axes.get_title() for axes in missed.axes[:3]] == ["ISIC_1\np = 0.0123", "a_name_t…too_long\np = 0.2", ""]
    assert alarms.axes[0].get_title() == "a$b$\np = 0.987"
    shown = [np.asarray(axes.images[0].get_array())[0, 0, 0] for axes in figure.axes if axes.images]
    assert shown == [10, 20, 30]
    assert save(figure, tmp_path / "errors.png").width == 1440


def test_a_set_without_errors_says_so(tmp_path):
    figure = error_gallery([], np.array([], int), np.array([]), [], {"fn": 0, "fp": 0}, WHAT)
    assert [row.get_suptitle() for row in figure.subfigs] == [
        "0 false negatives (melanomas called benign)",
        "0 false positives (benign lesions called melanoma)",
    ]
    save(figure, tmp_path / "none.png")
