# make demo      make .venv, bring up cluster.yaml, tell a story, show the bytes per token, bring it down
# make test      run the tests, WORKERS at a time, in another order each time; make test SEED=N repeats a run's order;
#                those of a release are left out
# make test-all  run all tests; random inputs are drawn anew
# make check     format, lint, types, import contract, tests: what a change must pass
# make test-browser  the web page in headless Chromium; fetches what it needs (Debian's chromium as root, axe-core by npm)
# make test-clients  other people's clients of the API (LiteLLM, LangChain, LlamaIndex, ...), installed into build/clients
# make soak      4 nodes for MINUTES (30): workers killed, links cut, each answer compared; all of it needs root and iproute2
# make test-arm  the kernels' tests on Arm CPUs played by qemu; fetches what it needs (Debian only), takes minutes
# make clean     remove what these made

PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 4
MINUTES ?= 30
# Of the order of tests and sets, and of what is drawn.
ifndef SEED
SEED := $(shell date +%s)
endif
PYTEST = PYTHONHASHSEED=$(SEED) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --randomly-seed=$(SEED)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off
DLLAMA := $(BIN)/dllama-zmq

.PHONY: demo test test-all test-browser test-clients check format soak test-arm clean
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
	$(PYTEST) -m 'not release and not browser and not clients'

test-all: .venv/dev.stamp
	$(PYTEST) -m 'not browser and not clients' --hypothesis-profile=release

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -m 'not release and not browser and not clients'

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

soak: .venv/dev.stamp
	$(BIN)/python tools/soak.py --minutes $(MINUTES)

test-arm: .venv/dev.stamp
	@tools/test_arm.sh $(BIN)/python

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
