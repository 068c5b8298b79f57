//! The conversation between the parent that launches a container process and the child that becomes it.
//!
//! | say         | from   | carries                   | the other side may now assume                              |
//! |-------------|--------|---------------------------|------------------------------------------------------------|
//! | `Entered`   | child  | pid (second fork only)    | that process is the container's, the first child will end  |
//! | `Known`     | parent | –                         | that pid is on the other side's mind: go on                |
//! | `Unmapped`  | child  | –                         | it is in its new user namespace: maps wanted               |
//! | `Mapped`    | parent | –                         | ids (or those of the tree) are mapped, it is in its cgroup |
//! | `Tree`      | child  | a new mount, its number   | it is to be id-mapped, by who has the rights: `Mapped`     |
//! | `Networked` | child  | a netlink socket inside   | it is in its network namespace: network devices wanted     |
//! | `Moved`     | parent | –                         | the devices are there, with addresses, and up              |
//! | `Rooted`    | child  | –                         | mounts complete, not pivoted: run the runtime's hooks      |
//! | `Hooked`    | parent | –                         | go on, pivot                                               |
//! | `Console`   | child  | the pty master, its name  | hand it to the console socket or copy it                   |
//! | `Ready`     | child  | the filter's listener's number | only the word to start is missing: save `created`          |
//! | `Saved`     | parent | –                         | the container is on record; wait for the word to start     |
//! | `Failed`    | child  | step, errno, subject      | undo everything                                            |
//! | (end)       | either | –                         | the other died; a child that hears it ends                 |
//!
//! Only what a container needs is said: without a new user namespace there is no `Mapped`, without network devices no
//! `Networked`, without hooks no `Rooted`.
//!
//! After `Saved` the child waits on the *go* descriptor: a fifo in the state directory, or this socket where one command
//! creates and starts. What it says then is no message but plain text (or the end, when execve has closed it): the
//! reason why the payload did not start.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sys::fd;
use crate::sys::process::exit_now;

/// As much text as one message carries; longer subjects are cut.
const TEXT: usize = 4096;
const HEADER: usize = 12;

macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident),* $(,)?) => {
        /// The step at which a child failed. The parent makes the sentence.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Step {
            $($(#[$doc])* $step),*
        }

        /// All steps, each at the place of its number.
        const STEPS: &[Step] = &[$(Step::$step),*];
    };
}

steps! {
    JoinNamespace,
    Unshare,
    BecomeRoot,
    TimeOffsets,
    Fork,
    Loopback,
    NetDevices,
    Keyring,
    Propagation,
    Root,
    /// The subject begins with the number of the mount.
    Mount,
    Device,
    Link,
    Sysctl,
    /// The subject is the whole sentence.
    Hook,
    Pivot,
    Null,
    Cwd,
    Console,
    Hostname,
    Domainname,
    Masked,
    ReadOnly,
    ReadOnlyRoot,
    Stdio,
    /// The subject is the profile.
    Apparmor,
    /// The subject is the context.
    Selinux,
    /// The same of new file systems.
    MountLabel,
    /// The subject is the member that cannot be had.
    Execution,
    Limit,
    Capabilities,
    Groups,
    Ids,
    NoNewPrivileges,
    Seccomp,
    Lookup,
    /// The subject is the whole sentence.
    Breakout,
}

/// Why a child could not become the payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) step: Step,
    /// `Errno::UnknownErrno` (0) where the subject says all.
    pub(crate) errno: Errno,
    /// What the step was about: a path, a name; for mounts also what the file system said.
    pub(crate) subject: String,
}

/// What a parent hears.
#[derive(Debug)]
pub(crate) enum Heard {
    Entered(Pid),
    Unmapped,
    /// A new mount, and its number in the plan.
    Tree(OwnedFd, i32),
    Networked(OwnedFd),
    Rooted,
    Console(OwnedFd, String),
    /// With the number, in the child, of the listener of its seccomp filter.
    Ready(Option<RawFd>),
    Failed(Failure),
    /// The child died without a word.
    End,
}

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Entered = 1,
    Known,
    Unmapped,
    Mapped,
    Networked,
    Moved,
    Rooted,
    Hooked,
    Console,
    Ready,
    Saved,
    Failed,
    Tree,
}

/// The two ends of a new conversation.
pub(crate) fn pair() -> nix::Result<(ParentEnd, ChildEnd)> {
    let (parent, child) = fd::seqpacket_pair()?;
    Ok((ParentEnd(parent), ChildEnd(child)))
}

fn encode(
    kind: Kind,
    step: u8,
    number: i32,
    text: &[u8],
    buffer: &mut [u8; HEADER + TEXT],
) -> usize {
    let text = &text[..text.len().min(TEXT)];
    buffer[0] = kind as u8;
    buffer[1] = step;
    buffer[4..8].copy_from_slice(&number.to_ne_bytes());
    buffer[HEADER..HEADER + text.len()].copy_from_slice(text);
    HEADER + text.len()
}

/// The launching side.
pub(crate) struct ParentEnd(OwnedFd);

impl AsFd for ParentEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ParentEnd {
    pub(crate) fn known(&self) -> nix::Result<()> {
        self.say(Kind::Known)
    }

    pub(crate) fn mapped(&self) -> nix::Result<()> {
        self.say(Kind::Mapped)
    }

    pub(crate) fn moved(&self) -> nix::Result<()> {
        self.say(Kind::Moved)
    }

    pub(crate) fn hooked(&self) -> nix::Result<()> {
        self.say(Kind::Hooked)
    }

    pub(crate) fn saved(&self) -> nix::Result<()> {
        self.say(Kind::Saved)
    }

    /// The word to start, where this socket is the go descriptor.
    pub(crate) fn go(&self) -> nix::Result<()> {
        fd::send(self.0.as_fd(), b"0", &[]).map(drop)
    }

    fn say(&self, kind: Kind) -> nix::Result<()> {
        let mut buffer = [0; HEADER + TEXT];
        let length = encode(kind, 0, 0, b"", &mut buffer);
        fd::send(self.0.as_fd(), &buffer[..length], &[]).map(drop)
    }

    /// Wait for what the child says next.
    pub(crate) fn hear(&self) -> nix::Result<Heard> {
        let mut buffer = [0; HEADER + TEXT];
        let (length, fd) = match fd::receive(self.0.as_fd(), &mut buffer) {
            // The child died with unread words from us in its queue.
            Err(Errno::ECONNRESET) => (0, None),
            other => other?,
        };
        let text =
            String::from_utf8_lossy(buffer.get(HEADER..length).unwrap_or_default()).into_owned();
        let number = i32::from_ne_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
        let kind = buffer[0];
        Ok(match fd {
            _ if length == 0 => Heard::End,
            Some(master) if kind == Kind::Console as u8 => Heard::Console(master, text),
            Some(tree) if kind == Kind::Tree as u8 => Heard::Tree(tree, number),
            Some(socket) if kind == Kind::Networked as u8 => Heard::Networked(socket),
            _ if kind == Kind::Entered as u8 => Heard::Entered(Pid::from_raw(number)),
            _ if kind == Kind::Unmapped as u8 => Heard::Unmapped,
            _ if kind == Kind::Rooted as u8 => Heard::Rooted,
            _ if kind == Kind::Ready as u8 => Heard::Ready((number >= 0).then_some(number)),
            _ if kind == Kind::Failed as u8 => {
                let step = *STEPS.get(usize::from(buffer[1])).ok_or(Errno::EPROTO)?;
                Heard::Failed(Failure {
                    step,
                    errno: Errno::from_raw(number),
                    subject: text,
                })
            }
            _ => return Err(Errno::EPROTO),
        })
    }

    /// After the word to start: none when the payload runs, else why it does not.
    pub(crate) fn hear_start(&self) -> nix::Result<Option<String>> {
        let mut buffer = [0; TEXT];
        match fd::receive(self.0.as_fd(), &mut buffer) {
            Ok((0, _)) | Err(Errno::ECONNRESET) => Ok(None),
            Ok((length, _)) => Ok(Some(
                String::from_utf8_lossy(&buffer[..length]).into_owned(),
            )),
            Err(errno) => Err(errno),
        }
    }
}

/// The child's side. When the parent is gone the child ends.
pub(crate) struct ChildEnd(OwnedFd);

impl AsFd for ChildEnd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl ChildEnd {
    /// Wait until ids are mapped and the process is in its cgroup.
    pub(crate) fn wait_mapped(&self) {
        self.wait(Kind::Mapped);
    }

    /// Tell the pid, as the caller's namespace has it, of the process that goes on in this one's place.
    pub(crate) fn entered(&self, pid: Pid) {
        self.say(Kind::Entered, pid.as_raw(), b"");
    }

    /// The process that goes on after a second fork waits here until its pid has arrived, lest it speak first.
    pub(crate) fn wait_known(&self) {
        self.wait(Kind::Known);
    }

    /// Have the maps of a user namespace written that the child made by itself.
    pub(crate) fn unmapped_and_wait(&self) {
        self.say(Kind::Unmapped, 0, b"");
        self.wait(Kind::Mapped);
    }

    /// Have the ids of mount `number` of the plan mapped, which is detached.
    pub(crate) fn mapped_tree(&self, number: usize, tree: BorrowedFd) {
        let number = i32::try_from(number).unwrap_or(i32::MAX);
        self.hand_over(Kind::Tree, number, b"", tree);
        self.wait(Kind::Mapped);
    }

    /// Have the network devices moved to this process's namespace, which `socket` (netlink) belongs to.
    pub(crate) fn networked_and_wait(&self, socket: BorrowedFd) {
        self.hand_over(Kind::Networked, 0, b"", socket);
        self.wait(Kind::Moved);
    }

    /// Let the parent run the runtime's hooks.
    pub(crate) fn rooted_and_wait(&self) {
        self.say(Kind::Rooted, 0, b"");
        self.wait(Kind::Hooked);
    }

    /// Hand over the pty master; `name` is the slave's path inside the container.
    pub(crate) fn console(&self, master: BorrowedFd, name: &str) {
        self.hand_over(Kind::Console, 0, name.as_bytes(), master);
    }

    fn hand_over(&self, kind: Kind, number: i32, text: &[u8], file: BorrowedFd) {
        let mut buffer = [0; HEADER + TEXT];
        let length = encode(kind, 0, number, text, &mut buffer);
        if fd::send(self.0.as_fd(), &buffer[..length], &[file.as_raw_fd()]).is_err() {
            exit_now(1);
        }
    }

    /// Everything is done; wait until the container is on record. Uses read and write only: the user's filter holds.
    ///
    /// # Errors
    /// The filter forbids even that.
    pub(crate) fn ready_and_wait(&self, listener: Option<BorrowedFd>) -> nix::Result<()> {
        let number = listener.map_or(-1, |listener| listener.as_raw_fd());
        self.say(Kind::Ready, number, b"");
        self.listen_for(Kind::Saved)
    }

    /// Say why it goes no further, and end.
    pub(crate) fn fail(&self, step: Step, errno: Errno, subject: &[u8]) -> ! {
        let mut buffer = [0; HEADER + TEXT];
        let length = encode(Kind::Failed, step as u8, errno as i32, subject, &mut buffer);
        // Whether the parent still hears it or not, the child ends.
        fd::write_raw(self.0.as_fd(), &buffer[..length]).ok();
        exit_now(1)
    }

    fn say(&self, kind: Kind, number: i32, text: &[u8]) {
        let mut buffer = [0; HEADER + TEXT];
        let length = encode(kind, 0, number, text, &mut buffer);
        if fd::write_raw(self.0.as_fd(), &buffer[..length]).is_err() {
            exit_now(1);
        }
    }

    fn wait(&self, kind: Kind) {
        if self.listen_for(kind).is_err() {
            exit_now(1);
        }
    }

    fn listen_for(&self, kind: Kind) -> nix::Result<()> {
        let mut buffer = [0; HEADER];
        loop {
            match nix::unistd::read(&self.0, &mut buffer) {
                Ok(HEADER) if buffer[0] == kind as u8 => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
                // The parent is gone.
                Ok(_) => exit_now(1),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_as_they_were_said() {
        let (parent, child) = pair().unwrap();
        child.entered(Pid::from_raw(77));
        child.say(Kind::Ready, 7, b"");
        assert!(matches!(parent.hear().unwrap(), Heard::Entered(pid) if pid.as_raw() == 77));
        assert!(matches!(parent.hear().unwrap(), Heard::Ready(Some(7))));
        drop(child);
        assert!(matches!(parent.hear().unwrap(), Heard::End));
    }

    #[test]
    fn a_subject_that_is_too_long_is_cut() {
        let mut buffer = [0; HEADER + TEXT];
        let length = encode(
            Kind::Failed,
            Step::Mount as u8,
            2,
            &[b'x'; 9000],
            &mut buffer,
        );
        assert_eq!(length, HEADER + TEXT);
    }
}
