//! The decision table for namespaces: which are made by the clone, which are unshared later by the child, which are
//! joined, and whether a second fork is needed.

use std::path::PathBuf;

use oci_spec::runtime::{LinuxNamespace, LinuxNamespaceType as Kind};

use crate::sys::process::CloneFlags;

/// What becomes of one kind of namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The container shares the caller's.
    Inherited,
    New,
    /// An existing one, by path.
    Joined,
}

/// An existing namespace to enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
}

/// Where the second fork stands. A process enters a pid namespace by being born in it, so joining one takes a fork more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SecondFork {
    Never,
    /// Right after the joined user namespace, which is to own the new pid namespace.
    AfterJoining,
    /// After pivot_root.
    // crun 1.31: a process that is in the container's pid namespace already must not have the host's tree any more.
    AfterPivot,
}

/// The namespaces of a container, as instructions for the parent's clone and for the child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Namespaces {
    /// Made by clone3 itself.
    pub(crate) clone: CloneFlags,
    /// Entered by the child by path, in this order.
    pub(crate) joins: Vec<Join>,
    /// The pid namespace to join, at the second fork.
    pub(crate) pid: Option<PathBuf>,
    /// Unshared by the child once its ids are mapped, so that the new user namespace owns them.
    pub(crate) unshare: CloneFlags,
    /// A new user namespace that the child makes itself once it has joined the others: they belong to the caller's, over
    /// which the new one has no rights.
    pub(crate) user_after_joins: bool,
    /// A new time namespace: unshared and entered by the child, since its offsets freeze at entry.
    pub(crate) new_time: bool,
    pub(crate) second_fork: SecondFork,
    /// Those of a running container that a process more enters, all by its init.
    pub(crate) entered: Vec<Kind>,
    origins: Vec<(Kind, Origin)>,
}

fn flag(kind: Kind) -> CloneFlags {
    u64::from(kind as u32)
}

/// The order of joining: the user namespace first, for it gives the rights over the others; the mount namespace last,
/// for the paths of the others were opened before; a pid namespace has its own moment.
const JOIN_ORDER: [Kind; 7] = [
    Kind::User,
    Kind::Ipc,
    Kind::Uts,
    Kind::Network,
    Kind::Cgroup,
    Kind::Time,
    Kind::Mount,
];

impl Namespaces {
    pub(crate) fn new(wanted: &[LinuxNamespace]) -> Self {
        let find = |kind| wanted.iter().find(|namespace| namespace.typ() == kind);
        let origin = |kind| match find(kind) {
            None => Origin::Inherited,
            Some(namespace) if namespace.path().is_some() => Origin::Joined,
            Some(_) => Origin::New,
        };
        let new = |kinds: &[Kind]| {
            kinds
                .iter()
                .filter(|kind| origin(**kind) == Origin::New)
                .fold(0, |flags, kind| flags | flag(*kind))
        };
        let without_user = [
            Kind::Mount,
            Kind::Network,
            Kind::Ipc,
            Kind::Uts,
            Kind::Cgroup,
        ];
        // KERNEL: all in one clone would leave the namespaces to a user namespace without a mapped root, and mqueue's
        // root directory would belong to uid 65534. The pid namespace has to be in the clone: it starts with a child.
        let joins_others = wanted.iter().any(|other| other.path().is_some());
        let user_after_joins = origin(Kind::User) == Origin::New && joins_others;
        let (clone, unshare) = match origin(Kind::User) {
            _ if user_after_joins => (0, new(&without_user) | new(&[Kind::Pid])),
            Origin::Inherited => (new(&without_user) | new(&[Kind::Pid]), 0),
            Origin::New => (new(&[Kind::User, Kind::Pid]), new(&without_user)),
            Origin::Joined => (0, new(&without_user) | new(&[Kind::Pid])),
        };
        let second_fork = match (origin(Kind::Pid), origin(Kind::User)) {
            (Origin::Joined, _) => SecondFork::AfterPivot,
            (Origin::New, Origin::Joined) => SecondFork::AfterJoining,
            (Origin::New, Origin::New) if user_after_joins => SecondFork::AfterJoining,
            _ => SecondFork::Never,
        };
        let path = |kind| find(kind).and_then(|namespace| namespace.path().clone());
        let joins = JOIN_ORDER
            .into_iter()
            .filter_map(|kind| {
                Some(Join {
                    kind,
                    path: path(kind)?,
                })
            })
            .collect();
        let kinds = JOIN_ORDER.into_iter().chain([Kind::Pid]);
        Self {
            clone,
            joins,
            pid: path(Kind::Pid),
            unshare,
            user_after_joins,
            new_time: origin(Kind::Time) == Origin::New,
            second_fork,
            entered: Vec::new(),
            origins: kinds.map(|kind| (kind, origin(kind))).collect(),
        }
    }

    /// For a process more in a running container, whose init has these in a different shape than the caller.
    pub(crate) fn of_container(differing: &[Kind]) -> Self {
        let mut namespaces = Self::new(&[]);
        namespaces.entered = differing.to_vec();
        namespaces.origins = differing
            .iter()
            .map(|kind| (*kind, Origin::Joined))
            .collect();
        if differing.contains(&Kind::Pid) {
            namespaces.second_fork = SecondFork::AfterJoining;
        }
        namespaces
    }

    pub(crate) fn origin(&self, kind: Kind) -> Origin {
        self.origins
            .iter()
            .find(|(known, _)| *known == kind)
            .map_or(Origin::Inherited, |(_, origin)| *origin)
    }

    pub(crate) fn is_new(&self, kind: Kind) -> bool {
        self.origin(kind) == Origin::New
    }

    /// Whether the container has one of its own, new or joined.
    pub(crate) fn has(&self, kind: Kind) -> bool {
        self.origin(kind) != Origin::Inherited
    }
}

/// The name of a kind as config.json spells it.
pub(crate) fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Mount => "mount",
        Kind::Cgroup => "cgroup",
        Kind::Uts => "uts",
        Kind::Ipc => "ipc",
        Kind::User => "user",
        Kind::Pid => "pid",
        Kind::Network => "network",
        Kind::Time => "time",
    }
}

/// The flag that setns(2) and unshare(2) take for this kind.
pub(crate) fn clone_flag(kind: Kind) -> nix::sched::CloneFlags {
    nix::sched::CloneFlags::from_bits_retain((kind as u32).cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxNamespaceBuilder;

    /// "new KIND", "join KIND", separated by commas.
    fn entry(config: &str) -> Namespaces {
        let list: Vec<_> = config
            .split(", ")
            .map(|item| {
                let (how, kind) = item.split_once(' ').unwrap();
                let kind = JOIN_ORDER
                    .into_iter()
                    .chain([Kind::Pid])
                    .find(|k| name(*k) == kind)
                    .unwrap();
                let builder = LinuxNamespaceBuilder::default().typ(kind);
                if how == "join" {
                    builder.path("/proc/1/ns/x")
                } else {
                    builder
                }
                .build()
                .unwrap()
            })
            .collect();
        Namespaces::new(&list)
    }

    #[test]
    fn second_fork_only_where_a_pid_namespace_is_entered_late() {
        for (config, fork) in [
            (
                "new pid, new mount, new network, new ipc, new uts, new cgroup",
                SecondFork::Never,
            ),
            ("new user, new pid, new mount", SecondFork::Never),
            ("new user, new time", SecondFork::Never),
            ("join network", SecondFork::Never),
            ("join pid", SecondFork::AfterPivot),
            ("join pid, join user", SecondFork::AfterPivot),
            ("join user, new pid", SecondFork::AfterJoining),
            ("new user, new pid, join network", SecondFork::AfterJoining),
        ] {
            assert_eq!(entry(config).second_fork, fork, "{config}");
        }
    }

    #[test]
    fn a_new_user_namespace_is_cloned_with_the_pid_namespace_only() {
        let plan = entry("new pid, new user, new mount, new network");
        assert_eq!(plan.clone, flag(Kind::User) | flag(Kind::Pid));
        assert_eq!(plan.unshare, flag(Kind::Mount) | flag(Kind::Network));
    }

    #[test]
    fn without_a_user_namespace_one_clone_makes_all() {
        let plan = entry("new pid, new mount, new cgroup, join network");
        assert_eq!(
            plan.clone,
            flag(Kind::Pid) | flag(Kind::Mount) | flag(Kind::Cgroup)
        );
        assert_eq!(plan.unshare, 0);
    }

    #[test]
    fn the_user_namespace_is_joined_first_and_the_mount_namespace_last() {
        let plan = entry("join mount, join network, join user");
        let order: Vec<_> = plan.joins.iter().map(|join| name(join.kind)).collect();
        assert_eq!(order, ["user", "network", "mount"]);
    }

    #[test]
    fn a_time_namespace_is_never_in_the_clone() {
        let plan = entry("new time, new pid");
        assert!(plan.new_time);
        assert_eq!(plan.clone, flag(Kind::Pid));
    }
}
