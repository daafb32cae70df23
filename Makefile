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
PACKAGES_TEST := containerd runc podman buildah busybox-static mmdebstrap fuse-overlayfs attr acl systemd git sqlite3 \
	golang-go golang-github-containerd-containerd-dev postgresql \
	openssh-server openssl iproute2 rsync strace
PACKAGES_FUZZ := clang libclang-rt-dev
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

$(VENV)/.python: $(VENV)/.packages pyproject.toml constraints.txt $(wildcard snapfs/*/*_src/*.[ch])
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m compileall -q snapfs plugin # each start of a process would, where Python is told to write none
	@touch $@

.PHONY: run
run: setup ## serve with the defaults, in the foreground (as root)
	$(BIN)/snapfs serve

.PHONY: demo
demo: setup ## show a container on snapfs, end to end, in a directory of its own (as root)
	$(BIN)/python tests/demo/demo.py

.PHONY: lint
lint: setup ## check style, formatting and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

.PHONY: type
type: setup ## check types (mypy, strict)
	$(BIN)/mypy

# Files of tests side by side: most of their time is waiting for daemons to start and to end.
TEST_WORKERS ?= 3

.PHONY: plain
plain: setup ## run the tests of what users see without the channel, on pyfuse3 alone (as root)
	SNAPFS_CHANNEL=off $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile -m plain $(PYTEST_ARGS) tests/fuse tests/posix

.PHONY: test
test: setup lint type plain ## run every check and every test (as root)
	$(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

.PHONY: crash
crash: setup ## cut the power at thousands of moments, on ext4, xfs and btrfs (as root, takes an hour)
	$(BIN)/pytest -q -s tests/crash/test_power_cuts.py tests/crash/test_power_cuts_of_copies.py --power-cuts 2000 $(CRASH_ARGS)

.PHONY: postgresql
postgresql: setup ## a snapshot of a loaded PostgreSQL each second for a minute, each recovered by another (as root)
	POSTGRESQL_TEST_SECONDS=60 POSTGRESQL_TEST_CHECKED=60 \
		$(BIN)/pytest -q -s tests/volumes/test_postgresql.py -k load

SUITE ?= trixie
COMPAT ?= make test

.PHONY: compat
compat: setup ## run `make test` on a fresh Debian of another SUITE (trixie), below build/ (as root)
	$(BIN)/python -m tests.compat.fresh_debian $(COMPAT_ARGS) $(SUITE) -- sh -c '$(COMPAT)'

.PHONY: kill
kill: setup ## kill 1,000 workers and 200 control processes under workloads; prints a table (as root)
	$(BIN)/python -m tests.crash.kills $(KILL_ARGS)

SOAK_S ?= 3600

.PHONY: soak
soak: setup ## use everything for SOAK_S seconds and fail when anything held grows; prints a table (as root)
	$(BIN)/python -m tests.crash.soak --seconds $(SOAK_S)

.PHONY: systemd
systemd: setup ## boot a Debian with a systemd of its own below build/, and treat the unit roughly under programs (as root)
	$(BIN)/python -m tests.compat.booted $(SYSTEMD_ARGS)

FUZZ_S ?= 300

.PHONY: fuzz
fuzz: setup ## feed bytes to everything that reads a stranger's, guided by coverage, FUZZ_S seconds each
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[fuzz]'
	@command -v clang >/dev/null || { apt-get update -q && apt-get install -q -y --no-install-recommends $(PACKAGES_FUZZ); }
	$(BIN)/python -m tests.fuzz.campaign $(FUZZ_S)

.PHONY: bench
bench: setup ## compare with overlayfs and fuse-overlayfs, side by side; prints a page (as root)
	@$(BIN)/python -m bench all

# Each proto is named by the import path of the module made from it, so that the generated
# imports and the names in protobuf's descriptor pool need no mending.
PROTO_OUT := .
PROTOC := $(BIN)/python -m grpc_tools.protoc
CONTAINERD_SERVICES := snapshots diff content leases

.PHONY: proto
proto: setup ## generate the gRPC modules (PROTO_OUT=DIR for another place)
	@mkdir -p $(PROTO_OUT)/plugin
	PATH=$(CURDIR)/$(BIN):$$PATH $(PROTOC) -I . --python_out=$(PROTO_OUT) --mypy_out=$(PROTO_OUT) \
		--grpc_python_out=$(PROTO_OUT) --mypy_grpc_out=$(PROTO_OUT) $(addprefix snapfs/service/,$(addsuffix _v1.proto,snapfs metadata content container volumes sync))
	PATH=$(CURDIR)/$(BIN):$$PATH $(PROTOC) -I plugin/protos --python_out=$(PROTO_OUT)/plugin \
		--mypy_out=$(PROTO_OUT)/plugin $(addprefix snapfs_containerd/,$(addsuffix .proto,mount descriptor $(CONTAINERD_SERVICES)))
	PATH=$(CURDIR)/$(BIN):$$PATH $(PROTOC) -I plugin/protos --grpc_python_out=$(PROTO_OUT)/plugin \
		--mypy_grpc_out=$(PROTO_OUT)/plugin $(addprefix snapfs_containerd/,$(addsuffix .proto,$(CONTAINERD_SERVICES)))

# Where `install` puts things; DESTDIR stands before each for packagers. The daemon runs from an
# environment of its own, made with the system's Python, so that nothing else can change under it.
PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib/snapfs
# mount(8) looks for helpers nowhere else, whatever the prefix.
HELPERDIR ?= /usr/sbin
UNITDIR ?= $(PREFIX)/lib/systemd/system
DOCDIR ?= $(PREFIX)/share/doc/snapfs
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
INSTALL_PYTHON ?= $(firstword $(wildcard /usr/bin/python3) $(PYTHON))

COMMANDS := snapfs snapfs-overlay
HELPERS := mount.fuse.snapfs mount.fuse.snapfs-overlay
INSTALLED := $(addprefix $(BINDIR)/,$(COMMANDS)) $(addprefix $(HELPERDIR)/,$(HELPERS)) \
	$(UNITDIR)/snapfs.service $(DOCDIR)/README.md $(DOCDIR)/LICENSE $(BASHDIR)/snapfs $(ZSHDIR)/_snapfs $(FISHDIR)/snapfs.fish

.PHONY: install
install: $(VENV)/.packages ## install into PREFIX (/usr/local), below DESTDIR
	rm -rf build/lib build/bdist.* $(DESTDIR)$(LIBDIR)
	install -d $(DESTDIR)$(LIBDIR)
	$(INSTALL_PYTHON) -m venv $(DESTDIR)$(LIBDIR)
	$(DESTDIR)$(LIBDIR)/bin/python -m pip install -q --disable-pip-version-check --no-compile \
		-c constraints.txt .
	install -d $(addprefix $(DESTDIR),$(BASHDIR) $(ZSHDIR) $(FISHDIR))
	$(DESTDIR)$(LIBDIR)/bin/snapfs completion bash >$(DESTDIR)$(BASHDIR)/snapfs
	$(DESTDIR)$(LIBDIR)/bin/snapfs completion zsh >$(DESTDIR)$(ZSHDIR)/_snapfs
	$(DESTDIR)$(LIBDIR)/bin/snapfs completion fish >$(DESTDIR)$(FISHDIR)/snapfs.fish
	$(DESTDIR)$(LIBDIR)/bin/python -m pip uninstall -q -y pip setuptools 2>/dev/null
	find $(DESTDIR)$(LIBDIR) -name __pycache__ -prune -exec rm -rf {} +
	grep -rlIZ --exclude-dir=site-packages '$(DESTDIR)$(LIBDIR)' $(DESTDIR)$(LIBDIR) \
		| xargs -0r sed -i 's#$(DESTDIR)$(LIBDIR)#$(LIBDIR)#g'
	$(INSTALL_PYTHON) -m compileall -q -s '$(DESTDIR)' $(DESTDIR)$(LIBDIR)/lib
	install -d $(DESTDIR)$(BINDIR)
	for command in $(COMMANDS); do ln -sfr $(DESTDIR)$(LIBDIR)/bin/$$command $(DESTDIR)$(BINDIR)/; done
	install -d $(DESTDIR)$(HELPERDIR)
	for helper in $(HELPERS); do ln -sfr $(DESTDIR)$(LIBDIR)/bin/$$helper $(DESTDIR)$(HELPERDIR)/; done
	install -D -m 644 systemd/snapfs.service $(DESTDIR)$(UNITDIR)/snapfs.service
	sed -i 's#/usr/local/bin#$(BINDIR)#' $(DESTDIR)$(UNITDIR)/snapfs.service
	install -D -m 644 -t $(DESTDIR)$(DOCDIR) README.md LICENSE
	@echo 'installed; next: systemctl daemon-reload && systemctl enable --now snapfs'

.PHONY: uninstall
uninstall: ## remove what install put there; snapshots in /var/lib/snapfs stay
	rm -rf $(DESTDIR)$(LIBDIR)
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	-rmdir --ignore-fail-on-non-empty $(DESTDIR)$(DOCDIR) 2>/dev/null

.PHONY: dist
dist: setup ## build a wheel and a source archive into dist/
	rm -rf build/lib build/bdist.* dist && mkdir dist
	$(BIN)/pip wheel -q --disable-pip-version-check --no-deps -w dist .
	version=$$($(BIN)/python -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])'); \
	git archive --format=tar.gz --prefix=snapfs-$$version/ -o dist/snapfs-$$version.tar.gz HEAD

.PHONY: clean
clean: ## remove what was built; the virtual environment stays
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find snapfs plugin tests bench -name __pycache__ -prune -exec rm -rf {} +
