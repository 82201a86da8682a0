# Portolan. `make demo` shows it, `make test` proves it; both set up what they need. Linux, root, cargo.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# Debian packages the tests use as real peers.
PACKAGES := bind9-dnsutils busybox-static containernetworking-plugins curl golang-go haproxy iproute2 iputils-ping \
	knot knot-dnsutils libnginx-mod-stream musl-tools nftables nginx-light podman python3-dnspython runc strace unbound

RELEASE := target/release

.PHONY: help setup build demo check test clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# policy-rc.d: none of the services they bring may start on the machine.
setup: ## install the Debian packages that are missing
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing: $$missing"; \
		[ -e /usr/sbin/policy-rc.d ] || { trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
			printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

build: ## release binaries in target/release; portolan-cni is static
	cargo build --release --locked -p portolan-proxy -p portolan-dns -p portolan-bench
	cargo rustc --release --locked -p portolan-cni --bin portolan-cni -- -C target-feature=+crt-static

demo: setup build ## three tiers of pods talk through Services by name, in private namespaces
	@$(RELEASE)/portolan-bench demo

check: ## format, lints, documentation
	cargo fmt --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

test: setup check build ## everything; and nothing may be left on the machine
	@testbed/host-state.sh > target/host-before
	cargo build --workspace --locked # the daemons that the tests start: cargo test builds only a package's own
	cargo test --workspace --locked
	$(RELEASE)/portolan-bench demo > target/demo.log
	@testbed/host-state.sh > target/host-after
	diff target/host-before target/host-after
	@echo "the machine is as it was before"

clean: ## remove what was built
	cargo clean
