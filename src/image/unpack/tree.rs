//! The tree being written, through descriptors alone: the directories from the root to where the last entry went are held
//! open, and every component of a path is opened in the one before without following links.
//!
//! A link on the way is read and resolved here, inside the root, as a container would see it; in overlay form also through
//! the layers below. Whoever swaps a directory for a link meanwhile sends nobody outside (S-2, S-4).
//!
//! A directory's time is put right when it is left: no list of directories is kept.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fsync, unlinkat};

use crate::sys::attribute;
use crate::sys::path::file_type;

use super::Options;
use super::archive::Time;
use super::attributes::{Attributes, FIRST_SECOND, LAST_SECOND, Remarks, Rules};
use super::listing::{Line, Listing};
use super::lower::{self, look, open_directory};
use super::names::DEEPEST;
use super::touched::Touched;
use crate::image::store::{self, Durability};

/// As many symbolic links as the kernel follows in one resolution (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A directory held open, below the one before it.
pub(super) struct Frame {
    name: Vec<u8>,
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
    /// The time that it has or is to have; none for the root, whose time comes at the end.
    mtime: Option<TimeSpec>,
    /// Whether its content was changed, and its time with it.
    pub(super) changed: bool,
    /// Whether this layer has been noted to have it.
    touched: bool,
    /// The group of what is made in it.
    group: u32,
    /// Whether it hands its set-group-id bit down.
    setgid: bool,
    /// In overlay form: whether it hides the layers below, itself or by where it lies.
    hides: bool,
}

/// Which directories [`Tree::enter`] may make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Make {
    /// All that are missing.
    All,
    /// In overlay form those that a lower layer has, otherwise none.
    Visible,
}

/// What the kernel gives a new file of this process in the target.
#[derive(Clone, Copy, Debug)]
pub(super) struct Given {
    uid: u32,
    gid: u32,
    /// The permission bits that are left.
    permissions: u32,
    times: Times,
}

/// Which times the file system keeps; the kernel makes others fit.
#[derive(Clone, Copy, Debug)]
struct Times {
    first: i64,
    last: i64,
    /// The smallest step, in nanoseconds.
    grain: i64,
}

impl Times {
    /// What becomes of `time` (the kernel's timestamp_truncate).
    fn kept(self, time: TimeSpec) -> (i64, i64) {
        let seconds = time.tv_sec().clamp(self.first, self.last);
        if seconds == self.first || seconds == self.last {
            return (seconds, 0);
        }
        (seconds, time.tv_nsec() / self.grain * self.grain)
    }
}

pub(super) struct Tree<'t> {
    frames: Vec<Frame>,
    /// The path, as entries write it, of which the last frame is the directory.
    entered: Option<Vec<u8>>,
    /// Nearest first; only in overlay form.
    parents: &'t [OwnedFd],
    pub(super) rules: Rules,
    mark: Option<CString>,
    pub(super) given: Given,
    /// None while there is nothing below that a whiteout could remove.
    pub(super) touched: Option<Touched>,
    pub(super) listing: Listing<'t>,
    pub(super) remarks: Remarks,
    durability: Durability,
    /// Whether a directory may hand an access control list down to what is made in it.
    pub(super) lists_inherited: bool,
    /// Directories made that no entry names.
    pub(super) implied: u64,
}

impl<'t> Tree<'t> {
    /// # Errors
    /// `target` is not an empty directory that can be written to.
    pub(super) fn new(
        target: BorrowedFd,
        parents: &'t [OwnedFd],
        options: &Options,
        listing: Listing<'t>,
    ) -> Result<Self> {
        let root = target.try_clone_to_owned().context("hold the target")?;
        // Lists of the directory around the target would be handed down to every file.
        for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
            match attribute::remove(root.as_fd(), name) {
                Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                Err(error) => return Err(error).context("remove the target's access control list"),
            }
        }
        // Nobody else looks in before everything has its owner and mode (S-5).
        fchmod(&root, Mode::S_IRWXU).context("close the target to others")?;
        let given = probe(root.as_fd()).context("make a file in the target")?;
        let rules = Rules::new(options.form, options.ids.clone());
        let mut frame = Frame::open(root, Vec::new())?;
        frame.mtime = None;
        Ok(Self {
            frames: vec![frame],
            entered: Some(Vec::new()),
            parents,
            mark: rules.opaque_mark(),
            rules,
            given,
            touched: None,
            listing,
            remarks: Remarks::default(),
            durability: options.durability,
            lists_inherited: false,
            implied: 0,
        })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.frames[0].fd.as_fd()
    }

    /// The directory entered last.
    pub(super) fn top(&self) -> &Frame {
        &self.frames[self.frames.len() - 1]
    }

    pub(super) fn top_mut(&mut self) -> &mut Frame {
        let last = self.frames.len() - 1;
        &mut self.frames[last]
    }

    pub(super) fn is_entered(&self, parent: &[u8]) -> bool {
        self.entered.as_deref() == Some(parent)
    }

    pub(super) fn is_at_root(&self) -> bool {
        self.frames.len() == 1
    }

    /// The path without links of `name` in the directory entered.
    pub(super) fn real_path(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::new();
        for frame in &self.frames[1..] {
            path.extend_from_slice(&frame.name);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn top_path(&self) -> Vec<u8> {
        let mut path = self.real_path(b"");
        path.pop();
        path
    }

    /// Go to the directory `parent`, a clean path, following links inside the root. Directories that are made get the time
    /// `when`, or what a lower layer has. False when it is not there and may not be made.
    ///
    /// # Errors
    /// Too many links, too deep, or what the kernel says.
    pub(super) fn enter(&mut self, parent: &[u8], make: Make, when: Time) -> Result<bool> {
        if !self.is_entered(parent) && !self.walk(parent, make, when)? {
            return Ok(false);
        }
        if make == Make::All {
            self.touch_frames();
        }
        Ok(true)
    }

    fn walk(&mut self, parent: &[u8], make: Make, when: Time) -> Result<bool> {
        self.entered = None;
        let mut rest: Vec<Vec<u8>> = Vec::new();
        push_components(&mut rest, parent);
        let mut depth = 0usize;
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                depth = depth.saturating_sub(1);
                continue;
            }
            if self
                .frames
                .get(depth + 1)
                .is_some_and(|frame| frame.name == name)
            {
                depth += 1;
                continue;
            }
            self.leave_to(depth)?;
            match self.step(&name, make, when)? {
                Step::Entered => depth += 1,
                Step::Missing => return Ok(false),
                Step::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(Errno::ELOOP.into());
                    }
                    if target.starts_with(b"/") {
                        depth = 0;
                    }
                    push_components(&mut rest, &target);
                }
            }
        }
        self.leave_to(depth)?;
        self.entered = Some(parent.to_vec());
        Ok(true)
    }

    /// Note that this layer has every directory held open.
    fn touch_frames(&mut self) {
        let Some(touched) = &mut self.touched else {
            return;
        };
        for at in (1..self.frames.len()).rev() {
            if self.frames[at].touched {
                break;
            }
            touched.insert(self.frames[at - 1].inode, &self.frames[at].name);
            self.frames[at].touched = true;
        }
    }

    /// Forget what the layer before has touched.
    pub(super) fn next_layer(&mut self, tracked: bool) -> Result<()> {
        self.leave_to(0)?;
        self.entered = Some(Vec::new());
        self.touched = tracked.then(Touched::default);
        Ok(())
    }

    fn step(&mut self, name: &[u8], make: Make, when: Time) -> Result<Step> {
        match open_directory(self.top().fd.as_fd(), name) {
            Ok(fd) => {
                let frame = Frame::open(fd, name.to_vec())?;
                self.push(frame)?;
                if let Some(mark) = &self.mark
                    && matches!(
                        attribute::get(self.top().fd.as_fd(), mark).as_deref(),
                        Ok(b"y")
                    )
                {
                    self.top_mut().hides = true;
                }
                Ok(Step::Entered)
            }
            Err(Errno::ENOENT) => self.missing(name, make, when),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                let Some(stat) = look(self.top().fd.as_fd(), name)? else {
                    return self.missing(name, make, when);
                };
                if file_type(&stat) == SFlag::S_IFLNK {
                    return read_link(self.top().fd.as_fd(), name).map(Step::Link);
                }
                if make != Make::All {
                    return Ok(Step::Missing);
                }
                // L-5: what is in the way goes, and the directory begins empty.
                self.remove(name)?;
                let attributes = self.rules.implied(when)?;
                self.make_implied(name, &attributes)?;
                self.mark_opaque()?;
                Ok(Step::Entered)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A component that this tree does not have (L-6).
    fn missing(&mut self, name: &[u8], make: Make, when: Time) -> Result<Step> {
        if let Some(seen) = self.below(name)? {
            match file_type(&seen.stat) {
                SFlag::S_IFDIR => {
                    let dir = open_directory(seen.dir.as_fd(), name)?;
                    let attributes = self.inherited(dir.as_fd())?;
                    self.make_implied(name, &attributes)?;
                    return Ok(Step::Entered);
                }
                SFlag::S_IFLNK => return read_link(seen.dir.as_fd(), name).map(Step::Link),
                _ => {}
            }
        }
        if make != Make::All {
            return Ok(Step::Missing);
        }
        let attributes = self.rules.implied(when)?;
        self.make_implied(name, &attributes)?;
        Ok(Step::Entered)
    }

    /// What the layers below show as `name` in the directory entered.
    pub(super) fn below(&self, name: &[u8]) -> Result<Option<lower::Seen>> {
        let Some(mark) = &self.mark else {
            return Ok(None);
        };
        if self.parents.is_empty() || self.top().hides {
            return Ok(None);
        }
        Ok(lower::find(self.parents, &self.real_path(name), mark)?)
    }

    pub(super) fn parents(&self) -> &'t [OwnedFd] {
        self.parents
    }

    /// What `file`, of a lower layer, has on disk.
    pub(super) fn inherited(&self, file: BorrowedFd) -> Result<Attributes> {
        let stat = fstat(file)?;
        Ok(Attributes {
            xattrs: self.rules.inherited_xattrs(file)?,
            ..on_disk(&stat)
        })
    }

    fn make_implied(&mut self, name: &[u8], attributes: &Attributes) -> Result<()> {
        self.implied += 1;
        self.make_directory(name, attributes)?;
        let line = self.line(b'd', attributes);
        let path = self.top_path();
        self.listing.made(&path, &line)
    }

    /// Make the directory `name`, which is not there, and go into it.
    ///
    /// # Errors
    /// EEXIST when something is there.
    pub(super) fn make_directory(&mut self, name: &[u8], attributes: &Attributes) -> Result<()> {
        let top = self.top();
        let (group, setgid) = (top.group, top.setgid);
        let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
        mkdirat(&top.fd, OsStr::from_bytes(name), mode)?;
        self.top_mut().changed = true;
        let fd = open_directory(self.top().fd.as_fd(), name)?;
        let bits = attributes.mode & self.given.permissions | if setgid { 0o2000 } else { 0 };
        self.settle(fd.as_fd(), attributes, (self.given.uid, group, bits))?;
        let frame = if self.touched.is_some() {
            Frame::open(fd, name.to_vec())?
        } else {
            Frame {
                name: name.to_vec(),
                fd,
                inode: 0,
                mtime: None,
                changed: false,
                touched: false,
                group: 0,
                setgid: false,
                hides: false,
            }
        };
        self.push(frame)?;
        self.set_top(attributes);
        Ok(())
    }

    /// Note that the directory entered has been given `attributes`.
    pub(super) fn set_top(&mut self, attributes: &Attributes) {
        let setgid = attributes.mode & 0o2000 != 0;
        let group = if setgid {
            attributes.gid
        } else {
            self.given.gid
        };
        let root = self.is_at_root();
        let frame = self.top_mut();
        frame.mtime = (!root).then_some(attributes.mtime);
        frame.changed = true;
        (frame.setgid, frame.group) = (setgid, group);
    }

    /// Give a file owner, mode and attributes. `now` is what it has: owner, group and mode.
    // ORDER: the owner first, since a change of owner takes set-id bits and capabilities away (L-20).
    pub(super) fn settle(
        &mut self,
        fd: BorrowedFd,
        attributes: &Attributes,
        now: (u32, u32, u32),
    ) -> Result<()> {
        let Attributes { mode, uid, gid, .. } = *attributes;
        if self.lists_inherited {
            for name in [c"system.posix_acl_default", c"system.posix_acl_access"] {
                match attribute::remove(fd, name) {
                    Ok(()) | Err(Errno::ENODATA | Errno::EOPNOTSUPP) => {}
                    Err(error) => return Err(error).context("remove an inherited list"),
                }
            }
        }
        let given_away = (uid, gid) != (now.0, now.1);
        if given_away {
            fchown(fd, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .with_context(|| format!("give it to {uid}:{gid}"))?;
        }
        if mode != now.2 || self.lists_inherited || given_away && mode & 0o6000 != 0 {
            fchmod(fd, Mode::from_bits_truncate(mode)).context("set its mode")?;
        }
        self.set_attributes(fd, attributes)
    }

    pub(super) fn set_attributes(&mut self, fd: BorrowedFd, attributes: &Attributes) -> Result<()> {
        for (name, value) in &attributes.xattrs {
            if name.as_c_str() == c"system.posix_acl_default" {
                self.lists_inherited = true;
            }
            let done = attribute::set(fd, name, value);
            self.tolerate(done, name)?;
        }
        Ok(())
    }

    /// An attribute that the file system does not take, or the kernel not from us, is warned of (L-23).
    pub(super) fn tolerate(&mut self, done: nix::Result<()>, name: &CString) -> Result<()> {
        let shown = || name.to_string_lossy().into_owned();
        match done {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP) => {
                self.remarks
                    .add("the file system takes no attribute of this kind", shown);
                Ok(())
            }
            // Only files and directories take attributes of users (xattr(7)).
            Err(Errno::EPERM) if name.as_bytes().starts_with(b"user.") => {
                self.remarks.add(
                    "only files and directories take an attribute of this kind",
                    shown,
                );
                Ok(())
            }
            Err(Errno::EPERM) if !self.given.is_machine_root() => {
                self.remarks
                    .add("an attribute may not be set in a user namespace", shown);
                Ok(())
            }
            Err(error) => Err(error).with_context(|| format!("set the attribute {}", shown())),
        }
    }

    /// Replace all that the directory entered has by `attributes`: what it has besides goes (L-1).
    pub(super) fn replace_attributes(&mut self, attributes: &Attributes) -> Result<()> {
        let fd = self.top().fd.try_clone().context("hold a directory")?;
        self.replace_attributes_of(fd.as_fd(), attributes)?;
        self.set_top(attributes);
        Ok(())
    }

    pub(super) fn replace_attributes_of(
        &mut self,
        fd: BorrowedFd,
        attributes: &Attributes,
    ) -> Result<()> {
        let names = match attribute::list(fd) {
            Err(Errno::EOPNOTSUPP) => Vec::new(),
            names => names.context("list its attributes")?,
        };
        for name in names {
            let kept = self.rules.is_own_mark(name.to_bytes())
                || name.as_c_str() == c"security.selinux"
                || attributes.xattrs.iter().any(|(wanted, _)| *wanted == name);
            if !kept {
                match attribute::remove(fd, &name) {
                    Ok(()) | Err(Errno::ENODATA) => {}
                    Err(error) => {
                        let name = name.to_string_lossy();
                        return Err(error).with_context(|| format!("remove the attribute {name}"));
                    }
                }
            }
        }
        let stat = fstat(fd)?;
        let now = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777);
        self.settle(fd, attributes, now)
    }

    /// Make the directory entered hide what lower layers have there. Whiteouts in it have nothing to hide any more, and
    /// would be listed (L-14); what was copied from a lower layer, only to hold a whiteout or to be linked to, goes as well.
    pub(super) fn mark_opaque(&mut self) -> Result<()> {
        let Some(mark) = &self.mark else {
            return Ok(());
        };
        let top = self.top();
        attribute::set(top.fd.as_fd(), mark, b"y").context("mark the directory opaque")?;
        let mut path = self.real_path(b"");
        if let (Some(touched), Some(top)) = (&self.touched, self.frames.last()) {
            let dir = top.fd.as_fd();
            clear(touched, dir, top.inode, &mut path, &mut self.listing)?;
        }
        let top = self.top_mut();
        top.hides = true;
        top.changed = true;
        Ok(())
    }

    /// Remove `name`, whatever it is, from the directory entered. Nothing there is fine.
    pub(super) fn remove(&mut self, name: &[u8]) -> Result<()> {
        self.top_mut().changed = true;
        let dir = self.top().fd.as_fd();
        let os_name = OsStr::from_bytes(name);
        match unlinkat(dir, os_name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(Errno::EISDIR | Errno::EPERM) => {
                store::remove_tree(dir, os_name)?;
            }
            Err(error) => return Err(error.into()),
        }
        if self.listing.wanted() {
            let path = self.real_path(name);
            self.listing.removed(&path)?;
        }
        Ok(())
    }

    /// Remove what this layer has not written from the directory `dir` with the inode number `inode`: an opaque mark, or
    /// a whiteout of a directory that this layer has too (L-8, L-12).
    pub(super) fn clear(&mut self, dir: BorrowedFd, inode: u64) -> Result<()> {
        let Some(touched) = &self.touched else {
            return Ok(());
        };
        clear(touched, dir, inode, &mut Vec::new(), &mut self.listing)
    }

    /// Whether there is a layer below, so that a whiteout could hide something.
    pub(super) fn is_over_something(&self) -> bool {
        self.touched.is_some()
    }

    /// Whether an entry of this layer is what `name` in the directory entered is there for, or on the way to one.
    pub(super) fn has_touched(&self, name: &[u8]) -> bool {
        let inode = self.top().inode;
        self.touched
            .as_ref()
            .is_none_or(|touched| touched.contains(inode, name))
    }

    fn push(&mut self, mut frame: Frame) -> Result<()> {
        if self.frames.len() > DEEPEST {
            bail!("deeper than {DEEPEST} directories");
        }
        frame.hides |= self.top().hides;
        if !frame.setgid {
            frame.group = self.given.gid;
        }
        self.frames.push(frame);
        Ok(())
    }

    /// Say that the last frame is the directory `path` of the archive.
    pub(super) fn entered_is(&mut self, path: &[u8]) {
        self.entered = Some(path.to_vec());
        self.touch_frames();
    }

    /// Leave directories until `depth` are held below the root.
    fn leave_to(&mut self, depth: usize) -> Result<()> {
        while self.frames.len() > depth + 1 {
            let Some(frame) = self.frames.pop() else {
                break;
            };
            self.close(&frame)
                .with_context(|| frame.name.escape_ascii().to_string())?;
        }
        Ok(())
    }

    fn close(&self, frame: &Frame) -> Result<()> {
        if !frame.changed {
            return Ok(());
        }
        if let Some(mtime) = &frame.mtime {
            futimens(&frame.fd, &TimeSpec::UTIME_OMIT, mtime).context("set its time")?;
        }
        if self.durability == Durability::Fsync {
            fsync(&frame.fd).context("sync it")?;
        }
        Ok(())
    }

    /// Leave everything and give the root its attributes.
    pub(super) fn finish(&mut self, root: &Attributes) -> Result<()> {
        self.next_layer(false)?;
        self.replace_attributes(root)?;
        let line = self.line(b'd', root);
        self.listing.made(b"", &line)?;
        let frame = &mut self.frames[0];
        frame.mtime = Some(root.mtime);
        self.close(&self.frames[0])
    }

    pub(super) fn line(&self, kind: u8, attributes: &Attributes) -> Line {
        Line {
            kind,
            mode: attributes.mode,
            uid: attributes.uid,
            gid: attributes.gid,
            size: 0,
            mtime: self.given.times.kept(attributes.mtime),
            check: 0,
        }
    }

    pub(super) fn durable(&self) -> bool {
        self.durability == Durability::Fsync
    }
}

enum Step {
    Entered,
    /// It is a link, with this target.
    Link(Vec<u8>),
    Missing,
}

impl Frame {
    fn open(fd: OwnedFd, name: Vec<u8>) -> Result<Self> {
        let stat = fstat(&fd)?;
        let setgid = stat.st_mode & 0o2000 != 0;
        Ok(Self {
            name,
            fd,
            inode: stat.st_ino,
            mtime: Some(TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec)),
            changed: false,
            touched: false,
            group: stat.st_gid,
            setgid,
            hides: false,
        })
    }

    pub(super) fn group(&self) -> u32 {
        self.group
    }
}

impl Given {
    /// What of `mode` a new file has.
    pub(super) fn bits(self, mode: u32) -> u32 {
        mode & self.permissions
    }

    pub(super) fn uid(self) -> u32 {
        self.uid
    }

    fn is_machine_root(self) -> bool {
        nix::unistd::geteuid().is_root() && crate::idmap::in_initial_namespace().unwrap_or(true)
    }
}

/// Make a file and see what the kernel gives it, in owner, mode and time.
fn probe(dir: BorrowedFd) -> Result<Given> {
    let name = ".pelagos-probe";
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let file = openat(dir, name, flags, Mode::from_bits_truncate(0o777))?;
    unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?;
    let stat = fstat(&file)?;
    let kept = |seconds, nanos| -> Result<(i64, i64)> {
        futimens(&file, &TimeSpec::UTIME_OMIT, &TimeSpec::new(seconds, nanos))?;
        let stat = fstat(&file)?;
        Ok((stat.st_mtime, stat.st_mtime_nsec))
    };
    const SECOND: i64 = 1_000_000_000;
    let times = Times {
        first: kept(FIRST_SECOND, 0)?.0,
        last: kept(LAST_SECOND, 0)?.0,
        grain: SECOND - kept(1, SECOND - 1)?.1,
    };
    Ok(Given {
        uid: stat.st_uid,
        gid: stat.st_gid,
        permissions: stat.st_mode & 0o777,
        times,
    })
}

fn read_link(dir: BorrowedFd, name: &[u8]) -> Result<Vec<u8>> {
    Ok(readlinkat(dir, OsStr::from_bytes(name))?.into_vec())
}

/// Put the components of `path` on the stack `rest`, the first on top.
fn push_components(rest: &mut Vec<Vec<u8>>, path: &[u8]) {
    let components = path
        .rsplit(|byte| *byte == b'/')
        .filter(|name| !matches!(*name, b"" | b"."));
    rest.extend(components.map(<[u8]>::to_vec));
}

pub(super) fn on_disk(stat: &FileStat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        xattrs: Vec::new(),
    }
}

/// `path` is that of `dir`, with a slash at its end unless it is the root's.
fn clear(
    touched: &Touched,
    dir: BorrowedFd,
    inode: u64,
    path: &mut Vec<u8>,
    listing: &mut Listing,
) -> Result<()> {
    let length = path.len();
    for name in store::entries(dir)? {
        path.truncate(length);
        path.extend_from_slice(name.as_bytes());
        let kept = touched.contains(inode, name.as_bytes())
            // The number of a directory that is gone may have come back, and what was touched in it with it.
            && !look(dir, name.as_bytes())?.is_some_and(|stat| lower::is_whiteout(&stat));
        if !kept {
            store::remove_tree(dir, &name)?;
            listing.removed(path)?;
            continue;
        }
        match open_directory(dir, name.as_bytes()) {
            Ok(child) => {
                let stat = fstat(&child)?;
                path.push(b'/');
                clear(touched, child.as_fd(), stat.st_ino, path, listing)?;
                let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
                futimens(&child, &TimeSpec::UTIME_OMIT, &mtime)?;
            }
            Err(Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    path.truncate(length);
    Ok(())
}
