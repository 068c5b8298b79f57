//! Images made from nothing, byte by byte known, and written in every form in which images travel.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::{Value, json};
use sha2::Digest as _;

use super::layer::LayerBuilder;

/// `sha256:HEX` of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// `sha512:HEX` of these bytes.
pub(crate) fn sha512(bytes: &[u8]) -> String {
    let hash = sha2::Sha512::digest(bytes);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha512:{hex}")
}

/// What stands after the colon.
pub(crate) fn hex(digest: &str) -> &str {
    digest.split_once(':').expect("digest").1
}

/// `bytes` as one gzip member.
pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("gzip");
    encoder.finish().expect("gzip")
}

/// `bytes` as one zstd frame.
pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(bytes, 1).expect("zstd")
}

/// How a layer is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    Plain,
    Gzip,
    Zstd,
}

#[derive(Clone)]
enum Layer {
    Tar(Vec<u8>, Packing),
    /// Media type, blob, DiffID: whatever the test wants, true or not.
    Given(String, Vec<u8>, String),
}

type Edit = std::rc::Rc<dyn Fn(&mut Value)>;

/// An image in the making: `linux` on this machine's architecture, no layers, an empty `config`.
#[derive(Clone)]
pub(crate) struct ImageBuilder {
    layers: Vec<Layer>,
    packing: Packing,
    docker: bool,
    tag: Option<String>,
    platform: (String, String, Option<String>),
    config: Vec<Edit>,
    manifest: Vec<Edit>,
}

/// This machine's architecture as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl ImageBuilder {
    pub(crate) fn new() -> Self {
        Self {
            layers: Vec::new(),
            packing: Packing::Gzip,
            docker: false,
            tag: None,
            platform: ("linux".into(), architecture().into(), None),
            config: Vec::new(),
            manifest: Vec::new(),
        }
    }

    /// An image with the machine's busybox, whose command is `echo hello`.
    pub(crate) fn busybox() -> Self {
        Self::new()
            .layer(|l| {
                l.dir("etc", 0o755)
                    .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644)
                    .file("etc/group", "root:x:0:\n", 0o644)
                    .dir("tmp", 0o1777)
                    .busybox();
            })
            .config(|c| c["config"]["Cmd"] = json!(["/bin/echo", "hello"]))
    }

    /// Add a layer; gzip unless told.
    pub(crate) fn layer<R>(self, fill: impl FnOnce(&mut LayerBuilder) -> R) -> Self {
        let mut layer = LayerBuilder::new();
        fill(&mut layer);
        self.tar_layer(layer.finish())
    }

    /// Add a layer whose uncompressed content is this.
    pub(crate) fn tar_layer(mut self, tar: Vec<u8>) -> Self {
        self.layers.push(Layer::Tar(tar, self.packing));
        self
    }

    /// Add a layer as it is: media type, blob and DiffID are not made to agree.
    pub(crate) fn given_layer(mut self, media_type: &str, blob: Vec<u8>, diff_id: &str) -> Self {
        self.layers
            .push(Layer::Given(media_type.into(), blob, diff_id.into()));
        self
    }

    /// The layer added last, and those that follow, are gzip.
    pub(crate) fn gzip(self) -> Self {
        self.pack(Packing::Gzip)
    }

    /// The layer added last, and those that follow, are zstd.
    pub(crate) fn zstd(self) -> Self {
        self.pack(Packing::Zstd)
    }

    /// The layer added last, and those that follow, are not compressed.
    pub(crate) fn plain(self) -> Self {
        self.pack(Packing::Plain)
    }

    fn pack(mut self, packing: Packing) -> Self {
        self.packing = packing;
        if let Some(Layer::Tar(_, old)) = self.layers.last_mut() {
            *old = packing;
        }
        self
    }

    /// Docker's media types instead of OCI's.
    pub(crate) fn docker(mut self) -> Self {
        self.docker = true;
        self
    }

    /// The name it goes by in `index.json` and in archives.
    pub(crate) fn tag(mut self, name: &str) -> Self {
        self.tag = Some(name.to_owned());
        self
    }

    /// Of the configuration and of the index's entry.
    pub(crate) fn platform(mut self, os: &str, architecture: &str, variant: Option<&str>) -> Self {
        self.platform = (os.into(), architecture.into(), variant.map(str::to_owned));
        self
    }

    /// Edit the configuration: `c["config"]["Env"] = json!([...])`. Several edits happen in order.
    pub(crate) fn config(mut self, edit: impl Fn(&mut Value) + 'static) -> Self {
        self.config.push(std::rc::Rc::new(edit));
        self
    }

    /// Edit the manifest.
    pub(crate) fn manifest(mut self, edit: impl Fn(&mut Value) + 'static) -> Self {
        self.manifest.push(std::rc::Rc::new(edit));
        self
    }

    /// The bytes of everything.
    pub(crate) fn build(&self) -> Built {
        let mut blobs = BTreeMap::new();
        let mut put = |bytes: Vec<u8>| -> (String, usize) {
            let (digest, size) = (sha256(&bytes), bytes.len());
            blobs.insert(digest.clone(), bytes);
            (digest, size)
        };
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        let mut tars = Vec::new();
        for layer in &self.layers {
            let (media_type, blob, diff_id) = match layer {
                Layer::Given(media_type, blob, diff_id) => {
                    (media_type.clone(), blob.clone(), diff_id.clone())
                }
                Layer::Tar(tar, packing) => {
                    let blob = match packing {
                        Packing::Plain => tar.clone(),
                        Packing::Gzip => gzip(tar),
                        Packing::Zstd => zstd(tar),
                    };
                    (self.layer_type(*packing), blob, sha256(tar))
                }
            };
            tars.push(match layer {
                Layer::Tar(tar, _) => tar.clone(),
                Layer::Given(_, blob, _) => blob.clone(),
            });
            let (digest, size) = put(blob);
            layers.push(json!({ "mediaType": media_type, "digest": digest, "size": size }));
            diff_ids.push(diff_id);
        }
        let mut config = json!({
            "os": self.platform.0,
            "architecture": self.platform.1,
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        if let Some(variant) = &self.platform.2 {
            config["variant"] = json!(variant);
        }
        for edit in &self.config {
            edit(&mut config);
        }
        let (config_digest, config_size) = put(config.to_string().into_bytes());
        let kind = |oci: &str, docker: &str| json!(if self.docker { docker } else { oci });
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind(OCI_MANIFEST, DOCKER_MANIFEST),
            "config": {
                "mediaType": kind(
                    "application/vnd.oci.image.config.v1+json",
                    "application/vnd.docker.container.image.v1+json",
                ),
                "digest": config_digest,
                "size": config_size,
            },
            "layers": layers,
        });
        for edit in &self.manifest {
            edit(&mut manifest);
        }
        let (digest, size) = put(manifest.to_string().into_bytes());
        let mut platform = json!({ "os": self.platform.0, "architecture": self.platform.1 });
        if let Some(variant) = &self.platform.2 {
            platform["variant"] = json!(variant);
        }
        let strings = |of: &Value| -> Vec<String> {
            let layers = of.as_array().into_iter().flatten();
            layers
                .filter_map(|layer| layer["digest"].as_str().map(str::to_owned))
                .collect()
        };
        Built {
            tag: self.tag.clone(),
            digest: digest.clone(),
            config_digest,
            layers: strings(&manifest["layers"]),
            chain_ids: chain_ids(&diff_ids),
            diff_ids,
            tars,
            descriptor: json!({
                "mediaType": kind(OCI_MANIFEST, DOCKER_MANIFEST),
                "digest": digest,
                "size": size,
                "platform": platform,
            }),
            blobs,
        }
    }

    fn layer_type(&self, packing: Packing) -> String {
        match (self.docker, packing) {
            (false, Packing::Plain) => "application/vnd.oci.image.layer.v1.tar",
            (false, Packing::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Packing::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (true, Packing::Plain) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, Packing::Gzip) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (true, Packing::Zstd) => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
        .to_owned()
    }

    /// Build it, and add it to the OCI layout in `dir`, which is made where it is not there.
    pub(crate) fn write_layout(&self, dir: impl AsRef<Path>) -> Built {
        let built = self.build();
        built.write_layout(dir);
        built
    }

    /// Build it, and write it as an OCI layout in a tar file.
    pub(crate) fn write_oci_archive(&self, file: impl AsRef<Path>) -> Built {
        let built = self.build();
        built.write_oci_archive(file);
        built
    }

    /// Build it, and write it as `docker save` did before Docker 25: see [`Built::write_docker_archive`].
    pub(crate) fn write_docker_archive(&self, file: impl AsRef<Path>) -> Built {
        let built = self.build();
        built.write_docker_archive(file);
        built
    }

    /// Build it, and write it as `docker save` does since Docker 25: see [`Built::write_docker_archive_new`].
    pub(crate) fn write_docker_archive_new(&self, file: impl AsRef<Path>) -> Built {
        let built = self.build();
        built.write_docker_archive_new(file);
        built
    }
}

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// The ChainIDs of these DiffIDs, base first (image-spec config.md).
pub(crate) fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::new();
    for diff_id in diff_ids {
        let next = match chain.last() {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        chain.push(next);
    }
    chain
}

/// An image, or an index of several, with all its bytes.
#[derive(Clone)]
pub(crate) struct Built {
    pub(crate) tag: Option<String>,
    /// Of the manifest or index.
    pub(crate) digest: String,
    /// Of the configuration; empty for an index.
    pub(crate) config_digest: String,
    /// Digests of the layer blobs as the manifest names them, base first.
    pub(crate) layers: Vec<String>,
    pub(crate) diff_ids: Vec<String>,
    pub(crate) chain_ids: Vec<String>,
    /// The uncompressed layers, base first.
    pub(crate) tars: Vec<Vec<u8>>,
    /// As it stands in an index, without annotations.
    pub(crate) descriptor: Value,
    /// Everything by digest. A test may remove or spoil a blob before it writes.
    pub(crate) blobs: BTreeMap<String, Vec<u8>>,
}

impl Built {
    /// An index of these, each with its platform, under one name.
    pub(crate) fn index(tag: &str, images: &[Self]) -> Self {
        let mut blobs = BTreeMap::new();
        for image in images {
            blobs.extend(image.blobs.clone());
        }
        let manifests: Vec<_> = images.iter().map(|image| &image.descriptor).collect();
        let bytes = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests })
            .to_string()
            .into_bytes();
        let (digest, size) = (sha256(&bytes), bytes.len());
        blobs.insert(digest.clone(), bytes);
        Self {
            tag: Some(tag.to_owned()),
            digest: digest.clone(),
            config_digest: String::new(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
            chain_ids: Vec::new(),
            tars: Vec::new(),
            descriptor: json!({ "mediaType": OCI_INDEX, "digest": digest, "size": size }),
            blobs,
        }
    }

    /// The entry of `index.json`: the descriptor with the name as its annotation.
    pub(crate) fn named_descriptor(&self) -> Value {
        let mut descriptor = self.descriptor.clone();
        if let Some(tag) = &self.tag {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        descriptor
    }

    /// Add it to the OCI layout in `dir`, which is made where it is not there.
    pub(crate) fn write_layout(&self, dir: impl AsRef<Path>) {
        let dir = dir.as_ref();
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("layout");
        fs::write(dir.join("oci-layout"), LAYOUT).expect("layout");
        for (digest, bytes) in &self.blobs {
            fs::write(blobs.join(hex(digest)), bytes).expect("blob");
        }
        let path = dir.join("index.json");
        let mut index: Value = fs::read(&path).ok().map_or_else(empty_index, |text| {
            serde_json::from_slice(&text).expect("index.json")
        });
        index["manifests"]
            .as_array_mut()
            .expect("manifests")
            .push(self.named_descriptor());
        fs::write(path, index.to_string()).expect("index.json");
    }

    /// Write it as an OCI layout in a tar file.
    pub(crate) fn write_oci_archive(&self, file: impl AsRef<Path>) {
        fs::write(file, self.oci_archive()).expect("archive");
    }

    /// An OCI layout as a tar stream.
    pub(crate) fn oci_archive(&self) -> Vec<u8> {
        let mut tar = LayerBuilder::new();
        self.put_layout(&mut tar);
        tar.finish()
    }

    /// Write it as `docker save` did before Docker 25: `manifest.json`, `repositories`, a directory for each layer with its
    /// uncompressed `layer.tar`, which is a symlink where the same layer came before.
    pub(crate) fn write_docker_archive(&self, file: impl AsRef<Path>) {
        let mut tar = LayerBuilder::new();
        let mut paths: Vec<String> = Vec::new();
        for (n, layer) in self.tars.iter().enumerate() {
            let dir = hex(&sha256(format!("{} {n}", self.chain_ids[n]).as_bytes())).to_owned();
            let path = format!("{dir}/layer.tar");
            tar.dir(format!("{dir}/"), 0o755);
            tar.file(format!("{dir}/VERSION"), "1.0", 0o644);
            tar.file(
                format!("{dir}/json"),
                json!({ "id": dir }).to_string(),
                0o644,
            );
            match self.diff_ids[..n]
                .iter()
                .position(|id| *id == self.diff_ids[n])
            {
                Some(same) => tar.symlink(&path, format!("../{}", paths[same])),
                None => tar.file(&path, layer, 0o644),
            };
            paths.push(path);
        }
        let config = format!("{}.json", hex(&self.config_digest));
        tar.file(&config, &self.blobs[&self.config_digest], 0o644);
        self.put_docker_manifest(&mut tar, &config, &paths);
        if let Some((name, tag)) = self.tag.as_deref().and_then(|t| t.rsplit_once(':')) {
            let last = paths.last().and_then(|path| path.split('/').next());
            let repositories = json!({ name: { tag: last } });
            tar.file("repositories", repositories.to_string(), 0o644);
        }
        fs::write(file, tar.finish()).expect("archive");
    }

    /// Write it as `docker save` does since Docker 25: an OCI layout, and beside it a `manifest.json` that names its blobs.
    pub(crate) fn write_docker_archive_new(&self, file: impl AsRef<Path>) {
        let mut tar = LayerBuilder::new();
        self.put_layout(&mut tar);
        let blob = |digest: &str| format!("blobs/sha256/{}", hex(digest));
        let layers: Vec<_> = self.layers.iter().map(|digest| blob(digest)).collect();
        self.put_docker_manifest(&mut tar, &blob(&self.config_digest), &layers);
        fs::write(file, tar.finish()).expect("archive");
    }

    fn put_layout(&self, tar: &mut LayerBuilder) {
        tar.dir("blobs/", 0o755).dir("blobs/sha256/", 0o755);
        for (digest, bytes) in &self.blobs {
            tar.file(format!("blobs/sha256/{}", hex(digest)), bytes, 0o644);
        }
        let mut index = empty_index();
        index["manifests"] = json!([self.named_descriptor()]);
        tar.file("index.json", index.to_string(), 0o644);
        tar.file("oci-layout", LAYOUT, 0o644);
    }

    fn put_docker_manifest(&self, tar: &mut LayerBuilder, config: &str, layers: &[String]) {
        let tags: Vec<_> = self.tag.iter().collect();
        let manifest = json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]);
        tar.file("manifest.json", manifest.to_string(), 0o644);
    }
}

/// The content of `oci-layout`.
pub(crate) const LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

fn empty_index() -> Value {
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
}
