//! Prune on a registry's storage tree: against Debian's docker-registry, and on trees of files by repository.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    Built, Call, Canary, ImageBuilder, Outcome, assert_same_tree, eventually, hex, scratch, sha256,
    sha512, tree,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn prune<const N: usize>(dir: &Path, more: [&str; N]) -> Outcome {
    call(dir, more).run()
}

fn call<const N: usize>(dir: &Path, more: [&str; N]) -> Call {
    let mut call = Call::new(["prune", "--format", "json", "--yes", "--registry"]).arg(dir);
    for arg in more {
        call = call.arg(arg);
    }
    call
}

/// `[scanned, referenced, unreferenced, spared, deleted]` of a kind.
fn counts(report: &Value, kind: &str) -> [u64; 5] {
    ["scanned", "referenced", "unreferenced", "spared", "deleted"]
        .map(|name| report[kind][name].as_u64().expect(name))
}

fn image(text: &str) -> Built {
    ImageBuilder::new()
        .layer(|layer| {
            layer.file("who", text.as_bytes(), 0o644);
        })
        .tag(text)
        .build()
}

/// An artifact that is about `subject`.
fn referrer(subject: &Built, text: &str) -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let (empty, layer) = (b"{}".to_vec(), text.as_bytes().to_vec());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "text/x-signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(&empty), "size": 2},
        "layers": [{"mediaType": "text/plain", "digest": sha256(&layer), "size": layer.len()}],
        "subject": subject.descriptor,
    });
    let blobs = vec![(sha256(&empty), empty), (sha256(&layer), layer)];
    (manifest.to_string().into_bytes(), blobs)
}

fn media_type(document: &[u8]) -> String {
    let document: Value = serde_json::from_slice(document).expect("document");
    document["mediaType"]
        .as_str()
        .expect("mediaType")
        .to_owned()
}

fn is_manifest(blob: &[u8]) -> bool {
    serde_json::from_slice::<Value>(blob)
        .is_ok_and(|value| value.get("layers").or(value.get("manifests")).is_some())
}

/// Debian's registry on loopback, its storage in a directory of its own, nothing kept in memory.
struct Registry {
    dir: TempDir,
    port: u16,
    child: Child,
}

impl Registry {
    fn start() -> Self {
        let dir = scratch();
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a free port")
            .port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n",
            dir.path().join("storage").display()
        );
        fs::write(dir.path().join("config.yml"), config).expect("config");
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry");
        let registry = Self { dir, port, child };
        let up = || TcpStream::connect(("127.0.0.1", registry.port)).is_ok();
        assert!(eventually(up), "the registry does not listen");
        registry
    }

    fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.storage().join("docker/registry/v2").join(path)
    }

    fn data(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.inside(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    /// Status, the Location header, body.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connect");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("time limit");
        // HTTP/1.0: the answer ends where the connection does.
        let head = format!(
            "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{}\r\nAccept: */*\r\nAccept: {kind}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("request");
        stream.write_all(body).expect("request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("answer");
        let end = answer
            .windows(4)
            .position(|four| four == b"\r\n\r\n")
            .expect("head");
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
        let location = head
            .lines()
            .find_map(|line| line.strip_prefix("Location: "))
            .unwrap_or_default();
        (
            status.expect("status"),
            location.to_owned(),
            answer[end + 4..].to_vec(),
        )
    }

    fn push_blob(&self, name: &str, blob: &[u8]) {
        self.push_blob_by(name, &sha256(blob), blob);
    }

    fn push_blob_by(&self, name: &str, digest: &str, blob: &[u8]) {
        let (status, at, _) = self.ask("POST", &format!("/v2/{name}/blobs/uploads/"), "", b"");
        assert_eq!(status, 202, "begin an upload");
        let at = at.split_once("/v2/").expect("location").1;
        let path = format!("/v2/{at}&digest={digest}");
        let (status, _, body) = self.ask("PUT", &path, "application/octet-stream", blob);
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    }

    fn push_manifest(&self, name: &str, reference: &str, manifest: &[u8]) {
        let path = format!("/v2/{name}/manifests/{reference}");
        let (status, _, body) = self.ask("PUT", &path, &media_type(manifest), manifest);
        assert_eq!(status, 201, "{}", String::from_utf8_lossy(&body));
    }

    /// Push content, then manifests by digest, then the top one by tag.
    fn push(&self, name: &str, tag: &str, image: &Built) {
        let (manifests, blobs): (Vec<_>, Vec<_>) = image
            .blobs
            .iter()
            .partition(|(_, bytes)| is_manifest(bytes));
        for (_, blob) in blobs {
            self.push_blob(name, blob);
        }
        for (digest, manifest) in manifests {
            if *digest != image.digest {
                self.push_manifest(name, digest, manifest);
            }
        }
        self.push_manifest(name, tag, &image.blobs[&image.digest]);
    }

    fn get(&self, name: &str, kind: &str, reference: &str) -> (u16, Vec<u8>) {
        let accept = format!(
            "{MANIFEST}, application/vnd.oci.image.index.v1+json, application/octet-stream"
        );
        let (status, _, body) = self.ask(
            "GET",
            &format!("/v2/{name}/{kind}/{reference}"),
            &accept,
            b"",
        );
        (status, body)
    }

    /// Everything of the image is handed out, byte for byte.
    #[track_caller]
    fn assert_complete(&self, name: &str, image: &Built) {
        for (digest, bytes) in &image.blobs {
            let kind = if is_manifest(bytes) {
                "manifests"
            } else {
                "blobs"
            };
            let (status, body) = self.get(name, kind, digest);
            assert_eq!(
                (status, &body == bytes),
                (200, true),
                "{name} {kind} {digest}"
            );
        }
    }

    fn delete(&self, name: &str, digest: &str) {
        let path = format!("/v2/{name}/manifests/{digest}");
        assert_eq!(self.ask("DELETE", &path, "", b"").0, 202);
    }

    /// Take a tag away, as newer releases do on DELETE by tag.
    fn untag(&self, name: &str, tag: &str) {
        let path = format!("repositories/{name}/_manifests/tags/{tag}");
        fs::remove_dir_all(self.inside(&path)).expect("tag");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

// G-2, G-3; the deleted-children reports about the reference registry's own collector.
#[test]
fn a_registry_hands_out_all_that_is_kept_answers_404_for_the_rest_and_takes_it_again() {
    requires!(command "docker-registry");
    let registry = Registry::start();
    let (kept, gone, one, two) = (image("kept"), image("gone"), image("one"), image("two"));
    let index = Built::index("multi", &[one, two]);
    registry.push("team/app", "kept", &kept);
    registry.push("team/app", "gone", &gone);
    registry.push("deep/er/name", "multi", &index);
    // A blob that two repositories have, and only one needs later.
    registry.push("other", "gone", &gone);
    let (signature, blobs) = referrer(&kept, "signed");
    for (_, blob) in &blobs {
        registry.push_blob("team/app", blob);
    }
    registry.push_manifest("team/app", &sha256(&signature), &signature);
    let same = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(same["freedBytes"], 0);
    assert_eq!(counts(&same, "manifests"), [7, 7, 0, 0, 0]);

    registry.delete("team/app", &gone.digest);
    let shared = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(shared["plan"], json!([]), "another repository needs it");
    registry.delete("other", &gone.digest);

    let before = tree(registry.storage());
    let planned = prune(&registry.storage(), ["--grace", "0s", "--dry-run"])
        .ok()
        .json();
    assert_same_tree(&before, &tree(registry.storage()));
    let done = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    // The manifest, its configuration and its layer.
    assert_eq!(counts(&done, "blobs")[2..], [3, 0, 3]);
    assert_eq!(planned["plannedBytes"], done["freedBytes"], "G-6");
    let digests = |report: &Value| -> Vec<String> {
        let lines = report["plan"].as_array().expect("plan").iter();
        lines.map(|line| line["digest"].to_string()).collect()
    };
    assert_eq!(digests(&planned), digests(&done), "G-6");

    registry.assert_complete("team/app", &kept);
    registry.assert_complete("deep/er/name", &index);
    assert_eq!(
        registry.get("team/app", "manifests", &sha256(&signature)),
        (200, signature)
    );
    assert_eq!(registry.get("team/app", "blobs", &sha256(b"signed")).0, 200);
    for name in ["team/app", "other"] {
        assert_eq!(registry.get(name, "manifests", "gone").0, 404);
        for (digest, bytes) in &gone.blobs {
            let kind = if is_manifest(bytes) {
                "manifests"
            } else {
                "blobs"
            };
            assert_eq!(registry.get(name, kind, digest).0, 404, "{name} {kind}");
            assert!(!registry.data(digest).exists());
            let link = format!("repositories/{name}/_layers/sha256/{}", hex(digest));
            assert!(!registry.inside(&link).exists(), "{link}");
        }
    }
    registry.push("team/app", "gone", &gone);
    registry.assert_complete("team/app", &gone);
    assert!(!registry.inside("pelagos-trash").exists());
}

#[test]
fn with_untagged_a_manifest_without_a_tag_goes_and_children_and_referrers_of_tagged_ones_stay() {
    requires!(command "docker-registry");
    let registry = Registry::start();
    let (one, two, loose) = (image("one"), image("two"), image("loose"));
    let index = Built::index("multi", &[one.clone(), two]);
    registry.push("r", "multi", &index);
    registry.push("r", "loose", &loose);
    // A referrer of a child, and a referrer of that.
    let (first, first_blobs) = referrer(&one, "first");
    let about = Built {
        descriptor: json!({"mediaType": MANIFEST, "digest": sha256(&first), "size": first.len()}),
        ..one
    };
    let (second, second_blobs) = referrer(&about, "second");
    let (lost, lost_blobs) = referrer(&loose, "lost");
    for (_, blob) in first_blobs.iter().chain(&second_blobs).chain(&lost_blobs) {
        registry.push_blob("r", blob);
    }
    for manifest in [&first, &second, &lost] {
        registry.push_manifest("r", &sha256(manifest), manifest);
    }
    registry.untag("r", "loose");

    let all = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(
        counts(&all, "manifests"),
        [7, 7, 0, 0, 0],
        "every stored manifest is a root"
    );
    let young = prune(&registry.storage(), ["--untagged"]).ok().json();
    assert_eq!(
        counts(&young, "blobs")[2..],
        [0, 0, 0],
        "within the grace its content is needed"
    );
    let done = prune(&registry.storage(), ["--untagged", "--grace", "0s"])
        .ok()
        .json();
    assert_eq!(counts(&done, "manifests"), [7, 5, 2, 0, 2]);
    registry.assert_complete("r", &index);
    for manifest in [first, second] {
        assert_eq!(
            registry.get("r", "manifests", &sha256(&manifest)),
            (200, manifest)
        );
    }
    for text in ["first", "second"] {
        assert_eq!(
            registry.get("r", "blobs", &sha256(text.as_bytes())).0,
            200,
            "{text}"
        );
    }
    for digest in [&loose.digest, &sha256(&lost)] {
        assert_eq!(registry.get("r", "manifests", digest).0, 404);
    }
    assert_eq!(registry.get("r", "blobs", &sha256(b"lost")).0, 404);
}

#[test]
fn an_upload_that_is_not_finished_is_left_and_can_go_on() {
    requires!(command "docker-registry");
    let registry = Registry::start();
    registry.push("r", "kept", &image("kept"));
    let (status, at, _) = registry.ask("POST", "/v2/r/blobs/uploads/", "", b"");
    assert_eq!(status, 202);
    let done = prune(&registry.storage(), ["--untagged", "--grace", "0s"])
        .ok()
        .json();
    assert_eq!(
        (&done["uploads"], &done["oldUploads"]),
        (&json!(1), &json!([]))
    );
    let at = at.split_once("/v2/").expect("location").1;
    let path = format!("/v2/{at}&digest={}", sha256(b"late"));
    let put = registry.ask("PUT", &path, "application/octet-stream", b"late");
    assert_eq!(put.0, 201);

    registry.ask("POST", "/v2/r/blobs/uploads/", "", b"");
    let uploads = registry.inside("repositories/r/_uploads");
    let touched = Command::new("find")
        .arg(&uploads)
        .args(["-exec", "touch", "-h", "-d", "3 days ago", "{}", "+"])
        .status()
        .expect("touch");
    assert!(touched.success());
    let done = prune(&registry.storage(), []).ok().json();
    assert_eq!(
        done["oldUploads"].as_array().expect("uploads").len(),
        1,
        "{done}"
    );
}

// G-1
#[test]
fn a_registry_with_anything_unreadable_keeps_everything_and_it_is_named() {
    requires!(command "docker-registry");
    let registry = Registry::start();
    let (kept, gone) = (image("kept"), image("gone"));
    registry.push("r", "kept", &kept);
    registry.push("r", "gone", &gone);
    registry.delete("r", &gone.digest);
    let data = registry.data(&kept.digest);
    let good = fs::read(&data).expect("manifest");
    let link = registry.inside("repositories/r/_manifests/tags/kept/current/link");
    let pointer = fs::read(&link).expect("link");
    let revision = registry.inside(&format!(
        "repositories/r/_manifests/revisions/sha256/{}",
        hex(&kept.digest)
    ));
    let refused = |words: &str| {
        let before = tree(registry.storage());
        for more in [["--grace", "0s"], ["--untagged", "--grace=0s"]] {
            prune(&registry.storage(), more).fails_with(words);
        }
        assert_same_tree(&before, &tree(registry.storage()));
    };
    fs::write(&data, &good[..good.len() / 2]).expect("cut short");
    refused(hex(&kept.digest));
    fs::write(&data, &gone.blobs[&gone.digest]).expect("another");
    refused("its content has the digest");
    fs::write(&data, &good).expect("whole");
    fs::write(&link, "").expect("cut short");
    refused("tags/kept/current/link");
    fs::write(&link, &pointer).expect("whole");
    fs::write(revision.join("note"), "").expect("odd name");
    refused("/note");
    fs::remove_file(revision.join("note")).expect("odd name");
    let odd = registry.inside("blobs/sha256/00");
    fs::create_dir_all(odd.join("xyz")).expect("odd name");
    refused("blobs/sha256/00/xyz");
    fs::remove_dir_all(&odd).expect("odd name");
    // S-13
    let repositories = registry.inside("repositories/r");
    fs::rename(&repositories, registry.inside("r")).expect("move");
    symlink(registry.inside("r"), &repositories).expect("link");
    refused("repositories/r");
    fs::remove_file(&repositories).expect("link");
    fs::rename(registry.inside("r"), &repositories).expect("move");

    let done = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(counts(&done, "blobs")[4], 3);
    registry.assert_complete("r", &kept);
}

// L-36: the registry stores what is pushed by its sha512 by its sha256, and a link of the repository says so.
#[test]
fn a_layer_that_was_pushed_by_its_sha512_stays_while_a_manifest_names_it_so_and_goes_with_its_links()
 {
    requires!(command "docker-registry", command "strace");
    let registry = Registry::start();
    let (layer, config) = (b"a layer", b"{}");
    let digest = sha512(layer);
    registry.push_blob_by("r", &digest, layer);
    registry.push_blob("r", config);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": sha256(config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar",
            "digest": digest, "size": layer.len()}],
    })
    .to_string();
    registry.push_manifest("r", "tag", manifest.as_bytes());

    let kept = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(
        (&kept["plan"], &kept["missing"]),
        (&json!([]), &json!([])),
        "{kept}"
    );
    assert_eq!(registry.get("r", "blobs", &digest), (200, layer.to_vec()));

    // It may be any blob that the link protects.
    let hex_of = digest.strip_prefix("sha512:").expect("algorithm");
    let links = registry
        .inside("repositories/r/_layers/sha512")
        .join(hex_of);
    let good = fs::read(links.join("link")).expect("link");
    fs::write(links.join("link"), "").expect("cut short");
    prune(&registry.storage(), ["--grace", "0s"]).fails_with("_layers/sha512");
    fs::write(links.join("link"), good).expect("whole");

    // The manifest is pushed again after the links were put aside.
    registry.delete("r", &sha256(manifest.as_bytes()));
    let revision = format!(
        "repositories/r/_manifests/revisions/sha256/{}/link",
        hex(&sha256(manifest.as_bytes()))
    );
    let sweep = call(&registry.storage(), ["--grace", "0s"])
        .injecting("renameat2:delay_exit=500000")
        .spawn();
    let aside = registry.inside("pelagos-trash/repositories/r/_layers/sha512");
    assert!(eventually(|| aside.exists()));
    fs::write(registry.inside(&revision), sha256(manifest.as_bytes())).expect("link");
    Outcome::from(sweep.wait()).ok();
    assert_eq!(registry.get("r", "blobs", &digest), (200, layer.to_vec()));
    registry.delete("r", &sha256(manifest.as_bytes()));

    let gone = prune(&registry.storage(), ["--grace", "0s"]).ok().json();
    assert_eq!(counts(&gone, "blobs")[4], 3);
    assert_eq!(registry.get("r", "blobs", &digest).0, 404);
    assert!(!links.exists());
}

/// `manifests/<org>/<repo>/<file>` and `blobs/<org>/<repo>/<digest>`.
struct Flat {
    dir: TempDir,
}

impl Flat {
    fn new() -> Self {
        let dir = scratch();
        for name in ["manifests", "blobs"] {
            fs::create_dir(dir.path().join(name)).expect("directory");
        }
        Self { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        fs::write(path, content).expect("file");
    }

    /// All of an image in a repository; the manifest under these names.
    fn put(&self, repository: &str, image: &Built, names: &[&str]) {
        for (digest, bytes) in &image.blobs {
            if is_manifest(bytes) {
                self.write(&format!("manifests/{repository}/{digest}"), bytes);
            } else {
                self.write(&format!("blobs/{repository}/{}", hex(digest)), bytes);
            }
        }
        for name in names {
            self.write(
                &format!("manifests/{repository}/{name}"),
                &image.blobs[&image.digest],
            );
        }
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }
}

fn disk(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").blocks() * 512
}

// G-2, G-8
#[test]
fn in_a_tree_by_repository_only_what_a_manifest_of_the_same_repository_needs_stays() {
    let flat = Flat::new();
    let (one, two) = (image("one"), image("two"));
    let index = Built::index("multi", &[one.clone(), two.clone()]);
    flat.put("org/app", &index, &["multi"]);
    // The same content elsewhere, where nothing needs it.
    flat.write(
        &format!("blobs/org/other/{}", one.layers[0]),
        &one.blobs[&one.layers[0]],
    );
    // Needed by name with and without its algorithm.
    flat.put("org/third", &two, &[hex(&two.digest)]);
    flat.write("tmp/uploads/123", b"half");
    let size = disk(&flat.path(&format!("blobs/org/other/{}", one.layers[0])));

    let done = prune(flat.dir.path(), ["--grace", "0s"]).ok().json();
    assert_eq!(done["layout"], "flat");
    assert_eq!(counts(&done, "blobs"), [7, 6, 1, 0, 1]);
    assert_eq!(done["freedBytes"], size);
    assert_eq!(done["uploads"], 1);
    assert!(flat.has("tmp/uploads/123"));
    assert!(!flat.has(&format!("blobs/org/other/{}", one.layers[0])));
    assert!(flat.has(&format!("blobs/org/app/{}", hex(&one.layers[0]))));
    assert!(!flat.has("pelagos-trash"));

    let done = prune(flat.dir.path(), ["--grace", "0s", "--untagged"])
        .ok()
        .json();
    // `third` has no tag; its manifest has two names.
    assert_eq!(counts(&done, "manifests"), [4, 3, 1, 0, 1]);
    assert_eq!(counts(&done, "blobs")[4], 2);
    assert_eq!(
        fs::read_dir(flat.path("manifests/org/third"))
            .expect("list")
            .count(),
        0
    );
    for digest in [&one.digest, &two.digest, &index.digest] {
        assert!(flat.has(&format!("manifests/org/app/{digest}")), "{digest}");
    }
}

// G-1, G-9, S-13
#[test]
fn in_a_tree_by_repository_anything_unreadable_or_odd_keeps_everything() {
    let flat = Flat::new();
    let kept = image("kept");
    flat.put("org/app", &kept, &["latest"]);
    flat.write(
        &format!("blobs/org/app/{}", hex(&sha256(b"loose"))),
        b"loose",
    );
    let manifest = &kept.blobs[&kept.digest];
    let outside = Canary::beside(flat.dir.path());
    let by_digest = format!("manifests/org/app/{}", kept.digest);
    let both =
        json!({"schemaVersion": 2, "layers": [], "manifests": [], "config": kept.descriptor});
    let other = image("other");
    let cases: [(&str, &[u8], &str); 9] = [
        (
            "manifests/org/app/latest",
            &manifest[..40],
            "manifests/org/app/latest",
        ),
        ("manifests/org/app/latest", b"", "manifests/org/app/latest"),
        (
            "manifests/org/app/latest",
            b"\xff\xfe",
            "manifests/org/app/latest",
        ),
        (&by_digest, b"{}", &kept.digest),
        (
            &by_digest,
            &other.blobs[&other.digest],
            "its content has the digest",
        ),
        (
            "manifests/org/app/both",
            both.to_string().leak().as_bytes(),
            "manifests/org/app/both",
        ),
        ("manifests/org/app/sha256:abc", manifest, "sha256:abc"),
        ("manifests/org/stray", manifest, "manifests/org/stray"),
        ("blobs/org/app/not-a-digest", b"", "not-a-digest"),
    ];
    for (path, content, words) in cases {
        let good = fs::read(flat.path(path)).ok();
        flat.write(path, content);
        let before = tree(flat.dir.path());
        prune(flat.dir.path(), ["--grace", "0s"]).fails_with(words);
        assert_same_tree(&before, &tree(flat.dir.path()));
        match good {
            Some(good) => flat.write(path, &good),
            None => fs::remove_file(flat.path(path)).expect("remove"),
        }
    }
    for path in ["blobs/org/linked", "manifests/org/linked"] {
        symlink(outside.path(), flat.path(path)).expect("link");
        prune(flat.dir.path(), ["--grace", "0s"]).fails_with(path);
        fs::remove_file(flat.path(path)).expect("link");
    }
    outside.assert_untouched();
    let done = prune(flat.dir.path(), ["--grace", "0s"]).ok().json();
    assert_eq!(counts(&done, "blobs")[4], 1);
}

// G-4, G-5, G-6
#[test]
fn the_grace_counts_from_the_newest_of_mtime_and_ctime_and_a_strange_clock_is_survived() {
    let flat = Flat::new();
    flat.put("org/app", &image("kept"), &["latest"]);
    let path = format!("blobs/org/app/{}", hex(&sha256(b"loose")));
    flat.write(&path, b"loose");
    let touch = |when: &str| {
        let done = Command::new("touch")
            .arg("-d")
            .arg(when)
            .arg(flat.path(&path))
            .status();
        assert!(done.expect("touch").success());
    };
    // An old mtime, as a blob has that was mounted by a hard link just now: its ctime is new.
    for when in ["2001-01-01", "1969-12-31T00:00:00Z", "2190-01-01"] {
        touch(when);
        let spared = prune(flat.dir.path(), ["--grace", "1h"]).ok().json();
        assert_eq!(counts(&spared, "blobs")[2..], [1, 1, 0], "{when}");
        let again = prune(flat.dir.path(), ["--grace", "1h", "--dry-run"])
            .ok()
            .json();
        assert_eq!(
            (&again["plan"], &again["plannedBytes"]),
            (&json!([]), &json!(0)),
            "{when}"
        );
    }
    // Not spared for ever by an mtime in the future.
    std::thread::sleep(Duration::from_millis(2100));
    let done = prune(flat.dir.path(), ["--grace", "1s"]).ok().json();
    assert_eq!(counts(&done, "blobs")[4], 1);
}

// G-6
#[test]
fn hard_links_of_one_blob_are_counted_once_and_only_when_the_last_goes() {
    let flat = Flat::new();
    flat.put("org/app", &image("kept"), &["latest"]);
    let name = sha256(b"loose");
    let first = format!("blobs/org/app/{name}");
    flat.write(&first, b"loose");
    for repository in ["a", "b"] {
        fs::create_dir_all(flat.path(&format!("blobs/org/{repository}"))).expect("directory");
        fs::hard_link(
            flat.path(&first),
            flat.path(&format!("blobs/org/{repository}/{name}")),
        )
        .expect("hard link");
    }
    let outside = flat.path("outside");
    fs::hard_link(flat.path(&first), &outside).expect("hard link");
    let size = disk(&outside);
    let planned = prune(flat.dir.path(), ["--grace", "0s", "--dry-run"])
        .ok()
        .json();
    assert_eq!(
        (
            &planned["plannedBytes"],
            planned["plan"].as_array().expect("plan").len()
        ),
        (&json!(0), 3)
    );
    fs::remove_file(outside).expect("remove");
    let planned = prune(flat.dir.path(), ["--grace", "0s", "--dry-run"])
        .ok()
        .json();
    let done = prune(flat.dir.path(), ["--grace", "0s"]).ok().json();
    assert_eq!(
        (&planned["plannedBytes"], &done["freedBytes"]),
        (&json!(size), &json!(size))
    );
    assert_eq!(counts(&done, "blobs")[4], 3);
}

#[test]
fn what_a_killed_sweep_left_aside_is_put_back_before_the_next_begins() {
    let flat = Flat::new();
    let (kept, gone) = (image("kept"), image("gone"));
    flat.put("org/app", &kept, &["latest"]);
    flat.put("org/app", &gone, &[]);
    let before = tree(flat.dir.path());
    let layer = format!("blobs/org/app/{}", hex(&kept.layers[0]));
    let manifest = format!("manifests/org/app/{}", gone.digest);
    for path in [&layer, &manifest] {
        let aside = flat.path(&format!("pelagos-trash/{path}"));
        fs::create_dir_all(aside.parent().expect("parent")).expect("directory");
        fs::rename(flat.path(path), aside).expect("set aside");
    }
    let done = prune(flat.dir.path(), []).ok().json();
    assert_eq!(counts(&done, "manifests"), [2, 2, 0, 0, 0]);
    let names = |entries: Vec<crate::support::Entry>| -> Vec<PathBuf> {
        entries.into_iter().map(|entry| entry.path).collect()
    };
    assert_eq!(names(before), names(tree(flat.dir.path())));
}

#[test]
fn a_sweep_that_is_killed_at_any_rename_or_unlink_loses_nothing_that_is_needed() {
    requires!(command "strace");
    let flat = Flat::new();
    let (kept, gone) = (image("kept"), image("gone"));
    for (what, most) in [("renameat2", 4), ("unlinkat", 8)] {
        for at in 1..=most {
            flat.put("org/app", &kept, &["latest"]);
            flat.put("org/app", &gone, &[]);
            let killed = call(flat.dir.path(), ["--grace", "0s", "--untagged"])
                .injecting(&format!("{what}:signal=SIGKILL:when={at}"))
                .run();
            assert!(killed.code > 128 || at > 3, "{what} {at}: {killed}");
            let done = prune(flat.dir.path(), ["--grace", "0s", "--untagged"])
                .ok()
                .json();
            assert_eq!(counts(&done, "manifests")[1], 1, "{what} {at}");
            for (digest, bytes) in &kept.blobs {
                let path = if is_manifest(bytes) {
                    format!("manifests/org/app/{digest}")
                } else {
                    format!("blobs/org/app/{}", hex(digest))
                };
                assert_eq!(
                    &fs::read(flat.path(&path)).expect("kept"),
                    bytes,
                    "{what} {at}"
                );
            }
            assert!(!flat.has(&format!("blobs/org/app/{}", hex(&gone.layers[0]))));
            assert!(!flat.has("pelagos-trash"), "{what} {at}");
        }
    }
}

// The race of every collector that looks once: a manifest arrives between the marking and the removal.
#[test]
fn what_a_manifest_needs_that_arrives_during_the_sweep_is_put_back_and_what_was_written_again_is_left()
 {
    requires!(command "strace");
    let flat = Flat::new();
    let (kept, late) = (image("kept"), image("late"));
    flat.put("org/app", &kept, &["latest"]);
    flat.put("org/app", &late, &[]);
    let manifest = format!("manifests/org/app/{}", late.digest);
    fs::remove_file(flat.path(&manifest)).expect("remove");
    // The last of the candidates, by its place.
    fs::create_dir_all(flat.path("blobs/org/last")).expect("directory");
    let again = format!("blobs/org/last/{}", hex(&sha256(b"again")));
    flat.write(&again, b"again");
    let sweep = call(flat.dir.path(), ["--grace", "0s"])
        .injecting("renameat2:delay_exit=3000000:when=1")
        .spawn();
    assert!(eventually(|| flat.has("pelagos-trash/blobs/org/app")));
    flat.write(&manifest, &late.blobs[&late.digest]);
    fs::remove_file(flat.path(&again)).expect("remove");
    flat.write(&again, b"again");
    let done = Outcome::from(sweep.wait()).ok().json();
    let states: Vec<_> = done["plan"]
        .as_array()
        .expect("plan")
        .iter()
        .map(|line| line["state"].as_str().expect("state"))
        .collect();
    assert_eq!(states, ["needed", "needed", "changed"]);
    assert_eq!(done["freedBytes"], 0);
    assert!(flat.has(&again) && !flat.has("pelagos-trash"));
    for (digest, bytes) in late.blobs.iter().filter(|(_, bytes)| !is_manifest(bytes)) {
        let path = flat.path(&format!("blobs/org/app/{}", hex(digest)));
        assert_eq!(&fs::read(path).expect("put back"), bytes);
    }
}

// S-13
#[test]
fn a_mount_in_the_tree_stops_the_sweep() {
    requires!(root, command "unshare");
    let flat = Flat::new();
    flat.put("org/app", &image("kept"), &["latest"]);
    let loose = format!("blobs/org/app/{}", hex(&sha256(b"loose")));
    flat.write(&loose, b"loose");
    fs::create_dir_all(flat.path("manifests/org/mounted")).expect("directory");
    let script = format!(
        "mount -t tmpfs none {0}/manifests/org/mounted && exec \"$0\" \"$@\"",
        flat.dir.path().display()
    );
    call(flat.dir.path(), ["--grace", "0s"])
        .under([
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
        ])
        .run()
        .fails_with("a file system is mounted there");
    assert!(flat.has(&loose));
}

#[test]
fn a_directory_that_is_no_registry_is_refused() {
    let dir = scratch();
    prune(dir.path(), []).fails_with("not the storage of a registry");
    prune(&dir.path().join("absent"), []).fails_with("absent");
    fs::create_dir_all(dir.path().join("docker/registry/v2/blobs/sha256")).expect("directory");
    prune(dir.path(), []).fails_with("repositories: is not there");
}

#[test]
fn a_child_that_is_missing_stops_the_sweep_and_a_missing_layer_is_told() {
    let flat = Flat::new();
    let (one, two) = (image("one"), image("two"));
    let index = Built::index("multi", &[one.clone(), two]);
    flat.put("org/app", &index, &["multi"]);
    fs::remove_file(flat.path(&format!("blobs/org/app/{}", hex(&one.layers[0])))).expect("remove");
    let told = prune(flat.dir.path(), ["--grace", "0s"]).ok().json();
    assert_eq!(
        told["missing"],
        json!([format!("org/app: {}", one.layers[0])])
    );
    fs::remove_file(flat.path(&format!("manifests/org/app/{}", one.digest))).expect("remove");
    prune(flat.dir.path(), ["--grace", "0s"]).fails_with(&one.digest);
}
