# The same commands for people and for CI. The work is done by the scripts in deploy/local/.

.DEFAULT_GOAL := help
.PHONY: help demo test chaos prove check bench clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Install what is missing, build, and show the whole pipeline at work on real services
	deploy/local/stack install
	deploy/local/cargo build --release
	deploy/local/demo

test: ## Run all tests on a stack of their own (one test: make test ARGS=its_name)
	@deploy/local/test $(ARGS)

chaos: ## Faults drawn from a seed, under load (make chaos ROUNDS=50 SEED=1; WITHOUT=guard must fail; STOP=1 at the first)
	@RUST_BACKTRACE=0 CHAOS_ROUNDS=$(ROUNDS) CHAOS_SEED=$(SEED) CHAOS_WITHOUT=$(WITHOUT) CHAOS_STOP=$(STOP) \
		deploy/local/test chaos::rounds_of_chaos_are_exact --exact --ignored --nocapture

check: ## Formatting, lints and documentation, every warning an error
	deploy/local/stack install --build-only
	deploy/local/cargo fmt --check
	deploy/local/cargo clippy --all-targets --all-features -- -D warnings
	deploy/local/cargo clippy -- -D warnings
	RUSTDOCFLAGS=-Dwarnings deploy/local/cargo doc --no-deps

prove: ## Run the long proofs, some minutes each
	deploy/local/stack install --build-only
	deploy/local/cargo test --release --test fuzz -- --ignored --nocapture

bench: ## Run the benchmarks (arguments to cargo bench: make bench ARGS=...)
	deploy/local/stack install
	deploy/local/cargo bench $(ARGS)

clean: ## Take every local stack down and remove what was built; what was installed stays
	deploy/local/stack down --all
	deploy/local/cargo clean
