//! A layer's tar stream, written header by header, so that a test can write what no tool would.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use tar::{EntryType, Header};

/// A tar stream in the making. Paths are written as they are given: absolute, with `..`, with a trailing slash.
///
/// A name or link that does not fit into its header goes into a PAX record, as do the attributes told for the next entry.
#[derive(Clone)]
pub(crate) struct LayerBuilder {
    bytes: Vec<u8>,
    owner: (u64, u64),
    mtime: u64,
    pax: Vec<(String, Vec<u8>)>,
    ended: bool,
}

impl LayerBuilder {
    pub(crate) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            owner: (0, 0),
            mtime: 1_600_000_000,
            pax: Vec::new(),
            ended: false,
        }
    }

    /// Owner of the entries that follow; 0:0 unless told.
    pub(crate) fn owner(&mut self, uid: u64, gid: u64) -> &mut Self {
        self.owner = (uid, gid);
        self
    }

    /// Modification time in seconds of the entries that follow; 1600000000 unless told.
    pub(crate) fn mtime(&mut self, seconds: u64) -> &mut Self {
        self.mtime = seconds;
        self
    }

    /// A PAX record for the next entry: `mtime`, `path`, `size`, `SCHILY.xattr.user.x`, anything.
    pub(crate) fn pax(&mut self, key: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }

    /// An extended attribute for the next entry.
    pub(crate) fn xattr(&mut self, name: &str, value: impl AsRef<[u8]>) -> &mut Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    pub(crate) fn dir(&mut self, path: impl AsRef<Path>, mode: u32) -> &mut Self {
        self.entry(EntryType::Directory, path, mode, "", &[])
    }

    pub(crate) fn file(
        &mut self,
        path: impl AsRef<Path>,
        content: impl AsRef<[u8]>,
        mode: u32,
    ) -> &mut Self {
        self.entry(EntryType::Regular, path, mode, "", content.as_ref())
    }

    pub(crate) fn symlink(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> &mut Self {
        self.entry(EntryType::Symlink, path, 0o777, target, &[])
    }

    /// A hard link to `target`, a path in the image.
    pub(crate) fn hardlink(
        &mut self,
        path: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> &mut Self {
        self.entry(EntryType::Link, path, 0o644, target, &[])
    }

    pub(crate) fn fifo(&mut self, path: impl AsRef<Path>, mode: u32) -> &mut Self {
        self.entry(EntryType::Fifo, path, mode, "", &[])
    }

    pub(crate) fn char_device(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> &mut Self {
        self.device(EntryType::Char, path.as_ref(), mode, major, minor)
    }

    pub(crate) fn block_device(
        &mut self,
        path: impl AsRef<Path>,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> &mut Self {
        self.device(EntryType::Block, path.as_ref(), mode, major, minor)
    }

    /// `.wh.NAME` beside where NAME is: it hides `path` of the layers below.
    pub(crate) fn whiteout(&mut self, path: impl AsRef<Path>) -> &mut Self {
        let path = path.as_ref();
        let name = path.file_name().expect("a name to hide");
        let mut mark = std::ffi::OsString::from(".wh.");
        mark.push(name);
        self.file(path.with_file_name(mark), b"", 0o644)
    }

    /// `.wh..wh..opq` in `dir`: it hides what the layers below have there.
    pub(crate) fn opaque(&mut self, dir: impl AsRef<Path>) -> &mut Self {
        self.file(dir.as_ref().join(".wh..wh..opq"), b"", 0o644)
    }

    /// The machine's static busybox as `bin/busybox`, with `bin/sh` and a few other names that lead to it.
    pub(crate) fn busybox(&mut self) -> &mut Self {
        let program = std::fs::read("/bin/busybox").expect("busybox-static");
        self.dir("bin", 0o755).file("bin/busybox", program, 0o755);
        for name in [
            "sh", "cat", "echo", "env", "false", "id", "ls", "mount", "pwd", "sleep", "stat",
            "touch", "true", "head", "readlink", "grep", "test", "wc",
        ] {
            self.symlink(format!("bin/{name}"), "busybox");
        }
        self
    }

    /// One entry of any type. The header is GNU's where the type is, and POSIX ustar otherwise.
    pub(crate) fn entry(
        &mut self,
        kind: EntryType,
        path: impl AsRef<Path>,
        mode: u32,
        link: impl AsRef<Path>,
        content: &[u8],
    ) -> &mut Self {
        let header = self.header(
            kind,
            path.as_ref(),
            mode,
            link.as_ref(),
            content.len() as u64,
        );
        self.flush_pax();
        self.raw_entry(header, content)
    }

    /// A header made elsewhere, its checksum set here, and the content padded to whole blocks. The header's size need not
    /// be that of the content.
    pub(crate) fn raw_entry(&mut self, mut header: Header, content: &[u8]) -> &mut Self {
        header.set_cksum();
        self.flush_pax();
        self.raw_bytes(header.as_bytes()).padded(content)
    }

    /// Bytes put into the stream as they are.
    pub(crate) fn raw_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A PAX global header (type `g`).
    pub(crate) fn pax_global(&mut self, records: &BTreeMap<&str, &str>) -> &mut Self {
        let records: Vec<_> = records
            .iter()
            .map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()))
            .collect();
        self.extended(EntryType::XGlobalHeader, &records)
    }

    /// End without the two zero blocks that end an archive.
    pub(crate) fn without_end(&mut self) -> &mut Self {
        self.ended = true;
        self
    }

    /// End here with the two zero blocks; what is added later stands after the end.
    pub(crate) fn end(&mut self) -> &mut Self {
        self.ended = true;
        self.raw_bytes(&[0; 1024])
    }

    /// The stream.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if !self.ended {
            bytes.extend_from_slice(&[0; 1024]);
        }
        bytes
    }

    /// A ustar header with this builder's owner and mtime. What does not fit is remembered for a PAX header.
    pub(crate) fn header(
        &mut self,
        kind: EntryType,
        path: &Path,
        mode: u32,
        link: &Path,
        size: u64,
    ) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_mtime(self.mtime);
        header.set_size(size);
        const LARGEST_OCTAL: u64 = 0o7_777_777;
        for (key, id) in [("uid", self.owner.0), ("gid", self.owner.1)] {
            if id > LARGEST_OCTAL {
                self.pax(key, id.to_string());
            }
        }
        header.set_uid(self.owner.0.min(LARGEST_OCTAL));
        header.set_gid(self.owner.1.min(LARGEST_OCTAL));
        let fields = header.as_ustar_mut().expect("ustar");
        let (path, link) = (path.as_os_str().as_bytes(), link.as_os_str().as_bytes());
        for (key, value, field) in [
            ("path", path, &mut fields.name),
            ("linkpath", link, &mut fields.linkname),
        ] {
            let fits = value.len().min(field.len());
            field[..fits].copy_from_slice(&value[..fits]);
            if fits < value.len() {
                self.pax.push((key.to_owned(), value.to_vec()));
            }
        }
        header
    }

    fn device(
        &mut self,
        kind: EntryType,
        path: &Path,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> &mut Self {
        let mut header = self.header(kind, path, mode, Path::new(""), 0);
        header.set_device_major(major).expect("major");
        header.set_device_minor(minor).expect("minor");
        self.flush_pax();
        self.raw_entry(header, &[])
    }

    fn flush_pax(&mut self) {
        let records = std::mem::take(&mut self.pax);
        if !records.is_empty() {
            self.extended(EntryType::XHeader, &records);
        }
    }

    fn extended(&mut self, kind: EntryType, records: &[(String, Vec<u8>)]) -> &mut Self {
        let mut text = Vec::new();
        for (key, value) in records {
            // LENGTH " " KEY "=" VALUE "\n", where LENGTH counts itself.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            text.extend_from_slice(format!("{length} {key}=").as_bytes());
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(text.len() as u64);
        header.as_ustar_mut().expect("ustar").name[..8].copy_from_slice(b"PaxHdr/x");
        header.set_cksum();
        self.raw_bytes(header.as_bytes()).padded(&text)
    }

    fn padded(&mut self, content: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(content);
        let whole = self.bytes.len().next_multiple_of(512);
        self.bytes.resize(whole, 0);
        self
    }
}
