//! Every step fails once, from outside: strace makes one system call return an error, or kills the process that makes
//! it. Whatever happens, there is one clear line or success, and after a forced delete nothing is left behind.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::inside::without_namespace;
use crate::support::{Bundle, Outcome, mounts, namespace, process_args, runtime};

/// The calls that make a container or tell about it; none of these undoes anything. poll is not among them: Rust's own
/// start makes one, and aborts when it fails.
const MAKING: &str = "mkdir,mkdirat,openat,openat2,clone,clone3,mount,fsopen,fsconfig,fsmount,fspick,move_mount,\
    open_tree,mount_setattr,pivot_root,umount2,unshare,setns,sethostname,setdomainname,prctl,capset,setresuid,\
    setresgid,setuid,setgid,setgroups,seccomp,bpf,write,pwrite64,sendmsg,recvmsg,socket,socketpair,bind,mknodat,\
    mkfifoat,symlinkat,linkat,rename,renameat,renameat2,fchown,fchownat,fchmod,fchmodat,fchdir,chdir,chroot,prlimit64,\
    setsid,ioctl,fsync,memfd_create,pidfd_open,ppoll,read,dup2,dup3,keyctl,execve,\
    pipe2,close_range,flock,readlink,readlinkat,newfstatat,statx,signalfd4,capget,faccessat2,getcwd,wait4,\
    sched_setaffinity";

/// The calls that take one away.
const UNDOING: &str = "kill,pidfd_open,pidfd_send_signal,waitid,wait4,unlink,unlinkat,rmdir,openat,openat2,read,write,\
    getdents64,flock,fcntl,ppoll,umount2,renameat,renameat2";

/// How many faults each test tries at most, spread evenly over all; `PELAGOS_FAULTS` sets another number.
const FAULTS: usize = 1000;

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

/// The same with its mounts in the caller's mount namespace.
fn rich_shared(config: &mut Value) {
    rich(config);
    without_namespace(config, "mount");
    let linux = config["linux"].as_object_mut().expect("linux");
    linux.remove("maskedPaths");
    linux.remove("readonlyPaths");
}

/// The same in a user namespace.
fn rich_user(config: &mut Value) {
    rich(config);
    namespace(config, "user");
    let map = json!([{ "containerID": 0, "hostID": 100_000, "size": 65536 }]);
    // A device would be bound from the host's, which has none of that name.
    config["linux"]["devices"] = json!([]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    // Bound from the host, so one that it has.
    config["linux"]["devices"] =
        json!([{ "path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11 }]);
}

/// What happens at the chosen call.
#[derive(Clone, Copy)]
enum Fault {
    Error,
    Kill,
}

/// The verb that meets the fault, and what comes before it.
#[derive(Clone, Copy)]
enum Stage {
    Create,
    Start,
    Delete,
}

impl Stage {
    fn prepare(self, bundle: &Bundle) {
        match self {
            Self::Create => {}
            Self::Start => drop(bundle.create()),
            Self::Delete => drop(bundle.up()),
        }
    }

    fn args(self) -> &'static [&'static str] {
        match self {
            Self::Create => &["create"],
            Self::Start => &["start"],
            Self::Delete => &["delete", "--force"],
        }
    }

    fn calls(self) -> &'static str {
        match self {
            Self::Create | Self::Start => MAKING,
            Self::Delete => UNDOING,
        }
    }
}

/// A call by name, and which of a process's calls of that name it is.
type Step = (String, usize);

/// The verb under strace. The tracer is no parent of the runtime and goes on with what the runtime leaves.
fn traced(bundle: &Bundle, stage: Stage, fault: Option<(&Step, Fault)>) -> Outcome {
    let mut strace = ["strace", "-D", "-f", "-qq", "-o"]
        .map(str::to_owned)
        .to_vec();
    strace.push(bundle.beside("trace").display().to_string());
    match fault {
        None => {
            // A call that this strace or this processor does not know is left out.
            let calls: Vec<_> = stage
                .calls()
                .split(',')
                .map(|c| format!("?{}", c.trim()))
                .collect();
            strace.extend(["-e".into(), format!("trace={}", calls.join(","))]);
        }
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
        .verb(stage.args())
        .arg(&bundle.id)
        .under(strace)
        .limit(Duration::from_secs(30))
        .run()
}

/// The steps of an undisturbed call: each system call with the largest number of times that one process makes it.
fn steps(config: fn(&mut Value), stage: Stage) -> Vec<Step> {
    let bundle = Bundle::with(config);
    stage.prepare(&bundle);
    traced(&bundle, stage, None).ok();
    bundle.delete_force();
    // With the last process of the container the tracer has ended, and its file is complete.
    bundle.assert_nothing_left();
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
    // The first execve is strace's own.
    let first = |call: &str| if call == "execve" { 2 } else { 1 };
    most.iter()
        .flat_map(|(call, n)| (first(call)..=*n).map(|i| ((*call).to_owned(), i)))
        .collect()
}

/// Try the fault at every step, on all processors; the steps that went wrong fail the test together.
fn try_all(config: fn(&mut Value), stage: Stage, fault: Fault) {
    let all = steps(config, stage);
    assert!(all.len() > 10, "the verb makes calls: {all:?}");
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
    let work = || {
        while let Some(&step) = chosen.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(panic) =
                catch_unwind(AssertUnwindSafe(|| try_one(config, stage, step, fault)))
            {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text
                    .or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()))
                    .unwrap_or_default();
                bad.lock()
                    .expect("lock")
                    .push(format!("{} #{}: {text}", step.0, step.1));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
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

/// How many calls met the fault, in a verb that failed.
fn injected(bundle: &Bundle) -> usize {
    let trace = std::fs::read_to_string(bundle.beside("trace")).unwrap_or_default();
    trace.matches("(INJECTED)").count()
}

fn try_one(config: fn(&mut Value), stage: Stage, step: &Step, fault: Fault) {
    let bundle = Bundle::with(config);
    stage.prepare(&bundle);
    let outcome = traced(&bundle, stage, Some((step, fault)));
    // The others make no promise about every step; of them, only the cleaning up is expected. Nor is more expected where
    // the fault met two processes, and the second perhaps while it was undoing the first.
    let met = match fault {
        Fault::Error if outcome.code() != 0 => injected(&bundle),
        _ => 1,
    };
    if runtime().is("pelagos") && met < 2 {
        match (fault, outcome.code()) {
            // A step that the verb can do without, or a process that nobody waited for.
            (_, 0) => match stage {
                Stage::Create => assert!(
                    ["created", "stopped"].contains(&bundle.status().as_str()),
                    "{outcome}"
                ),
                Stage::Start => assert!(
                    ["running", "stopped"].contains(&bundle.status().as_str()),
                    "{outcome}"
                ),
                Stage::Delete => bundle.assert_nothing_left(),
            },
            // Rust's own start asks poll about the standard streams before main, and aborts where that fails.
            (Fault::Error, 134) if step.0 == "poll" => {}
            // The caller itself was killed.
            (Fault::Kill, 137) => {}
            _ => {
                assert!(!outcome.error_line().is_empty(), "{outcome}");
                if let Stage::Create = stage {
                    bundle.assert_nothing_left();
                }
            }
        }
    }
    if runtime().is("pelagos") {
        assert_records_are_whole(&bundle);
    }
    bundle.delete_force();
    bundle.assert_nothing_left();
}

/// What others read of the container's state directory without the lock is complete or not there.
fn assert_records_are_whole(bundle: &Bundle) {
    for name in ["state.json", "config.json"] {
        let path = bundle.state_root.join(&bundle.id).join(name);
        let Ok(text) = std::fs::read(&path) else {
            continue;
        };
        let parsed = serde_json::from_slice::<Value>(&text);
        assert!(parsed.is_ok(), "{}: {parsed:?}", path.display());
    }
}

#[test]
fn create_that_fails_at_any_step_says_so_and_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it leaves the control group behind at some steps");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Create, Fault::Error);
}

#[test]
fn create_in_a_user_namespace_that_fails_at_any_step_says_so_and_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it leaves the control group behind at some steps");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich_user, Stage::Create, Fault::Error);
}

#[test]
fn after_a_create_killed_at_any_step_forced_delete_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it keeps no record before it begins");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Create, Fault::Kill);
}

#[test]
fn after_a_create_in_a_user_namespace_killed_at_any_step_forced_delete_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "it keeps no record before it begins");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich_user, Stage::Create, Fault::Kill);
}

#[test]
fn start_that_fails_at_any_step_leaves_a_container_that_can_be_deleted() {
    requires!(root, command "strace");
    differs!("crun", "it makes no such promise");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Start, Fault::Error);
}

#[test]
fn start_that_is_killed_at_any_step_leaves_a_container_that_can_be_deleted() {
    requires!(root, command "strace");
    differs!("crun", "it makes no such promise");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Start, Fault::Kill);
}

#[test]
fn forced_delete_that_fails_at_any_step_can_be_repeated() {
    requires!(root, command "strace");
    differs!("crun", "it makes no such promise");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Delete, Fault::Error);
}

#[test]
fn forced_delete_that_is_killed_at_any_step_can_be_repeated() {
    requires!(root, command "strace");
    differs!("crun", "it makes no such promise");
    differs!("runc", "threads of its own make calls in no fixed order");
    try_all(rich, Stage::Delete, Fault::Kill);
}

#[test]
fn create_with_mounts_of_the_caller_that_fails_at_any_step_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "the mounts stay");
    differs!("runc", "the mounts stay");
    try_all(rich_shared, Stage::Create, Fault::Error);
}

#[test]
fn after_a_create_with_mounts_of_the_caller_killed_at_any_step_forced_delete_leaves_nothing() {
    requires!(root, command "strace");
    differs!("crun", "the mounts stay");
    differs!("runc", "the mounts stay");
    try_all(rich_shared, Stage::Create, Fault::Kill);
}

#[test]
fn forced_delete_with_mounts_of_the_caller_that_fails_at_any_step_can_be_repeated() {
    requires!(root, command "strace");
    differs!("crun", "the mounts stay");
    differs!("runc", "the mounts stay");
    try_all(rich_shared, Stage::Delete, Fault::Error);
}
