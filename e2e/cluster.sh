#!/bin/bash
# A Kubernetes cluster in namespaces of this machine, with Portolan as its whole data plane.
#
#   cluster.sh up             NODES nodes (default 1), STACK ipv4 (default), ipv6 or dual
#   cluster.sh in N CMD...    runs a command on node N, from 1
#   cluster.sh out CMD...     runs a command beyond the nodes, where clients from elsewhere are
#   cluster.sh kubectl ...    kubectl as cluster administrator
#   cluster.sh daemons        starts Portolan's daemons anew
#   cluster.sh down           ends all of it
#
# Node 1 has etcd, API server, controllers and scheduler; each node has containerd, a kubelet and Portolan's daemons as
# processes. Beyond them is a bridge, their gateway, with something that plays the Internet: 8.8.8.8, a name server, a web server.
# CLUSTER is the directory of its state and logs, PROGRAMS that of Portolan's programs; `make conformance` says what is
# needed beside them. PROXY_FLAGS and DNS_FLAGS are more flags of the daemons.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
source=$(dirname "$here")
PORTOLAN_TOOLS=${PORTOLAN_TOOLS:-$HOME/.cache/portolan-tools}
PROGRAMS=$(realpath "${PROGRAMS:-$source/target/release}")
CLUSTER=${CLUSTER:-/var/tmp/portolan-cluster}
NODES=${NODES:-1}
STACK=${STACK:-ipv4}
suite=$PORTOLAN_TOOLS/conformance
pki=$CLUSTER/pki
# What it was started with.
# shellcheck source=/dev/null
[ ! -e "$CLUSTER/settings" ] || . "$CLUSTER/settings"

# Addresses of the nodes: the gateway has .1, node N has .N+1. They are those of kind's.
net=172.18.0. net6=fc00:f853:ccd:e793::
# What is served with: these are kind's and kubeadm's, too.
case $STACK in
ipv4) pods=10.244.0.0/16 services=10.96.0.0/12 ;;
dual) pods=10.244.0.0/16,fd00:10:244::/56 services=10.96.0.0/12,fd00:10:96::/112 ;;
ipv6) pods=fd00:10:244::/56 services=fd00:10:96::/112 ;;
esac
if [ "$STACK" = ipv6 ]; then
	dns=fd00:10:96::a dns_listen=[$dns]:53 gateway=${net6}1 api=[${net6}2] advertise=${net6}2
else
	dns=10.96.0.10 dns_listen=$dns:53 gateway=${net}1 api=${net}2 advertise=${net}2
fi

enter() { # NODE CMD...
	local node=$1
	shift
	nsenter -t "$(cat "$CLUSTER/$node.pid")" -n -m -p "$@"
}

out() {
	nsenter -t "$(cat "$CLUSTER/outside.pid")" -n "$@"
}

kubectl() {
	enter node-1 "$CLUSTER/bin/kubectl" --kubeconfig "$pki/admin.kubeconfig" --cache-dir /run/kubectl "$@"
}

# start NODE NAME CMD...: a daemon on a node.
start() {
	local node=$1 name=$2
	shift 2
	setsid nsenter -t "$(cat "$CLUSTER/$node.pid")" -n -m -p "$@" >> "$CLUSTER/$node-$name.log" 2>&1 < /dev/null &
}

# wait_for WHAT CMD...: two minutes at most.
wait_for() {
	local what=$1 deadline=$((SECONDS + 120))
	shift
	until "$@" > /dev/null 2>&1; do
		if [ $SECONDS -ge $deadline ]; then
			echo "$what: not within two minutes" >&2
			return 1
		fi
		sleep 0.5
	done
}

# hold NAME FLAGS CMD...: namespaces and the process in them that holds them, whose id goes into NAME.pid.
hold() {
	local name=$1 flags=$2 unshare pid
	shift 2
	# shellcheck disable=SC2086 # several flags
	setsid unshare $flags "$@" > "$CLUSTER/$name-setup.log" 2>&1 < /dev/null &
	unshare=$!
	wait_for "$name" test -e "$CLUSTER/$name.up" || { cat "$CLUSTER/$name-setup.log" >&2; return 1; }
	# With --fork the process in them is a child.
	pid=$(tr -d ' ' < "/proc/$unshare/task/$unshare/children")
	case $flags in *--fork*) ;; *) pid=$unshare ;; esac
	echo "$pid" > "$CLUSTER/$name.pid"
}

outside_up() {
	hold outside --net bash -ec "
		ip link set lo up
		ip link add br0 type bridge
		ip link set br0 up
		ip address add ${net}1/16 dev br0
		ip address add ${net6}1/64 dev br0 nodad
		for address in 8.8.8.8/32 93.184.215.14/32; do ip address add \$address dev lo; done
		for address in 2001:4860:4860::8888/128 2606:2800::14/128; do ip -6 address add \$address dev lo; done
		# Packets for a load balancer's address that leads to no node are lost, without an error: their gateway does not exist.
		ip neighbour add ${net}254 lladdr 02:00:00:00:00:fe dev br0 nud permanent
		ip route add 172.19.0.0/16 via ${net}254 src 8.8.8.8
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.fib_multipath_hash_policy=1
		touch $CLUSTER/outside.up
		exec sleep infinity"
	cat > "$CLUSTER/Corefile" <<- 'CONFIG'
		. {
			hosts {
				93.184.215.14 www.google.com google.com
				2606:2800::14 www.google.com google.com
				8.8.8.8 dns.google
				142.250.0.1 metadata.google.internal
			}
			errors
		}
	CONFIG
	outside_daemon coredns "$PORTOLAN_TOOLS/coredns" -conf "$CLUSTER/Corefile"
	outside_daemon internet "$suite/agnhost" netexec --http-port=80 --udp-port=8081
	[ "$STACK" = ipv6 ] || outside_daemon load-balancer "$here/load_balancer.py" "$pki" "https://$api:6443"
}

outside_daemon() { # NAME CMD...
	local name=$1
	shift
	(
		cd "$CLUSTER"
		setsid nsenter -t "$(cat outside.pid)" -n "$@" > "$name.log" 2>&1 < /dev/null &
		echo $! >> daemons.pid
	)
}

control_plane_up() {
	local kubeconfig=$pki/admin.kubeconfig control_plane=$PORTOLAN_TOOLS/control-plane
	start node-1 etcd "$control_plane" etcd --data-dir=/run/etcd --unsafe-no-fsync \
		--listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
		--listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
		--initial-cluster=default=http://127.0.0.1:2380
	start node-1 kube-apiserver "$control_plane" kube-apiserver --etcd-servers=http://127.0.0.1:2379 \
		--service-cluster-ip-range="$services" --secure-port=6443 --advertise-address=$advertise \
		--client-ca-file="$pki/ca.crt" --tls-cert-file="$pki/server.crt" --tls-private-key-file="$pki/server.key" \
		--service-account-key-file="$pki/accounts.key" --service-account-signing-key-file="$pki/accounts.key" \
		--service-account-issuer=https://kubernetes.default.svc --authorization-mode=Node,RBAC --allow-privileged=true \
		--kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
		--kubelet-preferred-address-types=InternalIP --requestheader-client-ca-file="$pki/ca.crt" \
		--requestheader-allowed-names=front-proxy-client --requestheader-extra-headers-prefix=X-Remote-Extra- \
		--requestheader-group-headers=X-Remote-Group --requestheader-username-headers=X-Remote-User \
		--proxy-client-cert-file="$pki/front-proxy-client.crt" --proxy-client-key-file="$pki/front-proxy-client.key"
	wait_for "the API server" kubectl get --raw /readyz
	start node-1 kube-controller-manager "$control_plane" kube-controller-manager --kubeconfig="$kubeconfig" \
		--service-account-private-key-file="$pki/accounts.key" --leader-elect=false --secure-port=0 --allocate-node-cidrs \
		--cluster-cidr="$pods" --service-cluster-ip-range="$services" --root-ca-file="$pki/ca.crt"
	start node-1 kube-scheduler "$control_plane" kube-scheduler --kubeconfig="$kubeconfig" --leader-elect=false --secure-port=0
	kubectl apply -f "$source/deploy/kubernetes/rbac.yaml" > "$CLUSTER/rbac.log" 2>&1
}

node_up() { # N
	local n=$1 node=node-$1 address=$net$(($1 + 1)) address6=$net6$(($1 + 1)) pid
	mkdir -p "$CLUSTER/$node"
	hold "$node" "--net --mount --pid --fork --mount-proc --propagation private" \
		"$here/node.sh" "$CLUSTER" "$node" "$address" "$gateway" "$PROGRAMS/portolan-cni"
	pid=$(cat "$CLUSTER/$node.pid")
	out ip link add "up$n" type veth peer name eth0 netns "$pid"
	out ip link set "up$n" master br0 up
	enter "$node" bash -ec "
		echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad
		ip link set eth0 up
		ip address add $address/16 dev eth0
		ip address add $address6/64 dev eth0 nodad
		ip route add default via ${net}1
		ip -6 route add default via ${net6}1
		sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"
}

# join N: what makes a node one of the cluster.
join() {
	local node=node-$1 address=$net$(($1 + 1)) address6=$net6$(($1 + 1)) own=$CLUSTER/node-$1
	case $STACK in dual) address=$address,$address6 ;; ipv6) address=$address6 ;; esac
	daemons_up "$1"
	containerd_config "$own" > "$own/containerd.toml"
	start "$node" containerd containerd --config "$own/containerd.toml"
	wait_for "containerd of $node" enter "$node" ctr version
	enter "$node" ctr -n k8s.io images import --snapshotter overlayfs "$suite/images.tar" > "$own-images.log" 2>&1
	kubelet_config "$own" > "$own/kubelet.yaml"
	start "$node" kubelet "$PORTOLAN_TOOLS/control-plane" kubelet --config="$own/kubelet.yaml" \
		--kubeconfig="$pki/admin.kubeconfig" --root-dir="$own/kubelet" --hostname-override="$node" --node-ip="$address"
}

daemons_up() { # N
	local node=node-$1
	# shellcheck disable=SC2086 # several flags
	start "$node" portolan-proxy "$PROGRAMS/portolan-proxy" --kubeconfig "$pki/portolan-proxy.kubeconfig" --node-name "$node" \
		--service-cidr "$services" --cni-conflist /etc/cni/net.d/10-portolan.conflist --cluster-cidr "$pods" ${PROXY_FLAGS:-}
	# shellcheck disable=SC2086
	start "$node" portolan-dns "$PROGRAMS/portolan-dns" --kubeconfig "$pki/portolan-dns.kubeconfig" --listen $dns_listen \
		--cluster-domain cluster.local --service-cidr "$services" ${DNS_FLAGS:-}
}

# The machine's cgroups are not the node's to change.
kubelet_config() {
	cat <<- CONFIG
		apiVersion: kubelet.config.k8s.io/v1beta1
		kind: KubeletConfiguration
		containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
		clusterDNS: ["$dns"]
		clusterDomain: cluster.local
		authentication: {anonymous: {enabled: false}, webhook: {enabled: false}, x509: {clientCAFile: $pki/ca.crt}}
		authorization: {mode: AlwaysAllow}
		makeIPTablesUtilChains: false
		failCgroupV1: false
		cgroupDriver: cgroupfs
		cgroupsPerQOS: false
		enforceNodeAllocatable: []
		evictionHard: {memory.available: 0%, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}
		imageGCHighThresholdPercent: 100
		maxPods: 250
		volumePluginDir: $1/volume-plugins
		kubeAPIQPS: 100
		kubeAPIBurst: 200
		registryPullQPS: 0
		serializeImagePulls: false
	CONFIG
}

containerd_config() {
	cat <<- CONFIG
		version = 2
		root = "$1/containerd"
		state = "/run/containerd"
		[grpc]
		address = "/run/containerd/containerd.sock"
		[plugins."io.containerd.grpc.v1.cri"]
		sandbox_image = "registry.k8s.io/$(cat "$suite/pause-tag")"
		disable_cgroup = true
		disable_apparmor = true
		restrict_oom_score_adj = true
		[plugins."io.containerd.grpc.v1.cri".containerd]
		snapshotter = "overlayfs"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		runtime_type = "io.containerd.runc.v2"
		[plugins."io.containerd.grpc.v1.cri".cni]
		bin_dir = "/opt/cni/bin"
		conf_dir = "/etc/cni/net.d"
	CONFIG
}

up() {
	local n
	mkdir -p "$CLUSTER/bin"
	printf '%s=%q\n' NODES "$NODES" STACK "$STACK" PROGRAMS "$PROGRAMS" PROXY_FLAGS "${PROXY_FLAGS:-}" DNS_FLAGS "${DNS_FLAGS:-}" \
		> "$CLUSTER/settings"
	ln -sf "$PORTOLAN_TOOLS/control-plane" "$CLUSTER/bin/kubectl"
	"$here/certificates.sh" "$pki" "https://$api:6443" IP:${net}2 IP:${net6}2 IP:127.0.0.1 IP:10.96.0.1 IP:fd00:10:96::1 \
		DNS:kubernetes DNS:kubernetes.default DNS:kubernetes.default.svc DNS:kubernetes.default.svc.cluster.local \
		> "$CLUSTER/certificates.log" 2>&1
	outside_up
	for n in $(seq "$NODES"); do node_up "$n"; done
	control_plane_up
	for n in $(seq "$NODES"); do join "$n"; done
	for n in $(seq "$NODES"); do
		wait_for "node-$n" kubectl wait --for=condition=Ready "node/node-$n" --timeout=1s
	done
	zones
	kubectl get nodes -o wide
}

# Tests of topology want three zones of two nodes.
zones() {
	[ "$NODES" -ge 6 ] || return 0
	local n
	for n in $(seq "$NODES"); do
		kubectl label node "node-$n" "topology.kubernetes.io/zone=zone-$((n % 3))" > /dev/null
	done
}

# Ends Portolan's daemons of each node and starts others.
daemons() {
	local n
	for n in $(seq "$NODES"); do
		# shellcheck disable=SC2016 # in the node
		enter "node-$n" sh -c 'kill $(pgrep -x portolan-proxy) $(pgrep -x portolan-dns)' || true
		wait_for "the daemons of node-$n to end" enter "node-$n" sh -c '! pgrep -x "portolan-proxy|portolan-dns"'
		daemons_up "$n"
	done
}

# The first process of a node takes all others of it along.
down() {
	local file pid
	for file in "$CLUSTER"/*.pid; do
		[ -e "$file" ] || continue
		while read -r pid; do
			kill -9 "$pid" 2> /dev/null || true
		done < "$file"
	done
	wait_for "the cluster to end" has_ended
	rm -rf --one-file-system "$CLUSTER"
}

has_ended() {
	local pid
	while read -r pid; do
		! kill -0 "$pid" 2> /dev/null || return 1
	done < <(cat "$CLUSTER"/*.pid)
}

case ${1:-} in
up | down | daemons) "$1" ;;
in) node=node-$2; shift 2; enter "$node" "$@" ;;
out) shift; out "$@" ;;
kubectl) shift; kubectl "$@" ;;
*) echo "$0: up, down, daemons, in, out or kubectl" >&2; exit 2 ;;
esac
