# The two commands of this project. Both do all the set-up: a virtual environment in .venv.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
SYSTEM_PACKAGES := qemu-user gcc libc6-dev chromium
SYSTEM_PACKAGES += adb gcc-aarch64-linux-gnu libc6-dev-arm64-cross
# What builds the Android app; npm where there is none
SYSTEM_PACKAGES += openjdk-17-jdk-headless aapt zipalign apksigner android-framework-res unzip
SYSTEM_PACKAGES += $(shell command -v npm >/dev/null || echo npm)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: help demo test apk picture system-packages clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED)  ## Export, quantize, check and time a trained model; writes runs/demo/report.html
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: $(INSTALLED)  ## Lint, type check and run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

apk:  ## Build the Android app, build/mf-bench.apk; needs make system-packages
	@PYTHON="$(or $(wildcard $(CURDIR)/$(BIN)/python),$(PYTHON))" bash apps/android/build.sh

picture:  ## Photograph runs/demo/report.html for the README; needs Chromium
	@mkdir -p docs/images
	chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
		--user-data-dir="$$(mktemp -d)" --hide-scrollbars --window-size=1260,1530 \
		--screenshot="$(CURDIR)/docs/images/report.png" "file://$(CURDIR)/runs/demo/report.html"

system-packages:  ## On Debian or Ubuntu: what the tests of phones and emulated ARM CPUs need; without it they are skipped
	$(SUDO) apt-get update -qq
	$(SUDO) apt-get install -y -qq --no-install-recommends $(SYSTEM_PACKAGES)

clean:  ## Remove the virtual environment and all runs
	rm -rf $(VENV) runs

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "mf-deploy needs Python 3.11: make PYTHON=/path/to/python3.11" >&2; exit 3; }
	@echo "Installing mf-deploy and its tools in $(VENV), once; this takes minutes ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[dev]'
	@touch $@
