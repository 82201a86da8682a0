//! The running server, asked over real sockets.

mod dns_spec;
mod protocol;
mod server;
