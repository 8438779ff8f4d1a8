# The two commands: `make demo` and `make test`. Both make .venv and install the project first, at its pinned versions.

VENV ?= .venv
PYTHON ?= python3
RUN = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python

.PHONY: demo test test-slow lint format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: $(VENV)/.installed
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(VENV)/bin/python -m recipes.demo

test: $(VENV)/.installed lint
	$(RUN) -m pytest -q -m "not slow and not gpu"

test-slow: $(VENV)/.installed
	$(RUN) -m pytest -q -m "slow and not gpu" -s

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV)
