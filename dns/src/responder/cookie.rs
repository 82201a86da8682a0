//! DNS cookies (RFC 7873) in the interoperable format (RFC 9018): a client with a valid cookie does not forge
//! its source address.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use siphasher::sip::SipHasher24;

/// Bytes of the client cookie, of the server cookie, and of both.
pub(super) const CLIENT: usize = 8;
const SERVER: usize = 16;
pub(super) const COOKIE: usize = CLIENT + SERVER;

/// The only version, and three reserved bytes (RFC 9018 §4.2).
const VERSION: [u8; 4] = [1, 0, 0, 0];

/// Seconds for which a cookie is valid, for which it may be in the future, and after which the client gets a
/// new one (RFC 9018 §4.3).
const GOOD: u32 = 3600;
const AHEAD: u32 = 300;
const FRESH: u32 = 1800;

/// The secret of cookies. The next process receives it with the sockets, so that cookies stay valid.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret(pub(crate) [u8; 16]);

impl Secret {
    /// A random secret.
    ///
    /// # Errors
    /// If the kernel has no random bytes.
    pub(crate) fn new() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The client cookie with a server cookie: the one that was presented, while it is fresh.
    pub(super) fn cookie(&self, of_client: [u8; CLIENT], shown: &[u8], client: IpAddr) -> [u8; COOKIE] {
        self.cookie_at(now(), of_client, shown, client)
    }

    fn cookie_at(&self, now: u32, of_client: [u8; CLIENT], shown: &[u8], client: IpAddr) -> [u8; COOKIE] {
        let age = self.age(now, of_client, shown, client);
        let made_at = age.filter(|age| *age <= FRESH).map_or(now, |age| now.wrapping_sub(age));
        let mut cookie = [0; COOKIE];
        cookie[..CLIENT].copy_from_slice(&of_client);
        cookie[CLIENT..].copy_from_slice(&self.make(made_at, of_client, client));
        cookie
    }

    /// The age of this cookie in seconds, if it was made for this client and is valid.
    fn age(&self, now: u32, of_client: [u8; CLIENT], shown: &[u8], client: IpAddr) -> Option<u32> {
        let made_at = shown.get(4..8)?.try_into().map(u32::from_be_bytes).ok()?;
        if shown != self.make(made_at, of_client, client) {
            return None;
        }
        // Serial number arithmetic (RFC 1982): a clock may be slightly ahead.
        let age = now.wrapping_sub(made_at);
        if age > u32::MAX - AHEAD { Some(0) } else { Some(age).filter(|age| *age <= GOOD) }
    }

    fn make(&self, made_at: u32, of_client: [u8; CLIENT], client: IpAddr) -> [u8; SERVER] {
        let mut input = [0; COOKIE + 8];
        input[..CLIENT].copy_from_slice(&of_client);
        input[CLIENT..12].copy_from_slice(&VERSION);
        input[12..16].copy_from_slice(&made_at.to_be_bytes());
        let length = match client {
            IpAddr::V4(ip) => {
                input[16..20].copy_from_slice(&ip.octets());
                20
            }
            IpAddr::V6(ip) => {
                input[16..32].copy_from_slice(&ip.octets());
                32
            }
        };
        let hash = SipHasher24::new_with_key(&self.0).hash(&input[..length]);
        let mut made = [0; SERVER];
        made[..8].copy_from_slice(&input[CLIENT..16]);
        made[8..].copy_from_slice(&hash.to_le_bytes());
        made
    }
}

/// Hidden in logs.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

/// Seconds, modulo 2^32.
fn now() -> u32 {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    u32::try_from(seconds & u64::from(u32::MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Secret = Secret([
        0xe5, 0xe9, 0x73, 0xe5, 0xa6, 0xb2, 0xa4, 0x3f, 0x48, 0xe7, 0xdc, 0x84, 0x9e, 0x37, 0xbf, 0xcf,
    ]);
    const OF_CLIENT: [u8; 8] = [0x24, 0x64, 0xc4, 0xab, 0xcf, 0x10, 0xc9, 0x57];
    const MADE_AT: u32 = 1_559_731_985;

    fn client() -> IpAddr {
        "198.51.100.100".parse().unwrap()
    }

    /// RFC 9018 appendix A.1
    #[test]
    fn cookies_are_interoperable() {
        let cookie = SECRET.cookie_at(MADE_AT, OF_CLIENT, b"", client());
        let hex: String = cookie.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "2464c4abcf10c957010000005cf79f111f8130c3eee29480");
    }

    #[test]
    fn fresh_cookie_is_kept_and_an_old_or_foreign_one_is_replaced() {
        let first = SECRET.cookie_at(MADE_AT, OF_CLIENT, b"", client());
        let at = |now| SECRET.cookie_at(now, OF_CLIENT, &first[8..], client());
        assert_eq!(at(MADE_AT + FRESH), first);
        assert_eq!(at(MADE_AT - AHEAD + 1)[12..16], (MADE_AT - AHEAD + 1).to_be_bytes(), "from the future");
        assert_eq!(at(MADE_AT + FRESH + 1)[12..16], (MADE_AT + FRESH + 1).to_be_bytes());
        let age = |now, ip: &str| SECRET.age(now, OF_CLIENT, &first[8..], ip.parse().unwrap());
        assert_eq!(age(MADE_AT + GOOD, "198.51.100.100"), Some(GOOD));
        assert_eq!(age(MADE_AT + GOOD + 1, "198.51.100.100"), None);
        assert_eq!(age(MADE_AT, "198.51.100.101"), None);
    }
}
