//! The node's uplink.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::netlink::Netlink;

/// The MTU of interfaces on a node without an uplink.
const DEFAULT_MTU: u32 = 1500;

/// Destinations for the look-up of the uplink: documentation addresses, which match the default route.
pub(crate) const ANYWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
pub(crate) const ANYWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// The uplink, once it is known.
#[derive(Default)]
pub(crate) struct Uplink {
    device: Option<Option<u32>>,
}

impl Uplink {
    /// Returns whether there is a route to exactly this address. The first call also looks up the uplink.
    pub(crate) fn has_route_to(&mut self, host: &mut Netlink, address: IpAddr) -> io::Result<bool> {
        if self.device.is_some() {
            return host.has_route_to(address);
        }
        let (found, devices) = host.has_route_to_beside(address, &[ANYWHERE_V4, ANYWHERE_V6])?;
        self.device = Some(devices.into_iter().flatten().next());
        Ok(found)
    }

    /// Returns the MTU of the uplink.
    pub(crate) fn mtu(&self, host: &mut Netlink) -> u32 {
        let device = self.device.unwrap_or_else(|| {
            let mut devices = [ANYWHERE_V4, ANYWHERE_V6].into_iter();
            devices.find_map(|address| host.route_device(address).ok().flatten())
        });
        device.and_then(|index| host.mtu(index).ok().flatten()).filter(|mtu| *mtu > 0).unwrap_or(DEFAULT_MTU)
    }
}
