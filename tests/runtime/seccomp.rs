//! System call filters: what the payload may call, and what the runtime still may.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::libc;
use serde_json::{Value, json};

use crate::inside::{Seen, answers, ask, asking, privileged, refused, see};
use crate::support::{Bundle, runtime};

/// A question for a system call by number with these arguments.
fn call(number: libc::c_long, args: &[i64]) -> String {
    let mut question = format!("syscall:{number}");
    for arg in args {
        question.push_str(&format!(":{arg}"));
    }
    question
}

/// Everything is allowed but what these rules say.
fn filter(config: &mut Value, rules: &Value) {
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": rules,
    });
    if cfg!(target_arch = "aarch64") {
        config["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_AARCH64"]);
    }
}

fn rule(names: &[&str], action: &str) -> Value {
    json!([{ "names": names, "action": action }])
}

#[test]
fn a_denied_call_fails_with_eperm_unless_told_otherwise() {
    requires!(container);
    let [umask, getpgid, getsid] = [
        call(libc::SYS_umask, &[0o22]),
        call(libc::SYS_getpgid, &[0]),
        call(libc::SYS_getsid, &[0]),
    ];
    let seen = ask(&[&umask, &getpgid, &getsid], |c| {
        filter(
            c,
            &json!([
                { "names": ["umask"], "action": "SCMP_ACT_ERRNO" },
                { "names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61 },
            ]),
        );
    });
    assert_eq!(seen["seccomp"], 2);
    assert_eq!(seen["seccomp_filters"], 1);
    assert_eq!(seen.errno(&umask), "EPERM");
    assert_eq!(seen.errno(&getpgid), "ENODATA");
    assert_eq!(seen.ok(&getsid), 1);
}

#[test]
fn without_a_profile_there_is_no_filter() {
    requires!(container);
    let seen = ask(&[], |_| {});
    assert_eq!(seen["seccomp"], 0);
}

#[test]
fn actions_that_end_the_process_end_it_with_sigsys() {
    requires!(container);
    for action in [
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_TRAP",
    ] {
        let question = call(libc::SYS_umask, &[0]);
        let bundle = asking(&[&question], |c| filter(c, &rule(&["umask"], action)));
        let outcome = bundle.run();
        assert_eq!(outcome.code(), 128 + libc::SIGSYS, "{action}: {outcome}");
        assert_eq!(outcome.stdout, "", "{action}");
    }
}

#[test]
fn a_logged_call_goes_through() {
    requires!(container);
    let question = call(libc::SYS_umask, &[0]);
    let seen = ask(&[&question], |c| {
        filter(c, &rule(&["umask"], "SCMP_ACT_LOG"));
    });
    assert_eq!(seen.ok(&question), 0o22);
    assert_eq!(seen["seccomp"], 2);
}

#[test]
fn a_traced_call_without_a_tracer_does_not_exist() {
    requires!(container);
    let question = call(libc::SYS_umask, &[0]);
    let seen = ask(&[&question], |c| {
        filter(c, &rule(&["umask"], "SCMP_ACT_TRACE"));
    });
    assert_eq!(seen.errno(&question), "ENOSYS");
}

#[test]
fn a_condition_compares_an_argument() {
    requires!(container);
    for (operator, value, two, hit, miss) in [
        ("SCMP_CMP_EQ", 7, 0, [7, 7], [6, 8]),
        ("SCMP_CMP_NE", 7, 0, [6, 8], [7, 7]),
        ("SCMP_CMP_LT", 7, 0, [6, 0], [7, 8]),
        ("SCMP_CMP_LE", 7, 0, [6, 7], [8, 9]),
        ("SCMP_CMP_GT", 7, 0, [8, 9], [7, 6]),
        ("SCMP_CMP_GE", 7, 0, [7, 8], [6, 0]),
        // The value is the mask, and valueTwo what must come out.
        ("SCMP_CMP_MASKED_EQ", 6, 2, [2, 3], [4, 6]),
    ] {
        let questions: Vec<String> = hit
            .iter()
            .chain(&miss)
            .map(|n| call(libc::SYS_umask, &[*n]))
            .collect();
        let asked: Vec<&str> = questions.iter().map(String::as_str).collect();
        let seen = ask(&asked, |c| {
            filter(
                c,
                &json!([{
                    "names": ["umask"], "action": "SCMP_ACT_ERRNO",
                    "args": [{ "index": 0, "value": value, "valueTwo": two, "op": operator }],
                }]),
            );
        });
        for question in &questions[..2] {
            assert_eq!(seen.errno(question), "EPERM", "{operator} {question}");
        }
        for question in &questions[2..] {
            seen.ok(question);
        }
    }
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_all_hold() {
    requires!(container);
    let ask_priority = |which: i64, who: i64| call(libc::SYS_getpriority, &[which, who]);
    let questions = [
        call(libc::SYS_umask, &[1]),
        call(libc::SYS_umask, &[2]),
        call(libc::SYS_umask, &[3]),
        ask_priority(0, 0),
        ask_priority(0, 1),
        ask_priority(1, 1),
    ];
    let asked: Vec<&str> = questions.iter().map(String::as_str).collect();
    let seen = ask(&asked, |c| {
        let equal =
            |index: u32, value: u32| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
        filter(
            c,
            &json!([
                { "names": ["umask"], "action": "SCMP_ACT_ERRNO", "args": [equal(0, 1), equal(0, 2)] },
                { "names": ["getpriority"], "action": "SCMP_ACT_ERRNO", "args": [equal(0, 0), equal(1, 1)] },
            ]),
        );
    });
    assert_eq!(seen.errno(&questions[0]), "EPERM");
    assert_eq!(seen.errno(&questions[1]), "EPERM");
    seen.ok(&questions[2]);
    seen.ok(&questions[3]);
    assert_eq!(seen.errno(&questions[4]), "EPERM");
    seen.ok(&questions[5]);
}

#[test]
fn a_condition_sees_all_64_bits() {
    requires!(container);
    let low = call(libc::SYS_lseek, &[99, 5, 0]);
    let high = call(libc::SYS_lseek, &[99, (1 << 32) + 5, 0]);
    let seen = ask(&[&low, &high], |c| {
        filter(
            c,
            &json!([{
                "names": ["lseek"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61,
                "args": [{ "index": 1, "value": (1_u64 << 32) + 5, "op": "SCMP_CMP_EQ" }],
            }]),
        );
    });
    assert_eq!(seen.errno(&low), "EBADF");
    assert_eq!(seen.errno(&high), "ENODATA");
}

/// What the probe and the runtime's last steps need, and `faccessat2` (439) as the newest.
const NEEDED: &[&str] = &[
    "access",
    "arch_prctl",
    "brk",
    "capget",
    "capset",
    "chdir",
    "clock_gettime",
    "clone",
    "close",
    "close_range",
    "dup",
    "dup2",
    "dup3",
    "epoll_ctl",
    "epoll_create1",
    "epoll_pwait",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "faccessat",
    "faccessat2",
    "fchown",
    "fcntl",
    "fstat",
    "fstatfs",
    "futex",
    "getcwd",
    "getdents64",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgid",
    "getpgrp",
    "getpid",
    "getppid",
    "getrandom",
    "getrlimit",
    "getsid",
    "gettid",
    "getuid",
    "ioctl",
    "ioprio_get",
    "keyctl",
    "lseek",
    "madvise",
    "mmap",
    "mprotect",
    "mremap",
    "munmap",
    "nanosleep",
    "newfstatat",
    "open",
    "openat",
    "openat2",
    "personality",
    "poll",
    "ppoll",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "readlinkat",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sched_getattr",
    "sched_getscheduler",
    "sched_yield",
    "sendmsg",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setresgid",
    "setresuid",
    "setuid",
    "sigaltstack",
    "stat",
    "statx",
    "statfs",
    "umask",
    "uname",
    "unlinkat",
    "write",
    "writev",
    "tgkill",
    "lstat",
    "epoll_wait",
    "eventfd2",
    "pipe2",
    "seccomp",
    "symlinkat",
];

#[test]
fn a_call_newer_than_the_profile_does_not_exist_and_an_older_one_is_denied() {
    requires!(container);
    differs!("crun", "it has no such rule");
    let questions = [
        call(libc::SYS_sethostname, &[0, 0]),
        call(libc::SYS_pidfd_open, &[0, 0]),
        call(libc::SYS_epoll_pwait2, &[-1, 0, 0, 0]),
        call(500, &[]),
        call(libc::SYS_umask, &[0]),
    ];
    let asked: Vec<&str> = questions.iter().map(String::as_str).collect();
    let seen = ask(&asked, |c| {
        filter(c, &rule(NEEDED, "SCMP_ACT_ALLOW"));
        c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_ERRNO");
        c["linux"]["seccomp"]["defaultErrnoRet"] = json!(61);
    });
    // 439 is the newest that the profile names: 434 could have been meant, 441 and 500 could not.
    assert_eq!(seen.errno(&questions[0]), "ENODATA");
    assert_eq!(seen.errno(&questions[1]), "ENODATA");
    assert_eq!(seen.errno(&questions[2]), "ENOSYS");
    assert_eq!(seen.errno(&questions[3]), "ENOSYS");
    seen.ok(&questions[4]);
}

#[test]
fn a_default_of_killing_spares_calls_that_the_profile_is_too_old_for() {
    requires!(container);
    differs!("crun", "it has no such rule");
    let newer = call(500, &[]);
    let seen = ask(&[&newer], |c| {
        filter(c, &rule(NEEDED, "SCMP_ACT_ALLOW"));
        c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_KILL_PROCESS");
    });
    assert_eq!(seen.errno(&newer), "ENOSYS");
    let older = call(libc::SYS_pidfd_open, &[0, 0]);
    let bundle = asking(&[&older], |c| {
        filter(c, &rule(NEEDED, "SCMP_ACT_ALLOW"));
        c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_KILL_PROCESS");
    });
    assert_eq!(bundle.run().code(), 128 + libc::SIGSYS);
}

#[test]
fn the_filter_is_there_with_and_without_new_privileges() {
    requires!(container);
    let question = call(libc::SYS_umask, &[0]);
    for denied in [true, false] {
        // Without the bit, loading a filter needs CAP_SYS_ADMIN, which the payload must not be left with.
        let seen = ask(&[&question], |c| {
            c["process"]["noNewPrivileges"] = json!(denied);
            filter(c, &rule(&["umask"], "SCMP_ACT_ERRNO"));
        });
        assert_eq!(seen["no_new_privs"], i32::from(denied));
        assert_eq!(seen["seccomp"], 2);
        assert_eq!(seen.errno(&question), "EPERM");
        let effective = seen["capabilities"]["effective"].as_array().unwrap();
        assert!(
            !effective.contains(&json!("CAP_SYS_ADMIN")),
            "{effective:?}"
        );
    }
}

#[test]
fn a_user_without_rights_gets_the_filter_too() {
    requires!(root);
    let question = call(libc::SYS_umask, &[0]);
    for denied in [true, false] {
        let seen = ask(&[&question], |c| {
            c["process"]["noNewPrivileges"] = json!(denied);
            c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            filter(c, &rule(&["umask"], "SCMP_ACT_ERRNO"));
        });
        assert_eq!(seen["seccomp"], 2);
        assert_eq!(seen.errno(&question), "EPERM");
        assert_eq!(seen["uid"], 1000);
    }
}

#[test]
fn with_no_new_privileges_the_filter_is_loaded_last() {
    requires!(root);
    let seen = ask(&[], |c| {
        c["process"]["noNewPrivileges"] = json!(true);
        c["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        filter(
            c,
            &rule(
                &[
                    "setuid",
                    "setresuid",
                    "setgid",
                    "setresgid",
                    "setgroups",
                    "capset",
                    "sethostname",
                    "mount",
                    "umount2",
                    "pivot_root",
                    "unshare",
                    "setns",
                    "keyctl",
                    "prlimit64",
                    "setsid",
                    "fchown",
                    "umask",
                    "add_key",
                ],
                "SCMP_ACT_ERRNO",
            ),
        );
    });
    assert_eq!(seen["uid"], 1000);
    assert_eq!(seen["seccomp"], 2);
}

#[test]
fn unknown_calls_are_passed_over() {
    requires!(container);
    let question = call(libc::SYS_umask, &[0]);
    let seen = ask(&[&question], |c| {
        filter(
            c,
            &rule(&["call_to_be_invented", "umask"], "SCMP_ACT_ERRNO"),
        );
    });
    assert_eq!(seen.errno(&question), "EPERM");
}

#[test]
fn an_unknown_word_in_a_profile_is_refused() {
    requires!(container);
    let bundle = |edit: &dyn Fn(&mut Value)| {
        asking(&[], |c| {
            filter(c, &rule(&["umask"], "SCMP_ACT_ERRNO"));
            edit(&mut c["linux"]["seccomp"]);
        })
    };
    refused(
        &bundle(&|s| s["defaultAction"] = json!("SCMP_ACT_SHRUG")),
        "SCMP_ACT_SHRUG",
    );
    refused(
        &bundle(&|s| s["syscalls"][0]["action"] = json!("SCMP_ACT_SHRUG")),
        "SCMP_ACT_SHRUG",
    );
    refused(
        &bundle(&|s| s["architectures"] = json!(["SCMP_ARCH_ABACUS"])),
        "SCMP_ARCH_ABACUS",
    );
    refused(
        &bundle(&|s| {
            s["syscalls"][0]["args"] = json!([{ "index": 0, "value": 1, "op": "SCMP_CMP_ISH" }]);
        }),
        "SCMP_CMP_ISH",
    );
    differs!(
        "crun",
        "1.8 passes over flags, and takes an errno with any action"
    );
    refused(
        &bundle(&|s| s["flags"] = json!(["SECCOMP_FILTER_FLAG_SHINY"])),
        "SECCOMP_FILTER_FLAG_SHINY",
    );
    differs!("runc", "1.1 takes an errno with any action");
    refused(
        &bundle(&|s| {
            s["syscalls"][0]["action"] = json!("SCMP_ACT_KILL");
            s["syscalls"][0]["errnoRet"] = json!(5);
        }),
        "errno",
    );
}

#[test]
fn notification_is_no_default() {
    requires!(container);
    refused(
        &asking(&[], |c| {
            filter(c, &json!([]));
            c["linux"]["seccomp"]["defaultAction"] = json!("SCMP_ACT_NOTIFY");
        }),
        "SCMP_ACT_NOTIFY cannot be used as default action",
    );
}

#[test]
fn flags_reach_the_kernel() {
    requires!(root, command "strace");
    differs!("runc", "1.1 wants a newer libseccomp for some");
    differs!("crun", "1.8 passes over flags");
    for (flags, there, absent) in [
        (json!(null), &["SPEC_ALLOW"][..], &["LOG"][..]),
        (json!([]), &[], &["SPEC_ALLOW", "LOG"]),
        (
            json!(["SECCOMP_FILTER_FLAG_LOG"]),
            &["LOG"],
            &["SPEC_ALLOW"],
        ),
        (
            json!([
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
                "SECCOMP_FILTER_FLAG_LOG",
                "SECCOMP_FILTER_FLAG_TSYNC"
            ]),
            &["SPEC_ALLOW", "LOG"],
            &[],
        ),
    ] {
        let bundle = asking(&[], |c| {
            filter(c, &rule(&["swapon"], "SCMP_ACT_ERRNO"));
            if !flags.is_null() {
                c["linux"]["seccomp"]["flags"] = flags.clone();
            }
        });
        let trace = bundle.beside("trace");
        let under = ["strace", "-f", "-qq", "-e", "trace=seccomp", "-o"];
        let under = under.iter().copied().chain(trace.to_str());
        let run = bundle.verb(["run", "-b", "."]).arg(&bundle.id);
        run.under(under).run().ok();
        let trace = std::fs::read_to_string(trace).expect("trace");
        // Others are questions of libseccomp's, without a program.
        let load = trace
            .lines()
            .find(|line| line.contains("SECCOMP_SET_MODE_FILTER") && line.contains("filter="));
        let load = load.expect(&trace);
        for flag in there {
            let flag = format!("SECCOMP_FILTER_FLAG_{flag}");
            assert!(load.contains(&flag), "{flags}: {load}");
        }
        for flag in absent {
            let flag = format!("SECCOMP_FILTER_FLAG_{flag}");
            assert!(!load.contains(&flag), "{flags}: {load}");
        }
    }
}

#[test]
fn known_flags_are_accepted() {
    requires!(root);
    differs!("runc", "1.1 wants a newer libseccomp for some");
    for flags in [
        json!([]),
        json!(["SECCOMP_FILTER_FLAG_LOG"]),
        json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
        json!(["SECCOMP_FILTER_FLAG_TSYNC"]),
        json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"]),
    ] {
        let question = call(libc::SYS_umask, &[0]);
        let seen = ask(&[&question], |c| {
            filter(c, &rule(&["umask"], "SCMP_ACT_ERRNO"));
            c["linux"]["seccomp"]["flags"] = flags.clone();
        });
        assert_eq!(seen.errno(&question), "EPERM", "{flags}");
    }
}

/// On x86 the old numbers reach the kernel by another door, which the profile must have closed as well.
#[test]
fn a_profile_for_one_architecture_kills_calls_of_another() {
    requires!(container);
    if !cfg!(target_arch = "x86_64") {
        return;
    }
    // 0x40000000 marks x32, which this profile does not list.
    let question = call(0x4000_0000 + libc::SYS_umask, &[0]);
    let bundle = asking(&[&question], |c| {
        filter(c, &rule(&["umask"], "SCMP_ACT_ERRNO"));
        c["linux"]["seccomp"]["architectures"] = json!(["SCMP_ARCH_X86_64"]);
    });
    let outcome = bundle.run();
    if outcome.code() == 0 {
        // Where the kernel has no x32 the call does not exist, and it must not have gone through either way.
        let seen = answers(&outcome);
        assert!(["ENOSYS", "EPERM"].contains(&seen.errno(&question)));
    } else {
        assert_eq!(outcome.code(), 128 + libc::SIGSYS);
    }
}

fn cached(bundle: &Bundle) -> Vec<PathBuf> {
    fs::read_dir(bundle.state_root.join(".cache/seccomp"))
        .map(|entries| {
            entries
                .flatten()
                .map(|e| e.path())
                .filter(|p| p.is_file())
                .collect()
        })
        .unwrap_or_default()
}

fn denies(bundle: &Bundle, question: &str) -> Seen {
    let seen = see(bundle);
    assert_eq!(seen["seccomp"], 2);
    assert_eq!(seen.errno(question), "ENODATA");
    seen
}

#[test]
fn a_filter_from_the_cache_behaves_as_a_fresh_one() {
    requires!(container);
    if !runtime().is("pelagos") {
        return;
    }
    let question = call(libc::SYS_umask, &[0]);
    let profile = json!([{ "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61 }]);
    let bundle = asking(&[&question], |c| filter(c, &profile));
    denies(&bundle, &question);
    let files = cached(&bundle);
    assert_eq!(files.len(), 1, "{files:?}");
    let about = fs::metadata(&files[0]).unwrap();
    assert_eq!(about.mode() & 0o022, 0, "nobody else may write a filter");
    let inode = about.ino();
    denies(&bundle, &question);
    assert_eq!(cached(&bundle), files);
    assert_eq!(
        fs::metadata(&files[0]).unwrap().ino(),
        inode,
        "not compiled again"
    );
    // Another profile is another filter.
    bundle.edit(|c| c["linux"]["seccomp"]["syscalls"][0]["errnoRet"] = json!(95));
    assert_eq!(see(&bundle).errno(&question), "EOPNOTSUPP");
    assert_eq!(cached(&bundle).len(), 2);
}

#[test]
fn a_damaged_cache_file_is_not_used() {
    requires!(container);
    if !runtime().is("pelagos") {
        return;
    }
    let question = call(libc::SYS_umask, &[0]);
    let profile = json!([{ "names": ["umask"], "action": "SCMP_ACT_ERRNO", "errnoRet": 61 }]);
    let bundle = asking(&[&question], |c| filter(c, &profile));
    denies(&bundle, &question);
    let file = cached(&bundle).pop().expect("a cached filter");
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    let last = flipped.len() - 8;
    flipped[last] ^= 0xff;
    for bad in [
        &b""[..],
        &good[..good.len() / 2],
        &good[..good.len() - 1],
        &flipped,
        &[0; 64],
        &[good.as_slice(), b"more"].concat(),
    ] {
        fs::write(&file, bad).unwrap();
        denies(&bundle, &question);
    }
}

#[test]
fn a_big_profile_is_carried_whole() {
    requires!(container);
    // Each of the conditions is a rule of its own, a few thousand instructions in all; the kernel takes 4096.
    let questions = [
        call(libc::SYS_umask, &[3]),
        call(libc::SYS_umask, &[399]),
        call(libc::SYS_umask, &[400]),
    ];
    let asked: Vec<&str> = questions.iter().map(String::as_str).collect();
    let seen = ask(&asked, |c| {
        privileged(c);
        let rules: Vec<Value> = (0..400)
            .map(|n| {
                json!({
                    "names": ["umask"], "action": "SCMP_ACT_ERRNO",
                    "args": [{ "index": 0, "value": n, "op": "SCMP_CMP_EQ" }],
                })
            })
            .collect();
        filter(c, &json!(rules));
        c["linux"]["seccomp"]["architectures"] = json!([]);
    });
    assert_eq!(seen.errno(&questions[0]), "EPERM");
    assert_eq!(seen.errno(&questions[1]), "EPERM");
    seen.ok(&questions[2]);
}
