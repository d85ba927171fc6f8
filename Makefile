# Every target first makes .venv, and brings it up to date when pyproject.toml or constraints.txt has changed.
#   make demo ARGS=--quick      make test ARGS="-k scaling"      make PYTHON=python3.12 lint
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin

.PHONY: demo test lint bench peers clean

demo: .venv/installed
	$(BIN)/backcast demo $(ARGS)

test: .venv/installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A script that ends with 2 lacks something, such as a GPU, and has said what.
bench: .venv/installed
	for script in $(filter-out $(addprefix benchmarks/,common.py lds_settings.py lds_truth.py modality_pairs.py modality_plant.py modality_vqa.py real_loop_settings.py scaling_calibration.py scaling_curves.py selection_settings.py),$(wildcard benchmarks/*.py)); do \
	    OMP_NUM_THREADS=1 $(BIN)/python $$script --quick $(ARGS) || [ $$? = 2 ] || exit 1; \
	done

peers: .venv-peers/installed

clean:
	rm -rf .venv .venv-peers build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find backcast tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# A pip that answers is the sign of a usable .venv: making one can fail half-way.
.venv/installed: pyproject.toml constraints.txt
	$(if $(shell $(PYTHON) -c 'import sys; print(*[1] * (sys.version_info >= (3, 11)))' 2>/dev/null),, \
	    $(error backcast needs Python 3.11 or later, which '$(PYTHON)' is not; name one: make PYTHON=python3.12))
	@echo "Installing into .venv; the first time takes some minutes" >&2
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# What benchmarks/collect.py compares with lives apart: the peers ask for other versions than this package does.
.venv-peers/installed: benchmarks/peers.txt | .venv/installed
	@echo "Installing the peers into .venv-peers: some minutes, 6 GB" >&2
	@.venv-peers/bin/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m venv --clear .venv-peers
	.venv-peers/bin/python -m pip install --quiet --requirement benchmarks/peers.txt
	@touch $@
