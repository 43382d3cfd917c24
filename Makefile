# `make demo` and `make test` build the environment when it is not there yet; `make bench` has one of
# its own, with the libraries that refold is measured beside. `make bench ARGS=--write` keeps what
# comes out, and ARGS='--only "small table"' runs a part.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench clean

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/refold demo

test: .venv/installed
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

.venv-bench/installed: pyproject.toml constraints.txt bench/peers.py
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	.venv-bench/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	.venv-bench/bin/python bench/peers.py
	touch $@

bench: .venv-bench/installed
	.venv-bench/bin/python bench/suite.py $(ARGS)

clean:
	rm -rf .venv .venv-bench refold-demo
