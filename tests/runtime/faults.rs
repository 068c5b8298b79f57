//! Every step of create fails once, from outside: strace makes one system call return an error, or kills the process
//! that makes it. Whatever happens, there is one clear line or a container, and nothing is left behind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Bundle, Outcome, mounts, namespace, process_args, runtime};

/// The calls that make a container or tell about it; none of these undoes anything.
const CALLS: &str = "mkdir,mkdirat,openat,openat2,clone,clone3,mount,fsopen,fsconfig,fsmount,fspick,move_mount,\
    open_tree,mount_setattr,pivot_root,umount2,unshare,setns,sethostname,setdomainname,prctl,capset,setresuid,\
    setresgid,setuid,setgid,setgroups,seccomp,bpf,write,pwrite64,sendmsg,recvmsg,socket,socketpair,bind,mknodat,\
    mkfifoat,symlinkat,linkat,renameat,renameat2,fchown,fchownat,fchmod,fchmodat,fchdir,chdir,chroot,prlimit64,\
    setsid,ioctl,fsync,memfd_create,pidfd_open,poll,ppoll,read,dup2,dup3,keyctl,execve";

/// How many faults each test tries at most, spread evenly over all; `PELAGOS_FAULTS` sets another number.
const FAULTS: usize = 220;

/// A config that takes create through as many kinds of step as possible.
fn rich(config: &mut Value) {
    process_args(config, ["sleep", "1000"]);
    config["root"]["readonly"] = json!(true);
    config["domainname"] = json!("example.org");
    config["process"]["user"] =
        json!({ "uid": 1000, "gid": 1000, "additionalGids": [5], "umask": 0o27 });
    config["process"]["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 512, "hard": 1024 }]);
    config["process"]["oomScoreAdj"] = json!(100);
    config["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    config["linux"]["devices"] =
        json!([{ "path": "/dev/own", "type": "c", "major": 1, "minor": 3, "fileMode": 0o644 }]);
    config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }],
    });
    mounts(config).push(json!({
        "destination": "/data", "type": "bind", "source": "/usr", "options": ["rbind", "ro", "rslave"],
    }));
    mounts(config).push(json!({ "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"] }));
}

/// The same in a user namespace.
fn rich_user(config: &mut Value) {
    rich(config);
    namespace(config, "user");
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
}

/// What happens at the chosen call.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    Error,
    Kill,
}

/// A call by name, and which of a process's calls of that name it is.
type Step = (String, usize);

/// `create` under strace. The tracer is no parent of the runtime and goes on with what the runtime leaves.
fn create(bundle: &Bundle, fault: Option<(&Step, Fault)>) -> Outcome {
    let mut strace = ["strace", "-D", "-f", "-qq", "-o"]
        .map(str::to_owned)
        .to_vec();
    strace.push(bundle.beside("trace").display().to_string());
    match fault {
        None => strace.extend(["-e".into(), format!("trace={}", known_calls())]),
        Some(((call, nth), fault)) => {
            let what = match fault {
                Fault::Error => "error=EIO",
                Fault::Kill => "signal=SIGKILL",
            };
            strace.extend(["-e".into(), format!("trace={call}")]);
            strace.extend(["-e".into(), format!("inject={call}:{what}:when={nth}")]);
        }
    }
    bundle
        .verb(["create", &bundle.id])
        .under(strace)
        .limit(Duration::from_secs(30))
        .run()
}

/// Calls that an old strace does not know would make it refuse the list; `?` makes them optional.
fn known_calls() -> String {
    CALLS
        .split(',')
        .map(|c| format!("?{}", c.trim()))
        .collect::<Vec<_>>()
        .join(",")
}

/// The steps of an undisturbed create: each call with the largest number of times that one process makes it.
fn steps(config: fn(&mut Value)) -> Vec<Step> {
    let bundle = Bundle::with(config);
    create(&bundle, None).ok();
    let trace = std::fs::read_to_string(bundle.beside("trace")).expect("trace");
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else {
            continue;
        };
        let Some((call, _)) = rest.trim_start().split_once('(') else {
            continue;
        };
        if call.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            *counts.entry((call, pid)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::<&str, usize>::new();
    for ((call, _), count) in counts {
        let entry = most.entry(call).or_default();
        *entry = count.max(*entry);
    }
    bundle.delete_force();
    // The first execve is strace's own.
    let first = |call: &str| if call == "execve" { 2 } else { 1 };
    most.iter()
        .flat_map(|(call, n)| (first(call)..=*n).map(|i| ((*call).to_owned(), i)))
        .collect()
}

/// Try the fault at every step, on all processors; the steps that went wrong fail the test together.
fn try_all(config: fn(&mut Value), fault: Fault) {
    let all = steps(config);
    assert!(all.len() > 20, "create makes calls: {all:?}");
    let most = std::env::var("PELAGOS_FAULTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(FAULTS);
    let chosen: Vec<_> = if all.len() <= most {
        all.iter().collect()
    } else {
        (0..most).map(|i| &all[i * all.len() / most]).collect()
    };
    let next = AtomicUsize::new(0);
    let bad = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                while let Some(&step) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(panic) =
                        catch_unwind(AssertUnwindSafe(|| try_one(config, step, fault)))
                    {
                        let text = panic.downcast_ref::<String>().cloned();
                        let text =
                            text.or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()));
                        let (call, n) = step;
                        bad.lock()
                            .expect("lock")
                            .push(format!("{call} #{n}: {}", text.unwrap_or_default()));
                    }
                }
            });
        }
    });
    let bad = bad.into_inner().expect("lock");
    assert!(
        bad.is_empty(),
        "{} of {} steps went wrong:\n{}",
        bad.len(),
        chosen.len(),
        bad.join("\n\n")
    );
}

fn try_one(config: fn(&mut Value), step: &Step, fault: Fault) {
    let bundle = Bundle::with(config);
    let outcome = create(&bundle, Some((step, fault)));
    // The others make no promise about every step; of them, only the cleaning up is expected.
    if runtime().is("pelagos") {
        match fault {
            // A step may be one that create can do without.
            Fault::Error if outcome.code() == 0 => {
                assert_eq!(bundle.status(), "created");
            }
            Fault::Error => {
                assert!(!outcome.error_line().is_empty(), "{outcome}");
                bundle.assert_nothing_left();
            }
            // Whoever was killed: the caller sees a signal, or one line about the process that died.
            Fault::Kill if outcome.code() == 137 => {}
            Fault::Kill if outcome.code() == 0 => {}
            Fault::Kill => {
                assert!(!outcome.error_line().is_empty(), "{outcome}");
                bundle.assert_nothing_left();
            }
        }
    }
    bundle.delete_force();
    bundle.assert_nothing_left();
}

#[test]
fn create_that_fails_at_any_step_says_so_and_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it leaves the control group behind at some steps");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Fault::Error);
}

#[test]
fn create_in_a_user_namespace_that_fails_at_any_step_says_so_and_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it leaves the control group behind at some steps");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich_user, Fault::Error);
}

#[test]
fn after_a_create_killed_at_any_step_forced_delete_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it keeps no record before it begins");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Fault::Kill);
}

#[test]
fn after_a_create_in_a_user_namespace_killed_at_any_step_forced_delete_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it keeps no record before it begins");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich_user, Fault::Kill);
}
