//! What an upstream server says.

use super::query::find_edns;
use super::{Cursor, Edns, Header, Malformed, Question, Record, flag, records};

/// A response, checked from end to end: every record is whole.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer<'a> {
    pub(crate) header: Header,
    pub(crate) question: Question<'a>,
    pub(crate) edns: Option<Edns<'a>>,
    /// Offset behind the question.
    pub(crate) behind_question: usize,
    message: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Reads a response with one question.
    pub(crate) fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let header = Header::parse(message)?;
        if !header.has(flag::QR) || header.questions != 1 {
            return Err(Malformed);
        }
        let mut cursor = Cursor::at(message, Header::LENGTH);
        let question = Question::parse(&mut cursor)?;
        let behind_question = cursor.position();
        let edns = find_edns(message, header, behind_question)?;
        Ok(Self { header, question, edns, behind_question, message })
    }

    /// The whole response code.
    pub(crate) fn rcode(&self) -> u16 {
        let high = self.edns.map_or(0, |edns| edns.rcode_high);
        u16::from(high) << 4 | self.header.rcode()
    }

    /// Every record, OPT included.
    pub(crate) fn records(&self) -> impl Iterator<Item = Record<'a>> + use<'a> {
        records(self.message, self.header, self.behind_question).map_while(Result::ok)
    }
}
