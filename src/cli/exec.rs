//! `exec`: run one process more in a container.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::{Count, Global, Verb, absolute, descriptors, only_id, truth};
use crate::container::{self, ExecOptions, ProcessOptions, Wanted};
use crate::report;

/// The exit code of a failure of our own, which no program can be told from by its code alone.
const OWN_FAILURE: u8 = 255;

#[derive(Debug, clap::Args)]
pub(super) struct Exec {
    /// Socket that is sent the master of the process's terminal; from the container's bundle (with --process: from here), or
    /// @NAME for an abstract one
    #[arg(long, value_name = "PATH")]
    console_socket: Option<PathBuf>,

    /// Socket that is sent a pidfd of the process; from the container's bundle (with --process: from here), or @NAME for an
    /// abstract one
    #[arg(long, value_name = "PATH")]
    pidfd_socket: Option<PathBuf>,

    /// Current working directory in the container
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,

    /// Set an environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", allow_hyphen_values = true)]
    env: Vec<String>,

    /// Give the process a terminal
    #[arg(short, long)]
    tty: bool,

    /// User id, and group id, as numbers
    #[arg(short, long, value_name = "UID[:GID]", allow_hyphen_values = true)]
    user: Option<String>,

    /// Group id to add, as a number; may be repeated
    #[arg(short = 'g', long, value_name = "GID", allow_hyphen_values = true)]
    additional_gids: Vec<i64>,

    /// File that describes the process, as "process" of config.json does, or - for standard input; then the options for it
    /// are ignored
    #[arg(short, long, value_name = "FILE")]
    process: Option<PathBuf>,

    /// Return once the process runs
    #[arg(short, long)]
    detach: bool,

    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,

    /// SELinux label of the process
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,

    /// AppArmor profile of the process
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,

    /// Let the process gain no privileges by what it executes; =false lets it, whatever the configuration says
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
        value_parser = parse_truth)]
    no_new_privs: Option<bool>,

    /// Add a capability to the bounding, effective and permitted sets; may be repeated
    #[arg(short, long, value_name = "CAP_NAME")]
    cap: Vec<String>,

    /// Pass this many more file descriptors, beyond stdio, to the process
    #[arg(long, value_name = "N", default_value = "0", allow_negative_numbers = true, value_parser = descriptors)]
    preserve_fds: u32,

    /// Put the process into this cgroup below the container's
    #[arg(long, value_name = "PATH")]
    cgroup: Vec<String>,

    /// Go on where the container is paused; the process begins when it is resumed
    #[arg(long)]
    ignore_paused: bool,

    #[arg(value_name = "container-id> <command", hide = true)]
    arguments: Vec<String>,
}

impl Exec {
    fn options(self, global: &Global) -> Result<ExecOptions> {
        let whole = |path: Option<PathBuf>| path.map(|path| absolute(&path)).transpose();
        // COMPAT: an empty text is one that was not given.
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let id = only_id(&self.arguments)?;
        let wanted = match self.process {
            Some(path) if path.as_os_str() == "-" => Wanted::File(path),
            Some(path) => Wanted::File(absolute(&path)?),
            None => Wanted::Changed(ProcessOptions {
                args: self.arguments.into_iter().skip(1).collect(),
                cwd: self.cwd,
                env: self.env,
                terminal: self.tty,
                user: self.user.as_deref().map(parse_user).transpose()?,
                additional_gids: self
                    .additional_gids
                    .into_iter()
                    .map(group)
                    .collect::<Result<_>>()?,
                selinux_label: given(self.process_label),
                apparmor: given(self.apparmor),
                no_new_privileges: self.no_new_privs,
                capabilities: self.cap,
            }),
        };
        Ok(ExecOptions {
            id,
            root: global.root.clone(),
            wanted,
            detach: self.detach,
            console_socket: self.console_socket,
            pidfd_socket: self.pidfd_socket,
            pid_file: whole(self.pid_file)?,
            preserve_fds: self.preserve_fds,
            cgroup: self.cgroup,
            ignore_paused: self.ignore_paused,
        })
    }
}

impl Verb for Exec {
    const NAME: &'static str = "exec";
    const ABOUT: &'static str = "execute a new process inside the container";
    const USAGE: &'static str = "[options] <container-id> <command> [command options]  or  exec --process FILE [options] <container-id>";
    const ARGUMENTS: Count = Count::AtLeast(1);
    const FOREIGN_ARGUMENTS: bool = true;

    fn run(self, global: &Global) -> Result<u8> {
        let done = self
            .options(global)
            .and_then(|options| container::exec(&options))
            .context("exec failed");
        done.or_else(|error| {
            report::fail(&error);
            Ok(OWN_FAILURE)
        })
    }
}

fn parse_truth(text: &str) -> Result<bool> {
    truth(text).with_context(|| format!("{text:?} is no truth value"))
}

/// `uid` or `uid:gid`.
fn parse_user(text: &str) -> Result<(u32, Option<u32>)> {
    let parse = || -> Result<_> {
        Ok(match text.split_once(':') {
            None => (parse_id(text)?, None),
            Some((uid, gid)) => (parse_id(uid)?, Some(parse_id(gid)?)),
        })
    };
    parse().with_context(|| format!("--user {text:?}"))
}

/// COMPAT: a word that is no number is a wrong command line, a number that is no id a failure of exec's.
fn group(number: i64) -> Result<u32> {
    match u32::try_from(number) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ if number < 0 => bail!("additional-gids must be a positive number {number}"),
        _ => bail!("--additional-gids: {number} is not a numeric id"),
    }
}

/// A number that is an id, and nothing else.
// CVE-2026-30892: a text that is taken for a part of what it says can name root.
fn parse_id(text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(id) if digits && id != u32::MAX => Ok(id),
        _ => bail!("{text:?} is not a numeric id"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_one_number_or_two() {
        for (text, user) in [
            ("0", (0, None)),
            ("1000", (1000, None)),
            ("1000:5", (1000, Some(5))),
            ("4294967294:0", (4_294_967_294, Some(0))),
        ] {
            assert_eq!(parse_user(text).unwrap(), user, "{text}");
        }
        for text in [
            "",
            "1000x",
            ":5",
            "5:",
            ":",
            "4294967295",
            "4294967296",
            "-1",
            "+1",
            "1 ",
            " 1",
            "1:2:3",
            "root",
            "0x10",
            "1:-1",
        ] {
            assert!(parse_user(text).is_err(), "{text:?} was taken");
        }
    }
}
