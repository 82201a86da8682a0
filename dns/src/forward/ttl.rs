//! Bounds of cached TTLs.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use hickory_resolver::proto::rr::RecordType;

/// The default bounds for existing names in seconds: an hour, like CoreDNS.
const SUCCESS: RangeInclusive<u32> = 0..=3600;

/// The default bounds for negative answers in seconds (RFC 2308 §5 recommends at most one to three hours).
const DENIAL: RangeInclusive<u32> = 0..=1800;

/// The limit of RFC 8767 §4: seven days.
const MAX: u32 = 604_800;

/// Bounds of TTLs in seconds: for success, for denial, and for single types.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    success: RangeInclusive<u32>,
    denial: RangeInclusive<u32>,
    types: BTreeMap<u16, RangeInclusive<u32>>,
}

/// One bound, as on the command line: `success=0-3600`, `denial=30`, `AAAA=5-60`, `TYPE65=0`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    of: Of,
    range: RangeInclusive<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Success,
    Denial,
    Type(u16),
}

impl Default for Limits {
    fn default() -> Self {
        Self { success: SUCCESS, denial: DENIAL, types: BTreeMap::new() }
    }
}

impl FromIterator<Limit> for Limits {
    fn from_iter<T: IntoIterator<Item = Limit>>(limits: T) -> Self {
        let mut all = Self::default();
        for Limit { of, range } in limits {
            match of {
                Of::Success => all.success = range,
                Of::Denial => all.denial = range,
                Of::Type(kind) => _ = all.types.insert(kind, range),
            }
        }
        all
    }
}

impl Limits {
    /// The bounds for an answer to a question of this type. The bounds of a type are for its records; their
    /// absence is a denial.
    pub(super) fn range(&self, kind: u16, is_positive: bool) -> RangeInclusive<u32> {
        let general = if is_positive { &self.success } else { &self.denial };
        self.types.get(&kind).filter(|_| is_positive).unwrap_or(general).clone()
    }
}

impl std::str::FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || {
            let examples = "such as success=0-3600, denial=30 or AAAA=5-60";
            format!("{text:?} is not WHAT=SECONDS or WHAT=MIN-MAX, {examples}")
        };
        let (what, range) = text.split_once('=').ok_or_else(form)?;
        let of = match what {
            "success" => Of::Success,
            "denial" => Of::Denial,
            _ => Of::Type(parse_type(what).ok_or_else(|| {
                format!("{what:?} is neither success, denial nor a record type such as AAAA or TYPE65")
            })?),
        };
        let (low, high) = range.split_once('-').unwrap_or(("0", range));
        let seconds = |text: &str| text.parse::<u32>().map_err(|_not_a_number| form());
        let (low, high) = (seconds(low)?, seconds(high)?);
        if low > high || high > MAX {
            return Err(format!("{range:?}: from 0 to {MAX} seconds, the smaller number first"));
        }
        Ok(Self { of, range: low..=high })
    }
}

/// Types without a name are written `TYPE65` (RFC 3597 §5).
fn parse_type(text: &str) -> Option<u16> {
    let text = text.to_ascii_uppercase();
    let named = || text.parse::<RecordType>().ok().map(u16::from);
    text.strip_prefix("TYPE").and_then(|number| number.parse().ok()).or_else(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(texts: &[&str]) -> Limits {
        texts.iter().map(|text| text.parse::<Limit>().unwrap()).collect()
    }

    #[test]
    fn bounds_of_a_type_override_success_but_not_denial() {
        let limits = limits(&["success=5-600", "denial=30", "AAAA=1-60", "type65=0"]);
        assert_eq!(limits.range(1, true), 5..=600);
        assert_eq!(limits.range(28, true), 1..=60);
        assert_eq!(limits.range(28, false), 0..=30);
        assert_eq!(limits.range(65, true), 0..=0);
    }

    #[test]
    fn invalid_bound_is_refused_with_a_suggestion() {
        for (text, hint) in [
            ("60", "such as success=0-3600"),
            ("A=x", "such as success=0-3600"),
            ("everything=60", "nor a record type such as AAAA"),
            ("A=60-5", "the smaller number first"),
            ("A=999999999", "604800"),
        ] {
            let error = text.parse::<Limit>().unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
