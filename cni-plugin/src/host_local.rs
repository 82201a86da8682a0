//! The plugin called as `host-local`: IPAM only, for a plugin that creates the interface.

use serde_json::Value;

use crate::command;
use crate::driver::Driver;
use crate::error::{Code, Error, Result};
use crate::ipam::{self, Assignment};
use crate::request::Request;
use crate::result;
use crate::rollback::Rollback;

/// Creates no interface.
pub(crate) struct HostLocal;

impl Driver for HostLocal {
    /// ADD: assigns an address of each range set and returns the result of an IPAM plugin (CNI 1.1 §4).
    fn add(&self, request: &Request) -> Result<Value> {
        let conf = request.conf()?;
        let mut rollback = Rollback::default();
        // Like host-local, do not check whether the node uses the address.
        let assigned = ipam::assign(request, &conf, &mut |_address| Ok(false), &mut rollback);
        let Assignment { leases, routes, dns } = rollback.finish(assigned)?;
        let ips = leases.iter().map(|lease| result::ip(&conf.version, lease, None)).collect();
        let routes = routes.iter().map(|route| result::route(&conf.version, route)).collect();
        Ok(result::shaped(&conf.version, Value::Null, ips, routes, dns))
    }

    /// DEL: releases the addresses.
    fn del(&self, request: &Request) -> Result<()> {
        request.header.reservations().release(&request.args.owner())
    }

    /// CHECK: the addresses are still reserved for the container. The reference plugin accepts any address.
    fn check(&self, request: &Request) -> Result<()> {
        let conf = request.conf()?;
        let reserved = conf.header.reservations().addresses(&request.args.owner())?;
        let previous = conf.prev_result.clone().unwrap_or_default();
        let given = Assignment::parse("prevResult", &previous)?.addresses();
        // Other plugins in the chain may have added addresses.
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

    /// GC: releases the addresses of containers that no longer exist.
    fn gc(&self, request: &Request) -> Result<()> {
        let valid = command::valid_attachments(&request.config.value)?;
        let store = request.header.reservations();
        let mut errors = command::repaired(&store);
        let (known, illegible) = store.owners();
        errors.extend(illegible);
        for owner in known.iter().filter(|owner| !valid.contains(owner)) {
            errors.extend(store.release(owner).err());
        }
        if let Ok(conf) = request.conf() {
            errors.extend(store.recount(&conf.ranges).err());
        }
        Error::combined(errors).map_or(Ok(()), Err)
    }

    /// STATUS: whether addresses are available.
    fn status(&self, request: &Request) -> Result<()> {
        let conf = request.conf()?;
        conf.header.reservations().check_available(&conf.ranges, &mut |_address| Ok(false))
    }
}
