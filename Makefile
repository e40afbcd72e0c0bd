# make demo      make .venv, bring up cluster.yaml, tell a story, show the bytes per token, bring it down
# make test      run the tests, WORKERS at a time, in another order each time; make test SEED=N repeats a run's order.
#                Of a test with several lists of parameters, so many cases that each value is in one; CASES=all runs all,
#                as CI does. Those of a release are left out
# make test-all  run all tests; random inputs are drawn anew
# make check     format, lint, types, import contract, tests: what a change must pass
# make test-browser  the web page in headless Chromium; fetches what it needs (Debian's chromium as root, axe-core by npm)
# make test-clients  other people's clients of the API (LiteLLM, LangChain, LlamaIndex, ...), installed into build/clients
# make test-real published models and tokenizers against llama.cpp, sentencepiece and tiktoken, all fetched by pip into REAL
#                (.real); its first line says what disk, memory and time it takes
# make soak      4 nodes for MINUTES (30): workers killed, links cut, each answer compared; all of it needs root and iproute2
# make test-arm  the kernels' tests on Arm CPUs played by qemu; fetches what it needs (Debian only), takes minutes
# make clean     remove what these made

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 5
CASES ?= each
MINUTES ?= 30
REAL ?= .real
# Of the order of tests and sets, of the cases, and of what is drawn.
ifndef SEED
SEED := $(shell date +%s)
endif
PYTEST = OPENBLAS_NUM_THREADS=1 PYTHONHASHSEED=$(SEED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --randomly-seed=$(SEED)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
DLLAMA := $(BIN)/dllama-zmq

.PHONY: demo test test-all test-browser test-clients test-real check format soak test-arm clean
.DELETE_ON_ERROR:

# One environment; each stamp says what has been installed into it.
.venv/pyvenv.cfg:
	@tools/with_progress.sh "making .venv" $(PYTHON) -m venv .venv

.venv/run.stamp: .venv/pyvenv.cfg pyproject.toml
	@tools/with_progress.sh "installing dllama-zmq into .venv" $(PIP_INSTALL) --editable .
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	@tools/with_progress.sh "installing the test tools into .venv" $(PIP_INSTALL) --editable '.[dev]'
	@touch $@

demo: .venv/run.stamp
	@tools/demo.sh $(DLLAMA)

test: .venv/dev.stamp
	$(PYTEST) --cases=$(CASES) -m 'not release and not browser and not clients and not real'

test-all: .venv/dev.stamp
	$(PYTEST) -m 'not browser and not clients and not real' --hypothesis-profile=release

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) --cases=$(CASES) -m 'not release and not browser and not clients and not real'

format: .venv/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-browser: .venv/dev.stamp
	@tools/test_browser.sh $(BIN)/python

# An environment of their own: their needs must not change what the other tests run with.
build/clients/dev.stamp: pyproject.toml
	@tools/with_progress.sh "making build/clients" $(PYTHON) -m venv build/clients
	@tools/with_progress.sh "installing the clients into build/clients" build/clients/bin/python -m pip install \
		--disable-pip-version-check --progress-bar off --editable '.[dev,dev-clients]'
	@touch $@

test-clients: build/clients/dev.stamp
	build/clients/bin/python -m pytest -W ignore -m clients tests/clients  # what the clients warn of is theirs to mend

# An environment of their own here too: one of the witnesses is built from its source, which takes minutes once.
$(REAL)/venv/dev.stamp: pyproject.toml
	@tools/with_progress.sh "making $(REAL)/venv" $(PYTHON) -m venv $(REAL)/venv
	@tools/with_progress.sh "building llama.cpp and installing the other witnesses into $(REAL)/venv" \
		$(REAL)/venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --editable '.[dev,dev-real]'
	@touch $@

.PHONY: real-needs
real-needs:
	@echo "test-real: 1.3 GB of disk in $(REAL) and 6 GB in /tmp while it runs, 8 GB of memory, 8 minutes; at first 10 more"

test-real: real-needs $(REAL)/venv/dev.stamp
	$(REAL)/venv/bin/python tools/fetch_real.py $(REAL)
	REAL_FILES=$(abspath $(REAL)) $(REAL)/venv/bin/python -m pytest -W ignore -v -rP -m real tests/real

soak: .venv/dev.stamp
	$(BIN)/python tools/soak.py --minutes $(MINUTES)

test-arm: .venv/dev.stamp
	@tools/test_arm.sh $(BIN)/python

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
