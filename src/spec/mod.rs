//! What the user wrote: the bundle, its config.json, and the rules that file must keep.
//!
//! `decode` turns bytes into types, `check` says which rules they break, `features` is what this build can carry out,
//! `template` is the config.json that the `spec` verb writes. Nothing here asks the host anything beyond opening the
//! bundle: whether a path exists, or what a namespace file refers to, is for the rooms that follow.

mod check;
mod decode;
pub(crate) mod features;
mod strict;
mod template;

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{AT_FDCWD, FcntlArg, OFlag, fcntl, open, openat, readlink};
use nix::sys::stat::Mode;
use oci_spec::runtime::{LinuxResources, Process, Spec};

use check::Stage;
pub(crate) use check::{
    Context, Fault, may_replace_in_proc, numbers_of_list, processors_of_list, sysctl_path,
};
pub(crate) use features::features_json;
pub(crate) use template::default_config;

const CONFIG: &str = "config.json";

/// Parse `linux.resources` alone, as the `update` verb is given them.
///
/// Errors: no JSON, or a member of the wrong type, which is named.
pub(crate) fn resources(raw: &[u8]) -> Result<LinuxResources> {
    decode::resources(raw)
}

/// A bundle: a directory with a config.json (runtime-spec, bundle.md).
pub(crate) struct Bundle {
    /// Its absolute path, as the kernel names the open directory.
    pub(crate) path: PathBuf,
    /// config.json, byte for byte.
    pub(crate) raw: Vec<u8>,
    /// config.json, parsed. Values outside the specification's lists are left out of it and reported by
    /// [`Bundle::check`]: do not act on it before `check` has returned nothing.
    pub(crate) spec: Spec,
    /// What the operator should hear but what stops nothing, one line each.
    pub(crate) warnings: Vec<String>,
    faults: Vec<Fault>,
}

impl Bundle {
    /// Open the directory `path` and parse its config.json, or the file `config` in its place.
    ///
    /// Errors: the directory or the file cannot be read, the file is no JSON, or a member has the wrong type; the last
    /// names the member.
    pub(crate) fn open(path: &Path, config: Option<&Path>) -> Result<Self> {
        let opening = || format!("open bundle {}", path.display());
        let dir = open(
            path,
            OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )
        .with_context(opening)?;
        let path = readlink(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_str())
            .with_context(opening)?;
        let raw = match config {
            None => read_config(dir.as_fd())?,
            Some(config) => read_file(AT_FDCWD, config)
                .with_context(|| format!("read configuration {}", config.display()))?,
        };
        Self::decoded(path.into(), raw)
    }

    /// The bundle at `path`, whose config.json is `raw`.
    ///
    /// Errors: as for [`Bundle::open`].
    pub(crate) fn decoded(path: PathBuf, raw: Vec<u8>) -> Result<Self> {
        let mut decoded = decode::decode(&raw)?;
        decoded.faults.extend(take_receiver(&mut decoded.spec));
        Ok(Self {
            path,
            raw,
            spec: decoded.spec,
            warnings: decoded.warnings,
            faults: decoded.faults,
        })
    }

    /// The configuration that a container was made from, as it was kept then, and the bundle's directory, which may be gone.
    pub(crate) fn kept(path: PathBuf, raw: Vec<u8>) -> Result<Self> {
        Ok(Self {
            warnings: Vec::new(),
            faults: Vec::new(),
            ..Self::decoded(path, raw)?
        })
    }

    /// Put another process in the place of the configuration's: `text` is what stands in config.json as `process`.
    ///
    /// # Errors
    /// As for [`Bundle::open`].
    pub(crate) fn take_process(&mut self, text: &[u8]) -> Result<()> {
        let decoded = decode::process(text)?;
        self.spec.set_process(decoded.spec.process().clone());
        self.warnings.extend(decoded.warnings);
        self.faults.extend(decoded.faults);
        Ok(())
    }

    /// Put other mounts in the place of the configuration's: `text` is what stands in config.json as `mounts`.
    ///
    /// # Errors
    /// As for [`Bundle::open`].
    pub(crate) fn take_mounts(&mut self, text: &[u8]) -> Result<()> {
        let decoded = decode::mounts(text)?;
        self.spec.set_mounts(decoded.spec.mounts().clone());
        self.warnings.extend(decoded.warnings);
        self.faults.extend(decoded.faults);
        Ok(())
    }

    /// Change the configuration's process.
    pub(crate) fn edit_process(&mut self, edit: impl FnOnce(&mut Process)) {
        if let Some(process) = self.spec.process_mut() {
            edit(process);
        }
    }

    /// The first rule that the process breaks; what the rest of the configuration broke was refused with the container.
    pub(crate) fn check_process(&self, how: &Context) -> Option<Fault> {
        self.check_member("process", how)
    }

    /// The same for the mounts.
    pub(crate) fn check_mounts(&self, how: &Context) -> Option<Fault> {
        self.check_member("mounts", how)
    }

    fn check_member(&self, name: &str, how: &Context) -> Option<Fault> {
        let faults = self.check(how);
        faults.into_iter().find(|fault| {
            fault
                .field
                .strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Every rule the config.json breaks, in the order in which runc would come upon them; empty when it may be run.
    pub(crate) fn check(&self, how: &Context) -> Vec<Fault> {
        check::check(&self.spec, how, self.faults.clone())
    }
}

/// Make the agent that an annotation of crun's names, or its variable, that of a seccomp profile without one.
fn take_receiver(spec: &mut Spec) -> Option<Fault> {
    const ANNOTATION: &str = "run.oci.seccomp.receiver";
    let annotations = spec.annotations().as_ref();
    let named = annotations.and_then(|all| all.get(ANNOTATION)).cloned();
    let profile = spec.linux_mut().as_mut()?.seccomp_mut().as_mut()?;
    if profile.listener_path().is_some() {
        return None;
    }
    let receiver = named.or_else(|| std::env::var("RUN_OCI_SECCOMP_RECEIVER").ok())?;
    let fault = (!receiver.starts_with('/')).then(|| {
        let rule = format!("{receiver:?} is not an absolute path");
        Fault::new(Stage::Seccomp, format!("annotations.{ANNOTATION}"), rule)
    });
    profile.set_listener_path(Some(receiver.into()));
    fault
}

/// The whole of the file at `path`, looked up from `dir`. A fifo is read as one, but nobody is waited for who might write
/// to it.
pub(crate) fn read_file(dir: BorrowedFd<'_>, path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(dir, path, flags, Mode::empty())?);
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_config(dir: BorrowedFd<'_>) -> Result<Vec<u8>> {
    match read_file(dir, Path::new(CONFIG)) {
        // COMPAT: runc's words, which engines show.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("JSON specification file config.json not found")
        }
        other => other.context("read config.json"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(config: Option<&str>) -> (tempfile::TempDir, Result<Bundle>) {
        let dir = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            std::fs::write(dir.path().join("config.json"), config).unwrap();
        }
        let bundle = Bundle::open(dir.path(), None);
        (dir, bundle)
    }

    #[test]
    fn the_template_makes_a_bundle_without_faults() {
        let text = default_config(None, true);
        let (dir, bundle) = bundle(Some(&text));
        let bundle = bundle.unwrap();
        assert_eq!(bundle.raw, text.as_bytes());
        assert_eq!(bundle.path, dir.path().canonicalize().unwrap());
        assert_eq!(bundle.check(&Context::default()), []);
        assert_eq!(bundle.warnings, [""; 0]);
    }

    #[test]
    fn a_symlinked_bundle_has_the_path_of_its_target() {
        let (dir, _) = bundle(Some(&default_config(None, true)));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        let real = dir.path().canonicalize().unwrap();
        assert_eq!(Bundle::open(&link, None).unwrap().path, real);
    }

    #[test]
    fn a_bundle_that_cannot_be_read_is_one_error() {
        for (config, error) in [
            (None, "JSON specification file config.json not found"),
            (Some("null"), "config cannot be null"),
            (
                Some(""),
                "config.json: EOF while parsing a value at line 1 column 0",
            ),
            (
                Some("{\"process\": 3}"),
                "config.json: process: invalid type: integer `3`, expected an object",
            ),
        ] {
            let Err(e) = bundle(config).1 else {
                panic!("{config:?} was accepted");
            };
            assert_eq!(e.to_string(), error, "{config:?}");
        }
        let Err(e) = Bundle::open(Path::new("/nonexistent/bundle"), None) else {
            panic!("a missing directory was opened");
        };
        assert_eq!(
            format!("{e:#}"),
            "open bundle /nonexistent/bundle: ENOENT: No such file or directory"
        );
    }

    #[test]
    fn faults_of_parsing_and_of_checking_come_as_one_list() {
        let (_dir, bundle) = bundle(Some(
            r#"{"ociVersion": "1.3.0",
                "process": {"user": {}, "cwd": "/", "args": [], "rlimits": [{"type": "RLIMIT_X", "soft": 1, "hard": 1}]},
                "root": {"path": "rootfs"},
                "linux": {"namespaces": [{"type": "pid"}, {"type": "x"}], "maskedPaths": ["/proc/kcore"]}}"#,
        ));
        let faults: Vec<_> = bundle
            .unwrap()
            .check(&Context::default())
            .iter()
            .map(Fault::to_string)
            .collect();
        assert_eq!(
            faults,
            [
                "process.args: args must not be empty",
                "linux.namespaces[1].type: namespace \"x\" does not exist",
                "linux.maskedPaths: unable to restrict sys entries without a private MNT namespace",
                "process.rlimits[0].type: wrong rlimit value: RLIMIT_X",
            ]
        );
    }
}
