//! After the filter: wait for the word to start, run the startContainer hooks, execve. Nothing here allocates.

use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;

use super::Given;
use super::privileges::Program;
use crate::sys::errno::Words;
use crate::sys::fd::write_raw;
use crate::sys::process::{execve, exit_now};

/// The end of this program: the payload, or a reason why not.
pub(super) fn words(given: &Given, program: Program) -> ! {
    #[cfg(debug_assertions)]
    crate::sys::alloc_guard::seal();
    let saved = given
        .talk
        .ready_and_wait(program.listener.as_ref().map(AsFd::as_fd));
    let (go, answer) = match &given.fifos {
        Some((go, answer)) => (go.as_fd(), answer.as_fd()),
        None => (given.talk.as_fd(), given.talk.as_fd()),
    };
    let mut text = Text {
        bytes: [0; 4096],
        length: 0,
    };
    if let Err(errno) = saved.and_then(|()| wait_for(go)) {
        write!(
            text,
            "wait for the start (does the seccomp filter allow read?): {}",
            Words(errno)
        )
        .ok();
        end(answer, &text);
    }
    for hook in &given.start_container {
        if let Err(failure) = hook.run(&program.state, None) {
            text.length = failure.render(&mut text.bytes);
            end(answer, &text);
        }
    }
    let errno = execve(&program.path, &program.args, &program.env);
    // COMPAT: engines look for "exec", the program and the kernel's word in this order.
    let path = program.path.to_str().unwrap_or("?");
    write!(text, "exec {path}: {}", Words(errno)).ok();
    end(answer, &text)
}

/// One byte on the go descriptor. On a socket whose other end is gone there is nobody left to start for.
fn wait_for(go: BorrowedFd) -> nix::Result<()> {
    loop {
        match nix::unistd::read(go, &mut [0]) {
            Ok(1) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
            Ok(_) => exit_now(1),
        }
    }
}

fn end(answer: BorrowedFd, text: &Text) -> ! {
    // Whether somebody hears it or not, this process ends.
    write_raw(answer, &text.bytes[..text.length]).ok();
    exit_now(1)
}

/// Text in place; what does not fit is cut.
struct Text {
    bytes: [u8; 4096],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = more.len().min(room.len());
        room[..count].copy_from_slice(&more.as_bytes()[..count]);
        self.length += count;
        Ok(())
    }
}
