//! `state`: one container as JSON. The shape is shared with `list`.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::{Count, Global, Verb, only_id, owner_name, print};
use crate::container::{Container, state::Status};

#[derive(Debug, clap::Args)]
pub(super) struct State {
    #[arg(value_name = "container-id", hide = true)]
    arguments: Vec<String>,
}

impl Verb for State {
    const NAME: &'static str = "state";
    const ABOUT: &'static str = "output the state of a container";
    const USAGE: &'static str = "<container-id>";
    const ARGUMENTS: Count = Count::Exactly(1);

    fn run(self, global: &Global) -> Result<u8> {
        let container = Container::open(&global.root, &only_id(&self.arguments)?)?;
        let text = serde_json::to_string_pretty(&View::new(&container)).context("write state")?;
        print(&text)
    }
}

/// What is shown of a container, in runc's order of keys.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct View<'a> {
    oci_version: &'a str,
    pub(super) id: &'a str,
    pub(super) pid: i32,
    pub(super) status: &'static str,
    pub(super) bundle: &'a Path,
    rootfs: &'a Path,
    pub(super) created: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
    pub(super) owner: String,
}

impl<'a> View<'a> {
    pub(super) fn new(container: &'a Container) -> Self {
        let record = container.record();
        let status = container.status();
        Self {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: match status {
                Status::Stopped => 0,
                _ => record.init_process_pid,
            },
            status: status.as_str(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: &record.created,
            annotations: &record.annotations,
            owner: owner_name(record.owner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stand_in_runcs_order_and_empty_annotations_are_left_out() {
        let mut annotations = BTreeMap::new();
        let view = |annotations: &BTreeMap<String, String>| {
            let view = View {
                oci_version: "1.3.0",
                id: "web",
                pid: 7,
                status: "running",
                bundle: Path::new("/b"),
                rootfs: Path::new("/b/rootfs"),
                created: "2026-01-02T03:04:05.000000006Z",
                annotations,
                owner: "root".into(),
            };
            serde_json::to_string_pretty(&view).unwrap()
        };
        assert_eq!(
            view(&annotations),
            "{\n  \"ociVersion\": \"1.3.0\",\n  \"id\": \"web\",\n  \"pid\": 7,\n  \"status\": \"running\",\n  \"bundle\": \"/b\",\n  \
             \"rootfs\": \"/b/rootfs\",\n  \"created\": \"2026-01-02T03:04:05.000000006Z\",\n  \"owner\": \"root\"\n}"
        );
        annotations.insert("k".into(), "v".into());
        assert!(
            view(&annotations).contains("\"annotations\": {\n    \"k\": \"v\"\n  },\n  \"owner\"")
        );
    }
}
