//! What configurations written for crun say in annotations, `run.oci.*`, since the specification has no member for it.

use std::collections::HashMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sys::filter::{INSTRUCTION_SIZE, MAX_INSTRUCTIONS};
use crate::sys::path::names;

/// The annotations that are heeded; others are the container's own business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extensions {
    /// `keep_original_groups`: the payload keeps the caller's additional groups.
    pub(crate) keep_groups: bool,
    /// `seccomp_bpf_data`: the filter itself, `struct sock_filter` items in native byte order, in the profile's place.
    pub(crate) seccomp_program: Option<Vec<u8>>,
    /// `seccomp_fail_unknown_syscall`: a name that libseccomp does not know is an error, and not passed over.
    pub(crate) only_known_calls: bool,
    /// `pidfd_receiver`: a socket that gets the init's pidfd.
    pub(crate) pidfd_receiver: Option<PathBuf>,
    /// `systemd.subgroup`: with the systemd driver the payload begins in this cgroup below the scope's, which is the root
    /// that its cgroup namespace shows.
    pub(crate) subgroup: Option<PathBuf>,
    /// `delegate-cgroup`: a cgroup below that, into which it goes then.
    pub(crate) delegated: Option<PathBuf>,
    /// `mount_context_type`: the option by which a file system is told `linux.mountLabel`; else `context`.
    pub(crate) label_option: &'static CStr,
}

/// Where hooks write instead of into the message about their failure, stdout and stderr (`hooks.stdout`, `hooks.stderr`);
/// `named` looks an annotation up. Relative paths are below the bundle.
pub(crate) fn hook_output<'a>(
    named: impl Fn(&str) -> Option<&'a String>,
    bundle: &Path,
) -> [Option<PathBuf>; 2] {
    ["run.oci.hooks.stdout", "run.oci.hooks.stderr"]
        .map(|name| named(name).map(|path| bundle.join(path)))
}

fn value<'a>(annotations: Option<&'a HashMap<String, String>>, name: &str) -> Option<&'a str> {
    annotations?
        .get(&format!("run.oci.{name}"))
        .map(String::as_str)
}

impl Extensions {
    /// What the annotations of a configuration say.
    ///
    /// # Errors
    /// Names the annotation whose value cannot be.
    pub(crate) fn new(annotations: Option<&HashMap<String, String>>) -> Result<Self> {
        let named = |name| value(annotations, name);
        let is_on = |name| named(name).is_some_and(|value| value != "0");
        Ok(Self {
            keep_groups: is_on("keep_original_groups"),
            seccomp_program: named("seccomp_bpf_data")
                .map(|text| program(text).context("annotations.run.oci.seccomp_bpf_data"))
                .transpose()?,
            only_known_calls: is_on("seccomp_fail_unknown_syscall"),
            pidfd_receiver: named("pidfd_receiver").map(absolute).transpose()?,
            subgroup: below("systemd.subgroup", named("systemd.subgroup"))?,
            delegated: below("delegate-cgroup", named("delegate-cgroup"))?,
            label_option: label_option(named("mount_context_type").unwrap_or("context"))?,
        })
    }

    /// The cgroup below the container's own in which the payload begins, and the one it goes into before it starts;
    /// `systemd` tells whether its manager made the container's.
    pub(crate) fn below(&self, systemd: bool) -> [Option<PathBuf>; 2] {
        let first = self.subgroup.clone().filter(|_| systemd);
        let last = self.delegated.as_ref().map(|delegated| match &first {
            Some(first) => first.join(delegated),
            None => delegated.clone(),
        });
        [first, last]
    }
}

/// A path of cgroups; none where it is empty.
fn below(name: &str, text: Option<&str>) -> Result<Option<PathBuf>> {
    let text = text.unwrap_or_default();
    let path = names(Path::new(text)).with_context(|| {
        format!("annotations.run.oci.{name}: {text:?} leads out of the container's cgroup")
    })?;
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

fn absolute(path: &str) -> Result<PathBuf> {
    if !path.starts_with('/') {
        bail!("annotations.run.oci.pidfd_receiver: {path:?} is not an absolute path");
    }
    Ok(path.into())
}

fn label_option(word: &str) -> Result<&'static CStr> {
    Ok(match word {
        "context" => c"context",
        "fscontext" => c"fscontext",
        "defcontext" => c"defcontext",
        "rootcontext" => c"rootcontext",
        _ => bail!(
            "annotations.run.oci.mount_context_type: {word:?} is none of context, fscontext, defcontext and rootcontext"
        ),
    })
}

/// A program of whole instructions, in base64.
fn program(text: &str) -> Result<Vec<u8>> {
    let bpf = from_base64(text).context("not base64 (RFC 4648, section 4)")?;
    let count = bpf.len() / INSTRUCTION_SIZE;
    if !bpf.len().is_multiple_of(INSTRUCTION_SIZE) || !(1..=MAX_INSTRUCTIONS).contains(&count) {
        bail!(
            "{} bytes are no filter: an instruction has {INSTRUCTION_SIZE}, and the kernel takes 1 to {MAX_INSTRUCTIONS}",
            bpf.len()
        );
    }
    Ok(bpf)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    };
    let (groups, rest) = text.as_bytes().as_chunks::<4>();
    if !rest.is_empty() {
        return None;
    }
    let mut bytes = Vec::with_capacity(groups.len() * 3);
    for (nth, group) in groups.iter().enumerate() {
        let padding = match group {
            [_, _, b'=', b'='] => 2,
            [.., b'='] => 1,
            _ => 0,
        };
        if padding > 0 && nth + 1 < groups.len() {
            return None;
        }
        let digits = &group[..4 - padding];
        let bits = digits
            .iter()
            .try_fold(0, |bits, &byte| Some(bits << 6 | digit(byte)?))?;
        let group = (bits << (6 * padding)).to_be_bytes();
        bytes.extend(&group[1..4 - padding]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, value: &str) -> Result<Extensions> {
        let annotations = HashMap::from([(format!("run.oci.{name}"), value.to_owned())]);
        Extensions::new(Some(&annotations))
    }

    #[test]
    fn base64_is_read_to_the_byte() {
        for (text, wanted) in [
            ("", Some(&b""[..])),
            ("Zg==", Some(b"f")),
            ("Zm8=", Some(b"fo")),
            ("Zm9v", Some(b"foo")),
            ("Zm9vYmE=", Some(b"fooba")),
            ("+/8A", Some(b"\xfb\xff\x00")),
            ("Zg=", None),
            ("Zg==Zg==", None),
            ("Z===", None),
            ("Zm9 ", None),
            ("-_8A", None),
        ] {
            assert_eq!(from_base64(text).as_deref(), wanted, "{text}");
        }
    }

    #[test]
    fn a_program_has_whole_instructions() {
        // BPF_RET | BPF_K, SECCOMP_RET_ALLOW.
        let allow = read("seccomp_bpf_data", "BgAAAAAA/38=").unwrap();
        assert_eq!(
            allow.seccomp_program.unwrap(),
            [6, 0, 0, 0, 0, 0, 0xff, 0x7f]
        );
        for (text, words) in [
            ("", "0 bytes are no filter"),
            ("BgAA", "3 bytes are no filter"),
            ("?", "not base64"),
        ] {
            let error = format!("{:#}", read("seccomp_bpf_data", text).unwrap_err());
            assert!(
                error.starts_with("annotations.run.oci.seccomp_bpf_data: "),
                "{error}"
            );
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_zero_switches_off() {
        for (value, on) in [("1", true), ("", true), ("0", false)] {
            assert_eq!(read("keep_original_groups", value).unwrap().keep_groups, on);
            let strict = read("seccomp_fail_unknown_syscall", value).unwrap();
            assert_eq!(strict.only_known_calls, on);
        }
    }

    #[test]
    fn cgroups_below_are_paths_and_the_first_is_systemds() {
        let annotations = HashMap::from([
            (
                "run.oci.systemd.subgroup".to_owned(),
                "container".to_owned(),
            ),
            ("run.oci.delegate-cgroup".to_owned(), "/a/b".to_owned()),
        ]);
        let both = Extensions::new(Some(&annotations)).unwrap();
        let path = |text: &str| Some(PathBuf::from(text));
        assert_eq!(both.below(true), [path("container"), path("container/a/b")]);
        assert_eq!(both.below(false), [None, path("a/b")]);
        let none = read("systemd.subgroup", "").unwrap();
        assert_eq!(none.below(true), [None, None]);
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (name, value, words) in [
            (
                "pidfd_receiver",
                "x.sock",
                "\"x.sock\" is not an absolute path",
            ),
            (
                "delegate-cgroup",
                "a/../..",
                "\"a/../..\" leads out of the container's cgroup",
            ),
            (
                "systemd.subgroup",
                "..",
                "\"..\" leads out of the container's cgroup",
            ),
            (
                "mount_context_type",
                "label",
                "\"label\" is none of context",
            ),
        ] {
            let error = format!("{:#}", read(name, value).unwrap_err());
            assert_eq!(
                error.find(&format!("annotations.run.oci.{name}: ")),
                Some(0),
                "{error}"
            );
            assert!(error.contains(words), "{error}");
        }
    }
}
