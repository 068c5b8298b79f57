//! User and group id maps of a user namespace (user_namespaces(7)): their text, and writing them for a child process.

mod caller;

use std::fmt::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

/// One line of a map: `length` ids from `container` inside are the ids from `host` outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) container: u32,
    pub(crate) host: u32,
    pub(crate) length: u32,
}

impl From<&LinuxIdMapping> for Range {
    fn from(mapping: &LinuxIdMapping) -> Self {
        Self {
            container: mapping.container_id(),
            host: mapping.host_id(),
            length: mapping.size(),
        }
    }
}

impl Range {
    /// The line as config.json has it.
    pub(crate) fn mapping(&self) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default()
            .container_id(self.container)
            .host_id(self.host)
            .size(self.length)
            .build()
            .expect("all members are given")
    }
}

/// Both maps of a new user namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Maps {
    pub(crate) uids: Vec<Range>,
    pub(crate) gids: Vec<Range>,
}

/// The host's id for `id` inside, when it is mapped.
pub(crate) fn to_host(ranges: &[Range], id: u32) -> Option<u32> {
    let range = ranges
        .iter()
        .find(|range| id >= range.container && id - range.container < range.length)?;
    range.host.checked_add(id - range.container)
}

/// Whether this process is in the initial user namespace, where root is the machine's root.
pub(crate) fn in_initial_namespace() -> Result<bool> {
    let map = std::fs::read_to_string("/proc/self/uid_map").context("read /proc/self/uid_map")?;
    Ok(is_whole(&map))
}

/// Whether a uid_map maps every id to itself, as the initial user namespace's does.
fn is_whole(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn sorted(ranges: &[Range]) -> Vec<Range> {
    let mut ranges = ranges.to_vec();
    ranges.sort_by_key(|range| range.container);
    ranges
}

/// The lines of a map file of the kernel's.
fn ranges(text: &str) -> Option<Vec<Range>> {
    text.lines()
        .map(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse().ok());
            Some(Range {
                container: fields.next()??,
                host: fields.next()??,
                length: fields.next()??,
            })
        })
        .collect()
}

fn text(ranges: &[Range]) -> String {
    ranges.iter().fold(
        String::new(),
        |mut text,
         Range {
             container,
             host,
             length,
         }| {
            writeln!(text, "{container} {host} {length}").expect("writing to a string");
            text
        },
    )
}

impl Maps {
    /// The maps of the user namespace of a process, which is named as in /proc, as the caller's own namespace sees them.
    ///
    /// # Errors
    /// /proc cannot be read, or has another form.
    pub(crate) fn of(process: impl fmt::Display) -> Result<Self> {
        let read = |file: &str| -> Result<Vec<Range>> {
            let path = format!("/proc/{process}/{file}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            ranges(&text).with_context(|| format!("{path}: {text:?} is no map"))
        };
        Ok(Self {
            uids: read("uid_map")?,
            gids: read("gid_map")?,
        })
    }

    /// Whether the user namespace of process `pid` has these maps, as the caller's own namespace sees them.
    pub(crate) fn are_of(&self, pid: Pid) -> Result<bool> {
        let there = Self::of(pid)?;
        Ok(sorted(&there.uids) == sorted(&self.uids) && sorted(&there.gids) == sorted(&self.gids))
    }

    /// Write both maps of the process `pid`, which is alone in its new user namespace.
    ///
    /// Directly where the kernel allows it, else through newuidmap(1) and newgidmap(1), which hold the privilege that an
    /// ordinary user lacks. `setgroups` is denied only when an unprivileged caller writes the group map itself: the
    /// kernel asks for that (user_namespaces(7)).
    ///
    /// # Errors
    /// Names the map and what to do when neither way works.
    pub(crate) fn write(&self, pid: Pid) -> Result<()> {
        write_one(pid, "uid_map", "newuidmap", &self.uids)?;
        let alone = !Uid::effective().is_root()
            && matches!(*self.gids, [Range { host, length: 1, .. }] if host == Gid::effective().as_raw());
        if alone {
            put(pid, "setgroups", "deny")
                .with_context(|| format!("deny setgroups for process {pid}"))?;
        }
        write_one(pid, "gid_map", "newgidmap", &self.gids)
    }
}

fn write_one(pid: Pid, file: &str, tool: &str, ranges: &[Range]) -> Result<()> {
    match put(pid, file, &text(ranges)) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => run_tool(tool, pid, ranges),
        Err(errno) => Err(errno)
            .with_context(|| format!("write {file} of process {pid}: {}", text(ranges).trim_end())),
    }
}

fn put(pid: Pid, file: &str, content: &str) -> nix::Result<()> {
    let path = format!("/proc/{pid}/{file}");
    let file = open(
        Path::new(&path),
        OFlag::O_WRONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    // One write: the kernel takes a map only whole.
    nix::unistd::write(&file, content.as_bytes()).map(drop)
}

fn run_tool(tool: &str, pid: Pid, ranges: &[Range]) -> Result<()> {
    let numbers = ranges
        .iter()
        .flat_map(|range| [range.container, range.host, range.length]);
    let done = Command::new(tool)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!("run {tool}, which maps ids for an unprivileged caller (package uidmap)")
        })?;
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        bail!(
            "{tool}: {} (are the ids in /etc/subuid and /etc/subgid?)",
            said.trim_end()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_identity_map_of_all_ids_is_the_initial_namespace() {
        for (map, whole) in [
            ("         0          0 4294967295\n", true),
            ("         0       1000          1\n", false),
            ("         0          0      65536\n", false),
            ("", false),
        ] {
            assert_eq!(is_whole(map), whole, "{map:?}");
        }
    }

    #[test]
    fn an_id_is_found_in_the_range_that_holds_it() {
        let ranges = [
            Range {
                container: 0,
                host: 1000,
                length: 1,
            },
            Range {
                container: 1,
                host: 100_000,
                length: 10,
            },
        ];
        for (inside, outside) in [
            (0, Some(1000)),
            (1, Some(100_000)),
            (10, Some(100_009)),
            (11, None),
        ] {
            assert_eq!(to_host(&ranges, inside), outside, "{inside}");
        }
    }

    #[test]
    fn the_kernels_map_is_read_back() {
        let map = ranges("         0       1000          1\n         1     100000      65536\n");
        let map = map.unwrap();
        assert_eq!(
            (map.len(), map[1].host, map[1].length),
            (2, 100_000, 65_536)
        );
        assert_eq!(ranges("0 1\n"), None);
        assert_eq!(ranges("a b c\n"), None);
    }

    #[test]
    fn the_text_of_a_map_has_one_line_a_range() {
        let ranges = [
            Range {
                container: 0,
                host: 5,
                length: 1,
            },
            Range {
                container: 1,
                host: 9,
                length: 2,
            },
        ];
        assert_eq!(text(&ranges), "0 5 1\n1 9 2\n");
    }
}
