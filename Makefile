# Two commands do everything on a machine that has Python 3.11 and make:
#   make demo   the whole line on the shipped example, from a data file to a load-tested endpoint
#   make test   linters, types, import rules, and every test
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BUILD ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
BIN := .venv/bin
READY := .venv/.ready-$(BUILD)
RUN := examples/support-tickets/run.yaml
# Pages and folders whose prose follows docs/style.md.
PAGES := $(wildcard *.md docs/*.md docs/decisions/*.md docs/how-to/*.md examples/*/*.md)
PROSE := $(PAGES) scripts benchmarks examples tuneline training export loadtest serving k8s tests

# A module that is compiled once is imported by several hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test check tests unit lock images clean

setup: $(READY)

$(READY): pyproject.toml constraints/$(BUILD).txt scripts/setup.sh
	PYTHON="$(PYTHON)" scripts/setup.sh $(BUILD)
	touch $@

demo: $(READY)
	$(BIN)/tuneline up $(RUN)

# The checks use one core, so they run next to the tests.
test: $(READY)
	$(MAKE) --no-print-directory -j2 check tests

# Four workers for two cores: the load tests and the servers wait for most of their time. One thread
# each, since the matrices are small. tests/distribution.py has the order of the files.
tests: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_prose.py $(PROSE)

unit: $(READY)
	$(BIN)/python -m pytest tests/unit

# Resolve the pinned versions anew; both files are committed.
lock: $(READY)
	scripts/lock.sh

# Lint and build the images of k8s/images by buildah, podman or docker, and print their sizes.
images: $(READY)
	scripts/images.sh $(IMAGES)

clean:
	rm -rf .venv runs build dist
