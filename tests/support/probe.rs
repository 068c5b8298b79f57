//! The probe: a script that a container runs, and what it says about where it is.

use std::collections::BTreeMap;

/// For `sh -c`: no file descriptor of its own, and it reads the shell's own entries in `/proc`. Each part begins with
/// a line `== name`.
pub(crate) const SCRIPT: &str = r#"
part() { echo "== $1"; }
part status; cat /proc/$$/status
part fds; for f in /proc/$$/fd/*; do echo "${f##*/} $(readlink "$f")"; done
part environ; tr '\0' '\n' < /proc/$$/environ
part cwd; readlink /proc/$$/cwd
part mounts; cat /proc/$$/mountinfo
part namespaces; for n in /proc/$$/ns/*; do echo "${n##*/} $(readlink "$n")"; done
part limits; cat /proc/$$/limits
part uts; cat /proc/sys/kernel/hostname /proc/sys/kernel/domainname
part cgroup; cat /proc/$$/cgroup
part oom; cat /proc/$$/oom_score_adj
part uid_map; cat /proc/$$/uid_map
part gid_map; cat /proc/$$/gid_map
part processes; ps -o pid,args | tail -n +2 | wc -l
part interfaces; cat /proc/$$/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '
part tty; tty
part end
"#;

/// What the probe saw.
pub(crate) struct Probe {
    parts: BTreeMap<String, Vec<String>>,
}

/// A line of the mount table.
pub(crate) struct Mount {
    pub(crate) root: String,
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
    /// Propagation: `shared:N`, `master:N`.
    pub(crate) peers: Vec<String>,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) super_options: Vec<String>,
}

impl Mount {
    /// Whether this is among the mount's own options (`ro`, `nosuid`, …).
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }
}

impl Probe {
    /// Read what [`SCRIPT`] printed.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Self {
        let mut parts = BTreeMap::<String, Vec<String>>::new();
        let mut at = None;
        for line in text.lines() {
            match line.strip_prefix("== ") {
                Some(name) => at = Some(parts.entry(name.to_owned()).or_default()),
                None => at.as_mut().expect("a part").push(line.to_owned()),
            }
        }
        assert!(
            parts.contains_key("end"),
            "the probe did not reach its end:\n{text}"
        );
        Self { parts }
    }

    /// The lines of one part of the script.
    #[track_caller]
    pub(crate) fn part(&self, name: &str) -> &[String] {
        self.parts
            .get(name)
            .unwrap_or_else(|| panic!("the probe has no part {name}"))
    }

    /// A field of `/proc/PID/status`: `Uid`, `CapEff`, `NoNewPrivs`, `Seccomp`, `Groups`, `Umask`, `SigBlk`.
    #[track_caller]
    pub(crate) fn status(&self, field: &str) -> &str {
        self.part("status")
            .iter()
            .find_map(|l| l.split_once(':').filter(|(name, _)| *name == field))
            .unwrap_or_else(|| panic!("no {field} in status"))
            .1
            .trim()
    }

    /// A capability set (`CapEff`, `CapBnd`, …) as bits.
    #[track_caller]
    pub(crate) fn capabilities(&self, set: &str) -> u64 {
        u64::from_str_radix(self.status(set), 16).expect("a set in hex")
    }

    /// The open file descriptors and what they are.
    pub(crate) fn fds(&self) -> BTreeMap<u32, String> {
        let pair = |l: &String| {
            l.split_once(' ')
                .and_then(|(n, to)| Some((n.parse().ok()?, to.to_owned())))
        };
        self.part("fds").iter().filter_map(pair).collect()
    }

    /// The environment, as it stood at exec.
    pub(crate) fn environ(&self) -> &[String] {
        self.part("environ")
    }

    /// The value of an environment variable.
    pub(crate) fn env(&self, name: &str) -> Option<&str> {
        self.environ()
            .iter()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix('='))
    }

    pub(crate) fn cwd(&self) -> &str {
        &self.part("cwd")[0]
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.part("uts")[0]
    }

    pub(crate) fn domainname(&self) -> &str {
        &self.part("uts")[1]
    }

    /// The namespace of this name in `/proc/PID/ns`: `pid:[4026531836]`.
    #[track_caller]
    pub(crate) fn namespace(&self, name: &str) -> &str {
        self.part("namespaces")
            .iter()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '))
            .unwrap_or_else(|| panic!("no namespace {name}"))
    }

    /// Soft and hard limit, by the name in `/proc/PID/limits`: `Max open files`.
    #[track_caller]
    pub(crate) fn limit(&self, name: &str) -> (String, String) {
        let line = self
            .part("limits")
            .iter()
            .find_map(|l| l.strip_prefix(name));
        let mut words = line
            .unwrap_or_else(|| panic!("no limit {name}"))
            .split_whitespace()
            .map(str::to_owned);
        (words.next().expect("soft"), words.next().expect("hard"))
    }

    /// The mount table, in order.
    pub(crate) fn mounts(&self) -> Vec<Mount> {
        let commas = |s: &str| s.split(',').map(str::to_owned).collect();
        let parse = |line: &String| {
            let (front, back) = line.split_once(" - ")?;
            let front: Vec<_> = front.split(' ').collect();
            let back: Vec<_> = back.split(' ').collect();
            Some(Mount {
                root: front[3].to_owned(),
                target: front[4].to_owned(),
                options: commas(front[5]),
                peers: front[6..]
                    .iter()
                    .map(|&s| s.to_owned())
                    .filter(|s| !s.is_empty())
                    .collect(),
                kind: back[0].to_owned(),
                source: back[1].to_owned(),
                super_options: commas(back[2]),
            })
        };
        self.part("mounts").iter().filter_map(parse).collect()
    }

    /// The mount that is seen at this path: the last one in the table.
    #[track_caller]
    pub(crate) fn mount(&self, target: &str) -> Mount {
        self.mounts()
            .into_iter()
            .rfind(|m| m.target == target)
            .unwrap_or_else(|| panic!("no mount at {target}"))
    }
}
