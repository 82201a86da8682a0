//! Called `host-local`: addresses alone, for a plugin that makes the interface.

use serde_json::Value;

use crate::args::{Args, Command};
use crate::command;
use crate::error::{Code, Error, Result};
use crate::ipam::{self, Assignment};
use crate::netconf::{Header, NetConf};
use crate::result;
use crate::rollback::Rollback;

/// ADD: an address of each range set, as the result of an IPAM plugin (CNI 1.1 §4).
pub(crate) fn add(args: &Args, conf: &NetConf) -> Result<Value> {
    let mut rollback = Rollback::default();
    // As host-local has it, which does not look at the node.
    let assigned = ipam::assign(args, conf, &mut |_address| Ok(false), &mut rollback);
    let Assignment { leases, routes, dns } = rollback.finish(assigned)?;
    let ips = leases.iter().map(|lease| result::ip(&conf.version, lease, None)).collect();
    let routes = routes.iter().map(|route| result::route(&conf.version, route)).collect();
    Ok(result::shaped(&conf.version, Value::Null, ips, routes, dns))
}

/// DEL: they are free again.
pub(crate) fn del(args: &Args, header: &Header) -> Result<()> {
    header.reservations().release(&args.owner())
}

/// CHECK: they are still the container's; the reference plugin is content with any address.
pub(crate) fn check(args: &Args, conf: &NetConf) -> Result<()> {
    let reserved = conf.header.reservations().addresses(&args.owner())?;
    let previous = conf.prev_result.clone().unwrap_or_default();
    let given = Assignment::parse("prevResult", &previous)?.addresses();
    // Others in the chain may have added addresses of their own.
    let mut ours = given.iter().filter(|address| conf.ranges.iter().any(|set| set.contains(**address)));
    if let Some(lost) = ours.find(|address| !reserved.contains(address)) {
        let message = format!("address {lost} is no longer reserved for this container");
        return Err(Error::new(Code::Conflict, message));
    }
    if reserved.is_empty() {
        return Err(Error::new(Code::Conflict, "no address is reserved for this container"));
    }
    Ok(())
}

/// GC: those of containers that no longer exist are free again.
pub(crate) fn gc(header: &Header, raw: &Value) -> Result<()> {
    let valid = command::valid_attachments(raw)?;
    let store = header.reservations();
    let mut errors = command::repaired(&store);
    let (known, illegible) = store.owners();
    errors.extend(illegible);
    for owner in known.iter().filter(|owner| !valid.contains(owner)) {
        errors.extend(store.release(owner).err());
    }
    if let Ok(conf) = NetConf::parse(header.clone(), raw.clone(), "1.1.0") {
        errors.extend(store.recount(&conf.ranges).err());
    }
    Error::combined(errors).map_or(Ok(()), Err)
}

/// Runs one command.
pub(crate) fn run(
    command: Command,
    args: &Args,
    header: Header,
    raw: Value,
    version: &str,
) -> Result<Option<Value>> {
    let parse = |header, raw| NetConf::parse(header, raw, version);
    match command {
        Command::Add => return add(args, &parse(header, raw)?).map(Some),
        Command::Check => check(args, &parse(header, raw)?),
        Command::Del => del(args, &header),
        Command::Gc => gc(&header, &raw),
        Command::Status => {
            let conf = parse(header, raw)?;
            conf.header.reservations().check_available(&conf.ranges, &mut |_address| Ok(false))
        }
        Command::Version => Ok(()),
    }
    .map(|()| None)
}
