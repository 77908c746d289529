# The newcomer's two commands are `make demo` and `make test`; both set up .venv first if it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The C++ library takes seconds to build, the CUDA library minutes: make setup ZOOMINNET_BUILD=cuda where it is wanted.
export ZOOMINNET_BUILD ?= cpu

.PHONY: setup demo test quick soak lint docs lock gpu-check clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml setup.py
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else "zoominnet needs Python 3.11 or newer, this is %d.%d: make PYTHON=python3.11 ..." % v[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

demo: $(STAMP)
	$(BIN)/python -m zoominnet.demo

# Two at a time: most tests keep one core busy. What is in one file runs in one process, in turn, the longest files
# first. Threads of one process that wait are not to spin on the cores that the other needs. The bytecode of what the
# tests' many programs import is kept, also where the environment forbids it in the sources' folders.
PYTEST_TWO = OMP_WAIT_POLICY=passive PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX="$(CURDIR)/$(VENV)/pycache" \
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST_TWO)

# While editing: the tests that take no more than about 2 s each.
quick: $(STAMP)
	$(PYTEST_TWO) -m "not soak and not slow"

# The long fault tests, which `make test` leaves out.
soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 1800 --durations 0

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files '*.c' '*.cpp' '*.cu' '*.h' | xargs $(BIN)/clang-format --dry-run --Werror

# The pages of docs/ as a site, build/site/index.html; a warning or a broken link fails. For the search field serve it:
# python -m http.server -d build/site
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Needs uv (pip install uv). Versions and hashes for every Python from 3.11 and every platform.
lock:
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--no-emit-find-links --custom-compile-command "make lock" --group dev pyproject.toml -o requirements.lock

# Needs a GPU, nvcc and a Python with torch and the test tools; neither .venv nor a network.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
