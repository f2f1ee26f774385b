# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that run the tests; each needs some gigabytes.
WORKERS ?= 2

.PHONY: demo test lint install docs bench clean

# The virtual environment with the package (editable) and all that the tests use but torch.
install: $(VENV)/.installed_test

# The package alone: it fuses, evaluates and trains, and has no TensorFlow.
$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed_test: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[test]"
	touch $@

# Fuses a few simulated pairs with the released model; look at demo/demo.png.
demo: $(VENV)/.installed
	$(BIN)/dmfnet demo --out demo

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# libtpu, once loaded, makes JAX's profiler crash: what loads it has a process of its own.
test: install lint
	$(BIN)/pytest -m "not libtpu" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(BIN)/pytest -m libtpu

# The guides and the API reference, in site/; a warning is an error.
docs: $(VENV)/.installed_docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/.installed_docs: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@

# The benchmarks print tables; nothing is asserted. They compare with PyTorch.
bench: install
	$(BIN)/pip install --quiet -e ".[test,torch]"
	for benchmark in tests/benchmarks/bench_*.py; do \
	  echo "== $$benchmark"; $(BIN)/python $$benchmark || exit 1; \
	done

clean:
	rm -rf $(VENV) demo site build *.egg-info .pytest_cache .mypy_cache .ruff_cache
