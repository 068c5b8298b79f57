//! Images from layouts and archives: every form, and every way in which one can be wrong.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::support::image::LAYOUT;
use crate::support::*;

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Two layers, the second of which has another content for each `mark`.
pub(super) fn image(mark: &str) -> ImageBuilder {
    let mark = mark.to_owned();
    ImageBuilder::new()
        .layer(|l| {
            l.dir("etc", 0o755).file("etc/base", "base\n", 0o644);
        })
        .layer(move |l| {
            l.file("etc/mark", mark, 0o644);
        })
}

/// Bytes that do not compress, different for each seed.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next)
        .flatten()
        .take(length)
        .collect()
}

/// `NAME DIGEST` of every entry of index.json, in order.
pub(super) fn names(store: &Store) -> Vec<(String, String)> {
    if !store.path("index.json").exists() {
        return Vec::new();
    }
    let index = store.json("index.json");
    let entries = index["manifests"].as_array().expect("manifests").iter();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .map(|entry| {
            (
                text(&entry["annotations"][REF_NAME]),
                text(&entry["digest"]),
            )
        })
        .collect()
}

/// What the store must still be after an import that was refused.
#[track_caller]
pub(super) fn assert_unchanged(store: &Store, before: &(Vec<(String, String)>, Vec<String>)) {
    assert_eq!(&(names(store), store.blobs()), before);
    store.assert_nothing_left();
}

pub(super) fn state(store: &Store) -> (Vec<(String, String)>, Vec<String>) {
    (names(store), store.blobs())
}

pub(super) fn import(store: &Store, source: &Path) -> Outcome {
    store.run([OsStr::new("import"), source.as_os_str()])
}

/// The blobs of the image in the store, byte for byte, and no others.
#[track_caller]
pub(super) fn assert_holds(store: &Store, images: &[&Built]) {
    let mut wanted: Vec<&String> = images.iter().flat_map(|image| image.blobs.keys()).collect();
    wanted.sort();
    wanted.dedup();
    assert_eq!(store.blobs().iter().collect::<Vec<_>>(), wanted);
    for (digest, bytes) in images.iter().flat_map(|image| &image.blobs) {
        assert_eq!(&fs::read(store.blob(digest)).unwrap(), bytes, "{digest}");
    }
}

#[test]
fn a_layout_an_archive_plain_or_compressed_and_stdin_give_the_same_image() {
    let built = image("a").tag("a:1").build();
    let tar = built.oci_archive();
    let write = |store: &Store, name: &str, bytes: &[u8]| -> PathBuf {
        let path = store.beside(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    type Way<'a> = Box<dyn Fn(&Store) -> PathBuf + 'a>;
    let ways: Vec<(&str, Way)> = vec![
        (
            "layout",
            Box::new(|store| {
                built.write_layout(store.beside("lay"));
                store.beside("lay")
            }),
        ),
        // The name says nothing: the content decides.
        ("plain", Box::new(|store| write(store, "x.tar.gz", &tar))),
        ("gzip", Box::new(|store| write(store, "x.tar", &gzip(&tar)))),
        ("zstd", Box::new(|store| write(store, "x", &zstd(&tar)))),
    ];
    for (what, way) in &ways {
        let store = Store::new();
        let source = way(&store);
        let outcome = import(&store, &source).ok();
        assert_eq!(outcome.stdout, format!("a:1 {}\n", built.digest), "{what}");
        assert_eq!(outcome.stderr, "", "{what}");
        assert_holds(&store, &[&built]);
        assert_eq!(names(&store), [("a:1".to_owned(), built.digest.clone())]);
        store.assert_nothing_left();
    }
    for bytes in [tar.clone(), gzip(&tar), zstd(&tar)] {
        let store = Store::new();
        let file = write(&store, "stream", &bytes);
        let stdin = fs::File::open(file).unwrap();
        store.call(["import", "-"]).stdin(stdin).ok();
        assert_holds(&store, &[&built]);
    }
}

#[test]
fn the_result_is_one_document_for_programs() {
    let store = Store::new();
    let built = image("a").tag("a:1").write_layout(store.beside("lay"));
    let other = image("b").tag("a:1").write_layout(store.beside("other"));
    let lay = store.beside("lay");
    let lay = lay.to_str().unwrap();
    let outcome = store.ok(["import", "--format", "json", lay]);
    assert_eq!(
        outcome.json(),
        json!([{"name": "a:1", "digest": built.digest, "mediaType": image::OCI_MANIFEST, "replaced": null}])
    );
    let beside = store.beside("other");
    let again = [
        "import",
        "--replace",
        "--format=json",
        beside.to_str().unwrap(),
    ];
    assert_eq!(
        store.ok(again).json(),
        json!([{"name": "a:1", "digest": other.digest, "mediaType": image::OCI_MANIFEST, "replaced": built.digest}])
    );
}

// L-42
#[test]
fn l_42_what_docker_save_writes_is_an_image_whose_bytes_are_unchanged() {
    let store = Store::new();
    // The same layer twice: a symlink in the archive.
    let image = image("a").tag("reg.example:5000/team/a:1").plain();
    let image = image
        .layer(|l| {
            l.file("etc/mark", "a", 0o644);
        })
        .plain();
    let old = image.write_docker_archive(store.beside("old.tar"));
    let first = import(&store, &store.beside("old.tar")).ok();
    let digest = first
        .stdout
        .trim_end()
        .rsplit(' ')
        .next()
        .unwrap()
        .to_owned();
    assert_eq!(
        first.stdout,
        format!("reg.example:5000/team/a:1 {digest}\n")
    );
    let manifest: Value = serde_json::from_slice(&fs::read(store.blob(&digest)).unwrap()).unwrap();
    assert_eq!(manifest["config"]["digest"], old.config_digest);
    let layers: Vec<&str> = manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["digest"].as_str().unwrap())
        .collect();
    // docker save holds the layers uncompressed.
    assert_eq!(layers, old.diff_ids);
    assert_eq!(
        manifest["layers"][0]["mediaType"],
        "application/vnd.oci.image.layer.v1.tar"
    );
    for (tar, layer) in old.tars.iter().zip(&layers) {
        assert_eq!(&fs::read(store.blob(layer)).unwrap(), tar);
    }
    store.assert_nothing_left();
    // The same archive is the same image.
    let blobs = store.blobs();
    let second = import(&store, &store.beside("old.tar")).ok();
    assert_eq!((second.stdout, store.blobs()), (first.stdout, blobs));

    let source = store.beside("old.tar");
    let source = source.to_str().unwrap();
    store
        .run(["import", "--platform=linux/s390x", source])
        .fails_with("no image for linux/s390x; there is linux/");

    // Both at once: the layout counts.
    let store = Store::new();
    let new = image.write_docker_archive_new(store.beside("new.tar"));
    import(&store, &store.beside("new.tar")).ok();
    assert_holds(&store, &[&new]);
}

// `docker save NAME ID` writes one entry without a name.
#[test]
fn an_image_without_a_name_beside_others_is_called_by_the_beginning_of_its_id() {
    let (named, nameless) = (image("named").build(), image("nameless").build());
    let entry = |built: &Built, tags: Value| {
        let config = format!("{}.json", hex(&built.config_digest));
        json!({"Config": config, "RepoTags": tags, "Layers": [format!("{}.tar", hex(&built.diff_ids[0])), format!("{}.tar", hex(&built.diff_ids[1]))]})
    };
    let mut files = BTreeMap::new();
    for built in [&named, &nameless] {
        let config = format!("{}.json", hex(&built.config_digest));
        files.insert(config, built.blobs[&built.config_digest].clone());
        for (diff_id, tar) in built.diff_ids.iter().zip(&built.tars) {
            files.insert(format!("{}.tar", hex(diff_id)), tar.clone());
        }
    }
    let mut archive = LayerBuilder::new();
    for (name, content) in files {
        archive.file(name, content, 0o644);
    }
    let manifest = json!([entry(&named, json!(["a:1"])), entry(&nameless, json!(null))]);
    archive.file("manifest.json", manifest.to_string(), 0o644);
    let store = Store::new();
    let file = store.beside("saved.tar");
    fs::write(&file, archive.finish()).unwrap();
    import(&store, &file).ok();
    let called = format!("saved:{}", &hex(&nameless.config_digest)[..12]);
    for (name, built) in [("a:1", &named), (called.as_str(), &nameless)] {
        let shown = store.ok(["inspect", "--format=json", name]).json();
        assert_eq!(shown["configDigest"], json!(built.config_digest), "{name}");
    }
}

#[test]
fn l_42_a_docker_archive_with_another_content_than_it_says_is_refused() {
    let built = image("a").tag("a:1").build();
    let config = &built.blobs[&built.config_digest];
    let name = format!("{}.json", hex(&built.config_digest));
    let entry = |config: &str, layers: &[&str]| {
        json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers}]).to_string()
    };
    type Fill<'a> = Box<dyn Fn(&mut LayerBuilder) + 'a>;
    let cases: Vec<(&str, Fill)> = vec![
        (
            "1.tar: missing",
            Box::new(|l| {
                l.file(&name, config, 0o644).file(
                    "manifest.json",
                    entry(&name, &["0.tar", "1.tar"]),
                    0o644,
                );
                l.file("0.tar", &built.tars[0], 0o644);
            }),
        ),
        (
            "lists 1 layers",
            Box::new(|l| {
                l.file(&name, config, 0o644)
                    .file("manifest.json", entry(&name, &["0.tar"]), 0o644);
                l.file("0.tar", &built.tars[0], 0o644);
            }),
        ),
        (
            "and its configuration says",
            Box::new(|l| {
                l.file(&name, config, 0o644).file(
                    "manifest.json",
                    entry(&name, &["1.tar", "0.tar"]),
                    0o644,
                );
                l.file("0.tar", &built.tars[0], 0o644)
                    .file("1.tar", &built.tars[1], 0o644);
            }),
        ),
        (
            "the content has the digest",
            Box::new(|l| {
                let text = String::from_utf8(config.clone()).unwrap();
                l.file(&name, format!("{text} "), 0o644);
                l.file("manifest.json", entry(&name, &[]), 0o644);
            }),
        ),
        (
            "a link out of the archive",
            Box::new(|l| {
                l.symlink("0.tar", "../../../etc/passwd");
            }),
        ),
        (
            "a symbolic link out of the archive",
            Box::new(|l| {
                l.symlink("0.tar", "/etc/passwd");
            }),
        ),
        (
            "a path with `..`",
            Box::new(|l| {
                l.file("../x.tar", "x", 0o644);
            }),
        ),
        (
            "too many links",
            Box::new(|l| {
                l.symlink("a", "b").symlink("b", "a");
                l.file("manifest.json", entry("a", &[]), 0o644);
            }),
        ),
        (
            "occurs twice",
            Box::new(|l| {
                l.file(
                    "manifest.json",
                    r#"[{"Config":"a","Config":"b","Layers":[]}]"#,
                    0o644,
                );
            }),
        ),
        (
            "lists no image",
            Box::new(|l| {
                l.file("manifest.json", "[]", 0o644);
            }),
        ),
        (
            "before docker 1.10",
            Box::new(|l| {
                l.file("repositories", "{}", 0o644);
            }),
        ),
        (
            "image name \"a b\"",
            Box::new(|l| {
                let manifest =
                    json!([{"Config": name, "RepoTags": ["a b"], "Layers": ["0.tar", "1.tar"]}]);
                l.file(&name, config, 0o644)
                    .file("manifest.json", manifest.to_string(), 0o644);
                l.file("0.tar", &built.tars[0], 0o644)
                    .file("1.tar", &built.tars[1], 0o644);
            }),
        ),
    ];
    for (words, fill) in cases {
        let store = Store::new();
        let mut tar = LayerBuilder::new();
        fill(&mut tar);
        fs::write(store.beside("x.tar"), tar.finish()).unwrap();
        import(&store, &store.beside("x.tar")).fails_with(words);
        assert_unchanged(&store, &(Vec::new(), Vec::new()));
    }
}

#[test]
fn l_42_a_second_name_of_a_file_is_a_link_in_an_archive() {
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    let mut tar = LayerBuilder::new();
    let path = |digest: &String| format!("blobs/sha256/{}", hex(digest));
    let first = &built.layers[0];
    tar.file("./cache/base.tar.gz", &built.blobs[first], 0o644);
    tar.hardlink(path(first), "./cache/base.tar.gz");
    for (digest, bytes) in built.blobs.iter().filter(|(digest, _)| *digest != first) {
        tar.file(path(digest), bytes, 0o644);
    }
    let index = json!({"schemaVersion": 2, "manifests": [built.named_descriptor()]});
    tar.file("index.json", index.to_string(), 0o644);
    tar.file("oci-layout", LAYOUT, 0o644);
    fs::write(store.beside("a.tar"), tar.finish()).unwrap();
    import(&store, &store.beside("a.tar")).ok();
    assert_holds(&store, &[&built]);
}

#[test]
fn what_is_no_image_is_refused_and_leaves_nothing() {
    let store = Store::new();
    let archive = image("a").tag("a:1").build().oci_archive();
    let mut nothing = LayerBuilder::new();
    nothing.file("readme", "no image", 0o644);
    for (what, bytes, words) in [
        ("empty", Vec::new(), "it is empty"),
        ("text", b"hello".to_vec(), "neither a layout nor an archive"),
        ("noise", noise(1, 4096), "neither a layout nor an archive"),
        ("zeros", vec![0; 4096], "not an archive of images"),
        ("other", nothing.finish(), "not an archive of images"),
        ("half", archive[..archive.len() / 2].to_vec(), ""),
        (
            "half-gzip",
            gzip(&archive)[..gzip(&archive).len() / 2].to_vec(),
            "",
        ),
        (
            "half-zstd",
            zstd(&archive)[..zstd(&archive).len() / 2].to_vec(),
            "",
        ),
    ] {
        let file = store.beside(what);
        fs::write(&file, bytes).unwrap();
        import(&store, &file).fails_with(words);
        assert_unchanged(&store, &(Vec::new(), Vec::new()));
    }
    // The checksum at the end of the stream counts.
    let mut spoiled = gzip(&archive);
    let crc = spoiled.len() - 8;
    spoiled[crc] ^= 1;
    fs::write(store.beside("crc"), spoiled).unwrap();
    import(&store, &store.beside("crc")).fails_with("");
    assert_unchanged(&store, &(Vec::new(), Vec::new()));

    fs::create_dir(store.beside("dir")).unwrap();
    import(&store, &store.beside("dir")).fails_with("not an image layout");
    import(&store, &store.beside("absent")).fails_with("no such file");
    store.run(["import", "-"]).fails_with("it is empty");
}

// L-41
#[test]
fn l_41_the_layout_has_to_be_of_the_known_version() {
    let store = Store::new();
    image("a").tag("a:1").write_layout(store.beside("lay"));
    for (marker, words) in [
        (r#"{"imageLayoutVersion":"1.1.0"}"#, "\"1.1.0\""),
        ("{}", "imageLayoutVersion"),
    ] {
        fs::write(store.beside("lay/oci-layout"), marker).unwrap();
        import(&store, &store.beside("lay")).fails_with(words);
    }
    fs::write(store.beside("lay/oci-layout"), LAYOUT).unwrap();
    fs::write(store.beside("lay/extra"), "tolerated").unwrap();
    import(&store, &store.beside("lay")).ok();
    fs::remove_file(store.beside("lay/index.json")).unwrap();
    import(&store, &store.beside("lay")).fails_with("no index.json");
}

// L-41, B-20
#[test]
fn l_41_a_missing_blob_is_named_and_nothing_is_imported() {
    let whole = image("a").tag("a:1").build();
    for missing in [&whole.digest, &whole.config_digest, &whole.layers[1]] {
        let mut built = whole.clone();
        built.blobs.remove(missing);
        let store = Store::new();
        built.write_layout(store.beside("lay"));
        built.write_oci_archive(store.beside("a.tar"));
        for source in ["lay", "a.tar"] {
            let outcome = import(&store, &store.beside(source));
            outcome.fails_with(&format!("blob {missing}: missing"));
            assert_unchanged(&store, &(Vec::new(), Vec::new()));
        }
    }
    // What the store has need not come again.
    let store = Store::new();
    store.import(&whole);
    let mut built = image("a").tag("b:1").build();
    built.blobs.remove(&whole.layers[0]);
    built.write_oci_archive(store.beside("b.tar"));
    import(&store, &store.beside("b.tar")).ok();
}

// L-36, S-9, B-20
#[test]
fn s_9_a_blob_that_is_not_what_its_digest_or_size_says_is_refused() {
    let whole = image("a").tag("a:1").build();
    for digest in whole.blobs.keys() {
        for change in ["flip", "longer", "shorter"] {
            let mut built = whole.clone();
            let bytes = built.blobs.get_mut(digest).unwrap();
            match change {
                "flip" => bytes[10] ^= 1,
                "longer" => bytes.push(b' '),
                _ => drop(bytes.pop()),
            }
            let store = Store::new();
            built.write_layout(store.beside("lay"));
            built.write_oci_archive(store.beside("a.tar"));
            for source in ["lay", "a.tar"] {
                let outcome = import(&store, &store.beside(source));
                outcome.fails_with(hex(digest));
                assert_unchanged(&store, &(Vec::new(), Vec::new()));
            }
        }
    }
}

#[test]
fn l_36_a_descriptor_with_a_false_size_is_refused() {
    for (size, words) in [
        (json!(-1), "layers[0]"),
        (json!(1), "its descriptor says 1"),
        (json!(1_u64 << 40), "its descriptor says 1099511627776"),
    ] {
        let store = Store::new();
        let built = image("a")
            .tag("a:1")
            .manifest(move |m| m["layers"][0]["size"] = size.clone());
        built.write_layout(store.beside("lay"));
        built.write_oci_archive(store.beside("a.tar"));
        for source in ["lay", "a.tar"] {
            import(&store, &store.beside(source)).fails_with(words);
            assert_unchanged(&store, &(Vec::new(), Vec::new()));
        }
    }
}

// L-37, B-20
#[test]
fn l_37_a_layer_that_is_not_its_diff_id_is_refused() {
    let store = Store::new();
    let mut layer = LayerBuilder::new();
    layer.file("x", "x", 0o644);
    let gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let lie = sha256(b"lie");
    let built = image("a")
        .given_layer(gzip_type, gzip(&layer.finish()), &lie)
        .tag("a:1")
        .write_layout(store.beside("lay"));
    let outcome = import(&store, &store.beside("lay"));
    outcome.fails_with(&built.digest);
    outcome.fails_with(&built.layers[2]);
    outcome.fails_with(&lie);
    assert_unchanged(&store, &(Vec::new(), Vec::new()));

    let short = image("a").tag("a:1").manifest(|m| {
        m["layers"].as_array_mut().unwrap().pop();
    });
    short.write_layout(store.beside("short"));
    import(&store, &store.beside("short")).fails_with("1 layers");
    assert_unchanged(&store, &(Vec::new(), Vec::new()));
}

// L-38
#[test]
fn l_38_a_root_file_system_not_made_of_layers_is_refused() {
    let store = Store::new();
    image("a")
        .config(|c| c["rootfs"]["type"] = json!("layers+base"))
        .tag("a:1")
        .write_layout(store.beside("lay"));
    import(&store, &store.beside("lay")).fails_with("rootfs.type");
    assert_unchanged(&store, &(Vec::new(), Vec::new()));
}

#[test]
fn what_no_imported_image_needs_is_not_kept() {
    let store = Store::new();
    let mut built = image("a").tag("a:1").build();
    let whole = built.clone();
    built.blobs.insert(sha256(b"extra"), b"extra".to_vec());
    built.write_oci_archive(store.beside("a.tar"));
    import(&store, &store.beside("a.tar")).ok();
    assert_holds(&store, &[&whole]);
    // A blob that was there before is not this import's to remove.
    let other = image("b").tag("b:1").build();
    store.import(&other);
    let mut both = whole.clone();
    both.blobs.extend(other.blobs.clone());
    both.write_oci_archive(store.beside("both.tar"));
    import(&store, &store.beside("both.tar")).ok();
    assert_holds(&store, &[&whole, &other]);
}

// S-2: a layout may be somebody else's.
#[test]
fn a_layout_leads_nowhere_outside() {
    let built = image("a").tag("a:1").build();
    let store = Store::new();
    let outside = store.beside("outside");
    fs::write(&outside, &built.blobs[&built.layers[0]]).unwrap();
    let blob = Path::new("blobs/sha256").join(hex(&built.layers[0]));
    for target in [outside.clone(), PathBuf::from("../../../outside")] {
        let lay = store.beside("lay");
        built.write_layout(&lay);
        fs::remove_file(lay.join(&blob)).unwrap();
        symlink(target, lay.join(&blob)).unwrap();
        import(&store, &lay).fails_with(&format!("blob {}: missing", built.layers[0]));
        assert_unchanged(&store, &(Vec::new(), Vec::new()));
        fs::remove_dir_all(&lay).unwrap();
    }
    let lay = store.beside("lay");
    built.write_layout(&lay);
    fs::remove_file(lay.join(&blob)).unwrap();
    mkfifo(&lay.join(&blob), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    import(&store, &lay).fails_with("not a regular file");
    // A link inside the layout is its own affair.
    fs::remove_file(lay.join(&blob)).unwrap();
    fs::write(lay.join("there"), &built.blobs[&built.layers[0]]).unwrap();
    symlink("../../there", lay.join(&blob)).unwrap();
    import(&store, &lay).ok();
}

fn two_platforms() -> (Built, Built, Built) {
    let arm = image("arm").platform("linux", "arm64", Some("v8")).build();
    let amd = image("amd").platform("linux", "amd64", None).build();
    let mut note = ImageBuilder::new()
        .platform("unknown", "unknown", None)
        .build();
    note.descriptor["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let index = Built::index("a:1", &[arm.clone(), amd.clone(), note]);
    (index, arm, amd)
}

// L-34, L-35
#[test]
fn l_34_an_index_is_kept_as_it_is_unless_a_platform_is_asked_for() {
    let (index, arm, _) = two_platforms();
    let store = Store::new();
    index.write_layout(store.beside("lay"));
    index.write_oci_archive(store.beside("a.tar"));
    for source in ["lay", "a.tar"] {
        let source = store.beside(source);
        let whole = Store::new();
        let outcome = import(&whole, &source).ok();
        assert_eq!(outcome.stdout, format!("a:1 {}\n", index.digest));
        assert_holds(&whole, &[&index]);

        let one = Store::new();
        let source = source.to_str().unwrap();
        let outcome = one.ok(["import", "--platform", "linux/arm64", source]);
        assert_eq!(outcome.stdout, format!("a:1 {}\n", arm.digest));
        assert_holds(&one, &[&arm]);

        let none = Store::new();
        let outcome = none.run(["import", "--platform", "linux/s390x", source]);
        outcome.fails_with("no image for linux/s390x; there is linux/arm64/v8, linux/amd64");
        assert_unchanged(&none, &(Vec::new(), Vec::new()));
    }
    store
        .run(["import", "--platform", "linux", "x"])
        .misused("OS/ARCHITECTURE");
}

// L-41
#[test]
fn l_41_of_an_index_those_images_are_imported_that_are_there() {
    let (whole, arm, amd) = two_platforms();
    let only_arm =
        |digest: &String| !arm.blobs.contains_key(digest) || amd.blobs.contains_key(digest);
    for lost in ["manifest too", "layer only"] {
        let mut index = whole.clone();
        match lost {
            "layer only" => drop(index.blobs.remove(&arm.layers[1])),
            _ => index.blobs.retain(|digest, _| only_arm(digest)),
        }
        let mut kept = whole.clone();
        kept.blobs.retain(|digest, _| only_arm(digest));
        for form in ["layout", "archive"] {
            let store = Store::new();
            let source = store.beside("source");
            if form == "layout" {
                index.write_layout(&source);
            } else {
                index.write_oci_archive(&source);
            }
            let outcome = import(&store, &source).ok();
            assert_eq!(outcome.stdout, format!("a:1 {}\n", whole.digest));
            if lost == "layer only" {
                outcome.warns(&format!("{}: blob {}: missing", arm.digest, arm.layers[1]));
            }
            assert_holds(&store, &[&kept]);
            let source = source.to_str().unwrap();
            let one = Store::new();
            one.run(["import", "--platform", "linux/arm64", source])
                .fails_with("missing");
            assert_unchanged(&one, &(Vec::new(), Vec::new()));
        }
    }
    let mut nothing = whole.clone();
    nothing.blobs.retain(|digest, _| *digest == whole.digest);
    let store = Store::new();
    nothing.write_layout(store.beside("lay"));
    import(&store, &store.beside("lay")).fails_with("no complete image");
    assert_unchanged(&store, &(Vec::new(), Vec::new()));
}

// G-13
#[test]
fn g_13_an_image_without_layers_and_an_index_without_images_are_taken() {
    let store = Store::new();
    let empty = ImageBuilder::new().tag("empty:1").build();
    store.import(&empty);
    let index = Built::index("index:1", &[]);
    store.import(&index);
    assert_holds(&store, &[&empty, &index]);
    // L-27
    let plain = "application/vnd.oci.image.layer.v1.tar";
    let zero = ImageBuilder::new()
        .given_layer(plain, Vec::new(), &sha256(b""))
        .tag("zero:1");
    store.import(&zero.build());
}

// L-33, L-43
#[test]
fn l_33_what_cannot_be_checked_is_kept_and_said() {
    let store = Store::new();
    let odd = image("a")
        .given_layer("application/x-odd", b"odd".to_vec(), &sha256(b"?"))
        .tag("odd:1");
    let odd = odd.write_layout(store.beside("odd"));
    let outcome = import(&store, &store.beside("odd")).ok();
    outcome.warns("unknown media type");
    outcome.warns(&odd.layers[2]);

    let artifact = ImageBuilder::new()
        .given_layer("text/plain", b"hello".to_vec(), &sha256(b"?"))
        .manifest(|m| m["config"]["mediaType"] = json!("application/x-chart"))
        .tag("chart:1")
        .write_layout(store.beside("chart"));
    import(&store, &store.beside("chart"))
        .ok()
        .warns("artifact");

    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let mut windows = image("w")
        .given_layer(foreign, b"theirs".to_vec(), &sha256(b"?"))
        .tag("w:1")
        .build();
    let theirs = windows.layers[2].clone();
    windows.blobs.remove(&theirs);
    windows.write_oci_archive(store.beside("w.tar"));
    import(&store, &store.beside("w.tar"))
        .ok()
        .warns(&format!("layer {theirs}: not distributable"));
    assert_holds(&store, &[&odd, &artifact, &windows]);
    let quiet = store.ok(["--quiet", "import", store.beside("w.tar").to_str().unwrap()]);
    assert_eq!(quiet.stderr, "");
}

#[test]
fn what_refers_to_an_imported_image_comes_along() {
    let store = Store::new();
    let lay = store.beside("lay");
    let subject = image("a").tag("a:1").write_layout(&lay);
    let about = |of: &Value, mark: &str| {
        let of = of.clone();
        ImageBuilder::new()
            .given_layer(
                "application/x-signature",
                mark.as_bytes().to_vec(),
                &sha256(b"?"),
            )
            .manifest(move |m| {
                m["subject"] = of.clone();
                m["config"]["mediaType"] = json!("application/x-signature");
            })
            .build()
    };
    let mut named = subject.descriptor.clone();
    named.as_object_mut().unwrap().remove("platform");
    let signature = about(&named, "signature");
    let of_signature = about(&signature.descriptor, "of the signature");
    let stranger = about(
        &json!({"mediaType": image::OCI_MANIFEST, "digest": sha256(b"?"), "size": 1}),
        "stranger",
    );
    of_signature.write_layout(&lay);
    stranger.write_layout(&lay);
    signature.write_layout(&lay);
    import(&store, &lay).ok();
    assert_holds(&store, &[&subject, &signature, &of_signature]);
    let expected = [("a:1", &subject), ("", &signature), ("", &of_signature)];
    let expected = expected.map(|(name, built)| (name.to_owned(), built.digest.clone()));
    assert_eq!(names(&store), expected);
    import(&store, &lay).ok();
    assert_eq!(names(&store), expected);
}

#[test]
fn a_full_disk_is_said_and_the_store_is_as_it_was() {
    requires!(root);
    let store = Store::new();
    fs::create_dir(&store.root).unwrap();
    mount(
        Some("none"),
        &store.root,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=6m"),
    )
    .expect("tmpfs");
    store.import(&image("small").tag("small:1").build());
    let before = state(&store);
    let mut big = ImageBuilder::new().tag("big:1").plain();
    for seed in 0..4 {
        big = big
            .layer(move |l| {
                l.file("noise", noise(seed, 2 << 20), 0o644);
            })
            .plain();
    }
    big.write_layout(store.beside("lay"));
    big.write_oci_archive(store.beside("oci.tar"));
    big.write_docker_archive(store.beside("docker.tar"));
    for source in ["lay", "oci.tar", "docker.tar"] {
        let outcome = import(&store, &store.beside(source));
        outcome.fails_with("no space left");
        assert!(outcome.stderr.contains("prune"), "{outcome}");
        assert_eq!(state(&store), before);
        assert_eq!(store.names("staging"), Vec::<String>::new());
        assert_eq!(store.names("trash"), Vec::<String>::new());
    }
    store.import(&image("other").tag("other:1").build());
}

#[test]
fn an_ordinary_user_imports_into_a_store_that_nobody_else_reads() {
    requires!(root);
    let store = Store::unprivileged();
    let built = image("a").tag("a:1").build();
    store.import(&built);
    for (path, mode) in [
        (store.root.clone(), 0o700),
        (store.blob(&built.digest), 0o600),
    ] {
        let meta = fs::metadata(path).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (NOBODY, mode));
    }
    // Nor does the way in through a spooled file make it wider.
    image("b")
        .tag("b:1")
        .plain()
        .write_docker_archive(store.beside("b.tar"));
    store.ok(["import", store.beside("b.tar").to_str().unwrap()]);
    for digest in store.blobs() {
        assert_eq!(
            fs::metadata(store.blob(&digest)).unwrap().mode() & 0o777,
            0o600
        );
    }
}

#[test]
fn after_a_kill_at_any_time_the_next_command_finds_a_consistent_store() {
    let store = Store::new();
    let mut image = ImageBuilder::new().tag("a:1");
    for seed in 0..3 {
        image = image.layer(move |l| {
            l.file("noise", noise(seed, 1 << 20), 0o644);
        });
    }
    let built = image.write_oci_archive(store.beside("oci.tar"));
    image.write_layout(store.beside("lay"));
    let other = ImageBuilder::new().tag("other:1").build();
    for round in 0..16 {
        let source = store.beside(if round % 2 == 0 { "oci.tar" } else { "lay" });
        let args = [OsStr::new("import"), source.as_os_str()];
        store
            .call(args)
            .killed_after(Duration::from_millis(5 * (round + 1)));
        // Every blob is what it is called, and a name leads to an image.
        for digest in store.blobs() {
            assert_eq!(sha256(&fs::read(store.blob(&digest)).unwrap()), digest);
        }
        if let Some((_, digest)) = names(&store).iter().find(|(name, _)| name == "a:1") {
            assert_eq!(*digest, built.digest);
            assert!(built.blobs.keys().all(|digest| store.blob(digest).exists()));
            fs::remove_dir_all(&store.root).unwrap();
        }
        store.import(&other);
        assert_eq!(store.names("staging"), Vec::<String>::new());
        assert_eq!(store.names("trash"), Vec::<String>::new());
    }
    import(&store, &store.beside("oci.tar")).ok();
    assert_holds(&store, &[&built, &other]);
}

#[test]
fn two_imports_of_one_layer_at_once_do_the_work_once() {
    let store = Store::new();
    let built = ImageBuilder::new()
        .layer(|l| {
            l.file("noise", noise(7, 4 << 20), 0o644);
        })
        .plain()
        .tag("a:1")
        .build();
    let layer = &built.layers[0];
    let mut layout = LayerBuilder::new();
    layout.file(
        format!("blobs/sha256/{}", hex(layer)),
        &built.blobs[layer],
        0o644,
    );
    let start = layout.clone();
    let whole = built.oci_archive();
    fs::write(store.beside("whole.tar"), &whole).unwrap();

    // The first stops in the middle of the layer.
    let first_bytes = {
        let mut rest = start;
        for (digest, bytes) in built.blobs.iter().filter(|(digest, _)| *digest != layer) {
            rest.file(format!("blobs/sha256/{}", hex(digest)), bytes, 0o644);
        }
        rest.file(
            "index.json",
            json!({"schemaVersion": 2, "manifests": [built.named_descriptor()]}).to_string(),
            0o644,
        );
        rest.file("oci-layout", LAYOUT, 0o644);
        rest.finish()
    };
    let (reader, mut writer) = std::io::pipe().unwrap();
    let first = store.call(["import", "-"]).stdin(reader).spawn();
    writer.write_all(&first_bytes[..2 << 20]).unwrap();
    let stage = format!("blob-sha256-{}", hex(layer));
    assert!(eventually(|| store.names("staging").contains(&stage)));
    let inode = |path: PathBuf| fs::metadata(path).unwrap().ino();
    let content = inode(store.path(format!("staging/{stage}/content")));

    let mut second = store
        .call([OsStr::new("import"), store.beside("whole.tar").as_os_str()])
        .spawn();
    std::thread::sleep(Duration::from_millis(400));
    assert!(second.is_running());
    let staged: Vec<String> = store
        .names("staging")
        .into_iter()
        .filter(|name| name.starts_with("blob-"))
        .collect();
    assert_eq!(staged, [stage]);

    writer.write_all(&first_bytes[2 << 20..]).unwrap();
    drop(writer);
    Outcome::from(first.wait()).ok();
    Outcome::from(second.wait()).ok();
    // The file that the first wrote is the one in the store.
    assert_eq!(inode(store.blob(layer)), content);
    assert_holds(&store, &[&built]);
}

#[test]
fn an_import_that_fails_leaves_what_another_has_come_to_use() {
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    // The same blobs, then one that is spoiled.
    let mut tar = LayerBuilder::new();
    for (digest, bytes) in &built.blobs {
        tar.file(format!("blobs/sha256/{}", hex(digest)), bytes, 0o644);
    }
    let start = tar.finish().len() - 1024;
    tar.file(
        format!("blobs/sha256/{}", hex(&sha256(b"good"))),
        "bad!",
        0o644,
    );
    let bytes = tar.finish();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let failing = store.call(["import", "-"]).stdin(reader).spawn();
    writer.write_all(&bytes[..start]).unwrap();
    let last = built.blobs.keys().last().unwrap();
    assert!(eventually(
        || store.blobs().len() >= built.blobs.len() - 1 || store.blob(last).exists()
    ));
    store.import(&built);
    writer.write_all(&bytes[start..]).unwrap();
    drop(writer);
    Outcome::from(failing.wait()).fails_with(&sha256(b"good"));
    assert_holds(&store, &[&built]);
    store.assert_nothing_left();
}

#[test]
fn memory_is_bounded_whatever_the_size() {
    requires!(command "prlimit");
    let store = Store::new();
    let built = ImageBuilder::new()
        .layer(|l| {
            l.file("zeros", vec![0; 32 << 20], 0o644);
        })
        .plain()
        .tag("big:1")
        .build();
    built.write_oci_archive(store.beside("oci.tar"));
    built.write_docker_archive(store.beside("docker.tar"));
    for source in ["oci.tar", "docker.tar"] {
        let source = store.beside(source);
        store
            .call([OsStr::new("import"), source.as_os_str(), OsStr::new("big")])
            .under(["prlimit", "--data=31457280"])
            .ok();
    }
}

#[test]
fn long_work_shows_bars_on_a_terminal_and_nothing_in_a_pipe() {
    requires!(command "script");
    let archive = scratch();
    let file = archive.path().join("oci.tar");
    // Several reads, so that there is something to draw.
    let content = noise(1, 8 << 20);
    let built = ImageBuilder::new()
        .layer(|l| {
            l.file("noise", content, 0o644);
        })
        .tag("big:1")
        .build();
    built.write_oci_archive(&file);
    let import = || {
        let store = Store::new();
        (store.call(["import"]).arg(&file), store)
    };
    let drawn = |said: &Outcome| said.stdout.contains(" MiB ");

    let (call, _store) = import();
    let said = call.env("TERM", "xterm").on_a_terminal().ok();
    assert!(drawn(&said), "{said}");
    // Of a bar nothing stays: the result stands on a cleared line.
    let last = said.stdout.trim_end().rsplit('\r').next().unwrap();
    assert!(last.trim().contains(&built.digest), "{last:?}");

    let (call, _store) = import();
    let said = call.ok();
    assert_eq!(said.stderr, "", "{said}");
    assert_eq!(said.stdout, format!("big:1 {}\n", built.digest));

    let (call, _store) = import();
    let said = call
        .arg("--quiet")
        .env("TERM", "xterm")
        .on_a_terminal()
        .ok();
    assert!(!drawn(&said), "{said}");
    assert_eq!(said.stdout, format!("big:1 {}\r\n", built.digest));
}

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().expect(program);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_skopeo_writes_is_imported() {
    requires!(command "skopeo");
    let store = Store::new();
    let built = image("a").tag("a:1").write_layout(store.beside("lay"));
    let from = format!("oci:{}:a:1", store.beside("lay").display());
    let arch = store.beside("oci.tar");
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            &from,
            &format!("oci-archive:{}:b/c:2", arch.display()),
        ],
    );
    assert_eq!(
        import(&store, &arch).ok().stdout,
        format!("b/c:2 {}\n", built.digest)
    );
    let arch = store.beside("docker.tar");
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            &from,
            &format!("docker-archive:{}:b/d:3", arch.display()),
        ],
    );
    let outcome = import(&store, &arch).ok();
    assert!(
        outcome.stdout.starts_with("docker.io/b/d:3 sha256:"),
        "{outcome}"
    );
    let lay = store.beside("written");
    run(
        "skopeo",
        &["copy", "-q", &from, &format!("oci:{}:v9", lay.display())],
    );
    assert_eq!(
        import(&store, &lay).ok().stdout,
        format!("written:v9 {}\n", built.digest)
    );
}

#[test]
fn skopeo_and_umoci_read_our_store() {
    requires!(command "skopeo", command "umoci");
    let store = Store::new();
    let built = image("a").tag("a:1").build();
    store.import(&built);
    let root = store.root.display();
    let raw = run("skopeo", &["inspect", "--raw", &format!("oci:{root}:a:1")]);
    assert_eq!(raw.as_bytes(), built.blobs[&built.digest]);
    let docker = store.beside("out.tar");
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            &format!("oci:{root}:a:1"),
            &format!("docker-archive:{}:x:1", docker.display()),
        ],
    );
    import(&store, &docker).ok();
    let list = run("umoci", &["list", "--layout", store.root.to_str().unwrap()]);
    assert!(list.lines().any(|line| line == "a:1"), "{list}");
}

#[test]
fn what_umoci_writes_is_imported() {
    requires!(command "umoci");
    let store = Store::new();
    let lay = store.beside("lay");
    let text = lay.to_str().unwrap();
    run("umoci", &["init", "--layout", text]);
    let image = format!("{text}:v1");
    run("umoci", &["new", "--image", &image]);
    fs::write(store.beside("file"), "content").unwrap();
    run(
        "umoci",
        &[
            "insert",
            "--image",
            &image,
            store.beside("file").to_str().unwrap(),
            "/file",
        ],
    );
    let outcome = import(&store, &lay).ok();
    assert!(outcome.stdout.starts_with("lay:v1 sha256:"), "{outcome}");
}

#[test]
fn an_archive_compressed_in_a_way_that_is_not_read_says_how_and_what_undoes_it() {
    let store = Store::new();
    for (name, start) in [
        ("xz", &b"\xfd7zXZ\0"[..]),
        ("bzip2", b"BZh91AY&SY"),
        ("lz4", b"\x04\x22\x4d\x18"),
    ] {
        let file = store.beside(name);
        fs::write(&file, [start, &[7; 4096]].concat()).unwrap();
        let outcome = import(&store, &file);
        outcome.fails_with(&format!("it is compressed with {name}"));
        assert!(
            outcome
                .stderr
                .contains(&format!("hint: decompress it first: `{name} -dc FILE")),
            "{outcome}"
        );
    }
    assert_unchanged(&store, &(Vec::new(), Vec::new()));
}

#[test]
fn what_skopeo_writes_as_dir_is_known_by_its_version_and_manifest() {
    let store = Store::new();
    let dir = store.beside("dir");
    fs::create_dir(&dir).unwrap();
    import(&store, &dir).fails_with("a directory without oci-layout");
    fs::write(dir.join("version"), "Directory Transport Version: 1.1\n").unwrap();
    fs::write(dir.join("manifest.json"), "{}").unwrap();
    let outcome = import(&store, &dir);
    outcome.fails_with("a directory without oci-layout");
    assert!(outcome.stderr.contains("skopeo copy dir:"), "{outcome}");
}
