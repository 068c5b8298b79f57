//! config.json for a container of an image (image-spec conversion.md), on the runtime's own template.

use std::ffi::OsString;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

use crate::idmap::{Maps, Range, to_host};
use crate::spec::default_config;

use super::super::manifest::Execution;
use super::labels::Annotations;
use super::user::User;

/// What a container gets where its image says nothing of it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The rights of root inside: what the engines give, without raw sockets, device nodes and the audit log.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// Nothing here is younger. crun before 1.9 refuses whatever is not 1.0.
const VERSION: &str = "1.0.2";

/// Masked beside what the template masks: power and timing of the host tell secrets of its other users.
const MORE_MASKED: [&str; 2] = ["/proc/interrupts", "/sys/devices/virtual/powercap"];

/// What the caller asks for, over what the image says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Replaces `Entrypoint`, and drops `Cmd`; an empty one takes it away.
    pub(crate) entrypoint: Option<String>,
    /// Replaces `Cmd`.
    pub(crate) args: Vec<String>,
    /// `NAME=VALUE`, or `NAME` for the caller's own value.
    pub(crate) env: Vec<String>,
    pub(crate) workdir: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) hostname: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) read_only: bool,
}

/// Who will start the container, which decides what it can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// Root of the machine; with maps the container gets a user namespace.
    Root(Option<Maps>),
    /// Anybody else: always with a user namespace.
    User(Maps),
}

/// Everything that config.json depends on.
pub(super) struct Contents<'c> {
    pub(super) execution: &'c Execution,
    pub(super) overrides: &'c Overrides,
    pub(super) user: User,
    pub(super) annotations: Annotations,
    /// Entries of `mounts`, after the template's.
    pub(super) mounts: Vec<Value>,
    pub(super) caller: Caller,
    pub(super) hostname: &'c str,
    /// The host has the cgroup v2 hierarchy.
    pub(super) cgroup2: bool,
}

/// What the configuration became, and what of the image was left out, one line each.
pub(super) struct Written {
    pub(super) text: String,
    pub(super) remarks: Vec<String>,
}

/// Write it.
///
/// # Errors
/// The image and the caller together say nothing that could be run, or something that is not possible.
pub(super) fn write(contents: Contents<'_>) -> Result<Written> {
    let Contents {
        execution,
        overrides,
        user,
        annotations,
        mounts,
        caller,
        hostname,
        cgroup2,
    } = contents;
    let mut remarks = Vec::new();
    if !annotations.withheld.is_empty() {
        remarks.push(format!(
            "labels that a runtime may act on are left out: {} (--labels=all takes them)",
            annotations.withheld.join(", ")
        ));
    }
    let template = match &caller {
        Caller::Root(_) => default_config(None, cgroup2),
        // The ids are replaced below.
        Caller::User(_) => default_config(Some((0, 0)), cgroup2),
    };
    let mut config: Value = serde_json::from_str(&template).context("read the template")?;

    config["ociVersion"] = json!(VERSION);
    let mut env = environment(&execution.env, &overrides.env, &mut remarks)?;
    supply(&mut env, "PATH", DEFAULT_PATH);
    supply(&mut env, "HOME", user.home.as_deref().unwrap_or("/"));
    if overrides.terminal {
        supply(&mut env, "TERM", "xterm");
    }
    let process = &mut config["process"];
    process["terminal"] = json!(overrides.terminal);
    process["args"] = json!(arguments(execution, overrides)?);
    process["env"] = json!(env);
    process["cwd"] = json!(directory(execution, overrides)?);
    process["capabilities"] = json!({
        "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
    });
    // The limits of whoever starts it hold; the template's 1024 files are fewer than many services open.
    process
        .as_object_mut()
        .map(|object| object.remove("rlimits"));
    process["user"] = json!({"uid": user.uid, "gid": user.gid});
    if !user.additional.is_empty() {
        if matches!(caller, Caller::User(_)) {
            remarks.push(format!(
                "groups {:?} are left out: a rootless container has none",
                user.additional
            ));
        } else {
            process["user"]["additionalGids"] = json!(user.additional);
        }
    }
    config["root"] = json!({"path": "rootfs", "readonly": overrides.read_only});
    config["hostname"] = json!(hostname);
    if !annotations.map.is_empty() {
        config["annotations"] = json!(annotations.map);
    }
    append(&mut config["mounts"], mounts);
    let masked = MORE_MASKED.map(Value::from).to_vec();
    append(&mut config["linux"]["maskedPaths"], masked);
    namespaces(&mut config, &caller, &user)?;

    let mut text = serde_json::to_string_pretty(&config)?;
    text.push('\n');
    Ok(Written { text, remarks })
}

fn append(list: &mut Value, more: Vec<Value>) {
    if let Some(list) = list.as_array_mut() {
        list.extend(more);
    }
}

/// The user namespace and its maps; a network of its own for everybody.
fn namespaces(config: &mut Value, caller: &Caller, user: &User) -> Result<()> {
    let (maps, missing) = match caller {
        Caller::Root(None) => return Ok(()),
        Caller::Root(Some(maps)) => (maps, "user"),
        Caller::User(maps) => (maps, "network"),
    };
    let needed = [
        ("user", &maps.uids, vec![user.uid]),
        (
            "group",
            &maps.gids,
            [vec![user.gid], user.additional.clone()].concat(),
        ),
    ];
    for (what, ranges, ids) in needed {
        for id in ids {
            let rootless = matches!(caller, Caller::User(_));
            if to_host(ranges, id).is_none() && !(rootless && user.additional.contains(&id)) {
                bail!("{what} {id}, as which the container runs, is not in its id map");
            }
        }
    }
    append(
        &mut config["linux"]["namespaces"],
        vec![json!({"type": missing})],
    );
    config["linux"]["uidMappings"] = mappings(&maps.uids);
    config["linux"]["gidMappings"] = mappings(&maps.gids);
    if let Some(mounts) = config["mounts"].as_array_mut() {
        for options in mounts
            .iter_mut()
            .filter_map(|mount| mount.get_mut("options"))
        {
            if let Some(options) = options.as_array_mut() {
                // The group tty of the terminals, which is a plain number to the kernel.
                options.retain(|word| word != "gid=5" || to_host(&maps.gids, 5).is_some());
            }
        }
    }
    Ok(())
}

/// One of the two maps as `linux` has it.
pub(super) fn mappings(ranges: &[Range]) -> Value {
    let one = |range: &Range| {
        json!({
            "containerID": range.container, "hostID": range.host, "size": range.length,
        })
    };
    ranges.iter().map(one).collect()
}

/// conversion.md: Entrypoint, then Cmd. Who replaces the first drops the second.
fn arguments(execution: &Execution, overrides: &Overrides) -> Result<Vec<String>> {
    let mut args = match &overrides.entrypoint {
        Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
        Some(entrypoint) => vec![entrypoint.clone()],
        None => execution.entrypoint.clone(),
    };
    if !overrides.args.is_empty() || overrides.entrypoint.is_some() {
        args.extend(overrides.args.iter().cloned());
    } else {
        args.extend(execution.cmd.iter().cloned());
    }
    match args.first() {
        None => bail!("the image names no program to run: name one after `--`"),
        Some(program) if program.is_empty() => bail!("the name of the program to run is empty"),
        Some(_) if args.iter().any(|arg| arg.contains('\0')) => {
            bail!("an argument of the program contains a NUL")
        }
        Some(_) => Ok(args),
    }
}

fn directory<'c>(execution: &'c Execution, overrides: &'c Overrides) -> Result<&'c str> {
    let chosen = overrides
        .workdir
        .as_deref()
        .unwrap_or(&execution.working_dir);
    match chosen {
        "" => Ok("/"),
        path if path.starts_with('/') && !path.contains('\0') => Ok(path),
        path => bail!("working directory {path:?}: not an absolute path"),
    }
}

/// The image's variables in their order, replaced or followed by the caller's.
fn environment(
    image: &[String],
    caller: &[String],
    remarks: &mut Vec<String>,
) -> Result<Vec<String>> {
    let mut env: Vec<String> = Vec::with_capacity(image.len() + caller.len() + 2);
    for entry in image {
        match name_of(entry) {
            Some(_) => env.push(entry.clone()),
            None => remarks.push(format!(
                "{entry:?} in the image's environment is not NAME=VALUE and is left out"
            )),
        }
    }
    for entry in caller {
        let entry = if entry.contains('=') {
            entry.clone()
        } else {
            let Some(value) = std::env::var_os(entry).map(OsString::into_string) else {
                continue;
            };
            let Ok(value) = value else {
                bail!("--env {entry}: the value is not UTF-8");
            };
            format!("{entry}={value}")
        };
        let Some(name) = name_of(&entry) else {
            bail!("--env {entry:?}: expected NAME=VALUE or NAME");
        };
        env.retain(|other| name_of(other) != Some(name));
        env.push(entry);
    }
    Ok(env)
}

fn name_of(entry: &str) -> Option<&str> {
    let (name, _) = entry.split_once('=')?;
    (!name.is_empty() && !entry.contains('\0')).then_some(name)
}

/// Only for a name that is not there (conversion.md, "Config.Env").
fn supply(env: &mut Vec<String>, name: &str, value: &str) {
    if !env.iter().any(|entry| name_of(entry) == Some(name)) {
        env.push(format!("{name}={value}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(container: u32, host: u32, length: u32) -> Range {
        Range {
            container,
            host,
            length,
        }
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn image() -> Execution {
        Execution {
            entrypoint: words(&["/entry", "-e"]),
            cmd: words(&["-c"]),
            ..Execution::default()
        }
    }

    fn written(execution: &Execution, overrides: &Overrides, caller: Caller) -> Value {
        let contents = Contents {
            execution,
            overrides,
            user: User::default(),
            annotations: Annotations::default(),
            mounts: Vec::new(),
            caller,
            hostname: "h",
            cgroup2: true,
        };
        serde_json::from_str(&write(contents).unwrap().text).unwrap()
    }

    // L-46
    #[test]
    fn a_new_entrypoint_drops_cmd_and_arguments_replace_it() {
        for (entrypoint, args, expected) in [
            (None, &[][..], &["/entry", "-e", "-c"][..]),
            (None, &["x", "y"], &["/entry", "-e", "x", "y"]),
            (Some("/new"), &[], &["/new"]),
            (Some("/new"), &["x"], &["/new", "x"]),
            (Some(""), &["x"], &["x"]),
        ] {
            let overrides = Overrides {
                entrypoint: entrypoint.map(str::to_owned),
                args: words(args),
                ..Overrides::default()
            };
            let found = arguments(&image(), &overrides).unwrap();
            assert_eq!(found, expected, "{entrypoint:?} {args:?}");
        }
        let nothing = arguments(&Execution::default(), &Overrides::default());
        assert!(nothing.unwrap_err().to_string().contains("no program"));
    }

    // L-45
    #[test]
    fn the_environment_is_the_images_and_gets_only_what_it_lacks() {
        let mut execution = image();
        execution.env = words(&["A=1", "HOME=/elsewhere", "EMPTY=", "broken", "=x", "B=a=b"]);
        let overrides = Overrides {
            env: words(&["A=2", "C=3", "SURELY_NOT_SET_ANYWHERE"]),
            terminal: true,
            ..Overrides::default()
        };
        let mut remarks = Vec::new();
        let env = environment(&execution.env, &overrides.env, &mut remarks).unwrap();
        assert_eq!(env, ["HOME=/elsewhere", "EMPTY=", "B=a=b", "A=2", "C=3"]);
        assert_eq!(remarks.len(), 2);
        let config = written(&execution, &overrides, Caller::Root(None));
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(
            config["process"]["env"],
            json!([
                "HOME=/elsewhere",
                "EMPTY=",
                "B=a=b",
                "A=2",
                "C=3",
                path,
                "TERM=xterm"
            ])
        );
        let bare = written(&image(), &Overrides::default(), Caller::Root(None));
        assert_eq!(bare["process"]["env"], json!([path, "HOME=/"]));
    }

    // L-44
    #[test]
    fn the_working_directory_is_absolute_and_the_root_by_default() {
        for (of_image, of_caller, expected) in [
            ("", None, Some("/")),
            ("/srv", None, Some("/srv")),
            ("/srv", Some("/x"), Some("/x")),
            ("srv", None, None),
            ("/srv", Some("x"), None),
        ] {
            let execution = Execution {
                working_dir: of_image.into(),
                ..image()
            };
            let overrides = Overrides {
                workdir: of_caller.map(str::to_owned),
                ..Overrides::default()
            };
            let found = directory(&execution, &overrides).ok();
            assert_eq!(found, expected, "{of_image:?} {of_caller:?}");
        }
    }

    // L-53
    #[test]
    fn a_rootless_container_has_a_user_namespace_and_no_further_groups() {
        let maps = Maps {
            uids: vec![range(0, 1000, 1), range(1, 100_000, 65_536)],
            gids: vec![range(0, 100, 1)],
        };
        let contents = Contents {
            execution: &image(),
            overrides: &Overrides::default(),
            user: User {
                uid: 33,
                gid: 0,
                additional: vec![7],
                home: None,
            },
            annotations: Annotations::default(),
            mounts: Vec::new(),
            caller: Caller::User(maps.clone()),
            hostname: "h",
            cgroup2: true,
        };
        let written = write(contents).unwrap();
        assert!(written.remarks[0].contains("[7]"), "{:?}", written.remarks);
        let config: Value = serde_json::from_str(&written.text).unwrap();
        assert_eq!(config["process"]["user"], json!({"uid": 33, "gid": 0}));
        assert_eq!(
            config["linux"]["uidMappings"],
            json!([
                {"containerID": 0, "hostID": 1000, "size": 1},
                {"containerID": 1, "hostID": 100_000, "size": 65_536},
            ])
        );
        let kinds: Vec<_> = config["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .map(|namespace| namespace["type"].as_str().unwrap())
            .collect();
        assert_eq!(
            kinds,
            ["pid", "ipc", "uts", "mount", "cgroup", "user", "network"]
        );
        assert!(!written.text.contains("gid=5"));
    }

    #[test]
    fn a_user_without_a_mapping_is_an_error_that_names_the_id() {
        let maps = Maps {
            uids: vec![range(0, 1000, 10)],
            gids: vec![range(0, 1000, 10)],
        };
        let user = User {
            uid: 10,
            ..User::default()
        };
        let mut config: Value = serde_json::from_str(&default_config(None, true)).unwrap();
        let error = namespaces(&mut config, &Caller::Root(Some(maps)), &user).unwrap_err();
        assert!(error.to_string().contains("user 10"), "{error}");
    }

    #[test]
    fn the_template_is_hardened() {
        let config = written(&image(), &Overrides::default(), Caller::Root(None));
        assert_eq!(config["process"]["noNewPrivileges"], json!(true));
        assert_eq!(config["process"]["terminal"], json!(false));
        assert_eq!(config["process"]["rlimits"], Value::Null);
        assert_eq!(
            config["process"]["capabilities"]["bounding"]
                .as_array()
                .unwrap()
                .len(),
            11
        );
        let masked = config["linux"]["maskedPaths"].to_string();
        for path in [
            "/proc/kcore",
            "/proc/keys",
            "/sys/firmware",
            "/proc/interrupts",
        ] {
            assert!(masked.contains(path), "{path}");
        }
        assert_eq!(config["root"], json!({"path": "rootfs", "readonly": false}));
    }
}
