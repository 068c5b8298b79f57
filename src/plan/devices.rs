//! Device nodes that a container has, and the links beside them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::stat::{Mode, SFlag, makedev};
use oci_spec::runtime::{LinuxDevice, LinuxDeviceType as Type};

use crate::sys::path::relative;

/// One node below the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    /// Relative to the root; every component may lie.
    pub(crate) untrusted_path: PathBuf,
    pub(crate) kind: SFlag,
    pub(crate) device: u64,
    pub(crate) mode: Mode,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// How nodes come to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Making {
    /// mknod(2).
    Node,
    /// A bind mount of the host's node of that name: a user namespace may not make device nodes.
    Bind,
}

/// The default nodes (config-linux.md, Default Devices): name, major, minor.
const DEFAULTS: [(&str, u64, u64); 6] = [
    ("dev/null", 1, 3),
    ("dev/random", 1, 8),
    ("dev/full", 1, 7),
    ("dev/tty", 5, 0),
    ("dev/zero", 1, 5),
    ("dev/urandom", 1, 9),
];

/// Links in /dev (config-linux.md, Dev symbolic links; runc adds core): name, target.
pub(crate) const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// The nodes of a container: the configured ones, and each default that none of them replaces.
///
/// # Errors
/// Names the device when its numbers or its mode cannot be.
pub(crate) fn nodes(configured: &[LinuxDevice]) -> Result<Vec<Node>> {
    let mut nodes = configured
        .iter()
        .map(configured_node)
        .collect::<Result<Vec<_>>>()?;
    for (path, major, minor) in DEFAULTS {
        if !nodes
            .iter()
            .any(|node| node.untrusted_path == Path::new(path))
        {
            nodes.push(Node {
                untrusted_path: path.into(),
                kind: SFlag::S_IFCHR,
                device: makedev(major, minor),
                mode: Mode::from_bits_truncate(0o666),
                uid: 0,
                gid: 0,
            });
        }
    }
    Ok(nodes)
}

fn configured_node(device: &LinuxDevice) -> Result<Node> {
    let path = device.path();
    let kind = match device.typ() {
        Type::C | Type::U => SFlag::S_IFCHR,
        Type::B => SFlag::S_IFBLK,
        Type::P => SFlag::S_IFIFO,
        Type::A => bail!("linux.devices: {}: invalid device type: a", path.display()),
    };
    let number = |value: i64, name| {
        u64::try_from(value).with_context(|| {
            format!(
                "linux.devices: {}: {name} {value} is negative",
                path.display()
            )
        })
    };
    let device_number = if kind == SFlag::S_IFIFO {
        0
    } else {
        makedev(
            number(device.major(), "major")?,
            number(device.minor(), "minor")?,
        )
    };
    Ok(Node {
        untrusted_path: relative(path),
        kind,
        device: device_number,
        mode: Mode::from_bits_truncate(device.file_mode().unwrap_or(0o666)),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceBuilder;

    fn device(path: &str, kind: Type) -> LinuxDevice {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(kind)
            .major(10)
            .minor(229)
            .file_mode(0o600u32)
            .uid(5u32)
            .gid(6u32)
            .build()
            .unwrap()
    }

    #[test]
    fn a_configured_node_replaces_the_default_of_its_name() {
        let nodes = nodes(&[device("/dev/null", Type::U)]).unwrap();
        assert_eq!(nodes.len(), 6);
        let null = nodes
            .iter()
            .find(|node| node.untrusted_path == Path::new("dev/null"))
            .unwrap();
        assert_eq!(
            (null.device, null.mode.bits(), null.uid, null.gid),
            (makedev(10, 229), 0o600, 5, 6)
        );
        assert_eq!(null.kind, SFlag::S_IFCHR);
    }

    #[test]
    fn a_fifo_has_no_device_number() {
        let nodes = nodes(&[device("/dev/pipe", Type::P)]).unwrap();
        assert_eq!((nodes[0].kind, nodes[0].device), (SFlag::S_IFIFO, 0));
    }

    #[test]
    fn the_wildcard_type_is_no_node() {
        let error = nodes(&[device("/dev/x", Type::A)]).unwrap_err().to_string();
        assert_eq!(error, "linux.devices: /dev/x: invalid device type: a");
    }
}
