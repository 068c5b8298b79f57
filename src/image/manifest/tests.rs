//! Documents that are taken, and those that are refused.

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

fn descriptor(media_type: &str) -> String {
    format!(r#"{{"mediaType":"{media_type}","digest":"{DIGEST}","size":0}}"#)
}

fn manifest(members: &str) -> Result<Document> {
    let config = descriptor(media_type::CONFIG);
    let text = format!(r#"{{"schemaVersion":2,"config":{config}{members}}}"#);
    Document::parse(text.as_bytes(), media_type::MANIFEST)
}

#[test]
fn l_40_what_the_specification_allows_is_taken() {
    for members in [
        r#","layers":[]"#,
        r#","layers":null,"annotations":null,"subject":null,"artifactType":null"#,
        r#","artifactType":"application/x","x-unknown":{"Layers":1},"layers":[]"#,
    ] {
        assert!(manifest(members).is_ok(), "{members}");
    }
    let subject = format!(r#","subject":{}"#, descriptor(media_type::MANIFEST));
    let Document::Manifest(read) = manifest(&subject).unwrap() else {
        panic!("an index");
    };
    assert_eq!(read.subject.unwrap().digest, DIGEST.parse().unwrap());
    for text in [
        r#"{"schemaVersion":2,"manifests":[]}"#,
        r#"{"schemaVersion":2,"manifests":null}"#,
        r#"{"manifests":[]}"#,
    ] {
        let Document::Index(index) = Document::parse(text.as_bytes(), media_type::INDEX).unwrap()
        else {
            panic!("a manifest");
        };
        assert_eq!(index.manifests, []);
    }
}

#[test]
fn l_32_dockers_types_mean_the_same() {
    let config = descriptor("application/vnd.docker.container.image.v1+json");
    let layer = descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip");
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"{DOCKER_MANIFEST}","config":{config},"layers":[{layer}]}}"#
    );
    let Document::Manifest(read) = Document::parse(text.as_bytes(), DOCKER_MANIFEST).unwrap()
    else {
        panic!("an index");
    };
    assert!(read.is_image());
    assert_eq!(
        layer_type(&read.layers[0].media_type),
        Some(LayerType::Gzip)
    );
    let list = format!(
        r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
        descriptor(DOCKER_MANIFEST)
    );
    assert!(matches!(
        Document::parse(list.as_bytes(), DOCKER_LIST).unwrap(),
        Document::Index(index) if index.manifests.len() == 1
    ));
}

// CVE-2021-41190
#[test]
fn s_8_a_document_that_could_be_another_is_refused() {
    let config = descriptor(media_type::CONFIG);
    let entry = descriptor(media_type::MANIFEST);
    for (text, named, words) in [
        (
            format!(
                r#"{{"mediaType":"{}","config":{config}}}"#,
                media_type::INDEX
            ),
            media_type::MANIFEST,
            "its mediaType is",
        ),
        (
            format!(r#"{{"mediaType":"{DOCKER_MANIFEST}","config":{config}}}"#),
            media_type::MANIFEST,
            "its mediaType is",
        ),
        (
            format!(r#"{{"config":{config},"layers":[],"manifests":[{entry}]}}"#),
            media_type::MANIFEST,
            "manifests of an index",
        ),
        (
            format!(r#"{{"config":{config},"Manifests":[{entry}]}}"#),
            media_type::MANIFEST,
            "taken for \"manifests\"",
        ),
        (
            format!(r#"{{"config":{config},"layer\u017f":[{entry}]}}"#),
            media_type::MANIFEST,
            "taken for \"layers\"",
        ),
        (
            format!(r#"{{"manifests":[{entry}],"layers":[]}}"#),
            media_type::INDEX,
            "of a manifest",
        ),
        (
            format!(r#"{{"manifests":[],"config":{config}}}"#),
            media_type::INDEX,
            "of a manifest",
        ),
        (
            format!(r#"{{"config":{config},"fsLayers":[]}}"#),
            media_type::MANIFEST,
            "fsLayers",
        ),
        (
            format!(r#"{{"schemaVersion":1,"config":{config}}}"#),
            media_type::MANIFEST,
            "schemaVersion",
        ),
        (
            format!(r#"{{"config":{config},"config":{config}}}"#),
            media_type::MANIFEST,
            "\"config\" occurs twice",
        ),
        ("{}".to_owned(), media_type::MANIFEST, "no config"),
        ("[]".to_owned(), media_type::INDEX, "expected a map"),
        (
            "{}".to_owned(),
            media_type::CONFIG,
            "neither that of a manifest",
        ),
    ] {
        let error = format!("{:#}", Document::parse(text.as_bytes(), named).unwrap_err());
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn l_36_a_descriptor_has_to_be_right() {
    for (entry, words) in [
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":-1}"#,
            "layers[0]",
        ),
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":1.5}"#,
            "layers[0]",
        ),
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":18446744073709551616}"#,
            "layers[0]",
        ),
        (r#"{"mediaType":"x","digest":"DIGEST"}"#, "size"),
        (r#"{"digest":"DIGEST","size":0}"#, "mediaType"),
        (r#"{"mediaType":"x","size":0}"#, "digest"),
        (
            r#"{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":0}"#,
            "sha256:../",
        ),
        (
            r#"{"mediaType":"x","digest":"sha256:E3B0","size":0}"#,
            "sha256:E3B0",
        ),
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":0,"data":"Zg=="}"#,
            "1 bytes long",
        ),
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":1,"data":"Zg=="}"#,
            "has the digest",
        ),
        (
            r#"{"mediaType":"x","digest":"DIGEST","size":0,"data":"?"}"#,
            "base64",
        ),
    ] {
        let entry = entry.replace("DIGEST", DIGEST);
        let error = format!(
            "{:#}",
            manifest(&format!(r#","layers":[{entry}]"#)).unwrap_err()
        );
        assert!(error.contains(words), "{entry}: {error}");
    }
    let fits = Digest::of(b"foo");
    let entry = format!(
        r#"{{"mediaType":"x","digest":"{fits}","size":3,"data":"Zm9v","urls":null,"annotations":null}}"#
    );
    let Document::Manifest(read) = manifest(&format!(r#","layers":[{entry}]"#)).unwrap() else {
        panic!("an index");
    };
    assert_eq!(read.layers[0].embedded().unwrap().unwrap(), b"foo");
}

#[test]
fn s_6_a_document_that_is_too_long_is_refused() {
    let filler = " ".repeat(usize::try_from(LARGEST_DOCUMENT).unwrap());
    let error = manifest(&format!(r#","layers":[]{filler}"#)).unwrap_err();
    assert!(
        error.to_string().contains("the most that is read"),
        "{error}"
    );
}

#[test]
fn l_31_the_types_of_layers() {
    use LayerType::{DockerTar, Gzip, Tar, Zstd};
    for (name, expected) in [
        ("application/vnd.oci.image.layer.v1.tar", Some(Tar)),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some(Gzip)),
        ("application/vnd.oci.image.layer.v1.tar+zstd", Some(Zstd)),
        ("application/vnd.oci.image.layer.v1.tar+xz", None),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            Some(Tar),
        ),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            Some(Gzip),
        ),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            Some(Zstd),
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar",
            Some(DockerTar),
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Some(Gzip),
        ),
        (
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
            Some(Zstd),
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            Some(DockerTar),
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            Some(Gzip),
        ),
        ("application/octet-stream", None),
        ("", None),
    ] {
        assert_eq!(layer_type(name), expected, "{name}");
        let foreign = name.contains("nondistributable") || name.contains("foreign");
        assert_eq!(is_nondistributable(name), foreign, "{name}");
    }
}

// The expected values are worked out with sha256sum.
#[test]
fn l_38_a_chain_id_is_made_of_those_below() {
    let a = Digest::of(b"a");
    let b = Digest::of(b"b");
    let ab = "sha256:51c0c8ace48498d6f5fee6b0592cc06f2da0f3cbe09c5a34a97dce85c3889676";
    let aba = "sha256:1472d34251a00ac55ede7b25cbe3c166a4229eae731490bfdeb83bc00f598be1";
    let chain = chain_ids(&[a.clone(), b, a.clone()]);
    assert_eq!(chain, [a, ab.parse().unwrap(), aba.parse().unwrap()]);
    assert_eq!(chain_ids(&[]), []);
}

#[test]
fn l_37_as_many_layers_as_diff_ids() {
    let layer = descriptor(media_type::LAYER);
    let Document::Manifest(read) = manifest(&format!(r#","layers":[{layer}]"#)).unwrap() else {
        panic!("an index");
    };
    let mut config = Config {
        diff_ids: vec![DIGEST.parse().unwrap()],
        ..Config::default()
    };
    config.fits(&read).unwrap();
    config.diff_ids.clear();
    let error = config.fits(&read).unwrap_err().to_string();
    assert!(
        error.contains("1 layers") && error.contains("0 DiffIDs"),
        "{error}"
    );
}

#[test]
fn a_manifest_of_ours_is_read_back_as_it_was() {
    let made = Manifest {
        media_type: media_type::MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::new(media_type::CONFIG, Digest::of(b"c"), 1),
        layers: vec![Descriptor::new(media_type::LAYER_GZIP, Digest::of(b"l"), 1)],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let bytes = made.to_json().unwrap();
    assert_eq!(
        Document::parse(&bytes, media_type::MANIFEST).unwrap(),
        Document::Manifest(made)
    );
    assert!(bytes.starts_with(br#"{"schemaVersion":2,"mediaType":"application/vnd.oci."#));
}
