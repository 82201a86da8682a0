#!/bin/bash
# Compiles the Go programs that have a module of their own here, into the directories of the Makefile. The stamps of the
# Makefile cover this file and the modules. Kubernetes is of the version that testbed/control-plane/go.mod pins.
#   build.sh coredns             CoreDNS with the plugins that are compared
#   build.sh control-plane       the control plane, for the tests
#   build.sh suite               what the official end-to-end tests need beside it
#   build.sh control-plane suite both, which have most packages in common, with one cache: 20 minutes on two cores
# $GO is the go command, $PORTOLAN_TOOLS the directory.
set -euo pipefail
module=$(realpath "$(dirname "$0")/../testbed/control-plane")
suite=$PORTOLAN_TOOLS/conformance
version=$(sed -n 's|.*k8s.io/kubernetes v||p' "$module/go.mod")

# Compiled parts of 5 GB, of no use afterwards.
GOCACHE=$(mktemp -d)
trap 'rm -rf "$GOCACHE"' EXIT
export GOCACHE GOTOOLCHAIN=local CGO_ENABLED=0 GOFLAGS="-mod=readonly -buildvcs=false"

# Kubernetes' own build sets these: clients compare them.
stamp=k8s.io/component-base/version
IFS=. read -r major minor _ <<< "$version"
versioned="-s -w -X $stamp.gitVersion=v$version -X $stamp.gitMajor=$major -X $stamp.gitMinor=$minor"

coredns() {
	echo "building CoreDNS"
	"$GO" build -C ../../bench/coredns -o "$PORTOLAN_TOOLS/coredns" .
}

control_plane() {
	echo "building the control plane of Kubernetes $version: about ten minutes, once"
	"$GO" build -ldflags "$versioned" -o "$PORTOLAN_TOOLS/control-plane" .
}

suite() {
	echo "building the end-to-end tests of Kubernetes $version: about ten minutes, once"
	mkdir -p "$suite"
	"$GO" build -ldflags "-s -w" -o "$suite/" k8s.io/kubernetes/test/images/agnhost \
		k8s.io/kubernetes/test/images/regression-issue-74839 github.com/onsi/ginkgo/v2/ginkgo
	"$GO" test -c -vet=off -ldflags "$versioned" -o "$suite/e2e.test" k8s.io/kubernetes/test/e2e
	local kubernetes
	kubernetes=$("$GO" list -m -f '{{.Dir}}' k8s.io/kubernetes)
	gcc -Os -static -DVERSION=3.10 -o "$suite/pause" "$kubernetes/build/pause/linux/pause.c"
	# Tags of the images that the tests name, and the certificate of one of them.
	install -m 644 "$kubernetes/test/utils/image/manifest.go" "$suite/manifest.go"
	install -m 644 "$kubernetes"/test/images/agnhost/porter/localhost.{crt,key} "$suite/"
}

cd "$module"
for part; do
	case $part in
	coredns) coredns ;;
	control-plane) control_plane ;;
	suite) suite ;;
	*) echo "$0: coredns, control-plane or suite, not $part" >&2; exit 2 ;;
	esac
done
