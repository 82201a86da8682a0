//! The commands of a plugin that creates interfaces, one file each, and `cleanup`, which users run.

mod add;
mod check;
mod cleanup;
mod del;
mod gc;
mod status;

use serde_json::Value;

use crate::driver::Driver;
use crate::error::Result;
use crate::request::Request;

pub(crate) use cleanup::cleanup;
pub(crate) use gc::{repaired, valid_attachments};

/// The plugin under its own name, or as `bridge` or `ptp`.
pub(crate) struct Interfaces;

impl Driver for Interfaces {
    fn add(&self, request: &Request) -> Result<Value> {
        add::add(request)
    }

    fn check(&self, request: &Request) -> Result<()> {
        check::check(request)
    }

    fn del(&self, request: &Request) -> Result<()> {
        del::del(request)
    }

    fn gc(&self, request: &Request) -> Result<()> {
        gc::gc(request)
    }

    fn status(&self, request: &Request) -> Result<()> {
        status::status(request)
    }
}
