//! The overlay that a bundle's root filesystem can be: shared layers below, a directory of its own above.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

use crate::report::debug;
use crate::sys::mount::{Parameter, attach, new_filesystem, unescape};

use super::super::store::LayerForm;

/// What is mounted.
pub(super) struct Overlay<'o> {
    /// The layers' trees, base first; at least one.
    pub(super) lower: &'o [PathBuf],
    pub(super) upper: &'o Path,
    pub(super) work: &'o Path,
    pub(super) form: LayerForm,
    /// What is written need not outlive the mount: nothing of it is synced (Linux 5.10).
    pub(super) volatile: bool,
}

/// The longest value that fsconfig(2) takes, without its end.
const LONGEST_VALUE: usize = 255;
/// The longest option string of mount(2): a page with its end.
const LONGEST_OPTIONS: usize = 4095;
/// As many layers as overlayfs stacks (`OVL_MAX_STACK`).
const MOST_LAYERS: usize = 500;

/// A directory as an option can name it. Under its own path where that is possible, so that /proc/self/mountinfo tells
/// prune and people what is mounted; otherwise through a descriptor.
struct Named {
    text: CString,
    _open: Option<OwnedFd>,
}

impl Named {
    fn plain(path: &Path) -> Option<Self> {
        let bytes = path.as_os_str().as_bytes();
        // Characters that mean something in options of overlayfs or in the string of mount(2).
        let special = |byte: &u8| matches!(byte, b',' | b':' | b'\\' | b'=' | b'"');
        if bytes.len() > LONGEST_VALUE || bytes.iter().any(special) {
            return None;
        }
        let text = CString::new(bytes).ok()?;
        Some(Self { text, _open: None })
    }

    fn by_descriptor(path: &Path) -> Result<Self> {
        let context = || format!("open {}", path.display());
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(path, flags, Mode::empty()).with_context(context)?;
        let text = CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        Ok(Self {
            text,
            _open: Some(fd),
        })
    }

    fn new(path: &Path) -> Result<Self> {
        Self::plain(path).map_or_else(|| Self::by_descriptor(path), Ok)
    }
}

impl Overlay<'_> {
    /// Mount it on the directory behind `target`.
    ///
    /// # Errors
    /// What the kernel has to say. [`is_impossible`] tells whether another form of root filesystem could do.
    pub(super) fn mount(&self, target: BorrowedFd) -> Result<()> {
        if self.lower.len() > MOST_LAYERS {
            bail!(
                "{} layers are more than the {MOST_LAYERS} of an overlay",
                self.lower.len()
            );
        }
        match self.new_mount() {
            Ok(mounted) => attach(mounted.as_fd(), target).context("mount the overlay"),
            // KERNEL(6.5): without `lowerdir+` the layers go into one string.
            Err(Refused {
                errno: Errno::EINVAL,
                said,
            }) => {
                debug!("overlay by fsconfig: {said}; now by mount");
                self.mount_by_string(target)
            }
            Err(Refused { errno, said }) if said.is_empty() => {
                Err(errno).context("mount the overlay")
            }
            Err(Refused { errno, said }) => {
                Err(errno).with_context(|| format!("mount the overlay: {said}"))
            }
        }
    }

    /// Detached, one parameter a layer.
    fn new_mount(&self) -> Result<OwnedFd, Refused> {
        let mut names = Vec::new();
        let mut parameters = Vec::new();
        let mut named = |key: &CStr, path: &Path| -> Result<(), Refused> {
            let name = Named::new(path).map_err(|error| Refused {
                errno: Errno::ENOENT,
                said: format!("{error:#}"),
            })?;
            parameters.push(Parameter {
                key: key.to_owned(),
                value: Some(name.text.clone()),
            });
            names.push(name);
            Ok(())
        };
        for layer in self.lower.iter().rev() {
            named(c"lowerdir+", layer)?;
        }
        named(c"upperdir", self.upper)?;
        named(c"workdir", self.work)?;
        for flag in self.flags() {
            parameters.push(Parameter {
                key: flag.to_owned(),
                value: None,
            });
        }
        let source = Parameter {
            key: c"source".to_owned(),
            value: Some(c"overlay".to_owned()),
        };
        new_filesystem(c"overlay", parameters.iter().chain([&source]), 0)
            .map_err(|(errno, said)| Refused { errno, said })
    }

    fn flags(&self) -> impl Iterator<Item = &'static CStr> {
        let volatile = self.volatile.then_some(c"volatile");
        let userxattr = (self.form == LayerForm::User).then_some(c"userxattr");
        volatile.into_iter().chain(userxattr)
    }

    /// By mount(2), for Linux before 6.5: all layers in one string of a page, through short names if need be.
    fn mount_by_string(&self, target: BorrowedFd) -> Result<()> {
        let paths: Vec<&Path> = self.lower.iter().rev().map(PathBuf::as_path).collect();
        let plain: Option<Vec<Named>> = paths.iter().map(|path| Named::plain(path)).collect();
        let ends = [Named::new(self.upper)?, Named::new(self.work)?];
        let mut lower = plain.unwrap_or_default();
        let mut options = self.string(&lower, &ends);
        if lower.is_empty() || options.len() > LONGEST_OPTIONS {
            lower = paths
                .into_iter()
                .map(Named::by_descriptor)
                .collect::<Result<_>>()?;
            options = self.string(&lower, &ends);
        }
        if options.len() > LONGEST_OPTIONS {
            bail!(
                "{} layers do not fit into one mount before Linux 6.5",
                self.lower.len()
            );
        }
        let place = format!("/proc/self/fd/{}", target.as_raw_fd());
        mount(
            Some("overlay"),
            place.as_str(),
            Some("overlay"),
            MsFlags::empty(),
            Some(OsStr::from_bytes(&options)),
        )
        .context("mount the overlay")
    }

    fn string(&self, lower: &[Named], [upper, work]: &[Named; 2]) -> Vec<u8> {
        let layers: Vec<&[u8]> = lower.iter().map(|name| name.text.to_bytes()).collect();
        let mut options = [
            b"lowerdir=".as_slice(),
            &layers.join(&b':'),
            b",upperdir=",
            upper.text.to_bytes(),
            b",workdir=",
            work.text.to_bytes(),
        ]
        .concat();
        for flag in self.flags() {
            options.push(b',');
            options.extend(flag.to_bytes());
        }
        options
    }
}

/// The kernel's no, with what the file system said of it.
struct Refused {
    errno: Errno,
    said: String,
}

/// Whether `error` says that overlays cannot be had here at all: not known, not allowed, or not on this file system.
pub(super) fn is_impossible(error: &anyhow::Error) -> bool {
    matches!(
        error
            .downcast_ref::<Errno>()
            .or_else(|| error.root_cause().downcast_ref()),
        Some(Errno::ENODEV | Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS)
    )
}

/// Take every mount away that lies on `path`, which is in a bundle. Busy ones are detached.
pub(super) fn unmount(path: &Path) -> Result<()> {
    loop {
        let flags = MntFlags::UMOUNT_NOFOLLOW;
        match umount2(path, flags) {
            Ok(()) => {}
            Err(Errno::EBUSY) => match umount2(path, flags | MntFlags::MNT_DETACH) {
                Ok(()) => {}
                Err(errno) => {
                    return Err(errno).with_context(|| format!("unmount {}", path.display()));
                }
            },
            // Nothing is mounted there, or nothing is there.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            // An ordinary user outside of its namespace sees no mount of its own.
            Err(Errno::EPERM) if !is_mounted(path)? => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("unmount {}", path.display())),
        }
    }
}

/// Whether a mount of this namespace lies exactly there (proc_pid_mountinfo(5)).
pub(super) fn is_mounted(path: &Path) -> Result<bool> {
    let table = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(mount_points(&table).any(|point| point == path.as_os_str().as_bytes()))
}

/// The fifth field of each line, its escapes undone.
fn mount_points(table: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    table
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_string_has_the_topmost_layer_first() {
        let overlay = Overlay {
            lower: &["/s/base".into(), "/s/top".into()],
            upper: Path::new("/b/upper"),
            work: Path::new("/b/work"),
            form: LayerForm::User,
            volatile: true,
        };
        let lower = ["/s/top", "/s/base"].map(|path| Named::plain(Path::new(path)).unwrap());
        let ends = ["/b/upper", "/b/work"].map(|path| Named::plain(Path::new(path)).unwrap());
        assert_eq!(
            String::from_utf8(overlay.string(&lower, &ends)).unwrap(),
            "lowerdir=/s/top:/s/base,upperdir=/b/upper,workdir=/b/work,volatile,userxattr"
        );
    }

    #[test]
    fn a_path_that_options_cannot_hold_goes_by_descriptor() {
        for path in ["/a,b", "/a:b", "/a\\b"] {
            assert!(Named::plain(Path::new(path)).is_none(), "{path}");
        }
        let long = format!("/{}", "x".repeat(LONGEST_VALUE));
        assert!(Named::plain(Path::new(&long)).is_none());
        let name = Named::by_descriptor(Path::new("/")).unwrap();
        assert!(name.text.to_string_lossy().starts_with("/proc/self/fd/"));
    }

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table = b"22 1 8:1 / / rw - ext4 /dev/a rw\n23 22 0:5 / /a\\040b\\134c rw shared:1 - tmpfs t rw\n";
        let points: Vec<_> = mount_points(table).collect();
        assert_eq!(points, [b"/".to_vec(), b"/a b\\c".to_vec()]);
    }

    /// A private mount namespace in a child process is what the black-box tests have; here only the words are checked.
    #[test]
    fn refusals_that_another_form_can_cure_are_told_from_others() {
        let error = |errno: Errno| anyhow::Error::new(errno).context("mount the overlay");
        assert!(is_impossible(&error(Errno::EPERM)));
        assert!(is_impossible(&error(Errno::EINVAL)));
        assert!(!is_impossible(&error(Errno::ENOSPC)));
        assert!(!is_impossible(&anyhow::anyhow!("no")));
    }
}
