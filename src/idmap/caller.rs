//! The ids that an ordinary user may give to a user namespace: its own, and those of /etc/subuid and /etc/subgid.

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid};

use super::{Maps, Range};

impl Maps {
    /// The maps for a user namespace of the caller's: itself as root, and its subordinate ids from 1 on (subuid(5)). Where it
    /// can have no more than one id, also why.
    ///
    /// # Errors
    /// /etc/subuid or /etc/subgid cannot be read.
    pub(crate) fn of_caller() -> Result<(Self, Option<String>)> {
        let (uid, gid) = (Uid::effective(), Gid::effective());
        // Of users that are kept elsewhere the environment knows the name. It may lie: newuidmap asks for itself.
        let name = std::fs::read_to_string("/etc/passwd")
            .ok()
            .and_then(|passwd| name_of(&passwd, uid.as_raw()))
            .or_else(|| std::env::var("USER").ok())
            .unwrap_or_default();
        let ranges = |path: &str| -> Result<Vec<(u32, u32)>> {
            match std::fs::read_to_string(path) {
                Ok(text) => Ok(subordinate(&text, &name, uid.as_raw())),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
                Err(error) => Err(error).with_context(|| format!("read {path}")),
            }
        };
        let (uids, gids) = (ranges("/etc/subuid")?, ranges("/etc/subgid")?);
        let tools = ["newuidmap", "newgidmap"];
        let missing = tools.into_iter().find(|tool| !in_path(tool));
        let single = match missing {
            _ if uids.is_empty() => Some("no ids for this user in /etc/subuid".to_owned()),
            _ if gids.is_empty() => Some("no ids for this user in /etc/subgid".to_owned()),
            missing => missing.map(|tool| format!("{tool} is not installed (package uidmap)")),
        };
        let (uids, gids) = match single {
            Some(_) => (&[][..], &[][..]),
            None => (&uids[..], &gids[..]),
        };
        let maps = Self {
            uids: map(uid.as_raw(), uids),
            gids: map(gid.as_raw(), gids),
        };
        Ok((maps, single))
    }
}

/// The name of `uid` in /etc/passwd (passwd(5)).
fn name_of(passwd: &str, uid: u32) -> Option<String> {
    let line = passwd.lines().find(|line| {
        let third = line.split(':').nth(2);
        third.and_then(|field| field.parse().ok()) == Some(uid)
    })?;
    line.split(':').next().map(str::to_owned)
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The ranges of one user in /etc/subuid or /etc/subgid (subuid(5)): lines `NAME-OR-UID:START:COUNT`.
fn subordinate(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let own = uid.to_string();
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let who = fields.next()?;
        if who != own && (name.is_empty() || who != name) {
            return None;
        }
        let start: u32 = fields.next()?.parse().ok()?;
        let count: u32 = fields.next()?.parse().ok()?;
        (count > 0 && start.checked_add(count).is_some()).then_some((start, count))
    };
    let mut ranges: Vec<_> = text.lines().filter_map(line).collect();
    ranges.dedup();
    ranges
}

/// Id 0 is `caller`; the ranges follow without a gap from 1 on. One that overlaps an earlier one is left out, since the
/// kernel takes no id twice.
fn map(caller: u32, ranges: &[(u32, u32)]) -> Vec<Range> {
    let mut map = vec![Range {
        container: 0,
        host: caller,
        length: 1,
    }];
    let mut next = 1_u32;
    for (start, count) in ranges {
        let taken = |range: &Range| {
            let (end, own) = (u64::from(start + count), u64::from(range.host));
            own < end && u64::from(*start) < own + u64::from(range.length)
        };
        if map.iter().any(taken) {
            continue;
        }
        let Some(after) = next.checked_add(*count) else {
            break;
        };
        map.push(Range {
            container: next,
            host: *start,
            length: *count,
        });
        next = after;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_the_name_of_its_line() {
        let passwd = "root:x:0:0::/:/bin/sh\nbob:x:10:5::/:/bin/sh\nalias:x:10:5::/:\n";
        assert_eq!(name_of(passwd, 10).as_deref(), Some("bob"));
        assert_eq!(name_of(passwd, 5), None);
    }

    #[test]
    fn a_user_is_found_by_name_or_number_and_only_whole_lines_count() {
        let text = "alice:100000:65536\n1000:300000:10\nalice:200000:5\nbob:1:2\nalice:x:1\n\
                    alice:5\nalice:4294967295:2\nalice:7:0\n:9:9\n";
        for (name, uid, expected) in [
            (
                "alice",
                1000,
                vec![(100_000, 65_536), (300_000, 10), (200_000, 5)],
            ),
            ("bob", 1001, vec![(1, 2)]),
            ("", 1000, vec![(300_000, 10)]),
            ("", 7, vec![]),
            ("ali", 5, vec![]),
        ] {
            assert_eq!(subordinate(text, name, uid), expected, "{name} {uid}");
        }
    }

    // L-29
    #[test]
    fn the_caller_is_root_inside_and_its_ranges_follow_without_a_gap() {
        let lines = |map: &[Range]| -> Vec<(u32, u32, u32)> {
            map.iter()
                .map(|range| (range.container, range.host, range.length))
                .collect()
        };
        assert_eq!(lines(&map(1000, &[])), [(0, 1000, 1)]);
        assert_eq!(
            lines(&map(1000, &[(100_000, 65_536), (5, 3)])),
            [(0, 1000, 1), (1, 100_000, 65_536), (65_537, 5, 3)]
        );
        assert_eq!(
            lines(&map(7, &[(8, u32::MAX - 8)])),
            [(0, 7, 1), (1, 8, u32::MAX - 8)]
        );
        let overlapping = [(100, 10), (5, 3), (105, 10), (200, 1)];
        assert_eq!(
            lines(&map(7, &overlapping)),
            [(0, 7, 1), (1, 100, 10), (11, 200, 1)]
        );
    }
}
