//! Layers in overlay form as they lie in the store.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::support::{Built, Entry, Store, at, tree};

use super::{ImageBuilder, image, is_there, layer_paths, paths};

/// The trees of the layers, base first.
#[track_caller]
fn layers(image: ImageBuilder) -> (Store, Built, Vec<Vec<Entry>>) {
    let store = Store::new();
    let built = image.tag("a:1").build();
    store.import(&built);
    let said = store.ok(["unpack", "a:1", "--layers"]).stdout;
    let expected = layer_paths(&store, &built);
    let printed: Vec<_> = said.lines().map(std::path::PathBuf::from).collect();
    assert_eq!(printed, expected);
    let trees = expected.iter().map(tree).collect();
    (store, built, trees)
}

fn is_opaque(entry: &Entry) -> bool {
    entry
        .xattrs
        .get("trusted.overlay.opaque")
        .map(Vec::as_slice)
        == Some(b"y")
}

// L-14
#[test]
fn whiteouts_are_devices_and_opaque_directories_are_marked() {
    requires!(root);
    let (_store, _, trees) = layers(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/x", "x", 0o644)
                .dir("e", 0o755)
                .file("f", "x", 0o644);
        },
        |l| {
            l.dir("d", 0o755)
                .opaque("d")
                .whiteout("d/x")
                .whiteout("f")
                .whiteout("none");
            l.file("e/new", "x", 0o644).whiteout("e");
        },
    ]));
    let upper = &trees[1];
    // Nothing is hidden in a directory that hides everything, and what was never there needs no whiteout.
    assert_eq!(paths(upper), ["d", "e", "e/new", "f"]);
    assert!(is_opaque(at(upper, "d")) && is_opaque(at(upper, "e")));
    let mark = at(upper, "f");
    assert_eq!((mark.kind, mark.rdev), ("char", Some((0, 0))));
    assert!(trees[0].iter().all(|entry| entry.xattrs.is_empty()));
}

// L-14
#[test]
fn a_mark_that_comes_later_takes_the_whiteouts_in_the_directory_away() {
    requires!(root);
    let (_store, _, trees) = layers(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/x", "x", 0o644)
                .dir("d/e", 0o755)
                .file("d/e/y", "x", 0o644);
        },
        |l| {
            l.whiteout("d/x").whiteout("d/e/y").opaque("d");
        },
    ]));
    assert_eq!(paths(&trees[1]), ["d"]);
}

// L-8, L-12: flat, they are gone
#[test]
fn what_was_copied_from_below_is_not_what_the_layer_has_and_goes_with_a_whiteout() {
    requires!(root);
    let (store, _, trees) = layers(image([
        |l| {
            l.file("d/x", "x", 0o644)
                .file("e/y/z", "z", 0o644)
                .file("f", "f", 0o644);
        },
        |l| {
            l.whiteout("d/x").whiteout("d");
            l.whiteout("e/y/z").opaque("e");
            l.hardlink("g", "f").whiteout("f");
        },
    ]));
    let upper = &trees[1];
    assert_eq!(paths(upper), ["d", "e", "f", "g"]);
    assert_eq!(at(upper, "d").rdev, Some((0, 0)));
    assert_eq!(at(upper, "f").rdev, Some((0, 0)));
    assert_eq!((at(upper, "g").kind, at(upper, "g").size), ("file", 1));
    assert!(is_opaque(at(upper, "e")));
    // The listing says the same.
    store.ok(["fsck"]);
}

// L-21: a file system makes times that it cannot keep fit
#[test]
fn fsck_finds_a_layer_sound_whose_times_no_file_system_keeps() {
    requires!(root);
    let (store, _, _) = layers(image([|l| {
        for (name, time) in [
            ("a", "-99999999999.5"),
            ("b", "99999999999"),
            ("c", "-0.25"),
        ] {
            l.pax("mtime", time).file(name, "x", 0o644);
        }
    }]));
    store.ok(["fsck"]);
}

// S-6
#[test]
fn a_link_to_a_lower_layers_sparse_file_copies_no_holes() {
    requires!(root);
    let (store, built, _) = layers(image([
        |l| {
            l.pax("GNU.sparse.major", "1")
                .pax("GNU.sparse.minor", "0")
                .pax("GNU.sparse.realsize", "8388608")
                .pax("GNU.sparse.name", "f")
                .file("GNUSparseFile.0/f", sparse_with_its_end(8_388_608), 0o644);
        },
        |l| {
            l.hardlink("g", "f");
        },
    ]));
    for layer in layer_paths(&store, &built) {
        let file = fs::metadata(layer.join("f")).expect("stat");
        assert_eq!(file.len(), 8_388_608);
        assert!(file.blocks() * 512 < 1 << 20, "{}", file.blocks());
    }
    store.ok(["fsck"]);
}

/// The map of a file whose last five bytes are all that it has, and they.
fn sparse_with_its_end(size: u64) -> Vec<u8> {
    let mut data = format!("1\n{}\n5\n", size - 5).into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(b"there");
    data
}

// L-17, S-10, B-23
#[test]
fn an_image_cannot_forge_a_mark_or_a_whiteout() {
    requires!(root);
    let (_store, _, trees) = layers(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/x", "x", 0o644)
                .file("f", "x", 0o644);
        },
        |l| {
            l.xattr("trusted.overlay.opaque", "y").dir("d", 0o755);
            l.xattr("trusted.overlay.redirect", "/etc").dir("e", 0o755);
            l.char_device("f", 0, 0, 0).fifo("p", 0o600);
        },
    ]));
    assert!(trees[1].iter().all(|entry| entry.xattrs.is_empty()));
    assert!(!is_there(&trees[1], "f"));
    assert_eq!(at(&trees[1], "p").kind, "fifo");
}

// L-6 for the root: overlayfs shows that of the uppermost layer.
#[test]
fn the_root_of_a_layer_without_one_is_that_of_the_layer_below() {
    requires!(root);
    let (_store, _, trees) = layers(image([
        |l| {
            l.owner(3, 4)
                .mtime(55)
                .xattr("user.x", "y")
                .dir("./", 0o1711);
        },
        |l| {
            l.file("x", "x", 0o644);
        },
    ]));
    let (below, above) = (at(&trees[0], "."), at(&trees[1], "."));
    assert_eq!((above.mode, above.uid, above.gid), (0o1711, 3, 4));
    assert_eq!(
        (above.mtime_ns, &above.xattrs),
        (below.mtime_ns, &below.xattrs)
    );
}

// B-18: the listing and the record lie beside.
#[test]
fn a_layer_holds_nothing_of_ours() {
    requires!(root);
    let (store, built, trees) = layers(image([|l| {
        l.file("x", "x", 0o644);
    }]));
    assert_eq!(paths(&trees[0]), ["x"]);
    let chain = crate::support::hex(&built.chain_ids[0]);
    let listing = fs::read_to_string(store.path(format!("records/layers/{chain}.list"))).unwrap();
    let line = listing
        .lines()
        .find(|line| line.ends_with("\tx"))
        .expect("a line for x");
    // The CRC-32 of "x".
    assert_eq!(
        line,
        "+\tf\t644\t0\t0\t1\t1600000000.000000000\t8cdc1683\tx"
    );
}

// L-15, B-17: an unprivileged user's layers have the same devices and marks in user.*.
#[test]
fn an_unprivileged_user_makes_the_same_layers() {
    requires!(root);
    let store = Store::unprivileged();
    let built = image([
        |l| {
            l.dir("d", 0o755)
                .file("d/x", "x", 0o644)
                .file("f", "x", 0o644);
        },
        |l| {
            l.opaque("d").whiteout("f").file("d/y", "x", 0o644);
            l.xattr("user.overlay.redirect", "/etc").dir("e", 0o755);
        },
    ])
    .tag("a:1")
    .build();
    store.import(&built);
    store.ok(["unpack", "a:1", "--layers"]);
    let upper = tree(&layer_paths(&store, &built)[1]);
    assert_eq!(at(&upper, "f").rdev, Some((0, 0)));
    let mark = at(&upper, "d").xattrs.get("user.overlay.opaque").cloned();
    assert_eq!(mark.as_deref(), Some(&b"y"[..]));
    let forged: Vec<_> = at(&upper, "e").xattrs.keys().collect();
    assert_eq!(forged, ["user.overlay.overlay.redirect"]);
}

// A layer that several images share is unpacked once.
#[test]
fn a_layer_that_is_there_is_not_unpacked_again() {
    requires!(root);
    let store = Store::new();
    let base = image([|l| {
        l.file("x", "x", 0o644);
    }]);
    let one = base.clone().tag("a:1").build();
    let two = base
        .layer(|l| {
            l.file("y", "y", 0o644);
        })
        .tag("b:1")
        .build();
    store.import(&one);
    store.import(&two);
    store.ok(["unpack", "a:1", "--layers"]);
    let before = inode(&layer_paths(&store, &one)[0]);
    store.ok(["unpack", "b:1", "--layers"]);
    assert_eq!(inode(&layer_paths(&store, &two)[0]), before);
    assert_eq!(store.names("layers").len(), 2);
    store.assert_nothing_left();
}

fn inode(path: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).expect("layer").ino()
}
