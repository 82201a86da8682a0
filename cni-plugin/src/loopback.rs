//! The plugin called as `loopback`: sets the pod's `lo` up.

use serde_json::{Value, json};

use crate::args::Args;
use crate::driver::Driver;
use crate::error::{Code, Error, Result, kernel};
use crate::ipam::Lease;
use crate::netlink::{Batch, Netlink};
use crate::request::Request;
use crate::{pod, result, veth};

const NAME: &str = "lo";

/// GC and STATUS have nothing to do.
pub(crate) struct Loopback;

impl Driver for Loopback {
    fn add(&self, Request { args, version, config, .. }: &Request) -> Result<Value> {
        let mut lo = open(args)?;
        let mut batch = Batch::default();
        batch.set_up(NAME);
        batch.get_link(NAME);
        let link = veth::only_link(batch.commit(&mut lo)?.links, NAME)?;
        // In a chain, return the previous result.
        let previous = &config.value["prevResult"];
        if previous.is_object() {
            return Ok(previous.clone());
        }
        let mut ips = Vec::new();
        for like in ["127.0.0.1", "::1"] {
            let like = like.parse().expect("a constant");
            for own in lo.addresses(link.index, like).map_err(kernel("look for the addresses of lo"))? {
                ips.push(result::ip(version, &Lease { address: own.network(), gateway: None }, Some(0)));
            }
        }
        let interface = json!({ "name": NAME, "mac": veth::format_mac(&link.mac), "sandbox": args.netns });
        Ok(result::shaped(version, json!([interface]), ips, Vec::new(), json!({})))
    }

    fn check(&self, request: &Request) -> Result<()> {
        let link = veth::required(&mut open(&request.args)?, NAME)?;
        if link.is_up { Ok(()) } else { Err(Error::new(Code::Conflict, "interface lo is down")) }
    }

    /// A deleted namespace has no `lo` to set down.
    fn del(&self, request: &Request) -> Result<()> {
        let Ok(mut lo) = open(&request.args) else { return Ok(()) };
        lo.set_down(NAME).map_err(kernel("set lo down"))?;
        Ok(())
    }

    fn gc(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    fn status(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Nothing to undo: `lo` may have been up before.
    fn undo(&self, _add: &Request) -> Result<()> {
        Ok(())
    }
}

fn open(args: &Args) -> Result<Netlink> {
    pod::open(&args.netns).map(|(_, netlink)| netlink)
}
