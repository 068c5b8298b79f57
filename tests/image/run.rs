//! A container from an image in one command.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support::{
    Call, ImageBuilder, NOBODY, Store, eventually, mounts_below, own_state_root, runtime_for,
    subordinate_ids,
};

/// A user, a directory that is another's, and what is needed to look around.
fn image() -> ImageBuilder {
    ImageBuilder::busybox()
        .layer(|l| {
            l.file(
                "etc/passwd",
                "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n",
                0o644,
            )
            .file("etc/group", "root:x:0:\nweb:x:33:\nlogs:x:7:web\n", 0o644)
            .file("etc/below", "below\n", 0o644);
        })
        .layer(|l| {
            l.owner(33, 33)
                .dir("data", 0o750)
                .file("data/seed", "seed\n", 0o640)
                .whiteout("etc/below");
        })
        .tag("bb:1")
}

fn store() -> Store {
    let store = Store::new();
    image().write_layout(&store.root);
    store
}

/// A store with an image that no other test mounts: mounted layers keep it in the stores of the other tests too.
fn store_of_its_own(content: &'static str) -> Store {
    let store = Store::new();
    let image = image().layer(|l| {
        l.file("own", content, 0o644);
    });
    image.write_layout(&store.root);
    store
}

/// An unprivileged user's store; what `subordinate` says of /etc/subuid holds in this thread's mounts.
fn users_store(subordinate: bool) -> Store {
    let store = Store::unprivileged();
    image().write_layout(&store.root);
    fs::create_dir_all(store.beside("run")).expect("directory");
    if subordinate {
        subordinate_ids(NOBODY, &store);
    } else {
        fs::write(store.beside("subuid"), "").expect("file");
        let none = None::<&str>;
        let (empty, flags) = (store.beside("subuid"), MsFlags::MS_BIND);
        mount(Some(&empty), "/etc/subuid", none, flags, none).expect("bind");
    }
    let done = Command::new("chown")
        .args(["-R", &format!("{NOBODY}:{NOBODY}")])
        .args([store.root.clone(), store.beside("run")])
        .status();
    assert!(done.expect("chown").success());
    store
}

/// `pelagos-image run OPTIONS bb:1 -- COMMAND`, by whose store it is.
fn run(store: &Store, options: &[&str], command: &[&str]) -> Call {
    let runtime = runtime_for(store);
    store
        .call(["run", "--runtime"])
        .arg(runtime)
        .env("XDG_RUNTIME_DIR", store.beside("run"))
        .args(options)
        .arg("bb:1")
        .arg("--")
        .args(command)
}

/// Kill all that holds the lock of a run's bundle: the command, what it goes on as, and the runtime that it started.
fn kill_all_of(store: &Store) {
    let of_store = store.root.display().to_string();
    let commands = || {
        let all = procfs::process::all_processes()
            .expect("processes")
            .flatten();
        all.filter(|process| {
            let words = process.cmdline().unwrap_or_default();
            words.iter().any(|word| word.starts_with(&of_store))
        })
        .map(|process| process.pid)
        .collect::<Vec<_>>()
    };
    for pid in commands() {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).ok();
    }
    assert!(eventually(|| commands().is_empty()));
}

/// A later command that is about bundles.
fn any_command(store: &Store) {
    drop(
        store
            .call(["rm", "no/such:1"])
            .env("XDG_RUNTIME_DIR", store.beside("run"))
            .run(),
    );
}

#[track_caller]
fn assert_nothing_left(store: &Store) {
    assert_eq!(store.names("bundles"), [""; 0]);
    assert_eq!(store.names("records/bundles"), [""; 0]);
    store.assert_nothing_left();
}

#[test]
fn the_exit_code_and_the_streams_are_the_containers() {
    requires!(root);
    own_state_root();
    let store = store();
    assert_eq!(run(&store, &[], &[]).ok().stdout, "hello\n");
    let script = "cat; echo to-stderr >&2; exit 7";
    let input = fs::File::open({
        let path = store.beside("input");
        fs::write(&path, "from stdin\n").expect("write");
        path
    });
    let outcome = run(&store, &[], &["/bin/sh", "-c", script])
        .stdin(Stdio::from(input.expect("open")))
        .run();
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (7, "from stdin\n"),
        "{outcome}"
    );
    assert!(outcome.stderr.contains("to-stderr"), "{outcome}");
    let script = "sh -c 'kill -KILL $$'; exit $?";
    let outcome = run(&store, &[], &["/bin/sh", "-c", script]).run();
    assert_eq!(outcome.code, 137, "{outcome}");
    assert_nothing_left(&store);
}

#[test]
fn the_root_is_an_overlay_of_shared_layers_or_a_tree() {
    requires!(root);
    own_state_root();
    let store = store();
    let script =
        "grep ' / / \\| / ' /proc/self/mountinfo | head -1; ls /etc/below 2>&1; touch /made";
    let overlay = run(&store, &[], &["/bin/sh", "-c", script]).ok().stdout;
    assert!(overlay.contains("overlay"), "{overlay}");
    assert!(overlay.contains("/etc/below: No such file"), "{overlay}");
    assert_eq!(store.names("layers").len(), 3);
    let flat = run(&store, &["--flat"], &["/bin/sh", "-c", script])
        .ok()
        .stdout;
    assert!(!flat.contains("overlay"), "{flat}");
    assert!(flat.contains("/etc/below: No such file"), "{flat}");
    for layer in store.names("layers") {
        assert!(!store.path("layers").join(layer).join("made").exists());
    }
    assert_nothing_left(&store);
}

#[test]
fn another_runtime_can_be_named_and_one_that_is_not_there_leaves_nothing() {
    requires!(root);
    own_state_root();
    let store = store();
    let with = |runtime: &str| store.run(["run", "--runtime", runtime, "bb:1"]);
    for runtime in ["/usr/sbin/runc", "/usr/bin/runc"] {
        if Path::new(runtime).exists() {
            assert_eq!(with(runtime).ok().stdout, "hello\n");
        }
    }
    with("/surely/not/there").fails_with("start the runtime /surely/not/there");
    with("surely-not-there").fails_with("not in $PATH");
    assert_nothing_left(&store);
}

#[test]
fn a_signal_reaches_the_container() {
    requires!(root);
    own_state_root();
    let store = store();
    let script = "trap 'exit 42' TERM; echo ready; while true; do sleep 0.1; done";
    let running = run(&store, &["--name", "sig"], &["/bin/sh", "-c", script]).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    running.signal(Signal::SIGTERM);
    let outcome = running.wait();
    assert_eq!(outcome.code(), 42, "{outcome}");
    assert_nothing_left(&store);
}

#[test]
fn a_bundle_that_is_kept_can_be_run_again_and_goes_by_rm() {
    requires!(root);
    own_state_root();
    let store = store();
    for how in ["--overlay", "--flat"] {
        let outcome = run(&store, &["--keep", "--name", "kept", how], &[]).ok();
        let path = store.path("bundles/kept");
        let line = format!("bundle kept: {}\n", path.display());
        assert!(outcome.stderr.ends_with(&line), "{outcome}");
        any_command(&store);
        let again = Command::new(runtime_for(&store))
            .args(["run", "--bundle"])
            .arg(&path)
            .arg("again")
            .output()
            .expect("runtime");
        assert_eq!(String::from_utf8_lossy(&again.stdout), "hello\n", "{how}");
        run(&store, &["--name", "kept"], &[])
            .run()
            .fails_with("bundle of that id");
        store.ok(["rm", path.to_str().expect("UTF-8")]);
        assert_nothing_left(&store);
    }
}

// The container lives on, and with it what it stands on; the next command after its end cleans up.
#[test]
fn what_a_killed_run_leaves_is_removed_when_its_container_is_gone() {
    requires!(root);
    own_state_root();
    let store = store();
    let sleeping = ["/bin/sh", "-c", "echo ready; sleep 600"];
    let running = run(&store, &["--name", "left"], &sleeping).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    running.signal(Signal::SIGKILL);
    assert!(eventually(|| Path::new("/run/pelagos/left").exists()));
    any_command(&store);
    assert_eq!(store.names("bundles"), ["left"]);
    assert_eq!(store.names("records/bundles"), ["left.json"]);
    let path = store.path("bundles/left");
    store
        .run(["rm", path.to_str().expect("UTF-8")])
        .fails_with("container left");
    // Its runtime stays until it ends.
    let done = Command::new(runtime_for(&store))
        .args(["kill", "left", "KILL"])
        .status();
    assert!(done.expect("runtime").success());
    assert!(eventually(|| !Path::new("/run/pelagos/left").exists()));
    assert!(eventually(|| {
        any_command(&store);
        store.names("bundles").is_empty()
    }));
    assert_nothing_left(&store);
    drop(running.wait());
}

#[test]
fn a_run_that_is_killed_while_it_unpacks_is_cleaned_up_by_the_next() {
    requires!(root);
    own_state_root();
    let store = store();
    for milliseconds in [1, 3, 10, 20, 30, 50, 80] {
        run(&store, &["--flat"], &[]).killed_after(Duration::from_millis(milliseconds));
    }
    // What the last one had started, an extractor or a runtime, ends a moment after it and holds its locks until then.
    assert!(eventually(|| {
        any_command(&store);
        // Leases of the dead go when the leases are read.
        store.ok(["volume", "list"]);
        ["bundles", "staging", "leases"]
            .iter()
            .all(|dir| store.names(dir).is_empty())
    }));
    assert_nothing_left(&store);
}

#[test]
fn two_runs_do_not_share_a_name_and_do_share_layers() {
    requires!(root);
    own_state_root();
    let store = store();
    let waiting = ["/bin/sh", "-c", "echo ready; sleep 600"];
    let first = run(&store, &["--name", "one"], &waiting).spawn();
    assert!(eventually(|| first.stdout().contains("ready")));
    run(&store, &["--name", "one"], &[]).run().fails_with("one");
    assert_eq!(run(&store, &["--name", "two"], &[]).ok().stdout, "hello\n");
    assert_eq!(store.names("bundles"), ["one"]);
    // A mount of a run is nobody else's.
    assert_eq!(mounts_below(&store.path("bundles")).len(), 0);
    first.signal(Signal::SIGKILL);
    drop(first.wait());
    let done = Command::new(runtime_for(&store))
        .args(["kill", "one", "KILL"])
        .status();
    assert!(done.expect("runtime").success());
    assert!(eventually(|| {
        any_command(&store);
        store.names("bundles").is_empty()
    }));
}

#[test]
fn a_named_volume_outlives_the_container() {
    requires!(root);
    own_state_root();
    let store = store();
    run(
        &store,
        &["-v", "v:/data"],
        &["/bin/sh", "-c", "cat /data/seed > /data/copy"],
    )
    .ok();
    let outcome = run(
        &store,
        &["-v", "v:/x:ro"],
        &["/bin/sh", "-c", "cat /x/copy; touch /x/y"],
    )
    .run();
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (1, "seed\n"),
        "{outcome}"
    );
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome}"
    );
    assert_nothing_left(&store);
}

// L-15, L-29, L-53
#[test]
fn an_ordinary_user_runs_with_the_ids_it_was_given() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(true);
    let script = "id -u; stat -c '%u %g' /data/seed; cat /proc/self/uid_map | tr -s ' '; \
                  touch /made && chown web /made && stat -c %u /made; ls /etc/below 2>&1; \
                  grep -c userxattr /proc/self/mountinfo; exit 9";
    let outcome = run(&store, &[], &["/bin/sh", "-c", script]).run();
    assert_eq!(outcome.code, 9, "{outcome}");
    let lines: Vec<&str> = outcome.stdout.lines().map(str::trim).collect();
    assert_eq!(
        lines,
        [
            "0",
            "33 33",
            "0 0 1",
            "1 1 65536",
            "33",
            "ls: /etc/below: No such file or directory",
            "1"
        ],
        "{outcome}"
    );
    let outcome = run(&store, &["--user", "web"], &["/bin/sh", "-c", "id"]).ok();
    assert_eq!(outcome.stdout, "uid=33(web) gid=33(web)\n");
    outcome.warns("groups [7] are left out");
    assert_nothing_left(&store);
    let top = store.names("layers").pop().expect("layer");
    let stat = fs::metadata(store.path("layers").join(top)).expect("stat");
    assert!(stat.uid() == NOBODY, "{}", stat.uid());
}

#[test]
fn an_ordinary_users_bundle_is_for_the_runtime_outside() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(true);
    let as_user = |program: &Path, args: &[&str]| {
        let id = NOBODY.to_string();
        Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(program)
            .args(args)
            .env("XDG_RUNTIME_DIR", store.beside("run"))
            .output()
            .expect("start")
    };
    let runtime = runtime_for(&store);
    let dir = store.beside("b");
    let dir = dir.to_str().expect("UTF-8");
    let xdg = store.beside("run");
    store
        .call(["bundle", "bb:1", dir])
        .env("XDG_RUNTIME_DIR", &xdg)
        .ok();
    let config: Value =
        serde_json::from_slice(&fs::read(Path::new(dir).join("config.json")).expect("config"))
            .expect("JSON");
    assert_eq!(
        config["linux"]["uidMappings"],
        json!([
            {"containerID": 0, "hostID": NOBODY, "size": 1},
            {"containerID": 1, "hostID": 100_000, "size": 65_536},
        ])
    );
    let seed = fs::metadata(Path::new(dir).join("rootfs/data/seed")).expect("stat");
    assert_eq!(seed.uid(), 100_032);
    let done = as_user(&runtime, &["run", "--bundle", dir, "out"]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "hello\n", "{done:?}");
    store
        .call(["bundle", "--overlay", "bb:1", "other"])
        .cwd(store.beside(""))
        .env("XDG_RUNTIME_DIR", &xdg)
        .run()
        .fails_with("would end with this command");
    let outcome = run(&store, &["--keep", "--name", "kept"], &[]).ok();
    assert_eq!(outcome.stdout, "hello\n");
    let kept = store.path("bundles/kept");
    let kept = kept.to_str().expect("UTF-8");
    let done = as_user(&runtime, &["run", "--bundle", kept, "out"]);
    assert_eq!(String::from_utf8_lossy(&done.stdout), "hello\n", "{done:?}");
    store
        .call(["rm", dir, kept])
        .env("XDG_RUNTIME_DIR", &xdg)
        .ok();
    assert!(!Path::new(dir).exists());
    assert_nothing_left(&store);
}

// L-29
#[test]
fn an_ordinary_user_with_one_id_runs_as_its_root() {
    requires!(root);
    own_state_root();
    let store = users_store(false);
    let script = "id -u; stat -c %u /data/seed; ls /etc/below 2>&1; touch /data/x";
    let outcome = run(&store, &[], &["/bin/sh", "-c", script]).ok();
    outcome.warns("caller's own ids");
    assert_eq!(
        outcome.stdout,
        "0\n0\nls: /etc/below: No such file or directory\n"
    );
    run(&store, &["--user", "web"], &[])
        .run()
        .fails_with("user 33");
    assert_nothing_left(&store);
}

#[test]
fn an_ordinary_user_is_not_kept_from_its_own_by_containers_of_root_that_are_closed_to_it() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(true);
    // Somebody made the directory before the runtime did.
    let shared = Path::new("/run/pelagos");
    fs::set_permissions(shared, fs::Permissions::from_mode(0o755)).expect("mode");
    let other = shared.join("other");
    fs::create_dir(&other).expect("directory");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o700)).expect("mode");
    fs::write(other.join("state.json"), "{").expect("state");

    let outcome = run(&store, &[], &["/bin/true"]).ok();
    assert_eq!(outcome.stderr, "");
    assert_nothing_left(&store);
    let verb = |args: &[&str]| {
        let call = store.call(args).env("XDG_RUNTIME_DIR", store.beside("run"));
        call.run()
    };
    verb(&["volume", "create", "v"]).ok();
    verb(&["volume", "list"]).ok();
    verb(&["volume", "rm", "v"]).ok();
    verb(&["prune", "--yes"]).ok();

    // What is open to it counts, and so does what it cannot read of its own.
    fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).expect("mode");
    verb(&["prune", "--yes"]).fails_with("other");
    fs::remove_dir_all(&other).expect("remove");
    let own = store.beside("run/pelagos/own");
    fs::create_dir_all(&own).expect("directory");
    fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).expect("mode");
    verb(&["prune", "--yes"]).fails_with("own");
}

// L-29
#[test]
fn layers_of_a_user_that_got_its_ids_later_are_named_until_they_are_unpacked_again() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(false);
    let owner = |store: &Store| run(store, &[], &["stat", "-c", "%u", "/data/seed"]).ok();
    assert_eq!(owner(&store).stdout, "0\n");
    assert!(!owner(&store).stderr.contains("other ids"));
    subordinate_ids(NOBODY, &store);
    let outcome = owner(&store);
    assert_eq!(outcome.stdout, "0\n");
    outcome.warns("who had no other ids when it was unpacked: `fsck --repair`");
    let call = store.call(["fsck", "--repair"]);
    call.env("XDG_RUNTIME_DIR", store.beside("run")).ok();
    let outcome = owner(&store);
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("33\n", ""));
}

#[test]
fn an_ordinary_users_run_passes_signals_on_and_is_cleaned_up_after_a_kill() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(true);
    let script = "trap 'exit 42' TERM; echo ready; while true; do sleep 0.1; done";
    let command = ["/bin/sh", "-c", script];
    let running = run(&store, &["--name", "sig"], &command).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    running.signal(Signal::SIGTERM);
    let outcome = running.wait();
    assert_eq!(outcome.code(), 42, "{outcome}");
    assert_nothing_left(&store);

    let running = run(&store, &["--name", "left"], &command).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    running.signal(Signal::SIGKILL);
    let id = NOBODY.to_string();
    let kill = |signal: &str| {
        Command::new("setpriv")
            .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
            .arg(runtime_for(&store))
            .args(["kill", "left", signal])
            .env("XDG_RUNTIME_DIR", store.beside("run"))
            .output()
            .expect("start")
    };
    assert!(store.names("bundles").contains(&"left".to_owned()));
    let done = kill("KILL");
    assert!(done.status.success(), "{done:?}");
    assert!(eventually(|| {
        any_command(&store);
        store.names("bundles").is_empty()
    }));
    assert_nothing_left(&store);
    drop(running.wait());
}

#[test]
fn a_container_keeps_its_image_when_its_bundle_was_moved() {
    requires!(root);
    own_state_root();
    let store = store_of_its_own("container");
    let (dir, moved) = (store.beside("b"), store.beside("moved"));
    store
        .call(["bundle", "bb:1"])
        .arg(&dir)
        .args(["--", "/bin/sleep", "600"])
        .ok();
    fs::rename(&dir, &moved).expect("move");
    let pelagos = |args: &[&str]| {
        let done = Command::new(runtime_for(&store))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status();
        assert!(done.expect("runtime").success(), "{args:?}");
    };
    pelagos(&[
        "create",
        "--bundle",
        moved.to_str().expect("UTF-8"),
        "moved",
    ]);
    // The record of the bundle goes: it is not where it was.
    store.ok(["prune", "--yes"]);
    assert_eq!(store.names("records/bundles"), [""; 0]);
    store.ok(["prune", "--all", "--yes"]);
    let listed = store.ok(["list", "--format", "json"]).json();
    assert_eq!(listed[0]["name"], "bb:1");
    pelagos(&["delete", "--force", "moved"]);
    store.ok(["prune", "--all", "--yes"]);
    assert_eq!(store.ok(["list", "--format", "json"]).json(), json!([]));
}

#[test]
fn prune_takes_the_bundle_of_a_killed_run_and_df_counts_it() {
    requires!(root);
    own_state_root();
    let store = store_of_its_own("prune");
    let sleeping = ["/bin/sh", "-c", "echo ready; sleep 600"];
    let options = ["--name", "left", "--flat", "--volume", "v:/v"];
    let running = run(&store, &options, &sleeping).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    let bundles = || {
        let usage = store.ok(["df", "--format", "json"]).json();
        let line = &usage["bundles"];
        assert!(usage["total"]["diskBytes"].as_u64() >= line["diskBytes"].as_u64());
        (
            line["count"].clone(),
            line["diskBytes"].as_u64().expect("bytes"),
            line["reclaimableBytes"].as_u64().expect("bytes"),
        )
    };
    let (count, bytes, reclaimable) = bundles();
    assert_eq!((count, reclaimable), (json!(1), 0));
    assert!(bytes > 500_000, "{bytes}");
    running.signal(Signal::SIGKILL);
    drop(running.wait());
    // The container lives.
    let planned = |args: &[&str]| {
        let mut all = vec!["prune", "--dry-run", "--format", "json"];
        all.extend(args);
        let report = store.ok(all).json();
        let items = report["plan"].as_array().expect("plan").clone();
        items
            .into_iter()
            .map(|item| item["id"].as_str().expect("id").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(planned(&["--all"]), [""; 0]);
    let done = Command::new(runtime_for(&store))
        .args(["delete", "--force", "left"])
        .status();
    assert!(done.expect("runtime").success());
    // Its runtime may take a moment to end.
    assert!(eventually(|| planned(&[]) == ["bundles/left"]));
    assert_eq!(bundles().2, bytes);
    let report = store.ok(["prune", "--yes", "--format", "json"]).json();
    assert_eq!(report["deleted"][0]["id"], "bundles/left");
    assert!(report["deleted"][0]["bytes"].as_u64() > Some(500_000));
    assert_nothing_left(&store);
    // With it went what it used.
    store.ok(["prune", "--all", "--volumes", "--yes"]);
    assert_eq!(store.names("volumes"), [""; 0]);
    assert_eq!(store.blobs(), [""; 0]);
}

#[test]
fn a_container_of_another_runtime_is_in_nobodys_way_and_keeps_what_it_uses() {
    // KERNEL: from 6.17 to 7.1 runc dies at random when it looks for device programs. Where there are controllers is the
    // test machine, whose kernel is older.
    requires!(root, limits, command "runc");
    own_state_root();
    let store = store();
    store.ok(["volume", "create", "v", "unused"]);
    let sleeping = ["/bin/sh", "-c", "echo ready; exec sleep 600"];
    let running = store
        .call(["run", "--runtime", "runc", "--name", "foreign", "-v"])
        .arg(format!("{}:/data", store.path("volumes/v").display()))
        .args(["bb:1", "--"])
        .args(sleeping)
        .spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    let report = store.run(["prune", "--all", "--volumes", "--yes", "--format", "json"]);
    let removal = store.run(["volume", "rm", "v"]);
    let other = run(&store, &[], &[]).run();
    let bundles = store.names("bundles");
    let done = Command::new("runc")
        .args(["--root", "/run/pelagos", "kill", "foreign", "KILL"])
        .status();
    drop(running.wait());
    assert!(done.expect("runc").success());
    let report = report.ok().json();
    let deleted = report["deleted"].as_array().expect("deleted").clone();
    let ids: Vec<_> = deleted.iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, ["unused"]);
    removal.fails_with("volume v: used by bundle");
    assert_eq!(
        (other.code, other.stdout.as_str()),
        (0, "hello\n"),
        "{other}"
    );
    assert_eq!(bundles, ["foreign"]);
}

#[test]
fn a_run_of_a_user_from_another_session_is_left_alone() {
    requires!(root, command "newuidmap");
    own_state_root();
    let store = users_store(true);
    let sleeping = ["/bin/sh", "-c", "echo ready; sleep 600"];
    let running = run(&store, &["--name", "mine", "-v", "v:/v"], &sleeping).spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    kill_all_of(&store);
    let elsewhere = store.beside("elsewhere");
    fs::create_dir(&elsewhere).expect("directory");
    std::os::unix::fs::chown(&elsewhere, Some(NOBODY), Some(NOBODY)).expect("chown");
    let other = run(&store, &[], &[])
        .env("XDG_RUNTIME_DIR", &elsewhere)
        .run();
    let bundles = store.names("bundles");
    let id = NOBODY.to_string();
    let done = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .arg(runtime_for(&store))
        .args(["delete", "--force", "mine"])
        .env("XDG_RUNTIME_DIR", store.beside("run"))
        .status();
    assert!(done.expect("runtime").success());
    drop(running.wait());
    assert_eq!(
        (other.code, other.stdout.as_str()),
        (0, "hello\n"),
        "{other}"
    );
    assert_eq!(bundles, ["mine"]);
}

// Every step of a run's end is followed once by its death.
#[test]
fn a_run_that_is_killed_at_any_step_of_the_removal_is_cleaned_up_by_the_next() {
    requires!(root, command "strace");
    own_state_root();
    let store = store();
    let mut killed = 0;
    for call in ["unlinkat", "renameat", "fsync"] {
        for step in 1.. {
            let fault = format!("{call}:signal=KILL:when={step}");
            let outcome = run(&store, &["--flat"], &[]).injecting(&fault).run();
            if outcome.code == 0 {
                break;
            }
            killed += 1;
            assert!(
                eventually(|| {
                    any_command(&store);
                    store.ok(["volume", "list"]);
                    ["bundles", "records/bundles", "staging", "leases"]
                        .iter()
                        .all(|dir| store.names(dir).is_empty())
                }),
                "{fault}"
            );
        }
    }
    assert!(killed > 5, "{killed}");
    assert_nothing_left(&store);
}

// Of a container whose state is kept where nobody looks, its mounts are what there is to see.
#[test]
fn the_bundle_of_a_container_that_only_its_mounts_show_is_left_alone() {
    requires!(root);
    own_state_root();
    let store = store();
    let elsewhere = store.beside("elsewhere");
    let runtime = store.beside("runtime");
    let script = format!(
        "#!/bin/sh\nshift 2\nexec {} --root {} \"$@\"\n",
        runtime_for(&store).display(),
        elsewhere.display()
    );
    fs::write(&runtime, script).expect("script");
    fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).expect("mode");
    let running = store
        .call(["run", "--runtime"])
        .arg(&runtime)
        .args(["--name", "hidden", "bb:1", "--"])
        .args(["/bin/sh", "-c", "echo ready; sleep 600"])
        .spawn();
    assert!(eventually(|| running.stdout().contains("ready")));
    kill_all_of(&store);
    let bundles = || store.names("bundles");
    let other = run(&store, &[], &[]).run();
    let planned = store.ok(["prune", "--dry-run", "--format", "json"]).json();
    let left = bundles();
    let done = Command::new(runtime_for(&store))
        .arg("--root")
        .arg(&elsewhere)
        .args(["delete", "--force", "hidden"])
        .status();
    assert!(done.expect("runtime").success());
    drop(running.wait());
    assert_eq!(other.stdout, "hello\n", "{other}");
    assert_eq!(planned["plan"], json!([]));
    assert_eq!(left, ["hidden"]);
    // Without the mounts it is a leftover like others.
    assert!(eventually(|| {
        any_command(&store);
        bundles().is_empty()
    }));
}

#[test]
fn nothing_is_made_in_the_store_that_is_not_its_own() {
    let store = store();
    for inside in ["trash/x", "layers/x", "volumes/x", "records/bundles/x", "x"] {
        let dir = store.path(inside);
        fs::create_dir_all(dir.parent().expect("parent")).expect("directory");
        for verb in ["bundle", "unpack"] {
            let outcome = store.call([verb, "bb:1"]).arg(&dir).run();
            outcome.fails_with("which is no place for it");
            assert!(!dir.exists());
        }
    }
}
