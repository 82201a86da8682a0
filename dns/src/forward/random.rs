//! What nobody outside may guess (RFC 5452 §9.2).

/// A message's id.
pub(super) fn id() -> u16 {
    let mut bytes = [0; 2];
    fill(&mut bytes);
    u16::from_be_bytes(bytes)
}

/// Gives every letter of a name a case by chance (draft-vixie-dnsext-dns0x20).
pub(super) fn spell(name: &mut [u8]) {
    let mut bits = [0; crate::message::MAX_NAME / 8 + 1];
    fill(&mut bits);
    for (at, byte) in name.iter_mut().enumerate() {
        // Lengths are below the letters.
        if byte.is_ascii_alphabetic() && bits[at / 8 % bits.len()] & 1 << (at % 8) != 0 {
            *byte ^= 0x20;
        }
    }
}

/// The kernel's generator; it cannot fail once the machine has started.
pub(super) fn fill(bytes: &mut [u8]) {
    getrandom::fill(bytes).expect("the kernel has random numbers once it has started");
}
