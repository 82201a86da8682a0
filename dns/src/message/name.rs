//! Domain names in wire format: length-prefixed labels, ending with the root's empty label (RFC 1035 §3.1).

use std::borrow::Borrow;
use std::fmt;

use super::Malformed;

/// Maximum bytes of a name, including length bytes and root (RFC 1035 §2.3.4).
pub(crate) const MAX_NAME: usize = 255;

/// Maximum bytes of a label.
const MAX_LABEL: usize = 63;

/// A borrowed, uncompressed name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Name<'a>(&'a [u8]);

/// An owned, uncompressed name. Empty until a label is added.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct NameBuf(Vec<u8>);

impl<'a> Name<'a> {
    /// Wraps bytes that are known to be one complete name.
    pub(crate) fn from_wire_unchecked(wire: &'a [u8]) -> Self {
        Self(wire)
    }

    /// The wire format, including the root.
    pub(crate) fn wire(self) -> &'a [u8] {
        self.0
    }

    /// The labels from the left, without the root.
    pub(crate) fn labels(self) -> Labels<'a> {
        Labels(self.0)
    }

    /// Appends the name in lower case. Length bytes are below `A`, so only letters change (RFC 4343).
    pub(crate) fn write_lower(self, into: &mut Vec<u8>) {
        into.clear();
        into.extend(self.0.iter().map(u8::to_ascii_lowercase));
    }

    /// The name in lower case, in `room`.
    pub(crate) fn lower(self, room: &mut [u8; MAX_NAME]) -> &[u8] {
        let room = &mut room[..self.0.len().min(MAX_NAME)];
        room.copy_from_slice(&self.0[..room.len()]);
        room.make_ascii_lowercase();
        room
    }

    /// Whether the names are equal, ignoring case.
    pub(crate) fn eq_ignore_case(self, other: Name<'_>) -> bool {
        self.0.eq_ignore_ascii_case(other.0)
    }

    /// The name without its leftmost label; `None` for the root.
    pub(crate) fn parent(self) -> Option<Self> {
        let length = usize::from(*self.0.first()?);
        if length == 0 { None } else { self.0.get(length + 1..).map(Self) }
    }

    /// Whether it is `suffix` or below it.
    pub(crate) fn is_within(self, suffix: Name<'_>) -> bool {
        let mut name = Some(self);
        while let Some(candidate) = name {
            if candidate.0.len() <= suffix.0.len() {
                return candidate.eq_ignore_case(suffix);
            }
            name = candidate.parent();
        }
        false
    }

    /// Copies the name.
    pub(crate) fn to_buf(self) -> NameBuf {
        NameBuf(self.0.to_vec())
    }
}

impl NameBuf {
    /// Parses text, with or without the trailing dot. Escapes are not supported.
    pub(crate) fn from_text(text: &str) -> Result<Self, Malformed> {
        let mut name = Self::default();
        for label in
            text.strip_suffix('.').unwrap_or(text).split('.').filter(|_| text != "." && !text.is_empty())
        {
            if label.is_empty() {
                return Err(Malformed);
            }
            name.push_label(label.as_bytes())?;
        }
        name.push_label(b"")?;
        Ok(name)
    }

    /// Appends a label. The empty label completes the name.
    pub(crate) fn push_label(&mut self, label: &[u8]) -> Result<(), Malformed> {
        let length = u8::try_from(label.len()).map_err(|_length| Malformed)?;
        // Unless this is the root label, the root must still fit.
        let closing = usize::from(length != 0);
        if label.len() > MAX_LABEL || self.0.len() + 1 + label.len() + closing > MAX_NAME {
            return Err(Malformed);
        }
        self.0.push(length);
        self.0.extend_from_slice(label);
        Ok(())
    }

    /// Appends another name, which completes this one.
    pub(crate) fn push_name(&mut self, name: Name<'_>) -> Result<(), Malformed> {
        if self.0.len() + name.0.len() > MAX_NAME {
            return Err(Malformed);
        }
        self.0.extend_from_slice(name.0);
        Ok(())
    }

    /// The completed name.
    pub(crate) fn as_name(&self) -> Name<'_> {
        Name(&self.0)
    }

    /// Converts all letters to lower case.
    pub(crate) fn make_lower(&mut self) {
        self.0.make_ascii_lowercase();
    }
}

/// Allows look-ups in a map of names with the bytes of a message.
impl Borrow<[u8]> for NameBuf {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// The labels of a name from the left.
#[derive(Clone, Debug)]
pub(crate) struct Labels<'a>(&'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (&length, rest) = self.0.split_first()?;
        if length == 0 {
            return None;
        }
        let (label, rest) = rest.split_at_checked(usize::from(length))?;
        self.0 = rest;
        Some(label)
    }
}

/// Formats like a zone file: dots in labels and non-printable bytes are escaped (RFC 1035 §5.1).
impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.len() <= 1 {
            return f.write_str(".");
        }
        for label in self.labels() {
            for &byte in label {
                match byte {
                    b'.' | b'\\' => write!(f, "\\{}", char::from(byte))?,
                    0x21..=0x7e => write!(f, "{}", char::from(byte))?,
                    _ => write!(f, "\\{byte:03}")?,
                }
            }
            f.write_str(".")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.as_name(), f)
    }
}

impl fmt::Debug for NameBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
