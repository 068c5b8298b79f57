//! The commands that README.md shows, run as they stand there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::support::runtime::{Verb, runtime};
use crate::support::{Outcome, needs, own_state_root, program, scratch};

/// The heading under which the tour stands.
const HEADING: &str = "## Five minutes with images";

/// The lines of the first fenced block after the heading.
fn commands() -> Vec<String> {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("run by cargo, or as cargo would");
    let readme = fs::read_to_string(Path::new(&root).join("README.md")).unwrap();
    let section = readme
        .split_once(HEADING)
        .expect("the heading of the tour")
        .1;
    let block = section.split("```").nth(1).expect("the block of the tour");
    block
        .lines()
        // The first one names the language.
        .skip(1)
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// One line, by a shell as a person has it.
fn type_in(line: &str, dir: &Path) -> Outcome {
    let path = std::env::var("PATH").unwrap_or_default();
    Verb::new(["-c", line])
        .program("bash")
        .cwd(dir)
        .env("PATH", format!("{}/programs:{path}", dir.display()))
        .env("XDG_DATA_HOME", dir.join("data"))
        .limit(std::time::Duration::from_secs(60))
        .run()
        .into()
}

#[test]
fn every_command_of_the_tour_in_the_readme_does_what_it_says() {
    requires!(container);
    own_state_root();
    let dir = scratch();
    let store = if needs::is_root() {
        // Where the store is by default, in this thread's mounts alone.
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        let none = None::<&str>;
        mount(Some(&lib), "/var/lib", none, MsFlags::MS_BIND, none).unwrap();
        lib.join("pelagos")
    } else {
        dir.path().join("data/pelagos")
    };
    fs::create_dir(dir.path().join("programs")).unwrap();
    for (name, path) in [
        ("pelagos", runtime().path.clone()),
        ("pelagos-image", program()),
    ] {
        symlink(path, dir.path().join("programs").join(name)).unwrap();
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap());
    symlink(root.join("hack"), dir.path().join("hack")).unwrap();

    let commands = commands();
    let mut said = String::new();
    for line in &commands {
        said += &type_in(line, dir.path()).ok().stdout;
    }

    let verbs = [
        "import", "list", "inspect", "tag", "run", "volume", "unpack", "bundle", "export", "df",
        "rm", "untag", "prune", "fsck",
    ];
    for verb in verbs {
        let shown = commands.iter().any(|line| {
            line.starts_with(&format!("pelagos-image {verb} "))
                || *line == format!("pelagos-image {verb}")
        });
        assert!(shown, "{verb} is not in the tour");
    }
    assert!(said.contains("hello from busybox"), "{said}");
    // The tour ends with everything pruned. Its layer may be kept for another store, where the same one is mounted.
    for left in ["blobs/sha256", "records/bundles", "records/volumes"] {
        let count = fs::read_dir(store.join(left)).unwrap().count();
        assert_eq!(count, 0, "{left}: {said}");
    }
}
