# make test         all tests, with everything they need
# make e2e          the SDKs and frameworks that people use, against a real server; and
# make e2e-schemathesis  whatever docs/openapi.json allows, and what it does not
# make lint         formatting and clippy, warnings denied
# make bench        the measurements of bench/RESULTS.md
# make bench-peers  our gateway beside Dynamo's and smg, which it installs from PyPI: bench/peers/README.md
# make bench-engine our engine beside llama.cpp, which whoever measures has built: bench/engine/README.md
# make chaos        faults in a cluster under load: SEED=1 FAULTS=220 OVERLAPPING=18
# make fuzz         random input for whatever reads clients, models and peers: FUZZ_SECONDS=600 each
# make cuda-check   what only a build for CUDA compiles: type checks and clippy; needs no GPU
# make cuda-build   the command with CUDA: target/release/stator, and whether it starts; needs no GPU
# make gpu-check-build  what make gpu-check runs, target/release/stator; needs no GPU and no toolkit
# make gpu-check    what a card proves, in one table; needs one, Python with numpy and what was built: bench/gpu/README.md
# make gpu-check-small  the same script on the CPU, by candle
# make docker-test  the containers of docker/, built and run; needs docker with compose v2

PYTHON ?= python3
VENV := target/venv
PYTEST := $(VENV)/bin/pytest

.PHONY: test cuda-check cuda-build gpu-check-build gpu-check gpu-check-small e2e e2e-schemathesis lint bench bench-peers bench-engine bench-engine-small chaos docker-test fuzz

# A worker of this commit must be able to serve in a cluster of the present version.
EARLIER := 4c55971bdc675c57028f6689a17b1c7941c02dac

# With candle, with which our kernels are compared.
test: $(VENV)/.installed target/earlier/$(EARLIER) target/.g++
	cargo build --workspace --all-targets --locked --features stator/candle
	cargo test --workspace --locked --features stator/candle
	STATOR_BINARY=target/debug/stator $(PYTEST) -q -rs e2e/python
	STATOR_BINARY=target/debug/stator $(VENV)/bin/python e2e/clients/run.py --quick

e2e: $(VENV)/.installed e2e-schemathesis
	cargo build --locked --package stator
	STATOR_CONSTRAINED_RUNS=1000 STATOR_BINARY=target/debug/stator $(PYTEST) -q -rs e2e/python/test_constrained.py
	STATOR_BINARY=target/debug/stator $(VENV)/bin/python e2e/clients/run.py

e2e-schemathesis:
	cargo build --locked --package stator
	STATOR_BINARY=target/debug/stator $(PYTHON) e2e/schemathesis/run.py

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy --package engine --package stator --all-targets --locked --features stator/candle -- -D warnings

# The compute capability that kernels are compiled for; drivers compile them further for newer cards.
CUDA_COMPUTE_CAP ?= 80
CUDA_HOME = $(CURDIR)/target/cuda/nvidia/cu13
CUDA = CUDA_HOME=$(CUDA_HOME) CUDA_PATH=$(CUDA_HOME) PATH="$(CUDA_HOME)/bin:$$PATH" CUDA_COMPUTE_CAP=$(CUDA_COMPUTE_CAP)
cuda-check: target/cuda/.installed
	$(CUDA) cargo clippy --release --locked --package stator --package engine --features stator/cuda -- -D warnings

cuda-build: target/cuda/.installed
	$(CUDA) cargo build --release --locked --package stator --features cuda
	LD_LIBRARY_PATH=$(CUDA_HOME)/lib/stubs:$(CUDA_HOME)/lib target/release/stator --version
	ls -l target/release/stator

gpu-check-build:
	cargo build --release --locked --package stator

STATOR ?= target/release/stator
NATS_SERVER ?= $(VENV)/bin/nats-server
GPU ?=
gpu-check:
	$(PYTHON) -B bench/gpu/check.py $(STATOR) --nats-server $(NATS_SERVER) $(GPU)

gpu-check-small: $(VENV)/.installed target/bench-engine/.installed
	cargo build --release --locked --package stator --features candle
	target/bench-engine/bin/python -B bench/gpu/check.py target/release/stator --device candle-cpu --shape llama-15m \
	  --batch 2 --seconds 20 --nats-server $(NATS_SERVER) --only card families handoff speed

target/cuda/.installed: engine/cuda/toolkit.py Cargo.lock
	mkdir -p target/cuda
	$(PYTHON) engine/cuda/toolkit.py target/cuda
	touch $@

docker-test: $(VENV)/.installed
	$(PYTEST) -q -p no:cacheprovider docker

bench: $(VENV)/.installed
	cargo build --release --locked --package stator
	cargo build --release --locked --package loadtest --example trivial_server
	$(PYTHON) bench/serve.py target/release/stator
	$(PYTHON) bench/handoff.py target/release/stator
	$(PYTHON) bench/mock.py target/release/stator
	$(PYTHON) bench/distribution.py target/release/stator
	$(PYTHON) bench/loadtest.py target/release/stator target/release/examples/trivial_server
	cargo bench --locked --package engine
	cargo bench --locked --package router
	cargo bench --locked --package grammar
	cargo bench --locked --package tokenizer
	cargo run --release --locked --package kv-transfer --example tcp_ratio
	LD_LIBRARY_PATH=$$(echo $(CURDIR)/$(VENV)/lib/python3*/site-packages/libucx/lib) \
	  cargo run --release --locked --package kv-transfer --example ucx_ratio
	cargo build --release --locked --package decode-worker --example swarm
	$(PYTHON) bench/swarm.py target/release/stator target/release/examples/swarm --nats-server $(VENV)/bin/nats-server

PEERS ?=
bench-peers: target/peers/.installed
	cargo build --release --locked --package stator
	target/peers/bin/python bench/peers/peers.py target/release/stator $(PEERS)

target/peers/.installed: bench/peers/requirements.txt bench/peers/requirements-without-dependencies.txt
	$(PYTHON) -m venv target/peers
	target/peers/bin/pip install --quiet --disable-pip-version-check -r bench/peers/requirements.txt
	target/peers/bin/pip install --quiet --disable-pip-version-check --no-deps -r bench/peers/requirements-without-dependencies.txt
	touch $@

ENGINE ?=
BENCH_ENGINE := target/bench-engine/bin/python -B bench/engine
bench-engine: target/bench-engine/.installed
	cargo build --release --locked --package stator
	cargo build --release --locked --package engine --example measure
	$(BENCH_ENGINE)/compare.py $(ENGINE)
	$(BENCH_ENGINE)/served.py target/release/stator
	$(BENCH_ENGINE)/memory.py target/release/stator

bench-engine-small: target/bench-engine/.installed
	cargo build --release --locked --package stator
	cargo build --release --locked --package engine --example measure
	$(BENCH_ENGINE)/compare.py --small --rounds 2 --growth-rounds 1
	$(BENCH_ENGINE)/served.py target/release/stator --small --rounds 2 --seconds 5
	$(BENCH_ENGINE)/memory.py target/release/stator --small

target/bench-engine/.installed: bench/engine/requirements.txt
	$(PYTHON) -m venv target/bench-engine
	target/bench-engine/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

SEED ?= 1
FAULTS ?= 220
OVERLAPPING ?= 18
chaos: $(VENV)/.installed
	cargo build --release --locked --package stator --package chaos
	target/release/chaos --seed $(SEED) --faults $(FAULTS) --overlapping $(OVERLAPPING) $(CHAOS_ARGUMENTS)

FUZZ_SECONDS ?= 600
FUZZ := RUSTC_BOOTSTRAP=1 cargo fuzz run
FUZZ_LIMITS := -max_total_time=$(FUZZ_SECONDS) -timeout=30 -rss_limit_mb=2048
fuzz:
	command -v cargo-fuzz > /dev/null || cargo install --locked cargo-fuzz
	cd kv-transfer && $(FUZZ) frames -- $(FUZZ_LIMITS)
	for target in answers requests conversations tokens events; do \
	  (cd gateway && $(FUZZ) $$target -- $(FUZZ_LIMITS) -max_len=400 -len_control=0) || exit 1; \
	done

# Apart from the present version's build: what both have in common looks the same to cargo where it is not.
target/earlier/$(EARLIER):
	rm -rf target/earlier && mkdir -p target/earlier/source
	if git cat-file -e $(EARLIER); then \
	  git archive $(EARLIER) | tar --extract --directory target/earlier/source && \
	  cargo build --manifest-path target/earlier/source/Cargo.toml --target-dir target/earlier/build --locked --package stator && \
	  cp target/earlier/build/debug/stator target/earlier/stator && rm -r target/earlier/source target/earlier/build && touch $@; \
	else echo "commit $(EARLIER) is not in this clone: version skew is NOT tested (git fetch --unshallow)"; fi

# The CUDA kernels are tested on the CPU, as C++.
target/.g++:
	command -v g++ > /dev/null || { apt-get update --quiet && apt-get install --quiet --yes --no-install-recommends g++; }
	mkdir -p target && touch $@

$(VENV)/.installed: e2e/python/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@
