pub(crate) mod seccomp;
