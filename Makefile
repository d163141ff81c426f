# make demo: the whole road on real faces.  make test: what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all test-offline check bench install

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt tests/reference_metrics.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --constraint constraints.txt --no-deps --requirement tests/reference_metrics.txt
	touch $@

demo: $(VENV)/.demo
	test -f $(DEMO)/pogdiff.yaml || $(BIN)/pogdiff init $(DEMO) --template faces
	$(BIN)/pogdiff run -C $(DEMO)
	@echo "Open $(DEMO)/report.html"

# the demo needs no tools for developers
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo]'
	touch $@

# tests that open pages need a browser; where there is none they are left out, and that is said
BROWSER := $(shell command -v chromium || command -v chromium-browser || command -v google-chrome)
WITHOUT_BROWSER := $(if $(BROWSER),, and not browser)

# as many processes as there are cores, each with whole files; one thread in each (tests/conftest.py)
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy
	@$(if $(BROWSER),,echo "No Chromium here: tests marked 'browser' are left out.")
	$(PYTEST) -m "not slow$(WITHOUT_BROWSER)"

test-all: install
	$(PYTEST) --cov --cov-report=term:skip-covered

# where there is no network but loopback (Linux); TESTS=tests/test_endpoint.py for some of them
TESTS ?= -m "not slow$(WITHOUT_BROWSER)"
test-offline: install
	$(BIN)/python tests/offline.py $(TESTS)

check: test

# ratios against a plain diffusers loop, to docs/results; without a GPU the second says so
bench: install
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.architectures || test $$? -eq 2
