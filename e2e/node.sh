#!/bin/bash
# The first process of a node, in network, mount and process namespaces of its own: makes them the node's, and holds them.
#   node.sh DIRECTORY NAME ADDRESS GATEWAY CNI-PLUGIN
set -euo pipefail
directory=$1 name=$2 address=$3 gateway=$4 plugin=$5

mount --make-rshared /
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/portolan /run/containerd /run/sysctl
mount -t tmpfs tmpfs /run/netns
mount --make-shared /run/netns
for layered in /etc /var/lib; do
	mkdir -p /run/overlay$layered/{upper,work}
	mount -t overlay overlay -o lowerdir=$layered,upperdir=/run/overlay$layered/upper,workdir=/run/overlay$layered/work $layered
done
for empty in /var/log /dev/shm /opt; do
	mount -t tmpfs tmpfs $empty
done
mkdir -p /opt/cni/bin /etc/cni/net.d
rm -f /etc/cni/net.d/*
cp /usr/lib/cni/loopback "$plugin" /opt/cni/bin/
rm -f /etc/resolv.conf
echo "nameserver $gateway" > /etc/resolv.conf
echo "$name" > /etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n%s %s\n' "$address" "$name" > /etc/hosts

# What the kubelet would set for the whole machine it finds set already.
for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
	kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
	file=/run/sysctl/$(basename "${tunable%=*}")
	echo "${tunable#*=}" > "$file"
	mount --bind "$file" "/proc/sys/${tunable%=*}"
done
ip link set lo up

touch "$directory/$name.up"
# A shell that waits also reaps what the node's processes leave.
while :; do
	sleep 600 &
	wait $!
done
