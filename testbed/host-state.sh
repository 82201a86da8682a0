#!/bin/sh
# Prints what a test could leave behind on the machine: compared before and after, it must be the same.
echo "links:";      ip -o link | awk '{print $2}' | sort
echo "addresses:";  ip -o address | awk '{print $2, $4}' | sort
echo "routes:";     ip route show table all | sort; ip -6 route show table all | sort
echo "rules:";      ip rule; ip -6 rule
echo "nft:";        nft list ruleset
echo "namespaces:"; ls /run/netns 2>/dev/null
echo "state:";      ls -d /run/portolan /etc/netns /etc/portolan /var/lib/cni /var/lib/containers /dev/shm/* 2>/dev/null
echo "forwarding:"; cat /proc/sys/net/ipv4/ip_forward
echo "processes:";  cat /proc/[0-9]*/comm 2>/dev/null | grep -E '^(portolan-|conmon|runc$)' | sort
exit 0
