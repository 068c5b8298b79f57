//! Network devices that are moved into a container. The runtime is called in a network namespace of the test's own, so
//! that no device of the machine is touched.

use std::os::fd::AsRawFd;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use serde_json::{Value, json};

use crate::inside::{asking, refused, see, user_namespace, without_namespace};
use crate::support::{Bundle, eventually, namespace};

/// Carry out the test in a new network namespace, on a thread of its own: it is to end with the test.
#[track_caller]
fn apart(test: impl FnOnce() + Send) {
    let done = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace of one's own");
            test();
        });
        thread.join()
    });
    if let Err(panic) = done {
        std::panic::resume_unwind(panic);
    }
}

/// Run this program to its end; what it says.
#[track_caller]
fn call(line: &str) -> String {
    let words: Vec<_> = line.split(' ').collect();
    let out = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect(line);
    assert!(
        out.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).expect("text")
}

/// A pair of devices that are up: `name`, with an MTU, a MAC address and the addresses given, and its peer.
#[track_caller]
fn pair(name: &str, addresses: &[&str]) {
    call(&format!(
        "ip link add name {name} mtu 1400 address 02:00:00:00:00:09 type veth peer name {name}-peer"
    ));
    for address in addresses {
        call(&format!("ip address add {address} dev {name}"));
    }
    for name in [name, &format!("{name}-peer")] {
        call(&format!("ip link set {name} up"));
    }
}

/// The devices of the namespace of this process, or of the test, as ip(8) lists them.
#[track_caller]
fn devices(process: Option<nix::unistd::Pid>) -> Vec<Value> {
    let list = "ip -json address show";
    let text = match process {
        Some(pid) => call(&format!("nsenter --net=/proc/{pid}/ns/net {list}")),
        None => call(list),
    };
    serde_json::from_str(&text).expect("JSON")
}

fn names(devices: &[Value]) -> Vec<&str> {
    let mut names: Vec<_> = devices
        .iter()
        .filter_map(|device| device["ifname"].as_str())
        .collect();
    names.sort_unstable();
    names
}

#[track_caller]
fn named<'a>(devices: &'a [Value], name: &str) -> &'a Value {
    let found = devices.iter().find(|device| device["ifname"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {:?}", names(devices)))
}

/// The permanent addresses of global scope, as ip(8) takes them.
fn addresses(device: &Value) -> Vec<String> {
    let list = device["addr_info"].as_array().expect("addresses");
    list.iter()
        .filter(|address| address["scope"] == "global")
        .map(|address| {
            format!(
                "{}/{}",
                address["local"].as_str().expect("address"),
                address["prefixlen"]
            )
        })
        .collect()
}

fn is_up(device: &Value) -> bool {
    let flags = device["flags"].as_array().expect("flags");
    flags.iter().any(|flag| flag == "UP")
}

/// A bundle that waits, with these devices.
fn waiting(wanted: Value) -> Bundle {
    let bundle = Bundle::sleeping();
    bundle.edit(|c| c["linux"]["netDevices"] = wanted);
    bundle
}

#[test]
fn a_device_is_moved_with_its_addresses_and_set_up() {
    requires!(root, veth, command "ip", command "nsenter");
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    apart(|| {
        pair(
            "d0",
            &[
                "10.1.2.3/24 broadcast +",
                "10.1.2.4/24",
                "192.168.7.1 peer 192.168.7.2/32",
                "fd00::5/64 nodad",
            ],
        );
        // Neither of these is permanent and of global scope.
        call("ip address add 10.9.9.9/24 dev d0 scope link");
        call("ip address add fd00::77/64 dev d0 valid_lft 1000 preferred_lft 1000");
        let bundle = waiting(json!({ "d0": { "name": "eth0" } }));
        bundle.create().ok();
        let inside = devices(Some(bundle.pid()));
        assert_eq!(names(&inside), ["eth0", "lo"]);
        let eth0 = named(&inside, "eth0");
        assert_eq!((&eth0["mtu"], is_up(eth0)), (&json!(1400), true));
        assert_eq!(eth0["address"], "02:00:00:00:00:09");
        let mut found = addresses(eth0);
        found.sort_unstable();
        assert_eq!(
            found,
            ["10.1.2.3/24", "10.1.2.4/24", "192.168.7.1/32", "fd00::5/64"]
        );
        let info = eth0["addr_info"].as_array().unwrap();
        let of = |local: &str| info.iter().find(|a| a["local"] == local).unwrap();
        assert_eq!(of("10.1.2.3")["broadcast"], "10.1.2.255");
        assert_eq!(of("10.1.2.3")["label"], "eth0");
        assert_eq!(of("192.168.7.1")["address"], "192.168.7.2");
        assert_eq!(of("fd00::5")["nodad"], true);
        assert_eq!(names(&devices(None)), ["d0-peer", "lo"]);
        // It is not moved back: it goes with the namespace, and its peer with it.
        bundle.delete_force().ok();
        let gone = eventually(|| names(&devices(None)) == ["lo"]);
        assert!(gone, "{:?}", devices(None));
    });
}

#[test]
fn a_device_keeps_its_name_or_is_numbered_by_the_kernel() {
    requires!(root, veth, command "ip", command "nsenter");
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    apart(|| {
        for name in ["a", "b", "net7", "same"] {
            call(&format!(
                "ip link add name {name} type veth peer name {name}-peer"
            ));
        }
        call("ip address add 10.1.0.1/16 dev a");
        call("ip address add 10.2.0.1/16 dev b");
        let bundle = waiting(json!({
            "a": { "name": "eth%d" },
            "b": { "name": "eth%d" },
            "net7": {},
            "same": { "name": "" },
        }));
        bundle.create().ok();
        let inside = devices(Some(bundle.pid()));
        assert_eq!(names(&inside), ["eth0", "eth1", "lo", "net7", "same"]);
        // In the order of their names outside.
        assert_eq!(addresses(named(&inside, "eth0")), ["10.1.0.1/16"]);
        assert_eq!(addresses(named(&inside, "eth1")), ["10.2.0.1/16"]);
        assert!(inside.iter().all(is_up), "{inside:?}");
    });
}

#[test]
fn devices_are_there_for_hooks_and_sysctls_and_in_a_user_namespace() {
    requires!(root, veth, command "ip");
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    apart(|| {
        pair("d0", &["10.1.2.3/24"]);
        let file = "read:/proc/sys/net/ipv4/conf/eth0/log_martians";
        let bundle = asking(&[file], |c| {
            user_namespace(c);
            c["linux"]["netDevices"] = json!({ "d0": { "name": "eth0" } });
            c["linux"]["sysctl"] = json!({ "net.ipv4.conf.eth0.log_martians": "1" });
        });
        let seen = bundle.beside("seen");
        bundle.edit(|c| {
            let script = format!(
                "pid=$(sed 's/.*\"pid\":\\([0-9]*\\).*/\\1/'); cat /proc/$pid/net/dev > {}",
                seen.display()
            );
            c["hooks"]["createRuntime"] =
                json!([{ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin:/usr/bin"] }]);
        });
        assert_eq!(see(&bundle).text(file), "1\n");
        let seen = std::fs::read_to_string(seen).expect("what the hook saw");
        assert!(seen.contains("eth0:"), "{seen}");
    });
}

#[test]
fn a_device_is_moved_to_a_namespace_that_is_joined() {
    requires!(root, veth, command "ip", command "nsenter");
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    apart(|| {
        let bundle = asking(&["interfaces"], |_| {});
        let mut other = None;
        apart(|| other = std::fs::File::open("/proc/thread-self/ns/net").ok());
        let other = other.expect("a network namespace");
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.as_raw_fd());
        pair("d0", &["10.1.2.3/24"]);
        // The index of the device is not free in there.
        let there = |line: &str| call(&format!("nsenter --net={path} {line}"));
        let index = named(&devices(None), "d0")["ifindex"].clone();
        there(&format!("ip link add name other index {index} type veth"));
        let join = |name: &str| {
            bundle.edit(|c| {
                namespace(c, "network")["path"] = json!(path);
                c["linux"]["netDevices"] = json!({ "d0": { "name": name } });
            });
        };
        // What is there already is an error, and the device stays where it was.
        join("other");
        refused(
            &bundle,
            "linux.netDevices: \"d0\": a network device \"other\" exists in the container's namespace already",
        );
        assert!(is_up(named(&devices(None), "d0")));
        join("eth0");
        let outcome = bundle.run().ok();
        assert!(outcome.stdout.contains("eth0"), "{outcome}");
        assert_eq!(names(&devices(None)), ["d0-peer", "lo"]);
        let inside: Vec<Value> = serde_json::from_str(&there("ip -json address show")).unwrap();
        let eth0 = named(&inside, "eth0");
        assert!(is_up(eth0) && eth0["ifindex"] != index, "{inside:?}");
        assert_eq!(addresses(eth0), ["10.1.2.3/24"]);
    });
}

#[test]
fn what_cannot_be_moved_is_refused_and_stays_as_it_was() {
    requires!(root, veth, command "ip");
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    apart(|| {
        pair("d0", &["10.1.2.3/24", "fd00::5/64 nodad"]);
        call("ip link set lo up");
        // The kernel moves no bridge.
        call("ip link add name br0 type bridge");
        call("ip address add 10.3.0.1/16 dev br0");
        call("ip link set br0 up");
        let before = devices(None);
        for (wanted, words) in [
            (
                json!({ "d0": {}, "d9": {} }),
                "linux.netDevices: \"d9\": no such network device",
            ),
            (
                json!({ "lo": { "name": "eth0" } }),
                "linux.netDevices: \"lo\": a loopback device cannot be moved",
            ),
            (
                json!({ "br0": { "name": "eth0" } }),
                "linux.netDevices: \"br0\": move it as \"eth0\": invalid argument",
            ),
            (
                json!({ "d0": { "name": "lo" } }),
                "\"d0\": a network device \"lo\" exists in the container's namespace already",
            ),
            (
                json!({ "d0": { "name": "a/b" } }),
                "linux.netDevices: invalid network device name \"a/b\"",
            ),
            (
                json!({ "..": {} }),
                "linux.netDevices: invalid network device name \"..\"",
            ),
            (
                json!({ "d0": { "name": "0123456789abcdef" } }),
                "linux.netDevices: invalid network device name \"0123456789abcdef\"",
            ),
            (
                json!({ "d0": { "name": "x" }, "d0-peer": { "name": "x" } }),
                "linux.netDevices: two network devices are to be called \"x\"",
            ),
        ] {
            let bundle = asking(&[], |c| c["linux"]["netDevices"] = wanted);
            refused(&bundle, words);
        }
        let without = "unable to move network devices without a NET namespace";
        let bundle = asking(&[], |c| {
            c["linux"]["netDevices"] = json!({ "d0": {} });
            without_namespace(c, "network");
        });
        refused(&bundle, without);
        let bundle = asking(&[], |c| {
            c["linux"]["netDevices"] = json!({ "d0": {} });
            let own = format!("/proc/{}/ns/net", nix::unistd::gettid());
            namespace(c, "network")["path"] = json!(own);
        });
        refused(&bundle, without);
        let state = |devices: &[Value]| -> Vec<_> {
            let one = |d: &Value| (d["ifname"].clone(), is_up(d), addresses(d));
            devices.iter().map(one).collect()
        };
        assert_eq!(state(&devices(None)), state(&before));
    });
}

#[test]
fn a_device_is_taken_back_when_the_container_cannot_be_made() {
    requires!(root, veth, command "ip");
    differs!("crun", "since 1.24");
    differs!("runc", "it goes with the container's namespace");
    apart(|| {
        pair("d0", &["10.1.2.3/24 broadcast +", "fd00::5/64 nodad"]);
        call("ip link add name d1 type veth peer name d1-peer");
        // Of the name that d0 is to have inside.
        call("ip link add name eth0 type bridge");
        call("ip link add name z-br type bridge");
        let state = || -> Vec<_> {
            let one = |d: &Value| (d["ifname"].clone(), is_up(d), addresses(d));
            let mut all: Vec<_> = devices(None).iter().map(one).collect();
            all.sort_by_key(|(name, ..)| name.to_string());
            all
        };
        let before = state();
        let wanted = json!({ "d0": { "name": "eth0" }, "d1": {} });
        let no_mount = |c: &mut Value| {
            c["linux"]["netDevices"] = wanted.clone();
            let entry = json!({ "destination": "/m", "type": "bind", "source": "/no/such", "options": ["bind"] });
            c["mounts"].as_array_mut().unwrap().push(entry);
        };
        let bridge = |c: &mut Value| {
            c["linux"]["netDevices"] = wanted.clone();
            c["linux"]["netDevices"]["z-br"] = json!({});
        };
        let hook = |c: &mut Value| {
            c["linux"]["netDevices"] = wanted.clone();
            c["hooks"]["createRuntime"] = json!([{ "path": "/bin/false" }]);
        };
        let mut other = None;
        apart(|| other = std::fs::File::open("/proc/thread-self/ns/net").ok());
        let path = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            other.as_ref().expect("a namespace").as_raw_fd()
        );
        let join = |c: &mut Value| {
            no_mount(c);
            namespace(c, "network")["path"] = json!(path);
        };
        let user = |c: &mut Value| {
            bridge(c);
            user_namespace(c);
        };
        type Edit<'a> = &'a dyn Fn(&mut Value);
        let cases: [(Edit, &str); 5] = [
            (&no_mount, "/no/such"),
            (&bridge, "\"z-br\": move it as \"z-br\""),
            (&hook, "error running createRuntime hook #0"),
            (&join, "/no/such"),
            (&user, "\"z-br\": move it as \"z-br\""),
        ];
        for (edit, words) in cases {
            refused(&asking(&[], edit), words);
            assert_eq!(state(), before, "{words}");
        }
    });
}
