//! The same images unpacked by others: umoci, and GNU tar for one layer. The trees must be the same, in paths, types, modes,
//! owners, times, attributes and link counts.

use std::path::Path;
use std::process::Command;

use crate::support::{LayerBuilder, Store, assert_same_tree, tree};

use super::{ImageBuilder, image};

#[track_caller]
fn succeeds(command: &mut Command) {
    let done = command.output().expect("start it");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{command:?}: {said}");
}

/// Everything that a layer may hold and others read as we do.
fn everything(l: &mut LayerBuilder) {
    l.mtime(1_000_000_000).owner(0, 0).dir("./", 0o755);
    l.dir("etc/", 0o755)
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644);
    l.owner(42, 43)
        .file("etc/shadow", "secret", 0o640)
        .owner(0, 0);
    l.dir("bin", 0o755)
        .file("bin/su", "program", 0o4755)
        .hardlink("bin/su2", "bin/su");
    l.file("bin/wall", "program", 0o2755)
        .symlink("bin/sh", "/bin/su");
    l.dir("tmp", 0o1777)
        .dir("var", 0o755)
        .owner(7, 8)
        .dir("var/spool", 0o2770);
    l.file("var/spool/job", vec![7; 300_000], 0o600).owner(0, 0);
    l.dir("dev", 0o755).char_device("dev/null", 0o666, 1, 3);
    l.block_device("dev/sda", 0o660, 8, 0)
        .fifo("dev/initctl", 0o600);
    l.pax("mtime", "1234567890.987654321")
        .file("fine", "x", 0o644);
    l.xattr("user.a", "b").file("attributes", "x", 0o644);
    l.xattr("user.dir", "c").dir("with-attributes", 0o711);
    l.mtime(0).file("epoch", "", 0o444);
    l.mtime(5)
        .file(format!("long/{}", "n".repeat(180)), "x", 0o644);
    l.dir("long", 0o755);
}

fn changes(l: &mut LayerBuilder) {
    l.mtime(1_100_000_000);
    l.whiteout("bin/wall")
        .whiteout("etc/none")
        .opaque("var")
        .file("var/new", "x", 0o644);
    l.dir("tmp", 0o755).file("dev", "now a file", 0o644);
    l.whiteout("with-attributes").dir("with-attributes", 0o700);
    l.file("etc/passwd", "changed", 0o600)
        .hardlink("etc/su", "/bin/su");
    l.symlink("lib", "usr/lib")
        .dir("usr", 0o755)
        .dir("usr/lib", 0o755);
}

fn more_changes(l: &mut LayerBuilder) {
    l.mtime(1_200_000_000)
        .whiteout("tmp")
        .dir("dev", 0o755)
        .file("dev/x", "x", 0o644);
    l.file("lib/through-the-link", "x", 0o644)
        .whiteout("etc/su");
}

#[test]
fn umoci_makes_the_same_tree() {
    requires!(root, command "umoci");
    for pack in [ImageBuilder::gzip, ImageBuilder::plain] {
        let store = Store::new();
        let layers = image([everything, changes, more_changes]);
        let built = pack(layers).tag("a").build();
        let layout = store.beside("layout");
        built.write_layout(&layout);
        let (ours, theirs) = (store.beside("ours"), store.beside("theirs"));
        store.ok(["import".as_ref(), layout.as_os_str()]);
        store.ok(["unpack".as_ref(), built.digest.as_ref(), ours.as_os_str()]);
        succeeds(
            Command::new("umoci")
                .args(["raw", "unpack", "--image"])
                .arg(format!("{}:a", layout.display()))
                .arg(&theirs),
        );
        let (ours, mut theirs) = (tree(&ours), tree(&theirs));
        // A later layer changes the time of umoci's root.
        theirs[0].mtime_ns = ours[0].mtime_ns;
        assert_same_tree(&ours, &theirs);
    }
}

#[test]
fn gnu_tar_makes_the_same_tree_of_one_layer() {
    requires!(root);
    let store = Store::new();
    let built = image([everything]).tag("a:1").build();
    store.import(&built);
    let (ours, theirs, archive) = (
        store.beside("ours"),
        store.beside("theirs"),
        store.beside("layer.tar"),
    );
    store.ok(["unpack".as_ref(), "a:1".as_ref(), ours.as_os_str()]);
    std::fs::write(&archive, &built.tars[0]).expect("layer");
    std::fs::create_dir(&theirs).expect("directory");
    extract(&archive, &theirs);
    assert_same_tree(&tree(&ours), &tree(&theirs));
}

// L-24: what GNU tar writes in each of its formats.
#[test]
fn what_gnu_tar_writes_is_read_in_each_of_its_formats() {
    requires!(root);
    let store = Store::new();
    let built = image([everything]).tag("a:1").build();
    store.import(&built);
    let source = store.beside("source");
    store.ok(["unpack".as_ref(), "a:1".as_ref(), source.as_os_str()]);
    let hole = std::fs::File::create(source.join("holes")).expect("file");
    hole.set_len(3 << 20).expect("hole");
    std::os::unix::fs::FileExt::write_all_at(&hole, &[5; 5000], 1 << 20).expect("write");
    for (format, options) in [
        ("pax", &["--xattrs", "--xattrs-include=*"][..]),
        ("posix-sparse-1.0", &["--sparse", "--sparse-version=1.0"]),
        ("posix-sparse-0.1", &["--sparse", "--sparse-version=0.1"]),
        ("posix-sparse-0.0", &["--sparse", "--sparse-version=0.0"]),
        ("gnu", &["--sparse"]),
    ] {
        let archive = store.beside("made.tar");
        let kind = if format == "gnu" { "gnu" } else { "pax" };
        succeeds(
            Command::new("tar")
                .arg(format!("--format={kind}"))
                .args(["--numeric-owner", "--sort=name", "-C"])
                .arg(&source)
                .args(options)
                .arg("-cf")
                .arg(&archive)
                .arg("."),
        );
        let tar = std::fs::read(&archive).expect("archive");
        let name = format!("{format}:1");
        store.import(&ImageBuilder::new().tar_layer(tar).tag(&name).build());
        let (ours, theirs) = (store.beside(format), store.beside(format!("{format}-tar")));
        store.ok(["unpack".as_ref(), name.as_ref(), ours.as_os_str()]);
        std::fs::create_dir(&theirs).expect("directory");
        extract(&archive, &theirs);
        assert_same_tree(&tree(&ours), &tree(&theirs));
    }
}

fn extract(archive: &Path, into: &Path) {
    succeeds(
        Command::new("tar")
            .args([
                "--numeric-owner",
                "-p",
                "--xattrs",
                "--xattrs-include=*",
                "-C",
            ])
            .arg(into)
            .arg("-xf")
            .arg(archive),
    );
}
