//! From what an entry says to what a file gets: owners, mode, time and extended attributes.

use std::ffi::CString;
use std::os::fd::BorrowedFd;

use anyhow::{Context as _, Result, bail};
use nix::sys::time::TimeSpec;
use nix::unistd::{getegid, geteuid};

use crate::idmap::{self, Range};
use crate::sys::attribute;

use super::archive::{Attribute, Entry, Kind, Time};
use super::{Form, Ids};

/// Times that other tools can still print: the years 1 to 2261 (L-21).
pub(super) const FIRST_SECOND: i64 = -62_135_596_800;
pub(super) const LAST_SECOND: i64 = 9_223_372_036;

/// What a file on disk gets; ids are the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: TimeSpec,
    pub(super) xattrs: Vec<(CString, Vec<u8>)>,
}

/// Things that were tolerated, with the first place of each and how often.
#[derive(Default)]
pub(super) struct Remarks {
    said: Vec<(&'static str, String, u64)>,
}

impl Remarks {
    pub(super) fn add(&mut self, what: &'static str, place: impl FnOnce() -> String) {
        match self.said.iter_mut().find(|(known, ..)| *known == what) {
            Some((.., count)) => *count += 1,
            None => self.said.push((what, place(), 1)),
        }
    }

    pub(super) fn into_lines(self) -> Vec<String> {
        let line = |(what, place, count): (&str, String, u64)| match count {
            1 => format!("{what}: {place}"),
            _ => format!("{what}: {place}, and {} more", count - 1),
        };
        self.said.into_iter().map(line).collect()
    }
}

/// The rules of one unpacking.
pub(super) struct Rules {
    form: Form,
    ids: Ids,
}

impl Rules {
    pub(super) fn new(form: Form, ids: Ids) -> Self {
        Self { form, ids }
    }

    /// The attribute that makes a directory opaque, in this form.
    pub(super) fn opaque_mark(&self) -> Option<CString> {
        self.mark_prefix()
            .and_then(|prefix| CString::new([prefix, b"opaque"].concat()).ok())
    }

    /// Attributes with this prefix are overlayfs's own.
    fn mark_prefix(&self) -> Option<&'static [u8]> {
        match self.form {
            Form::Flat => None,
            Form::Trusted => Some(b"trusted.overlay."),
            Form::User => Some(b"user.overlay."),
        }
    }

    pub(super) fn is_mark(&self, name: &[u8]) -> bool {
        self.mark_prefix()
            .is_some_and(|prefix| name.starts_with(prefix))
    }

    /// The same without those of an image, which are escaped.
    pub(super) fn is_own_mark(&self, name: &[u8]) -> bool {
        self.mark_prefix()
            .and_then(|prefix| name.strip_prefix(prefix))
            .is_some_and(|rest| !rest.starts_with(b"overlay."))
    }

    /// What a directory gets that no entry and no lower layer describes (L-6).
    pub(super) fn implied(&self, mtime: Time) -> Result<Attributes> {
        let (uid, gid) = self.owner(0, 0)?;
        Ok(Attributes {
            mode: 0o755,
            uid,
            gid,
            mtime: timespec(mtime),
            xattrs: Vec::new(),
        })
    }

    /// # Errors
    /// An id has no mapping (L-29); a capability is malformed.
    pub(super) fn attributes(&self, entry: &Entry, remarks: &mut Remarks) -> Result<Attributes> {
        let (uid, gid) = self.owner(entry.uid, entry.gid)?;
        let mut xattrs = Vec::new();
        for attribute in &entry.xattrs {
            if let Some(kept) = self.xattr(entry, attribute, remarks)? {
                xattrs.push(kept);
            }
        }
        // COMPAT: umoci keeps the owner so, for who cannot give files away; only files and directories take it.
        if self.ids == Ids::Single
            && (entry.uid, entry.gid) != (0, 0)
            && matches!(entry.kind, Kind::File | Kind::Directory)
        {
            let name = c"user.rootlesscontainers".to_owned();
            xattrs.retain(|(other, _)| *other != name);
            xattrs.push((name, owner_record(entry.uid, entry.gid)));
        }
        Ok(Attributes {
            mode: entry.mode,
            uid,
            gid,
            mtime: timespec(entry.mtime),
            xattrs,
        })
    }

    fn owner(&self, uid: u32, gid: u32) -> Result<(u32, u32)> {
        let map = |ranges: &[Range], id: u32, kind: &str| match idmap::to_host(ranges, id) {
            Some(host) => Ok(host),
            None => bail!("{kind} {id} has no mapping"),
        };
        Ok(match &self.ids {
            Ids::AsStored => (uid, gid),
            Ids::Mapped(maps) => (map(&maps.uids, uid, "uid")?, map(&maps.gids, gid, "gid")?),
            Ids::Single => (geteuid().as_raw(), getegid().as_raw()),
        })
    }

    /// What becomes of one attribute from an archive (L-17, L-22, L-23).
    fn xattr(
        &self,
        entry: &Entry,
        attribute: &Attribute,
        remarks: &mut Remarks,
    ) -> Result<Option<(CString, Vec<u8>)>> {
        let name = attribute.name.as_slice();
        let place = || format!("{} at {}", name.escape_ascii(), entry.path.escape_ascii());
        let mut value = attribute.value.clone();
        let kept = match name {
            // The host's own labels and lists, which mean nothing on another machine.
            b"security.selinux" | b"system.nfs4_acl" => return Ok(None),
            b"security.capability" => {
                if entry.kind != Kind::File {
                    return Ok(None);
                }
                value = self.capability(value)?;
                name.to_vec()
            }
            b"system.posix_acl_access" | b"system.posix_acl_default" => {
                value = self.acl(value)?;
                name.to_vec()
            }
            // An image's overlay marks would hide or redirect what lies below.
            _ if self.is_mark(name) && self.form == Form::User => {
                [b"user.overlay.overlay.", &name[b"user.overlay.".len()..]].concat()
            }
            _ if name.starts_with(b"trusted.") => {
                remarks.add("an attribute that only the host may set is left out", place);
                return Ok(None);
            }
            _ if name.starts_with(b"security.") => {
                remarks.add("an attribute of another security module is left out", place);
                return Ok(None);
            }
            _ => name.to_vec(),
        };
        let kept = CString::new(kept).context("the name of an extended attribute")?;
        Ok(Some((kept, value)))
    }

    /// A file capability for the root of the mapping: in the namespaced form when that is not the host's root (L-22). A
    /// process in a user namespace writes the plain form, and the kernel adds the namespace's root.
    fn capability(&self, value: Vec<u8>) -> Result<Vec<u8>> {
        const REVISION: u32 = 0xff00_0000;
        const REVISION_2: u32 = 0x0200_0000;
        const REVISION_3: u32 = 0x0300_0000;
        let Ids::Mapped(maps) = &self.ids else {
            return Ok(value);
        };
        let word = |at: usize| -> Option<u32> {
            let bytes = value.get(at..at + 4)?;
            Some(u32::from_le_bytes(bytes.try_into().ok()?))
        };
        let (root, length) = match word(0).map(|magic| magic & REVISION) {
            Some(REVISION_2) => (Some(0), 20),
            Some(REVISION_3) => (word(20), 24),
            _ => (None, 0),
        };
        let (Some(root), Some(magic)) = (root, word(0)) else {
            bail!("security.capability: not of a known revision");
        };
        if value.len() != length {
            bail!("security.capability: {} bytes long", value.len());
        }
        let Some(root) = idmap::to_host(&maps.uids, root) else {
            bail!("security.capability: uid {root} has no mapping");
        };
        if root == 0 {
            return Ok(value);
        }
        let mut made = value;
        made.truncate(20);
        made[..4].copy_from_slice(&(magic & !REVISION | REVISION_3).to_le_bytes());
        made.extend_from_slice(&root.to_le_bytes());
        Ok(made)
    }

    /// An access control list with the host's ids (linux/posix_acl_xattr.h).
    fn acl(&self, mut value: Vec<u8>) -> Result<Vec<u8>> {
        const USER: u16 = 0x02;
        const GROUP: u16 = 0x08;
        let Ids::Mapped(_) = &self.ids else {
            return Ok(value);
        };
        if value.len() < 4 || !(value.len() - 4).is_multiple_of(8) {
            bail!("an access control list of {} bytes", value.len());
        }
        for line in value[4..].chunks_exact_mut(8) {
            let tag = u16::from_le_bytes([line[0], line[1]]);
            let id = u32::from_le_bytes([line[4], line[5], line[6], line[7]]);
            let host = match tag {
                USER => self.owner(id, 0)?.0,
                GROUP => self.owner(0, id)?.1,
                _ => continue,
            };
            line[4..].copy_from_slice(&host.to_le_bytes());
        }
        Ok(value)
    }

    /// The extended attributes of a file of a lower layer, for a copy of it.
    pub(super) fn inherited_xattrs(
        &self,
        file: BorrowedFd,
    ) -> nix::Result<Vec<(CString, Vec<u8>)>> {
        let names = match attribute::list(file) {
            Err(nix::errno::Errno::EOPNOTSUPP) => Vec::new(),
            names => names?,
        };
        names
            .into_iter()
            .filter(|name| {
                !self.is_own_mark(name.to_bytes()) && name.as_c_str() != c"security.selinux"
            })
            .map(|name| attribute::get(file, &name).map(|value| (name, value)))
            .collect()
    }
}

/// The message `Resource { uint32 uid = 1; uint32 gid = 2; }` of rootlesscontainers, in protobuf's encoding; a zero is left
/// out.
fn owner_record(uid: u32, gid: u32) -> Vec<u8> {
    let mut record = Vec::new();
    for (tag, id) in [(0x08, uid), (0x10, gid)] {
        if id == 0 {
            continue;
        }
        record.push(tag);
        let mut rest = id;
        while rest >= 0x80 {
            record.push((rest & 0x7f) as u8 | 0x80);
            rest >>= 7;
        }
        record.push((rest & 0x7f) as u8);
    }
    record
}

/// A time as the kernel takes it, within the years that have four digits.
pub(super) fn timespec(time: Time) -> TimeSpec {
    let seconds = time.seconds.clamp(FIRST_SECOND, LAST_SECOND);
    let nanos = if seconds == time.seconds {
        time.nanos
    } else {
        0
    };
    TimeSpec::new(seconds, i64::from(nanos))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped() -> Rules {
        let range = |container, host, length| Range {
            container,
            host,
            length,
        };
        Rules::new(
            Form::Flat,
            Ids::Mapped(idmap::Maps {
                uids: vec![range(0, 100_000, 1000)],
                gids: vec![range(0, 200_000, 1000)],
            }),
        )
    }

    #[test]
    fn an_owner_is_kept_as_umoci_keeps_it() {
        for (uid, gid, record) in [
            (1, 2, &b"\x08\x01\x10\x02"[..]),
            (0, 300, b"\x10\xac\x02"),
            (65534, 0, b"\x08\xfe\xff\x03"),
        ] {
            assert_eq!(owner_record(uid, gid), record, "{uid}:{gid}");
        }
    }

    #[test]
    fn a_capability_is_bound_to_the_root_of_the_mapping() {
        let mut plain = vec![1, 0, 0, 2];
        plain.extend_from_slice(&[7; 16]);
        let made = mapped().capability(plain.clone()).unwrap();
        assert_eq!(made[..4], [1, 0, 0, 3]);
        assert_eq!(made[4..20], [7; 16]);
        assert_eq!(made[20..], 100_000u32.to_le_bytes());
        let unmapped = Rules::new(Form::Flat, Ids::AsStored);
        assert_eq!(unmapped.capability(plain.clone()).unwrap(), plain);
        plain.pop();
        assert!(mapped().capability(plain).is_err());
    }

    #[test]
    fn ids_in_access_control_lists_are_mapped() {
        let line = |tag: u16, id: u32| {
            let mut line = tag.to_le_bytes().to_vec();
            line.extend_from_slice(&[7, 0]);
            line.extend_from_slice(&id.to_le_bytes());
            line
        };
        let list = |user: u32, group: u32| {
            [
                vec![2, 0, 0, 0],
                line(1, u32::MAX),
                line(2, user),
                line(8, group),
            ]
            .concat()
        };
        assert_eq!(mapped().acl(list(5, 6)).unwrap(), list(100_005, 200_006));
        assert!(mapped().acl(list(5000, 6)).is_err());
    }

    #[test]
    fn attributes_that_forge_overlay_marks_are_escaped_or_left_out() {
        let entry = Entry::default();
        let set = |form: Form, name: &str| {
            let attribute = Attribute {
                name: name.into(),
                value: b"y".to_vec(),
            };
            let rules = Rules::new(form, Ids::AsStored);
            let kept = rules.xattr(&entry, &attribute, &mut Remarks::default());
            kept.unwrap().map(|(name, _)| name.into_string().unwrap())
        };
        for (form, name, kept) in [
            (
                Form::User,
                "user.overlay.opaque",
                Some("user.overlay.overlay.opaque"),
            ),
            (Form::User, "user.x", Some("user.x")),
            (
                Form::Trusted,
                "user.overlay.opaque",
                Some("user.overlay.opaque"),
            ),
            (Form::Trusted, "trusted.overlay.opaque", None),
            (Form::Flat, "trusted.overlay.redirect", None),
            (Form::Flat, "security.selinux", None),
            (
                Form::Flat,
                "security.capability",
                Some("security.capability"),
            ),
            (Form::Flat, "security.evm", None),
        ] {
            assert_eq!(set(form, name).as_deref(), kept, "{form:?} {name}");
        }
    }
}
