//! `ps`: the processes of a container, as the host's ps(1) shows them or as a list of numbers.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;

use super::{Count, Global, Verb, only_id, print};
use crate::container;

#[derive(Debug, clap::Args)]
pub(super) struct Ps {
    /// Output format: table or json
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    format: String,

    #[arg(value_name = "container-id> [ps options", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Ps {
    const NAME: &'static str = "ps";
    const ABOUT: &'static str = "display the processes running inside a container";
    const USAGE: &'static str = "[options] <container-id> [ps options, default -ef]";
    const ARGUMENTS: Count = Count::AtLeast(1);
    const FOREIGN_ARGUMENTS: bool = true;

    fn run(self, global: &Global) -> Result<u8> {
        let processes = container::processes(&global.root, &only_id(&self.arguments)?)?;
        match self.format.as_str() {
            "json" => {
                let numbers: Vec<_> = processes.iter().map(|pid| pid.as_raw()).collect();
                print(&(serde_json::to_string(&numbers).context("write list")? + "\n"))
            }
            "table" => print(&rows(&listing(&self.arguments[1..])?, &processes)?),
            _ => bail!("invalid format option"),
        }
    }
}

/// What the host's ps prints.
fn listing(options: &[String]) -> Result<String> {
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() {
        &default
    } else {
        options
    };
    let output = Command::new("ps")
        .args(options)
        .output()
        .context("run ps")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("ps: {}: {}", output.status, complaint.trim());
    }
    Ok(said)
}

/// The heading, and the lines whose PID is one of `processes`.
fn rows(listing: &str, processes: &[Pid]) -> Result<String> {
    let mut lines = listing.lines();
    let heading = lines.next().unwrap_or_default();
    let column = heading
        .split_ascii_whitespace()
        .position(|title| title == "PID")
        .context("couldn't find PID field in ps output")?;
    let mut text = format!("{heading}\n");
    for line in lines {
        // Columns before PID hold no spaces: users, numbers and times.
        let pid = line
            .split_ascii_whitespace()
            .nth(column)
            .and_then(|cell| cell.parse().ok());
        if pid.is_some_and(|pid| processes.contains(&Pid::from_raw(pid))) {
            text.push_str(line);
            text.push('\n');
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_by_the_column_that_the_heading_names() {
        let listing =
            "UID   PID  PPID CMD\nroot    7     1 a 8\nroot    8     7 b\nroot   77     7 c\n";
        let chosen = |pids: &[i32]| {
            let pids: Vec<_> = pids.iter().copied().map(Pid::from_raw).collect();
            rows(listing, &pids).unwrap()
        };
        assert_eq!(
            chosen(&[7, 77]),
            "UID   PID  PPID CMD\nroot    7     1 a 8\nroot   77     7 c\n"
        );
        assert_eq!(chosen(&[1]), "UID   PID  PPID CMD\n");
        assert_eq!(
            rows("  PID\n    9\n", &[Pid::from_raw(9)]).unwrap(),
            "  PID\n    9\n"
        );
        assert_eq!(
            rows("USER CMD\nroot sh\n", &[]).unwrap_err().to_string(),
            "couldn't find PID field in ps output"
        );
    }
}
