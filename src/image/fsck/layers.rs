//! Layer trees against the listings that were written when they were made.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat};

use crate::report::sentence;
use crate::sys::path::{file_type, open_beneath, open_no_links};

use super::super::digest::{Algorithm, Digest};
use super::super::progress::Progress;
use super::super::store::{self, LayerRecord, Lease, Store, entries};
use super::super::unpack::listing::{self, Check, Line};
use super::super::userns;
use super::{Fault, Findings, Kind, parallel};

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_CLOEXEC);

/// Differences that are told of one layer.
const MOST_TOLD: usize = 3;

/// What a comparison found.
#[derive(Default)]
struct Compared {
    paths: u64,
    differences: u64,
    /// The first of them.
    told: Vec<String>,
}

impl Compared {
    fn differs(&mut self, path: &[u8], what: &str) {
        self.differences += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push(format!("{}: {what}", path.escape_ascii()));
        }
    }
}

pub(super) fn check(
    store: &Store,
    lease: &Lease,
    progress: &Progress,
    findings: &mut Findings,
) -> Result<()> {
    let records = records(store, findings)?;
    for record in &records {
        lease.hold(store::Kind::Layer, &record.chain_id.to_string())?;
    }
    let bar = progress.bar(
        "layers",
        records.iter().map(|record| record.apparent_bytes).sum(),
    );
    let compared = parallel(&records, |record| {
        let compared = compare_layer(store, record);
        bar.add(record.apparent_bytes);
        compared
    });
    drop(bar);
    for (record, compared) in records.iter().zip(compared) {
        let what = match compared {
            Ok(compared) => {
                findings.report.checked.paths += compared.paths;
                let one_owner = record.single_id && !userns::has_one_id();
                if compared.differences == 0 && !one_owner {
                    findings.report.checked.layers += 1;
                    continue;
                }
                if one_owner {
                    "all its files belong to the caller, who had no other ids when it was unpacked"
                        .to_owned()
                } else {
                    format!(
                        "{} paths are not as they were unpacked: {}",
                        compared.differences,
                        compared.told.join("; ")
                    )
                }
            }
            // A prune was quicker than our lease.
            Err(_) if matches!(store.layer_record(&record.chain_id), Ok(None)) => continue,
            Err(error) => sentence(&error),
        };
        findings.report.checked.layers += 1;
        findings.broken.push(record.clone());
        let mut fault = Fault::new(
            Kind::Layer,
            &record.chain_id,
            what,
            "`fsck --repair` unpacks it again",
        );
        fault.images = findings.images(&record.blob);
        findings.fault(fault);
    }
    without_record(store, &records, findings)
}

/// The records of layers, one by one, so that a bad one does not hide the others.
fn records(store: &Store, findings: &mut Findings) -> Result<Vec<LayerRecord>> {
    let mut records = Vec::new();
    for name in entries(store.subdirectory("records/layers")?.as_fd())? {
        let name = name.to_string_lossy();
        let (hex, ending) = name.rsplit_once('.').unwrap_or((&name, ""));
        let chain: Option<Digest> = format!("{}:{hex}", Algorithm::Sha256.name()).parse().ok();
        match (chain, ending) {
            (Some(chain), "json") => match store.layer_record(&chain) {
                Ok(record) => records.extend(record),
                Err(error) => findings.fault(Fault::new(
                    Kind::Record,
                    format!("records/layers/{name}"),
                    sentence(&error),
                    "remove the file: the layer is unpacked again when it is needed",
                )),
            },
            (Some(chain), "list") => {
                if matches!(store.layer_record(&chain), Ok(None)) {
                    findings.remark(format!(
                        "records/layers/{name}: a listing without a record, as a killed command leaves it"
                    ));
                }
            }
            _ => findings.fault(Fault::new(
                Kind::Record,
                format!("records/layers/{name}"),
                "not a record",
                "look what it is and move it away: prune stops at it",
            )),
        }
    }
    Ok(records)
}

fn without_record(store: &Store, records: &[LayerRecord], findings: &mut Findings) -> Result<()> {
    for name in entries(store.subdirectory("layers")?.as_fd())? {
        let name = name.to_string_lossy();
        if !records.iter().any(|record| record.chain_id.hex() == name) {
            findings.remark(format!(
                "layers/{name}: a tree without a record, as a killed command leaves it; prune removes it"
            ));
        }
    }
    Ok(())
}

/// Compare a layer's tree with its listing.
fn compare_layer(store: &Store, record: &LayerRecord) -> Result<Compared> {
    let hex = record.chain_id.hex();
    let list = format!("records/layers/{hex}.list");
    let file = open_no_links(
        store.dir(),
        Path::new(&list),
        OFlag::O_RDONLY | OFlag::O_NONBLOCK,
    )
    .with_context(|| format!("open {list}"))?;
    if file_type(&fstat(&file)?) != SFlag::S_IFREG {
        bail!("{list}: not a regular file");
    }
    let mut lines =
        listing::read(BufReader::new(File::from(file))).with_context(|| format!("read {list}"))?;
    let tree = store
        .subdirectory(&format!("layers/{hex}"))
        .context("it has a record and no tree")?;
    let mut compared = Compared::default();
    if let Some(line) = lines.remove(&b""[..]) {
        let stat = fstat(&tree)?;
        compared.paths += 1;
        attributes(b"/", &line, &stat, &mut compared);
    }
    walk(tree.as_fd(), b"", &mut lines, &mut compared)?;
    for path in lines.keys() {
        compared.differs(path, "is not there");
    }
    Ok(compared)
}

/// Compare what is in `dir`, which is `path`, and take the lines that were used.
fn walk(
    dir: BorrowedFd,
    path: &[u8],
    lines: &mut BTreeMap<Vec<u8>, Line>,
    compared: &mut Compared,
) -> Result<()> {
    for name in entries(dir).with_context(|| format!("read {}", path.escape_ascii()))? {
        let below = if path.is_empty() {
            name.as_bytes().to_vec()
        } else {
            [path, b"/", name.as_bytes()].concat()
        };
        let context = || format!("look at {}", below.escape_ascii());
        let stat =
            fstatat(dir, name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW).with_context(context)?;
        compared.paths += 1;
        let Some(line) = lines.remove(&below) else {
            compared.differs(&below, "is not in its listing");
            continue;
        };
        attributes(&below, &line, &stat, compared);
        match kind_of(&stat) {
            // Another size was told above.
            b'f' if line.kind == b'f' && stat.st_size.cast_unsigned() == line.size => {
                match content(dir, Path::new(&name)) {
                    Ok(check) if check == line.check => {}
                    Ok(_) => compared.differs(&below, "its content is another"),
                    Err(error) => compared.differs(&below, &sentence(&error)),
                }
            }
            b'l' if line.kind == b'l' => {
                let target = readlinkat(dir, name.as_os_str()).with_context(context)?;
                if Check::of(target.as_bytes()) != line.check {
                    compared.differs(&below, "leads elsewhere");
                }
            }
            b'd' => match open_beneath(dir, Path::new(&name), DIRECTORY) {
                Ok(child) => walk(child.as_fd(), &below, lines, compared)?,
                Err(Errno::EXDEV) => compared.differs(&below, "a file system is mounted there"),
                Err(errno) => return Err(errno).with_context(context),
            },
            _ => {}
        }
    }
    Ok(())
}

fn kind_of(stat: &FileStat) -> u8 {
    match file_type(stat) {
        SFlag::S_IFREG => b'f',
        SFlag::S_IFDIR => b'd',
        SFlag::S_IFLNK => b'l',
        SFlag::S_IFCHR if stat.st_rdev == 0 => b'w',
        SFlag::S_IFCHR => b'c',
        SFlag::S_IFBLK => b'b',
        SFlag::S_IFIFO => b'p',
        _ => b'?',
    }
}

/// Compare what stat(2) says. Of a whiteout only that it is one: nothing else of it has a meaning.
fn attributes(path: &[u8], line: &Line, stat: &FileStat, compared: &mut Compared) {
    let kind = kind_of(stat);
    let (mode, size) = (stat.st_mode & 0o7777, stat.st_size.cast_unsigned());
    let mut differs = |what: String| compared.differs(path, &what);
    if kind != line.kind {
        differs(format!(
            "is of type {}, was {}",
            char::from(kind),
            char::from(line.kind)
        ));
    } else if kind == b'w' {
    } else if kind != b'l' && mode != line.mode {
        differs(format!("has mode {mode:o}, had {:o}", line.mode));
    } else if (stat.st_uid, stat.st_gid) != (line.uid, line.gid) {
        differs(format!(
            "belongs to {}:{}, did to {}:{}",
            stat.st_uid, stat.st_gid, line.uid, line.gid
        ));
    } else if kind == b'f' && size != line.size {
        differs(format!("is {size} bytes long, was {}", line.size));
    } else if matches!(kind, b'c' | b'b') && stat.st_rdev != line.size {
        differs(format!(
            "is device {:#x}, was {:#x}",
            stat.st_rdev, line.size
        ));
    } else if (stat.st_mtime, stat.st_mtime_nsec) != line.mtime {
        differs("has another modification time".to_owned());
    }
}

fn content(dir: BorrowedFd, name: &Path) -> Result<u32> {
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOATIME;
    let file = match open_beneath(dir, name, flags) {
        // Only the owner of a file may read it without a trace.
        Err(Errno::EPERM) => open_beneath(dir, name, OFlag::O_RDONLY | OFlag::O_NONBLOCK),
        other => other,
    };
    let mut file = File::from(file.context("read it")?);
    let mut check = Check::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer).context("read it")? {
            0 => return Ok(check.value()),
            count => check.update(&buffer[..count]),
        }
    }
}
