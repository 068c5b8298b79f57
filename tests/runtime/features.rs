//! What `features` claims, held against what works: every word that it lists is asked for in a container.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::inside::{ask, asking, privileged, see, user_namespace};
use crate::probe;
use crate::support::{Bundle, Verb, mounts, namespace, process_args};

/// The words at `pointer` of what the verb prints.
fn words(pointer: &str) -> Vec<String> {
    let all = Verb::new(["features"]).ok().json();
    let list = all
        .pointer(pointer)
        .and_then(Value::as_array)
        .unwrap_or_else(|| panic!("no list {pointer} in {all}"));
    list.iter()
        .map(|word| word.as_str().expect("a word").to_owned())
        .collect()
}

/// Run `true` in a container with this change; what was said when it did not work.
fn works(what: &str, edit: impl FnOnce(&mut Value)) -> Result<(), String> {
    let bundle = Bundle::with(|c| {
        process_args(c, ["/bin/true"]);
        edit(c);
    });
    let outcome = bundle.run();
    match outcome.code() {
        0 if outcome.stderr.is_empty() => Ok(()),
        _ => Err(format!("{what}: {outcome}")),
    }
}

fn all_work(tried: impl IntoIterator<Item = Result<(), String>>) {
    let wrong: Vec<_> = tried.into_iter().filter_map(Result::err).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_mount_option_of_features_can_be_mounted() {
    requires!(root);
    differs!("crun", "lists words of other kinds of mounts too");
    differs!("runc", "since 1.1");
    let words = words("/mountOptions");
    assert_eq!(words.len(), words.iter().collect::<BTreeSet<_>>().len());
    let bundle = asking(&[], |c| {
        for word in &words {
            let target = format!("/m/{word}");
            let (kind, source) = match word.as_str() {
                "bind" | "rbind" => ("none", "data"),
                _ => ("tmpfs", "tmpfs"),
            };
            if word == "remount" {
                mounts(c).push(json!({ "destination": target, "type": kind, "source": source }));
            }
            mounts(c).push(json!({
                "destination": target, "type": kind, "source": source, "options": [word],
            }));
        }
    });
    fs::create_dir(bundle.path.join("data")).unwrap();
    let seen = see(&bundle);
    let there: BTreeSet<_> = seen.targets().into_iter().collect();
    for word in &words {
        assert!(there.contains(format!("/m/{word}").as_str()), "{word}");
    }
}

#[test]
fn every_namespace_of_features_is_made() {
    requires!(root);
    differs!("runc", "since 1.1");
    differs!("crun", "1.8 does not list them");
    let kinds = words("/linux/namespaces");
    let seen = ask(&[], |c| {
        for kind in &kinds {
            match kind.as_str() {
                "user" => user_namespace(c),
                kind => {
                    namespace(c, kind);
                }
            }
        }
    });
    assert_eq!(kinds.len(), 8);
    for kind in &kinds {
        let file = match kind.as_str() {
            "mount" => "mnt",
            "network" => "net",
            other => other,
        };
        let own = fs::read_link(format!("/proc/thread-self/ns/{file}")).unwrap();
        assert_ne!(seen["namespaces"][file], json!(own), "{kind}");
    }
}

#[test]
fn every_capability_of_features_is_given() {
    requires!(root);
    differs!("runc", "since 1.1");
    differs!("crun", "1.8 does not list them");
    let words = words("/linux/capabilities");
    let known: Vec<_> = probe::CAPABILITIES.iter().map(|name| json!(name)).collect();
    assert_eq!(json!(words), json!(known), "the kernel's, in its order");
    let mut had = Value::Null;
    let seen = ask(&[], |c| {
        // What this machine's root has itself.
        privileged(c);
        had = c["process"]["capabilities"]["bounding"].clone();
        for set in [
            "bounding",
            "effective",
            "permitted",
            "inheritable",
            "ambient",
        ] {
            c["process"]["capabilities"][set] = had.clone();
        }
    });
    for set in [
        "bounding",
        "effective",
        "permitted",
        "inheritable",
        "ambient",
    ] {
        assert_eq!(seen["capabilities"][set], had, "{set}");
    }
}

#[test]
fn every_seccomp_word_of_features_is_loaded() {
    requires!(container);
    differs!("runc", "since 1.1");
    differs!("crun", "1.8 does not list them");
    let profile = |change: &dyn Fn(&mut Value)| {
        let mut profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["swapon"], "action": "SCMP_ACT_ERRNO" }],
        });
        change(&mut profile);
        profile
    };
    let loads = |word: &str, change: &dyn Fn(&mut Value)| {
        let profile = profile(change);
        works(word, |c| c["linux"]["seccomp"] = profile)
    };
    let actions = words("/linux/seccomp/actions");
    assert_eq!(actions.len(), 9);
    // What asks an agent needs one: tests of its own do that.
    let actions = actions.iter().filter(|word| *word != "SCMP_ACT_NOTIFY");
    all_work(actions.map(|word| loads(word, &|p| p["syscalls"][0]["action"] = json!(word))));
    let operators = words("/linux/seccomp/operators");
    assert_eq!(operators.len(), 7);
    all_work(operators.iter().map(|word| {
        loads(word, &|p| {
            p["syscalls"][0]["args"] =
                json!([{ "index": 0, "value": 1, "valueTwo": 1, "op": word }]);
        })
    }));
    let architectures = words("/linux/seccomp/archs");
    assert!(architectures.contains(&"SCMP_ARCH_X86_64".to_owned()));
    // Of the other byte order than the machine's: such a filter cannot be one with the machine's own.
    const BIG: [&str; 7] = [
        "MIPS",
        "MIPS64",
        "MIPS64N32",
        "PPC",
        "PPC64",
        "S390",
        "S390X",
    ];
    all_work(architectures.iter().map(|word| {
        let loaded = loads(word, &|p| p["architectures"] = json!([word]));
        match loaded {
            Err(said) if BIG.contains(&&word["SCMP_ARCH_".len()..]) => {
                assert!(
                    said.contains(&format!("filter {word} beside SCMP_ARCH_")),
                    "{said}"
                );
                Ok(())
            }
            other => other,
        }
    }));
    let flags = words("/linux/seccomp/supportedFlags");
    assert_eq!(flags, words("/linux/seccomp/knownFlags"));
    all_work(
        flags
            .iter()
            .map(|word| loads(word, &|p| p["flags"] = json!([word]))),
    );
}

#[test]
fn every_memory_policy_of_features_is_known() {
    requires!(container, numa);
    differs!("crun", "since 1.24");
    differs!("runc", "since 1.4");
    let modes = words("/linux/memoryPolicy/modes");
    let flags = words("/linux/memoryPolicy/flags");
    assert_eq!((modes.len(), flags.len()), (7, 3));
    let set = |word: &str, policy: Value| {
        let set = works(word, |c| c["linux"]["memoryPolicy"] = policy);
        match set {
            // Younger than some kernels: then the kernel is what says so.
            Err(said) if said.contains("set linux.memoryPolicy: invalid argument") => Ok(()),
            other => other,
        }
    };
    all_work(modes.iter().map(|mode| {
        let nodes = match mode.as_str() {
            "MPOL_DEFAULT" | "MPOL_LOCAL" => "",
            _ => "0",
        };
        set(mode, json!({ "mode": mode, "nodes": nodes }))
    }));
    all_work(flags.iter().map(|flag| {
        set(
            flag,
            json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": [flag] }),
        )
    }));
}
