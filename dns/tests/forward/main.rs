//! The forwarder: the running server in front of real and scripted upstream servers.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod behaviour;
mod dnssec;
mod hostile;
mod mutated;
mod real;
mod replies;
mod resolv_conf;
mod server;
mod upstream;
