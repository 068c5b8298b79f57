//! The config.json that the `spec` verb writes.

/// A config.json to start from: an interactive shell in a read-only root, indented by tabs, without a final newline.
///
/// `rootless` is the caller's uid and gid: map only these into a user namespace, and leave out what such a caller
/// cannot have. `cgroup2`: the host has the cgroup v2 hierarchy, so the container gets a namespace of it.
//
// COMPAT: member for member what `runc spec` writes, but for the host name.
pub(crate) fn default_config(rootless: Option<(u32, u32)>, cgroup2: bool) -> String {
    let (pts_group, sys, first) = match rootless {
        None => (",\n\t\t\t\t\"gid=5\"", SYSFS, RESOURCES.to_string()),
        Some((uid, gid)) => ("", SYS_OF_THE_HOST, maps(uid, gid)),
    };
    let namespaces = [
        ("pid", true),
        ("network", rootless.is_none()),
        ("ipc", true),
        ("uts", true),
        ("mount", true),
        ("cgroup", cgroup2),
        ("user", rootless.is_some()),
    ]
    .into_iter()
    .filter(|(_, wanted)| *wanted)
    .map(|(kind, _)| format!("\t\t\t{{\n\t\t\t\t\"type\": \"{kind}\"\n\t\t\t}}"))
    .collect::<Vec<_>>()
    .join(",\n");
    [
        HEAD,
        pts_group,
        SHM_AND_MQUEUE,
        sys,
        CGROUP,
        &first,
        "\t\t\"namespaces\": [\n",
        &namespaces,
        PATHS,
    ]
    .concat()
}

fn maps(uid: u32, gid: u32) -> String {
    let map = |name, id| {
        format!(
            "\t\t\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
        )
    };
    map("uidMappings", uid) + &map("gidMappings", gid)
}

const HEAD: &str = r#"{
	"ociVersion": "1.3.0",
	"process": {
		"terminal": true,
		"user": {
			"uid": 0,
			"gid": 0
		},
		"args": [
			"sh"
		],
		"env": [
			"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
			"TERM=xterm"
		],
		"cwd": "/",
		"capabilities": {
			"bounding": [
				"CAP_AUDIT_WRITE",
				"CAP_KILL",
				"CAP_NET_BIND_SERVICE"
			],
			"effective": [
				"CAP_AUDIT_WRITE",
				"CAP_KILL",
				"CAP_NET_BIND_SERVICE"
			],
			"permitted": [
				"CAP_AUDIT_WRITE",
				"CAP_KILL",
				"CAP_NET_BIND_SERVICE"
			]
		},
		"rlimits": [
			{
				"type": "RLIMIT_NOFILE",
				"hard": 1024,
				"soft": 1024
			}
		],
		"noNewPrivileges": true
	},
	"root": {
		"path": "rootfs",
		"readonly": true
	},
	"hostname": "pelagos",
	"mounts": [
		{
			"destination": "/proc",
			"type": "proc",
			"source": "proc"
		},
		{
			"destination": "/dev",
			"type": "tmpfs",
			"source": "tmpfs",
			"options": [
				"nosuid",
				"strictatime",
				"mode=755",
				"size=65536k"
			]
		},
		{
			"destination": "/dev/pts",
			"type": "devpts",
			"source": "devpts",
			"options": [
				"nosuid",
				"noexec",
				"newinstance",
				"ptmxmode=0666",
				"mode=0620""#;

const SHM_AND_MQUEUE: &str = r#"
			]
		},
		{
			"destination": "/dev/shm",
			"type": "tmpfs",
			"source": "shm",
			"options": [
				"nosuid",
				"noexec",
				"nodev",
				"mode=1777",
				"size=65536k"
			]
		},
		{
			"destination": "/dev/mqueue",
			"type": "mqueue",
			"source": "mqueue",
			"options": [
				"nosuid",
				"noexec",
				"nodev"
			]
		},
"#;

const SYSFS: &str = r#"		{
			"destination": "/sys",
			"type": "sysfs",
			"source": "sysfs",
			"options": [
"#;

/// Mounting a sysfs needs a network namespace of one's own.
const SYS_OF_THE_HOST: &str = r#"		{
			"destination": "/sys",
			"type": "none",
			"source": "/sys",
			"options": [
				"rbind",
"#;

const CGROUP: &str = r#"				"nosuid",
				"noexec",
				"nodev",
				"ro"
			]
		},
		{
			"destination": "/sys/fs/cgroup",
			"type": "cgroup",
			"source": "cgroup",
			"options": [
				"nosuid",
				"noexec",
				"nodev",
				"relatime",
				"ro"
			]
		}
	],
	"linux": {
"#;

const RESOURCES: &str = r#"		"resources": {
			"devices": [
				{
					"allow": false,
					"access": "rwm"
				}
			]
		},
"#;

const PATHS: &str = r#"
		],
		"maskedPaths": [
			"/proc/acpi",
			"/proc/asound",
			"/proc/kcore",
			"/proc/keys",
			"/proc/latency_stats",
			"/proc/timer_list",
			"/proc/timer_stats",
			"/proc/sched_debug",
			"/sys/firmware",
			"/proc/scsi"
		],
		"readonlyPaths": [
			"/proc/bus",
			"/proc/fs",
			"/proc/irq",
			"/proc/sys",
			"/proc/sysrq-trigger"
		]
	}
}"#;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{Context, check::check, decode::parse};
    use serde_json::{Value, json};

    #[test]
    fn every_template_parses_and_keeps_the_rules() {
        for rootless in [None, Some((1000, 100))] {
            for cgroup2 in [false, true] {
                let spec = parse(default_config(rootless, cgroup2).as_bytes()).unwrap();
                let how = Context {
                    rootless: rootless.is_some(),
                    ..Context::default()
                };
                assert_eq!(check(&spec, &how, Vec::new()), [], "{rootless:?} {cgroup2}");
            }
        }
    }

    #[test]
    fn a_rootless_template_maps_the_caller_and_nothing_else() {
        let config: Value = serde_json::from_str(&default_config(Some((1000, 100)), true)).unwrap();
        let linux = &config["linux"];
        assert_eq!(
            linux["uidMappings"],
            json!([{"containerID": 0, "hostID": 1000, "size": 1}])
        );
        assert_eq!(
            linux["gidMappings"],
            json!([{"containerID": 0, "hostID": 100, "size": 1}])
        );
        let types: Vec<_> = linux["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|n| &n["type"])
            .collect();
        assert_eq!(types, ["pid", "ipc", "uts", "mount", "cgroup", "user"]);
        assert_eq!(linux.get("resources"), None);
        assert!(!config.to_string().contains("gid=5"));
        assert_eq!(
            config["mounts"][5]["options"],
            json!(["rbind", "nosuid", "noexec", "nodev", "ro"])
        );
    }
}
