# `make` says what there is. CI runs `make check` and `make test`, nothing else.
CARGO ?= cargo
DENY_VERSION = 0.20.2

.PHONY: help build run fmt check fmt-check lint test doc deny fixtures demo demo-once bench

help:
	@echo 'make build              the release binary, target/release/svidgate'
	@echo 'make run CONFIG=FILE    run it'
	@echo 'make demo               a small world to try it in, until Ctrl-C'
	@echo 'make demo-once          the same, tried by itself'
	@echo 'make test               every test'
	@echo 'make check              formatting, clippy, documentation, licences and bans'
	@echo 'make soak               load for 2 minutes (SOAK_SECONDS=) while everything is changed around it'
	@echo 'make bench              CPU per request beside nginx and HAProxy'
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

bench: build
	$(CARGO) build --release --locked --example world
	python3 benches/compare.py --workers 1
	python3 benches/compare.py --workers 2
