//! From create to delete: what each verb does to a container, and what it says.

use crate::support::Bundle;

#[test]
fn create_blocks_before_the_program_until_start() {
    requires!(container);
    let bundle = Bundle::sh("echo began; sleep 1000");
    let created = bundle.create();
    assert_eq!(bundle.status(), "created");
    assert_eq!(created.stdout_now(), "");
    bundle.start();
    assert!(crate::support::eventually(
        || created.stdout_now() == "began\n"
    ));
    assert_eq!(bundle.status(), "running");
    bundle.kill("KILL");
    bundle.wait_for("stopped");
    bundle.delete();
    bundle.assert_nothing_left();
}

#[test]
fn the_probe_answers() {
    requires!(container);
    let bundle = Bundle::new();
    let probe = bundle.probe();
    assert_eq!(probe.hostname(), "box");
    assert_eq!(probe.status("NoNewPrivs"), "1");
    assert_eq!(probe.cwd(), "/");
    assert_eq!(probe.mount("/proc").kind, "proc");
    assert_eq!(probe.env("TERM"), Some("xterm"));
    bundle.assert_nothing_left();
}
