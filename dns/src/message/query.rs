//! The query of a client.

use super::{CLASS_IN, Cursor, Edns, Header, Malformed, Name, flag, kind, option, rcode};

/// The question of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Question<'a> {
    /// In the spelling of the client.
    pub(crate) name: Name<'a>,
    pub(crate) kind: u16,
    pub(crate) class: u16,
}

/// A valid standard query with one question (RFC 9619).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    pub(crate) header: Header,
    pub(crate) question: Question<'a>,
    pub(crate) edns: Option<Edns<'a>>,
}

/// An invalid message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Invalid<'a> {
    /// Too short to have an ID, or a response: it must not be answered.
    Ignore,
    /// To be answered with this code, with the question and EDNS as far as they could be decoded.
    Reply { header: Header, rcode: u16, question: Option<Question<'a>>, edns: Option<Edns<'a>> },
}

impl<'a> Query<'a> {
    /// Decodes a query, in time bounded by its length.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Invalid<'a>> {
        let header = Header::parse(message).map_err(|_short| Invalid::Ignore)?;
        if header.has(flag::QR) {
            return Err(Invalid::Ignore);
        }
        let invalid = |rcode, question, edns| Invalid::Reply { header, rcode, question, edns };
        let is_query = header.opcode() == 0;
        // Other opcodes have their own formats: what looks like a question is returned, but nothing is
        // required.
        let failure = if is_query { rcode::FORMERR } else { rcode::NOTIMP };
        if header.questions == 0 {
            let edns = find_edns(message, header, Header::LENGTH).ok().flatten();
            // A client without a question may want a cookie (RFC 7873 §5.4).
            let wants_cookie = edns.is_some_and(|edns| edns.option(option::COOKIE).is_some());
            let is_good = is_query && wants_cookie && edns.is_some_and(|edns| edns.has_no_bad_cookie());
            return Err(invalid(if is_good { rcode::NOERROR } else { failure }, None, edns));
        }
        if header.questions != 1 {
            return Err(invalid(failure, None, None));
        }
        let mut cursor = Cursor::at(message, Header::LENGTH);
        let question = Question::parse(&mut cursor).map_err(|_malformed| invalid(failure, None, None))?;
        let behind_question = cursor.position();
        let edns = find_edns(message, header, behind_question)
            .map_err(|_malformed| invalid(failure, Some(question), None))?;
        if !is_query {
            return Err(invalid(rcode::NOTIMP, Some(question), edns));
        }
        if edns.is_some_and(|edns| edns.version > 0) {
            return Err(invalid(rcode::BADVERS, Some(question), edns));
        }
        if edns.is_some_and(|edns| edns.has_options() && !edns.has_no_bad_cookie()) {
            return Err(invalid(rcode::FORMERR, Some(question), edns));
        }
        Ok(Self { header, question, edns })
    }
}

impl<'a> Question<'a> {
    /// The question at the cursor.
    pub(crate) fn parse(cursor: &mut Cursor<'a>) -> Result<Self, Malformed> {
        Ok(Self { name: cursor.plain_name()?, kind: cursor.u16()?, class: cursor.u16()? })
    }

    /// Whether its class is IN.
    pub(crate) fn is_in(self) -> bool {
        self.class == CLASS_IN
    }
}

/// Finds the OPT record: at most one, of the root, in the additional section (RFC 6891 §6.1.1). Every record
/// must be complete.
fn find_edns(message: &[u8], header: Header, behind_question: usize) -> Result<Option<Edns<'_>>, Malformed> {
    let mut found = None;
    let mut cursor = Cursor::at(message, behind_question);
    let before = u32::from(header.answers) + u32::from(header.authorities);
    for number in 0..before + u32::from(header.additionals) {
        let is_root = message.get(cursor.position()) == Some(&0);
        cursor.skip_name()?;
        let (kind, class, ttl, length) = (cursor.u16()?, cursor.u16()?, cursor.u32()?, cursor.u16()?);
        let data = cursor.take(usize::from(length))?;
        if kind != kind::OPT {
            continue;
        }
        if found.is_some() || number < before || !is_root {
            return Err(Malformed);
        }
        found = Some(Edns::parse(class, ttl, data)?);
    }
    Ok(found)
}
