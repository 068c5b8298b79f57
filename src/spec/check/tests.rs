//! One row per rule: a config that breaks it, and what is said of it.

use super::*;
use crate::spec::{decode::parse, default_config};
use serde_json::{Value, json};

/// Put `value` at the JSON pointer `at`, making the members on the way; null removes.
pub(in crate::spec) fn set(config: &mut Value, at: &str, value: Value) {
    let (parent, name) = at.rsplit_once('/').unwrap();
    let parent = parent
        .split('/')
        .skip(1)
        .fold(config, |node, step| match node {
            Value::Array(items) => &mut items[step.parse::<usize>().unwrap()],
            node => &mut node[step],
        });
    match parent {
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
        parent if value.is_null() => {
            parent.as_object_mut().unwrap().remove(name);
        }
        parent => parent[name] = value,
    }
}

/// A config with something in every section the rules look at.
pub(in crate::spec) fn everything() -> Value {
    let mut config: Value = serde_json::from_str(&default_config(None, true)).unwrap();
    for (at, value) in [
        ("/domainname", json!("example")),
        (
            "/hooks",
            json!({"createRuntime": [{"path": "/bin/true", "args": ["true"], "timeout": 3}]}),
        ),
        ("/annotations", json!({"a": "b"})),
        (
            "/process/user",
            json!({"uid": 0, "gid": 0, "umask": 18, "additionalGids": [5]}),
        ),
        ("/process/oomScoreAdj", json!(100)),
        (
            "/linux/sysctl",
            json!({"net.ipv4.ip_forward": "1", "kernel/shmmax": "1"}),
        ),
        ("/linux/cgroupsPath", json!("/a/b")),
        (
            "/linux/timeOffsets",
            json!({"monotonic": {"secs": -3, "nanosecs": 5}}),
        ),
        ("/linux/namespaces/6", json!({"type": "time"})),
        ("/linux/namespaces/7", json!({"type": "user"})),
        (
            "/linux/uidMappings",
            json!([{"containerID": 0, "hostID": 1000, "size": 65536}]),
        ),
        (
            "/linux/gidMappings",
            json!([{"containerID": 0, "hostID": 1000, "size": 65536}]),
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438}]),
        ),
        ("/linux/rootfsPropagation", json!("rslave")),
        (
            "/linux/resources/memory",
            json!({"limit": 1000, "swap": 2000}),
        ),
        ("/linux/resources/pids", json!({"limit": 10})),
        ("/linux/resources/unified", json!({"memory.high": "1"})),
        (
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}),
        ),
    ] {
        if let Some((list, _)) = at
            .rsplit_once('/')
            .filter(|_| at.starts_with("/linux/namespaces/"))
        {
            config
                .pointer_mut(list)
                .unwrap()
                .as_array_mut()
                .unwrap()
                .push(value);
        } else {
            set(&mut config, at, value);
        }
    }
    config
}

fn faults(changes: &[(&str, Value)], how: Context) -> Vec<String> {
    let mut config = everything();
    for (at, value) in changes {
        set(&mut config, at, value.clone());
    }
    let spec = parse(config.to_string().as_bytes()).unwrap();
    check(&spec, &how, Vec::new())
        .iter()
        .map(Fault::to_string)
        .collect()
}

const PLAIN: Context = Context {
    rootless: false,
    no_pivot: false,
    systemd_cgroup: false,
};

#[test]
fn a_config_that_uses_everything_has_no_faults() {
    assert_eq!(faults(&[], PLAIN), [""; 0]);
}

#[test]
fn each_broken_rule_is_reported_alone_with_its_field() {
    let mount = |value: Value| ("/mounts/1", value);
    let range = |host: u32, size: u32| json!({"containerID": 0, "hostID": host, "size": size});
    let (none, one) = (json!([range(1, 0)]), json!([range(1, 1)]));
    let two = json!([range(1, 1), range(7, 1)]);
    for (change, fault) in [
        (
            ("/process", json!(null)),
            "process: process property must not be empty",
        ),
        (
            ("/process/cwd", json!("")),
            "process.cwd: Cwd property must not be empty",
        ),
        (
            ("/process/cwd", json!("tmp")),
            "process.cwd: Cwd must be an absolute path",
        ),
        (
            ("/process/args", json!([])),
            "process.args: args must not be empty",
        ),
        (
            ("/process/args", json!(null)),
            "process.args: args must not be empty",
        ),
        (
            ("/process/env/1", json!("A")),
            "process.env[1]: invalid environment variable: missing '='",
        ),
        (
            ("/process/env/1", json!("=A")),
            "process.env[1]: invalid environment variable: name cannot be empty",
        ),
        (
            ("/process/user/uid", json!(u32::MAX)),
            "process.user.uid: 4294967295 is not a valid id",
        ),
        (
            ("/process/user/additionalGids", json!([1, u32::MAX])),
            "process.user.additionalGids[1]: 4294967295 is not a valid id",
        ),
        (
            ("/process/user/uid", json!(65536)),
            "process.user.uid: cannot setuid to unmapped uid 65536 in user namespace",
        ),
        (
            ("/process/user/gid", json!(65536)),
            "process.user.gid: cannot setgid to unmapped gid 65536 in user namespace",
        ),
        (
            ("/process/user/umask", json!(512)),
            "process.user.umask: umask 0o1000 is above 0o777",
        ),
        (
            ("/process/oomScoreAdj", json!(1001)),
            "process.oomScoreAdj: 1001 is not within -1000 and 1000",
        ),
        (
            ("/process/consoleSize", json!({"height": 65536, "width": 1})),
            "process.consoleSize: width and height must be at most 65535",
        ),
        (
            ("/process/rlimits/0/soft", json!(1025)),
            "process.rlimits[0]: RLIMIT_NOFILE soft limit 1025 is above its hard limit 1024",
        ),
        (
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_AS"}, {"type": "RLIMIT_AS"}]),
            ),
            "process.rlimits[1].type: duplicated rlimit RLIMIT_AS",
        ),
        (
            (
                "/process/scheduler",
                json!({"policy": "SCHED_OTHER", "nice": 20}),
            ),
            "process.scheduler.nice: invalid scheduler.nice: 20",
        ),
        (
            (
                "/process/scheduler",
                json!({"policy": "SCHED_BATCH", "priority": 1}),
            ),
            "process.scheduler.priority: scheduler.priority can only be specified for SchedFIFO or SchedRR policy",
        ),
        (
            (
                "/process/scheduler",
                json!({"policy": "SCHED_RR", "priority": -1}),
            ),
            "process.scheduler.priority: -1 is below 0",
        ),
        (
            (
                "/process/scheduler",
                json!({"policy": "SCHED_RR", "period": 1}),
            ),
            "process.scheduler: scheduler runtime/deadline/period can only be specified for SchedDeadline policy",
        ),
        (
            (
                "/process/ioPriority",
                json!({"class": "IOPRIO_CLASS_BE", "priority": 8}),
            ),
            "process.ioPriority.priority: invalid ioPriority.Priority: 8",
        ),
        (("/root", json!(null)), "root: root must be specified"),
        (
            ("/root/path", json!("")),
            "root.path: root path must not be empty",
        ),
        (
            ("/hostname", json!("x".repeat(65))),
            "hostname: hostname is longer than 64 bytes",
        ),
        (
            ("/ociVersion", json!("2.0.0")),
            "ociVersion: version \"2.0.0\" is not supported: up to 1.3.0 is",
        ),
        (
            ("/annotations", json!({"": "x"})),
            "annotations: annotation key must not be empty",
        ),
        (
            ("/hooks/createRuntime/0/path", json!("true")),
            "hooks.createRuntime[0].path: hook path \"true\" is not absolute",
        ),
        (
            ("/hooks/createRuntime/0/timeout", json!(0)),
            "hooks.createRuntime[0].timeout: hook timeout 0 is not greater than zero",
        ),
        (
            ("/hooks/prestart", json!([{"path": "true"}])),
            "hooks.prestart[0].path: hook path \"true\" is not absolute",
        ),
        (
            ("/linux/namespaces/1/type", json!("pid")),
            "linux.sysctl: sysctl \"net.ipv4.ip_forward\" not allowed in host network namespace",
        ),
        (
            ("/linux/namespaces/1/path", json!("ns/net")),
            "linux.namespaces[1].path: namespace path must be absolute, not relative",
        ),
        (
            ("/linux/uidMappings", json!([])),
            "linux.uidMappings: user namespaces enabled, but no namespace path to join nor mappings to apply specified",
        ),
        (
            (
                "/linux/gidMappings",
                json!([{"containerID": 0, "hostID": 0, "size": 6}, {"containerID": 9, "hostID": 9}]),
            ),
            "linux.gidMappings[1].size: size must be greater than zero",
        ),
        (
            ("/linux/gidMappings/0/hostID", json!(u32::MAX - 3)),
            "linux.gidMappings[0].size: range goes beyond the largest id",
        ),
        (
            ("/linux/gidMappings/0/containerID", json!(1)),
            "linux.gidMappings: user namespaces enabled, but no user mapping found: id 0 is not mapped",
        ),
        (
            (
                "/linux/gidMappings",
                json!([{"containerID": 0, "hostID": 0, "size": 6}, {"containerID": 6, "hostID": 5, "size": 6}]),
            ),
            "linux.gidMappings: host id ranges overlap",
        ),
        (
            (
                "/linux/gidMappings",
                json!([{"containerID": 5, "hostID": 10, "size": 6}, {"containerID": 0, "hostID": 0, "size": 6}]),
            ),
            "linux.gidMappings: container id ranges overlap",
        ),
        (
            ("/linux/timeOffsets", json!({"realtime": {}})),
            "linux.timeOffsets: unknown clock \"realtime\": monotonic or boottime expected",
        ),
        (
            (
                "/linux/timeOffsets/monotonic/nanosecs",
                json!(1_000_000_000),
            ),
            "linux.timeOffsets.monotonic.nanosecs: nanosecs must be below 1000000000",
        ),
        (
            ("/linux/namespaces/6/path", json!("/proc/1/ns/time")),
            "linux.timeOffsets: time namespace offsets specified, but the time namespace is joined by its path",
        ),
        (
            ("/linux/maskedPaths", json!(["/x/.."])),
            "linux.maskedPaths[0]: the root cannot be masked",
        ),
        (
            ("/linux/maskedPaths", json!(["x"])),
            "linux.maskedPaths[0]: \"x\" is not an absolute path",
        ),
        (
            ("/linux/readonlyPaths", json!(["/x", ""])),
            "linux.readonlyPaths[1]: \"\" is not an absolute path",
        ),
        (
            ("/linux/rootfsPropagation", json!("x")),
            "linux.rootfsPropagation: rootfsPropagation=x is not supported",
        ),
        (
            ("/linux/devices/0/type", json!("a")),
            "linux.devices[0].type: invalid device type \"a\"",
        ),
        (
            ("/linux/devices/0/gid", json!(u32::MAX)),
            "linux.devices[0].gid: invalid id 4294967295",
        ),
        (
            ("/linux/devices/0/path", json!("fuse")),
            "linux.devices[0].path: device path \"fuse\" is not absolute",
        ),
        (
            ("/linux/devices/0/major", json!(4096)),
            "linux.devices[0].major: invalid major number 4096",
        ),
        (
            ("/linux/devices/0/minor", json!(-1)),
            "linux.devices[0].minor: invalid minor number -1",
        ),
        (
            (
                "/linux/devices",
                json!([{"path": "/dev/a", "type": "p"}, {"path": "/dev//a", "type": "c"}]),
            ),
            "linux.devices[1].path: two different devices at \"/dev/a\"",
        ),
        (
            ("/linux/resources/devices/0/access", json!("")),
            "linux.resources.devices[0].access: device access at 0 field cannot be empty",
        ),
        (
            ("/linux/resources/devices/0/access", json!("rx")),
            "linux.resources.devices[0].access: invalid device access \"rx\"",
        ),
        (
            ("/linux/resources/devices/0/type", json!("p")),
            "linux.resources.devices[0].type: invalid cgroup device type \"p\"",
        ),
        (
            ("/linux/resources/devices/0/major", json!(-2)),
            "linux.resources.devices[0].major: invalid major number -2",
        ),
        (
            ("/linux/resources/memory", json!({"swap": 1})),
            "linux.resources.memory.swap: unable to set swap limit without memory limit",
        ),
        (
            ("/linux/resources/memory", json!({"limit": -2})),
            "linux.resources.memory.limit: invalid memory value: -2",
        ),
        (
            ("/linux/resources/memory", json!({"reservation": i64::MIN})),
            "linux.resources.memory.reservation: invalid memory reservation value: -9223372036854775808",
        ),
        (
            ("/linux/resources/memory", json!({"swappiness": 101})),
            "linux.resources.memory.swappiness: invalid value 101: 0 to 100 is expected",
        ),
        (
            (
                "/linux/resources/blockIO",
                json!({"weightDevice": [{"major": 8, "minor": 0}]}),
            ),
            "linux.resources.blockIO.weightDevice[0]: neither weight nor leafWeight is given",
        ),
        (
            ("/linux/resources/rdma", json!({"mlx5_1": {}})),
            "linux.resources.rdma.mlx5_1: neither hcaHandles nor hcaObjects is given",
        ),
        (
            ("/linux/resources/memory/swap", json!(999)),
            "linux.resources.memory.swap: memory+swap limit should be >= memory limit",
        ),
        (
            ("/linux/resources/network", json!({"classID": 5})),
            "linux.resources.network.classID: network limits are not supported on cgroup v2",
        ),
        (
            (
                "/linux/resources/network",
                json!({"priorities": [{"name": "lo", "priority": 5}]}),
            ),
            "linux.resources.network.priorities: network limits are not supported on cgroup v2",
        ),
        (
            ("/linux/resources/unified", json!({"a/b": "1"})),
            "linux.resources.unified: unified resource \"a/b\" must be a file name (no slashes)",
        ),
        (
            ("/linux/sysctl", json!({"kernel.panic": "1"})),
            "linux.sysctl: sysctl \"kernel.panic\" is not in a separate kernel namespace",
        ),
        (
            ("/linux/sysctl", json!({"net/../kernel/panic": "1"})),
            "linux.sysctl: invalid sysctl name \"net/../kernel/panic\"",
        ),
        (
            ("/linux/sysctl", json!({"net.": "1"})),
            "linux.sysctl: invalid sysctl name \"net.\"",
        ),
        (
            ("/linux/sysctl", json!({"kernel/hostname": "1"})),
            "linux.sysctl: sysctl \"kernel/hostname\" is not allowed as it conflicts with the OCI \"hostname\" field",
        ),
        (
            ("/linux/sysctl", json!({"kernel.domainname": "1"})),
            "linux.sysctl: sysctl \"kernel.domainname\" is not allowed as it conflicts with the OCI \"domainname\" field",
        ),
        (
            ("/linux/seccomp/syscalls/0/action", json!("SCMP_ACT_NOTIFY")),
            "linux.seccomp.listenerPath: seccomp listenerPath is not set",
        ),
        (
            ("/linux/seccomp/listenerMetadata", json!("whose")),
            "linux.seccomp.listenerMetadata: listenerMetadata is not to be set without a listenerPath",
        ),
        (
            ("/linux/seccomp/syscalls/0/names", json!([])),
            "linux.seccomp.syscalls[0].names: names must not be empty",
        ),
        (
            (
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/a",
                    "syscalls": [{"names": ["mount", "write"], "action": "SCMP_ACT_NOTIFY"}]}),
            ),
            "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_LOCAL", "nodes": "0-1"}),
            ),
            "linux.memoryPolicy.nodes: memory policy mode requires 0 nodes but got 2",
        ),
        (
            ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"})),
            "linux.memoryPolicy.nodes: memory policy mode requires at least one node but got 0",
        ),
        (
            (
                "/linux/memoryPolicy",
                json!({"mode": "MPOL_BIND", "nodes": "x"}),
            ),
            "linux.memoryPolicy.nodes: invalid memory policy nodes \"x\"",
        ),
        (
            ("/linux/intelRdt", json!({"closID": ".."})),
            "linux.intelRdt.closID: invalid intelRdt.ClosID \"..\"",
        ),
        (
            ("/linux/intelRdt", json!({"closID": "a/b"})),
            "linux.intelRdt.closID: invalid intelRdt.ClosID \"a/b\"",
        ),
        (
            ("/linux/intelRdt", json!({"closID": "info"})),
            "linux.intelRdt.closID: invalid intelRdt.ClosID \"info\"",
        ),
        (
            ("/linux/intelRdt", json!({"memBwSchema": "L3:0=f"})),
            "linux.intelRdt.memBwSchema: \"L3:0=f\" is not one line that begins with \"MB:\"",
        ),
        (
            ("/linux/intelRdt", json!({"memBwSchema": "MB:0=1\nL3:0=f"})),
            "linux.intelRdt.memBwSchema: \"MB:0=1\\nL3:0=f\" is not one line that begins with \"MB:\"",
        ),
        (
            ("/linux/intelRdt", json!({"schemata": ["L3:0=f", "a\nb"]})),
            "linux.intelRdt.schemata[1]: \"a\\nb\" is more than one line",
        ),
        (
            ("/linux/netDevices", json!({"eth0:1": {}})),
            "linux.netDevices: invalid network device name \"eth0:1\"",
        ),
        (
            ("/linux/netDevices", json!({"eth0": {"name": "eth%s"}})),
            "linux.netDevices: invalid network device name \"eth%s\"",
        ),
        (
            (
                "/linux/netDevices",
                json!({"eth0": {"name": "a"}, "eth1": {"name": "a"}}),
            ),
            "linux.netDevices: two network devices are to be called \"a\"",
        ),
        (
            (
                "/linux/netDevices",
                json!({"eth0": {"name": "eth1"}, "eth1": {}}),
            ),
            "linux.netDevices: two network devices are to be called \"eth1\"",
        ),
        (
            mount(json!({"destination": "", "type": "tmpfs"})),
            "mounts[1].destination: destination must not be empty",
        ),
        (
            mount(json!({"destination": "/a/..", "type": "tmpfs"})),
            "mounts[1].destination: \"/a/..\" is on the top of rootfs",
        ),
        (
            mount(json!({"destination": "/proc/", "type": "tmpfs"})),
            "mounts[1].destination: \"/proc/\" cannot be mounted because it is not of type proc",
        ),
        (
            mount(json!({"destination": "/proc", "source": "/x", "options": ["rbind"]})),
            "mounts[1].destination: \"/proc\" cannot be mounted because it is not of type proc",
        ),
        (
            mount(json!({"destination": "proc/self/attr", "type": "tmpfs"})),
            "mounts[1].destination: \"proc/self/attr\" cannot be mounted because it is inside /proc",
        ),
        (
            mount(json!({"destination": "/a", "options": ["bind"]})),
            "mounts[1].source: bind mount has no source",
        ),
        (
            mount(json!({"destination": "/a", "source": "b"})),
            "mounts[1].type: mount has no type",
        ),
        (
            mount(json!({"destination": "/a", "source": "b", "options": ["bind", "size=3"]})),
            "mounts[1].options: bind mounts cannot have any filesystem-specific options applied",
        ),
        (
            mount(json!({"destination": "/a", "type": "tmpfs", "options": ["remount", "idmap"]})),
            "mounts[1]: a remount cannot change what ids are mapped to",
        ),
        (
            mount(json!({"destination": "/a", "type": "cgroup", "options": ["ridmap"]})),
            "mounts[1]: the cgroup hierarchy cannot be id-mapped",
        ),
        (
            mount(json!({"destination": "/a", "type": "tmpfs", "uidMappings": one})),
            "mounts[1]: id-mapped mounts must have both uid and gid mappings specified",
        ),
        (
            mount(
                json!({"destination": "/a", "type": "tmpfs", "uidMappings": none, "gidMappings": one}),
            ),
            "mounts[1].uidMappings[0].size: size must be greater than zero",
        ),
        (
            mount(
                json!({"destination": "/a", "type": "tmpfs", "uidMappings": one, "gidMappings": two}),
            ),
            "mounts[1].gidMappings: container id ranges overlap",
        ),
    ] {
        let at = change.0;
        let mut found = faults(&[change], PLAIN);
        // A doubled namespace takes the place of another one.
        found.retain(|fault| !fault.contains("duplicated ns"));
        assert_eq!(found, [fault], "{at}");
    }
}

#[test]
fn a_missing_namespace_is_reported_where_it_is_used() {
    for (kind, found) in [
        (
            "uts",
            vec![
                "hostname: unable to set hostname without a private UTS namespace",
                "domainname: unable to set domainname without a private UTS namespace",
            ],
        ),
        (
            "mount",
            vec![
                "linux.maskedPaths: unable to restrict sys entries without a private MNT namespace",
                "linux.readonlyPaths: unable to restrict sys entries without a private MNT namespace",
            ],
        ),
        (
            "ipc",
            vec![
                "linux.sysctl: sysctl \"kernel/shmmax\" is not allowed in the hosts ipc namespace",
            ],
        ),
        (
            "user",
            vec![
                "linux.uidMappings: user namespace mappings specified, but user namespace isn't enabled in the config",
            ],
        ),
        (
            "time",
            vec![
                "linux.timeOffsets: time namespace offsets specified, but time namespace isn't enabled in the config",
            ],
        ),
        ("pid", vec![]),
    ] {
        let mut config = everything();
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .retain(|n| n["type"] != kind);
        let spec = parse(config.to_string().as_bytes()).unwrap();
        let faults: Vec<_> = check(&spec, &PLAIN, Vec::new())
            .iter()
            .map(Fault::to_string)
            .collect();
        assert_eq!(faults, found, "{kind}");
    }
}

#[test]
fn network_devices_need_a_namespace_and_a_caller_who_may_move_them() {
    let rootless = Context {
        rootless: true,
        ..PLAIN
    };
    let mut config = everything();
    config["linux"]["netDevices"] = json!({"eth0": {}});
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .retain(|n| n["type"] != "network");
    let spec = parse(config.to_string().as_bytes()).unwrap();
    let faults: Vec<_> = check(&spec, &rootless, Vec::new())
        .iter()
        .filter(|fault| fault.field == "linux.netDevices")
        .map(|fault| fault.rule.clone())
        .collect();
    assert_eq!(
        faults,
        [
            "unable to move network devices without a NET namespace",
            "network devices are not supported for rootless containers"
        ]
    );
}

#[test]
fn id_mapped_mounts_need_a_source_of_maps_and_a_caller_with_rights() {
    let bind = |words: &[&str]| {
        let mount = json!({"destination": "/a", "source": "b", "options": words});
        ("/mounts/1", mount)
    };
    let no_user_namespace = [
        bind(&["rbind", "ridmap"]),
        ("/linux/namespaces/6", json!({"type": "time"})),
        ("/linux/namespaces/7", json!({"type": "time"})),
        ("/linux/uidMappings", json!(null)),
        ("/linux/gidMappings", json!(null)),
    ];
    let mut found = faults(&no_user_namespace, PLAIN);
    found.retain(|fault| fault.starts_with("mounts["));
    assert_eq!(
        found,
        [
            "mounts[1]: id-mapped mounts must have both uid and gid mappings specified: the container has no user namespace to take them from"
        ]
    );
    assert_eq!(faults(&[bind(&["bind", "idmap"])], PLAIN), [""; 0]);
    let rootless = Context {
        rootless: true,
        ..PLAIN
    };
    let mut found = faults(&[bind(&["bind", "idmap"])], rootless);
    found.retain(|fault| fault.starts_with("mounts["));
    assert_eq!(
        found,
        ["mounts[1]: id-mapped mounts are not supported for rootless containers"]
    );
}

#[test]
fn what_the_caller_may_not_do_depends_on_the_caller() {
    let rootless = Context {
        rootless: true,
        ..PLAIN
    };
    let no_pivot = Context {
        no_pivot: true,
        ..PLAIN
    };
    let systemd = Context {
        systemd_cgroup: true,
        ..PLAIN
    };
    let one = json!([{"containerID": 0, "hostID": 1000, "size": 1}]);
    let none = ("/process/user/additionalGids", json!(null));
    assert_eq!(
        faults(&[], rootless),
        ["process.user.additionalGids: cannot set any additional groups in a rootless container"]
    );
    assert_eq!(
        faults(&[none.clone(), ("/linux/gidMappings", one)], rootless),
        [
            "mounts[2].options: cannot specify gid=5 mount option for unmapped gid in rootless container"
        ]
    );
    assert_eq!(
        faults(
            &[
                none,
                ("/linux/namespaces", json!([])),
                ("/linux/uidMappings", json!(null)),
                ("/linux/gidMappings", json!(null)),
                ("/hostname", json!("")),
                ("/domainname", json!("")),
                ("/linux/maskedPaths", json!([])),
                ("/linux/readonlyPaths", json!([])),
                ("/linux/timeOffsets", json!({})),
                ("/linux/sysctl", json!({}))
            ],
            rootless
        ),
        ["linux.namespaces: rootless container requires user namespaces"]
    );
    assert_eq!(
        faults(&[("/linux/rootfsPropagation", json!("private"))], no_pivot),
        ["linux.rootfsPropagation: rootfsPropagation of [r]private is not safe without pivot_root"]
    );
    assert_eq!(
        faults(&[], systemd),
        [
            "linux.cgroupsPath: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got \"/a/b\" instead"
        ]
    );
    assert_eq!(
        faults(
            &[("/linux/cgroupsPath", json!("system.slice:x:y"))],
            systemd
        ),
        [""; 0]
    );
}

#[test]
fn faults_come_in_the_order_of_runc() {
    assert_eq!(
        faults(
            &[
                ("/ociVersion", json!("9")),
                ("/process/rlimits/0/soft", json!(2000)),
                ("/mounts/0/destination", json!("/")),
                ("/linux/sysctl", json!({"x": "1"})),
                ("/linux/namespaces/3/type", json!("pid")),
                ("/linux/rootfsPropagation", json!("x")),
                ("/root", json!(null)),
                ("/process/args", json!([])),
            ],
            PLAIN
        ),
        [
            "process.args: args must not be empty",
            "root: root must be specified",
            "linux.rootfsPropagation: rootfsPropagation=x is not supported",
            "linux.namespaces[3]: malformed spec file: duplicated ns \"pid\"",
            "hostname: unable to set hostname without a private UTS namespace",
            "domainname: unable to set domainname without a private UTS namespace",
            "linux.sysctl: sysctl \"x\" is not in a separate kernel namespace",
            "mounts[0].destination: \"/\" is on the top of rootfs",
            "process.rlimits[0]: RLIMIT_NOFILE soft limit 2000 is above its hard limit 1024",
            "ociVersion: version \"9\" is not supported: up to 1.3.0 is",
        ]
    );
}

#[test]
fn what_is_odd_but_allowed_passes() {
    for change in [
        ("/ociVersion", json!("1.0.2-dev")),
        ("/ociVersion", json!(null)),
        ("/process/env", json!(["A=1", "A=2", "B=", "C=x=y"])),
        ("/process/apparmorProfile", json!("")),
        ("/linux/namespaces/1/path", json!("/proc/1/ns/net")),
        (
            "/linux/netDevices",
            json!({"a": {"name": "eth%d"}, "b": {"name": "eth%d"}, "c": {"name": ""}, "d": {}, "e": null}),
        ),
        (
            "/linux/sysctl",
            json!({"net/ipv4/conf/eth0.1/forwarding": "1", "fs.mqueue.msg_max": "1", "user.max_user_namespaces": "1"}),
        ),
        (
            "/linux/resources/memory",
            json!({"limit": 1000, "swap": -1}),
        ),
        ("/linux/resources/memory", json!({"limit": -1, "swap": 0})),
        ("/linux/resources/memory", json!({"limit": -1, "swap": 1})),
        (
            "/linux/devices",
            json!([{"path": "/dev/a", "type": "c", "major": 1}, {"path": "/dev/a", "type": "u", "major": 1}]),
        ),
        (
            "/linux/devices",
            json!([{"path": "/dev/a", "type": "p", "major": -1, "minor": -1}]),
        ),
        (
            "/mounts/1",
            json!({"destination": "/proc/uptime", "source": "/x", "options": ["bind"]}),
        ),
        (
            "/mounts/0",
            json!({"destination": "/proc", "source": "/proc", "options": ["rbind", "rslave", "rro"]}),
        ),
        (
            "/mounts/1",
            json!({"destination": "/procfs", "type": "tmpfs"}),
        ),
        (
            "/mounts/1",
            json!({"destination": "/a", "type": "", "source": "b", "options": ["bind", "ro"]}),
        ),
    ] {
        let at = change.0;
        assert_eq!(faults(&[change], PLAIN), [""; 0], "{at}");
    }
}

#[test]
fn the_first_separator_of_a_sysctl_decides() {
    for (key, path) in [
        ("net.ipv4.ip_forward", Some("net/ipv4/ip_forward")),
        ("net/ipv4/ip_forward", Some("net/ipv4/ip_forward")),
        (
            "net.ipv4.conf.eth0/1.forwarding",
            Some("net/ipv4/conf/eth0.1/forwarding"),
        ),
        (
            "net/ipv4/conf/eth0.1/forwarding",
            Some("net/ipv4/conf/eth0.1/forwarding"),
        ),
        ("/net/ipv4", None),
        ("net/../x", None),
        ("net.//.x", None),
        ("net..x", None),
        ("", None),
    ] {
        assert_eq!(sysctl_path(key).as_deref(), path, "{key}");
    }
}
