# `make demo` and `make test` set up what they need in .venv; PYTHON=python3.12 chooses the interpreter.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
RUN := $(VENV)/bin/python
PYTEST := $(RUN) -m pytest -n auto --dist worksteal
DEMO := data/demo
DEMO_FLAGS := --train-image $(DEMO)/train --train-labels $(DEMO)/ISIC_2020_Training_GroundTruth.csv \
	--duplicates $(DEMO)/ISIC_2020_Training_Duplicates.csv --run-dir runs/demo
COVERED := dataset modules melanoma/data/tables melanoma/data/labels melanoma/data/diagnoses melanoma/data/sources \
	melanoma/data/duplicates melanoma/data/split melanoma/data/decoding melanoma/data/cache melanoma/scoring/scores melanoma/evaluation/metrics

.PHONY: setup demo test test-all oldest newest coverage covered bench lint format clean

setup: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-app.txt requirements-dev.txt $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --requirement requirements-dev.txt --constraint $(CONSTRAINTS)
	touch $@

demo: setup
	$(RUN) dataset.py --generate $(DEMO)
	$(RUN) train.py --recipe demo $(DEMO_FLAGS) --overwrite
	$(RUN) predict.py $(DEMO_FLAGS)
	@echo "The graphs are in graph/, the run is in runs/demo, the generated images are in $(DEMO)."

# A process for each core; without the tests that are marked slow, and with a quarter of the generated cases.
test: setup
	$(PYTEST) -m "not slow" $(PYTEST_FLAGS)

# All tests and all generated cases.
test-all: setup
	CI=true $(PYTEST) $(PYTEST_FLAGS)

# All tests with the oldest versions that requirements.txt allows, or with the newest.
oldest:
	$(MAKE) test-all VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

newest:
	$(MAKE) test-all VENV=.venv-newest CONSTRAINTS=/dev/null

# All tests, and the share of each file that they run (lines and branches; not what subprocesses alone run).
coverage:
	$(MAKE) test-all PYTEST_FLAGS=--cov
	$(MAKE) covered

covered: setup
	for file in $(COVERED); do $(RUN) -m coverage report --include=$$file.py --fail-under=90 || exit; done

# With full-size photos: make bench IMAGES="--images path/to/full-size/jpegs"
bench: setup
	$(RUN) benchmarks/decode.py $(IMAGES)
	$(RUN) benchmarks/epoch.py $(IMAGES)
	$(RUN) benchmarks/scaling.py
	$(RUN) benchmarks/processes.py
	$(RUN) benchmarks/score.py
	$(RUN) benchmarks/step.py
	$(RUN) benchmarks/gpu.py

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf $(VENV) .venv-oldest .venv-newest .coverage cache data/demo runs/demo .pytest_cache .ruff_cache .mypy_cache
