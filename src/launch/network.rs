//! Network devices of the caller's namespace that become the container's (config-linux.md, Network Devices), and the
//! loopback device of a namespace that CRIU made.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, anyhow, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns};
use nix::sys::stat::Mode;
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::wait_for;
use crate::plan::NetDevice;
use crate::report::debug;
use crate::sys::errno::Words;
use crate::sys::net;
use crate::sys::netlink::{self, Address, Device, Devices};
use crate::sys::process::{Cloned, clone3, exit_now};

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

/// Devices that have been moved, to be taken back where the container cannot be made: one that is no hardware would end
/// with its namespace.
pub(super) struct Moved {
    /// The caller's namespace, and the container's.
    here: Devices,
    namespace: OwnedFd,
    devices: Vec<MovedDevice>,
}

struct MovedDevice {
    /// What it is called in the caller's namespace.
    name: String,
    /// The index that it has in the container's.
    index: i32,
    was_up: bool,
    addresses: Vec<Address>,
}

impl Moved {
    /// Move the devices back, under the names that they had, with their addresses, and set up those that were up.
    ///
    /// # Errors
    /// Names the device that is not what it was.
    pub(super) fn take_back(&mut self) -> Result<()> {
        if self.devices.is_empty() {
            return Ok(());
        }
        let moved = self.move_back();
        for device in std::mem::take(&mut self.devices) {
            debug!("network device {:?} is taken back", device.name);
            self.restore(&device)
                .map_err(|errno| anyhow!("take back {:?}: {}", device.name, Words(errno)))
                .context("linux.netDevices")?;
        }
        moved
            .map_err(|errno| anyhow!("take back the network devices: {}", Words(errno)))
            .context("linux.netDevices")
    }

    /// By a process of its own: who asks has to be in the namespace that the devices leave, with rights over both. The
    /// socket that came from there has those of the container's user namespace alone.
    fn move_back(&mut self) -> nix::Result<()> {
        let home = self.here.namespace()?;
        in_namespace(&self.namespace, || self.leave(&home))
    }

    fn leave(&self, home: &OwnedFd) -> nix::Result<()> {
        let mut there = Devices::new(netlink::open()?);
        let mut done = Ok(());
        for device in &self.devices {
            let moved = there.move_to(device.index, home, Some(&device.name));
            done = done.and(moved.map(drop));
        }
        done
    }

    fn restore(&mut self, device: &MovedDevice) -> nix::Result<()> {
        let Device { index, .. } = self.here.find(&device.name)?.ok_or(Errno::ENODEV)?;
        for address in &device.addresses {
            self.here.add_address(index, address)?;
        }
        match device.was_up {
            true => self.here.set_up(index),
            false => Ok(()),
        }
    }
}

/// Set the loopback device up in the network namespace of a process.
pub(super) fn loopback_up(pid: Pid) -> Result<()> {
    let path = format!("/proc/{pid}/ns/net");
    let namespace = open(
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    );
    namespace
        .and_then(|namespace| in_namespace(&namespace, net::loopback_up))
        .map_err(|errno| anyhow!("set loopback device up: {}", Words(errno)))
}

/// Do something in another network namespace, by a process of its own.
fn in_namespace(namespace: &OwnedFd, act: impl FnOnce() -> nix::Result<()>) -> nix::Result<()> {
    let Some(Cloned { pidfd, .. }) = clone3(0, None)? else {
        let done = setns(namespace, CloneFlags::CLONE_NEWNET).and_then(|()| act());
        exit_now(done.err().map_or(0, |errno| errno as i32))
    };
    match wait_for(&pidfd, WaitPidFlag::WEXITED)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(Errno::from_raw(errno)),
        _ => Err(Errno::ECHILD),
    }
}

/// Move the devices with their addresses, and set them up. `inside` is a netlink socket of the container's namespace;
/// what has been moved is put into `moved`, also when something fails.
///
/// # Errors
/// Names the device.
pub(super) fn hand_over(
    wanted: &[NetDevice],
    inside: OwnedFd,
    moved: &mut Option<Moved>,
) -> Result<()> {
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
    let moved = moved.insert(Moved {
        here,
        namespace,
        devices: Vec::new(),
    });
    for (wanted, device) in wanted.iter().zip(found) {
        debug!(
            "move network device {:?} to {:?}",
            wanted.name,
            wanted.inside()
        );
        hand_over_one(wanted, device, &mut inside, moved).with_context(|| field(wanted))?;
    }
    Ok(())
}

fn hand_over_one(
    wanted: &NetDevice,
    device: Device,
    inside: &mut Devices,
    moved: &mut Moved,
) -> Result<()> {
    // ORDER: before the move, which takes them off.
    let addresses = moved
        .here
        .addresses(device.index)
        .map_err(|errno| anyhow!("read its addresses: {}", Words(errno)))?;
    let name = wanted.new_name.as_deref();
    let index = moved
        .here
        .move_to(device.index, &moved.namespace, name)
        .map_err(|errno| anyhow!("move it as {:?}: {}", wanted.inside(), Words(errno)))?;
    let given = addresses
        .iter()
        .try_for_each(|address| inside.add_address(index, address))
        .map_err(|errno| anyhow!("give it its addresses back: {}", Words(errno)));
    moved.devices.push(MovedDevice {
        name: wanted.name.clone(),
        index,
        was_up: device.up,
        addresses,
    });
    given?;
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
