//! Called `loopback`: the pod's `lo` is up.

use serde_json::{Value, json};

use crate::args::{Args, Command};
use crate::error::{Code, Error, Result, kernel};
use crate::ipam::Lease;
use crate::netlink::{Batch, Netlink};
use crate::{pod, result, veth};

const NAME: &str = "lo";

/// Runs one command. There is nothing to collect, and nothing that could be missing.
pub(crate) fn run(command: Command, args: &Args, raw: &Value, version: &str) -> Result<Option<Value>> {
    match command {
        Command::Add => add(args, raw, version).map(Some),
        Command::Check => check(args).map(|()| None),
        Command::Del => del(args).map(|()| None),
        Command::Status | Command::Gc | Command::Version => Ok(None),
    }
}

fn add(args: &Args, raw: &Value, version: &str) -> Result<Value> {
    let mut lo = open(args)?;
    let mut batch = Batch::default();
    batch.set_up(NAME);
    batch.get_link(NAME);
    let link = veth::only(batch.commit(&mut lo)?.links, NAME)?;
    // In a chain it has nothing to add.
    if raw["prevResult"].is_object() {
        return Ok(raw["prevResult"].clone());
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

fn check(args: &Args) -> Result<()> {
    let link = veth::required(&mut open(args)?, NAME)?;
    if link.is_up { Ok(()) } else { Err(Error::new(Code::Conflict, "interface lo is down")) }
}

/// A namespace that is gone has taken its `lo` along.
fn del(args: &Args) -> Result<()> {
    let Ok(mut lo) = open(args) else { return Ok(()) };
    lo.set_down(NAME).map(drop).map_err(kernel("set lo down"))
}

fn open(args: &Args) -> Result<Netlink> {
    pod::open(&args.netns).map(|(_, netlink)| netlink)
}
