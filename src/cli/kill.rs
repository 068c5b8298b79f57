//! `kill`: send a signal to a container's init.

use std::str::FromStr as _;

use anyhow::{Context as _, Result, bail};
use nix::libc;
use nix::sys::signal::Signal;

use super::{Count, Global, Verb, only_id, to_each};
use crate::container::{self, Container, Fault, Id};

#[derive(Debug, clap::Args)]
pub(super) struct Kill {
    /// Send the signal to every process of the container; an already stopped one is then no error
    #[arg(short, long)]
    all: bool,

    /// The argument is a regular expression: send to every container whose id matches it
    #[arg(short, long)]
    regex: bool,

    #[arg(value_name = "container-id> [signal", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Kill {
    const NAME: &'static str = "kill";
    const ABOUT: &'static str = "send a signal to the container's init process";
    const USAGE: &'static str = "<container-id> [signal, default SIGTERM]";
    const ARGUMENTS: Count = Count::Between(1, 2);

    fn run(self, global: &Global) -> Result<u8> {
        let signal = parse_signal(self.arguments.get(1).map_or("", String::as_str));
        if signal.is_err() && !self.regex {
            // COMPAT: a container that is not there is the first thing to say.
            Container::open(&global.root, &only_id(&self.arguments)?)?;
        }
        let signal = signal?;
        let kill = |id: &Id| {
            let sent = match self.all {
                true => container::kill_all(&global.root, id, signal),
                false => container::kill(&global.root, id, signal),
            };
            match sent {
                // COMPAT: runc swallows this one error with --all.
                Err(error)
                    if self.all && matches!(error.downcast_ref(), Some(Fault::NotRunning)) =>
                {
                    Ok(())
                }
                other => other,
            }
        };
        if self.regex {
            return to_each(global, &self.arguments, |id| {
                kill(id).with_context(|| format!("kill {id}"))
            });
        }
        kill(&only_id(&self.arguments)?)?;
        Ok(0)
    }
}

/// A number, or a name in any case, with or without SIG; RTMIN+n and RTMAX-n too. COMPAT: an empty word is TERM.
fn parse_signal(text: &str) -> Result<i32> {
    if text.is_empty() {
        return Ok(libc::SIGTERM);
    }
    if let Ok(number @ 0..=64) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = match name {
        "CLD" => Some(libc::SIGCHLD),
        "IOT" => Some(libc::SIGABRT),
        "POLL" => Some(libc::SIGIO),
        name => Signal::from_str(&format!("SIG{name}"))
            .map(|signal| signal as i32)
            .ok()
            .or_else(|| real_time(name)),
    };
    match number {
        Some(number) => Ok(number),
        None => bail!("unknown signal {text:?}"),
    }
}

fn real_time(name: &str) -> Option<i32> {
    let (low, high) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let number = match name.split_once(['+', '-']) {
        None if name == "RTMIN" => low,
        None if name == "RTMAX" => high,
        Some(("RTMIN", distance)) if name.contains('+') => {
            low + distance.parse::<u8>().map(i32::from).ok()?
        }
        Some(("RTMAX", distance)) if name.contains('-') => {
            high - distance.parse::<u8>().map(i32::from).ok()?
        }
        _ => return None,
    };
    (low..=high).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_numbers_or_names_in_any_case() {
        for (text, number) in [
            ("", 15),
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigTerm", 15),
            ("winch", 28),
            ("CLD", 17),
            ("RTMIN+3", libc::SIGRTMIN() + 3),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number, "{text}");
        }
        for text in ["65", "-1", "SIGSIGKILL", "RTMIN-1", "RTMIN+99", "x"] {
            assert_eq!(
                parse_signal(text).unwrap_err().to_string(),
                format!("unknown signal {text:?}")
            );
        }
    }
}
