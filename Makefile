# The two commands a newcomer needs are `make demo` and `make test`; both make .venv when it is missing.
PYTHON ?= python3.11
# A host without a GPU can take torch from an index of CPU builds: make demo TORCH_INDEX=<url of that index>
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-long check bench lock clean

# torch first and pinned: asked for by another package, it would come in its newest CUDA build
$(VENV)/.installed: pyproject.toml requirements.lock
	@echo "Installing into $(VENV): once, a few minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --upgrade pip
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	@$(PIP) -r requirements.lock
	@$(PIP) --no-deps --editable .
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/pkt sweep

test: $(VENV)/.installed
	@$(BIN)/pytest -n 2 --dist loadgroup -m "not long"

test-long: $(VENV)/.installed  ## sweeps that are killed, a browser, the known-answer pair
	@$(BIN)/pytest -n 2 --dist loadgroup -m long

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

lock:  ## after a change of dependencies: resolve anew, and write down what was resolved
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable . --group dev
	$(BIN)/pip freeze --exclude-editable --exclude torch > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
