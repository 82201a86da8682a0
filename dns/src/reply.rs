//! A reply that fits its transport.

use hickory_server::proto::op::{Edns, Metadata, ResponseCode};
use hickory_server::proto::rr::Record;
use hickory_server::proto::rr::rdata::opt::EdnsOption;
use hickory_server::proto::serialize::binary::BinEncoder;
use hickory_server::server::{Request, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;

/// Datagrams of this size pass every network without fragments (DNS flag day 2020).
const MAX_DATAGRAM: u16 = 1232;

/// What a client without EDNS can take (RFC 1035 §4.2.1).
const PLAIN_DATAGRAM: u16 = 512;

/// Option code of Extended DNS Errors (RFC 8914 §2).
const EXTENDED_ERROR: u16 = 15;

/// All sections of a reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) metadata: Metadata,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
    edns: Option<Edns>,
}

impl Reply {
    /// An empty reply to a request, with EDNS exactly if the request has it (RFC 6891 §6.1.1).
    pub(crate) fn new(request: &Request, code: ResponseCode) -> Self {
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = code;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_DATAGRAM);
            edns.set_version(0);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns.set_rcode_high(u8::try_from(u16::from(code) >> 4).unwrap_or_default());
            edns
        });
        Self { metadata, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new(), edns }
    }

    /// Adds the reason (RFC 8914 §4), for clients that speak EDNS.
    pub(crate) fn explain(mut self, code: u16) -> Self {
        if let Some(edns) = &mut self.edns {
            edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, code.to_be_bytes().to_vec()));
        }
        self
    }

    /// Sends the reply, cut to what the client can take.
    pub(crate) async fn send<R: ResponseHandler>(
        mut self,
        request: &Request,
        mut response: R,
    ) -> ResponseInfo {
        let limit = self.limit(request);
        self.cut(request, limit);
        // The server sends as much as the OPT record says; the client is told our own limit all the same.
        if let Some(edns) = &mut self.edns {
            edns.set_max_payload(u16::try_from(limit).unwrap_or(MAX_DATAGRAM).min(MAX_DATAGRAM));
        }
        let code = self.metadata.response_code;
        let sent = response.send_response(self.message(request)).await;
        sent.unwrap_or_else(|error| {
            tracing::debug!(%error, ?code, "cannot send a reply");
            self.info()
        })
    }

    /// What the server takes for the outcome where nothing was sent.
    pub(crate) fn info(&self) -> ResponseInfo {
        use hickory_server::proto::op::{Header, HeaderCounts};
        Header { metadata: self.metadata, counts: HeaderCounts::default() }.into()
    }

    /// First ADDITIONAL goes, then as much of ANSWER as must, and only then TC is set (RFC 2181 §9). OPT always stays.
    fn cut(&mut self, request: &Request, limit: usize) {
        if self.len(request) <= limit {
            return;
        }
        self.additionals.clear();
        while self.len(request) > limit && !self.answers.is_empty() {
            self.metadata.truncation = true;
            let excess = self.answers.len().div_ceil(16);
            self.answers.truncate(self.answers.len() - excess);
        }
    }

    fn limit(&self, request: &Request) -> usize {
        if request.protocol().is_stream() {
            return usize::from(u16::MAX);
        }
        let limit = request
            .edns
            .as_ref()
            .map_or(PLAIN_DATAGRAM, |edns| edns.max_payload().clamp(PLAIN_DATAGRAM, MAX_DATAGRAM));
        usize::from(limit)
    }

    fn len(&self, request: &Request) -> usize {
        let mut bytes = Vec::with_capacity(usize::from(PLAIN_DATAGRAM));
        let mut encoder = BinEncoder::new(&mut bytes);
        match self.message(request).destructive_emit(&mut encoder) {
            Ok(_) => bytes.len(),
            // Larger than any message may be.
            Err(_) => usize::MAX,
        }
    }

    fn message<'q>(
        &'q self,
        request: &'q Request,
    ) -> hickory_server::zone_handler::MessageResponse<
        'q,
        'q,
        std::slice::Iter<'q, Record>,
        std::slice::Iter<'q, Record>,
        std::iter::Empty<&'q Record>,
        std::slice::Iter<'q, Record>,
    > {
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &self.edns {
            builder.edns(edns);
        }
        builder.build(self.metadata, &self.answers, &self.authorities, std::iter::empty(), &self.additionals)
    }
}
