//! The listener of a filter that notifies, handed to the agent that answers (config-linux.md, seccomp, listenerPath).

use std::io::Write;
use std::os::fd::{AsFd, RawFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Launched;
use crate::plan::seccomp::Agent;
use crate::sys::{fd, pidfd};

/// How long the agent's socket may be full.
const WRITTEN: Duration = Duration::from_secs(5);

/// Take the listener with this number from the waiting process and send it to `agent`, with the container process state,
/// of which `state` is the container's part.
///
/// # Errors
/// The profile names no listener, nobody listens there, or the process may not be looked into: an ordinary user may not
/// where the process was made by one who is not dumpable.
pub(super) fn hand_over(
    agent: Option<&Agent>,
    state: &[u8],
    launched: &Launched,
    number: RawFd,
) -> Result<()> {
    let Some(agent) = agent else {
        bail!("linux.seccomp.listenerPath: seccomp listenerPath is not set");
    };
    let listener = pidfd::take(launched.pidfd(), number)
        .context("take the listener of the seccomp filter from the container's process")?;
    let state: Value = serde_json::from_slice(state).context("the container's state")?;
    let mut message = json!({
        "ociVersion": state["ociVersion"],
        "fds": ["seccompFd"],
        "pid": launched.pid().as_raw(),
        "state": state,
    });
    if let Some(metadata) = &agent.metadata {
        message["metadata"] = json!(metadata);
    }
    let message = message.to_string();
    // COMPAT: runc's words.
    let context = || {
        format!(
            "linux.seccomp.listenerPath: failed to connect with seccomp agent specified in the seccomp profile: {}",
            agent.path.display()
        )
    };
    let mut stream = fd::connect(&agent.path).with_context(context)?;
    // One that does not read must not hold us up.
    stream
        .set_write_timeout(Some(WRITTEN))
        .with_context(context)?;
    // COMPAT: together with the descriptor, as far as the stream takes it: there are agents that read once.
    let number = std::os::fd::AsRawFd::as_raw_fd(&listener);
    let sent = fd::send(stream.as_fd(), message.as_bytes(), &[number]).with_context(context)?;
    let rest = &message.as_bytes()[sent..];
    stream.write_all(rest).with_context(context)
}
