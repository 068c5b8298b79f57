//! The payload's process: what it is called with, who it is and what it may do, as numbers and C strings.

use std::collections::HashSet;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use oci_spec::runtime::{self, Capabilities, PosixRlimitType};

use crate::sys::pty::WindowSize;

/// All capabilities that Linux 5.14 and newer kernels know, 0 to CAP_CHECKPOINT_RESTORE.
pub(crate) const ALL_CAPABILITIES: u64 = (1 << 41) - 1;

/// The five capability sets, bit n for capability number n (capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

/// One resource limit: an `RLIMIT_*` number and both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    /// The name in the specification's spelling, for messages.
    pub(crate) name: String,
    pub(crate) resource: u32,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The terminal that the payload gets; no size means the kernel's 0 by 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terminal {
    pub(crate) size: Option<WindowSize>,
}

/// Everything about the payload's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) args: Vec<CString>,
    /// `NAME=value`, each name once. `HOME` is added inside the container when it is missing.
    pub(crate) env: Vec<CString>,
    /// The directories where a program without a slash is looked for, in the container.
    pub(crate) search: Vec<PathBuf>,
    pub(crate) cwd: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// None: those of the caller stay.
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: Mode,
    pub(crate) capabilities: Sets,
    pub(crate) limits: Vec<Limit>,
    pub(crate) no_new_privileges: bool,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) terminal: Option<Terminal>,
}

impl Process {
    /// Read `process` of the configuration, already checked. `available` are the capabilities that can be given at all;
    /// the names of those asked for in vain come back as warnings.
    ///
    /// # Errors
    /// Names the field that holds a NUL byte.
    pub(crate) fn new(process: &runtime::Process, available: u64) -> Result<(Self, Vec<String>)> {
        let user = process.user();
        let strings = |list: &[String], field: &'static str| -> Result<Vec<CString>> {
            list.iter()
                .map(|text| {
                    CString::new(text.as_str()).with_context(|| format!("{field}: {text:?}"))
                })
                .collect()
        };
        let env = last_of_each(process.env().as_deref().unwrap_or_default());
        let path = env.iter().find_map(|line| line.strip_prefix("PATH="));
        // COMPAT: without PATH there is nowhere to look, as with runc and crun.
        let search = path.filter(|path| !path.is_empty()).map(|path| {
            let dirs = std::env::split_paths(OsStr::new(path));
            dirs.map(|dir| match dir.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => dir,
            })
            .collect()
        });
        let search = search.unwrap_or_default();
        let (capabilities, warnings) = sets(process.capabilities().as_ref(), available);
        let plan = Self {
            args: strings(
                process.args().as_deref().unwrap_or_default(),
                "process.args",
            )?,
            env: strings(&env, "process.env")?,
            search,
            cwd: process.cwd().clone(),
            uid: user.uid(),
            gid: user.gid(),
            groups: Some(user.additional_gids().clone().unwrap_or_default()),
            umask: Mode::from_bits_truncate(user.umask().unwrap_or(0o022)),
            capabilities,
            limits: process.rlimits().iter().flatten().map(limit).collect(),
            no_new_privileges: process.no_new_privileges().unwrap_or(false),
            oom_score_adj: process.oom_score_adj(),
            terminal: process.terminal().unwrap_or(false).then(|| Terminal {
                size: size(process),
            }),
        };
        Ok((plan, warnings))
    }

    /// The name of the program as it was asked for.
    pub(crate) fn program(&self) -> &OsStr {
        self.args.first().map_or(OsStr::new(""), |program| {
            OsStr::from_bytes(program.to_bytes())
        })
    }
}

fn size(process: &runtime::Process) -> Option<WindowSize> {
    let size = process.console_size()?;
    let characters = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    Some(WindowSize {
        rows: characters(size.height()),
        columns: characters(size.width()),
    })
}

/// Of several lines with one name the last counts.
fn last_of_each(env: &[String]) -> Vec<String> {
    let mut seen = HashSet::new();
    let name = |line: &str| line.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<_> = env
        .iter()
        .rev()
        .filter(|line| seen.insert(name(line)))
        .cloned()
        .collect();
    kept.reverse();
    kept
}

fn sets(wanted: Option<&runtime::LinuxCapabilities>, available: u64) -> (Sets, Vec<String>) {
    let Some(wanted) = wanted else {
        return (Sets::default(), Vec::new());
    };
    let mut missing = Vec::new();
    let mut set = |names: &Option<Capabilities>| {
        let mut bits = 0;
        for name in names.iter().flatten() {
            let name = format!("CAP_{name}");
            let bit = caps::Capability::from_str(&name).map_or(0, |cap| cap.bitmask());
            if bit & available == 0 {
                missing.push(name);
            } else {
                bits |= bit;
            }
        }
        bits
    };
    let mut sets = Sets {
        bounding: set(wanted.bounding()),
        effective: set(wanted.effective()),
        permitted: set(wanted.permitted()),
        inheritable: set(wanted.inheritable()),
        ambient: set(wanted.ambient()),
    };
    missing.sort_unstable();
    missing.dedup();
    let warning = |name| format!("ignoring unavailable capability {name}");
    let mut warnings: Vec<_> = missing.into_iter().map(warning).collect();
    warnings.extend(keep_possible(&mut sets));
    (sets, warnings)
}

/// Take out of each set what the others forbid it (capabilities(7)); config.md: a warning and no failure.
fn keep_possible(sets: &mut Sets) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut keep = |set: &mut u64, of: u64, says: &dyn Fn(&str) -> String| {
        for capability in caps::all() {
            if *set & !of & capability.bitmask() != 0 {
                warnings.push(says(&capability.to_string()));
            }
        }
        *set &= of;
    };
    keep(&mut sets.effective, sets.permitted, &|name| {
        format!("ignoring effective capability {name}, which is not permitted")
    });
    keep(&mut sets.inheritable, sets.bounding, &|name| {
        format!("ignoring inheritable capability {name}, which is not in the bounding set")
    });
    // COMPAT: the words are runc's.
    keep(
        &mut sets.ambient,
        sets.permitted & sets.inheritable,
        &|name| {
            format!(
                "can't raise ambient capability {name}: it is not both permitted and inheritable"
            )
        },
    );
    warnings
}

fn limit(limit: &runtime::PosixRlimit) -> Limit {
    let resource = match limit.typ() {
        PosixRlimitType::RlimitCpu => libc::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => libc::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => libc::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => libc::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => libc::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => libc::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => libc::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => libc::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => libc::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => libc::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => libc::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => libc::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => libc::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => libc::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => libc::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => libc::RLIMIT_RTTIME,
    };
    Limit {
        name: limit.typ().to_string(),
        resource,
        soft: limit.soft(),
        hard: limit.hard(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::ProcessBuilder;

    fn process(env: &[&str]) -> Process {
        let env: Vec<_> = env.iter().map(|line| (*line).to_owned()).collect();
        let config = ProcessBuilder::default()
            .args(["sh".to_owned()])
            .env(env)
            .cwd("/")
            .build()
            .unwrap();
        Process::new(&config, ALL_CAPABILITIES).unwrap().0
    }

    #[test]
    fn the_last_of_several_variables_with_one_name_counts() {
        let env = process(&["A=1", "B=2", "A=3"]).env;
        assert_eq!(env, [c"B=2".to_owned(), c"A=3".to_owned()]);
    }

    #[test]
    fn the_search_path_comes_from_the_containers_environment() {
        for (env, search) in [
            (&["PATH=/x:/y"][..], &["/x", "/y"][..]),
            (&["PATH=:/y"], &[".", "/y"]),
            (&["PATH="], &[]),
            (&[], &[]),
        ] {
            let expected: Vec<_> = search.iter().map(PathBuf::from).collect();
            assert_eq!(process(env).search, expected, "{env:?}");
        }
    }

    #[test]
    fn a_capability_that_cannot_be_given_is_a_warning() {
        let wanted = r#"{"bounding": ["CAP_KILL", "CAP_SYS_RESOURCE"]}"#;
        let wanted = serde_json::from_str(wanted).unwrap();
        let kill = caps::Capability::CAP_KILL.bitmask();
        let (sets, warnings) = sets(Some(&wanted), kill);
        assert_eq!(sets.bounding, kill);
        assert_eq!(
            warnings,
            ["ignoring unavailable capability CAP_SYS_RESOURCE"]
        );
    }

    #[test]
    fn what_one_set_forbids_another_is_a_warning() {
        let wanted = r#"{"bounding": ["CAP_KILL"], "permitted": ["CAP_KILL", "CAP_CHOWN"], "effective": ["CAP_SETUID", "CAP_KILL"],
            "inheritable": ["CAP_KILL", "CAP_CHOWN"], "ambient": ["CAP_KILL", "CAP_CHOWN"]}"#;
        let wanted = serde_json::from_str(wanted).unwrap();
        let (sets, warnings) = sets(Some(&wanted), ALL_CAPABILITIES);
        let kill = caps::Capability::CAP_KILL.bitmask();
        assert_eq!(
            (sets.effective, sets.inheritable, sets.ambient),
            (kill, kill, kill)
        );
        assert_eq!(
            warnings,
            [
                "ignoring effective capability CAP_SETUID, which is not permitted",
                "ignoring inheritable capability CAP_CHOWN, which is not in the bounding set",
                "can't raise ambient capability CAP_CHOWN: it is not both permitted and inheritable",
            ]
        );
    }
}
