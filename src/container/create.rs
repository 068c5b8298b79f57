//! Making a container: `create`, and `run` around it.

use anyhow::{Result, bail};

use super::{CreateOptions, RunOptions};

/// Makes a container whose payload waits for `start`.
pub(crate) fn create(options: CreateOptions) -> Result<()> {
    bail!("cannot create {} yet", options.id)
}

/// Makes a container, starts it and, unless detached, waits for its end; returns the exit code.
pub(crate) fn run(options: RunOptions) -> Result<u8> {
    bail!("cannot run {} yet", options.create.id)
}
