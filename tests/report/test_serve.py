"""serve.py: the page shows a verdict on each photo or why there is none, asks no other host and keeps no photo."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import CHROMIUM
from PIL import Image

import predict
from config import Config
from melanoma.common.errors import InputError
from melanoma.report.new_lesions import probability_text
from melanoma.report.serve import PHOTOS, judge_uploads, make_page
from melanoma.scoring import model as models
from melanoma.scoring.model import Model

ROOT = Path(__file__).parents[2]
EVIL = "{{value}} ${alert(1)} <b>&'x'_*y*.png"


@pytest.fixture(scope="module")
def model(trained: Config) -> Model:
    return Model(predict.load_ensembles(trained, ()))


@pytest.fixture
def photos(trained: Config, tmp_path: Path) -> list[Path]:
    """A dark photo, a bright one under a name of markup, and a file that is no image."""
    lesions = sorted(trained.train_image[0].iterdir())
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / name for name in ("dark.jpg", EVIL, "broken.jpg")]
    shutil.copy(lesions[0], paths[0])
    with Image.open(lesions[20]) as image:
        image.save(paths[1])
    paths[2].write_text("no image")
    return paths


def test_each_photo_has_its_verdict_or_its_error_in_order(model, photos):
    html = judge_uploads(model, photos)
    dark, bright, broken = (part.split("</section>")[0] for part in html.split("<section>")[1:])
    table = model.predict(photos)
    for part, call, row in ((dark, "melanoma", 0), (bright, "benign", 1)):
        probability = probability_text(table["probability"][row]).replace("<", "&lt;").replace(">", "&gt;")
        assert f"called {call}: probability of melanoma {probability}</p>" in part
        assert f"called melanoma from {model.threshold:.3f} on" in part
        assert "not a medical device" in part
        assert part.count("<img") == 2 + 10  # the photo, its heat map, five neighbours of either class
        assert table["nearest_name"][row] in part
    assert "cannot be read: UnidentifiedImageError: it is not an image" in broken
    assert "<img" not in broken


def test_names_are_escaped(model, photos, monkeypatch):
    monkeypatch.setattr(model, "neighbours", lambda *_: [[("<i>M", np.zeros((4, 4, 3), np.uint8), 0.5)], []])
    html = judge_uploads(model, photos)
    assert "<b>" not in html and "<i>" not in html
    assert "&lt;b&gt;&amp;&#39;x&#39;" in html
    assert html.count("nearest melanomas") == 2 and "nearest benign lesions" not in html  # of whom there are none


def test_the_warning_leads_on_a_photo_unlike_anything_seen_and_no_call_is_made(model, photos, monkeypatch):
    monkeypatch.setattr(models, "familiarity", lambda *_: 0.0)
    html = judge_uploads(model, photos[:1])
    assert '<p class="call warning">unlike anything seen: do not trust it</p>' in html
    assert "called" not in html


def test_too_many_photos_are_refused_in_a_line(model, photos):
    html = judge_uploads(model, photos[:1] * (PHOTOS + 1))
    assert "21 photos: at most 20 at a time" in html
    assert "<section>" not in html


def test_without_gradio_a_line_says_what_to_install(model, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with pytest.raises(InputError, match=r"^--serve needs gradio: pip install -r requirements-app\.txt$"):
        make_page(model, "run a", tmp_path)


# --- in a browser ---

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or not all(map(importlib.util.find_spec, ("gradio", "playwright"))),
    reason="needs gradio, playwright and Chromium",
)


@pytest.fixture
def served(trained: Config, tmp_path: Path) -> Iterator[tuple[str, Path, subprocess.Popen]]:
    """The address of a page served by predict.py, its folder for temporary files, and its process."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "predict.py", "--serve", "--device", "cpu", "--model", str(trained.run_dir / "model.pt")]
    environment = os.environ | {"TMPDIR": str(temporary)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = (line for line in process.stdout if line.startswith("serving"))
        yield next(lines).split()[1], temporary, process
        process.kill()


@pytest.mark.slow
@needs_browser
def test_photos_are_uploaded_judged_and_forgotten(served, photos, tmp_path):
    from playwright.sync_api import sync_playwright

    url, temporary, process = served
    assert url.startswith("http://127.0.0.1:")
    requests, errors = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(url)
        page.set_input_files("#photos input[type=file]", photos)
        page.wait_for_selector("#result section")
        text = page.inner_text("body")
        assert "recipe baseline" in text and "Not a medical device." in text
        assert "called melanoma: probability" in text and "called benign: probability" in text
        assert "broken.jpg\ncannot be read: UnidentifiedImageError" in text.replace("\n\n", "\n")
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        rights = page.locator("#result *").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        assert 300 < max(rights) <= 390
        assert page.locator("#result img").evaluate_all("all => all.every(image => image.naturalWidth > 0)")

        paste = """() => {
            const data = new DataTransfer();
            data.items.add(new File(["no image"], "pasted.jpg"));
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: data}));
        }"""
        page.evaluate(paste)
        page.wait_for_selector("#result >> text=pasted.jpg")
        assert {address.split("/")[2] for address in requests if address.startswith("http")} == {url.split("/")[2]}
        blocked = """() => new Promise(done => {
            addEventListener("securitypolicyviolation", event => done(event.blockedURI));
            fetch("http://elsewhere.invalid/").catch(() => setTimeout(done, 1000, "not blocked"));
        })"""
        assert page.evaluate(blocked) == "http://elsewhere.invalid/"
        browser.close()
    assert not errors
    assert [path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size] == []
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert list(temporary.glob("melanoma-serve-*")) == []
