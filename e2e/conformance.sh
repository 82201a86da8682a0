#!/bin/bash
# Runs the official [sig-network] end-to-end tests of Kubernetes on clusters that Portolan carries, and prints a table:
# `make conformance` builds what it needs.
#
#   SETS       which of the sets below, all unless set
#   PROCS      tests at a time, 2 unless set
#   FOCUS      a regular expression of names: of each set only these
#   SKIP       a regular expression of names: of each set none of these
#   PROGRAMS   the directory of Portolan's programs, target/release unless set
#   OUT        the directory of results and logs, target/conformance unless set
#
# Exits with 1 when a test failed or the machine is not as it was before.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
source=$(dirname "$here")
export PORTOLAN_TOOLS=${PORTOLAN_TOOLS:-$HOME/.cache/portolan-tools}
export PROGRAMS=${PROGRAMS:-$source/target/release}
OUT=$(realpath -m "${OUT:-$source/target/conformance}")
SETS=${SETS:-one two dual topology localhost}
suite=$PORTOLAN_TOOLS/conformance

# What has a set of its own.
elsewhere='Feature:(IPv6DualStack|Networking-IPv6|LocalhostNodePorts)|Traffic Distribution'

# set NAME NODES STACK FOCUS SKIP [PROXY_FLAGS]
run_set() {
	case $1 in
	one) run one 1 ipv4 '\[sig-network\]' "$elsewhere" ;;
	two) run two 2 ipv4 '\[sig-network\]' "$elsewhere" ;;
	dual) run dual 2 dual '\[sig-network\].*\[Feature:(IPv6DualStack|Networking-IPv6)\]' NONE ;;
	topology) run topology 6 ipv4 '\[sig-network\] (Traffic Distribution|Topology Hints)|NodePort and HealthCheckNodePort correctly' NONE ;;
	localhost) run localhost 2 ipv4 '\[Feature:LocalhostNodePorts\]' NONE "--node-port-addresses 127.0.0.0/8,172.18.0.0/16" ;;
	*) echo "$0: there is no set $1" >&2; return 2 ;;
	esac
}

run() {
	local name=$1 focus=$4 skip=$5 started=$SECONDS
	export NODES=$2 STACK=$3 PROXY_FLAGS=${6:-} CLUSTER
	CLUSTER=$(mktemp -d "/var/tmp/portolan-cluster.XXXXXX")
	# The container runtimes' sockets and users of other ids are in there.
	chmod 755 "$CLUSTER"
	skip="$skip|$(grep -v '^#' "$here/skip.txt" | cut -f1 | paste -sd'|')"
	[ -z "${SKIP:-}" ] || skip="$skip|$SKIP"
	rm -rf "${OUT:?}/$name"
	mkdir -p "$OUT/$name"
	echo "$name: $NODES nodes, $STACK"
	# Its processes are in sessions of their own: Ctrl-C does not reach them.
	trap '"$here/cluster.sh" down' EXIT
	trap 'exit 130' INT TERM
	if "$here/cluster.sh" up; then
		tests "$OUT/$name" "$focus" "$skip" || true
	fi
	cp "$CLUSTER"/*.log "$OUT/$name/" || true
	"$here/cluster.sh" down
	trap - EXIT
	echo "$name: $(((SECONDS - started) / 60)) minutes"
}

# tests DIRECTORY FOCUS SKIP: from beyond the nodes.
tests() {
	local results=$1
	local only=(--focus="$2" --skip="$3")
	[ -z "${FOCUS:-}" ] || only=(--focus="$FOCUS" --skip="$3")
	"$here/cluster.sh" out "$suite/ginkgo" --procs="${PROCS:-2}" -v --no-color --timeout=2h --output-interceptor-mode=none \
		"${only[@]}" "$suite/e2e.test" -- \
		--kubeconfig="$CLUSTER/pki/admin.kubeconfig" --kubectl-path="$CLUSTER/bin/kubectl" --provider=skeleton \
		--dns-domain=cluster.local --num-nodes="$NODES" --report-dir="$results" --system-pods-startup-timeout=1m \
		--node-schedulable-timeout=2m --allowed-not-ready-nodes=0 --dump-logs-on-failure=false > "$results/tests.log" 2>&1
}

# Other processes of the machine may come and go.
host_state() {
	"$source/testbed/host-state.sh" | sed '/^processes:/,$d'
}

main() {
	local name directories=() failed=0
	mkdir -p "$OUT"
	host_state > "$OUT/host-before"
	for name in $SETS; do
		run_set "$name"
		directories+=("$OUT/$name")
	done
	host_state > "$OUT/host-after"
	diff "$OUT/host-before" "$OUT/host-after" || failed=1
	"$here/report.py" "${directories[@]}" || failed=1
	exit $failed
}

main
