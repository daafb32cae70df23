# The front door. `make help` lists the rooms behind it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export DEBIAN_FRONTEND := noninteractive

# What the product needs, then what its tests, demo and benchmarks need on top.
PACKAGES_RUN := python3 python3-venv fuse3 e2fsprogs xfsprogs btrfs-progs util-linux
PACKAGES_BUILD := gcc libc6-dev python3-dev libfuse3-dev pkg-config
PACKAGES_TEST := containerd runc busybox-static mmdebstrap fuse-overlayfs attr acl systemd git \
	golang-go golang-github-containerd-containerd-dev
PACKAGES := $(PACKAGES_RUN) $(PACKAGES_BUILD) $(PACKAGES_TEST)

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

.PHONY: setup
setup: $(VENV)/.packages $(VENV)/.python ## install system packages and a virtual environment; quick the second time

$(VENV)/.packages: Makefile
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then apt-get update -q && apt-get install -q -y --no-install-recommends $$missing; fi
	@mkdir -p $(VENV) && touch $@

$(VENV)/.python: $(VENV)/.packages pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: lint
lint: setup ## check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: type
type: setup ## check types (mypy, strict)
	$(BIN)/mypy

.PHONY: test
test: setup lint type ## run every check and every test (as root)
	$(BIN)/pytest $(PYTEST_ARGS)
