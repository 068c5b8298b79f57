//! `pelagos-image`: keeps images, unpacks their layers, makes bundles and prunes.

fn main() -> std::process::ExitCode {
    pelagos::image()
}
