//! What an attacker must not be able to guess (RFC 5452 §9.2).

/// The kernel's generator; it cannot fail once the machine has started.
pub(super) fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random numbers once it has started");
}
