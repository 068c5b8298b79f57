//! One entry after the other, applied to the tree (layer.md, "Applying Changesets").

use std::ffi::OsStr;
use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, fstat, futimens, makedev, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, linkat, symlinkat};

use crate::image::store;
use crate::sys::attribute;
use crate::sys::holes::copy_with_holes;
use crate::sys::path::{file_type, open_in_root};

use super::archive::{Archive, Entry, Kind, Time};
use super::attributes::Attributes;
use super::listing::{Check, Line, Listing};
use super::lower::{self, is_whiteout, look, open_directory};
use super::names::{self, Meaning, clean, split};
use super::tree::{Make, Tree, on_disk};
use super::{Form, Options, Report};

/// As many skipped entries are named.
const MOST_NAMED: usize = 100;

/// One unpacking of one or more layers.
pub(super) struct Extraction<'t> {
    tree: Tree<'t>,
    options: &'t Options,
    /// What the root gets at the end: its last entry's.
    root: Option<Attributes>,
    /// The time of what no entry describes, the root for one.
    first_time: Option<Time>,
    layers: usize,
    entries: u64,
    files: u64,
    bytes: u64,
    skipped: Vec<String>,
    more_skipped: u64,
}

impl<'t> Extraction<'t> {
    /// # Errors
    /// `target` is not an empty directory that can be written to.
    pub(super) fn new(
        target: BorrowedFd,
        parents: &'t [OwnedFd],
        options: &'t Options,
        listing: Listing<'t>,
    ) -> Result<Self> {
        if let Some(name) = store::entries(target)?.first() {
            bail!("the target is not empty: it has {}", name.display());
        }
        Ok(Self {
            tree: Tree::new(target, parents, options, listing)?,
            options,
            root: None,
            first_time: None,
            layers: 0,
            entries: 0,
            files: 0,
            bytes: 0,
            skipped: Vec::new(),
            more_skipped: 0,
        })
    }

    /// Apply one layer, and read its stream to the end.
    ///
    /// # Errors
    /// Names the path.
    pub(super) fn layer(&mut self, input: impl BufRead) -> Result<()> {
        // Whiteouts of the first layer have nothing to remove.
        let tracked = self.layers > 0 || !self.tree.parents().is_empty();
        self.tree.next_layer(tracked)?;
        self.layers += 1;
        let mut archive = Archive::new(input);
        while let Some(entry) = archive.next()? {
            self.entry(&entry, &mut archive)
                .with_context(|| entry.path.escape_ascii().to_string())?;
        }
        archive.drain()
    }

    /// Give the root its attributes.
    pub(super) fn finish(mut self) -> Result<Report> {
        let root = match (self.root.take(), self.tree.parents().first()) {
            (Some(root), _) => root,
            // L-6 holds for the root too: overlayfs shows that of the uppermost layer.
            (None, Some(parent)) => self.tree.inherited(parent.as_fd())?,
            (None, None) => {
                let time = self.first_time.unwrap_or_default();
                self.tree.rules.implied(time)?
            }
        };
        self.tree.finish(&root).context("the root directory")?;
        if self.more_skipped > 0 {
            self.skipped.push(format!("{} more", self.more_skipped));
        }
        Ok(Report {
            entries: self.entries,
            files: self.files,
            apparent_bytes: self.bytes,
            warnings: self.tree.remarks.into_lines(),
            skipped: self.skipped,
        })
    }

    fn entry(&mut self, entry: &Entry, archive: &mut Archive<impl BufRead>) -> Result<()> {
        let path = clean(&entry.path)?;
        self.entries += 1;
        self.first_time.get_or_insert(entry.mtime);
        self.count()?;
        if path.is_empty() {
            return self.root_entry(entry);
        }
        let (parent, name) = split(&path);
        match names::meaning(&path)? {
            Meaning::Entry => {}
            Meaning::Whiteout(target) => return self.whiteout(parent, target, entry.mtime),
            Meaning::Opaque => return self.opaque(parent, entry.mtime),
            Meaning::Ignored => {
                let place = || entry.path.escape_ascii().to_string();
                self.tree.remarks.add("a name of AUFS is left out", place);
                return Ok(());
            }
        }
        if self.is_left_out(entry) {
            return Ok(());
        }
        match entry.kind {
            // It is noted as touched when it is entered.
            Kind::Directory => return self.directory(entry, &path, parent, name),
            Kind::HardLink => self.hard_link(entry, parent, name)?,
            kind => {
                let attributes = self.tree.rules.attributes(entry, &mut self.tree.remarks)?;
                self.tree.enter(parent, Make::All, entry.mtime)?;
                let line = match kind {
                    Kind::File => self.file(entry, &attributes, name, archive)?,
                    Kind::Symlink => self.symlink(&entry.link, &attributes, name)?,
                    _ => match self.node(entry, &attributes, name)? {
                        Some(line) => line,
                        None => return Ok(()),
                    },
                };
                self.list(name, &line)?;
            }
        }
        self.touch(name);
        // With the directories that were made on the way.
        self.count()
    }

    /// Compare what was made with the limit (S-6).
    fn count(&self) -> Result<()> {
        let most = self.options.limits.entries;
        if self.entries.saturating_add(self.tree.implied) > most {
            bail!("more than {most} files and directories: the limit is set with --max-entries");
        }
        Ok(())
    }

    fn touch(&mut self, name: &[u8]) {
        let inode = self.tree.top().inode;
        if let Some(touched) = &mut self.tree.touched {
            touched.insert(inode, name);
        }
    }

    fn list(&mut self, name: &[u8], line: &Line) -> Result<()> {
        if !self.tree.listing.wanted() {
            return Ok(());
        }
        let path = self.tree.real_path(name);
        self.tree.listing.made(&path, line)
    }

    /// L-4
    fn root_entry(&mut self, entry: &Entry) -> Result<()> {
        // CVE-2021-29136: a link in place of the root would send everything after it elsewhere.
        if entry.kind != Kind::Directory {
            bail!("the root is a directory, and cannot be anything else");
        }
        let attributes = self.tree.rules.attributes(entry, &mut self.tree.remarks)?;
        self.root = Some(attributes);
        Ok(())
    }

    /// Whether a device is not to be made; then it is reported (L-28).
    fn is_left_out(&mut self, entry: &Entry) -> bool {
        let why = match entry.kind {
            Kind::Character | Kind::Block if !self.options.devices => "devices are not wanted",
            // It would be a whiteout that the layer does not say it is.
            Kind::Character
                if self.options.form != Form::Flat && (entry.major, entry.minor) == (0, 0) =>
            {
                "the device 0:0 cannot be in a layer for overlay"
            }
            _ => return false,
        };
        self.skip(entry, why);
        true
    }

    fn skip(&mut self, entry: &Entry, why: &str) {
        if self.skipped.len() < MOST_NAMED {
            let path = entry.path.escape_ascii();
            let (major, minor) = (entry.major, entry.minor);
            self.skipped
                .push(format!("device {major}:{minor} at {path}: {why}"));
        } else {
            self.more_skipped += 1;
        }
    }

    fn directory(&mut self, entry: &Entry, path: &[u8], parent: &[u8], name: &[u8]) -> Result<()> {
        let attributes = self.tree.rules.attributes(entry, &mut self.tree.remarks)?;
        self.tree.enter(parent, Make::All, entry.mtime)?;
        match self.tree.make_directory(name, &attributes) {
            Err(error) if error.downcast_ref() == Some(&Errno::EEXIST) => {
                match open_directory(self.tree.top().fd.as_fd(), name) {
                    Ok(_) => {
                        self.tree.enter(path, Make::All, entry.mtime)?;
                        self.tree.replace_attributes(&attributes)?;
                    }
                    Err(Errno::ENOTDIR | Errno::ELOOP) => {
                        self.tree.remove(name)?;
                        self.tree.make_directory(name, &attributes)?;
                        // L-5: what stood there, of this layer, had hidden the lower layers' directory.
                        self.tree.mark_opaque()?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            done => done?,
        }
        self.tree.entered_is(path);
        let line = self.tree.line(b'd', &attributes);
        if self.tree.listing.wanted() {
            let mut path = self.tree.real_path(b"");
            path.pop();
            self.tree.listing.made(&path, &line)?;
        }
        Ok(())
    }

    fn file(
        &mut self,
        entry: &Entry,
        attributes: &Attributes,
        name: &[u8],
        archive: &mut Archive<impl BufRead>,
    ) -> Result<Line> {
        self.account(entry.size)?;
        let file = self.create(name, attributes)?;
        let group = self.tree.top().group();
        let wanted = self.tree.listing.wanted();
        let mut check = Check::default();
        match &entry.runs {
            None => archive.data(None, |_, piece| {
                if wanted {
                    check.update(piece);
                }
                (&file).write_all(piece).context("write it")
            })?,
            Some(runs) => {
                archive.data(Some(runs), |offset, piece| {
                    file.write_all_at(piece, offset).context("write it")
                })?;
                file.set_len(entry.size).context("set its size")?;
                if wanted {
                    check = check_of(&file, entry.size, runs)?;
                }
            }
        }
        let now = (
            self.tree.given.uid(),
            group,
            self.tree.given.bits(attributes.mode),
        );
        self.tree.settle(file.as_fd(), attributes, now)?;
        self.close(&file, attributes)?;
        self.files += 1;
        Ok(Line {
            size: entry.size,
            check: check.value(),
            ..self.tree.line(b'f', attributes)
        })
    }

    /// Count the bytes of a file against the limit (S-6).
    fn account(&mut self, size: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(size);
        let most = self.options.limits.bytes;
        if self.bytes > most {
            bail!("more than {most} bytes of files: the limit is set with --max-size");
        }
        Ok(())
    }

    /// A new file; what was there goes, and is never written to (L-2).
    fn create(&mut self, name: &[u8], attributes: &Attributes) -> Result<File> {
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
        let fd = self.replacing(name, |dir, name| openat(dir, name, flags, mode))?;
        Ok(File::from(fd))
    }

    /// Make `name` in the directory entered with `make`, after removing what is in the way.
    fn replacing<T>(
        &mut self,
        name: &[u8],
        make: impl Fn(BorrowedFd, &OsStr) -> nix::Result<T>,
    ) -> Result<T> {
        let top = self.tree.top_mut();
        top.changed = true;
        let os_name = OsStr::from_bytes(name);
        match make(top.fd.as_fd(), os_name) {
            Err(Errno::EEXIST) => {
                self.tree.remove(name)?;
                Ok(make(self.tree.top().fd.as_fd(), os_name)?)
            }
            made => Ok(made?),
        }
    }

    fn close(&self, file: &File, attributes: &Attributes) -> Result<()> {
        futimens(file, &TimeSpec::UTIME_OMIT, &attributes.mtime).context("set its time")?;
        if self.tree.durable() {
            file.sync_all().context("sync it")?;
        }
        Ok(())
    }

    fn symlink(&mut self, target: &[u8], attributes: &Attributes, name: &[u8]) -> Result<Line> {
        if target.is_empty() {
            bail!("a symbolic link to nothing");
        }
        self.replacing(name, |dir, name| {
            symlinkat(OsStr::from_bytes(target), dir, name)
        })?;
        self.settle_by_name(name, attributes, None)?;
        Ok(Line {
            mode: 0o777,
            check: Check::of(target),
            ..self.tree.line(b'l', attributes)
        })
    }

    /// A device or a fifo. None when the kernel does not let us make devices.
    fn node(
        &mut self,
        entry: &Entry,
        attributes: &Attributes,
        name: &[u8],
    ) -> Result<Option<Line>> {
        let (kind, letter) = match entry.kind {
            Kind::Character => (SFlag::S_IFCHR, b'c'),
            Kind::Block => (SFlag::S_IFBLK, b'b'),
            _ => (SFlag::S_IFIFO, b'p'),
        };
        let number = match entry.kind {
            Kind::Fifo => 0,
            _ => makedev(u64::from(entry.major), u64::from(entry.minor)),
        };
        let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
        let made = self.replacing(name, |dir, name| mknodat(dir, name, kind, mode, number));
        match made {
            Err(error) if error.downcast_ref() == Some(&Errno::EPERM) && kind != SFlag::S_IFIFO => {
                self.skip(entry, "this process may not make devices");
                return Ok(None);
            }
            made => made?,
        }
        self.settle_by_name(name, attributes, Some(attributes.mode))?;
        Ok(Some(Line {
            size: number,
            ..self.tree.line(letter, attributes)
        }))
    }

    /// Owner, mode, attributes and time of what cannot be opened without consequence.
    fn settle_by_name(
        &mut self,
        name: &[u8],
        attributes: &Attributes,
        mode: Option<u32>,
    ) -> Result<()> {
        let top = self.tree.top();
        let os_name = OsStr::from_bytes(name);
        let Attributes { uid, gid, .. } = *attributes;
        if (uid, gid) != (self.tree.given.uid(), top.group()) {
            fchownat(
                &top.fd,
                os_name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::AT_SYMLINK_NOFOLLOW,
            )
            .with_context(|| format!("give it to {uid}:{gid}"))?;
        }
        if let Some(mode) = mode {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(&top.fd, os_name, mode, FchmodatFlags::NoFollowSymlink)
                .context("set its mode")?;
        }
        for (attribute, value) in &attributes.xattrs {
            let dir = self.tree.top().fd.as_fd();
            let done = attribute::set_below(dir, os_name, attribute, value);
            self.tree.tolerate(done, attribute)?;
        }
        utimensat(
            &self.tree.top().fd,
            os_name,
            &TimeSpec::UTIME_OMIT,
            &attributes.mtime,
            UtimensatFlags::NoFollowSymlink,
        )
        .context("set its time")
    }

    /// L-19: no attributes are taken from the entry of a link.
    fn hard_link(&mut self, entry: &Entry, parent: &[u8], name: &[u8]) -> Result<()> {
        let shown = entry.link.escape_ascii().to_string();
        let target = clean(&entry.link).with_context(|| format!("hard link to {shown}"))?;
        if target.is_empty() {
            bail!("a hard link to the root");
        }
        let (target_parent, target_name) = split(&target);
        let (from, real_target) = self
            .link_target(target_parent, target_name, parent, entry.mtime)
            .with_context(|| format!("hard link to {shown}"))?;
        self.tree.enter(parent, Make::All, entry.mtime)?;
        let os_target = OsStr::from_bytes(target_name);
        let os_name = OsStr::from_bytes(name);
        let link = |dir: BorrowedFd, from: BorrowedFd| {
            linkat(from, os_target, dir, os_name, AtFlags::empty())
        };
        let top = self.tree.top_mut();
        top.changed = true;
        let source = from.as_ref().map_or(top.fd.as_fd(), |fd| fd.as_fd());
        match link(top.fd.as_fd(), source) {
            Err(Errno::EEXIST) => {
                let there = look(top.fd.as_fd(), name)?;
                let target = look(source, target_name)?;
                let same = match (there, target) {
                    (Some(a), Some(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
                    _ => false,
                };
                // Removing it first would remove the target with it.
                if same {
                    return Ok(());
                }
                self.tree.remove(name)?;
                let top = self.tree.top();
                let source = from.as_ref().map_or(top.fd.as_fd(), |fd| fd.as_fd());
                link(top.fd.as_fd(), source)
            }
            done => done,
        }
        .with_context(|| format!("hard link to {shown}"))?;
        if self.tree.listing.wanted() {
            let path = self.tree.real_path(name);
            self.tree.listing.linked(&path, &real_target)?;
        }
        Ok(())
    }

    /// The directory in which a hard link's target lies; none when it is the entry's own, entered already. Also the
    /// target's path without links, for the listing.
    fn link_target(
        &mut self,
        parent: &[u8],
        name: &[u8],
        own_parent: &[u8],
        when: Time,
    ) -> Result<(Option<OwnedFd>, Vec<u8>)> {
        if self.options.form == Form::Flat {
            if parent == own_parent {
                return Ok((None, Vec::new()));
            }
            let path = match parent {
                b"" => b".",
                parent => parent,
            };
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY;
            let path = OsStr::from_bytes(path).as_ref();
            let dir = open_in_root(self.tree.root(), path, flags)?;
            return Ok((Some(dir), Vec::new()));
        }
        if !self.tree.enter(parent, Make::Visible, when)? {
            return Err(Errno::ENOENT.into());
        }
        match look(self.tree.top().fd.as_fd(), name)? {
            Some(stat) if is_whiteout(&stat) => return Err(Errno::ENOENT.into()),
            Some(_) => {}
            None => self.copy_up(name)?,
        }
        let dir = self.tree.top().fd.try_clone().context("hold a directory")?;
        Ok((Some(dir), self.tree.real_path(name)))
    }

    /// Copy `name` from the layers below, so that it can be linked to.
    fn copy_up(&mut self, name: &[u8]) -> Result<()> {
        let Some(lower::Seen { dir, stat }) = self.tree.below(name)? else {
            return Err(Errno::ENOENT.into());
        };
        let os_name = OsStr::from_bytes(name);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let line = match file_type(&stat) {
            SFlag::S_IFREG => {
                self.account(size)?;
                let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let from = File::from(openat(&dir, os_name, flags, Mode::empty())?);
                let attributes = self.tree.inherited(from.as_fd())?;
                let to = self.create(name, &attributes)?;
                copy_with_holes(&from, &to, size).context("copy it from a lower layer")?;
                let now = (
                    self.tree.given.uid(),
                    self.tree.top().group(),
                    self.tree.given.bits(attributes.mode),
                );
                self.tree.settle(to.as_fd(), &attributes, now)?;
                self.close(&to, &attributes)?;
                let mut check = Check::default();
                if self.tree.listing.wanted() {
                    check = check_of_range(&to, 0, size, check)?;
                }
                Line {
                    size,
                    check: check.value(),
                    ..self.tree.line(b'f', &attributes)
                }
            }
            SFlag::S_IFLNK => {
                let target = readlinkat(&dir, os_name)?.into_vec();
                self.symlink(&target, &on_disk(&stat), name)?
            }
            SFlag::S_IFDIR => bail!("it is a directory"),
            _ => {
                let attributes = on_disk(&stat);
                let kind = file_type(&stat);
                let number = stat.st_rdev;
                let mode = Mode::from_bits_truncate(attributes.mode & 0o777);
                self.replacing(name, |dir, name| mknodat(dir, name, kind, mode, number))?;
                self.settle_by_name(name, &attributes, Some(attributes.mode))?;
                let letter = match kind {
                    SFlag::S_IFCHR => b'c',
                    SFlag::S_IFBLK => b'b',
                    _ => b'p',
                };
                Line {
                    size: number,
                    ..self.tree.line(letter, &attributes)
                }
            }
        };
        self.list(name, &line)
    }

    /// L-8, L-9
    fn whiteout(&mut self, parent: &[u8], name: &[u8], when: Time) -> Result<()> {
        if !self.tree.is_over_something() {
            return Ok(());
        }
        if !self.tree.enter(parent, Make::Visible, when)? {
            return Ok(());
        }
        if self.options.form == Form::Flat {
            return self.remove_lower(name);
        }
        let mut own = look(self.tree.top().fd.as_fd(), name)?;
        match own {
            Some(stat) if is_whiteout(&stat) => return Ok(()),
            // It came from below, to hold a whiteout or to be linked to: no entry of this layer made it.
            Some(_) if !self.tree.has_touched(name) => {
                self.tree.remove(name)?;
                own = None;
            }
            _ => {}
        }
        match own.map(|stat| file_type(&stat)) {
            // It hides the lower layers' file by being there.
            Some(kind) if kind != SFlag::S_IFDIR => Ok(()),
            Some(_) => {
                if self.tree.below(name)?.is_some() {
                    let path = [parent, b"/", name].concat();
                    self.tree.enter(&clean(&path)?, Make::Visible, when)?;
                    self.tree.mark_opaque()?;
                }
                Ok(())
            }
            // Of nothing there is no need, and in a directory that hides all others it would be listed (L-14).
            None if self.tree.below(name)?.is_none() => Ok(()),
            None => self.make_whiteout(name),
        }
    }

    fn make_whiteout(&mut self, name: &[u8]) -> Result<()> {
        // KERNEL(5.8): needs no privilege from then on (L-15).
        let mode = Mode::empty();
        self.replacing(name, |dir, name| {
            mknodat(dir, name, SFlag::S_IFCHR, mode, 0)
        })
        .context("make a whiteout")?;
        let stat = look(self.tree.top().fd.as_fd(), name)?.context("its whiteout is gone")?;
        let line = self.tree.line(b'w', &on_disk(&stat));
        self.list(name, &line)
    }

    /// In the flat form: remove what the lower layers have as `name` in the directory entered.
    fn remove_lower(&mut self, name: &[u8]) -> Result<()> {
        let top = self.tree.top();
        let touched = self.tree.touched.as_ref();
        if !touched.is_some_and(|touched| touched.contains(top.inode, name)) {
            // A removal that finds nothing changes no time.
            if look(top.fd.as_fd(), name)?.is_some() {
                self.tree.remove(name)?;
            }
            return Ok(());
        }
        match open_directory(top.fd.as_fd(), name) {
            Ok(dir) => {
                let stat = fstat(&dir)?;
                self.tree.clear(dir.as_fd(), stat.st_ino)?;
                let mtime = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
                Ok(futimens(&dir, &TimeSpec::UTIME_OMIT, &mtime)?)
            }
            Err(Errno::ENOTDIR | Errno::ELOOP | Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// L-12
    fn opaque(&mut self, path: &[u8], when: Time) -> Result<()> {
        if !self.tree.is_over_something() {
            return Ok(());
        }
        if !self.tree.enter(path, Make::Visible, when)? {
            return Ok(());
        }
        if self.options.form == Form::Flat {
            let dir = self.tree.top().fd.try_clone().context("hold a directory")?;
            let inode = self.tree.top().inode;
            self.tree.top_mut().changed = true;
            return self.tree.clear(dir.as_fd(), inode);
        }
        if self.tree.is_at_root() {
            return self.opaque_root(when);
        }
        self.tree.mark_opaque()
    }

    /// overlayfs does not look for the mark on the root of a layer: everything in the lower roots is whited out by name.
    fn opaque_root(&mut self, when: Time) -> Result<()> {
        for parent in self.tree.parents() {
            for name in store::entries(parent.as_fd())? {
                self.whiteout(b"", name.as_bytes(), when)?;
            }
        }
        Ok(())
    }
}

/// The check of a sparse file: holes read as zeros.
fn check_of(file: &File, size: u64, runs: &[super::archive::Run]) -> Result<Check> {
    let mut check = Check::default();
    let mut at = 0;
    for run in runs {
        zeros(&mut check, run.offset - at);
        check = check_of_range(file, run.offset, run.length, check)?;
        at = run.offset + run.length;
    }
    zeros(&mut check, size - at);
    Ok(check)
}

fn zeros(check: &mut Check, mut count: u64) {
    const ZEROS: [u8; 4096] = [0; 4096];
    while count > 0 {
        let step = count.min(ZEROS.len() as u64);
        check.update(&ZEROS[..usize::try_from(step).unwrap_or(ZEROS.len())]);
        count -= step;
    }
}

fn check_of_range(file: &File, mut at: u64, mut length: u64, mut check: Check) -> Result<Check> {
    let mut buffer = vec![0; 64 << 10];
    while length > 0 {
        let wanted = usize::try_from(length)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = file
            .read_at(&mut buffer[..wanted], at)
            .context("read it again")?;
        if count == 0 {
            bail!("it became shorter while it was read again");
        }
        check.update(&buffer[..count]);
        at += count as u64;
        length -= count as u64;
    }
    Ok(check)
}
