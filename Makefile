# The entrance for people; `make help` says what there is. Nothing here uses sudo. Only demo, bench, bench-image, fuzz, test
# and its kin (test-vm, test-engines, test-runtime-tools) install packages (hack/setup, as root), and cargo itself fetches
# crates that it does not have.

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
MANDIR ?= $(DATADIR)/man
CARGO ?= cargo
CARGO_FLAGS ?= --locked
# The runtime under test: `make test RUNTIME=runc` runs the same tests against another one.
RUNTIME ?= $(abspath $(BIN))

TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
BIN := $(TARGET_DIR)/$(HOST)/release/pelagos
# The companion under test.
PELAGOS_IMAGE ?= $(abspath $(BIN)-image)
# How long each fuzz target runs.
FUZZ_SECONDS ?= 60

# What `pelagos --version` says it was built from.
export PELAGOS_COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-vm test-engines test-runtime-tools fuzz lint bench bench-image man completions install setup clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the release binaries, pelagos and pelagos-image, each one static file
	$(CARGO) build --release $(CARGO_FLAGS)

demo: ## take a busybox container through its life and show what happens
	hack/setup build test
	$(MAKE) --no-print-directory build
	RUNTIME='$(RUNTIME)' hack/in-cgroup2 hack/demo

test: ## lint, unit tests, integration tests on this machine (RUNTIME=runc tests another runtime)
	hack/setup build lint test
	$(MAKE) --no-print-directory lint build
	RUNTIME='$(RUNTIME)' PELAGOS_IMAGE='$(PELAGOS_IMAGE)' $(CARGO) test $(CARGO_FLAGS) --lib --bins --test tidy
	RUNTIME='$(RUNTIME)' PELAGOS_ENV=host hack/in-cgroup2 $(CARGO) test $(CARGO_FLAGS) --test runtime
	RUNTIME='$(abspath $(BIN))' PELAGOS_IMAGE='$(PELAGOS_IMAGE)' PELAGOS_ENV=host \
		hack/in-cgroup2 $(CARGO) test $(CARGO_FLAGS) --test image
	@echo 'once more with the debug build, which aborts where a sealed child allocates'
	env -u RUNTIME PELAGOS_ENV=host hack/in-cgroup2 $(CARGO) test $(CARGO_FLAGS) --test runtime -- seccomp:: hooks:: process::

test-vm: ## integration tests in the test machine, as root and as an unprivileged user
	hack/setup build vm
	hack/test-vm

test-engines: ## containerd, Podman and Docker in the test machine, with this runtime (RUNTIME=runc: with another)
	hack/setup build vm engines
	integration/run

test-runtime-tools: ## the validation suite of runtime-tools in the test machine (SUITE=where it was built; see integration/)
	hack/setup build vm
	$(if $(SUITE),$(MAKE) --no-print-directory build)
	$(if $(filter command line environment,$(origin RUNTIME)),RUNTIME='$(RUNTIME)') integration/runtime-tools/run $(if $(SUITE),'$(SUITE)')

fuzz: ## the tar reader, image names, manifests, and from config.json to a plan, FUZZ_SECONDS=60 each
	hack/setup build fuzz
	FUZZ_SECONDS='$(FUZZ_SECONDS)' hack/fuzz

lint: ## rustfmt, clippy, the bare runtime, and where they are installed shellcheck and cargo-deny
	$(CARGO) fmt --check
	$(CARGO) fmt --check --manifest-path tests/fuzz/Cargo.toml
	$(CARGO) fmt --check --manifest-path integration/cri/Cargo.toml
	$(CARGO) clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	$(CARGO) clippy $(CARGO_FLAGS) --no-default-features -- -D warnings
	hack/lint-scripts
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline check bans licenses sources; fi

bench: ## one table: start, state and memory beside crun, runc and the kernel's floor
	hack/setup build bench
	$(MAKE) --no-print-directory build
	PELAGOS='$(abspath $(BIN))' hack/bench

bench-image: ## one table: unpacking beside umoci, tar, and the cost of decompressing and hashing (BENCH_SETS, BENCH_ROUNDS)
	hack/setup build bench-image
	$(MAKE) --no-print-directory build
	PELAGOS_IMAGE='$(PELAGOS_IMAGE)' hack/bench-image

man: build ## manual pages, in target/man
	rm -rf $(TARGET_DIR)/man && mkdir -p $(TARGET_DIR)/man
	for program in $(BIN) $(BIN)-image; do $$program generate man $(TARGET_DIR)/man || exit 1; done

completions: build ## completions for bash, zsh and fish, in target/completions
	rm -rf $(TARGET_DIR)/completions && mkdir -p $(TARGET_DIR)/completions
	for program in $(BIN) $(BIN)-image; do $$program generate completions $(TARGET_DIR)/completions || exit 1; done

install: ## what `make build` made, with its manual and completions (PREFIX=/usr/local, DESTDIR=)
	@for program in $(BIN) $(BIN)-image; do \
		[ -x $$program ] || { echo "install: $$program is missing: run \`make build\` first" >&2; exit 1; }; \
	done
	DESTDIR='$(DESTDIR)' BINDIR='$(BINDIR)' DATADIR='$(DATADIR)' MANDIR='$(MANDIR)' hack/install $(BIN) $(BIN)-image

setup: ## install what this Debian machine lacks (as root)
	hack/setup

clean: ## forget what was built
	$(CARGO) clean
