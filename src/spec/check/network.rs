//! Network devices. config-linux.md, Network Devices.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::{LinuxNamespaceType, LinuxNetDevice};

use super::{Check, sorted};

fn devices<'a>(check: &Check<'a>) -> BTreeMap<&'a String, &'a LinuxNetDevice> {
    sorted(check.linux().and_then(|linux| linux.net_devices().as_ref()))
}

/// COMPAT: the words of both are runc's.
pub(super) fn net_devices_have_a_namespace(check: &mut Check<'_>) {
    if devices(check).is_empty() {
        return;
    }
    if !check.namespaces.has(LinuxNamespaceType::Network) {
        check.say(
            "linux.netDevices",
            "unable to move network devices without a NET namespace",
        );
    }
    if check.how.rootless {
        check.say(
            "linux.netDevices",
            "network devices are not supported for rootless containers",
        );
    }
}

pub(super) fn net_devices_have_names(check: &mut Check<'_>) {
    let mut inside = BTreeSet::new();
    for (name, device) in devices(check) {
        let new_name = device.name().as_deref().filter(|name| !name.is_empty());
        for name in [Some(name.as_str()), new_name].into_iter().flatten() {
            if !is_name(name) {
                check.say(
                    "linux.netDevices",
                    format!("invalid network device name {name:?}"),
                );
            }
        }
        let name = new_name.unwrap_or(name);
        if !name.contains('%') && !inside.insert(name) {
            check.say(
                "linux.netDevices",
                format!("two network devices are to be called {name:?}"),
            );
        }
    }
}

/// What the kernel takes for a device's name, or for a pattern of one with `%d` in it (net/core/dev.c).
fn is_name(name: &str) -> bool {
    // IFNAMSIZ, which counts the terminating NUL.
    let length = 1..=15;
    // The kernel's isspace, which knows the no-break space of Latin-1.
    let banned = |byte: u8| matches!(byte, 0 | b'/' | b':' | b' ' | b'\t'..=b'\r' | 0xa0);
    let (plain, number) = name.split_once('%').unwrap_or((name, "d"));
    length.contains(&name.len())
        && name != "."
        && name != ".."
        && !name.bytes().any(banned)
        && !plain.contains('%')
        && number.starts_with('d')
        && !number.contains('%')
}

#[cfg(test)]
mod tests {
    use super::is_name;

    #[test]
    fn a_name_is_one_that_the_kernel_takes() {
        for name in [
            "eth0",
            "a",
            "123456789012345",
            "eth%d",
            "%d",
            "...",
            "ä0",
            "a.1",
            "a-b_c@d",
        ] {
            assert!(is_name(name), "{name:?}");
        }
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "a:b",
            "a b",
            "a\tb",
            "à",
            "1234567890123456",
            "%",
            "%s",
            "%d%d",
            "%%d",
            "a\0",
        ] {
            assert!(!is_name(name), "{name:?}");
        }
    }
}
