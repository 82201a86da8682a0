//! A kubelet on a node that shares its kernel with a machine.

/// A script: what the kubelet would set for the whole machine it finds set already.
pub const KUBELET_TUNABLES: &str = "
    mkdir -p /run/sysctl
    for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        file=/run/sysctl/$(basename ${tunable%=*}); echo ${tunable#*=} > $file; mount --bind $file /proc/sys/${tunable%=*}
    done
";
