"""The folder of figures, graph/: files carry a mark of the runs that they show, and those of other runs are removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from melanoma.common.errors import brief, counted, listed
from melanoma.common.files import is_file, remove_file, replace_file
from melanoma.data.synthetic import is_generated
from melanoma.report import DPI, FORMATS
from melanoma.scoring.ensemble import Run

MARK = re.compile(rb"melanoma-run-[0-9a-f]{16}")


@dataclass(frozen=True)
class Origin:
    """The runs that a figure shows.

    Parameters
    ----------
    runs : names of their folders
    recipes : theirs, each once
    data : the folders of training images
    started : when each run was first started, ISO 8601, "" if unknown
    synthetic : images are generated ones, see `synthetic.is_generated`
    """

    runs: Sequence[str]
    recipes: Sequence[str]
    data: Sequence[str]
    started: Sequence[str]
    synthetic: bool

    @property
    def line(self) -> str:
        """The line of text that figures and page show."""
        days = sorted({time[:10] for time in self.started if time})
        several = f"{len(self.runs)} runs" if len(self.runs) > 1 else "run"
        parts = [
            "SYNTHETIC images" if self.synthetic else "",
            f"{several} {brief(', '.join(self.runs), 60)}",
            f"recipe {', '.join(self.recipes)}",
            f"data {brief(', '.join(self.data), 60)}",
            " to ".join(dict.fromkeys([*days[:1], *days[-1:]])),
        ]
        return " · ".join(part for part in parts if part)

    @property
    def mark(self) -> str:
        """What tells the files of these runs from those of others; stands in their metadata."""
        runs = sorted(zip(self.runs, self.started, strict=True))
        return f"melanoma-run-{hashlib.sha256(json.dumps(runs).encode()).hexdigest()[:16]}"


def origin_of(runs: Sequence[Run], evaluated: Sequence[Path] = ()) -> Origin:
    """Return the origin of figures of runs; evaluated : folders of other images than theirs."""
    return Origin(
        runs=[Path(run.name).name for run in runs],
        recipes=sorted({run.settings["recipe"] for run in runs}),
        data=list(dict.fromkeys(run.data for run in runs)),
        started=[run.starts[0]["started"] if run.starts else "" for run in runs],
        synthetic=any(run.synthetic for run in runs) or any(map(is_generated, evaluated)),
    )


def save_figure(figure: Figure, path: Path, mark: str, dpi: int = DPI) -> None:
    """Write a figure, atomically, in the format of the path's suffix; its folder is made if needed.

    mark : see `Origin.mark`; it becomes the keyword of the file
    """
    keywords = {"Keywords": mark}
    replace_file(path, lambda file: figure.savefig(file, dpi=dpi, format=path.suffix[1:], metadata=keywords))


def save_drawn(
    drawn: Mapping[str, Figure | None], folder: Path, mark: str, formats: Sequence[str] = (), dpi: int = DPI
) -> dict[str, bytes | None]:
    """Save figures by their names NAME.png, in `formats` too; return the bytes of each PNG.

    What an earlier call has left of figures that are None, or in other formats, is removed.
    """
    for name, figure in drawn.items():
        for suffix in FORMATS:
            path = (folder / name).with_suffix(f".{suffix}")
            if figure and suffix in ("png", *formats):
                save_figure(figure, path, mark, dpi)
            elif suffix == "png" or marks_of(path):
                remove_file(path)
    return {name: (folder / name).read_bytes() if figure else None for name, figure in drawn.items()}


def clear_others(folder: Path, mark: str) -> None:
    """Remove the figures, pages and lesion cards of other runs, and print which; files without a mark are kept."""
    places = [*folder.glob("*.*"), *folder.glob("lesions/*.*")]
    others = sorted(path for path in places if marks_of(path) - {mark})
    for path in others:
        remove_file(path)
    if others:
        files = f"{counted(len(others), 'file')} of another run: {listed(path.name for path in others)}"
        print(f"removed from {folder} {files}")


def marks_of(path: Path) -> set[str]:
    """Return the marks in a figure or page; none if it is no file of ours or cannot be read."""
    if path.suffix[1:] in (*FORMATS, "html") and is_file(path):
        with contextlib.suppress(OSError):
            return {mark.decode() for mark in MARK.findall(path.read_bytes())}
    return set()
