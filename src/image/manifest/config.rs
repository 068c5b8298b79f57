//! The configuration of an image (config.md): what is used of it, and where it meets the manifest.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::json::{self, nullable};
use super::{Manifest, Platform};
use crate::image::digest::Digest;

/// An image's configuration (config.md), as far as it is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) platform: Platform,
    pub(crate) author: Option<String>,
    pub(crate) created: Option<String>,
    /// How a container of it is run.
    pub(crate) execution: Execution,
    /// `rootfs.diff_ids`: the digests of the uncompressed layers, base first.
    pub(crate) diff_ids: Vec<Digest>,
}

/// `config` in the configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Execution {
    pub(crate) user: String,
    pub(crate) env: Vec<String>,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) cmd: Vec<String>,
    pub(crate) working_dir: String,
    pub(crate) volumes: Vec<String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) exposed_ports: Vec<String>,
    pub(crate) stop_signal: Option<String>,
}

impl Config {
    /// Read a configuration. Any member may be `null`; unknown ones, `Healthcheck` and `ArgsEscaped` among them, are
    /// passed over. `rootfs.type` has to be `layers` (config.md, "rootfs").
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self> {
        let file: File = json::read(bytes).context("image configuration")?;
        let Some(rootfs) = file.rootfs else {
            bail!("image configuration: no rootfs");
        };
        if rootfs.kind != "layers" {
            bail!(
                "image configuration: rootfs.type is {:?} and has to be \"layers\"",
                rootfs.kind
            );
        }
        let run = file.config.unwrap_or_default();
        Ok(Self {
            platform: Platform {
                os: file.os,
                architecture: file.architecture,
                variant: file.variant,
                os_version: file.os_version,
                os_features: file.os_features,
            },
            author: file.author,
            created: file.created,
            execution: Execution {
                user: run.user,
                env: run.env,
                entrypoint: run.entrypoint,
                cmd: run.cmd,
                working_dir: run.working_dir,
                volumes: run.volumes.into_keys().collect(),
                labels: run.labels,
                exposed_ports: run.exposed_ports.into_keys().collect(),
                stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
            },
            diff_ids: rootfs.diff_ids,
        })
    }

    /// The manifest has to list one layer for each DiffID: which tree a layer makes is known by its place only.
    pub(crate) fn fits(&self, manifest: &Manifest) -> Result<()> {
        let (layers, diff_ids) = (manifest.layers.len(), self.diff_ids.len());
        if layers != diff_ids {
            bail!(
                "the manifest lists {layers} layers, its configuration {} has {diff_ids} DiffIDs",
                manifest.config.digest
            );
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default, deserialize_with = "nullable")]
    os: String,
    #[serde(default, deserialize_with = "nullable")]
    architecture: String,
    variant: Option<String>,
    #[serde(rename = "os.version")]
    os_version: Option<String>,
    #[serde(rename = "os.features", default, deserialize_with = "nullable")]
    os_features: Vec<String>,
    author: Option<String>,
    created: Option<String>,
    config: Option<Run>,
    rootfs: Option<Rootfs>,
}

#[derive(Deserialize)]
struct Rootfs {
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    kind: String,
    #[serde(default, deserialize_with = "nullable")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Run {
    #[serde(deserialize_with = "nullable")]
    user: String,
    #[serde(deserialize_with = "nullable")]
    env: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    working_dir: String,
    #[serde(deserialize_with = "nullable")]
    volumes: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    exposed_ports: BTreeMap<String, IgnoredAny>,
    stop_signal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn every_member_that_is_used_is_read() {
        let text = format!(
            r#"{{"created":"2026-01-02T03:04:05Z","author":"A <a@b>","architecture":"arm","os":"linux","variant":"v7",
            "os.version":"1.2","os.features":["x"],
            "config":{{"User":"1:2","Env":["A=b","C"],"Entrypoint":["/e"],"Cmd":["c"],"WorkingDir":"/w",
              "Volumes":{{"/v":{{}},"/u":{{}}}},"Labels":{{"k":"v"}},"ExposedPorts":{{"80/tcp":{{}},"53":null}},
              "StopSignal":"SIGRTMIN+3","Healthcheck":{{"Test":["NONE"]}},"ArgsEscaped":true}},
            "rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}},"history":[{{"created_by":"x","empty_layer":true}}]}}"#
        );
        let config = Config::parse(text.as_bytes()).unwrap();
        assert_eq!(
            config.platform.to_string(),
            "linux/arm/v7 (1.2) with x",
            "{config:?}"
        );
        assert_eq!(config.author.as_deref(), Some("A <a@b>"));
        assert_eq!(config.created.as_deref(), Some("2026-01-02T03:04:05Z"));
        let run = &config.execution;
        assert_eq!(run.user, "1:2");
        assert_eq!(run.env, ["A=b", "C"]);
        assert_eq!(
            (run.entrypoint.as_slice(), run.cmd.as_slice()),
            (&["/e".to_owned()][..], &["c".to_owned()][..])
        );
        assert_eq!(run.working_dir, "/w");
        assert_eq!(run.volumes, ["/u", "/v"]);
        assert_eq!(run.labels["k"], "v");
        assert_eq!(run.exposed_ports, ["53", "80/tcp"]);
        assert_eq!(run.stop_signal.as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(config.diff_ids, [DIGEST.parse().unwrap()]);
    }

    #[test]
    fn l_52_a_null_stands_for_nothing() {
        let nothing = Config::parse(br#"{"rootfs":{"type":"layers","diff_ids":[]}}"#).unwrap();
        for text in [
            r#"{"config":null,"os":null,"architecture":null,"variant":null,"author":null,"created":null,
                "os.features":null,"history":null,"rootfs":{"type":"layers","diff_ids":null}}"#,
            r#"{"config":{"User":null,"Env":null,"Entrypoint":null,"Cmd":null,"WorkingDir":null,"Volumes":null,
                "Labels":null,"ExposedPorts":null,"StopSignal":null,"OnBuild":null,"Healthcheck":null},
                "rootfs":{"type":"layers"}}"#,
        ] {
            assert_eq!(Config::parse(text.as_bytes()).unwrap(), nothing);
        }
    }

    #[test]
    fn l_38_a_root_file_system_that_is_not_made_of_layers_is_refused() {
        for (text, words) in [
            (r#"{"rootfs":{"type":"layers+base"}}"#, "\"layers+base\""),
            (r#"{"rootfs":{}}"#, "rootfs.type"),
            (r#"{}"#, "no rootfs"),
            (r#"{"rootfs":null}"#, "no rootfs"),
            (
                r#"{"rootfs":{"type":"layers","diff_ids":["sha256:../../x"]}}"#,
                "sha256:../../x",
            ),
            (
                r#"{"config":{"Env":"A=b"},"rootfs":{"type":"layers"}}"#,
                "Env",
            ),
            (
                r#"{"os":"a","os":"b","rootfs":{"type":"layers"}}"#,
                "\"os\" occurs twice",
            ),
        ] {
            let error = format!("{:#}", Config::parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
