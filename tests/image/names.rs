//! What imported images are called: names that come along, names that are given, names that are taken.

use std::fs;

use serde_json::json;

use super::import::{assert_holds, assert_unchanged, image, import, names, state};
use crate::support::image::LAYOUT;
use crate::support::*;

// S-11, CVE-2026-50195
#[test]
fn s_11_a_name_in_an_archive_does_not_take_the_name_of_another_image() {
    let store = Store::new();
    let mine = image("mine").tag("a:1").build();
    store.import(&mine);
    let before = state(&store);
    let other = image("other").tag("a:1").plain();
    let built = other.write_oci_archive(store.beside("oci.tar"));
    other.write_layout(store.beside("lay"));
    other.write_docker_archive(store.beside("docker.tar"));
    other.write_docker_archive_new(store.beside("new.tar"));
    for source in ["oci.tar", "lay", "docker.tar", "new.tar"] {
        let outcome = import(&store, &store.beside(source));
        outcome.fails_with("a:1: the name is another image's");
        assert!(outcome.stderr.contains("--replace"), "{outcome}");
        assert_unchanged(&store, &before);
    }
    // The same image is no other.
    store.import(&mine);
    assert_unchanged(&store, &before);
    // The caller's own word counts.
    let source = store.beside("oci.tar");
    let source = source.to_str().unwrap();
    store.ok(["import", source, "b"]);
    store.ok(["import", "--replace", source]);
    let expected = [("a:1", &built.digest), ("b:latest", &built.digest)];
    assert_eq!(
        names(&store),
        expected.map(|(name, digest)| (name.to_owned(), digest.clone()))
    );
    let third = image("third")
        .tag("x:1")
        .write_oci_archive(store.beside("third.tar"));
    store.ok(["import", store.beside("third.tar").to_str().unwrap(), "a:1"]);
    assert_eq!(names(&store)[0], ("a:1".to_owned(), third.digest));
}

#[test]
fn one_refused_name_refuses_all() {
    let store = Store::new();
    store.import(&image("mine").tag("b:1").build());
    let before = state(&store);
    let lay = store.beside("lay");
    image("one").tag("a:1").write_layout(&lay);
    image("two").tag("b:1").write_layout(&lay);
    import(&store, &lay).fails_with("b:1");
    assert_unchanged(&store, &before);
}

#[test]
fn s_14_a_hostile_name_is_refused_and_shown_escaped() {
    for name in [
        "../../etc/cron.d/x:1",
        "a\u{1b}[2Jb:1",
        "A:1",
        "a:1\n",
        "/a:1",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    ] {
        let store = Store::new();
        let image = image("a").tag(name).plain();
        image.write_layout(store.beside("lay"));
        image.write_oci_archive(store.beside("oci.tar"));
        image.write_docker_archive(store.beside("docker.tar"));
        for source in ["lay", "oci.tar", "docker.tar"] {
            let outcome = import(&store, &store.beside(source));
            outcome.fails_with("image name");
            assert!(!outcome.stderr.contains('\u{1b}'), "{outcome}");
            assert_unchanged(&store, &(Vec::new(), Vec::new()));
        }
    }
}

#[test]
fn a_tag_alone_is_a_tag_of_what_the_source_is_called() {
    let store = Store::new();
    let lay = store.beside("tool.tar.gz");
    let one = image("one").tag("latest").write_layout(&lay);
    let two = image("two").tag("v1").write_layout(&lay);
    let outcome = import(&store, &lay).ok();
    assert_eq!(
        outcome.stdout,
        format!("tool:latest {}\ntool:v1 {}\n", one.digest, two.digest)
    );

    let archive = image("one").tag("v1").build().oci_archive();
    fs::write(store.beside("My Image.tar"), &archive).unwrap();
    let outcome = import(&store, &store.beside("My Image.tar"));
    outcome.fails_with("no name of its own");
    assert!(outcome.stderr.contains("import SOURCE NAME"), "{outcome}");
    let stdin = || fs::File::open(store.beside("My Image.tar")).unwrap();
    store
        .call(["import", "-"])
        .stdin(stdin())
        .run()
        .fails_with("no name of its own");
    let outcome = store.call(["import", "-", "named"]).stdin(stdin()).ok();
    assert_eq!(outcome.stdout, format!("named:latest {}\n", one.digest));
    // Without any annotation.
    image("one").write_oci_archive(store.beside("bare.tar"));
    let outcome = import(&store, &store.beside("bare.tar")).ok();
    assert_eq!(outcome.stdout, format!("bare:latest {}\n", one.digest));
    // containerd's annotation is the full name.
    let mut layout = LayerBuilder::new();
    for (digest, bytes) in &one.blobs {
        layout.file(format!("blobs/sha256/{}", hex(digest)), bytes, 0o644);
    }
    let mut entry = one.named_descriptor();
    entry["annotations"]["io.containerd.image.name"] = json!("docker.io/library/tool:1");
    layout.file(
        "index.json",
        json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
        0o644,
    );
    layout.file("oci-layout", LAYOUT, 0o644);
    fs::write(store.beside("full.tar"), layout.finish()).unwrap();
    let outcome = import(&store, &store.beside("full.tar")).ok();
    assert_eq!(
        outcome.stdout,
        format!("docker.io/library/tool:1 {}\n", one.digest)
    );
}

#[test]
fn one_name_is_for_one_image() {
    let store = Store::new();
    let lay = store.beside("lay");
    image("one").tag("a:1").write_layout(&lay);
    image("two").tag("b:1").write_layout(&lay);
    let lay = lay.to_str().unwrap();
    store.run(["import", lay, "c:1"]).fails_with("a:1, b:1");
    store
        .run(["import", lay, "c:"])
        .fails_with("image name \"c:\"");
    let pinned = format!("c@{}", sha256(b"other"));
    let one = store.beside("one");
    let built = image("one").tag("a:1").write_layout(&one);
    store
        .run(["import", one.to_str().unwrap(), &pinned])
        .fails_with("the image has the digest");
    let pinned = format!("c@{}", built.digest);
    store.ok(["import", one.to_str().unwrap(), &pinned]);
    assert_eq!(names(&store), [(pinned, built.digest)]);
}

// L-41
#[test]
fn l_41_a_name_that_means_two_images_is_refused() {
    let store = Store::new();
    let lay = store.beside("lay");
    let one = image("one")
        .tag("a:1")
        .platform("linux", "s390x", None)
        .write_layout(&lay);
    let two = image("two")
        .tag("a:1")
        .platform("linux", "riscv64", None)
        .write_layout(&lay);
    let outcome = import(&store, &lay);
    outcome.fails_with(&format!(
        "{} (linux/s390x) or {} (linux/riscv64)",
        one.digest, two.digest
    ));
    assert_unchanged(&store, &(Vec::new(), Vec::new()));
    // Both are right, each for its platform.
    store.ok([
        "import",
        "--platform",
        "linux/riscv64",
        lay.to_str().unwrap(),
    ]);
    assert_eq!(names(&store), [("a:1".to_owned(), two.digest.clone())]);
    assert_holds(&store, &[&two]);
}

// L-35
#[test]
fn l_35_another_platform_than_that_of_a_single_image_is_refused_where_it_is_asked_for() {
    let store = Store::new();
    store.import(
        &image("a")
            .platform("linux", "s390x", None)
            .tag("a:1")
            .build(),
    );
    let tree = store.beside("tree");
    let tree = tree.to_str().unwrap();
    for verb in [
        &["inspect", "a:1"][..],
        &["unpack", "a:1", tree],
        &["unpack", "--layers", "a:1"],
        &["bundle", "a:1", tree],
        &["run", "a:1"],
    ] {
        store
            .call(verb)
            .args(["--platform", "linux/arm64"])
            .run()
            .fails_with("no image for linux/arm64; there is linux/s390x");
    }
    store.ok(["unpack", "--platform", "linux/s390x", "a:1", tree]);
    // Nothing was asked for: there is no other.
    store.ok(["unpack", "--layers", "a:1"]);
}
