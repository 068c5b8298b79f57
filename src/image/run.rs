//! A bundle made, handed to the runtime, and removed.
//!
//! The bundle stands in the store, as `bundles/ID`: what the container writes belongs on a disk, not into the memory that
//! `/run` is, and on the file system of the layers an overlay is known to work.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::unistd::{AccessFlags, Pid, Uid, access};

use crate::idmap;
use crate::report::{self, Hinted, debug};

use super::bundle::{self, Place, Rootfs};
use super::containers::{Containers, RuntimeRoots};
use super::foreground::Signals;
use super::progress::Progress;
use super::store::{BundleRecord, Durability, Store, random_name};
use super::userns;

/// What is run, and how.
pub(crate) struct Request {
    pub(crate) bundle: bundle::Request,
    /// The runtime's program; `pelagos` where none is named.
    pub(crate) runtime: Option<PathBuf>,
    /// The container's id.
    pub(crate) id: Option<String>,
    /// The bundle stays.
    pub(crate) keep: bool,
}

/// The longest id, in bytes.
const LONGEST_ID: usize = 128;

/// Run a container from an image: its exit code, as the runtime gives it.
///
/// An ordinary user's command goes on in a user namespace, see [`userns`]. Called before any thread is started.
///
/// # Errors
/// The bundle cannot be made, or there is no runtime. Nothing stays.
pub(crate) fn run(
    root: &Path,
    durability: Durability,
    quiet: bool,
    mut request: Request,
) -> Result<u8> {
    let runtime = find_runtime(request.runtime.as_deref())?;
    if let Some(id) = &request.id {
        check_id(id)?;
    }
    userns::enter(userns::Wanted { mounts: true })?;
    let root_of_machine = Uid::effective().is_root() && idmap::in_initial_namespace()?;
    if request.keep && !root_of_machine && request.bundle.rootfs != Rootfs::Flat {
        // The namespace in which the overlay would be mounted ends with this command.
        if request.bundle.rootfs == Rootfs::Overlay {
            bail!(
                "an ordinary user's overlay cannot be kept: it is mounted in a namespace that ends"
            );
        }
        request.bundle.rootfs = Rootfs::Flat;
    }
    if request.bundle.maps.is_some() && request.bundle.rootfs == Rootfs::Either {
        request.bundle.rootfs = Rootfs::Flat;
    }
    if root_of_machine && !request.keep {
        // However this command ends, its mount ends with it.
        userns::private_mounts()?;
    }
    let state_root = userns::state_root()?;
    let store = Store::open(root, durability)?;
    let roots = RuntimeRoots::usual()?;
    bundle::sweep(&store, &roots)?;

    let id = match &request.id {
        Some(id) => id.clone(),
        None => random_name()?,
    };
    if store.bundle_records()?.iter().any(|record| record.id == id) {
        bail!("container id {id}: a bundle of that id is registered");
    }
    let claim = bundle::claim(&store, &id)?;
    let place = Place {
        path: claim.path.clone(),
        id: id.clone(),
        passing: !request.keep,
        state_root: Some(state_root.clone()),
    };
    let made = bundle::make(&store, &place, &request.bundle, &Progress::new(quiet));
    let record = match made {
        Ok(record) => record,
        Err(error) => {
            std::fs::remove_dir(&claim.path).ok();
            return Err(error);
        }
    };
    if request.keep {
        claim.keep()?;
    }
    claim.share()?;
    let code = start(&runtime, &state_root, &record);
    if request.keep {
        bundle::for_outside(&record.path)?;
        let line = format!("bundle kept: {}\n", record.path.display());
        std::io::stderr().write_all(line.as_bytes()).ok();
        return code;
    }
    let removed = Containers::read(&roots)
        .and_then(|containers| bundle::remove(&store, &containers, &record, false));
    match (code, removed) {
        (code, Ok(_)) => code,
        (Ok(code), Err(error)) => {
            report::warn(format_args!("{}", report::sentence(&error)));
            Ok(code)
        }
        (Err(error), Err(_)) => Err(error),
    }
}

/// Start the runtime on the bundle and stay until it ends.
fn start(runtime: &Path, state_root: &Path, record: &BundleRecord) -> Result<u8> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_root)
        .with_context(|| format!("make directory {}", state_root.display()))?;
    // ORDER: before the start, lest a signal that arrives at once ends this command and not the container.
    let signals = Signals::block()?;
    debug!("start {} on {}", runtime.display(), record.path.display());
    let child = Command::new(runtime)
        .arg("--root")
        .arg(state_root)
        .args([OsStr::new("run"), OsStr::new("--bundle")])
        .arg(&record.path)
        .arg(&record.id)
        .spawn()
        .with_context(|| format!("start the runtime {}", runtime.display()))?;
    let code = signals.wait(Pid::from_raw(child.id().cast_signed()))?;
    signals.restore()?;
    Ok(code)
}

/// The runtime: as named, else `pelagos` beside this program, else in `$PATH`.
fn find_runtime(named: Option<&Path>) -> Result<PathBuf> {
    let runs = |path: &Path| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
    let in_path = |name: &Path| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|path| runs(path))
    };
    match named {
        Some(name) if name.components().count() == 1 && !runs(name) => {
            in_path(name).with_context(|| format!("runtime {}: not in $PATH", name.display()))
        }
        Some(path) => {
            std::path::absolute(path).with_context(|| format!("runtime {}", path.display()))
        }
        None => {
            let name = Path::new("pelagos");
            let beside = std::env::current_exe()
                .ok()
                .and_then(|program| Some(program.parent()?.join(name)))
                .filter(|path| runs(path));
            beside.or_else(|| in_path(name)).ok_or_else(|| {
                let message = "no runtime: pelagos is neither beside this program nor in $PATH";
                Hinted::new(message, "--runtime names another").into()
            })
        }
    }
}

/// Whether `id` can name a container (the rule of the runtimes) and a directory that is not hidden.
fn check_id(id: &str) -> Result<()> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    let first = id.bytes().next();
    let fine = id.len() <= LONGEST_ID
        && id.bytes().all(fits)
        && first.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !fine {
        bail!(
            "container id {id:?}: begins with a letter or a digit and has letters, digits, `_`, `+`, `-` and `.`"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_names_a_directory_and_is_no_option() {
        for id in ["web", "a.b+c_d-1", "0"] {
            check_id(id).unwrap();
        }
        for id in [
            "",
            ".",
            "..",
            "-a",
            ".a",
            "a/b",
            "a b",
            "ä",
            &"x".repeat(129),
        ] {
            check_id(id).expect_err(id);
        }
    }

    #[test]
    fn a_runtime_that_is_named_is_not_looked_for_elsewhere() {
        assert_eq!(
            find_runtime(Some(Path::new("/no/such"))).unwrap(),
            Path::new("/no/such")
        );
        assert!(find_runtime(Some(Path::new("surely-no-such-runtime"))).is_err());
        let found = find_runtime(Some(Path::new("sh"))).unwrap();
        assert!(found.is_absolute() && found.ends_with("sh"));
    }
}
