//! `checkpoint`: write a container's processes to files.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use super::{Count, Global, Verb, absolute, only_id};
use crate::container::{self, CgroupsMode, CheckpointOptions, Images, NetworkLock, Switch};

/// What `checkpoint` and `restore` have in common.
#[derive(Debug, clap::Args)]
pub(super) struct ImageOptions {
    /// Directory of the image files [default: ./checkpoint]
    #[arg(long, value_name = "DIR")]
    image_path: Option<PathBuf>,

    /// Directory for logs and other working files [default: that of the images]
    #[arg(long, value_name = "DIR")]
    work_path: Option<PathBuf>,

    /// Allow open TCP connections
    #[arg(long)]
    tcp_established: bool,

    /// Close TCP connections
    #[arg(long)]
    tcp_close: bool,

    /// Allow Unix sockets that are connected to the outside
    #[arg(long)]
    ext_unix_sk: bool,

    /// Allow a terminal that belongs to the caller's session
    #[arg(long)]
    shell_job: bool,

    /// Allow file locks
    #[arg(long)]
    file_locks: bool,

    /// Serve memory pages when they are touched, by userfaultfd
    #[arg(long)]
    lazy_pages: bool,

    /// Remove what is twice in the images of memory
    #[arg(long)]
    auto_dedup: bool,

    /// Namespaces whose properties are left alone: network, which always is
    #[arg(long, value_name = "NAMESPACE")]
    empty_ns: Vec<String>,

    /// How control groups are restored: soft, full, strict or ignore [default: soft]
    #[arg(long, value_name = "MODE")]
    manage_cgroups_mode: Option<String>,

    /// How the network is kept still: iptables, nftables or skip
    #[arg(long, value_name = "METHOD")]
    network_lock: Option<String>,
}

impl ImageOptions {
    pub(super) fn images(self) -> Result<Images> {
        if let Some(other) = self.empty_ns.iter().find(|name| *name != "network") {
            bail!("namespace {other:?} is not supported");
        }
        let switches = [
            (self.tcp_established, Switch::TcpEstablished),
            (self.tcp_close, Switch::TcpClose),
            (self.ext_unix_sk, Switch::ExtUnixSk),
            (self.shell_job, Switch::ShellJob),
            (self.file_locks, Switch::FileLocks),
            (self.lazy_pages, Switch::LazyPages),
            (self.auto_dedup, Switch::AutoDedup),
        ];
        let path = self.image_path.unwrap_or_else(|| "checkpoint".into());
        Ok(Images {
            path: absolute(&path)?,
            work: self.work_path.map(|path| absolute(&path)).transpose()?,
            switches: given(switches).collect(),
            cgroups: match self.manage_cgroups_mode.as_deref() {
                None | Some("") => CgroupsMode::default(),
                Some("soft") => CgroupsMode::Soft,
                Some("full") => CgroupsMode::Full,
                Some("strict") => CgroupsMode::Strict,
                Some("ignore") => CgroupsMode::Ignore,
                // COMPAT: runc's words.
                Some(_) => bail!("invalid manage-cgroups-mode value"),
            },
            network_lock: match self.network_lock.as_deref() {
                None => None,
                Some("iptables") => Some(NetworkLock::Iptables),
                Some("nftables") => Some(NetworkLock::Nftables),
                Some("skip") => Some(NetworkLock::Skip),
                Some(other) => bail!(
                    "invalid value for --network-lock: {other:?}, expected iptables, nftables or skip"
                ),
            },
        })
    }
}

fn given<const N: usize>(switches: [(bool, Switch); N]) -> impl Iterator<Item = Switch> {
    switches
        .into_iter()
        .filter_map(|(given, switch)| given.then_some(switch))
}

#[derive(Debug, clap::Args)]
pub(super) struct Checkpoint {
    #[command(flatten)]
    images: ImageOptions,

    /// Directory of the images of an earlier --pre-dump, relative to that of the images
    #[arg(long, value_name = "DIR")]
    parent_path: Option<PathBuf>,

    /// Let the container run on
    #[arg(long)]
    leave_running: bool,

    /// Leave out TCP connections that are still being made
    #[arg(long)]
    tcp_skip_in_flight: bool,

    /// Give files that were removed a name again
    #[arg(long)]
    link_remap: bool,

    /// Write memory alone, for the next checkpoint to build on, and let the container run on
    #[arg(long)]
    pre_dump: bool,

    /// Server that takes memory pages, ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS:PORT")]
    page_server: Option<String>,

    /// Descriptor that gets a null byte once --lazy-pages are served
    #[arg(long, value_name = "FD", allow_negative_numbers = true)]
    status_fd: Option<i32>,

    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for Checkpoint {
    const NAME: &'static str = "checkpoint";
    const ABOUT: &'static str = "write a running container to files";
    const USAGE: &'static str = "[options] <container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        if self
            .parent_path
            .as_ref()
            .is_some_and(|path| path.is_absolute())
        {
            bail!("--parent-path must be relative");
        }
        let mut images = self.images.images()?;
        images.switches.extend(given([
            (self.leave_running, Switch::LeaveRunning),
            (self.tcp_skip_in_flight, Switch::TcpSkipInFlight),
            (self.link_remap, Switch::LinkRemap),
        ]));
        let page_server = self.page_server.as_deref().map(page_server).transpose()?;
        container::checkpoint(&CheckpointOptions {
            id: only_id(&self.arguments)?,
            root: global.root.clone(),
            images,
            parent: self.parent_path,
            pre_dump: self.pre_dump,
            page_server,
            status_fd: self.status_fd.filter(|number| *number >= 0),
        })?;
        Ok(0)
    }
}

/// COMPAT: runc's words.
fn page_server(text: &str) -> Result<(String, u16)> {
    const USAGE: &str = "Use --page-server ADDRESS:PORT to specify page server";
    let (address, port) = text.rsplit_once(':').context(USAGE)?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    if address.is_empty() || port.is_empty() {
        bail!(USAGE);
    }
    Ok((
        address.to_owned(),
        port.parse().context("Invalid port number")?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:77").unwrap(), ("10.0.0.1".into(), 77));
        assert_eq!(page_server("[::1]:77").unwrap(), ("::1".into(), 77));
        for text in ["here", ":77", "here:", ""] {
            let error = page_server(text).unwrap_err();
            assert!(error.to_string().starts_with("Use --page-server"), "{text}");
        }
        assert_eq!(
            page_server("a:70000").unwrap_err().to_string(),
            "Invalid port number"
        );
    }
}
