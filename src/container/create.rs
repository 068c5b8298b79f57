//! Making a container: `create`, and `run` around it.

use std::collections::BTreeMap;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::stat::Mode;
use nix::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType as Kind, Spec};

use super::copying::{self, Copying};
use super::foreground::{self, Ended, Signals};
use super::readiness::{self, Relay};
use super::state::{
    Dir, EXEC_FIFO, Locked, ProcessStat, RESULT_FIFO, Record, SCHEMA, Status, write_pid_file,
};
use super::{
    CreateOptions, Fault, PATIENCE, Rootless, RunOptions, began, destroy, end, gathered,
    is_no_root, run_hooks,
};
use crate::cgroup::{Driver, Hierarchy, Place};
use crate::handshake::ParentEnd;
use crate::hooks;
use crate::idmap::{self, Maps, Range};
use crate::launch::{self, HookFailed, Launched, Request, Stdio};
use crate::plan::host::Host;
use crate::plan::{Options, Plan};
use crate::report::{self, debug};
use crate::spec::{self, Bundle};
use crate::sys::{fd, seal};

/// Makes a container whose payload waits for `start`.
///
/// # Errors
/// One line that names the field, path or step; nothing is left behind.
pub(crate) fn create(options: &CreateOptions) -> Result<()> {
    let draft = ManuallyDrop::new(Draft::new(options, true)?);
    let made = draft.make(Word::Later, &Stdio::default())?;
    made.launched.keep();
    Ok(())
}

/// Makes a container, starts it and, unless detached, waits for its end; returns the exit code.
///
/// # Errors
/// As for [`create`]; a payload that could not be executed is an error too, and the container is gone then.
pub(crate) fn run(options: &RunOptions) -> Result<u8> {
    let draft = ManuallyDrop::new(Draft::new(&options.create, options.detach)?);
    let signals = if options.detach {
        None
    } else {
        Some(attend(options)?)
    };
    let (streams, copying) = draft.streams(options.detach)?;
    let Made {
        locked,
        record,
        mut launched,
        relay,
    } = draft.make(Word::Now, &streams)?;
    // Or their end would never be seen.
    drop(streams);
    let console = launched.console.take().map(|(master, _)| master);
    let pid = launched.pid();
    let (talk, pidfd) = launched.keep();
    if let (Some(master), Some(_)) = (&console, &signals) {
        copying::fit(master.as_fd());
    }
    if let Err(error) = start(&talk, &record) {
        return Err(match destroy(locked, &record) {
            Ok(()) => error,
            Err(more) => gathered(vec![error, more]),
        });
    }
    // Others may work on the container while it runs.
    drop(locked);
    let Some(signals) = signals else {
        if let Some(relay) = relay {
            relay.wait(pid.as_raw(), pidfd.as_fd())?;
        }
        return Ok(0);
    };
    let copying = copying.with_terminal(console)?;
    let ended = foreground::wait(pid, pidfd, copying, &signals, relay.as_ref())?;
    clean_up(options, &record, ended, &signals)
}

/// Be ready for what the payload and the terminal will tell.
pub(super) fn attend(options: &RunOptions) -> Result<Signals> {
    if !options.no_subreaper {
        prctl::set_child_subreaper(true).context("become subreaper")?;
    }
    foreground::block_signals()
}

/// Let the payload begin, and run the poststart hooks once it has.
fn start(talk: &ParentEnd, record: &Record) -> Result<()> {
    talk.go().context("start the payload")?;
    if let Some(reason) = talk.hear_start().context("start the payload")? {
        bail!("unable to start container process: {reason}");
    }
    began(record)?;
    run_hooks("poststart", &record.poststart, record, Status::Running)
}

/// After the end of the payload: the last of its output, and the container deleted unless it is to be kept. Returns the
/// exit code.
pub(super) fn clean_up(
    options: &RunOptions,
    record: &Record,
    mut ended: Ended,
    signals: &Signals,
) -> Result<u8> {
    // What it has left behind: the last writers to its streams. What is wrong then is told by the deletion.
    if !options.keep && ended.has_pipes() && end(record).is_err() {
        ended.wait_for_nobody();
    }
    let code = ended.code(signals);
    if !options.keep {
        delete(&options.create, &record.mark())?;
    }
    Ok(code)
}

/// Delete the container with this mark, unless somebody else did, who may have made another of its name.
fn delete(options: &CreateOptions, mark: &str) -> Result<()> {
    let gone = |error: anyhow::Error| match error.downcast_ref() {
        Some(Fault::NotFound) => Ok(()),
        _ => Err(error),
    };
    let locked = match Dir::open(&options.root, &options.id).and_then(|dir| dir.lock(PATIENCE)) {
        Ok(locked) => locked,
        Err(error) => return gone(error),
    };
    match locked.record()? {
        Some(record) if record.mark() == mark => destroy(locked, &record),
        Some(_) => Ok(()),
        None => locked.remove(),
    }
}

/// When the payload gets the word to start.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    /// From another command, through the fifos.
    Later,
    /// From this one, through the conversation.
    Now,
}

/// Everything worked out for a container of which nothing exists yet.
///
/// Never dropped: the command ends soon, and freeing the many small pieces would copy memory that the child still shares.
pub(super) struct Draft<'a> {
    pub(super) options: &'a CreateOptions,
    pub(super) bundle: Bundle,
    pub(super) plan: Plan,
    pub(super) hierarchy: Hierarchy,
    pub(super) place: Place,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) rootless: bool,
    pub(super) console: Option<UnixStream>,
    pidfd_sockets: Vec<UnixStream>,
    /// Whether the container has a place for its `NOTIFY_SOCKET`.
    pub(super) notify: bool,
}

/// A container that waits for the word to start, on record. Dropped, it is undone.
struct Made {
    // ORDER: fields are dropped in this order, the process and its cgroup before the record of them.
    launched: Launched,
    record: Record,
    locked: Locked,
    /// Where this command waits for the payload's readiness.
    relay: Option<Relay>,
}

impl<'a> Draft<'a> {
    /// Read the bundle and work out the plan, refusing what cannot be. Nothing is created.
    pub(super) fn new(options: &'a CreateOptions, detached: bool) -> Result<Self> {
        // CVE-2019-5736: before anything of the container's is near.
        seal::ensure().context("protect the own executable file")?;
        let host = Host::probe()?;
        let rootless = match options.rootless {
            Rootless::Yes => true,
            Rootless::No => false,
            Rootless::Auto => host.rootless(),
        };
        let mut bundle = Bundle::open(&options.bundle, options.config.as_deref())?;
        // COMPAT: the runtime, and so its hooks, stand in the bundle's directory.
        std::env::set_current_dir(&bundle.path).context("enter the bundle's directory")?;
        if !Uid::effective().is_root() {
            give_user_namespace(&mut bundle.spec)?;
        }
        check(&bundle, options)?;
        let notify = readiness::manager().is_some();
        if notify {
            readiness::provide(&mut bundle.spec, &options.root.join(options.id.as_str()))?;
        }
        let terminal = bundle
            .spec
            .process()
            .as_ref()
            .and_then(|process| process.terminal())
            .unwrap_or(false);
        check_terminal(detached, terminal, options.console_socket.is_some())?;
        let listen_fds = listen_fds();
        let wanted = Options {
            id: options.id.to_string(),
            no_pivot: options.no_pivot,
            no_new_keyring: options.no_new_keyring,
            inherited_fds: inherited_fds(listen_fds, options.preserve_fds)?,
            listen_fds,
            root: resolve_root(&bundle)?,
        };
        let plan = Plan::init(&bundle.spec, &bundle.path, &wanted, &host)?;
        for warning in bundle.warnings.iter().chain(&plan.warnings) {
            report::warn(format_args!("{warning}"));
        }
        let hierarchy = Hierarchy::probe()?;
        let place = Place::find(
            options.driver,
            &hierarchy,
            plan.control.path.as_deref(),
            options.id.as_str(),
            bundle.spec.annotations().iter().flatten(),
            rootless,
        )?;
        let pidfd_sockets = [&options.pidfd_socket, &plan.extensions.pidfd_receiver];
        let pidfd_sockets =
            pidfd_sockets.map(|path| connect(&bundle.path, path.as_deref(), "pidfd socket"));
        Ok(Self {
            console: connect(
                &bundle.path,
                options.console_socket.as_deref(),
                "console socket",
            )?,
            pidfd_sockets: pidfd_sockets
                .into_iter()
                .filter_map(Result::transpose)
                .collect::<Result<_>>()?,
            annotations: bundle
                .spec
                .annotations()
                .iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            options,
            bundle,
            plan,
            hierarchy,
            place,
            rootless,
            notify,
        })
    }

    /// The payload's standard streams, and what is copied between them and this command's, unless it is `detached`.
    pub(super) fn streams(&self, detached: bool) -> Result<(Stdio, Copying)> {
        let plan = &self.plan;
        let maps = plan.maps.as_ref().or(plan.expected_maps.as_ref());
        copying::streams(&plan.process, maps, detached)
    }

    /// Make the container, up to the point where only the word to start is missing.
    fn make(&self, word: Word, streams: &Stdio) -> Result<Made> {
        let cache = launch::cache_directory(&self.options.root);
        let linux = self.bundle.spec.linux().as_ref();
        let profile = linux.and_then(|linux| linux.seccomp().as_ref());
        let prepared = launch::prepare(&self.plan, profile, &cache)?;
        let claim = Claim::new(self.options)?;
        let dir = claim.dir();
        let mut record = self.intent();
        if let Some(rdt) = prepared.rdt() {
            record.intel_rdt_path = Some(rdt.path());
            record.rdt = Some(rdt.traces());
        }
        record.root_mount = prepared.carrier().map(|carrier| carrier.mark().clone());
        let state = |status: &str, pid: i32| self.state(status, pid);
        let request = Request {
            plan: &self.plan,
            hierarchy: &self.hierarchy,
            place: &self.place,
            state: &state,
            rootless: self.rootless,
            lock: dir.as_fd(),
            mark: &record.mark(),
            streams,
        };
        // ORDER: before the first side effect, so that `delete --force` finds its traces after a SIGKILL.
        dir.save(&record)?;
        if self.notify {
            readiness::make_directory(dir)?;
        }
        let (fifos, relay) = match word {
            Word::Later => (Some(self.fifos(dir)?), None),
            Word::Now => (None, Relay::open(dir)?),
        };
        let launched = launch::launch(&request, prepared, fifos, || {
            dir.freeze_config(&self.bundle.raw)
        })
        .map_err(|error| self.after_failure(error, &record))?;
        self.put_on_record(dir, &mut record, &launched, streams)?;
        // COMPAT: runc's words for this stage.
        debug!("init: closing the pipe to signal completion");
        // The child, told that the parent is gone, would end; told that it is on record it waits for its start.
        if let Err(errno) = launched.talk.saved() {
            bail!("unable to start container process: the container's process died: {errno}");
        }
        Ok(Made {
            launched,
            record,
            locked: claim.keep(),
            relay,
        })
    }

    /// Hand over what callers wait for, and write down that the container exists.
    fn put_on_record(
        &self,
        dir: &Locked,
        record: &mut Record,
        launched: &Launched,
        streams: &Stdio,
    ) -> Result<()> {
        if let (Some(socket), Some((master, slave))) = (&self.console, &launched.console) {
            fd::send(socket.as_fd(), slave.as_bytes(), &[master.as_raw_fd()])
                .context("send the terminal to the console socket")?;
        }
        let (pid, pidfd) = (launched.pid(), launched.pidfd());
        self.put_process_on_record(dir, record, (pid, pidfd), launched.has_cgroup(), streams)
    }

    /// The same for the process alone, which may have come to be in another way.
    pub(super) fn put_process_on_record(
        &self,
        dir: &Locked,
        record: &mut Record,
        (pid, pidfd): (Pid, BorrowedFd),
        has_cgroup: bool,
        streams: &Stdio,
    ) -> Result<()> {
        for socket in &self.pidfd_sockets {
            fd::send(socket.as_fd(), b"standard", &[pidfd.as_raw_fd()])
                .context("send to the pidfd socket")?;
        }
        let stat = ProcessStat::read(pid.as_raw()).context("read the container's process")?;
        record.init_process_pid = pid.as_raw();
        record.init_process_start = stat.start;
        record.namespace_paths = namespace_paths(pid);
        record.external_descriptors = (0..)
            .zip(streams)
            .map(|(number, stream)| stream.as_ref().map_or(number, AsRawFd::as_raw_fd))
            .map(|fd| link(&format!("/proc/self/fd/{fd}")))
            .collect();
        if !has_cgroup {
            record.cgroup = None;
            record.cgroup_paths.clear();
            if !record.own_pid_namespace {
                report::warn(format_args!(
                    "a container with neither a cgroup nor a pid namespace of its own cannot be killed as a whole. Such configuration is strongly discouraged"
                ));
            }
        }
        dir.save(record)?;
        if let Some(path) = &self.options.pid_file {
            write_pid_file(path, pid)?;
        }
        debug!("container {} is created, process {pid}", self.options.id);
        Ok(())
    }

    /// What is known of the container before anything of it exists.
    pub(super) fn intent(&self) -> Record {
        let spec = &self.bundle.spec;
        let hooks = &self.plan.hooks;
        let mount_point = |path: &Path| {
            let below = path.strip_prefix("/").unwrap_or(path);
            (String::new(), self.hierarchy.mount_point().join(below))
        };
        Record {
            id: self.options.id.to_string(),
            created: report::rfc3339(SystemTime::now()),
            rootless: self.rootless,
            cgroup_paths: self.place.path().map(mount_point).into_iter().collect(),
            schema: SCHEMA,
            oci_version: spec.version().clone(),
            bundle: self.bundle.path.clone(),
            rootfs: self.plan.root.path.clone(),
            annotations: self.annotations.clone(),
            cgroup: self.place.path().map(Path::to_owned),
            unit: self.place.unit().cloned(),
            no_new_keyring: self.options.no_new_keyring,
            own_pid_namespace: self.plan.namespaces.is_new(Kind::Pid),
            poststart: hooks.poststart().clone().unwrap_or_default(),
            poststop: hooks.poststop().clone().unwrap_or_default(),
            owner: Uid::effective().as_raw(),
            ..Record::default()
        }
    }

    fn fifos(&self, dir: &Locked) -> Result<(OwnedFd, OwnedFd)> {
        let maps = self.plan.maps.as_ref();
        let root = |ranges: fn(&idmap::Maps) -> &Vec<idmap::Range>| {
            maps.and_then(|maps| idmap::to_host(ranges(maps), 0))
        };
        let (uid, gid) = match self.rootless {
            // An unprivileged caller owns what it makes, and may give nothing away.
            true => (Uid::effective(), Gid::effective()),
            false => (
                Uid::from_raw(root(|maps| &maps.uids).unwrap_or(0)),
                Gid::from_raw(root(|maps| &maps.gids).unwrap_or(0)),
            ),
        };
        dir.make_fifos(uid, gid)?;
        let open = |name: &str| {
            let path = dir.path().join(name);
            // For reading and writing, so that it opens without the other side.
            open(
                &path,
                OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW,
                Mode::empty(),
            )
            .with_context(|| format!("open {}", path.display()))
        };
        Ok((open(EXEC_FIFO)?, open(RESULT_FIFO)?))
    }

    /// The container's state as its hooks get it.
    pub(super) fn state(&self, status: &str, pid: i32) -> Vec<u8> {
        let state = hooks::State {
            oci_version: self.bundle.spec.version(),
            id: self.options.id.as_str(),
            status,
            pid: Some(pid),
            bundle: &self.bundle.path,
            annotations: &self.annotations,
        };
        // A path that is no text is the one failure, and the bundle's was refused when the record was written.
        hooks::state_json(&state).unwrap_or_default()
    }

    /// runtime.md, Lifecycle: after a failed hook of the creating phase everything is undone, which has happened, and
    /// the poststop hooks are run.
    pub(super) fn after_failure(&self, error: anyhow::Error, record: &Record) -> anyhow::Error {
        if error.is::<HookFailed>()
            && let Err(more) = run_hooks("poststop", &record.poststop, record, Status::Stopped)
        {
            report::warn(format_args!("{}", report::sentence(&more)));
        }
        error
    }
}

/// A state directory that is removed again unless the container comes to be.
pub(super) struct Claim(Option<Locked>);

impl Claim {
    pub(super) fn new(options: &CreateOptions) -> Result<Self> {
        Dir::create(&options.root, &options.id).map(|dir| Self(Some(dir)))
    }

    pub(super) fn dir(&self) -> &Locked {
        self.0
            .as_ref()
            .expect("the claim is there until it is kept")
    }

    pub(super) fn keep(mut self) -> Locked {
        self.0.take().expect("the claim is there until it is kept")
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.take().map(Locked::remove) {
            report::warn(format_args!("{}", report::sentence(&error)));
        }
    }
}

/// A new user namespace for the container of an ordinary user, who cannot have one without, unless the configuration names
/// one. Maps that it has stay; else root is the user, and the ids from 1 on are those of /etc/subuid and /etc/subgid.
// COMPAT: crun does so; runc refuses.
fn give_user_namespace(spec: &mut Spec) -> Result<()> {
    let mut linux = spec.linux().clone().unwrap_or_default();
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    if namespaces.iter().any(|one| one.typ() == Kind::User) {
        return Ok(());
    }
    namespaces.push(LinuxNamespaceBuilder::default().typ(Kind::User).build()?);
    linux.set_namespaces(Some(namespaces));
    if linux.uid_mappings().is_none() && linux.gid_mappings().is_none() {
        let (maps, single) = Maps::of_caller()?;
        if let Some(why) = single {
            debug!("linux.uidMappings: one id only: {why}");
        }
        let mappings = |ranges: &[Range]| ranges.iter().map(Range::mapping).collect::<Vec<_>>();
        linux.set_uid_mappings(Some(mappings(&maps.uids)));
        linux.set_gid_mappings(Some(mappings(&maps.gids)));
    }
    spec.set_linux(Some(linux));
    Ok(())
}

fn check(bundle: &Bundle, options: &CreateOptions) -> Result<()> {
    let context = spec::Context {
        rootless: is_no_root(),
        no_pivot: options.no_pivot,
        systemd_cgroup: options.driver == Driver::Systemd,
    };
    let faults = bundle.check(&context);
    for fault in &faults {
        debug!("config.json: {fault}");
    }
    match faults.first() {
        None => Ok(()),
        Some(fault) => Err(anyhow!("{fault}")),
    }
}

/// The root's directory with every link on the way to it resolved, as a mount's target has to be.
fn resolve_root(bundle: &Bundle) -> Result<PathBuf> {
    let root = bundle
        .spec
        .root()
        .as_ref()
        .context("root must be specified")?;
    let path = bundle.path.join(root.path());
    let resolved = path
        .canonicalize()
        .with_context(|| format!("root.path: {}", path.display()))?;
    if !resolved.is_dir() {
        bail!("root.path: {}: not a directory", path.display());
    }
    Ok(resolved)
}

// COMPAT: runc's words for the two ways in which terminal, console socket and detaching contradict each other.
pub(super) fn check_terminal(detached: bool, terminal: bool, socket: bool) -> Result<()> {
    if detached && terminal && !socket {
        bail!("cannot allocate tty if runc will detach without setting console socket");
    }
    if socket && !(detached && terminal) {
        bail!("cannot use console socket if runc will not detach or allocate tty");
    }
    Ok(())
}

/// Connect to one of the sockets that a caller waits at.
// COMPAT: a relative path is one from the bundle, where runc stands when it connects.
pub(super) fn connect(
    bundle: &Path,
    path: Option<&Path>,
    what: &str,
) -> Result<Option<UnixStream>> {
    path.map(|path| {
        let whole = match path.as_os_str().as_bytes() {
            [b'@', ..] => path.to_owned(),
            _ => bundle.join(path),
        };
        fd::connect(&whole).with_context(|| format!("connect to {what} {}", path.display()))
    })
    .transpose()
}

/// How many sockets the service manager passed to this very process (sd_listen_fds(3)).
pub(super) fn listen_fds() -> u32 {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return 0;
    }
    number("LISTEN_FDS").unwrap_or(0)
}

pub(super) fn inherited_fds(listen: u32, preserve: u32) -> Result<u32> {
    let all = listen
        .checked_add(preserve)
        .context("--preserve-fds: too many descriptors")?;
    for number in 3..3u32.saturating_add(all) {
        if !i32::try_from(number).is_ok_and(fd::is_inherited) {
            bail!(
                "unable to stat preserved-fd {number}: no such descriptor was passed (--preserve-fds {preserve}, LISTEN_FDS {listen})"
            );
        }
    }
    Ok(all)
}

// COMPAT: runc's state.json has the kernel's flag names as keys.
fn namespace_paths(pid: Pid) -> BTreeMap<String, PathBuf> {
    [
        ("NEWNS", "mnt"),
        ("NEWNET", "net"),
        ("NEWIPC", "ipc"),
        ("NEWUTS", "uts"),
        ("NEWPID", "pid"),
        ("NEWUSER", "user"),
        ("NEWCGROUP", "cgroup"),
        ("NEWTIME", "time"),
    ]
    .into_iter()
    .map(|(key, file)| {
        (
            key.to_owned(),
            PathBuf::from(format!("/proc/{pid}/ns/{file}")),
        )
    })
    .collect()
}

fn link(path: &str) -> String {
    std::fs::read_link(path).map_or_else(
        |_| String::new(),
        |target| target.to_string_lossy().into_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminal_and_console_socket_go_together() {
        for (detached, terminal, socket, good) in [
            (true, true, true, true),
            (true, true, false, false),
            (true, false, false, true),
            (true, false, true, false),
            (false, true, false, true),
            (false, true, true, false),
            (false, false, true, false),
        ] {
            assert_eq!(
                check_terminal(detached, terminal, socket).is_ok(),
                good,
                "{detached} {terminal} {socket}"
            );
        }
    }
}
