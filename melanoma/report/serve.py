"""A local web page that judges photos: `python predict.py --serve`.

The page is Gradio's; what it shows of photos is serve.html beside this file, which escapes all values. A photo is
deleted as soon as it is judged, and the page fetches nothing from elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import threading
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from melanoma.common.errors import InputError
from melanoma.common.files import remove_file
from melanoma.data.decoding import decode_image
from melanoma.report.lesions import NEIGHBOURS, heat_overlay
from melanoma.report.new_lesions import SIDE, UNFAMILIAR, describe_verdict
from melanoma.report.page import TEMPLATES, data_uri
from melanoma.scoring.model import Model

if TYPE_CHECKING:
    import gradio

PHOTOS = 20  # at a time
LARGEST = "32 MB"  # of a file
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"  # the browser asks no other host
PASTE = """<script>
addEventListener("paste", ({clipboardData}) => {
  const input = document.querySelector("#photos input[type=file]");
  if (!input || !clipboardData.files.length) return;
  input.files = clipboardData.files;
  input.dispatchEvent(new Event("change", {bubbles: true}));
});
</script>"""


def serve(model: Model, origin: str, address: str) -> None:
    """Serve the page until a signal ends the process, at the first free port from 7860 on.

    Parameters
    ----------
    origin : see `Origin.line`
    address : of this machine; all but the loopback address lets others in

    Raises
    ------
    InputError : Gradio is not installed, no address of this machine, no free port
    """
    with tempfile.TemporaryDirectory(prefix="melanoma-serve-") as folder:
        page = make_page(model, origin, Path(folder))
        try:
            print(f"serving {launch(page, address)} until Ctrl-C", flush=True)
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def make_page(model: Model, origin: str, folder: Path) -> gradio.Blocks:
    """Return the page; folder : where uploaded photos lie until they are judged."""
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": str(folder)}
    try:
        import gradio  # takes seconds, and nothing else needs it
    except ImportError:
        raise InputError("--serve needs gradio: pip install -r requirements-app.txt") from None

    def judge(paths: list[str]) -> tuple[str, None]:
        try:
            return judge_uploads(model, [Path(path) for path in paths]), None  # None: the page forgets the files
        finally:
            for path in map(Path, paths):
                remove_file(path)
                with contextlib.suppress(OSError):
                    path.parent.rmdir()  # made for this file

    with gradio.Blocks(analytics_enabled=False, title="Melanoma Siamese network") as page:
        gradio.HTML(TEMPLATES.get_template("serve.html").render(origin=origin, most=PHOTOS, largest=LARGEST))
        files = gradio.File(file_count="multiple", label="photos: drop, paste or choose", elem_id="photos")
        result = gradio.HTML(elem_id="result")
        files.upload(judge, files, [result, files], api_visibility="private")
    return page


def launch(page: gradio.Blocks, address: str) -> str:
    """Start serving in a thread; return the URL; see `serve`."""
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware

    async def add_policy(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    try:
        socket.create_server((address, 0)).close()  # Gradio prints an error for each port that it tries
        _, url, _ = page.launch(
            server_name=address,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=LARGEST,
            theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            head=PASTE,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            app_kwargs={"middleware": [Middleware(BaseHTTPMiddleware, dispatch=add_policy)]},
        )
    except OSError:
        raise InputError(f"--serve {address} is no address of this machine, or it has no free port") from None
    return url


def judge_uploads(model: Model, paths: Sequence[Path]) -> str:
    """Judge image files; return what the page shows of them as HTML."""
    if len(paths) > PHOTOS:
        return TEMPLATES.get_template("serve.html").render(error=f"{len(paths)} photos: at most {PHOTOS} at a time")
    _, table, embeddings, pixels = next(model.judge(paths))  # so few are judged at once
    judged = zip(embeddings, pixels, strict=True)
    photos: list[dict[str, Any]] = []
    for path, row in zip(paths, table.to_dict("records"), strict=True):
        photos.append({"name": path.name, "error": row["error"]})
        if not row["error"]:
            embedding, own = next(judged)
            picture = decode_image(path, SIDE)
            photos[-1] |= {
                "unfamiliar": row["familiarity"] < UNFAMILIAR,
                "verdict": describe_verdict(row, model.alone),
                "picture": picture,
                "heat": heat_overlay(picture, model.heat_map(own)),
                "neighbours": model.neighbours(embedding, NEIGHBOURS),
            }
    return TEMPLATES.get_template("serve.html").render(photos=photos, data_uri=pixels_uri)


def pixels_uri(pixels: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3), as a PNG within a URI."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return data_uri(file.getvalue())
