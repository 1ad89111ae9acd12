"""The report holds every figure that there is, says why one is missing, escapes all, and fetches nothing."""

import base64
import copy
import html
import os
import re
import struct
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from conftest import CHROMIUM
from PIL import Image

from melanoma.report import model_card, tables
from melanoma.report import page as report

EVIL = "<script>alert('x')</script>\" onload=\"x"
METRICS = {
    "set": "test",
    "origin": "SYNTHETIC images · run siamese · recipe demo · data demo/train · 2026-11-27",
    "n": 961,
    "n_melanoma": 79,
    "n_patients": 402,
    "n_groups": 402,
    "n_without_id": 0,
    "auc": 0.8123,
    "auc_interval": [0.7701, 0.8502],
    "average_precision": 0.3,
    "partial_auc": 0.1234,
    "accuracy": 0.701,
    "always_benign_accuracy": 0.9178,
    "balanced_accuracy": 0.75,
    "precision": 0.181,
    "npv": None,
    "flag_rate": 0.35,
    "sensitivity": 0.8481,
    "specificity": 0.6871,
    "f1": 0.298,
    "mcc": 0.27,
    "brier": 0.06612,
    "ece": 0.0213,
    "calibration_slope": 0.95,
    "threshold": 0.07251,
    "counts": {"tp": 67, "fp": 276, "tn": 606, "fn": 12},
    "sensitivity_at_specificity": {"80%": 0.69, "90%": 0.5321, "95%": None},
    "specificity_at_sensitivity": {"80%": 0.71, "90%": 0.55, "95%": 0.41},
    "rates": {
        "sensitivity": {"value": 0.8481, "hits": 67, "of": 79, "wilson": [0.7532, 0.9111]},
        "specificity": {"value": 0.6871, "hits": 606, "of": 882, "wilson": [0.6557, 0.7168]},
    },
    "at_specific_threshold": {
        "sensitivity": {"value": 0.519, "hits": 41, "of": 79, "wilson": [0.411, 0.626]},
        "specificity": {"value": 0.907, "hits": 800, "of": 882, "wilson": [0.886, 0.924]},
    },
    "at_prevalence": {"1.76%": {"precision": 0.0464, "npv": 0.996, "flag_rate": 0.32}},
    "intervals": {
        "auc": [0.7701, 0.8502],
        "sensitivity": [0.76, 0.92],
        "specificity": [0.64, 0.73],
        "average_precision": [0.2, 0.4],
        "accuracy": [0.66, 0.74],
        "sensitivity_at_specificity": {"80%": [0.6, 0.78], "90%": [0.42, 0.63]},
        "at_prevalence": {"1.76%": {"precision": [0.041, 0.053]}},
    },
    "not_computed": {
        "npv": "no lesion is called benign",
        "sensitivity_at_specificity": "no threshold reaches it",
        "Subgroups.png": "no column of the table has groups",
    },
    "runs": [
        {
            "run_dir": f"runs/{EVIL}",
            "fold": 0,
            "validation_fold": 2,
            "seed": 3,
            "epoch": 9,
            "scorer": "nearest",
            "test_views": 8,
            "threshold": 0.07251,
        }
    ],
    "folds": [
        {
            "fold": i,
            "n": 480 + i,
            "n_melanoma": 40 - i,
            "auc": 0.8 + i / 100,
            "auc_interval": [0.75, 0.86],
            "sensitivity": {"value": 0.85, "hits": 34 - i, "of": 40 - i, "wilson": [0.7, 0.93]},
            "specificity": {"value": 0.7, "hits": 309, "of": 441, "wilson": [0.656, 0.742]},
            "note": "",
        }
        for i in range(2)
    ],
    "controls": [
        {
            "name": "file size",
            "auc": 0.63,
            "auc_interval": [0.57, 0.68],
            "average_precision": 0.1,
            "sensitivity_at_specificity": {"90%": 0.2},
            "note": "bytes",
            "beaten": True,
        },
        {
            "name": "metadata",
            "auc": 0.8,
            "auc_interval": [0.76, 0.85],
            "average_precision": 0.21,
            "sensitivity_at_specificity": {"90%": 0.4},
            "note": "",
            "beaten": False,
        },
        {
            "name": "always benign",
            "auc": None,
            "auc_interval": None,
            "average_precision": None,
            "sensitivity_at_specificity": {"90%": None},
            "note": "",
            "beaten": None,
        },
    ],
    "subgroups": [
        {
            "attribute": "sex",
            "group": "female",
            "n": 461,
            "n_melanoma": 35,
            "auc": 0.83,
            "auc_interval": [0.76, 0.89],
            "sensitivity": {"value": 0.857, "hits": 30, "of": 35, "wilson": [0.71, 0.94]},
            "specificity": {"value": 0.7, "hits": 298, "of": 426, "wilson": [0.65, 0.74]},
            "note": "",
        },
        {
            "attribute": "site",
            "group": "palms/soles",
            "n": 12,
            "n_melanoma": 1,
            "auc": None,
            "auc_interval": None,
            "sensitivity": None,
            "specificity": None,
            "note": "1 melanoma, fewer than 10",
        },
    ],
}
SETTINGS = {
    "command": f"predict.py --evaluate-image {EVIL}",
    "commit": "abc123+dirty",
    "config": {"margin": 0.5, "image_size": 128, "backbone_weights": None},
    "versions": {"torch": "2.13.0"},
    "started": [{"device": "cpu"}, {"device": "cuda"}],
}
CARD = model_card.model_card(
    {**METRICS, "notes": []}, f"4,809 images {EVIL}", [("fold 0", np.array([0, 1]))], "a network"
)


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("L", (width, height), 200).save(buffer, "PNG")
    return buffer.getvalue()


FIGURES: dict[str, bytes | None] = {name: png(960, 840) for name in report.PICTURES}
FIGURES |= {"t_SNE_panels.png": png(1440, 690), "Subgroups.png": None}


def render(metrics=METRICS, figures=FIGURES, settings=SETTINGS, card=CARD) -> str:
    return report.render(metrics, figures, settings, card)


class Page(HTMLParser):
    """Every tag with its attributes, the texts, and the cells of tables by heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self._heading = "?"  # of what stands before the first
        self._cell: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "h3":
            self._heading = ""
        elif tag == "table":
            self.tables[self._heading] = []
        elif tag == "tr":
            self.tables[self._heading].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._heading][-1].append(self._cell or "")
            self._cell = None

    def handle_data(self, data):
        self.texts.append(data)
        if self._cell is not None:
            self._cell += data
        elif self._heading == "":
            self._heading = data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render())


# --- safe and alone ---


def test_nothing_is_fetched_and_nothing_runs(page):
    fetching = {"script", "iframe", "object", "embed", "audio", "video", "base", "form", "source"}
    assert not fetching & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), (tag, value)
    text = render()
    assert "@import" not in text
    assert "url(" not in text
    assert not re.search(r"https?://", text)
    policy = [a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_what_a_user_named_is_text_wherever_it_stands(page):
    metrics: dict[str, Any] = copy.deepcopy(METRICS) | {
        "set": EVIL,
        "not_computed": {"npv": EVIL, "Subgroups.png": EVIL},
    }
    metrics["controls"][0] |= {"name": EVIL, "note": EVIL}
    metrics["subgroups"][0] |= {"attribute": EVIL, "group": EVIL, "note": EVIL}
    metrics["runs"][0]["scorer"] = EVIL
    settings = {EVIL: {EVIL: EVIL}, **SETTINGS}
    card = dict.fromkeys(CARD, EVIL)
    text = render(metrics, settings=settings, card=card)
    assert EVIL not in text
    tags = {tag for tag, _ in Page(text).tags}
    assert tags == {tag for tag, _ in page.tags}
    assert not [name for _, attributes in Page(text).tags for name in attributes if name.startswith("on")]
    assert text.count(html.escape(EVIL).replace("&quot;", "&#34;").replace("&#x27;", "&#39;")) > 20


# --- sections ---


def test_every_section_is_there_and_the_links_lead_to_them(page):
    ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert ids == ["headline", "figures", "tables", "settings", "card"]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert [link for link in links if link[1:] in ids] == [f"#{name}" for name in ids]
    places = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert {link[1:] for link in links} == set(places)
    assert len(links) == len(ids) + len(report.PICTURES) + 5  # tables of results
    assert list(page.tables) == [
        "All metrics",
        "Folds",
        "Controls",
        "Subgroups",
        "Runs",
        "run",
        "config",
        "versions",
        "started 1",
        "started 2",
    ]
    assert page.texts.count(METRICS["origin"]) == 1
    assert "Evaluated on test: 961 images, 79 melanomas, 402 patients" in page.texts


def test_a_section_without_its_key_is_left_out():
    gone = ("folds", "controls")
    page = Page(render({name: value for name, value in METRICS.items() if name not in gone}))
    assert not {"Folds", "Controls"} & set(page.tables) and "Subgroups" in page.tables


# --- figures ---


def test_every_figure_is_embedded_whole_with_its_caption_and_alt_text(page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    shown = [name for name in report.PICTURES if FIGURES[name] and name not in report.WIDE] + list(report.WIDE)
    assert len(images) == len(shown)
    for image, name in zip(images, shown, strict=True):
        data = image["src"].removeprefix("data:image/png;base64,")
        assert base64.b64decode(data, validate=True) == FIGURES[name]
        size = struct.unpack(">II", (FIGURES[name] or b"")[16:24])
        assert (int(image["width"]), int(image["height"])) == size
        title, caption = report.PICTURES[name]
        what = f"test: 961 images, 79 melanomas, 402 patients, {METRICS['origin']}"
        assert image["alt"] == f"{title}, {what}. {caption}"
        assert f"{title}." in page.texts
    wide = [attributes for tag, attributes in page.tags if tag == "figure" and "class" in attributes]
    assert len(wide) == 2
    hints = [text for text in page.texts if text.startswith("Scroll the figure sideways")]
    assert len(hints) == 2


def test_a_figure_that_was_not_drawn_says_why(page):
    assert "not computed: no column of the table has groups" in page.texts
    figures = {"ROC_curve.png": None}
    for reasons, said in (({"auc": "no melanoma", "ROC_curve.png": "no room"}, "no room"), ({}, "no reason given")):
        assert f"not computed: {said}" in Page(render({**METRICS, "not_computed": reasons}, figures)).texts


# --- numbers ---


def test_headline_metrics_stand_with_intervals_and_counts():
    tiles = {tile["name"]: (tile["value"], tile["detail"]) for tile in tables.headline(METRICS)}
    assert tiles == {
        "ROC AUC": ("0.812", "95 % interval 0.770 to 0.850"),
        "sensitivity": ("0.848", "95 % interval 0.760 to 0.920; 67 true positives of 79 melanomas"),
        "specificity": ("0.687", "95 % interval 0.640 to 0.730; 606 true negatives of 882 benign lesions"),
        "sensitivity at 90 % specificity": ("0.532", "95 % interval 0.420 to 0.630; read off the test curve"),
        "average precision": ("0.300", "95 % interval 0.200 to 0.400; chance: 0.082"),
        "precision (PPV)": ("0.181", "no interval; 67 melanomas of 343 called melanoma"),
        "F1": ("0.298", "no interval; harmonic mean of precision and sensitivity"),
        "accuracy": ("0.701", "95 % interval 0.660 to 0.740; always benign: 0.918"),
    }


FEW = "only 3 patients (groups), 2 with a melanoma and 3 with a benign lesion: an interval needs 10, 5 and 5"


def too_few(metrics: dict[str, Any] = METRICS) -> dict[str, Any]:
    """These metrics over too few groups, as `evaluate.measure` has them."""
    metrics = copy.deepcopy(metrics) | {"intervals": dict.fromkeys(metrics["intervals"]), "auc_interval": None}
    metrics["not_computed"]["intervals"] = FEW
    for row in [*metrics["folds"], *metrics["controls"], *metrics["subgroups"][:1]]:
        row |= {"auc_interval": None, "note": FEW}
    for row in metrics["controls"]:
        row |= {"beaten": None, "verdict": f"not compared with {row['name']} alone: {FEW}"}
    return metrics


def test_a_set_without_intervals_says_why_wherever_they_would_stand():
    metrics = too_few()
    tiles = {tile["name"]: (tile["value"], tile["detail"]) for tile in tables.headline(metrics)}
    assert tiles["ROC AUC"] == ("0.812", "no interval")
    assert tiles["sensitivity"] == ("0.848", "no interval; 67 true positives of 79 melanomas")
    text = tables.describe_metrics(metrics)
    assert f"There are no intervals: {FEW}" in text.splitlines()[-1]
    assert f"not compared with metadata alone: {FEW}" in text
    assert " to " not in text.replace("not computed", "")
    page = Page(render(metrics))
    assert f"There are no intervals: {FEW}." in page.texts
    assert {row[2] for row in page.tables["All metrics"][1:]} == {""}
    assert {row[3] for row in page.tables["Folds"][1:]} == {
        "0.800 (no interval)",
        "0.810 (no interval)",
        "0.812 (no interval)",
    }
    assert {row[-1] for row in page.tables["Folds"][1:]} == {FEW}
    assert page.tables["Subgroups"][1][3] == "0.830 (no interval)" and page.tables["Subgroups"][1][-1] == FEW
    assert [row[1] for row in page.tables["Controls"][1:]] == [
        "0.812 (no interval)",
        "0.630 (no interval)",
        "0.800 (no interval)",
        "not computed",
    ]
    assert f"The network is not compared with the controls: {FEW}." in page.texts


def test_two_runs_over_too_few_groups_have_a_difference_alone():
    found = {"a": "one", "b": "two", "n": 90, "auc_a": 0.8, "auc_b": 0.75, "difference": 0.05}
    alone = found | {"interval": None, "p": None, "not_computed": FEW}
    assert tables.describe_comparison(alone) == (
        f"one: AUC 0.800; two: AUC 0.750, on the same 90 images; difference +0.050 (no interval: {FEW})"
    )
    assert tables.describe_comparison(found | {"interval": [0.01, 0.09], "p": 0.02, "not_computed": None}) == (
        "one: AUC 0.800; two: AUC 0.750, on the same 90 images; difference +0.050 "
        "(95 % interval +0.010 to +0.090, p 0.020)"
    )
    nothing = dict.fromkeys(found, None) | {"a": "one", "b": "two", "interval": None, "not_computed": "no melanoma"}
    assert tables.describe_comparison(nothing) == "one and two: not compared, no melanoma"


def test_images_without_an_id_are_told_beside_the_intervals():
    metrics: dict[str, Any] = METRICS | {
        "controls": [],
        "n_groups": 700,
        "n_without_id": 298,
        "auc_with_id": {"auc": 0.79, "auc_interval": [0.74, 0.84], "n": 663, "n_melanoma": 50},
    }
    note = (
        "298 images have no patient or lesion id: each counts as a group of its own, so intervals may be too narrow, "
        "and other images of the same patient may be in training"
    )
    first, *lines = tables.describe_metrics(metrics).splitlines()
    assert first == (
        "test: 961 images, 79 melanomas, 402 patients, 700 groups, 298 images without a patient or lesion id"
    )
    assert note in lines[-1]
    text = render(metrics)
    assert f"{note}." in text[text.index('<section id="headline">') : text.index('<section id="figures">')]
    row = Page(text).tables["All metrics"][2]
    assert row == ["ROC AUC of the images with a patient or lesion id", "0.790", "0.740 to 0.840", "663 of 961", ""]
    assert "patient or lesion id" not in render()
    for auc, reason, cells in (
        (None, "there is no melanoma among 663 images", ["not computed: there is no melanoma among 663 images", ""]),
        (0.79, FEW, ["0.790", f"no interval: {FEW}"]),
    ):
        metrics["auc_with_id"] = {"auc": auc, "auc_interval": None, "n": 663, "n_melanoma": 50}
        metrics["not_computed"] = {"npv": "", "sensitivity_at_specificity": "", "auc_with_id": reason}
        assert list(tables.metric_table(metrics).rows[1][1:3]) == cells


def test_the_page_says_what_intervals_and_curve_hold_fixed(page):
    words = " ".join(" ".join(page.texts).split())
    assert words.count("hold model, calibration curve and threshold fixed") == 1
    assert "A metric that is read off a curve has its threshold from the evaluated images themselves" in words
    tiles = {tile["name"]: tile["detail"] for tile in tables.headline({**METRICS, "set": "validation"})}
    assert tiles["sensitivity at 90 % specificity"].endswith("; read off the validation curve")


def test_the_model_card_counts_the_images_evaluated():
    card = model_card.model_card({**METRICS, "notes": ["One"]}, "here", [], "a network")
    assert card["Evaluation data"] == "test: 961 images, 79 melanomas, 402 patients. One."


def test_a_headline_metric_that_is_none_says_why():
    metrics = {**METRICS, "auc": None, "not_computed": {"auc": "no melanoma"}}
    assert tables.headline(metrics)[0] == {"name": "ROC AUC", "value": "not computed", "detail": "no melanoma"}


def test_all_metrics_have_value_intervals_and_counts(page):
    header, *rows = page.tables["All metrics"]
    assert header == ["metric", "value", "95 %, bootstrap over groups", "images", "95 %, Wilson"]
    by_name = {name: cells for name, *cells in rows}
    assert len(by_name) == len(rows) == 17 + 3 + 3 + 3 + 2
    assert by_name["ROC AUC"] == ["0.812", "0.770 to 0.850", "", ""]
    assert by_name["sensitivity (recall)"] == ["0.848", "0.760 to 0.920", "67 of 79", "0.753 to 0.911"]
    assert by_name["Brier score"][0] == "0.0661"
    assert by_name["negative predictive value (NPV)"][0] == "not computed: no lesion is called benign"
    off = "read off the test curve"
    assert by_name[f"sensitivity at 80 % specificity, {off}"][:2] == ["0.690", "0.600 to 0.780"]
    assert by_name[f"sensitivity at 95 % specificity, {off}"][0] == "not computed: no threshold reaches it"
    assert by_name[f"specificity at 95 % sensitivity, {off}"][0] == "0.410"
    assert by_name["precision (PPV) at 1.76 % prevalence"][:2] == ["0.046", "0.041 to 0.053"]
    chosen = "at the threshold with 90 % specificity on validation"
    assert by_name[f"sensitivity {chosen}"] == ["0.519", "", "41 of 79", "0.411 to 0.626"]
    assert by_name[f"specificity {chosen}"] == ["0.907", "", "800 of 882", "0.886 to 0.924"]


def test_folds_stand_above_the_pooled_set(page):
    _, first, second, pooled = page.tables["Folds"]
    assert first == [
        "fold 0",
        "480",
        "40",
        "0.800 (0.750 to 0.860)",
        "0.850 (34 of 40; 0.700 to 0.930)",
        "0.700 (309 of 441; 0.656 to 0.742)",
        "",
    ]
    assert second[:3] == ["fold 1", "481", "39"]
    assert pooled == [
        "pooled",
        "961",
        "79",
        "0.812 (0.770 to 0.850)",
        "0.848 (67 of 79; 0.753 to 0.911)",
        "0.687 (606 of 882; 0.656 to 0.717)",
        "",
    ]


def test_controls_stand_below_the_network_and_those_that_are_as_good_are_named(page):
    header, network, size, metadata, always = page.tables["Controls"]
    assert header[3] == "sensitivity at specificity, read off the test curve"
    assert network[:3] == ["this network", "0.812 (0.770 to 0.850)", "0.300"]
    assert network[3:] == ["0.690 at 80 %, 0.532 at 90 %, not computed at 95 %", "", ""]
    assert size == ["file size", "0.630 (0.570 to 0.680)", "0.100", "0.200 at 90 %", "better", "bytes"]
    assert metadata[2:5] == ["0.210", "0.400 at 90 %", "not better"]
    assert always == ["always benign", *["not computed"] * 2, "not computed at 90 %", "not compared", ""]
    assert "The network is better than 1 of 2 controls. Not shown to be better than: metadata." in page.texts


def test_subgroups_too_small_are_named(page):
    _, female, soles = page.tables["Subgroups"]
    assert female == [
        "sex: female",
        "461",
        "35",
        "0.830 (0.760 to 0.890)",
        "0.857 (30 of 35; 0.710 to 0.940)",
        "0.700 (298 of 426; 0.650 to 0.740)",
        "",
    ]
    assert soles == ["site: palms/soles", "12", "1", *["not computed"] * 3, "1 melanoma, fewer than 10"]


def test_runs_and_settings_are_shown_as_they_are(page):
    assert page.tables["Runs"][1] == [f"runs/{EVIL}", "0", "2", "3", "9", "nearest", "8", "0.07251"]
    assert page.tables["run"][1:] == [["command", SETTINGS["command"]], ["commit", "abc123+dirty"]]
    assert page.tables["config"][1:] == [["margin", "0.5"], ["image_size", "128"], ["backbone_weights", "–"]]
    assert page.tables["started 2"][1:] == [["device", "cuda"]]


def test_the_model_card_has_its_parts(page):
    card = html.unescape(render()[render().index('<dl class="card">') :])
    terms = dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", card, re.DOTALL))
    assert list(terms) == [
        "Model",
        "Intended use",
        "Training data",
        "Evaluation data",
        "Metrics",
        "Limits",
        "Ethical considerations",
        "Not a medical device",
    ]
    assert terms == CARD
    assert "no authority has approved it" in terms["Not a medical device"]
    assert "ROC AUC 0.812 (95 % interval 0.770 to 0.850)" in terms["Metrics"]
    assert any("do not base decisions about patients on it" in text for text in page.texts)


# --- in a browser ---

MEASURE = """<!DOCTYPE html><body style="margin:0">
<iframe id="page" width="{width}" height="900" style="border:0" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const root = document.getElementById("page").contentDocument.documentElement;
  const broken = [...root.querySelectorAll("img")].filter(image => !image.naturalWidth).length;
  document.title = `measured ${{root.scrollWidth}} of ${{root.clientWidth}}, ${{broken}} broken`;
}}</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_does_not_scroll_sideways(tmp_path, width):
    long = {**METRICS, "set": "a_folder_with_a_name_that_has_no_room_on_a_phone_" * 3}
    file = tmp_path / "measure.html"
    file.write_text(MEASURE.format(width=width, page=html.escape(render(long))), encoding="utf-8")
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--hide-scrollbars",
        "--window-size=1400,1000",
        "--dump-dom",
        file.as_uri(),
    ]
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title, done.stderr
    assert title[1] == f"measured {width} of {width}, 0 broken"


def test_the_model_card_says_how_often_the_test_part_was_evaluated():
    assert model_card.describe_evaluations(METRICS) == ""
    once, other = {"scorer": None}, {"scorer": "head"}
    assert (
        model_card.describe_evaluations({"test_evaluations": [once]})
        == "This test part was evaluated once for this run. "
    )
    told = model_card.describe_evaluations({"test_evaluations": [once, other, once]})
    assert told == "This test part was evaluated 3 times, with 2 different choices for this run. "
