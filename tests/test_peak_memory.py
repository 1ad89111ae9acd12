"""The benchmarks' measure of memory."""

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def synthetic() -> ModuleType:
    spec = spec_from_file_location("benchmarks_synthetic", BENCHMARKS / "synthetic.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_peak_memory_is_not_that_of_the_process_it_was_started_from(synthetic):
    ballast = np.ones(50_000_000)  # 0.4 GB that are really held
    code = f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); import synthetic; print(synthetic.peak_memory())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=BENCHMARKS.parent, check=True
    )
    assert ballast.nbytes / 1e9 < synthetic.peak_memory()
    assert 0 < float(done.stdout) < 0.2


@pytest.mark.parametrize(
    "platform, peak, expected", [("linux", 2_000_000, 2.048), ("darwin", 2_000_000_000, 2.0), ("win32", None, None)]
)
def test_peak_memory_comes_from_the_system_where_there_is_no_proc(synthetic, monkeypatch, platform, peak, expected):
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=peak))
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(synthetic, "resource", None if peak is None else usage)
    assert synthetic.peak_memory() == pytest.approx(expected or float("nan"), nan_ok=True)
