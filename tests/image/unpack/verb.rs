//! The verb `unpack`: its directory, its options, and what is left when it does not end.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::time::Duration;

use crate::support::{Built, ImageBuilder, Store, at, tree};

use super::{assert_no_trace, image, is_there, paths};

fn imported(store: &Store, image: ImageBuilder) -> Built {
    let built = image.tag("a:1").build();
    store.import(&built);
    built
}

fn small() -> ImageBuilder {
    image([|l| {
        l.dir("./", 0o751).file("x", "x", 0o644);
    }])
}

#[test]
fn an_absent_or_empty_directory_is_filled_and_any_other_is_left_alone() {
    requires!(root);
    let store = Store::new();
    imported(&store, small());
    let unpack = |name: &str| {
        store.run([
            "unpack".as_ref(),
            "a:1".as_ref(),
            store.beside(name).as_os_str(),
        ])
    };

    unpack("absent").ok();
    assert_eq!(
        fs::metadata(store.beside("absent")).unwrap().mode() & 0o7777,
        0o751
    );
    fs::create_dir(store.beside("empty")).unwrap();
    unpack("empty").ok();
    assert!(store.beside("empty/x").exists());
    symlink("absent2", store.beside("to-empty")).unwrap();
    fs::create_dir(store.beside("absent2")).unwrap();
    unpack("to-empty").ok();
    assert!(store.beside("absent2/x").exists());

    unpack("empty").fails_with("not empty");
    fs::write(store.beside("file"), "kept").unwrap();
    unpack("file").fails_with("no directory");
    assert_eq!(fs::read(store.beside("file")).unwrap(), b"kept");
    symlink("nowhere", store.beside("dangling")).unwrap();
    unpack("dangling").fails_with("leads nowhere");
    unpack("no/such/parent").fails_with("no such file");
    unpack("..").fails_with("");
    assert_no_trace(&store);
}

#[test]
fn images_are_found_by_name_and_digest_and_platform() {
    requires!(root);
    let store = Store::new();
    let built = imported(&store, small());
    for (at, name) in ["a:1", &built.digest, &built.digest["sha256:".len()..][..12]]
        .iter()
        .enumerate()
    {
        let out = store.beside(format!("out{at}"));
        store.ok(["unpack".as_ref(), name.as_ref(), out.as_os_str()]);
        assert!(is_there(&tree(&out), "x"), "{name}");
    }
    let out = store.beside("out");
    store
        .run(["unpack".as_ref(), "b:1".as_ref(), out.as_os_str()])
        .fails_with("b:1");
    let arm = small()
        .platform("linux", "arm64", Some("v8"))
        .config(|c| c["author"] = "arm".into())
        .build();
    let amd = small()
        .platform("linux", "amd64", None)
        .layer(|l| {
            l.file("amd", "", 0o644);
        })
        .build();
    store.import(&Built::index("both:1", &[arm, amd]));
    for (platform, has) in [("linux/arm64", false), ("linux/amd64", true)] {
        let out = store.beside(platform.replace('/', "-"));
        store
            .call(["unpack", "both:1", "--platform", platform])
            .arg(&out)
            .ok();
        assert_eq!(is_there(&tree(&out), "amd"), has, "{platform}");
    }
}

#[test]
fn an_image_without_layers_is_an_empty_directory() {
    requires!(root);
    let store = Store::new();
    imported(&store, ImageBuilder::new());
    let out = store.beside("out");
    store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    let tree = tree(&out);
    assert_eq!(paths(&tree), [""; 0]);
    assert_eq!(at(&tree, ".").mode, 0o755);
}

// S-6
#[test]
fn limits_stop_what_is_larger() {
    requires!(root);
    let store = Store::new();
    imported(
        &store,
        image([|l| {
            l.file("a", vec![0; 60_000], 0o644)
                .file("b/c", vec![0; 60_000], 0o644);
        }]),
    );
    let out = store.beside("out");
    for (option, small, words, enough) in [
        ("--max-size", "100kB", "--max-size", "120kB"),
        ("--max-entries", "2", "--max-entries", "3"),
    ] {
        let call = |value: &str| store.call(["unpack", "a:1", option, value]).arg(&out);
        call(small).run().fails_with(words);
        assert_no_trace(&store);
        call(enough).ok();
        fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn a_killed_unpack_leaves_nothing_that_the_next_does_not_remove() {
    requires!(root);
    let store = Store::new();
    let many = ImageBuilder::new().layer(|l| {
        for at in 0..3000 {
            l.file(format!("d{}/f{at}", at / 100), "content", 0o644);
        }
    });
    imported(&store, many);
    let mut killed = 0;
    for at in 0..12 {
        let out = store.beside("killed");
        let time = Duration::from_millis(5 + 15 * at);
        let done = store
            .call(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
            .killed_after(time);
        if done.code == 0 {
            // Complete, since it appeared.
            assert_eq!(tree(&out).len(), 3000 + 30 + 1);
            fs::remove_dir_all(&out).unwrap();
        } else {
            assert!(!out.exists());
            killed += 1;
        }
    }
    assert!(killed > 0);
    // A directory that somebody holds is another command at work.
    let held = store.beside(".pelagos-unpack-held");
    fs::create_dir(&held).unwrap();
    let file = nix::fcntl::Flock::lock(
        fs::File::open(&held).unwrap(),
        nix::fcntl::FlockArg::LockExclusive,
    );
    let out = store.beside("out");
    store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    let left: Vec<_> = fs::read_dir(store.beside(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(".pelagos"))
        .collect();
    assert_eq!(left, [".pelagos-unpack-held"]);
    drop(file);
}

// S-5: nobody else looks into what is not finished.
#[test]
fn an_unfinished_tree_is_closed_to_others() {
    requires!(root, command "strace");
    let store = Store::new();
    imported(
        &store,
        image([|l| {
            l.dir("./", 0o755).file("setuid", "x", 0o4755);
        }]),
    );
    let out = store.beside("out");
    // The rename at the end fails, so that the mode before it would be seen; what is there then is removed.
    store
        .call(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
        .injecting("renameat:error=EIO")
        .run()
        .fails_with("put it into");
    assert_no_trace(&store);
    store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    let mode = fs::metadata(&out).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode, 0o755);
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    requires!(root, command "strace");
    let store = Store::new();
    imported(&store, small());
    let out = store.beside("out");
    store
        .call(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
        .injecting("utimensat:error=ENOSPC:when=1")
        .run()
        .fails_with("no space left on device");
    assert_no_trace(&store);
}

// L-28, L-29: what an unprivileged user cannot make is skipped and said, and owners are kept as ids below.
#[test]
fn an_unprivileged_user_unpacks_without_devices() {
    requires!(root);
    let store = Store::unprivileged();
    let built = image([|l| {
        l.dir("dev", 0o755).char_device("dev/null", 0o666, 1, 3);
        l.owner(0, 0)
            .file("root", "x", 0o4755)
            .dir("closed", 0)
            .file("closed/x", "x", 0);
    }])
    .tag("a:1")
    .build();
    store.import(&built);
    let out = store.beside("out");
    let done = store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    done.warns("device 1:3 at dev/null");
    let tree = tree(&out);
    assert_eq!(paths(&tree), ["closed", "closed/x", "dev", "root"]);
    assert_eq!(at(&tree, "root").uid, crate::support::NOBODY);
    assert_eq!(
        (at(&tree, "root").mode, at(&tree, "closed").mode),
        (0o4755, 0)
    );
}

// L-29: with one id alone the owner is kept in an attribute, as umoci writes it.
#[test]
fn an_unprivileged_user_of_one_id_keeps_owners_in_an_attribute() {
    requires!(root);
    let store = Store::unprivileged();
    let built = image([|l| {
        l.owner(1, 300)
            .file("f", "x", 0o644)
            .dir("d", 0o755)
            .symlink("l", "f");
        l.owner(0, 0).file("root", "x", 0o644);
    }])
    .tag("a:1")
    .build();
    store.import(&built);
    let out = store.beside("out");
    store.ok(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    let tree = tree(&out);
    for path in ["f", "d"] {
        let kept = at(&tree, path)
            .xattrs
            .get("user.rootlesscontainers")
            .cloned();
        assert_eq!(
            kept.as_deref(),
            Some(&b"\x08\x01\x10\xac\x02"[..]),
            "{path}"
        );
    }
    assert!(at(&tree, "root").xattrs.is_empty());
}
