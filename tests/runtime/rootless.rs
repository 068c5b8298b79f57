//! An unprivileged user, with the bundle that `spec --rootless` writes.
//!
//! Root runs these too, as a user of its own choice; so they are not left to machines that test as a user.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount, umount};
use serde_json::{Value, json};

use crate::inside::{Seen, answers, place_probe, without_namespace};
use crate::support::needs::{self, CGROUPS};
use crate::support::{Bundle, Outcome, mounts, namespace, runtime};

/// Somebody whom no file on the machine knows and who has no subordinate ids.
const USER: u32 = 48_901;

/// A user may call the runtime: a real one, or root in the user's place.
fn user() -> Result<(), String> {
    needs::container()?;
    if !needs::is_root() {
        return Ok(());
    }
    let tried = std::process::Command::new("setpriv")
        .args(as_user())
        .args([runtime().path.as_os_str(), "--version".as_ref()])
        .output()
        .map_err(|e| format!("setpriv: {e}"))?;
    if !tried.status.success() {
        return Err(format!("a user cannot run {}", runtime().path.display()));
    }
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    if limit.trim() == "0" {
        return Err("user namespaces are switched off".into());
    }
    Ok(())
}

fn as_user() -> Vec<String> {
    vec![
        format!("--reuid={USER}"),
        format!("--regid={USER}"),
        "--clear-groups".into(),
        "--inh-caps=-all".into(),
    ]
}

fn id() -> u32 {
    if needs::is_root() {
        USER
    } else {
        nix::unistd::geteuid().as_raw()
    }
}

/// A user's bundle, and how that user calls the runtime.
struct Rootless(Bundle);

impl Rootless {
    /// The config is the one that the runtime's own `spec --rootless` writes, with the probe as its program.
    fn new(questions: &[&str], edit: impl FnOnce(&mut Value)) -> Self {
        let rootless = Self(Bundle::new());
        let bundle = &rootless.0;
        fs::remove_file(bundle.path.join("config.json")).unwrap();
        give(&bundle.path);
        give(&bundle.state_root);
        for entry in fs::read_dir(bundle.rootfs("")).unwrap().flatten() {
            give(&entry.path());
        }
        give(&bundle.rootfs(""));
        rootless.call(&["spec", "--rootless"]).ok();
        place_probe(&bundle.rootfs("probe"));
        bundle.edit(|c| {
            let mut args = vec!["/probe"];
            args.extend(questions);
            c["process"]["args"] = json!(args);
            c["process"]["terminal"] = json!(false);
            edit(c);
        });
        rootless
    }

    /// `RUNTIME --root STATE args` as the user.
    fn call(&self, args: &[&str]) -> Outcome {
        self.call_under(&[], args)
    }

    /// The same through another program.
    fn call_under(&self, program: &[&str], args: &[&str]) -> Outcome {
        let call = self.0.verb(args);
        if needs::is_root() {
            let mut wrapper = as_user();
            wrapper.insert(0, "setpriv".to_owned());
            wrapper.extend(program.iter().map(|word| (*word).to_owned()));
            call.under(wrapper)
                .env("XDG_RUNTIME_DIR", &self.0.state_root)
                .env("USER", "somebody")
                .run()
        } else {
            call.under(program).run()
        }
    }

    fn run(&self) -> Outcome {
        self.call(&["run", &self.0.id])
    }

    #[track_caller]
    fn see(&self) -> Seen {
        answers(&self.run().ok())
    }
}

fn give(path: &Path) {
    if needs::is_root() {
        chown(path, Some(USER), Some(USER)).unwrap();
    }
}

macro_rules! requires_user {
    () => {
        requires!(container);
        if let Err(reason) = user() {
            fn here() {}
            needs::skip(std::any::type_name_of_val(&here), "user", &reason);
            return;
        }
    };
}

#[test]
fn the_plain_rootless_bundle_runs() {
    requires_user!();
    let rootless = Rootless::new(
        &[
            "open:/dev/zero",
            "openw:/dev/null",
            "create:/dev/shm/x",
            "list:/proc",
        ],
        |_| {},
    );
    let seen = rootless.see();
    assert_eq!(
        (&seen["uid"], &seen["gid"], &seen["pid"]),
        (&json!(0), &json!(0), &json!(1))
    );
    assert_eq!(seen["uid_map"], json!([[0, id(), 1]]));
    assert_eq!(seen["gid_map"], json!([[0, id(), 1]]));
    assert_eq!(seen["setgroups"], "deny");
    assert_eq!(seen["no_new_privs"], 1);
    assert_eq!(seen.ok("open:/dev/zero"), true);
    assert_eq!(seen.ok("openw:/dev/null"), true);
    assert_eq!(seen.ok("create:/dev/shm/x"), true);
    assert!(seen.mount("/").own("ro"));
    for name in ["user", "pid", "mnt", "ipc", "uts"] {
        let host = fs::read_link(format!("/proc/thread-self/ns/{name}")).unwrap();
        assert_ne!(seen["namespaces"][name], host.to_str().unwrap(), "{name}");
    }
    if !runtime().is("crun") {
        // runc's template shares the network, crun's does not.
        let host = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_eq!(seen["namespaces"]["net"], host.to_str().unwrap());
    }
    rootless.0.assert_nothing_left();
}

#[test]
fn a_user_gets_a_user_namespace_where_the_configuration_names_none() {
    requires_user!();
    differs!("runc", "refuses");
    let rootless = Rootless::new(&[], |c| {
        without_namespace(c, "user");
        c["linux"]["uidMappings"] = Value::Null;
        c["linux"]["gidMappings"] = Value::Null;
    });
    let seen = rootless.see();
    assert_eq!((&seen["uid"], &seen["gid"]), (&json!(0), &json!(0)));
    for (map, file) in [("uid_map", "/etc/subuid"), ("gid_map", "/etc/subgid")] {
        // The ranges of this user, by number or by the name that its login has.
        let name = std::env::var("USER").unwrap_or_default();
        let owners = [
            id().to_string(),
            if needs::is_root() {
                String::new()
            } else {
                name
            },
        ];
        let mut wanted = vec![json!([0, id(), 1])];
        let mut next = 1;
        for line in fs::read_to_string(file).unwrap_or_default().lines() {
            let fields: Vec<_> = line.split(':').collect();
            if owners.iter().any(|owner| owner == fields[0]) {
                let number = |n: usize| fields[n].parse::<u32>().expect("a number");
                wanted.push(json!([next, number(1), number(2)]));
                next += number(2);
            }
        }
        assert_eq!(seen[map], json!(wanted), "{file}");
    }
    rootless.0.assert_nothing_left();

    // Maps without their namespace are those of the new one.
    let rootless = Rootless::new(&[], |c| without_namespace(c, "user"));
    assert_eq!(rootless.see()["uid_map"], json!([[0, id(), 1]]));
}

#[test]
fn root_of_a_user_namespace_has_containers_in_that_very_namespace() {
    // So Podman calls for an ordinary user: the namespace is there already, and the bundle has none.
    requires_user!();
    requires!(command "unshare");
    let rootless = Rootless::new(&["create:/dev/shm/x"], |c| {
        without_namespace(c, "user");
        let linux = c["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    });
    let id = rootless.0.id.as_str();
    let in_a_namespace = ["unshare", "--user", "--map-root-user"];
    let seen = answers(&rootless.call_under(&in_a_namespace, &["run", id]).ok());
    assert_eq!((&seen["uid"], &seen["pid"]), (&json!(0), &json!(1)));
    // A namespace of its own below that one would say 0 in the middle.
    assert_eq!(seen["uid_map"], json!([[0, self::id(), 1]]));
    assert_eq!(seen.ok("create:/dev/shm/x"), true);
    rootless.0.assert_nothing_left();
}

#[test]
fn a_rootless_container_goes_through_its_life() {
    requires_user!();
    let rootless = Rootless::new(&["await:/tmp/go"], |c| c["root"]["readonly"] = json!(false));
    let id = rootless.0.id.clone();
    let created = rootless.call(&["create", &id]).ok();
    let status = || rootless.call(&["state", &id]).ok().json()["status"].clone();
    assert_eq!(status(), "created");
    rootless.call(&["start", &id]).ok();
    assert_eq!(status(), "running");
    fs::write(rootless.0.rootfs("tmp/go"), "").unwrap();
    assert!(crate::support::eventually(|| status() == "stopped"));
    assert!(created.stdout_now().starts_with('{'));
    rootless.call(&["delete", &id]).ok();
    assert_ne!(rootless.call(&["state", &id]).code(), 0);
    rootless.0.assert_nothing_left();
}

#[test]
fn a_user_enters_a_container_that_was_created_and_one_that_runs() {
    requires_user!();
    differs!(
        "crun",
        "does not enter a created container of an ordinary user"
    );
    let rootless = Rootless::new(&["await:/tmp/end"], |c| {
        c["root"]["readonly"] = json!(false);
    });
    let id = rootless.0.id.clone();
    rootless.call(&["create", &id]).ok();
    for status in ["created", "running"] {
        assert_eq!(rootless.0.status(), status);
        let seen = answers(&rootless.call(&["exec", &id, "/probe"]).ok());
        assert_eq!((&seen["uid"], &seen["gid"]), (&json!(0), &json!(0)));
        assert_eq!(seen["uid_map"], json!([[0, self::id(), 1]]), "{status}");
        if status == "created" {
            rootless.call(&["start", &id]).ok();
        }
    }
    let failed = rootless.call(&["exec", &id, "nosuch"]);
    assert_eq!(failed.code(), 255, "{failed}");
    rootless.call(&["delete", "--force", &id]).ok();
    rootless.0.assert_nothing_left();
}

#[test]
fn what_a_rootless_container_makes_belongs_to_the_user() {
    requires_user!();
    let rootless = Rootless::new(&["create:/tmp/made"], |c| {
        c["root"]["readonly"] = json!(false);
    });
    assert_eq!(rootless.see().ok("create:/tmp/made"), true);
    let made = fs::metadata(rootless.0.rootfs("tmp/made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (id(), id()));
}

#[test]
fn a_rootless_container_has_its_host_name() {
    requires_user!();
    let seen = Rootless::new(&[], |c| c["hostname"] = json!("small")).see();
    assert_eq!(seen["hostname"], "small");
}

#[test]
fn a_rootless_container_can_have_a_network_of_its_own() {
    requires_user!();
    let seen = Rootless::new(&["loopback"], |c| {
        crate::support::namespace(c, "network");
    })
    .see();
    assert_eq!(seen.ok("loopback"), "hello");
}

#[test]
fn a_user_moves_no_network_devices() {
    requires_user!();
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    let rootless = Rootless::new(&[], |c| {
        namespace(c, "network");
        c["linux"]["netDevices"] = json!({ "eth0": {} });
    });
    rootless
        .run()
        .fails_with("network devices are not supported for rootless containers");
    rootless.0.assert_nothing_left();
}

#[test]
fn a_rootless_container_has_the_default_nodes_and_masks() {
    requires_user!();
    let seen = Rootless::new(
        &[
            "read:/proc/timer_list",
            "write:/proc/sys/kernel/hostname=x",
            "read:/proc/keys",
        ],
        |_| {},
    )
    .see();
    for (name, major, minor) in [
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    ] {
        let node = &seen["dev"][name];
        assert_eq!(node["type"], "char", "{name}");
        assert_eq!(
            (&node["major"], &node["minor"]),
            (&json!(major), &json!(minor)),
            "{name}"
        );
    }
    assert_eq!(seen.text("read:/proc/timer_list"), "");
    assert_eq!(seen.text("read:/proc/keys"), "");
    let write = seen.errno("write:/proc/sys/kernel/hostname=x");
    assert!(["EROFS", "EACCES"].contains(&write), "{write}");
}

#[test]
fn a_rootless_filter_works() {
    requires_user!();
    let question = format!("syscall:{}:0", nix::libc::SYS_umask);
    let seen = Rootless::new(&[&question], |c| {
        c["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["umask"], "action": "SCMP_ACT_ERRNO" }],
        });
    })
    .see();
    assert_eq!(seen.errno(&question), "EPERM");
}

#[test]
fn additional_groups_are_refused_without_privileges() {
    requires_user!();
    differs!("crun", "it goes on without the groups");
    let rootless = Rootless::new(&[], |c| c["process"]["user"]["additionalGids"] = json!([0]));
    let outcome = rootless.run();
    if runtime().is("pelagos") {
        outcome.fails_with("cannot set any additional groups in a rootless container");
        rootless.0.assert_nothing_left();
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
}

#[test]
fn an_id_that_the_single_line_does_not_map_is_refused() {
    requires_user!();
    let rootless = Rootless::new(&[], |c| c["process"]["user"]["uid"] = json!(5));
    let outcome = rootless.run();
    assert_ne!(outcome.code(), 0, "{outcome}");
    if runtime().is("pelagos") {
        outcome.fails_with("cannot setuid to unmapped uid 5 in user namespace");
    }
}

/// Whether the user may make control groups where the runtime would.
fn delegated() -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|l| l.strip_prefix("0::"))
        .unwrap_or("/");
    let dir = PathBuf::from(format!("{CGROUPS}{own}"));
    fs::metadata(dir).is_ok_and(|m| m.uid() == id())
}

#[test]
fn limits_without_the_right_to_set_them_are_refused() {
    requires_user!();
    differs!("crun", "1.8 goes on without limits");
    if delegated() {
        return;
    }
    let rootless = Rootless::new(&[], |c| {
        c["linux"]["resources"] = json!({ "pids": { "limit": 10 } });
    });
    let outcome = rootless.run();
    if runtime().is("pelagos") {
        outcome.fails_with(
            "rootless needs no limits + no cgrouppath when no permission is granted for cgroups",
        );
        rootless.0.assert_nothing_left();
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
}

#[test]
fn a_path_without_the_right_to_make_it_is_refused() {
    requires_user!();
    differs!("crun", "1.8 goes on without a group");
    let rootless = Rootless::new(&[], |c| {
        c["linux"]["cgroupsPath"] = json!("/pelagos-test-forbidden");
    });
    let outcome = rootless.run();
    if runtime().is("pelagos") {
        outcome.fails_with(
            "unable to apply cgroup configuration: make cgroup /pelagos-test-forbidden",
        );
        outcome.fails_with("permission denied");
        rootless.0.assert_nothing_left();
    } else {
        assert_ne!(outcome.code(), 0, "{outcome}");
    }
    assert!(!Path::new(CGROUPS).join("pelagos-test-forbidden").exists());
}

#[test]
fn a_container_that_cannot_be_killed_as_a_whole_is_warned_of() {
    requires_user!();
    differs!("crun", "it says nothing");
    if delegated() {
        return;
    }
    let rootless = Rootless::new(&[], |c| {
        without_namespace(c, "pid");
        // A proc of its own needs a pid namespace of its own.
        mounts(c).retain(|m| m["destination"] != "/proc");
        mounts(c).insert(
            0,
            json!({
                "destination": "/proc", "type": "none", "source": "/proc", "options": ["rbind"],
            }),
        );
        c["linux"].as_object_mut().unwrap().remove("maskedPaths");
        c["linux"].as_object_mut().unwrap().remove("readonlyPaths");
    });
    let outcome = rootless.run().ok();
    assert!(
        outcome
            .stderr
            .contains("Such configuration is strongly discouraged"),
        "{outcome}"
    );
    rootless.0.assert_nothing_left();
}

/// CVE-2023-25809: the host's own hierarchy, writable, because it could not be mounted anew.
#[test]
fn the_hosts_control_groups_are_not_writable_from_a_rootless_container() {
    requires_user!();
    let asked = [
        "mkdir:/sys/fs/cgroup/made",
        "write:/sys/fs/cgroup/cgroup.procs=1",
        "create:/sys/fs/cgroup/x",
    ];
    for own_namespace in [true, false] {
        let rootless = Rootless::new(&asked, |c| {
            without_namespace(c, "cgroup");
            if own_namespace {
                crate::support::namespace(c, "cgroup");
            }
            mounts(c).retain(|m| m["destination"] != "/sys/fs/cgroup");
            mounts(c).push(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["nosuid", "noexec", "nodev", "relatime"],
            }));
        });
        let outcome = rootless.run();
        // To refuse is as safe.
        if outcome.code() != 0 {
            continue;
        }
        let seen = answers(&outcome);
        if delegated() && own_namespace {
            continue;
        }
        for question in asked {
            seen.errno(question);
        }
        assert!(!Path::new(CGROUPS).join("made").exists());
    }
}

#[test]
fn the_state_root_of_a_user_is_in_the_runtime_directory() {
    requires_user!();
    let rootless = Rootless::new(&[], |_| {});
    let bundle = &rootless.0;
    let home = bundle.beside("xdg");
    fs::create_dir(&home).unwrap();
    give(&home);
    fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
    let call = |args: &[&str]| {
        let verb = crate::support::Verb::new(args)
            .cwd(&bundle.path)
            .env("PELAGOS_TEST_ID", &bundle.id)
            .env("XDG_RUNTIME_DIR", &home)
            .env("USER", "somebody");
        if needs::is_root() {
            let mut wrapper = vec!["setpriv".to_owned()];
            wrapper.extend(as_user());
            verb.under(wrapper).run()
        } else {
            verb.run()
        }
    };
    call(&["create", &bundle.id]).ok();
    let root = home.join(if runtime().is("pelagos") {
        "pelagos"
    } else {
        runtime().name()
    });
    let about = fs::metadata(&root);
    let state = root.join(&bundle.id);
    let there = state.exists();
    call(&["delete", "--force", &bundle.id]).ok();
    assert!(there, "{}", state.display());
    if runtime().is("pelagos") {
        // The sticky bit keeps those away that clean up old files.
        assert_eq!(about.unwrap().mode() & 0o7777, 0o1700);
    }
    assert!(!state.exists());
}

#[test]
fn a_rootless_image_cannot_reach_out_by_symlinks_either() {
    requires_user!();
    let rootless = Rootless::new(&[], |c| {
        c["root"]["readonly"] = json!(false);
        mounts(c).push(json!({
            "destination": "/link/below", "type": "bind", "source": "data", "options": ["bind"],
        }));
    });
    let bundle = &rootless.0;
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    give(&outside);
    fs::create_dir(bundle.path.join("data")).unwrap();
    symlink(&outside, bundle.rootfs("link")).unwrap();
    drop(rootless.run());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn flags_that_the_host_has_set_on_a_source_stay_and_are_not_to_be_cleared() {
    requires_user!();
    requires!(root);
    differs!("crun", "goes on with the flags set");
    differs!("runc", "since 1.2");
    let source = |rootless: &Rootless| {
        let path = rootless.0.path.join("data");
        fs::create_dir(&path).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
        mount(Some("tmpfs"), &path, Some("tmpfs"), flags, None::<&str>).unwrap();
    };
    let bound = |options: &[&str]| {
        let rootless = Rootless::new(&[], |c| {
            mounts(c).push(json!({
                "destination": "/data", "type": "bind", "source": "data", "options": options,
            }));
        });
        source(&rootless);
        rootless
    };
    for options in [
        &["bind"][..],
        &["bind", "ro"],
        &["bind", "nosuid", "nodev", "noexec"],
        &["rbind", "rro", "noatime"],
    ] {
        let seen = bound(options).see();
        let found = seen.mount("/data");
        for flag in ["nosuid", "nodev", "noatime"] {
            assert!(found.own(flag), "{options:?}: {found:?}");
        }
        assert_eq!(found.own("ro"), options.iter().any(|o| o.ends_with("ro")));
    }
    for (options, words) in [
        (
            &["bind", "suid"][..],
            "cannot clear locked flags nosuid: operation not permitted",
        ),
        (
            &["bind", "dev", "suid"],
            "cannot clear locked flags nosuid,nodev: ",
        ),
        (&["rbind", "rdev"], "cannot clear locked flags nodev: "),
        (
            &["bind", "relatime"],
            "cannot change locked atime flags noatime: ",
        ),
    ] {
        let rootless = bound(options);
        let outcome = rootless.run();
        if runtime().is("pelagos") {
            outcome.fails_with(words);
            outcome.fails_with("error mounting");
        } else {
            assert_ne!(outcome.code(), 0, "{outcome}");
        }
        umount(&rootless.0.path.join("data")).unwrap();
        rootless.0.assert_nothing_left();
    }
}
