//! Compiled seccomp filters kept on disk: compiling a large profile costs more than all mounts of a container, reading
//! the result back costs almost nothing.
//!
//! One file for each filter, named by its key, in a directory only its owner can enter. A file is believed when it is
//! ours, nobody else can write it, and it says that it holds this very key; anything else is compiled again and
//! replaced. Nothing that goes wrong with the cache stops a start.
//!
//! A file is [`MAGIC`], the key, the length and the checksum of the program (8 bytes each, native order), the program.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Result;
use nix::unistd::geteuid;
use oci_spec::runtime::LinuxSeccomp;

use crate::plan::seccomp::{self, Filter};
use crate::sys::filter::{INSTRUCTION_SIZE, MAX_INSTRUCTIONS};

const MAGIC: &[u8; 8] = b"pelasec1";
const KEY_SIZE: usize = 64;
const HEADER_SIZE: usize = MAGIC.len() + KEY_SIZE + 8 + 8;

/// Files kept. A host runs few different profiles; the oldest files go first.
const ENTRIES: usize = 128;

/// The filter for this profile: from the cache in `dir` (made when missing, with its parents, mode 0700), else compiled
/// and stored there. Fails only where [`seccomp::compile`] does.
pub(crate) fn filter(profile: &LinuxSeccomp, dir: &Path) -> Result<Filter> {
    let flags = seccomp::flags(profile);
    let key = seccomp::key(profile);
    if let Some(bpf) = read(&dir.join(&key), &key) {
        return Ok(Filter { bpf, flags });
    }
    let bpf = seccomp::compile(profile)?;
    // A cache that cannot be written costs time at the next start and nothing else.
    if store(dir, &key, &bpf).is_ok() {
        prune(dir);
    }
    Ok(Filter { bpf, flags })
}

/// The program in this file, if the file can be believed.
fn read(path: &Path, key: &str) -> Option<Vec<u8>> {
    let mut file = OpenOptions::new()
        .read(true)
        // Neither follow a link nor wait at a fifo that somebody put here.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .ok()?;
    let meta = file.metadata().ok()?;
    let size = usize::try_from(meta.len()).ok()?;
    let programs =
        HEADER_SIZE + INSTRUCTION_SIZE..=HEADER_SIZE + MAX_INSTRUCTIONS * INSTRUCTION_SIZE;
    if !meta.is_file() || !private(&meta) || !programs.contains(&size) {
        return None;
    }
    let mut bytes = vec![0; size];
    file.read_exact(&mut bytes).ok()?;
    let bpf = bytes.split_off(HEADER_SIZE);
    (bpf.len().is_multiple_of(INSTRUCTION_SIZE) && bytes == header(key, &bpf)).then_some(bpf)
}

/// Put the program into `dir` under its key, whole or not at all.
fn store(dir: &Path, key: &str, bpf: &[u8]) -> std::io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = fs::symlink_metadata(dir)?;
    if !meta.is_dir() || !private(&meta) {
        return Err(std::io::ErrorKind::PermissionDenied.into());
    }
    // Made with mode 0600 and removed again unless it gets its name. Not synced: a file torn by a power cut is found by
    // its checksum.
    let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(dir)?;
    file.write_all(&header(key, bpf))?;
    file.write_all(bpf)?;
    let _: File = file.persist(dir.join(key))?;
    Ok(())
}

/// Remove the oldest files beyond [`ENTRIES`], among them what killed writers left behind.
fn prune(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    let entries: Vec<_> = entries.flatten().collect();
    let Some(excess @ 1..) = entries.len().checked_sub(ENTRIES) else {
        return;
    };
    let mut aged: Vec<_> = entries
        .iter()
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    aged.sort();
    for (_, path) in aged.iter().take(excess) {
        // Another start may have removed it first, and one that stays does no harm.
        drop(fs::remove_file(path));
    }
}

/// Whether this belongs to us and nobody else can write it.
fn private(meta: &fs::Metadata) -> bool {
    meta.uid() == geteuid().as_raw() && meta.mode() & 0o022 == 0
}

fn header(key: &str, bpf: &[u8]) -> Vec<u8> {
    let mut header = Vec::with_capacity(HEADER_SIZE);
    header.extend(MAGIC);
    header.extend(key.as_bytes());
    header.extend((bpf.len() as u64).to_ne_bytes());
    header.extend(checksum(bpf).to_ne_bytes());
    header
}

/// FNV-1a over the instructions. Against accidents, not against forgers: those cannot write here.
fn checksum(bpf: &[u8]) -> u64 {
    let (instructions, _) = bpf.as_chunks();
    instructions
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, instruction| {
            (sum ^ u64::from_ne_bytes(*instruction)).wrapping_mul(0x0000_0100_0000_01b3)
        })
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    use oci_spec::runtime::{LinuxSeccompAction, LinuxSeccompBuilder};
    use tempfile::TempDir;

    use super::*;

    fn profile(errno: u32) -> LinuxSeccomp {
        let builder = LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActErrno)
            .default_errno_ret(errno);
        builder.build().unwrap()
    }

    /// A cache with the filter of `profile(1)` in it, and where that lies.
    fn filled() -> (TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join(".cache/seccomp");
        filter(&profile(1), &dir).unwrap();
        let entry = dir.join(seccomp::key(&profile(1)));
        (temp, entry)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_miss_stores_what_a_hit_returns() {
        let (_temp, entry) = filled();
        let stored = fs::read(&entry).unwrap();
        assert_eq!(mode(&entry), 0o600);
        assert_eq!(mode(entry.parent().unwrap()), 0o700);
        assert_eq!(mode(entry.parent().unwrap().parent().unwrap()), 0o700);
        let compiled = seccomp::compile(&profile(1)).unwrap();
        assert_eq!(stored[HEADER_SIZE..], compiled);
        assert_eq!(fs::read_dir(entry.parent().unwrap()).unwrap().count(), 1);

        // A file that says something else shows that the second call reads it.
        let key = seccomp::key(&profile(1));
        let other = seccomp::compile(&profile(2)).unwrap();
        fs::write(&entry, [header(&key, &other), other.clone()].concat()).unwrap();
        let hit = filter(&profile(1), entry.parent().unwrap()).unwrap();
        assert_eq!(
            hit,
            Filter {
                bpf: other,
                flags: 4
            }
        );
    }

    #[test]
    fn what_cannot_be_believed_is_replaced() {
        let key = seccomp::key(&profile(1));
        let other = seccomp::compile(&profile(2)).unwrap();
        let (_temp, entry) = filled();
        let good = fs::read(&entry).unwrap();
        let forged = [header(&key, &other), other.clone()].concat();
        let changed = |at: usize| {
            let mut bytes = forged.clone();
            bytes[at] ^= 1;
            bytes
        };
        let cases: [(&str, Vec<u8>, u32); 10] = [
            ("writable by the group", forged.clone(), 0o620),
            ("writable by all", forged.clone(), 0o602),
            ("empty", vec![], 0o600),
            ("without a program", forged[..HEADER_SIZE].to_vec(), 0o600),
            ("torn", forged[..forged.len() - 8].to_vec(), 0o600),
            (
                "not whole instructions",
                forged[..forged.len() - 1].to_vec(),
                0o600,
            ),
            (
                "longer than the kernel takes",
                [&forged[..], &[0; 32768]].concat(),
                0o600,
            ),
            ("of another format", changed(0), 0o600),
            ("of another key", changed(8), 0o600),
            ("with a changed program", changed(forged.len() - 1), 0o600),
        ];
        for (what, bytes, bits) in cases {
            fs::write(&entry, bytes).unwrap();
            fs::set_permissions(&entry, Permissions::from_mode(bits)).unwrap();
            let found = filter(&profile(1), entry.parent().unwrap()).unwrap();
            assert_eq!(found.bpf, good[HEADER_SIZE..], "{what}");
            assert_eq!(fs::read(&entry).unwrap(), good, "{what}");
            assert_eq!(mode(&entry), 0o600, "{what}");
        }
    }

    #[test]
    fn links_and_fifos_are_not_followed() {
        let (temp, entry) = filled();
        let good = fs::read(&entry).unwrap();
        let aside = temp.path().join("aside");
        fs::rename(&entry, &aside).unwrap();
        symlink(&aside, &entry).unwrap();
        assert_eq!(read(&entry, &seccomp::key(&profile(1))), None);
        filter(&profile(1), entry.parent().unwrap()).unwrap();
        assert!(fs::symlink_metadata(&entry).unwrap().is_file());

        fs::remove_file(&entry).unwrap();
        nix::unistd::mkfifo(&entry, nix::sys::stat::Mode::S_IRWXU).unwrap();
        filter(&profile(1), entry.parent().unwrap()).unwrap();
        assert_eq!(fs::read(&entry).unwrap(), good);
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a skipped test says why")]
    fn a_file_of_somebody_else_is_not_believed() {
        let (_temp, entry) = filled();
        if !geteuid().is_root() {
            eprintln!("skipped: only root can give a file away");
            return;
        }
        std::os::unix::fs::chown(&entry, Some(12345), None).unwrap();
        assert_eq!(read(&entry, &seccomp::key(&profile(1))), None);
    }

    #[test]
    fn a_cache_that_cannot_be_written_fails_no_start() {
        let compiled = seccomp::compile(&profile(1)).unwrap();
        let temp = tempfile::tempdir().unwrap();
        let file = temp.path().join("file");
        fs::write(&file, "").unwrap();
        let open = temp.path().join("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, Permissions::from_mode(0o777)).unwrap();
        for dir in [
            &file,
            &file.join("below"),
            &open,
            Path::new("/proc/self/nowhere"),
        ] {
            assert_eq!(
                filter(&profile(1), dir).unwrap().bpf,
                compiled,
                "{}",
                dir.display()
            );
        }
        assert_eq!(fs::read_dir(&open).unwrap().count(), 0);
    }

    #[test]
    fn the_oldest_files_beyond_the_bound_go() {
        let (_temp, entry) = filled();
        let dir = entry.parent().unwrap();
        let age = |path: &Path, seconds: u64| {
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            File::options()
                .write(true)
                .open(path)
                .unwrap()
                .set_modified(time)
                .unwrap();
        };
        age(&entry, 500);
        for n in 0..ENTRIES as u64 {
            let path = dir.join(format!("{n}"));
            fs::write(&path, "").unwrap();
            age(&path, 1000 + n);
        }
        filter(&profile(2), dir).unwrap();
        assert_eq!(fs::read_dir(dir).unwrap().count(), ENTRIES);
        assert!(!entry.exists());
        assert!(!dir.join("0").exists());
        assert!(dir.join("1").exists());
        assert!(dir.join(seccomp::key(&profile(2))).exists());
    }

    #[test]
    fn a_profile_that_cannot_be_compiled_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("cache");
        filter(&profile(5000), &dir).unwrap_err();
        assert!(!dir.exists());
    }
}
