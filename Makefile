# Everything a stranger needs: `make demo` and `make test` do all set-up themselves, in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := cpu,embedded,text,s3,milvus,dev
# A worker and its tests share the cores: one thread a process unless somebody asks for more.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup demo demo-fast browser test test-faults screenshots check audit bench clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Make .venv and install hotrefresh with everything its tests need

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3,11) <= sys.version_info[:2] <= (3,13) else "Python 3.11 to 3.13 is needed; this is " + sys.version.split()[0] + ". Set PYTHON=…")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[$(EXTRAS)]'
	@touch $@

demo: $(READY) ## The whole story on real parts, with a report in demo-report/ (about 6 minutes)
	$(BIN)/hotrefresh demo

demo-fast: $(READY) ## The same, small (about 90 seconds)
	$(BIN)/hotrefresh demo --fast

browser: ## Install Chromium for the tests of the dashboard where that is possible; otherwise say how
	@tools/browser.sh

test: $(READY) check browser ## All checks and all tests
	$(BIN)/python -m pytest -q -n 3 --dist loadfile

test-faults: $(READY) ## Break everything on purpose and print what came of it (docs/FAULTS.md, about 15 minutes)
	$(BIN)/python -m pytest -q tests/faults -m "faults or not faults" && $(BIN)/python -m tests.faults.report

screenshots: $(READY) browser ## Take the pictures of docs/dashboard of a real demo run (about 3 minutes)
	$(BIN)/python -m pytest -q tests/browser/test_screenshots.py -m screenshots

audit: $(READY) ## Known weaknesses of the pins, and the list of parts in reports/sbom.json
	$(BIN)/python tools/audit.py

check: $(READY) ## Format, lint, types, import rules, spelling
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell --quiet-level 2 README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs orchestrator workers models migrations cli bench tests tools deploy

bench: $(READY) ## Measure against the stated limits (docs/BENCHMARKS.md)
	$(BIN)/hotrefresh bench core

clean: ## Remove what was built, not the data
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache $(VENV)
