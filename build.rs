//! Enters the runtime at `src/sys/entry.rs`, where there is one for the processor.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() == Ok("x86_64") {
        println!("cargo::rustc-link-arg-bin=pelagos=-Wl,--entry=pelagos_start");
    }
}
