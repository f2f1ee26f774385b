# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install bench clean

# The virtual environment with the package (editable) and all that the tests use but torch.
install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

# Fuses a few simulated pairs with the released model; look at demo/demo.png.
demo: install
	$(BIN)/dmfnet demo --out demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: install lint
	$(BIN)/pytest

# The benchmarks print tables; nothing is asserted. They compare with PyTorch.
bench: install
	$(BIN)/pip install --quiet -e ".[test,torch]"
	for benchmark in tests/benchmarks/bench_*.py; do \
	  echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; \
	done

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
