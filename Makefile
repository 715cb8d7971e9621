# `make` says what there is. What CI runs stands in .ci/run.
CARGO ?= cargo
DENY_VERSION = 0.20.2
FUZZ_VERSION = 0.13.2
FUZZ_TARGETS = request_head response_head chunked_body h2_to_h1 config svid_leaf

.PHONY: help build run fmt check fmt-check lint test doc deny fixtures demo demo-once pgo llvm-tools bench bench-smoke bench-instructions soak fuzz fuzz-smoke hostile interop

help:
	@echo 'make build              the release binary, target/release/svidgate'
	@echo 'make run CONFIG=FILE    run it'
	@echo 'make pgo                the binary to ship, target/pgo/svidgate: compiled by a profile of make soak'
	@echo 'make demo               a small world to try it in, until Ctrl-C'
	@echo 'make demo-once          the same, tried by itself'
	@echo 'make test               every test'
	@echo 'make check              formatting, clippy, documentation, licences and bans'
	@echo 'make soak               load for 2 minutes (SOAK_SECONDS=) while everything is changed around it'
	@echo 'make fuzz               every fuzzing target for 10 minutes (FUZZ_SECONDS=)'
	@echo 'make fuzz-smoke         every fuzzing target for 10 seconds'
	@echo 'make hostile            slow clients, floods, streams without end (HOSTILE=slow|h2load|memory|stream: one of them)'
	@echo 'make interop            with real peers: SPIRE, go-spiffe, Python, nginx, HAProxy, Envoy, Traefik, curl, a browser, psql'
	@echo 'make bench              CPU and memory beside HAProxy, nginx, Envoy, Traefik and Caddy, into benches/RESULTS.md'
	@echo 'make bench-smoke        the same in one short round: that it runs'
	@echo 'make bench-instructions instructions of its parts, by callgrind, into benches/INSTRUCTIONS.md'
	@echo 'make fixtures           make the certificates in fixtures/ anew'
	@echo 'make fmt                format the code'

build:
	$(CARGO) build --release --locked

run: build
	target/release/svidgate --config $(CONFIG)

fmt:
	$(CARGO) fmt

check: fmt-check lint doc deny

fmt-check:
	$(CARGO) fmt --check

lint:
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --no-default-features --features ring -- -D warnings

doc:
	RUSTDOCFLAGS=-Dwarnings $(CARGO) doc --locked --no-deps --document-private-items

deny:
	@$(CARGO) deny --version 2>/dev/null | grep -qF $(DENY_VERSION) || \
	  $(CARGO) install --locked --version $(DENY_VERSION) cargo-deny
	$(CARGO) deny --config .cargo/deny.toml check bans licenses sources

test:
	$(CARGO) test --locked

fixtures:
	$(CARGO) run --locked --example fixtures -- fixtures/pki

demo demo-once:
	$(CARGO) build --locked --bin svidgate --example demo
	@target/debug/examples/demo target/debug/svidgate fixtures/config/demo.toml $(if $(filter demo-once,$@),--once)

soak: build
	$(CARGO) build --release --locked --example soak
	@target/release/examples/soak target/release/svidgate $(or $(SOAK_SECONDS),120)

# Compiled with counters, put through a soak, and compiled again by what they counted. The flags are the target's alone,
# so that nothing that runs at build time counts; all is made anew, as Cargo does not see that a profile has changed.
# A soak that fails is no profile, and ends it.
HOST = $(shell rustc --print host-tuple)
LLVM_PROFDATA ?= $(shell rustc --print target-libdir)/../bin/llvm-profdata
PGO_BUILD = $(CARGO) build --release --locked --bin svidgate --target $(HOST) --target-dir

llvm-tools:
	@command -v "$(LLVM_PROFDATA)" >/dev/null || rustup component add llvm-tools
	@command -v "$(LLVM_PROFDATA)" >/dev/null || \
	  { echo 'no $(LLVM_PROFDATA). LLVM_PROFDATA=FILE says where one of the LLVM is that rustc has' >&2; exit 1; }

pgo: llvm-tools
	$(if $(word 2,$(CURDIR)),$(error the path of the checkout has a space, which RUSTFLAGS cannot carry))
	rm -rf target/pgo
	RUSTFLAGS='-Cprofile-generate=$(CURDIR)/target/pgo/counts' $(PGO_BUILD) target/pgo/counting
	$(CARGO) build --release --locked --example soak
	target/release/examples/soak target/pgo/counting/$(HOST)/release/svidgate $(or $(SOAK_SECONDS),60)
	'$(LLVM_PROFDATA)' merge --output=target/pgo/profile target/pgo/counts
	RUSTFLAGS='-Cprofile-use=$(CURDIR)/target/pgo/profile' $(PGO_BUILD) target/pgo/build
	cp target/pgo/build/$(HOST)/release/svidgate target/pgo/svidgate

# BENCH='--only request,body --peers svidgate,nginx --rounds 3': a part of it, without writing the results.
bench: build $(if $(BENCH),,pgo)
	$(CARGO) build --release --locked --example world
	python3 benches/bench.py $(or $(BENCH),--write --own pgo=target/pgo/svidgate)

bench-smoke: build
	$(CARGO) build --release --locked --example world
	python3 benches/bench.py --smoke

# Without a sanitizer, and so on the stable toolchain: there is no unsafe code of ours for one to watch. What is found
# goes to fuzz/artifacts, inputs that reach new code to fuzz/work; seeds, in fuzz/corpus, are chosen by hand.
fuzz: FUZZ_SECONDS ?= 600
fuzz-smoke: FUZZ_SECONDS = 10
fuzz fuzz-smoke:
	@$(CARGO) fuzz --version 2>/dev/null | grep -qF $(FUZZ_VERSION) || \
	  $(CARGO) install --locked --version $(FUZZ_VERSION) cargo-fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p fuzz/work/$$target; \
	  $(CARGO) fuzz run -s none $$target fuzz/work/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1; \
	done

bench-instructions: build
	$(CARGO) build --release --locked --example world --example micro
	python3 benches/instructions.py --write

hostile: build
	python3 benches/hostile.py $(HOSTILE)

# It installs what is missing: Go modules and Python packages by exact version outside the tree, the rest from the
# distribution. README=1 writes the table of peers into README.md.
interop: build
	$(CARGO) build --release --locked --example world
	python3 tests/interop/run.py $(if $(README),--readme) $(INTEROP)
