//! Who runs in the container: `User` of the image's configuration, looked up in the image's own /etc/passwd and
//! /etc/group (image-spec conversion.md, "Config.User"; config.md, "User").
//!
//! Both files belong to the image, so they may be links, fifos or of any size. They are opened with the rootfs standing
//! for `/`, without waiting, and read up to a limit.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{SFlag, fstat};

use crate::sys::path::{file_type, open_in_root};

/// The largest /etc/passwd or /etc/group that is read, in bytes.
const LARGEST: u64 = 4 << 20;

/// The largest id (conversion.md leaves it open; the engines agree on what fits a signed 32 bit number).
// CVE-2024-40635: a number beyond it became root.
const LARGEST_ID: u32 = i32::MAX.cast_unsigned();

/// What the lookup found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Of a user that is given by name, without a group: the groups that name it, in ascending order.
    pub(super) additional: Vec<u32>,
    /// The home directory in /etc/passwd, where it is an absolute path.
    pub(super) home: Option<String>,
}

/// Look `wanted`, as it stands in `User`, up inside `root`: empty, `user`, `uid`, `user:group` or a mixture.
///
/// # Errors
/// A name that is not there, a number that is no id, or a file that is not what its name says.
pub(super) fn look_up(root: BorrowedFd, wanted: &str) -> Result<User> {
    let passwd = read(root, "etc/passwd")?;
    let group = read(root, "etc/group")?;
    resolve(wanted, &passwd, &group)
}

/// The file's text; empty where there is none. Bytes that are no UTF-8 are replaced: a line with them names nobody.
// CVE-2024-9676: a link or a fifo in place of the file reached the host, or stopped the engine.
fn read(root: BorrowedFd, name: &str) -> Result<String> {
    let context = || format!("read /{name} of the image");
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    // The type is seen through a handle first: opening a device is already an action on it.
    let handle = match open_in_root(root, Path::new(name), OFlag::O_PATH) {
        Ok(handle) => handle,
        Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(String::new()),
        Err(errno) => return Err(errno).with_context(context),
    };
    let regular = |fd: &OwnedFd| Ok::<_, Errno>(file_type(&fstat(fd)?) == SFlag::S_IFREG);
    if !regular(&handle).with_context(context)? {
        bail!("/{name} of the image is not a regular file");
    }
    let file = open_in_root(root, Path::new(name), flags).with_context(context)?;
    if !regular(&file).with_context(context)? {
        bail!("/{name} of the image is not a regular file");
    }
    let mut bytes = Vec::new();
    File::from(file)
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .with_context(context)?;
    if bytes.len() as u64 > LARGEST {
        bail!("/{name} of the image is larger than {LARGEST} bytes");
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// A half of `User`.
enum Given<'t> {
    Nothing,
    Id(u32),
    Name(&'t str),
}

/// A number is an id and never a name, whatever /etc/passwd has in it.
// CVE-2016-3697, CVE-2026-46680: a number that did not fit was looked up as a name, which the image had prepared.
fn given<'t>(text: &'t str, what: &str) -> Result<Given<'t>> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if text.is_empty() {
        return Ok(Given::Nothing);
    }
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(Given::Name(text));
    }
    match text.parse::<u32>() {
        Ok(id) if id <= LARGEST_ID && digits.len() == text.len() => Ok(Given::Id(id)),
        _ => bail!("{what} {text}: not an id between 0 and {LARGEST_ID}"),
    }
}

/// One line of /etc/passwd that can be used.
struct Account<'t> {
    name: &'t str,
    uid: u32,
    gid: u32,
    home: &'t str,
}

fn id(text: &str) -> Option<u32> {
    let all_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|id| all_digits && *id <= LARGEST_ID)
}

/// The lines of /etc/passwd (passwd(5)): name, password, uid, gid, comment, home, shell. Others are passed over.
fn accounts(passwd: &str) -> impl Iterator<Item = Account<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// The lines of /etc/group (group(5)): name, gid and members. Others are passed over.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

/// The decision, from the text of both files.
fn resolve(wanted: &str, passwd: &str, group: &str) -> Result<User> {
    let (user, of_group) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = given(user, "user")?;
    let of_group = given(of_group, "group")?;
    let account = match user {
        Given::Nothing => accounts(passwd).find(|account| account.uid == 0),
        Given::Id(uid) => accounts(passwd).find(|account| account.uid == uid),
        Given::Name(name) => {
            let found = accounts(passwd).find(|account| account.name == name);
            Some(found.with_context(|| format!("user {name:?}: not in the image's /etc/passwd"))?)
        }
    };
    let gid = match of_group {
        Given::Id(gid) => gid,
        Given::Name(name) => {
            let found = groups(group).find(|(other, ..)| *other == name);
            found
                .with_context(|| format!("group {name:?}: not in the image's /etc/group"))?
                .1
        }
        // config.md: no user is root of the group root, whatever else /etc/passwd says.
        Given::Nothing if matches!(user, Given::Nothing) => 0,
        Given::Nothing => account.as_ref().map_or(0, |account| account.gid),
    };
    // conversion.md: not for a numeric user, nor where a group is given (CVE-2023-25173 is about leaving them out here).
    let mut additional = match (&user, &of_group) {
        (Given::Name(name), Given::Nothing) => groups(group)
            .filter(|(_, _, members)| members.split(',').any(|member| member.trim() == *name))
            .map(|(_, gid, _)| gid)
            .filter(|other| *other != gid)
            .collect(),
        _ => Vec::new(),
    };
    additional.sort_unstable();
    additional.dedup();
    let uid = match user {
        Given::Nothing => 0,
        Given::Id(uid) => uid,
        Given::Name(_) => account.as_ref().map_or(0, |account| account.uid),
    };
    let home = account
        .map(|account| account.home)
        .filter(|home| home.starts_with('/') && !home.contains('\0'))
        .map(str::to_owned);
    Ok(User {
        uid,
        gid,
        additional,
        home,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::symlink;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
        # a comment\n\
        web:x:33:34:Web:/srv/www:/bin/false\n\
        broken:x:nine:9::/:\n\
        huge:x:4294967296:0::/:\n\
        minus:x:-1:0::/:\n\
        1000:x:0:0:a number as a name:/root:\n\
        4294967297:x:0:0:the same, too large:/root:\n\
        bob:x:1001:1001::relative:\n\
        short:x:5";
    const GROUP: &str =
        "root:x:0:\nwww:x:34:web\nlogs:x:7:web,bob\nssl:x:6:bob, web\nover:x:2147483648:web\n";

    // L-47, L-48
    #[test]
    fn every_form_of_user_becomes_numbers() {
        let cases = [
            ("", (0, 0), &[][..], Some("/root")),
            ("root", (0, 0), &[], Some("/root")),
            ("0", (0, 0), &[], Some("/root")),
            ("web", (33, 34), &[6, 7], Some("/srv/www")),
            ("33", (33, 34), &[], Some("/srv/www")),
            ("33:0", (33, 0), &[], Some("/srv/www")),
            ("web:logs", (33, 7), &[], Some("/srv/www")),
            ("web:99", (33, 99), &[], Some("/srv/www")),
            ("web:", (33, 34), &[6, 7], Some("/srv/www")),
            (":logs", (0, 7), &[], Some("/root")),
            ("1000", (1000, 0), &[], None),
            ("1000:1000", (1000, 1000), &[], None),
            ("0010", (10, 0), &[], None),
            ("2147483647", (2_147_483_647, 0), &[], None),
            ("bob", (1001, 1001), &[6, 7], None),
        ];
        for (wanted, (uid, gid), additional, home) in cases {
            let user = resolve(wanted, PASSWD, GROUP).unwrap();
            let expected = User {
                uid,
                gid,
                additional: additional.to_vec(),
                home: home.map(str::to_owned),
            };
            assert_eq!(user, expected, "{wanted:?}");
        }
    }

    // S-11: CVE-2024-40635, CVE-2026-46680, CVE-2016-3697
    #[test]
    fn what_names_nobody_is_an_error() {
        for (wanted, words) in [
            ("nobody", "user \"nobody\": not in"),
            ("web:nogroup", "group \"nogroup\": not in"),
            ("broken", "not in"),
            ("huge", "not in"),
            ("minus", "not in"),
            ("short", "not in"),
            ("web:over", "not in"),
            ("2147483648", "user 2147483648: not an id"),
            ("4294967296", "not an id"),
            ("4294967297", "not an id"),
            ("99999999999999999999999", "not an id"),
            ("-1", "not an id"),
            ("+5", "not an id"),
            ("0:2147483648", "group 2147483648: not an id"),
            ("0:-1", "not an id"),
            (" 0", "not in"),
            ("0x0", "not in"),
            ("a:b:c", "not in"),
        ] {
            let error = resolve(wanted, PASSWD, GROUP).unwrap_err().to_string();
            assert!(error.contains(words), "{wanted:?}: {error}");
        }
    }

    fn image() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        let fd = OwnedFd::from(fs::File::open(dir.path()).unwrap());
        (dir, fd)
    }

    #[test]
    fn an_image_without_the_files_has_numbers_only() {
        let (_dir, fd) = image();
        assert_eq!(
            look_up(fd.as_fd(), "7:8").unwrap(),
            User {
                uid: 7,
                gid: 8,
                ..User::default()
            }
        );
        look_up(fd.as_fd(), "web").unwrap_err();
    }

    // S-11: CVE-2024-9676
    #[test]
    fn links_are_followed_inside_the_image_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "spy:x:1:1::/:\n").unwrap();
        let (dir, fd) = image();
        symlink(outside.path().join("passwd"), dir.path().join("etc/passwd")).unwrap();
        let error = look_up(fd.as_fd(), "spy").unwrap_err().to_string();
        assert!(error.contains("not in the image's"), "{error}");

        fs::remove_file(dir.path().join("etc/passwd")).unwrap();
        fs::write(dir.path().join("accounts"), "own:x:5:6::/:\n").unwrap();
        symlink("/../accounts", dir.path().join("etc/passwd")).unwrap();
        assert_eq!(look_up(fd.as_fd(), "own").unwrap().uid, 5);
    }

    #[test]
    fn a_fifo_a_directory_and_a_huge_file_are_refused() {
        let (dir, fd) = image();
        let passwd = dir.path().join("etc/passwd");
        nix::unistd::mkfifo(&passwd, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = |root: BorrowedFd| look_up(root, "0").unwrap_err().to_string();
        assert!(error(fd.as_fd()).contains("not a regular file"));
        fs::remove_file(&passwd).unwrap();
        fs::create_dir(&passwd).unwrap();
        assert!(error(fd.as_fd()).contains("not a regular file"));
        fs::remove_dir(&passwd).unwrap();
        fs::File::create(&passwd)
            .unwrap()
            .set_len(LARGEST + 1)
            .unwrap();
        assert!(error(fd.as_fd()).contains("larger than"));
    }
}
