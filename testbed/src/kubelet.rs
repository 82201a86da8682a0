//! Settings for a kubelet on a node that shares the machine's kernel.

/// A script that mounts the tunables the kubelet requires, so that it does not change them for the whole
/// machine.
pub const KUBELET_TUNABLES: &str = "
    mkdir -p /run/sysctl
    for tunable in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
        file=/run/sysctl/$(basename ${tunable%=*}); echo ${tunable#*=} > $file; mount --bind $file /proc/sys/${tunable%=*}
    done
";
