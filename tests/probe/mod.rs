//! The probe: what a process inside a container sees, as one JSON object on stdout.
//!
//! There is no second program to build and to find. The test binary is static, so a bundle carries it under the name
//! `probe`, and a process started with that name answers and leaves before the test harness, and even before Rust's own
//! start-up code, runs: that start-up ignores SIGPIPE and opens missing standard fds, which are things a test asks for.
//!
//! Arguments are questions, each answered under `answers` by its own text: `read:/etc/hostname`, `write:/proc/x=1`,
//! `stat:/dev/null`. The whole list stands in [`answer`]. A question that fails answers `{"errno": "ENOENT"}`; one that
//! succeeds answers `{"ok": …}`.
#![expect(
    unsafe_code,
    reason = "raw system calls are what the probe asks about, and its entry is a constructor"
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use serde_json::{Map, Value, json};

/// The name by which a container calls the probe: the last component of `args[0]`.
pub(crate) const NAME: &str = "probe";

/// Capability names by number, as the specification spells them.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Resource limits by number on the architectures we build for, as the specification spells them.
const RLIMITS: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

// SAFETY: the C library calls every entry of this section with (argc, argv, envp) once its own set-up is done and
// before main; the function has that signature and the section holds nothing but such pointers.
#[used]
#[unsafe(link_section = ".init_array")]
static ENTRY: extern "C" fn(i32, *const *const libc::c_char, *const *const libc::c_char) = entry;

extern "C" fn entry(
    argc: i32,
    argv: *const *const libc::c_char,
    _envp: *const *const libc::c_char,
) {
    let args: Vec<OsString> = (0..usize::try_from(argc).unwrap_or(0))
        .map(|n| {
            // SAFETY: argv holds argc pointers to strings that end in NUL and live as long as the process.
            let text = unsafe { std::ffi::CStr::from_ptr(*argv.add(n)) };
            OsString::from_vec(text.to_bytes().to_vec())
        })
        .collect();
    let called_probe = args
        .first()
        .and_then(|name| Path::new(name).file_name())
        .is_some_and(|name| name == NAME);
    if called_probe {
        let code = main(&args);
        // SAFETY: ends the process; nothing of Rust's start-up has run, so there is nothing to take down.
        unsafe { libc::_exit(code) }
    }
}

fn main(args: &[OsString]) -> i32 {
    // Everything that reading changes (open fds, memory) is looked at before the questions are carried out.
    let mut seen = report(args);
    let mut code = 0;
    let mut answers = Map::new();
    for question in &args[1..] {
        let question = question.to_string_lossy();
        if let Some(value) = question.strip_prefix("exit:") {
            code = value.parse().unwrap_or(99);
            continue;
        }
        answers.insert(question.to_string(), answer(&question));
    }
    seen.insert("answers".into(), Value::Object(answers));
    let mut text = Value::Object(seen).to_string();
    text.push('\n');
    let mut out: &[u8] = text.as_bytes();
    while !out.is_empty() {
        // SAFETY: the pointer and the length describe `out`, which lives across the call.
        let written = unsafe { libc::write(1, out.as_ptr().cast(), out.len()) };
        match usize::try_from(written) {
            Ok(n) if n > 0 => out = &out[n..],
            _ => return 98,
        }
    }
    code
}

fn report(args: &[OsString]) -> Map<String, Value> {
    let status = status();
    let uname = nix::sys::utsname::uname().ok();
    let text = |value: Option<&std::ffi::OsStr>| value.map(|v| v.to_string_lossy().into_owned());
    let mut seen = Map::new();
    let mut put = |key: &str, value: Value| {
        seen.insert(key.into(), value);
    };
    put("fds", fds());
    put("args", args.iter().map(|a| a.to_string_lossy()).collect());
    put("env", environment());
    put("pid", json!(nix::unistd::getpid().as_raw()));
    put("ppid", json!(nix::unistd::getppid().as_raw()));
    put("pgid", json!(nix::unistd::getpgrp().as_raw()));
    put(
        "sid",
        json!(nix::unistd::getsid(None).ok().map(|p| p.as_raw())),
    );
    put("uid", json!(nix::unistd::getuid().as_raw()));
    put("euid", json!(nix::unistd::geteuid().as_raw()));
    put("gid", json!(nix::unistd::getgid().as_raw()));
    put("egid", json!(nix::unistd::getegid().as_raw()));
    put(
        "groups",
        json!(nix::unistd::getgroups().map_or_else(
            |_| Vec::new(),
            |groups| groups.iter().map(|g| g.as_raw()).collect()
        )),
    );
    put(
        "cwd",
        json!(
            nix::unistd::getcwd()
                .ok()
                .map(|p| p.to_string_lossy().into_owned())
        ),
    );
    put("exe", link("/proc/self/exe"));
    put("root", link("/proc/self/root"));
    put("umask", json!(status.get("Umask")));
    put(
        "hostname",
        json!(uname.as_ref().and_then(|u| text(Some(u.nodename())))),
    );
    put(
        "domainname",
        json!(uname.as_ref().and_then(|u| text(Some(u.domainname())))),
    );
    put(
        "machine",
        json!(uname.as_ref().and_then(|u| text(Some(u.machine())))),
    );
    let mut sets = Map::new();
    for (name, key) in [
        ("inheritable", "CapInh"),
        ("permitted", "CapPrm"),
        ("effective", "CapEff"),
        ("bounding", "CapBnd"),
        ("ambient", "CapAmb"),
    ] {
        sets.insert(name.into(), capabilities(status.get(key)));
    }
    put("capabilities", Value::Object(sets));
    put("rlimits", rlimits());
    put("no_new_privs", number(status.get("NoNewPrivs")));
    put("seccomp", number(status.get("Seccomp")));
    put("seccomp_filters", number(status.get("Seccomp_filters")));
    put("cpus", json!(status.get("Cpus_allowed_list")));
    put("threads", number(status.get("Threads")));
    for (name, key) in [
        ("blocked", "SigBlk"),
        ("ignored", "SigIgn"),
        ("caught", "SigCgt"),
        ("pending", "SigPnd"),
    ] {
        put(&format!("signals_{name}"), bits(status.get(key), 1));
    }
    put(
        "oom_score_adj",
        number(slurp("/proc/self/oom_score_adj").as_ref()),
    );
    put("dumpable", json!(nix::sys::prctl::get_dumpable().ok()));
    put(
        "pdeathsig",
        json!(
            nix::sys::prctl::get_pdeathsig()
                .ok()
                .map(|s| s.map(|s| s as i32))
        ),
    );
    put("namespaces", namespaces());
    put("uid_map", map("/proc/self/uid_map"));
    put("gid_map", map("/proc/self/gid_map"));
    put(
        "setgroups",
        json!(slurp("/proc/self/setgroups").map(|t| t.trim().to_owned())),
    );
    put("mounts", mounts());
    put(
        "cgroup",
        json!(slurp("/proc/self/cgroup").and_then(|t| {
            t.lines()
                .find_map(|l| l.strip_prefix("0::").map(str::to_owned))
        })),
    );
    put("dev", directory("/dev"));
    put("timens_offsets", offsets());
    put("monotonic", seconds(nix::time::ClockId::CLOCK_MONOTONIC));
    put("boottime", seconds(nix::time::ClockId::CLOCK_BOOTTIME));
    put("keyring", keyring());
    // SAFETY: these calls take numbers only.
    unsafe {
        put("personality", json!(libc::personality(0xffff_ffff)));
        put("scheduler", json!(libc::sched_getscheduler(0)));
        put("ioprio", json!(libc::syscall(libc::SYS_ioprio_get, 1, 0)));
    }
    put("sched", scheduling());
    put("nice", number(stat_field(19).as_ref()));
    put("tty", tty());
    seen
}

/// What sched_getattr(2) says of this process.
fn scheduling() -> Value {
    // SAFETY: a structure of numbers, of the size that is said; the kernel fills it.
    let (about, asked) = unsafe {
        let mut about: libc::sched_attr = std::mem::zeroed();
        let size = size_of_val(&about);
        let asked = libc::syscall(libc::SYS_sched_getattr, 0, &raw mut about, size, 0);
        (about, asked)
    };
    if asked != 0 {
        return json!(null);
    }
    json!({
        "policy": about.sched_policy,
        "flags": about.sched_flags,
        "priority": about.sched_priority,
        "times": [about.sched_runtime, about.sched_deadline, about.sched_period],
    })
}

/// Carry out one question `verb:rest`.
fn answer(question: &str) -> Value {
    let (verb, rest) = question.split_once(':').unwrap_or((question, ""));
    let done = |result: io::Result<()>| outcome(result.map(|()| json!(true)));
    match verb {
        "read" => outcome(fs::read(rest).map(|b| json!(String::from_utf8_lossy(&b)))),
        "list" => outcome(fs::read_dir(rest).map(|entries| {
            let mut names: Vec<String> = entries
                .flatten()
                .map(|e| e.file_name().to_string_lossy().into_owned())
                .collect();
            names.sort();
            json!(names)
        })),
        "stat" => outcome(stat(Path::new(rest))),
        // Through the last symbolic link, as an application would.
        "follow" => outcome(fs::metadata(rest).map(|m| describe(&m))),
        "open" => done(
            OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(rest)
                .map(drop),
        ),
        "openw" => done(
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(rest)
                .map(drop),
        ),
        "write" => {
            let (path, text) = rest.split_once('=').unwrap_or((rest, ""));
            done(
                OpenOptions::new()
                    .write(true)
                    .open(path)
                    .and_then(|mut f| f.write_all(text.as_bytes())),
            )
        }
        "create" => done(File::create(rest).map(drop)),
        "mkdir" => done(fs::DirBuilder::new().mode(0o755).create(rest)),
        "remove" => done(fs::remove_file(rest)),
        // mknod:PATH:MAJOR:MINOR, always a character device.
        "mknod" => done(mknod(rest)),
        // Run a program and answer with its exit status.
        "exec" => outcome(
            std::process::Command::new(rest)
                .arg("x")
                .stdin(std::process::Stdio::null())
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null())
                .status()
                .map(|s| json!(s.code())),
        ),
        "loopback" => outcome(loopback().map(|text| json!(text))),
        // Interface names, which the kernel gives without sysfs.
        "interfaces" => outcome(fs::read_to_string("/proc/self/net/dev").map(|text| {
            text.lines()
                .skip(2)
                .filter_map(|l| l.split_once(':').map(|(name, _)| name.trim().to_owned()))
                .collect()
        })),
        // syscall:NUMBER:ARG:ARG…, every argument a number.
        "syscall" => syscall(rest),
        // Allocate and touch so many MiB.
        "memory" => {
            let mut block = vec![0u8; rest.parse::<usize>().unwrap_or(0) << 20];
            for byte in block.iter_mut().step_by(4096) {
                *byte = 1;
            }
            json!({ "ok": block.iter().step_by(4096).map(|b| u64::from(*b)).sum::<u64>() })
        }
        // Write so many blocks of 4 MiB past the page cache.
        "direct" => outcome(direct(rest).map(|count| json!(count))),
        // Fork so many children that wait, and answer how many there were and what stopped it.
        "fork" => fork(rest.parse().unwrap_or(0)),
        "sleep" => {
            std::thread::sleep(Duration::from_millis(rest.parse().unwrap_or(0)));
            json!({ "ok": true })
        }
        // Hold a lock until the end of the program.
        "flock" => done(
            File::create(rest)
                .and_then(|file| file.lock().map(|()| file))
                .map(std::mem::forget),
        ),
        // Block until the file exists, so that a test can act meanwhile.
        "await" => {
            for _ in 0..2000 {
                if Path::new(rest).exists() {
                    return json!({ "ok": true });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            json!({ "errno": "ETIMEDOUT" })
        }
        _ => json!({ "errno": "unknown question" }),
    }
}

fn outcome(result: io::Result<Value>) -> Value {
    match result {
        Ok(value) => json!({ "ok": value }),
        Err(e) => json!({ "errno": e.raw_os_error().map_or_else(|| e.to_string(), errno) }),
    }
}

fn errno(number: i32) -> String {
    format!("{:?}", Errno::from_raw(number))
}

fn slurp(path: &str) -> Option<String> {
    fs::read_to_string(path).ok()
}

fn number(text: Option<&String>) -> Value {
    json!(text.and_then(|t| t.trim().parse::<i64>().ok()))
}

fn link(path: &str) -> Value {
    json!(
        fs::read_link(path)
            .ok()
            .map(|p| p.to_string_lossy().into_owned())
    )
}

fn status() -> BTreeMap<String, String> {
    slurp("/proc/self/status")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

/// Field `n` of /proc/self/stat, counted as in proc(5).
fn stat_field(n: usize) -> Option<String> {
    let text = slurp("/proc/self/stat")?;
    let (_, rest) = text.rsplit_once(')')?;
    rest.split_whitespace().nth(n - 3).map(str::to_owned)
}

/// The environment exactly as it stands in memory: order and duplicates kept.
fn environment() -> Value {
    let bytes = fs::read("/proc/self/environ").unwrap_or_default();
    bytes
        .split(|b| *b == 0)
        .filter(|entry| !entry.is_empty())
        .map(|entry| String::from_utf8_lossy(entry).into_owned())
        .collect()
}

fn mask(text: Option<&String>) -> Option<u64> {
    u64::from_str_radix(text?, 16).ok()
}

fn capabilities(text: Option<&String>) -> Value {
    json!(mask(text).map(|mask| {
        (0..64)
            .filter(|n| mask >> n & 1 == 1)
            .map(|n| {
                CAPABILITIES
                    .get(n)
                    .map_or_else(|| format!("CAP_{n}"), |name| (*name).to_owned())
            })
            .collect::<Vec<_>>()
    }))
}

fn bits(text: Option<&String>, first: u32) -> Value {
    json!(mask(text).map(|mask| {
        (0..64)
            .filter(|n| mask >> n & 1 == 1)
            .map(|n| n + first)
            .collect::<Vec<u32>>()
    }))
}

fn rlimits() -> Value {
    let mut all = Map::new();
    for (resource, name) in RLIMITS.iter().enumerate() {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: the kernel fills one rlimit, which lives across the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_prlimit64,
                0,
                resource,
                std::ptr::null::<libc::rlimit>(),
                &raw mut limit,
            )
        };
        if done == 0 {
            all.insert((*name).into(), json!([limit.rlim_cur, limit.rlim_max]));
        }
    }
    Value::Object(all)
}

fn namespaces() -> Value {
    ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"]
        .iter()
        .map(|name| ((*name).to_owned(), link(&format!("/proc/self/ns/{name}"))))
        .collect::<Map<_, _>>()
        .into()
}

/// The lines of a user namespace map as `[inside, outside, length]`.
fn map(path: &str) -> Value {
    json!(slurp(path).map(|text| {
        text.lines()
            .map(|line| {
                line.split_whitespace()
                    .filter_map(|n| n.parse::<u32>().ok())
                    .collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    }))
}

fn offsets() -> Value {
    let mut all = Map::new();
    for line in slurp("/proc/self/timens_offsets")
        .unwrap_or_default()
        .lines()
    {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let [clock, secs, nanos] = fields[..] {
            all.insert(
                clock.into(),
                json!([secs.parse::<i64>().ok(), nanos.parse::<i64>().ok()]),
            );
        }
    }
    Value::Object(all)
}

fn seconds(clock: nix::time::ClockId) -> Value {
    json!(nix::time::clock_gettime(clock).ok().map(|t| t.tv_sec()))
}

/// The table of /proc/self/mountinfo, one object a line (proc_pid_mountinfo(5)).
fn mounts() -> Value {
    slurp("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.splitn(3, ' ').collect();
            Some(json!({
                "id": left.first()?.parse::<u64>().ok(),
                "parent": left.get(1)?.parse::<u64>().ok(),
                "device": left.get(2)?,
                "root": left.get(3)?,
                "target": left.get(4)?,
                "options": left.get(5)?.split(',').collect::<Vec<_>>(),
                "tags": left[6..].to_vec(),
                "type": right.first()?,
                "source": right.get(1)?,
                "super": right.get(2).map(|s| s.split(',').collect::<Vec<_>>()),
            }))
        })
        .collect()
}

/// Open fds with what they point to, without the one that reads them.
fn fds() -> Value {
    let Ok(dir) = File::open("/proc/self/fd") else {
        return Value::Null;
    };
    let own = dir.as_raw_fd().to_string();
    let mut all = Map::new();
    for entry in fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        let target = fs::read_link(entry.path())
            .map(|p| p.to_string_lossy().into_owned())
            .unwrap_or_default();
        // Both this handle and the one of the loop are ours, and nothing else may point there.
        if name != own && !target.ends_with("/fd") {
            all.insert(name, json!(target));
        }
    }
    Value::Object(all)
}

fn directory(path: &str) -> Value {
    let mut all = Map::new();
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if let Ok(about) = stat(&entry.path()) {
            all.insert(entry.file_name().to_string_lossy().into_owned(), about);
        }
    }
    Value::Object(all)
}

fn stat(path: &Path) -> io::Result<Value> {
    let meta = fs::symlink_metadata(path)?;
    let mut about = describe(&meta);
    if meta.is_symlink() {
        about["link"] = json!(fs::read_link(path)?.to_string_lossy());
    }
    Ok(about)
}

fn describe(meta: &fs::Metadata) -> Value {
    let kind = meta.file_type();
    let word = if kind.is_dir() {
        "directory"
    } else if kind.is_symlink() {
        "symlink"
    } else if kind.is_char_device() {
        "char"
    } else if kind.is_block_device() {
        "block"
    } else if kind.is_fifo() {
        "fifo"
    } else if kind.is_socket() {
        "socket"
    } else {
        "file"
    };
    json!({
        "type": word,
        "mode": format!("{:o}", meta.mode() & 0o7777),
        "uid": meta.uid(),
        "gid": meta.gid(),
        "major": nix::sys::stat::major(meta.rdev()),
        "minor": nix::sys::stat::minor(meta.rdev()),
        "size": meta.size(),
        "inode": meta.ino(),
    })
}

fn mknod(rest: &str) -> io::Result<()> {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let mut parts = rest.splitn(3, ':');
    let path = parts.next().unwrap_or_default();
    let mut next = || parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    let (major, minor) = (next(), next());
    mknod(
        path,
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o666),
        makedev(major, minor),
    )?;
    Ok(())
}

fn direct(rest: &str) -> io::Result<usize> {
    const BLOCK: usize = 4 << 20;
    let (path, count) = rest.split_once(':').unwrap_or((rest, "1"));
    let count = count.parse().unwrap_or(1);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let memory = vec![1u8; BLOCK + 4096];
    let block = &memory[memory.as_ptr().align_offset(4096)..][..BLOCK];
    for _ in 0..count {
        file.write_all(block)?;
    }
    Ok(count)
}

/// A datagram to ourselves over 127.0.0.1, which works only when `lo` is up.
fn loopback() -> io::Result<String> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send_to(b"hello", socket.local_addr()?)?;
    let mut buffer = [0; 16];
    let n = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

fn syscall(rest: &str) -> Value {
    let numbers: Vec<i64> = rest.split(':').filter_map(|n| n.parse().ok()).collect();
    let arg = |n: usize| numbers.get(n).copied().unwrap_or(0);
    // SAFETY: tests ask only for calls whose arguments are numbers, or null where a pointer is due.
    let result = unsafe { libc::syscall(arg(0), arg(1), arg(2), arg(3), arg(4), arg(5), arg(6)) };
    if result < 0 {
        json!({ "errno": errno(Errno::last_raw()) })
    } else {
        json!({ "ok": result })
    }
}

fn fork(wanted: usize) -> Value {
    let mut children = Vec::new();
    let mut stopped = Value::Null;
    for _ in 0..wanted {
        // SAFETY: there is one thread, and the child only waits to be killed.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: takes nothing and returns only for a signal.
                unsafe { libc::pause() };
            },
            -1 => {
                stopped = json!(errno(Errno::last_raw()));
                break;
            }
            pid => children.push(nix::unistd::Pid::from_raw(pid)),
        }
    }
    for child in &children {
        if nix::sys::signal::kill(*child, nix::sys::signal::SIGKILL).is_ok() {
            nix::sys::wait::waitpid(*child, None).ok();
        }
    }
    json!({ "ok": children.len(), "stopped": stopped })
}

/// The description of the session keyring: `keyring;uid;gid;perm;name` (keyctl(2), KEYCTL_DESCRIBE).
fn keyring() -> Value {
    const DESCRIBE: libc::c_long = 6;
    const SESSION: libc::c_long = -3;
    let mut buffer = vec![0u8; 256];
    // SAFETY: the kernel writes at most the given length into the buffer.
    let length = unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            DESCRIBE,
            SESSION,
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    };
    usize::try_from(length).map_or(Value::Null, |n| {
        buffer.truncate(n.saturating_sub(1));
        json!(String::from_utf8_lossy(&buffer))
    })
}

fn tty() -> Value {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: isatty takes a number; TIOCGWINSZ fills one winsize, which lives across the call.
    let (on, sized) = unsafe {
        (
            [libc::isatty(0), libc::isatty(1), libc::isatty(2)],
            libc::ioctl(0, libc::TIOCGWINSZ, &raw mut size) == 0,
        )
    };
    json!({
        "isatty": on.map(|n| n == 1),
        "rows": sized.then_some(size.ws_row),
        "columns": sized.then_some(size.ws_col),
        // 0 means no controlling terminal.
        "controlling": number(stat_field(7).as_ref()),
    })
}
