# `make help` says what there is.

PREFIX ?= /usr/local
DESTDIR ?=
# Other VMMs that `make bench` compares with: --firecracker PATH, --cloud-hypervisor PATH, --qemu.
PEERS ?=
# How many machines `make density` starts.
MACHINES ?= 100

# One place, whatever the caller's own configuration says: the tests and the installation look there.
export CARGO_TARGET_DIR := $(CURDIR)/target

vmm := target/release/vmm
guest := target/share/vmm/guest
demo := target/demo.oci

# Position-independent still, but without libraries to find, map and bind at every start, and with its relocations packed: a tenth
# of what a run costs.
triple := x86_64-unknown-linux-gnu
static := -C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs

run_packages := guest-image/kernel/packages resources/packages/run

# What the results are made from. Cargo knows its own sources better, but asking it takes a good part of a second.
manifests := Cargo.toml Cargo.lock
vmm_sources := $(manifests) $(shell find vmm devices guest-image/archive guest-image/netlink guest-image/protocol -type f)
guest_sources := $(manifests) $(shell find guest-image -type f)
demo_sources := $(shell find resources/demo-image -type f) $(wildcard /bin/busybox)

.DELETE_ON_ERROR:
.PHONY: help run test test-full bench density profile lab guest-image install fmt lint clean
.PHONY: toolchain run-packages test-packages cargo-nextest cargo-deny

help: ## Say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS='	' read -r name what; do \
		printf '  make %-12s %s\n' "$$name" "$$what"; done

run: $(vmm) $(guest)/.built $(demo) ## Build all that it takes and run the demo image in a microVM
	@$(vmm) run --image $(demo)

test: test-packages lint cargo-nextest $(vmm) $(guest)/.built $(demo) ## Check format and lints, run unit and end-to-end tests, hold what starts cost against ceilings
	@echo "Building and running the tests"
	@cargo nextest run --cargo-quiet --locked --workspace --no-fail-fast
	@echo "Counting instructions in the lab, against the ceilings of tests/bench/lab/budgets.json"
	@cargo bench --quiet --locked --profile dev --package tests --bench lab -- --budgets
	@echo "Format, lints, tests and ceilings are good."

test-full: test-packages cargo-deny lint cargo-nextest $(vmm) $(guest)/.built $(demo) ## The same with the tests that take too long for every change
	@if cargo deny --log-level off fetch db 2>/dev/null; then cargo deny --offline --log-level error check --hide-inclusion-graph advisories; \
	else echo "The advisories' database could not be fetched; nothing was checked against it."; fi
	@resources/packages/install.sh resources/packages/full
	@cargo nextest run --cargo-quiet --locked --workspace --no-fail-fast --profile full
	@echo "Comparing converted images with what umoci unpacks"
	@cargo nextest run --cargo-quiet --locked --package vmm --lib --run-ignored ignored-only --no-fail-fast
	@echo "Counting instructions in the lab, against the ceilings of tests/bench/lab/budgets.json"
	@cargo bench --quiet --locked --profile dev --package tests --bench lab -- --budgets
	@echo "Counting everything again in the lab, against the figures that are committed"
	@cargo bench --quiet --locked --profile dev --package tests --bench lab -- --check
	@echo "Format, lints, dependencies and all tests are good."

bench: test-packages $(vmm) $(guest)/.built $(demo) ## Measure what a run and an import cost
	@echo "In the lab: millions of instructions, which repeat on any machine"
	@cargo bench --quiet --locked --profile dev --package tests --bench lab -- $(PEERS)
	@echo "On this machine: times, which are its own"
	@cargo bench --quiet --locked --package tests --bench ratios

density: test-packages $(vmm) $(guest)/.built ## See how many clones fit on this machine, and what each of them takes
	@cargo bench --quiet --locked --profile dev --package tests --bench density -- --machines $(MACHINES)

profile: test-packages $(vmm) $(guest)/.built $(demo) ## Take a cold start apart in the lab (tests/bench/lab/profile.md)
	@resources/packages/install.sh resources/packages/profile
	@echo "Building vmm with its functions' names (some minutes the first time)"
	@cargo build --quiet --locked --profile profiling --package vmm
	@cargo bench --quiet --locked --profile dev --package tests --bench lab -- --profile

lab: | toolchain run-packages test-packages ## Build target/debug/lab, which runs a command on a complete KVM
	@cargo build --quiet --locked --package lab
	@target/debug/lab parts

guest-image: $(guest)/.built ## Build the guest image: kernel, agent, manifest
	@readlink -f $(guest)/current

install: $(vmm) $(guest)/.built ## Install below PREFIX (/usr/local), staged in DESTDIR if that is set
	@resources/install.sh $(vmm) $(guest) "$(DESTDIR)$(PREFIX)"

fmt: | toolchain ## Format the sources
	@cargo fmt --all

lint: | toolchain run-packages ## Check format, lints and dependencies
	@echo "Checking format and lints"
	@cargo fmt --all --check
	@cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
	@if cargo deny --version >/dev/null 2>&1; then \
		cargo deny --log-level error check --hide-inclusion-graph licenses bans sources; \
	else echo "cargo-deny is not installed, so the dependencies' licences were not checked; make test-full does."; fi

clean: ## Remove what was built in this checkout; the kernel's cache stays
	@rm -rf target

$(vmm): $(vmm_sources) | toolchain run-packages
	@echo "Building vmm (some minutes the first time)"
	@RUSTFLAGS="$$RUSTFLAGS $(static)" cargo build --quiet --locked --release --package vmm --target $(triple)
	@mkdir -p $(@D)
	@cp target/$(triple)/release/vmm $@.new
	@mv $@.new $@

$(guest)/.built: $(vmm) $(guest_sources) | toolchain run-packages
	@guest-image/build.sh $(vmm) $(guest)
	@touch $@

$(demo): $(demo_sources) | run-packages
	@resources/demo-image/build.sh $@

toolchain:
	@command -v cargo >/dev/null || { echo "The Rust toolchain is missing: install it from https://rustup.rs"; exit 1; }

run-packages:
	@resources/packages/install.sh $(run_packages)

test-packages:
	@resources/packages/install.sh $(run_packages) resources/packages/test

cargo-nextest cargo-deny: | toolchain run-packages
	@resources/packages/cargo-tool.sh $@
