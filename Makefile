# The entrance for people; `make help` says what there is. Nothing here uses sudo. Only demo, test, test-vm and bench
# install packages (hack/setup, as root), and cargo itself fetches crates that it does not have.

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

# What `pelagos --version` says it was built from.
export PELAGOS_COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help build demo test test-vm lint bench man completions install setup clean

help: ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## the release binary, one static file
	$(CARGO) build --release $(CARGO_FLAGS)

demo: ## take a busybox container through its life and show what happens
	hack/setup build test
	$(MAKE) --no-print-directory build
	RUNTIME='$(RUNTIME)' hack/in-cgroup2 hack/demo

test: ## lint, unit tests, integration tests on this machine (RUNTIME=runc tests another runtime)
	hack/setup build lint test
	$(MAKE) --no-print-directory lint build
	RUNTIME='$(RUNTIME)' $(CARGO) test $(CARGO_FLAGS) --lib --bins --test tidy
	RUNTIME='$(RUNTIME)' PELAGOS_ENV=host hack/in-cgroup2 $(CARGO) test $(CARGO_FLAGS) --test runtime
	@echo 'once more with the debug build, which aborts where a sealed child allocates'
	env -u RUNTIME PELAGOS_ENV=host hack/in-cgroup2 $(CARGO) test $(CARGO_FLAGS) --test runtime -- seccomp:: hooks:: process::

test-vm: ## integration tests in the test machine, as root and as an unprivileged user
	hack/setup build vm
	hack/test-vm

lint: ## rustfmt, clippy, and where they are installed shellcheck and cargo-deny
	$(CARGO) fmt --check
	$(CARGO) clippy $(CARGO_FLAGS) --all-targets -- -D warnings
	hack/lint-scripts
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline check bans licenses sources; fi

bench: ## one table: start, state and memory beside crun, runc and the kernel's floor
	hack/setup build bench
	$(MAKE) --no-print-directory build
	PELAGOS='$(abspath $(BIN))' hack/bench

man: build ## manual pages, in target/man
	rm -rf $(TARGET_DIR)/man && mkdir -p $(TARGET_DIR)/man
	$(BIN) generate man $(TARGET_DIR)/man

completions: build ## completions for bash, zsh and fish, in target/completions
	rm -rf $(TARGET_DIR)/completions && mkdir -p $(TARGET_DIR)/completions
	$(BIN) generate completions $(TARGET_DIR)/completions

install: ## what `make build` made, with its manual and completions (PREFIX=/usr/local, DESTDIR=)
	@[ -x $(BIN) ] || { echo 'install: $(BIN) is missing: run `make build` first' >&2; exit 1; }
	DESTDIR='$(DESTDIR)' BINDIR='$(BINDIR)' DATADIR='$(DATADIR)' MANDIR='$(MANDIR)' hack/install $(BIN)

setup: ## install what this Debian machine lacks (as root)
	hack/setup

clean: ## forget what was built
	$(CARGO) clean
