//! `pelagos`: the OCI container runtime.

fn main() -> std::process::ExitCode {
    pelagos::runtime()
}
