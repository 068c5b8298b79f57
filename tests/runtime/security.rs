//! Attacks that worked on runtimes once. What belongs to one subject stands with it (`devices`, `mounts`, `process`);
//! here is what is about the runtime itself, and what races.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde_json::json;

use crate::inside::{answers, asking, privileged, refused, see};
use crate::support::{Bundle, mounts, namespace, runtime};

/// What tells one content of the runtime's file from another.
fn fingerprint() -> u64 {
    let mut hasher = DefaultHasher::new();
    fs::read(&runtime().path)
        .expect("the runtime")
        .hash(&mut hasher);
    hasher.finish()
}

/// CVE-2019-5736: the payload is a link to what started it, which is the runtime for a moment.
#[test]
fn a_payload_that_is_proc_self_exe_leaves_the_runtime_as_it_is() {
    requires!(container);
    let before = fingerprint();
    for args in [
        json!(["/proc/self/exe"]),
        json!(["/exe"]),
        json!(["/script"]),
    ] {
        let bundle = asking(&[], |c| {
            privileged(c);
            c["process"]["args"] = args;
        });
        symlink("/proc/self/exe", bundle.rootfs("exe")).unwrap();
        fs::write(bundle.rootfs("script"), "#!/proc/self/exe\n").unwrap();
        fs::set_permissions(bundle.rootfs("script"), fs::Permissions::from_mode(0o755)).unwrap();
        // What the runtime does when it is called without a verb, in there, is nobody's matter.
        drop(bundle.run());
        assert_eq!(fingerprint(), before);
    }
}

/// CVE-2019-5736: a process that shares the pid namespace opens the runtime's file by way of `/proc/PID/exe`.
#[test]
fn the_runtimes_file_cannot_be_opened_for_writing_from_inside() {
    requires!(root);
    let before = fingerprint();
    // While it waits for start, the first process of a container still is the runtime.
    let waiting = asking(&[], privileged);
    waiting.create();
    let spy = asking(&["openw:/proc/1/exe", "open:/proc/1/exe"], |c| {
        privileged(c);
        namespace(c, "pid")["path"] = json!(format!("/proc/{}/ns/pid", waiting.pid()));
    });
    let seen = see(&spy);
    let errno = seen.errno("openw:/proc/1/exe");
    // The kernel looks at whether the file is being run before it looks at how it is mounted, so ETXTBSY says nothing:
    // it lasts only as long as the process does.
    let exe = format!("/proc/{}/exe", waiting.pid());
    let (running, own) = (
        fs::metadata(&exe).unwrap(),
        fs::metadata(&runtime().path).unwrap(),
    );
    let copy = (running.dev(), running.ino()) != (own.dev(), own.ino());
    let read_only = nix::sys::statvfs::statvfs(exe.as_str())
        .unwrap()
        .flags()
        .contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    let denied = ["EACCES", "EPERM"].contains(&errno);
    assert!(copy || read_only || denied, "{errno}");
    assert_eq!(fingerprint(), before);
}

/// The C library's start would ask the processor all there is to know, for nothing.
#[cfg(target_arch = "x86_64")]
#[test]
fn the_program_that_executes_itself_again_does_so_before_anything_else() {
    requires!(root, command "strace");
    differs!("crun", "starts whole before it copies itself");
    differs!("runc", "starts whole before it copies itself");
    let bundle = Bundle::new();
    let trace = bundle.beside("trace");
    let under = ["strace", "-qq", "-o", trace.to_str().expect("path")];
    bundle
        .verb(["run", "-b", "."])
        .arg(&bundle.id)
        .under(under)
        .run()
        .ok();
    let trace = fs::read_to_string(trace).expect("trace");
    let calls: Vec<_> = trace
        .lines()
        .filter_map(|line| Some(line.split_once('(')?.0))
        .collect();
    // fs-verity on the runtime's file, or a read-only file system, makes the second execution needless.
    let Some(again) = calls.iter().position(|call| *call == "execveat") else {
        assert!(trace.contains("ST_RDONLY") || trace.contains("FS_IOC_MEASURE_VERITY"));
        return;
    };
    assert_eq!(
        calls[..again],
        [
            "execve",
            "openat",
            "fstatfs",
            "ioctl",
            "close",
            "open_tree",
            "mount_setattr"
        ]
    );
    // The second execution looks once, and goes on.
    assert_eq!(calls[again + 1..again + 4], ["openat", "fstatfs", "close"]);
}

#[test]
fn a_waiting_container_shows_no_descriptor_of_the_host_to_its_peers() {
    requires!(root);
    differs!("crun", "dumpable while it waits");
    differs!("runc", "dumpable while it waits");
    const QUESTIONS: [&str; 4] = [
        "open:/proc/1/fd/0",
        "read:/proc/1/environ",
        "list:/proc/1/cwd/",
        "list:/proc/1/root/",
    ];
    let waiting = asking(&[], |_| {});
    waiting.create();
    let spy = asking(&QUESTIONS, |c| {
        namespace(c, "pid")["path"] = json!(format!("/proc/{}/ns/pid", waiting.pid()));
    });
    let seen = see(&spy);
    // CVE-2016-9962: not dumpable, so that nobody inside may look at it or trace it.
    for question in QUESTIONS {
        let errno = seen.errno(question);
        assert!(["EACCES", "EPERM"].contains(&errno), "{question}: {errno}");
    }
}

#[test]
fn a_waiting_container_holds_nothing_of_the_host_open() {
    requires!(root);
    let waiting = asking(&[], |_| {});
    waiting.create();
    let dir = format!("/proc/{}/fd", waiting.pid());
    let mut open = Vec::new();
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let target = fs::read_link(entry.path()).unwrap();
        open.push((name, target.to_string_lossy().into_owned()));
    }
    for (name, target) in &open {
        let number: u32 = name.parse().unwrap();
        // The standard streams are the caller's; the rest may be pipes, sockets, memory, and the fifo it waits on.
        let fine = number <= 2
            || [":[", "anon_inode:", "/memfd:"]
                .iter()
                .any(|kind| target.contains(kind))
            || target.ends_with(".fifo")
            || target == "/dev/null"
            || target.ends_with(runtime().path.file_name().unwrap().to_str().unwrap());
        let directory = fs::metadata(format!("{dir}/{name}")).is_ok_and(|m| m.is_dir());
        assert!(!directory, "a directory is open: {open:?}");
        assert!(
            fine || runtime().is("runc"),
            "{name} -> {target} of {open:?}"
        );
    }
}

/// Exchange two names as fast as it goes, until dropped.
struct Swap {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Swap {
    fn new(one: &Path, other: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (one, other, end) = (one.to_owned(), other.to_owned(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut count = 0;
            while !end.load(Ordering::Relaxed) {
                if renameat2(
                    AT_FDCWD,
                    &one,
                    AT_FDCWD,
                    &other,
                    RenameFlags::RENAME_EXCHANGE,
                )
                .is_ok()
                {
                    count += 1;
                }
                // The other processor belongs to the runtime.
                if count % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(20));
                }
            }
            count
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map_or(0, |t| t.join().unwrap())
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

const ROUNDS: usize = 60;

/// CVE-2021-30465, CVE-2024-45310: the target of a mount turns into a symlink between the look and the mount.
#[test]
fn a_mount_target_that_is_swapped_for_a_symlink_reaches_nothing_of_the_host() {
    requires!(root);
    differs!(
        "runc",
        "before 1.1.14 it loses the race when it makes the target"
    );
    differs!("crun", "1.8 loses the race when it makes the target");
    let bundle = asking(&[], |c| {
        for destination in ["/volume/target/made", "/volume/target/other"] {
            mounts(c).push(json!({
                "destination": destination, "type": "bind", "source": "data", "options": ["bind"],
            }));
        }
        mounts(c).push(json!({
            "destination": "/volume/target/file", "type": "bind", "source": "file", "options": ["bind"],
        }));
    });
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(bundle.path.join("data")).unwrap();
    fs::write(bundle.path.join("file"), "").unwrap();
    let volume = bundle.rootfs("volume");
    fs::create_dir_all(volume.join("target")).unwrap();
    symlink(&outside, volume.join("link")).unwrap();
    let swap = Swap::new(&volume.join("target"), &volume.join("link"));
    let mut ran = 0;
    for _ in 0..ROUNDS {
        let outcome = bundle.run();
        if outcome.code() == 0 {
            ran += 1;
            for mount in answers(&outcome).mounts() {
                let line = format!("{mount:?}");
                assert!(
                    !line.contains("outside\""),
                    "the host's directory is there: {line}"
                );
            }
        }
        assert_eq!(
            fs::read_dir(&outside).unwrap().count(),
            0,
            "something was made on the host"
        );
    }
    assert!(swap.end() > 100, "the race was never on");
    assert!(ran <= ROUNDS);
    bundle.assert_nothing_left();
}

/// The same for the directory of /dev, and for the working directory.
#[test]
fn directories_of_the_image_that_are_swapped_for_symlinks_reach_nothing_of_the_host() {
    requires!(root);
    differs!("crun", "1.8 loses the race");
    differs!("runc", "1.1 loses the race");
    let bundle = asking(&[], |c| {
        mounts(c).retain(|m| !m["destination"].as_str().unwrap().starts_with("/dev"));
        c["linux"]["devices"] =
            json!([{ "path": "/dev/extra", "type": "c", "major": 1, "minor": 3 }]);
        c["process"]["cwd"] = json!("/dev/work/day");
    });
    let outside = bundle.beside("outside");
    fs::create_dir(&outside).unwrap();
    symlink(&outside, bundle.rootfs("link")).unwrap();
    let swap = Swap::new(&bundle.rootfs("dev"), &bundle.rootfs("link"));
    for _ in 0..ROUNDS {
        drop(bundle.run());
        let made: Vec<_> = fs::read_dir(&outside)
            .unwrap()
            .flatten()
            .map(|e| e.file_name())
            .collect();
        assert!(made.is_empty(), "made on the host: {made:?}");
    }
    assert!(swap.end() > 100, "the race was never on");
}

/// CVE-2019-19921, CVE-2023-27561: /proc is a link into a volume whose directories another container swaps.
#[test]
fn a_proc_that_is_a_symlink_into_a_swapped_volume_is_always_refused() {
    requires!(root);
    let bundle = asking(&[], privileged);
    fs::remove_dir(bundle.rootfs("proc")).unwrap();
    fs::create_dir_all(bundle.rootfs("volume/proc")).unwrap();
    fs::create_dir_all(bundle.rootfs("volume/fake/self/attr")).unwrap();
    symlink("volume/proc", bundle.rootfs("proc")).unwrap();
    let swap = Swap::new(&bundle.rootfs("volume/proc"), &bundle.rootfs("volume/fake"));
    for _ in 0..ROUNDS {
        let outcome = bundle.run();
        assert_ne!(outcome.code(), 0, "{outcome}");
        assert_eq!(outcome.stdout, "");
    }
    assert!(swap.end() > 100, "the race was never on");
}

/// A directory that is swapped for a link never leads to a procfs that is mounted elsewhere than on /proc.
#[test]
fn a_proc_that_is_swapped_for_a_symlink_is_mounted_on_the_directory_or_not_at_all() {
    requires!(root);
    let bundle = asking(&[], |_| {});
    fs::create_dir_all(bundle.rootfs("fake/self")).unwrap();
    symlink("fake", bundle.rootfs("link")).unwrap();
    let swap = Swap::new(&bundle.rootfs("proc"), &bundle.rootfs("link"));
    for _ in 0..ROUNDS {
        let outcome = bundle.run();
        if outcome.code() == 0 && outcome.stdout.starts_with('{') {
            let seen = answers(&outcome);
            let places = seen.mounts();
            let covered = places.iter().filter(|m| m.kind() == "proc");
            for mount in covered {
                assert!(!mount.target().starts_with("/fake"), "{mount:?}");
            }
        }
    }
    assert!(swap.end() > 100, "the race was never on");
}

/// CVE-2025-52881: what is written below /proc/sys must be what the kernel shows there.
#[test]
fn a_sysctl_is_written_to_the_kernel_and_not_to_a_file_of_the_image() {
    requires!(root);
    let key = "net.ipv4.ip_unprivileged_port_start";
    let bundle = asking(&[], |c| {
        mounts(c).retain(|m| m["destination"] != "/proc");
        c["linux"].as_object_mut().unwrap().remove("maskedPaths");
        c["linux"].as_object_mut().unwrap().remove("readonlyPaths");
        c["linux"]["sysctl"] = json!({ key: "81" });
    });
    let file = bundle.rootfs("proc/sys/net/ipv4/ip_unprivileged_port_start");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "untouched").unwrap();
    drop(bundle.run());
    if runtime().is("pelagos") {
        assert_eq!(fs::read_to_string(&file).unwrap(), "untouched");
    }
}

#[test]
fn a_sysctl_below_a_cover_is_refused() {
    requires!(root);
    differs!("crun", "it has no rule about what is mounted in /proc");
    let bundle: Bundle = asking(&[], |c| {
        mounts(c).push(json!({
            "destination": "/proc/sys/net", "type": "bind", "source": "fake", "options": ["bind"],
        }));
        c["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "1" });
    });
    fs::create_dir_all(bundle.path.join("fake/ipv4")).unwrap();
    fs::write(bundle.path.join("fake/ipv4/ip_forward"), "untouched").unwrap();
    refused(&bundle, "is inside /proc");
    assert_eq!(
        fs::read_to_string(bundle.path.join("fake/ipv4/ip_forward")).unwrap(),
        "untouched"
    );
}

#[test]
fn the_state_of_the_container_cannot_be_reached_from_inside() {
    requires!(root);
    let bundle = asking(&[], |_| {});
    bundle.edit(|c| {
        let root = bundle.state_root.to_str().unwrap();
        c["process"]["args"] = json!([
            "/probe",
            format!("stat:{root}"),
            format!("stat:{root}/{}", bundle.id),
            "stat:/proc/1/root/run/pelagos"
        ]);
    });
    let seen = see(&bundle);
    let root = bundle.state_root.to_str().unwrap();
    assert_eq!(seen.errno(&format!("stat:{root}")), "ENOENT");
    assert_eq!(seen.errno(&format!("stat:{root}/{}", bundle.id)), "ENOENT");
}

#[test]
fn the_state_directory_is_closed_to_others() {
    requires!(root);
    let bundle = asking(&[], |_| {});
    bundle.create();
    let dir = bundle.state_root.join(&bundle.id);
    let mode = fs::metadata(&dir).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode & 0o066, 0, "{mode:o}");
    for entry in fs::read_dir(&dir).unwrap().flatten() {
        let about = entry.metadata().unwrap();
        let fifo = entry.file_name() == "exec.fifo";
        assert!(
            fifo || about.permissions().mode() & 0o022 == 0,
            "{:?}",
            entry.path()
        );
    }
}
