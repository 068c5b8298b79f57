pub(crate) mod bpf;
