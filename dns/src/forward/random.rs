//! Random bytes that an attacker cannot guess (RFC 5452 §9.2).

/// The kernel's generator, which cannot fail after the boot.
pub(super) fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random numbers once it has started");
}
