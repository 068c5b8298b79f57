pub(crate) mod pidfd;
pub(crate) mod spawn;
pub(crate) mod tty;
