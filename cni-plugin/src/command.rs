//! The commands of the protocol, one file each, and the one for people.

mod add;
mod check;
mod cleanup;
mod del;
mod gc;
mod status;

pub(crate) use add::add;
pub(crate) use check::check;
pub(crate) use cleanup::cleanup;
pub(crate) use del::del;
pub(crate) use gc::{gc, repaired, valid_attachments};
pub(crate) use status::status;
