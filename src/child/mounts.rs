//! The mounts of the plan, carried out by descriptor, while the host's tree is still in sight.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, readlinkat};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, major, minor, mknodat};
use nix::sys::statvfs::{FsFlags, fstatvfs};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchdir, fchownat, symlinkat, unlinkat};

use super::{Given, copy_up, enter};
use crate::handshake::Step;
use crate::plan::Switch;
use crate::plan::devices::{LINKS, Making, Node};
use crate::plan::mounts::{Hierarchy, Link, MountOp, What, c_path, is_context};
use crate::sys::attribute;
use crate::sys::mount::{self, Change, Parameter, Reach, attr};
use crate::sys::path::{
    Kind, ensure, ensure_link, ensure_unfollowed, file_type, open_beneath, open_in_root,
    open_no_links,
};

/// What a failed mount says besides its errno.
type Refused = (Errno, String);

fn plain(errno: Errno) -> Refused {
    (errno, String::new())
}

/// Build the container's tree below its root, and return a handle on that root.
pub(super) fn attach(given: &mut Given) -> OwnedFd {
    let root = attach_root(given);
    know_root(given, &root);
    for index in 0..given.plan.mounts.len() {
        if let Err(refused) = make(given, &root, index) {
            fail(given, index, refused);
        }
    }
    if given.plan.fill_dev {
        fill_dev(given, root.as_fd());
    }
    root
}

/// Find out by which path the kernel knows the root: what is mounted is judged by where it comes to lie below that.
fn know_root(given: &mut Given, root: &OwnedFd) {
    given.root_name = given.check(name(given, root.as_fd()), Step::Root, "name of the root");
}

/// Carry out one of the plan's mounts; where it lies, if there is a new one.
fn make(given: &mut Given, root: &OwnedFd, index: usize) -> Result<Option<PathBuf>, Refused> {
    let tree = given.trees.get_mut(index).and_then(Option::take);
    let op = &given.plan.mounts[index];
    let Some(mounted) = carry_out(given, root.as_fd(), (index, op), tree)? else {
        return Ok(None);
    };
    let place = mounted.at.clone();
    remember(given, op, mounted);
    Ok(Some(place))
}

/// Mount more in a running container: all of the plan's mounts, or none.
pub(super) fn add(given: &mut Given, root: &OwnedFd) {
    know_root(given, root);
    let mut places = Vec::new();
    for index in 0..given.plan.mounts.len() {
        match make(given, root, index) {
            Ok(place) => places.extend(place),
            Err(refused) => {
                for place in places.iter().rev() {
                    detach(root.as_fd(), place).ok();
                }
                fail(given, index, refused);
            }
        }
    }
    late_read_only(given, root);
}

/// Take away what is mounted at the places of the plan's mounts in a running container.
pub(super) fn remove(given: &mut Given, root: &OwnedFd) {
    know_root(given, root);
    let mut places = Vec::new();
    // All of them are looked at before the first one goes.
    for (index, op) in given.plan.mounts.iter().enumerate() {
        match mounted_at(given, root.as_fd(), op) {
            Ok(place) => places.push(place),
            Err(refused) => fail(given, index, refused),
        }
    }
    for (index, place) in places.iter().enumerate() {
        if let Err(errno) = detach(root.as_fd(), place) {
            fail(given, index, plain(errno));
        }
    }
}

/// Where something is mounted, as the kernel names the place. Through a link it could be another mount than the one that
/// is meant, such as one that masks.
fn mounted_at(given: &Given, root: BorrowedFd, op: &MountOp) -> Result<PathBuf, Refused> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    let target = open_no_links(root, &op.untrusted_target, flags).map_err(|errno| match errno {
        Errno::ELOOP => (
            errno,
            "a link leads there: name the place itself".to_owned(),
        ),
        _ => plain(errno),
    })?;
    if !mount::is_mounted(target.as_fd()).map_err(plain)? {
        return Err((Errno::EINVAL, "nothing is mounted there".to_owned()));
    }
    check_place(given, op, target.as_fd())
}

/// Detach the mount at `place`, with all below it.
fn detach(root: BorrowedFd, place: &Path) -> nix::Result<()> {
    let (Some(above), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(Errno::EBUSY);
    };
    let above = match above.as_os_str().is_empty() {
        true => Path::new("."),
        false => above,
    };
    // The directory stood in is one that no link has led to, and the last name is not followed.
    fchdir(open_no_links(
        root,
        above,
        OFlag::O_PATH | OFlag::O_DIRECTORY,
    )?)?;
    umount2(
        Path::new(name),
        MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW,
    )
}

fn fail(given: &Given, index: usize, (errno, said): Refused) -> ! {
    let mut subject = index.to_string();
    subject.push(' ');
    subject.push_str(&said);
    given.talk.fail(Step::Mount, errno, subject.as_bytes())
}

/// A mount in its place, and where that is inside the root, as the kernel names it.
struct Mounted {
    tree: OwnedFd,
    at: PathBuf,
}

/// Keep the handles that later steps need: looked up again by path they might be others.
fn remember(given: &mut Given, op: &MountOp, mounted: Mounted) {
    let Mounted { tree, at } = mounted;
    // What lies below is covered now.
    given
        .kernel_trees
        .retain(|(covered, _)| !covered.starts_with(&at));
    if op.ordinary_directory {
        given.kernel_trees.push((at, tree));
    } else if op.read_only_late {
        given.late.push(tree);
    }
}

fn attach_root(given: &mut Given) -> OwnedFd {
    let plan = given.plan;
    let root = &plan.root;
    if root.switch == Switch::Chroot {
        if let Some(carrier) = given.root_tree.take() {
            return carrier;
        }
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        return given.check(
            open(&root.path, flags, Mode::empty()),
            Step::Root,
            &root.path,
        );
    }
    let (reach, change) = root.setup;
    given.check(
        mount::change_path(c"/", reach, change),
        Step::Propagation,
        "/",
    );
    if root.reaches_host() {
        // pivot_root refuses a root whose parent mount is shared, and a mount made there would reach the host.
        given.check(detach_parent(&root.path), Step::Propagation, &root.path);
    }
    let path = given.check(
        c_path(&root.path).map_err(|_| Errno::EINVAL),
        Step::Root,
        &root.path,
    );
    let tree = match given.root_tree.take() {
        Some(tree) => tree,
        None => given.check(
            mount::clone_tree(AT_FDCWD, &path, Reach::Tree),
            Step::Root,
            &root.path,
        ),
    };
    // Hooks look for the container's tree at the bundle's path. A user namespace may not reach it there; over `/` the
    // tree is as good, since nothing is looked up below it by path.
    let attached = match mount::attach_path(tree.as_fd(), &path) {
        Err(Errno::EACCES) => mount::attach_path(tree.as_fd(), c"/"),
        other => other,
    };
    given.check(attached, Step::Root, &root.path);
    tree
}

/// Make the mount that `path` lies on a slave: the nearest directory upwards that is a mount's root.
fn detach_parent(path: &Path) -> nix::Result<()> {
    let slave = Change::propagation(libc::MS_SLAVE);
    for directory in path.ancestors() {
        let directory = c_path(directory).map_err(|_| Errno::EINVAL)?;
        match mount::change_path(&directory, Reach::One, slave) {
            Err(Errno::EINVAL) => {}
            other => return other,
        }
    }
    Err(Errno::EINVAL)
}

fn carry_out(
    given: &Given,
    root: BorrowedFd,
    (number, op): (usize, &MountOp),
    tree: Option<OwnedFd>,
) -> Result<Option<Mounted>, Refused> {
    let mounted = match &op.what {
        What::Remount { parameters } => return remount(root, op, parameters).map(|()| None),
        What::Bind {
            source,
            reach,
            link,
        } => match bind(given, root, op, (source, *reach, *link), tree)? {
            Some(mounted) => mounted,
            None => return Ok(None),
        },
        What::Filesystem {
            kind,
            source,
            parameters,
        } => filesystem(given, root, (number, op), (kind, source), parameters)?,
        What::Cgroup { parameters, how } => cgroup(given, root, op, parameters, *how)?,
    };
    finish(mounted.tree.as_fd(), op)?;
    Ok(Some(mounted))
}

/// Attach the mount `tree` on `target`.
fn put(given: &Given, op: &MountOp, tree: OwnedFd, target: BorrowedFd) -> Result<Mounted, Refused> {
    let at = check_place(given, op, target)?;
    mount::attach(tree.as_fd(), target).map_err(plain)?;
    Ok(Mounted { tree, at })
}

/// Where `target` lies inside the root. Nothing is mounted on /proc but a proc, and nothing inside it but what engines
/// put there.
// CVE-2019-16884: by what the target turned out to be, since any component on the way to it may have been a link.
fn check_place(given: &Given, op: &MountOp, target: BorrowedFd) -> Result<PathBuf, Refused> {
    let name = name(given, target).map_err(plain)?;
    match name.strip_prefix(&given.root_name) {
        Ok(inner) if op.may_cover(inner) => Ok(inner.to_owned()),
        Ok(_) => Err((
            Errno::EPERM,
            "cannot be mounted because it is inside /proc".to_owned(),
        )),
        // Renamed out of the root while we looked.
        Err(_) => Err(plain(Errno::EXDEV)),
    }
}

/// The path by which the kernel knows an open file.
fn name(given: &Given, file: BorrowedFd) -> nix::Result<PathBuf> {
    let mut link = String::from("self/fd/");
    link.push_str(&file.as_raw_fd().to_string());
    readlinkat(given.host_proc(), Path::new(&link)).map(PathBuf::from)
}

/// Recursive attributes, then propagation: each as it was written.
fn finish(mounted: BorrowedFd, op: &MountOp) -> Result<(), Refused> {
    change(mounted, Reach::Tree, op.recursive)?;
    op.propagation
        .iter()
        .try_for_each(|(reach, change)| mount::change(mounted, *reach, *change))
        .map_err(plain)
}

fn remount(root: BorrowedFd, op: &MountOp, parameters: &[Parameter]) -> Result<(), Refused> {
    let target = open_in_root(root, &op.untrusted_target, OFlag::O_PATH).map_err(plain)?;
    if !parameters.is_empty() {
        mount::reconfigure(target.as_fd(), parameters)?;
    }
    change(target.as_fd(), Reach::One, op.change)?;
    finish(target.as_fd(), op)
}

/// Change attributes. A mount that came from a more privileged namespace keeps those that are set on it
/// (mount_namespaces(7), locked mounts). COMPAT: runc's words for that.
fn change(mounted: BorrowedFd, reach: Reach, wanted: Change) -> Result<(), Refused> {
    if wanted.is_none() {
        return Ok(());
    }
    mount::change(mounted, reach, wanted).map_err(|errno| match errno {
        Errno::EPERM => (errno, locked(mounted, wanted)),
        _ => plain(errno),
    })
}

/// Which of the attributes that are to be cleared are set on the mount.
fn locked(mounted: BorrowedFd, wanted: Change) -> String {
    const FLAGS: [(u64, FsFlags, &str); 4] = [
        (attr::RDONLY, FsFlags::ST_RDONLY, "ro"),
        (attr::NOSUID, FsFlags::ST_NOSUID, "nosuid"),
        (attr::NODEV, FsFlags::ST_NODEV, "nodev"),
        (attr::NOEXEC, FsFlags::ST_NOEXEC, "noexec"),
    ];
    const ACCESS_TIMES: [(FsFlags, &str); 3] = [
        (FsFlags::ST_NOATIME, "noatime"),
        (FsFlags::ST_RELATIME, "relatime"),
        (FsFlags::ST_NODIRATIME, "nodiratime"),
    ];
    let Ok(there) = fstatvfs(mounted).map(|stat| stat.flags()) else {
        return String::new();
    };
    let mut text = String::new();
    for (attribute, flag, name) in FLAGS {
        if wanted.clear & attribute != 0 && there.contains(flag) {
            text.push_str(if text.is_empty() {
                "cannot clear locked flags "
            } else {
                ","
            });
            text.push_str(name);
        }
    }
    if text.is_empty() && (wanted.set | wanted.clear) & (attr::ATIME | attr::NODIRATIME) != 0 {
        text.push_str("cannot change locked atime flags");
        for (flag, name) in ACCESS_TIMES {
            if there.contains(flag) {
                text.push(' ');
                text.push_str(name);
            }
        }
    }
    text
}

fn bind(
    given: &Given,
    root: BorrowedFd,
    op: &MountOp,
    (source, reach, link): (&Path, Reach, Link),
    tree: Option<OwnedFd>,
) -> Result<Option<Mounted>, Refused> {
    let tree = match tree {
        Some(tree) => tree,
        None => {
            let clone = match link {
                Link::Followed => mount::bind,
                Link::Itself | Link::Copied => mount::bind_link,
            };
            let tree = clone(source, reach, Change::default()).map_err(plain)?;
            change(tree.as_fd(), Reach::One, op.at_first())?;
            tree
        }
    };
    let kind = match file_type(&fstat(&tree).map_err(plain)?) {
        SFlag::S_IFDIR => Kind::Directory,
        SFlag::S_IFLNK if link == Link::Copied => {
            let text = readlinkat(&tree, "").map_err(plain)?;
            return ensure_link(root, &op.untrusted_target, &text)
                .map(|()| None)
                .map_err(|errno| match errno {
                    Errno::EEXIST => (errno, "copy-symlink: there is something else".to_owned()),
                    _ => plain(errno),
                });
        }
        _ => Kind::File,
    };
    let make = match op.over_link {
        true => ensure_unfollowed,
        false => ensure,
    };
    let (target, _) = make(root, &op.untrusted_target, kind).map_err(plain)?;
    put(given, op, tree, target.as_fd()).map(Some)
}

fn filesystem(
    given: &Given,
    root: BorrowedFd,
    (number, op): (usize, &MountOp),
    (kind, source): (&CString, &CString),
    parameters: &[Parameter],
) -> Result<Mounted, Refused> {
    let (target, made) = target_directory(root, op)?;
    let name = Parameter {
        key: c"source".to_owned(),
        value: Some(source.clone()),
    };
    let mut all = vec![name];
    if op.what.is_tmpfs()
        && !parameters
            .iter()
            .any(|parameter| parameter.key.to_bytes() == b"mode")
    {
        // A tmpfs takes the mode of the directory it hides; over a new one it keeps its own default.
        let mode = fstat(&target).map_err(plain)?.st_mode & 0o7777;
        let mode =
            CString::new(if made { "1777".to_owned() } else { octal(mode) }).unwrap_or_default();
        all.push(Parameter {
            key: c"mode".to_owned(),
            value: Some(mode),
        });
    }
    all.extend(parameters.iter().cloned());
    if all.iter().any(too_long_for_fsconfig) {
        if op.id_map.is_some() {
            let said = "an id-mapped mount takes no option of more than 255 bytes";
            return Err((Errno::EINVAL, said.to_owned()));
        }
        return by_mount2(given, root, op, (kind, source), parameters, &target);
    }
    let mounted = match &given.pid_namespace {
        Some(namespace) if kind.as_bytes() == b"proc" => {
            enter::in_pid_namespace(namespace, root, || {
                mount::new_filesystem(kind, &all, op.at_first().set)
            })?
        }
        _ => mount::new_filesystem(kind, &all, op.at_first().set)?,
    };
    if op.copy_up && !made {
        copy_up::tree(target.as_fd(), mounted.as_fd()).map_err(plain)?;
    }
    if let (b"mqueue", Some(context)) = (kind.as_bytes(), &given.plan.selinux.mounts) {
        // An option for it is nothing that this file system knows.
        let labelled = open_in_root(mounted.as_fd(), Path::new("."), OFlag::O_RDONLY)
            .and_then(|root| attribute::set(root.as_fd(), c"security.selinux", context.as_bytes()));
        given.check(labelled, Step::MountLabel, context);
    }
    if op.id_map.is_some() {
        // KERNEL: while the mount is detached and nobody has seen it; by the parent, since this process has no rights
        // over the namespace with the maps. Where it cannot be done, the parent ends everything.
        given.talk.mapped_tree(number, mounted.as_fd());
    }
    put(given, op, mounted, target.as_fd())
}

/// The parameters with the source, which mount tables show.
fn named(source: &str, parameters: &[Parameter]) -> Vec<Parameter> {
    let value = CString::new(source).ok();
    let key = c"source".to_owned();
    let mut all = vec![Parameter { key, value }];
    all.extend_from_slice(parameters);
    all
}

fn octal(mode: u32) -> String {
    let mut text = String::new();
    for shift in [9, 6, 3, 0] {
        text.push(char::from_digit(mode >> shift & 7, 8).unwrap_or('0'));
    }
    text
}

/// The directory to mount on, and whether it was made for that.
fn target_directory(root: BorrowedFd, op: &MountOp) -> Result<(OwnedFd, bool), Refused> {
    if op.ordinary_directory {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
        match open_no_links(root, &op.untrusted_target, flags) {
            Ok(directory) => return Ok((directory, false)),
            Err(Errno::ENOENT) => {}
            Err(errno) => return Err((errno, "must be mounted on ordinary directory".to_owned())),
        }
    }
    let (target, made) = ensure(root, &op.untrusted_target, Kind::Directory).map_err(plain)?;
    if op.ordinary_directory {
        // The directory was missing a moment ago: what is there now has to be what was just made.
        let again = open_no_links(
            root,
            &op.untrusted_target,
            OFlag::O_PATH | OFlag::O_DIRECTORY,
        );
        return again
            .map(|directory| (directory, made))
            .map_err(|errno| (errno, "must be mounted on ordinary directory".to_owned()));
    }
    Ok((target, made))
}

/// fsconfig(2) takes values of at most 255 bytes.
fn too_long_for_fsconfig(parameter: &Parameter) -> bool {
    parameter
        .value
        .as_ref()
        .is_some_and(|value| value.as_bytes().len() > 255)
}

/// mount(2), for a parameter that is too long for fsconfig: an overlay's `lowerdir`. The target is the directory stood
/// in, so that no path inside the root is looked up again, and the attributes come with the call.
fn by_mount2(
    given: &Given,
    root: BorrowedFd,
    op: &MountOp,
    (kind, source): (&CString, &CString),
    parameters: &[Parameter],
    target: &OwnedFd,
) -> Result<Mounted, Refused> {
    let at = check_place(given, op, target.as_fd())?;
    let mut data = Vec::new();
    for Parameter { key, value } in parameters {
        if !data.is_empty() {
            data.push(b',');
        }
        data.extend_from_slice(key.as_bytes());
        if let Some(value) = value {
            data.push(b'=');
            // A context has commas in it, and so is quoted; nothing else may be.
            let quote: &[u8] = if is_context(key.as_bytes()) {
                b"\""
            } else {
                b""
            };
            data.extend([quote, value.as_bytes(), quote].concat());
        }
    }
    let flags = MsFlags::from_bits_retain(mount::ms_flags(op.at_first().set));
    let (kind, source) = (Some(kind.as_c_str()), Some(source.as_c_str()));
    let data = Some(OsStr::from_bytes(&data));
    fchdir(target)
        .and_then(|()| nix::mount::mount(source, ".", kind, flags, data))
        .map_err(plain)?;
    let tree = open_in_root(root, &op.untrusted_target, OFlag::O_PATH).map_err(plain)?;
    Ok(Mounted { tree, at })
}

fn cgroup(
    given: &Given,
    root: BorrowedFd,
    op: &MountOp,
    parameters: &[Parameter],
    how: Hierarchy,
) -> Result<Mounted, Refused> {
    let (target, _) = target_directory(root, op)?;
    let mut change = op.at_first();
    let mounted = match how {
        Hierarchy::New => {
            match mount::new_filesystem(c"cgroup2", &named("cgroup", parameters), change.set) {
                // A user namespace inside a hierarchy that it does not own may not mount it; what it may see is its own.
                Err((Errno::EPERM | Errno::EBUSY, _)) => {
                    let own = given.cgroup.strip_prefix("/").unwrap_or(&given.cgroup);
                    mount::bind(&given.hierarchy.join(own), Reach::Tree, change).map_err(plain)?
                }
                other => other?,
            }
        }
        Hierarchy::Whole | Hierarchy::WholeReadOnly => {
            if how == Hierarchy::WholeReadOnly {
                change.set |= attr::RDONLY;
            }
            let tree =
                mount::bind(&given.hierarchy, Reach::Tree, Change::default()).map_err(plain)?;
            mount::change(tree.as_fd(), Reach::Tree, change).map_err(plain)?;
            tree
        }
    };
    put(given, op, mounted, target.as_fd())
}

/// Device nodes and the customary links.
// CVE-2026-41579: everything relative to a handle inside the root, so that a `/dev` that is a link leads nowhere else.
fn fill_dev(given: &Given, root: BorrowedFd) {
    let (dev, _) = given.check(
        ensure(root, Path::new("dev"), Kind::Directory),
        Step::Device,
        "/dev",
    );
    for node in &given.plan.nodes {
        let made = match node.untrusted_path.parent() {
            Some(parent) if parent == Path::new("dev") => make_node(given, root, dev.as_fd(), node),
            Some(parent) => ensure(root, parent, Kind::Directory)
                .and_then(|(directory, _)| make_node(given, root, directory.as_fd(), node)),
            None => Err(Errno::EINVAL),
        };
        given.check(
            made,
            Step::Device,
            Path::new("/").join(&node.untrusted_path),
        );
    }
    for (name, target) in LINKS {
        let made = match symlinkat(target, &dev, name) {
            // The image's own terminal multiplexer would be the host's.
            Err(Errno::EEXIST) if name == "ptmx" => {
                unlinkat(&dev, name, UnlinkatFlags::NoRemoveDir)
                    .and_then(|()| symlinkat(target, &dev, name))
            }
            Err(Errno::EEXIST) => Ok(()),
            other => other,
        };
        given.check(made, Step::Link, name);
    }
}

fn make_node(
    given: &Given,
    root: BorrowedFd,
    directory: BorrowedFd,
    node: &Node,
) -> nix::Result<()> {
    let name = node.untrusted_path.file_name().ok_or(Errno::EINVAL)?;
    if given.plan.making == Making::Node {
        match mknodat(directory, name, node.kind, node.mode, node.device) {
            Ok(()) => return own(directory, name, node),
            Err(Errno::EEXIST) => return same_node(directory, name, node),
            Err(Errno::EPERM) => {}
            Err(errno) => return Err(errno),
        }
    } else if node.kind == SFlag::S_IFIFO {
        // A fifo is no device, and a user namespace may make it.
        return match mknodat(directory, name, node.kind, node.mode, 0) {
            Ok(()) => own(directory, name, node),
            Err(Errno::EEXIST) => same_node(directory, name, node),
            Err(errno) => Err(errno),
        };
    }
    match bind_node(root, node) {
        // A joined mount namespace may be another user namespace's. What the image has there is as good.
        Err(errno @ (Errno::EPERM | Errno::EACCES)) => {
            same_node(directory, name, node).map_err(|_| errno)
        }
        other => other,
    }
}

fn bind_node(root: BorrowedFd, node: &Node) -> nix::Result<()> {
    let tree = host_node(node)?;
    let (target, _) = ensure(root, &node.untrusted_path, Kind::File)?;
    mount::attach(tree.as_fd(), target.as_fd())
}

/// The host's node for a device: that at the same place, or the one that udev has a link to by the device's number.
fn host_node(node: &Node) -> nix::Result<OwnedFd> {
    let look = |path: &Path| {
        let tree = mount::bind(path, Reach::One, Change::default())?;
        let stat = fstat(&tree)?;
        match file_type(&stat) == node.kind && stat.st_rdev == node.device {
            true => Ok(tree),
            false => Err(Errno::ENODEV),
        }
    };
    look(&Path::new("/").join(&node.untrusted_path)).or_else(|errno| {
        let kind = match node.kind {
            SFlag::S_IFBLK => "block",
            _ => "char",
        };
        let mut number = major(node.device).to_string();
        number.push(':');
        number.push_str(&minor(node.device).to_string());
        look(&Path::new("/dev").join(kind).join(number)).map_err(|_| errno)
    })
}

fn own(directory: BorrowedFd, name: &OsStr, node: &Node) -> nix::Result<()> {
    if (node.uid, node.gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(node.uid), Gid::from_raw(node.gid));
    fchownat(
        directory,
        name,
        Some(uid),
        Some(gid),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
}

fn same_node(directory: BorrowedFd, name: &OsStr, node: &Node) -> nix::Result<()> {
    let there = nix::sys::stat::fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let same = file_type(&there) == node.kind
        && (node.kind == SFlag::S_IFIFO || there.st_rdev == node.device);
    if same { Ok(()) } else { Err(Errno::EEXIST) }
}

/// Kernel settings of the namespaces this process is in by now. The host's /proc shows a caller its own namespaces'.
// CVE-2025-52881: through the host's procfs and without crossing a mount, so that the container redirects nothing.
pub(super) fn sysctl(given: &Given) {
    for (file, value) in &given.plan.sysctl {
        let path = Path::new("sys").join(file);
        let written = open_beneath(given.host_proc(), &path, OFlag::O_WRONLY)
            .and_then(|file| nix::unistd::write(&file, value.as_bytes()));
        given.check(written, Step::Sysctl, file);
    }
}

/// Read-only for what had to be writable until everything was in place, the root last.
pub(super) fn late_read_only(given: &Given, root: &OwnedFd) {
    let read_only = Change::attributes(attr::RDONLY, 0);
    for tree in &given.late {
        let done = mount::change(tree.as_fd(), Reach::One, read_only);
        given.check(done, Step::ReadOnly, "a mount");
    }
    if given.plan.root.read_only {
        given.check(
            mount::change(root.as_fd(), Reach::One, read_only),
            Step::ReadOnlyRoot,
            "/",
        );
    }
}
