//! The process that the bundle asks for: what it is given and what it is not given.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

use crate::inside::{
    Seen, answers, ask, asking, place_probe, refused, see, user_namespace, without_namespace,
};
use crate::support::console::Terminal;
use crate::support::{Bundle, Verb, runtime, sh};

#[test]
fn arguments_arrive_unchanged() {
    requires!(container);
    let seen = ask(&["a b", "", "*", "ü", "$HOME", "--root"], |_| {});
    assert_eq!(
        seen["args"],
        json!(["/probe", "a b", "", "*", "ü", "$HOME", "--root"])
    );
}

#[test]
fn the_exit_code_is_the_payloads() {
    requires!(container);
    for code in [0, 1, 7, 255] {
        let bundle = asking(&[&format!("exit:{code}")], |_| {});
        assert_eq!(bundle.run().code(), code);
    }
}

#[test]
fn the_payload_is_process_1_and_leads_its_session() {
    requires!(container);
    let seen = ask(&[], |_| {});
    for part in ["pid", "pgid", "sid"] {
        assert_eq!(seen[part], 1, "{part}");
    }
    assert_eq!(seen["ppid"], 0);
    assert_eq!(seen["threads"], 1);
}

#[test]
fn the_environment_is_exactly_the_configured_one() {
    requires!(container);
    let seen = ask(&[], |c| {
        c["process"]["env"] = json!(["PATH=/bin", "EMPTY=", "TWO=a=b", "HOME=/somewhere"]);
    });
    assert_eq!(
        seen["env"],
        json!(["PATH=/bin", "EMPTY=", "TWO=a=b", "HOME=/somewhere"])
    );
}

#[test]
fn the_last_of_two_values_of_a_variable_wins() {
    requires!(container);
    differs!("runc", "before 1.4 the environment kept both entries");
    let seen = ask(&[], |c| {
        c["process"]["env"] = json!(["A=1", "HOME=/", "A=2", "A=3"]);
    });
    let all: Vec<&Value> = entries(&seen["env"], "A=");
    assert_eq!(all, ["A=3"]);
}

#[test]
fn an_environment_entry_without_a_name_or_a_value_is_refused() {
    requires!(container);
    differs!("crun", "putenv takes any string");
    differs!("runc", "before 1.4 such entries were passed over");
    for (entry, words) in [
        ("NOVALUE", "missing '='"),
        ("=x", "name cannot be empty"),
        ("A=b\0c", "nul byte"),
    ] {
        refused(
            &asking(&[], |c| c["process"]["env"] = json!(["PATH=/bin", entry])),
            words,
        );
    }
}

#[test]
fn home_comes_from_the_containers_passwd_when_it_is_not_given() {
    requires!(root);
    for (env, uid, home) in [
        (json!(["PATH=/bin"]), 0, "HOME=/root"),
        (json!(["PATH=/bin"]), 1000, "HOME=/home/ada"),
        (json!(["PATH=/bin", "HOME=/mine"]), 1000, "HOME=/mine"),
    ] {
        let seen = ask(&[], |c| {
            c["process"]["env"] = env;
            c["process"]["user"] = json!({ "uid": uid, "gid": 0 });
        });
        assert_eq!(entries(&seen["env"], "HOME="), [home], "uid {uid}");
    }
}

#[test]
fn home_is_the_root_for_an_id_that_passwd_does_not_know() {
    requires!(root);
    differs!("crun", "no HOME is set then");
    let seen = ask(&[], |c| {
        c["process"]["user"] = json!({ "uid": 4321, "gid": 0 });
    });
    assert_eq!(entries(&seen["env"], "HOME="), ["HOME=/"]);
}

#[test]
fn an_empty_home_counts_as_none() {
    requires!(root);
    differs!("crun", "an empty HOME is kept");
    let seen = ask(&[], |c| {
        c["process"]["env"] = json!(["HOME=", "PATH=/bin"]);
        c["process"]["user"] = json!({ "uid": 1000, "gid": 0 });
    });
    assert_eq!(entries(&seen["env"], "HOME="), ["HOME=/home/ada"]);
}

#[test]
fn a_passwd_that_points_out_of_the_root_is_read_inside_it() {
    requires!(root);
    differs!("crun", "no HOME is set for an id that passwd does not know");
    let bundle = asking(&[], |c| {
        c["process"]["user"] = json!({ "uid": 77, "gid": 0 });
    });
    let outside = bundle.beside("passwd");
    fs::write(&outside, "evil:x:77:77::/from/the/host:/bin/sh\n").unwrap();
    fs::remove_file(bundle.rootfs("etc/passwd")).unwrap();
    symlink(&outside, bundle.rootfs("etc/passwd")).unwrap();
    assert_eq!(entries(&see(&bundle)["env"], "HOME="), ["HOME=/"]);
}

#[test]
fn a_program_without_a_slash_is_looked_up_in_the_containers_path() {
    requires!(container);
    let bundle = asking(&[], |c| {
        c["process"]["args"] = json!(["probe"]);
        c["process"]["env"] = json!(["PATH=/nowhere:/tools:/bin"]);
    });
    place_probe(&bundle.rootfs("tools/probe"));
    let seen = see(&bundle);
    assert_eq!(seen["exe"], "/tools/probe");
    assert_eq!(seen["args"], json!(["probe"]));
}

#[test]
fn a_program_that_only_the_host_has_is_not_found() {
    requires!(container, command "jq");
    refused(
        &asking(&[], |c| {
            c["process"]["args"] = json!(["jq"]);
            c["process"]["env"] = json!([format!("PATH={}", std::env::var("PATH").unwrap())]);
        }),
        "exec: \"jq\": executable file not found in $PATH",
    );
}

#[test]
fn a_program_that_cannot_be_run_is_refused_with_the_reason() {
    requires!(container);
    for (program, words) in [
        ("/no/such/program", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
        ("/etc", "is a directory"),
        ("no-such-program", "executable file not found in $PATH"),
    ] {
        refused(
            &asking(&[], |c| c["process"]["args"] = json!([program])),
            words,
        );
    }
}

#[test]
fn without_a_path_only_a_program_with_a_slash_is_found() {
    requires!(container);
    for env in [json!(["PATH="]), json!(["A=1"]), json!([])] {
        let bundle = asking(&[], |c| {
            c["process"]["args"] = json!(["sh"]);
            c["process"]["env"] = env;
        });
        refused(&bundle, "exec: \"sh\": executable file not found in $PATH");
    }
}

#[test]
fn a_process_without_arguments_is_refused() {
    requires!(container);
    refused(
        &asking(&[], |c| c["process"]["args"] = json!([])),
        "args must not be empty",
    );
    refused(
        &asking(&[], |c| {
            c["process"].as_object_mut().unwrap().remove("args");
        }),
        "args must not be empty",
    );
}

#[test]
fn a_missing_working_directory_is_made_in_the_root() {
    requires!(container);
    let bundle = asking(&[], |c| c["process"]["cwd"] = json!("/desk/of the/day"));
    assert_eq!(see(&bundle)["cwd"], "/desk/of the/day");
    let made = fs::metadata(bundle.rootfs("desk/of the")).unwrap();
    assert!(made.is_dir());
    assert_eq!(made.permissions().mode() & 0o7777, 0o755);
    assert_eq!(made.uid(), nix::unistd::geteuid().as_raw());
}

#[test]
fn a_working_directory_behind_an_absolute_symlink_is_made_in_the_root() {
    requires!(container);
    let bundle = asking(&[], |c| c["process"]["cwd"] = json!("/link/day"));
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.rootfs("link")).unwrap();
    fs::create_dir_all(bundle.rootfs(outside.to_str().unwrap())).unwrap();
    assert_eq!(
        see(&bundle)["cwd"],
        outside.join("day").to_str().unwrap(),
        "the same path, but of the container's root"
    );
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn a_working_directory_that_is_no_absolute_path_is_refused() {
    requires!(container);
    differs!("crun", "a relative directory is taken from /");
    for (cwd, words) in [
        ("relative", "Cwd must be an absolute path"),
        ("", "Cwd property must not be empty"),
    ] {
        refused(&asking(&[], |c| c["process"]["cwd"] = json!(cwd)), words);
    }
}

/// CVE-2024-21626: a directory of the host by way of a descriptor that the runtime, or its caller, left open.
#[test]
fn a_working_directory_behind_an_open_descriptor_is_refused() {
    requires!(container);
    differs!(
        "crun",
        "before 1.14.3 a descriptor that the caller left open will do"
    );
    differs!(
        "runc",
        "before 1.1.12 a descriptor that the caller left open will do"
    );
    for n in 3..=20 {
        for cwd in [format!("/proc/self/fd/{n}"), "/workdir".to_owned()] {
            let bundle = asking(&[], |c| c["process"]["cwd"] = json!(cwd));
            symlink(format!("/proc/self/fd/{n}"), bundle.rootfs("workdir")).unwrap();
            let outcome = bundle
                .verb(["run", &bundle.id])
                .under(leaking("exec 7</ 8</etc 9</sys/fs/cgroup 10</tmp;"))
                .run();
            assert_ne!(outcome.code(), 0, "{cwd} with descriptor {n}: {outcome}");
            assert_eq!(outcome.stdout, "");
        }
    }
}

#[test]
fn no_descriptor_but_the_standard_three_reaches_the_payload() {
    requires!(container);
    let bundle = asking(&[], |_| {});
    let seen = answers(
        &bundle
            .verb(["run", &bundle.id])
            .under(leaking("exec 3</ 9</etc 55</tmp;"))
            .ok(),
    );
    let open: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(open, ["0", "1", "2"], "{}", seen["fds"]);
}

#[test]
fn standard_streams_that_the_caller_has_closed_are_dev_null() {
    requires!(container);
    let script = "(for n in 0 1 2; do readlink /proc/1/fd/$n; done) >/seen; true";
    let bundle = Bundle::with(|c| {
        sh(c, script);
        c["root"]["readonly"] = json!(false);
    });
    bundle
        .verb(["run", &bundle.id])
        .under(leaking("exec 0<&- 1>&- 2>&-;"))
        .ok();
    let seen = fs::read_to_string(bundle.rootfs("seen")).expect("what the script wrote");
    assert_eq!(seen, "/dev/null\n".repeat(3));
    bundle.assert_nothing_left();
}

#[test]
fn preserved_descriptors_keep_their_numbers() {
    requires!(container);
    let bundle = asking(&[], |_| {});
    let seen = answers(
        &bundle
            .verb(["run", "--preserve-fds", "2", &bundle.id])
            .under(leaking("exec 3</etc/hostname 4</etc/passwd 5</;"))
            .ok(),
    );
    let open: Vec<&String> = seen["fds"].as_object().unwrap().keys().collect();
    assert_eq!(open, ["0", "1", "2", "3", "4"]);
    assert_eq!(seen["fds"]["3"], "/etc/hostname");
    assert_eq!(seen["fds"]["4"], "/etc/passwd");
}

/// sd_listen_fds(3).
#[test]
fn descriptors_of_the_service_manager_are_the_inits() {
    requires!(root, command "bash");
    let call = |pid: &str, options: &[&str]| {
        let bundle = asking(&[], |_| {});
        let script = format!(
            "exec 3</etc/hostname 4</etc/passwd 5</etc/group; export LISTEN_FDS=2 LISTEN_PID={pid}; exec \"$@\""
        );
        let run = bundle.verb(["run"]).args(options).arg(&bundle.id);
        answers(&run.under(["bash", "-c", &script, "bash"]).ok())
    };
    let open = |seen: &Seen| {
        let fds = seen["fds"].as_object().expect("descriptors");
        ["3", "4", "5"].map(|number| fds.contains_key(number))
    };
    let variables = |seen: &Seen| {
        let env = seen["env"].as_array().expect("variables").iter();
        env.filter_map(|variable| variable.as_str())
            .filter(|variable| variable.starts_with("LISTEN_"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let seen = call("$$", &[]);
    assert_eq!(open(&seen), [true, true, false]);
    assert_eq!(variables(&seen), ["LISTEN_FDS=2", "LISTEN_PID=1"]);
    let seen = call("$$", &["--preserve-fds", "1"]);
    assert_eq!(open(&seen), [true, true, true]);
    assert_eq!(variables(&seen), ["LISTEN_FDS=2", "LISTEN_PID=1"]);
    // They are for another process.
    let seen = call("1", &[]);
    assert_eq!(open(&seen), [false; 3]);
    assert_eq!(variables(&seen), [""; 0]);
}

#[test]
fn a_preserved_descriptor_that_is_not_open_is_refused() {
    requires!(container);
    differs!(
        "runc",
        "1.1 has descriptors of its own at these numbers by then"
    );
    differs!("crun", "descriptors that are not open are passed over");
    let bundle = asking(&[], |_| {});
    bundle
        .verb(["run", "--preserve-fds", "3", &bundle.id])
        .under(leaking("exec 3</etc/hostname 4<&- 5<&-;"))
        .run()
        .fails_with("unable to stat preserved-fd");
    bundle.assert_nothing_left();
}

#[test]
fn ids_and_groups_are_exactly_the_configured_ones() {
    requires!(root);
    let seen = ask(&[], |c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 42] });
    });
    for (part, id) in [("uid", 1000), ("euid", 1000), ("gid", 1001), ("egid", 1001)] {
        assert_eq!(seen[part], id, "{part}");
    }
    assert_eq!(seen["groups"], json!([5, 42]));
}

#[test]
fn the_callers_groups_do_not_reach_the_payload() {
    requires!(root);
    let bundle = asking(&[], |_| {});
    let seen = answers(
        &bundle
            .verb(["run", &bundle.id])
            .under(["setpriv", "--groups", "4,24,27"])
            .ok(),
    );
    assert!(
        seen["groups"] == json!([]) || seen["groups"] == json!([0]),
        "{}",
        seen["groups"]
    );
}

#[test]
fn the_umask_is_022_unless_given() {
    requires!(container);
    assert_eq!(ask(&[], |_| {})["umask"], "0022");
    let given = ask(&[], |c| c["process"]["user"]["umask"] = json!(0o077));
    assert_eq!(given["umask"], "0077");
    let none = ask(&[], |c| c["process"]["user"]["umask"] = json!(0));
    assert_eq!(none["umask"], "0000");
}

#[test]
fn each_of_the_five_capability_sets_is_the_configured_one() {
    requires!(root);
    let seen = ask(&[], |c| {
        c["process"]["capabilities"] = json!({
            "bounding": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW", "CAP_SETUID"],
            "permitted": ["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            "effective": ["CAP_CHOWN", "CAP_NET_RAW"],
            "inheritable": ["CAP_NET_RAW"],
            "ambient": ["CAP_NET_RAW"],
        });
        // Root's execve fills permitted from bounding, unless no new privileges are to be had; effective follows it.
        c["process"]["noNewPrivileges"] = json!(true);
    });
    let sets = &seen["capabilities"];
    assert_eq!(
        sets["bounding"],
        json!(["CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_NET_RAW"])
    );
    assert_eq!(sets["inheritable"], json!(["CAP_NET_RAW"]));
    assert_eq!(sets["ambient"], json!(["CAP_NET_RAW"]));
    assert_eq!(
        sets["permitted"],
        json!(["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"])
    );
}

#[test]
fn a_user_keeps_the_ambient_capabilities_only() {
    requires!(root);
    let seen = ask(&[], |c| {
        let all = json!(["CAP_CHOWN", "CAP_NET_RAW"]);
        c["process"]["capabilities"] = json!({
            "bounding": all, "permitted": all, "effective": all, "inheritable": all, "ambient": ["CAP_NET_RAW"],
        });
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    let sets = &seen["capabilities"];
    assert_eq!(sets["ambient"], json!(["CAP_NET_RAW"]));
    assert_eq!(sets["permitted"], json!(["CAP_NET_RAW"]));
    assert_eq!(sets["effective"], json!(["CAP_NET_RAW"]));
    assert_eq!(sets["bounding"], json!(["CAP_CHOWN", "CAP_NET_RAW"]));
    assert_eq!(sets["inheritable"], json!(["CAP_CHOWN", "CAP_NET_RAW"]));
}

/// CVE-2022-29162, CVE-2022-27650: file capabilities would give back what is inheritable.
#[test]
fn nothing_is_inheritable_unless_configured() {
    requires!(container);
    let seen = ask(&[], |_| {});
    assert_eq!(seen["capabilities"]["inheritable"], json!([]));
    assert_eq!(seen["capabilities"]["ambient"], json!([]));
}

#[test]
fn empty_capability_sets_leave_root_without_any() {
    requires!(root);
    let seen = ask(&[], |c| {
        c["process"]["capabilities"] = json!({
            "bounding": [], "permitted": [], "effective": [], "inheritable": [], "ambient": [],
        });
    });
    for set in [
        "bounding",
        "permitted",
        "effective",
        "inheritable",
        "ambient",
    ] {
        assert_eq!(seen["capabilities"][set], json!([]), "{set}");
    }
}

#[test]
fn an_unknown_capability_is_passed_over() {
    requires!(root);
    differs!("crun", "an unknown capability is an error");
    let seen = ask(&[], |c| {
        let all = json!(["CAP_KILL", "CAP_TO_BE_INVENTED"]);
        c["process"]["capabilities"] =
            json!({ "bounding": all, "permitted": all, "effective": all });
    });
    assert_eq!(seen["capabilities"]["bounding"], json!(["CAP_KILL"]));
}

#[test]
fn a_capability_that_another_set_forbids_is_a_warning() {
    requires!(root);
    differs!("crun", "an error, or nothing is said");
    differs!("runc", "an error, or nothing is said");
    let bundle = asking(&[], |c| {
        c["process"]["capabilities"] = json!({
            "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"], "effective": ["CAP_KILL", "CAP_CHOWN"],
            "inheritable": ["CAP_SETUID"], "ambient": ["CAP_KILL"],
        });
    });
    let outcome = bundle.run().ok();
    let seen = &answers(&outcome)["capabilities"];
    assert_eq!(seen["effective"], json!(["CAP_KILL"]));
    assert_eq!(
        (&seen["inheritable"], &seen["ambient"]),
        (&json!([]), &json!([]))
    );
    for words in [
        "ignoring effective capability CAP_CHOWN",
        "ignoring inheritable capability CAP_SETUID",
        "can't raise ambient capability CAP_KILL",
    ] {
        assert!(outcome.stderr.contains(words), "{words}: {outcome}");
    }
}

#[test]
fn resource_limits_are_set() {
    requires!(container);
    // All that the specification has; none so low that a program could not begin.
    let limits = [
        ("RLIMIT_AS", 1 << 40, 1 << 41),
        ("RLIMIT_CORE", 0, 0),
        ("RLIMIT_CPU", 1000, 2000),
        ("RLIMIT_DATA", 1 << 38, 1 << 39),
        ("RLIMIT_FSIZE", 1_000_000, 2_000_000),
        ("RLIMIT_LOCKS", 11, 12),
        ("RLIMIT_MEMLOCK", 4096, 8192),
        ("RLIMIT_MSGQUEUE", 1000, 2000),
        ("RLIMIT_NICE", 0, 0),
        ("RLIMIT_NOFILE", 100, 200),
        ("RLIMIT_NPROC", 50, 60),
        ("RLIMIT_RSS", 1 << 30, 1 << 31),
        ("RLIMIT_RTPRIO", 0, 0),
        ("RLIMIT_RTTIME", 100_000, 200_000),
        ("RLIMIT_SIGPENDING", 100, 200),
        ("RLIMIT_STACK", 8 << 20, 16 << 20),
    ];
    let seen = ask(&[], |c| {
        let all = limits.iter().map(|(name, soft, hard): &(_, u64, u64)| {
            json!({ "type": name, "soft": soft, "hard": hard })
        });
        c["process"]["rlimits"] = all.collect();
    });
    for (name, soft, hard) in limits {
        assert_eq!(seen["rlimits"][name], json!([soft, hard]), "{name}");
    }
}

#[test]
fn a_tight_resource_limit_does_not_hinder_the_set_up() {
    requires!(container);
    differs!("crun", "limits are set before the root is made");
    let seen = ask(&[], |c| {
        c["process"]["rlimits"] = json!([
            { "type": "RLIMIT_NOFILE", "soft": 8, "hard": 8 },
            { "type": "RLIMIT_MEMLOCK", "soft": 0, "hard": 0 },
        ]);
    });
    assert_eq!(seen["rlimits"]["RLIMIT_NOFILE"], json!([8, 8]));
}

#[test]
fn an_unknown_or_repeated_resource_limit_is_refused() {
    requires!(container);
    refused(
        &asking(&[], |c| {
            c["process"]["rlimits"] = json!([{ "type": "RLIMIT_WISHES", "soft": 1, "hard": 1 }]);
        }),
        "RLIMIT_WISHES",
    );
    if !runtime().is("pelagos") {
        return;
    }
    // COMPAT: the specification says an error; runc and crun take the last one.
    refused(
        &asking(&[], |c| {
            let one = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 });
            c["process"]["rlimits"] = json!([one, one]);
        }),
        "RLIMIT_NOFILE",
    );
}

#[test]
fn no_new_privileges_is_as_configured() {
    requires!(container);
    for wanted in [true, false] {
        let seen = ask(&[], |c| c["process"]["noNewPrivileges"] = json!(wanted));
        assert_eq!(seen["no_new_privs"], i32::from(wanted));
    }
    let absent = ask(&[], |c| {
        c["process"]
            .as_object_mut()
            .unwrap()
            .remove("noNewPrivileges");
    });
    assert_eq!(absent["no_new_privs"], 0);
}

#[test]
fn the_oom_score_adjustment_is_set_or_left_alone() {
    requires!(container);
    let seen = ask(&[], |c| c["process"]["oomScoreAdj"] = json!(500));
    assert_eq!(seen["oom_score_adj"], 500);
    let bundle = asking(&[], |_| {});
    let seen = answers(
        &bundle
            .verb(["run", &bundle.id])
            .under(["choom", "-n", "300", "--"])
            .ok(),
    );
    assert_eq!(seen["oom_score_adj"], 300, "the caller's own value");
}

#[test]
fn sysctls_of_own_namespaces_are_set() {
    requires!(root);
    let keys = [
        (
            "net.ipv4.ip_unprivileged_port_start",
            "/proc/sys/net/ipv4/ip_unprivileged_port_start",
            "81",
        ),
        (
            "kernel.shm_rmid_forced",
            "/proc/sys/kernel/shm_rmid_forced",
            "1",
        ),
        ("kernel.msgmax", "/proc/sys/kernel/msgmax", "4096"),
        ("fs.mqueue.msg_max", "/proc/sys/fs/mqueue/msg_max", "7"),
        (
            "kernel.domainname",
            "/proc/sys/kernel/domainname",
            "example.org",
        ),
    ];
    let before: Vec<_> = keys
        .iter()
        .map(|(_, path, _)| fs::read(path).ok())
        .collect();
    let questions: Vec<String> = keys
        .iter()
        .map(|(_, path, _)| format!("read:{path}"))
        .collect();
    let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
    let seen = ask(&questions, |c| {
        for (key, _, value) in keys {
            c["linux"]["sysctl"][key] = json!(value);
        }
    });
    for ((key, _, value), question) in keys.iter().zip(&questions) {
        assert_eq!(seen.text(question).trim(), *value, "{key}");
    }
    let after: Vec<_> = keys
        .iter()
        .map(|(_, path, _)| fs::read(path).ok())
        .collect();
    assert_eq!(before, after, "the host's own values");
}

#[test]
fn a_sysctl_may_be_written_with_slashes() {
    requires!(root);
    differs!("crun", "1.8 takes dots only");
    let seen = ask(
        &["read:/proc/sys/net/ipv4/ip_unprivileged_port_start"],
        |c| {
            c["linux"]["sysctl"] = json!({ "net/ipv4/ip_unprivileged_port_start": "82" });
        },
    );
    assert_eq!(
        seen.text("read:/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        "82\n"
    );
}

#[test]
fn a_sysctl_of_no_own_namespace_is_refused() {
    requires!(root);
    for (key, namespace) in [
        ("kernel.panic", ""),
        ("vm.swappiness", ""),
        ("net.ipv4.ip_forward", "network"),
        ("kernel.shmmax", "ipc"),
        ("kernel.domainname", "uts"),
        ("net.ipv4/../../kernel/panic", ""),
    ] {
        let bundle = asking(&[], |c| {
            c["linux"]["sysctl"] = json!({ key: "1" });
            without_namespace(c, namespace);
            if namespace == "uts" {
                c.as_object_mut().unwrap().remove("hostname");
            }
        });
        refused(&bundle, key);
    }
}

#[test]
fn host_name_and_domain_name_are_set_inside_only() {
    requires!(container);
    differs!("runc", "the domain name is set since 1.2");
    let before = nix::sys::utsname::uname().unwrap();
    let seen = ask(&[], |c| {
        c["hostname"] = json!("first.light");
        c["domainname"] = json!("example.org");
    });
    assert_eq!(seen["hostname"], "first.light");
    assert_eq!(seen["domainname"], "example.org");
    let after = nix::sys::utsname::uname().unwrap();
    assert_eq!(before.nodename(), after.nodename());
    assert_eq!(before.domainname(), after.domainname());
}

#[test]
fn a_name_without_an_own_uts_namespace_is_refused() {
    requires!(container);
    refused(
        &asking(&[], |c| without_namespace(c, "uts")),
        "unable to set hostname without a private UTS namespace",
    );
    if runtime().is("pelagos") {
        refused(
            &asking(&[], |c| {
                without_namespace(c, "uts");
                c.as_object_mut().unwrap().remove("hostname");
                c["domainname"] = json!("example.org");
            }),
            "unable to set domainname without a private UTS namespace",
        );
    }
}

#[test]
fn the_payload_starts_with_clean_signals() {
    requires!(container, command "env");
    differs!("runc", "what the caller blocks stays blocked");
    let bundle = asking(&[], |_| {});
    let seen = answers(
        &bundle
            .verb(["run", &bundle.id])
            .under(["env", "--block-signal=USR1,TERM", "--ignore-signal=USR2"])
            .ok(),
    );
    assert_eq!(seen["signals_blocked"], json!([]));
    assert_eq!(seen["signals_caught"], json!([]));
    assert_eq!(seen["signals_pending"], json!([]));
    // SIGPIPE is 13: a runtime in Rust or Go ignores it for itself.
    assert!(
        !seen["signals_ignored"]
            .as_array()
            .unwrap()
            .contains(&json!(13)),
        "{}",
        seen["signals_ignored"]
    );
    if runtime().is("pelagos") {
        assert_eq!(seen["signals_ignored"], json!([]));
    }
}

#[test]
fn the_payload_is_dumpable_and_outlives_its_parent() {
    requires!(container);
    let seen = ask(&[], |_| {});
    assert_eq!(seen["dumpable"], true);
    assert_eq!(seen["pdeathsig"], Value::Null);
}

#[test]
fn the_session_keyring_is_the_containers_own() {
    requires!(container);
    let bundle = asking(&[], |_| {});
    let seen = see(&bundle);
    let name = seen["keyring"].as_str().expect("a keyring");
    assert!(name.ends_with(&bundle.id), "{name}");
    if !runtime().is("crun") {
        assert!(name.ends_with(&format!(";_ses.{}", bundle.id)), "{name}");
    }
    let kept = answers(&bundle.verb(["run", "--no-new-keyring", &bundle.id]).ok());
    assert_ne!(kept["keyring"], seen["keyring"]);
}

#[test]
fn a_user_may_reopen_the_standard_streams() {
    requires!(root);
    let seen = ask(&["openw:/proc/self/fd/1", "openw:/proc/self/fd/2"], |c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    assert_eq!(seen.ok("openw:/proc/self/fd/1"), true);
    assert_eq!(seen.ok("openw:/proc/self/fd/2"), true);
}

#[test]
fn the_hosts_null_device_keeps_its_owner() {
    requires!(root);
    let before = fs::metadata("/dev/null").unwrap();
    ask(&[], |c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!(
        (before.uid(), before.gid(), before.mode()),
        (after.uid(), after.gid(), after.mode())
    );
}

/// A terminal that was the user's after the container's end would let the user type into root's shell.
#[test]
fn the_callers_terminal_and_devices_keep_their_owner() {
    requires!(root);
    differs!("runc", "gives away all but the null device");
    differs!("crun", "gives away all but terminals");
    let bundle = asking(&["sleep:1"], |c| {
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
    });
    let node = bundle.beside("node");
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, makedev(1, 5)).unwrap();
    let (_terminal, slave) = Terminal::open(24, 80);
    let owners = || {
        let terminal = nix::sys::stat::fstat(&slave).unwrap();
        (fs::metadata(&node).unwrap().uid(), terminal.st_uid)
    };
    assert_eq!(owners(), (0, 0));
    let with = |verb: Verb| verb.stdio(&slave).stdin(fs::File::open(&node).unwrap());
    with(bundle.verb(["run", &bundle.id])).ok();
    assert_eq!(owners(), (0, 0), "run");
    bundle.edit(|c| c["process"]["args"] = json!(["sleep", "1000"]));
    with(bundle.verb(["run", "-d", &bundle.id])).ok();
    assert_eq!(owners(), (0, 0), "run --detach");
    with(bundle.verb(["exec", "-u", "1000", &bundle.id, "true"])).ok();
    assert_eq!(owners(), (0, 0), "exec");
    with(bundle.verb(["exec", "-d", "-u", "1000", &bundle.id, "true"])).ok();
    assert_eq!(owners(), (0, 0), "exec --detach");
}

#[test]
fn a_terminal_of_its_own_belongs_to_the_user() {
    requires!(root);
    differs!("runc", "wants its caller to have one");
    differs!("crun", "wants its caller to have one");
    let bundle = Bundle::sleeping();
    bundle.up();
    let script = "stat -Lc %u /proc/self/fd/0; echo again >$(tty)";
    let exec = bundle.verb(["exec", "-t", "-u", "1000", &bundle.id, "sh", "-c", script]);
    assert_eq!(exec.ok().stdout, "1000\r\nagain\r\n");
}

#[test]
fn ids_that_the_user_namespace_does_not_know_are_refused() {
    requires!(root);
    for (user, words) in [
        (
            json!({ "uid": 5000, "gid": 0 }),
            "cannot setuid to unmapped uid 5000 in user namespace",
        ),
        (
            json!({ "uid": 0, "gid": 5000 }),
            "cannot setgid to unmapped gid 5000 in user namespace",
        ),
    ] {
        refused(
            &asking(&[], |c| {
                user_namespace(c);
                c["process"]["user"] = user;
            }),
            words,
        );
    }
}

#[test]
fn a_config_without_a_process_is_refused() {
    requires!(container);
    let bundle: Bundle = asking(&[], |c| {
        c.as_object_mut().unwrap().remove("process");
    });
    refused(&bundle, "process property must not be empty");
}

fn entries<'a>(env: &'a Value, start: &str) -> Vec<&'a Value> {
    env.as_array()
        .expect("an environment")
        .iter()
        .filter(|e| e.as_str().is_some_and(|e| e.starts_with(start)))
        .collect()
}

/// A shell that opens descriptors and then becomes the runtime.
fn leaking(open: &str) -> [String; 3] {
    [
        "bash".into(),
        "-c".into(),
        format!("{open} exec \"$0\" \"$@\""),
    ]
}
