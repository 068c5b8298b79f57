//! Manifests, indexes, configurations and references: what is read, what is refused.

use std::ffi::OsStr;
use std::fs;

use serde_json::{Value, json};

use crate::support::image::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use crate::support::*;

fn image() -> ImageBuilder {
    ImageBuilder::new().tag("a:1").layer(|l| {
        l.file("x", "x", 0o644);
    })
}

/// The image with other bytes for its manifest, and the descriptor made to fit them.
fn with_manifest(mut built: Built, media_type: &str, bytes: &str) -> Built {
    built.blobs.remove(&built.digest);
    built.digest = sha256(bytes.as_bytes());
    built.descriptor =
        json!({"mediaType": media_type, "digest": built.digest, "size": bytes.len()});
    built
        .blobs
        .insert(built.digest.clone(), bytes.as_bytes().to_vec());
    built
}

fn text(built: &Built, digest: &str) -> String {
    String::from_utf8(built.blobs[digest].clone()).unwrap()
}

#[track_caller]
fn import(store: &Store, built: &Built) -> Outcome {
    let file = store.beside("a.tar");
    built.write_oci_archive(&file);
    store.run([OsStr::new("import"), file.as_os_str()])
}

#[track_caller]
fn refused(built: &Built, words: &str) {
    let store = Store::new();
    let outcome = import(&store, built);
    outcome.fails_with(words);
    assert_eq!(store.blobs(), Vec::<String>::new());
    assert_eq!(store.json("index.json")["manifests"], json!([]));
    store.assert_nothing_left();
}

// CVE-2021-41190
#[test]
fn s_8_a_document_that_could_be_two_things_is_refused() {
    let whole = image().build();
    let manifest = text(&whole, &whole.digest);
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value: Value = serde_json::from_str(&manifest).unwrap();
        edit(&mut value);
        value.to_string()
    };
    let child = &whole.descriptor;
    for (media_type, bytes, words) in [
        (
            OCI_MANIFEST,
            edited(&|m| m["manifests"] = json!([child])),
            "manifests of an index",
        ),
        (
            OCI_MANIFEST,
            edited(&|m| m["Manifests"] = json!([child])),
            "taken for",
        ),
        (
            OCI_MANIFEST,
            edited(&|m| m["mediaType"] = json!(OCI_INDEX)),
            "its mediaType is",
        ),
        (
            OCI_MANIFEST,
            edited(&|m| m["mediaType"] = json!(DOCKER_MANIFEST)),
            "its mediaType is",
        ),
        (
            OCI_MANIFEST,
            edited(&|m| m["schemaVersion"] = json!(1)),
            "schemaVersion",
        ),
        (
            OCI_MANIFEST,
            edited(&|m| m["fsLayers"] = json!([])),
            "fsLayers",
        ),
        (
            OCI_INDEX,
            edited(&|m| m["mediaType"] = json!(OCI_INDEX)),
            "config or layers of a manifest",
        ),
        (
            OCI_MANIFEST,
            manifest.replacen('{', r#"{"layers":[],"#, 1),
            "\"layers\" occurs twice",
        ),
        (
            OCI_MANIFEST,
            manifest.replacen('{', r#"{"x":{"y":[{"z":1,"z":2}]},"#, 1),
            "\"z\" occurs twice",
        ),
        (OCI_MANIFEST, format!("{manifest} trailing"), "trailing"),
        (OCI_MANIFEST, "[]".to_owned(), "a map"),
        ("text/plain", manifest.clone(), "neither that of a manifest"),
    ] {
        refused(&with_manifest(whole.clone(), media_type, &bytes), words);
    }
}

// S-6
#[test]
fn s_6_a_document_that_is_too_long_or_too_deep_is_refused() {
    let whole = image().build();
    let manifest = text(&whole, &whole.digest);
    let long = format!("{manifest}{}", " ".repeat(8 << 20));
    refused(
        &with_manifest(whole.clone(), OCI_MANIFEST, &long),
        "more than 8388608",
    );
    let deep = format!("{}{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    refused(
        &with_manifest(whole.clone(), OCI_MANIFEST, &deep),
        "recursion",
    );
    refused(
        &image()
            .config(|c| c["x"] = json!("x".repeat(8 << 20)))
            .build(),
        "more than 8388608",
    );
    let mut nested = whole;
    for level in 0..8 {
        nested = Built::index("a:1", &[nested]);
        if level == 6 {
            let store = Store::new();
            import(&store, &nested).ok();
        }
    }
    nested = Built::index("a:1", &[nested]);
    refused(&nested, "nested deeper than 8");
}

// L-36
#[test]
fn l_36_a_digest_is_checked_before_it_is_a_path() {
    let secret = Store::new();
    fs::write(secret.beside("secret"), "secret").unwrap();
    let up = format!("sha256:../../../..{}", secret.beside("secret").display());
    for bad in [
        up.as_str(),
        "sha256:abc",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "sha256:",
        "x",
    ] {
        let digest = bad.to_owned();
        let built = image()
            .manifest(move |m| m["layers"][0]["digest"] = json!(digest))
            .build();
        refused(&built, "layers[0]");
    }
    let hex = "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855";
    let built = image().manifest(move |m| m["config"]["digest"] = json!(format!("sha256:{hex}")));
    refused(&built.build(), "lower-case");
}

#[test]
fn l_36_embedded_content_is_checked_and_used() {
    let built = image()
        .manifest(|m| m["config"]["data"] = json!("e30="))
        .build();
    refused(&built, "data of blob");
    // The empty descriptor of artifacts, whose blob need not be there.
    let empty = json!({
        "mediaType": "application/vnd.oci.empty.v1+json",
        "digest": sha256(b"{}"), "size": 2, "data": "e30=",
    });
    let artifact = ImageBuilder::new()
        .given_layer("text/plain", b"hello".to_vec(), &sha256(b"?"))
        .manifest(move |m| {
            m["config"] = empty.clone();
            m["artifactType"] = json!("application/x-chart");
        })
        .tag("chart:1")
        .build();
    assert!(!artifact.blobs.contains_key(&sha256(b"{}")));
    let store = Store::new();
    import(&store, &artifact).ok().warns("application/x-chart");
    assert_eq!(fs::read(store.blob(&sha256(b"{}"))).unwrap(), b"{}");
}

// L-32
#[test]
fn l_32_an_image_in_dockers_types_stays_as_it_is() {
    let built = image().docker().build();
    let store = Store::new();
    import(&store, &built).ok();
    let index = store.json("index.json");
    assert_eq!(index["manifests"][0]["mediaType"], DOCKER_MANIFEST);
    assert_eq!(
        fs::read(store.blob(&built.digest)).unwrap(),
        built.blobs[&built.digest]
    );
}

// L-52
#[test]
fn l_52_nulls_and_unknown_members_are_tolerated() {
    let built = image()
        .config(|c| {
            c["config"] = Value::Null;
            c["history"] = Value::Null;
            c["os.features"] = Value::Null;
            c["x-unknown"] = json!({"a": [null]});
        })
        .manifest(|m| {
            m["annotations"] = Value::Null;
            m["subject"] = Value::Null;
            m["layers"][0]["urls"] = Value::Null;
            m["layers"][0]["x-unknown"] = json!(1);
        })
        .build();
    import(&Store::new(), &built).ok();
    let built = image()
        .config(|c| {
            c["config"] = json!({"User": null, "Env": null, "Cmd": null, "Entrypoint": null, "Volumes": null,
                "Labels": null, "ExposedPorts": null, "StopSignal": null, "WorkingDir": null,
                "Healthcheck": {"Test": ["NONE"]}, "ArgsEscaped": true});
        })
        .build();
    import(&Store::new(), &built).ok();
}

// B-21
#[test]
fn b_21_names_that_look_alike_are_two_names() {
    let store = Store::new();
    let one = image().tag("a/b:c").build();
    let two = image()
        .tag("a_b:c")
        .config(|c| c["author"] = json!("two"))
        .build();
    store.import(&one);
    store.import(&two);
    let index = store.json("index.json");
    let digests: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["digest"].clone())
        .collect();
    assert_eq!(digests, [one.digest, two.digest]);
}
