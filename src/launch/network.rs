//! Network devices of the caller's namespace that become the container's. config-linux.md, Network Devices.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow, bail};

use crate::plan::NetDevice;
use crate::report::debug;
use crate::sys::errno::Words;
use crate::sys::netlink::{self, Device, Devices};

/// See that every device is there and may go.
///
/// # Errors
/// Names the device.
pub(super) fn look(wanted: &[NetDevice]) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let mut here = here()?;
    for wanted in wanted {
        find(&mut here, wanted)?;
    }
    Ok(())
}

/// Move the devices with their addresses, and set them up. `inside` is a netlink socket of the container's namespace.
///
/// What has been moved is not moved back when something fails: a device that is no hardware goes with the container's
/// namespace, hardware returns to the host's.
///
/// # Errors
/// Names the device.
pub(super) fn hand_over(wanted: &[NetDevice], inside: OwnedFd) -> Result<()> {
    let mut here = here()?;
    let mut inside = Devices::new(inside);
    let namespace = inside.namespace().map_err(|errno| {
        anyhow!(
            "linux.netDevices: open the network namespace: {}",
            Words(errno)
        )
    })?;
    // ORDER: all of them before the first one is moved. The kernel would look at a new name only after the move.
    let mut found = Vec::new();
    for wanted in wanted {
        found.push(find(&mut here, wanted)?);
        if let Some(taken) = inside
            .find(wanted.inside())
            .with_context(|| field(wanted))?
        {
            debug!("the container has {taken:?} already");
            bail!(
                "{}: a network device {:?} exists in the container's namespace already",
                field(wanted),
                wanted.inside()
            );
        }
    }
    for (wanted, device) in wanted.iter().zip(found) {
        debug!(
            "move network device {:?} to {:?}",
            wanted.name,
            wanted.inside()
        );
        hand_over_one(wanted, device, &mut here, &mut inside, &namespace)
            .with_context(|| field(wanted))?;
    }
    Ok(())
}

fn hand_over_one(
    wanted: &NetDevice,
    device: Device,
    here: &mut Devices,
    inside: &mut Devices,
    namespace: &OwnedFd,
) -> Result<()> {
    // ORDER: before the move, which takes them off.
    let addresses = here
        .addresses(device.index)
        .map_err(|errno| anyhow!("read its addresses: {}", Words(errno)))?;
    let index = here
        .move_to(device.index, namespace, wanted.new_name.as_deref())
        .map_err(|errno| anyhow!("move it as {:?}: {}", wanted.inside(), Words(errno)))?;
    for address in &addresses {
        inside
            .add_address(index, address)
            .map_err(|errno| anyhow!("give it its addresses back: {}", Words(errno)))?;
    }
    inside
        .set_up(index)
        .map_err(|errno| anyhow!("set it up: {}", Words(errno)))
}

fn here() -> Result<Devices> {
    let door = netlink::open()
        .map_err(|errno| anyhow!("linux.netDevices: open a netlink socket: {}", Words(errno)))?;
    Ok(Devices::new(door))
}

fn find(here: &mut Devices, wanted: &NetDevice) -> Result<Device> {
    match here.find(&wanted.name).with_context(|| field(wanted))? {
        Some(device) if device.loopback => {
            bail!("{}: a loopback device cannot be moved", field(wanted))
        }
        Some(device) => Ok(device),
        None => bail!("{}: no such network device", field(wanted)),
    }
}

fn field(wanted: &NetDevice) -> String {
    format!("linux.netDevices: {:?}", wanted.name)
}
