//! Archives written from the store: the same digests as came in.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::image::{LAYOUT, OCI_MANIFEST};
use crate::support::*;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

fn image(mark: &str) -> ImageBuilder {
    let mark = mark.to_owned();
    ImageBuilder::new()
        .layer(|l| {
            l.dir("etc", 0o755).file("etc/base", "base\n", 0o644);
        })
        .layer(move |l| {
            l.file("etc/mark", mark, 0o644);
        })
}

/// Path and content of every entry, in order.
fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(archive);
    let read = |entry: std::io::Result<tar::Entry<&[u8]>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        let header = entry.header();
        let owner = (header.uid().unwrap(), header.gid().unwrap());
        assert_eq!((header.mtime().unwrap(), owner), (0, (0, 0)));
        (entry.path().unwrap().display().to_string(), content)
    };
    archive.entries().unwrap().map(read).collect()
}

fn export(store: &Store, images: &[&str], name: &str) -> Vec<u8> {
    let file = store.beside(name);
    let mut args = vec!["export"];
    args.extend(images);
    args.push(file.to_str().unwrap());
    store.ok(args);
    fs::read(file).unwrap()
}

#[test]
fn an_archive_holds_what_came_in_and_nothing_else() {
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    store.import(&built);
    store.import(&image("other").tag("b:1").build());
    let archive = export(&store, &["a:1"], "a.tar");
    let found = entries(&archive);
    let mut paths: Vec<String> = ["oci-layout", "index.json", "blobs", "blobs/sha256"]
        .map(str::to_owned)
        .into();
    // In the order of the digests.
    paths.extend(
        built
            .blobs
            .keys()
            .map(|digest| format!("blobs/sha256/{}", hex(digest))),
    );
    let names: Vec<_> = found
        .iter()
        .map(|(path, _)| path.trim_end_matches('/').to_owned())
        .collect();
    assert_eq!(names, paths);
    assert_eq!(found[0].1, LAYOUT.as_bytes());
    for (path, content) in &found[4..] {
        let digest = format!("sha256:{}", path.rsplit('/').next().unwrap());
        assert_eq!(content, &built.blobs[&digest]);
    }
    let index: Value = serde_json::from_slice(&found[1].1).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["digest"], built.digest);
    assert_eq!(
        index["manifests"][0]["annotations"],
        json!({REF_NAME: "a:1"})
    );
    store.assert_nothing_left();
}

#[test]
fn the_same_images_make_the_same_bytes_wherever_they_are() {
    let store = Store::new();
    store.import(&image("b").tag("b:1").build());
    store.import(&image("a").tag("a:1").build());
    let first = export(&store, &["a:1", "b:1"], "first.tar");
    assert_eq!(export(&store, &["a:1", "b:1"], "second.tar"), first);
    let other = Store::new();
    let file = store.beside("first.tar");
    let outcome = other.ok([OsStr::new("import"), file.as_os_str()]);
    assert_eq!(outcome.stdout.lines().count(), 2, "{outcome}");
    assert_eq!(export(&other, &["a:1", "b:1"], "third.tar"), first);
    assert_eq!(other.blobs(), store.blobs());
    // To stdout as well.
    let output = Command::new(program())
        .arg("--root")
        .arg(&store.root)
        .args(["export", "a:1", "b:1", "-"])
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(output.stdout, first);
}

#[test]
fn an_index_goes_as_it_is_and_a_platform_alone() {
    let arm = image("arm").platform("linux", "arm64", None).build();
    let amd = image("amd").platform("linux", "amd64", None).build();
    let mut index = Built::index("a:1", &[arm.clone(), amd.clone()]);
    let store = Store::new();
    store.import(&index);
    let whole = entries(&export(&store, &["a:1"], "whole.tar"));
    assert_eq!(whole.len(), 4 + index.blobs.len());
    let file = store.beside("arm.tar");
    store.ok([
        "export",
        "--platform=linux/arm64",
        "a:1",
        file.to_str().unwrap(),
    ]);
    let one = entries(&fs::read(&file).unwrap());
    assert_eq!(one.len(), 4 + arm.blobs.len());
    let list: Value = serde_json::from_slice(&one[1].1).unwrap();
    assert_eq!(list["manifests"][0]["digest"], arm.digest);
    store
        .run([
            "export",
            "--platform=linux/s390x",
            "a:1",
            file.to_str().unwrap(),
        ])
        .fails_with("there is linux/arm64, linux/amd64");

    // Of an index that came in part, the part.
    index
        .blobs
        .retain(|digest, _| !amd.blobs.contains_key(digest) || arm.blobs.contains_key(digest));
    let part = Store::new();
    part.import(&index);
    let archive = entries(&export(&part, &["a:1"], "part.tar"));
    assert_eq!(archive.len(), 4 + index.blobs.len());
    let again = Store::new();
    let file = part.beside("part.tar");
    let outcome = again.ok([OsStr::new("import"), file.as_os_str()]);
    assert_eq!(outcome.stdout, format!("a:1 {}\n", index.digest));
}

#[test]
fn a_platform_that_a_single_image_is_not_for_is_refused() {
    let store = Store::new();
    store.import(
        &image("a")
            .platform("linux", "s390x", None)
            .tag("a:1")
            .build(),
    );
    let file = store.beside("a.tar");
    let file = file.to_str().unwrap();
    store
        .run(["export", "--platform=linux/arm64", "a:1", file])
        .fails_with("there is linux/s390x");
    store.ok(["export", "--platform=linux/s390x", "a:1", file]);
}

#[test]
fn an_image_or_a_directory_that_is_not_there_is_named_once() {
    let store = Store::new();
    store.import(&image("a").tag("a:1").build());
    let outcome = store.run(["export", "b:1", "x.tar"]);
    assert!(
        outcome
            .error_line()
            .ends_with("pelagos-image: image b:1: not in the store"),
        "{outcome}"
    );
    let file = store.beside("none/a.tar");
    let outcome = store.run(["export", "a:1", file.to_str().unwrap()]);
    outcome.fails_with("no such file or directory");
    assert!(!outcome.stderr.contains(".pelagos-image-"), "{outcome}");
}

#[test]
fn a_missing_or_damaged_blob_is_named_and_no_file_appears() {
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    store.import(&built);
    let file = store.beside("out/a.tar");
    fs::create_dir(store.beside("out")).unwrap();
    let layer = store.blob(&built.layers[1]);
    let good = fs::read(&layer).unwrap();
    let mut bad = good.clone();
    bad[5] ^= 1;
    for (bytes, words) in [
        (Some(bad), "damaged"),
        (Some(good[1..].to_vec()), "bytes long"),
        (None, "missing"),
    ] {
        fs::remove_file(&layer).ok();
        if let Some(bytes) = bytes {
            fs::write(&layer, bytes).unwrap();
        }
        let outcome = store.run(["export", "a:1", file.to_str().unwrap()]);
        outcome.fails_with(words);
        outcome.fails_with(&built.layers[1]);
        assert_eq!(fs::read_dir(store.beside("out")).unwrap().count(), 0);
    }
}

#[test]
fn a_file_is_replaced_as_a_whole() {
    let store = Store::new();
    store.import(&image("a").tag("a:1").build());
    let file = store.beside("a.tar");
    fs::write(&file, "before").unwrap();
    store
        .run(["export", "absent:1", file.to_str().unwrap()])
        .fails_with("absent:1");
    assert_eq!(fs::read(&file).unwrap(), b"before");
    let archive = export(&store, &["a:1"], "a.tar");
    assert!(archive.len() > 1024);
    let umask = 0o022;
    assert_eq!(
        fs::metadata(&file).unwrap().permissions().mode() & 0o777 & !umask,
        0o644
    );
    // What is no regular file is written to, not replaced.
    store.ok(["export", "a:1", "/dev/null"]);
    assert!(fs::metadata("/dev/null").unwrap().rdev() != 0);
    let empty = Store::new();
    empty
        .run(["export", "a:1", file.to_str().unwrap()])
        .fails_with("no store");
    assert!(!Path::new(&empty.root).exists());
}

#[test]
fn a_command_that_is_killed_while_it_writes_leaves_nothing_beside_the_archive() {
    requires!(command "strace");
    let store = Store::new();
    store.import(&image("one").tag("one:1").build());
    let dir = store.beside("out");
    fs::create_dir(&dir).unwrap();
    let killed = store
        .call(["export", "one:1"])
        .arg(dir.join("one.tar"))
        .injecting("fsync:signal=KILL:when=1")
        .run();
    assert!(killed.code > 128, "{killed}");
    let left: Vec<_> = fs::read_dir(&dir).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn an_archive_is_not_written_to_a_terminal() {
    requires!(command "script");
    let store = Store::new();
    store.import(&image("a").tag("a:1").build());
    let said = store.call(["export", "a:1", "-"]).on_a_terminal().run();
    assert_eq!(said.code, 1, "{said}");
    assert!(said.stdout.contains("stdout is a terminal"), "{said}");
}

#[test]
fn what_refers_to_an_image_goes_along() {
    let store = Store::new();
    let lay = store.beside("lay");
    let subject = image("a").tag("a:1").write_layout(&lay);
    let mut named = subject.descriptor.clone();
    named.as_object_mut().unwrap().remove("platform");
    let signature = ImageBuilder::new()
        .given_layer("application/x-signature", b"signed".to_vec(), &sha256(b"?"))
        .manifest(move |m| {
            m["subject"] = named.clone();
            m["config"]["mediaType"] = json!("application/x-signature");
        })
        .write_layout(&lay);
    store.ok([OsStr::new("import"), lay.as_os_str()]);
    store.import(&image("b").tag("b:1").build());
    let found = entries(&export(&store, &["a:1"], "a.tar"));
    assert_eq!(found.len(), 4 + subject.blobs.len() + signature.blobs.len());
    let index: Value = serde_json::from_slice(&found[1].1).unwrap();
    assert_eq!(index["manifests"][1]["digest"], signature.digest);
    let other = entries(&export(&store, &["b:1"], "b.tar"));
    let index: Value = serde_json::from_slice(&other[1].1).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
}

#[test]
fn skopeo_sees_the_same_digests() {
    requires!(command "skopeo");
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    store.import(&built);
    export(&store, &["a:1"], "a.tar");
    let archive = format!("oci-archive:{}:a:1", store.beside("a.tar").display());
    let output = Command::new("skopeo")
        .args(["inspect", &archive])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let seen: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(seen["Digest"], built.digest);
    assert_eq!(seen["Layers"], json!(built.layers));
    let output = Command::new("skopeo")
        .args(["inspect", "--raw", &archive])
        .output()
        .unwrap();
    let manifest: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(manifest["mediaType"], OCI_MANIFEST);
    assert_eq!(output.stdout, built.blobs[&built.digest]);
}
