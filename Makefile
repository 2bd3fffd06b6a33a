# Two commands: `make demo` and `make test`. Each does all its set-up in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests to run: all but the long ones, which `make test MARKERS=` runs too.
MARKERS ?= not slow
# Processes that share the tests, with a thread each; 0 for one process with all threads.
WORKERS ?= auto

.PHONY: demo test check benchmark docs dist clean

demo: $(VENV)/installed
	mkdir -p demo
	$(BIN)/d2net match tests/data/graf1.jpg tests/data/graf3.jpg --output demo/matches.png
	$(BIN)/d2net show tests/data/graf1.jpg --output demo/keypoints.png

test: $(VENV)/installed
	$(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1) $(BIN)/pytest -n $(WORKERS) \
		$(if $(MARKERS),-m "$(MARKERS)")

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest tests/test_layers.py
	$(BIN)/python tools/readme.py --check

benchmark: $(VENV)/installed
	$(BIN)/python -m benchmarks

docs: $(VENV)/installed
	$(BIN)/mkdocs build --strict

dist: $(VENV)/installed
	$(BIN)/python tools/dist.py

$(VENV)/installed: pyproject.toml tools/setup
	PYTHON=$(PYTHON) bash tools/setup $(VENV)
	touch $@

clean:
	rm -rf $(VENV) demo build dist site
