//! The running server, queried over real sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod dns_spec;
mod dnstap;
mod edns;
mod hostile;
mod hostile_clients;
mod hot_restart;
mod https;
mod load;
mod message;
mod multiplexed;
mod names;
mod operations;
mod protocol;
mod reflection;
mod server;
mod sets;
mod tls;
