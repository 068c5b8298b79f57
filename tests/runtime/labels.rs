//! Labels of mandatory access control.

use serde_json::json;

use crate::inside::{ask, asking, refused};
use crate::support::needs;

/// A profile that allows everything but writing to files whose names begin with `denied`; removed when dropped.
pub(crate) struct Profile(String);

impl Profile {
    /// One for the test of this name.
    pub(crate) fn load(test: &str) -> Self {
        let name = format!("pelagos-{test}-{}", std::process::id());
        let text = format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
             file,\n capability,\n network,\n signal,\n ptrace,\n mount,\n umount,\n pivot_root,\n unix,\n\
             deny /**/denied* w,\n deny /denied* w,\n}}\n"
        );
        parser(&["--replace"], &text);
        Self(text)
    }

    pub(crate) fn name(&self) -> &str {
        self.0.split(' ').nth(1).expect("a name")
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        parser(&["--remove"], &self.0);
    }
}

fn parser(args: &[&str], profile: &str) {
    use std::io::Write as _;
    let mut parser = std::process::Command::new("apparmor_parser")
        .args(args)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("apparmor_parser");
    let mut input = parser.stdin.take().expect("standard input");
    input.write_all(profile.as_bytes()).expect("write");
    drop(input);
    let status = parser.wait().expect("wait");
    assert!(status.success(), "apparmor_parser {args:?}: {status}");
}

#[test]
fn the_apparmor_profile_confines_the_payload() {
    requires!(root, apparmor);
    let profile = Profile::load("payload");
    let questions = [
        "read:/proc/self/attr/apparmor/current",
        "create:/denied",
        "create:/allowed",
    ];
    let labelled = |hidden: bool| {
        ask(&questions, |c| {
            c["process"]["apparmorProfile"] = json!(profile.name());
            c["root"]["readonly"] = json!(false);
            if hidden {
                // No word of it may go to what the bundle puts in the place of the kernel's file.
                c["linux"]["maskedPaths"] = json!(["/proc/self/attr", "/proc/1/attr"]);
            }
        })
    };
    let seen = labelled(false);
    let label = seen.text("read:/proc/self/attr/apparmor/current");
    assert_eq!(label.trim_end(), format!("{} (enforce)", profile.name()));
    assert_eq!(seen.errno("create:/denied"), "EACCES");
    assert_eq!(seen.ok("create:/allowed"), true);
    assert_eq!(labelled(true).errno("create:/denied"), "EACCES");
}

#[test]
fn an_apparmor_profile_that_is_not_loaded_is_refused() {
    requires!(root, apparmor);
    refused(
        &asking(&[], |c| {
            c["process"]["apparmorProfile"] = json!("no-such-profile");
        }),
        "apparmor failed to apply profile \"no-such-profile\"",
    );
}

#[test]
fn an_apparmor_profile_is_refused_where_the_kernel_has_no_apparmor() {
    requires!(container);
    differs!("crun", "passes over it");
    if needs::has_apparmor() {
        return;
    }
    refused(
        &asking(&[], |c| {
            c["process"]["apparmorProfile"] = json!("docker-default");
        }),
        "process.apparmorProfile: apparmor: config provided but apparmor not supported",
    );
}

#[test]
fn an_selinux_label_is_refused_where_the_kernel_has_no_selinux() {
    requires!(container);
    differs!("crun", "passes over it");
    differs!("runc", "passes over that of mounts");
    if needs::has_selinux() {
        return;
    }
    for (at, words) in [
        (
            "/process/selinuxLabel",
            "process.selinuxLabel: selinux label is specified in config, but selinux is disabled or not supported",
        ),
        (
            "/linux/mountLabel",
            "linux.mountLabel: mount label is specified in config, but selinux is disabled or not supported",
        ),
    ] {
        let label = json!("system_u:system_r:container_t:s0:c1,c2");
        let bundle = asking(&[], |c| {
            let (section, member) = at[1..].split_once('/').expect("a member");
            c[section][member] = label;
        });
        refused(&bundle, words);
    }
}

#[test]
fn exec_may_name_another_apparmor_profile() {
    requires!(root, apparmor);
    let profile = Profile::load("exec");
    let bundle = asking(&["await:/tmp/end"], |c| {
        c["root"]["readonly"] = json!(false);
    });
    bundle.up();
    let exec = |options: &[&str], args: &[&str]| {
        let exec = bundle.verb(["exec"]).args(options).arg(&bundle.id);
        exec.args(args)
    };
    let current = ["cat", "/proc/self/attr/apparmor/current"];
    assert_eq!(exec(&[], &current).ok().stdout.trim_end(), "unconfined");
    let options = ["--apparmor", profile.name()];
    let seen = exec(&options, &current).ok();
    let whole = format!("{} (enforce)", profile.name());
    assert_eq!(seen.stdout.trim_end(), whole);
    let denied = exec(&options, &["touch", "/denied"]).run();
    assert_eq!(denied.code(), 1, "{denied}");
    assert!(denied.stderr.contains("Permission denied"), "{denied}");
    exec(&options, &["touch", "/allowed"]).ok();

    let absent = exec(&["--apparmor", "no-such-profile"], &["true"]).run();
    assert_eq!(absent.code(), 255, "{absent}");
    assert!(
        absent
            .stderr
            .replace("\\\"", "\"")
            .contains("apparmor failed to apply profile \"no-such-profile\""),
        "{absent}"
    );
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn labels_of_exec_are_refused_where_the_kernel_has_no_such_module() {
    requires!(container);
    differs!("crun", "passes over them");
    differs!("runc", "1.1 passes over that of SELinux");
    let bundle = asking(&["await:/tmp/end"], |_| {});
    bundle.up();
    for (absent, option, words) in [
        (
            !needs::has_apparmor(),
            "--apparmor=docker-default",
            "apparmor: config provided but apparmor not supported",
        ),
        (
            !needs::has_selinux(),
            "--process-label=system_u:system_r:container_t:s0",
            "selinux label is specified in config, but selinux is disabled or not supported",
        ),
    ] {
        if absent {
            let outcome = bundle
                .verb(["exec", option, &bundle.id, "touch", "/tmp/executed"])
                .run();
            assert_eq!(outcome.code(), 255, "{outcome}");
            assert!(outcome.stderr.contains(words), "{outcome}");
        }
    }
    assert!(!bundle.rootfs("tmp/executed").exists());
    bundle.delete_force();
    bundle.assert_nothing_left();
}
