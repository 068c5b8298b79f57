//! Whiteouts: what a layer takes away from those below.

use crate::support::at;

use super::{ImageBuilder, both, image, is_there, paths, refused};

// L-9
#[test]
fn a_whiteout_removes_from_lower_layers_and_a_missing_target_is_fine() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/file", "x", 0o644)
                .file("d/kept", "x", 0o644);
            l.dir("tree", 0o755)
                .dir("tree/a", 0o755)
                .file("tree/a/b", "x", 0o644);
            l.symlink("link", "d").file("keep", "x", 0o644);
        },
        |l| {
            l.whiteout("d/file").whiteout("tree").whiteout("link");
            l.whiteout("none")
                .whiteout("no/such/dir")
                .whiteout("keep/below");
        },
    ]));
    assert_eq!(paths(&tree), ["d", "d/kept", "keep"]);
}

// L-9: its type does not matter.
#[test]
fn a_whiteout_of_another_type_is_a_whiteout() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.file("a", "x", 0o644)
                .file("b", "x", 0o644)
                .file("c", "x", 0o644);
        },
        |l| {
            l.dir(".wh.a", 0o755)
                .symlink(".wh.b", "x")
                .file(".wh.c", "content", 0o644);
        },
    ]));
    assert_eq!(paths(&tree), [""; 0]);
}

// L-8
#[test]
fn what_the_same_layer_brings_is_never_hidden_whatever_the_order() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/old", "x", 0o644)
                .dir("d/sub", 0o755);
            l.file("d/sub/old", "x", 0o644)
                .file("f", "x", 0o644)
                .file("g", "x", 0o644);
            l.dir("implied", 0o700).file("implied/old", "x", 0o644);
        },
        |l| {
            l.file("d/new", "y", 0o644)
                .dir("d/sub", 0o711)
                .whiteout("d");
            l.whiteout("f").file("f", "y", 0o600);
            l.file("g", "y", 0o600).whiteout("g");
            l.file("implied/new", "y", 0o600).whiteout("implied");
        },
    ]));
    assert_eq!(
        paths(&tree),
        ["d", "d/new", "d/sub", "f", "g", "implied", "implied/new"]
    );
    for path in ["f", "g"] {
        assert_eq!(at(&tree, path).mode, 0o600, "{path}");
    }
}

// L-12
#[test]
fn an_opaque_mark_hides_all_lower_siblings_wherever_it_stands() {
    requires!(root);
    let base = |l: &mut crate::support::LayerBuilder| {
        l.mtime(10)
            .dir("d", 0o755)
            .file("d/a", "x", 0o644)
            .dir("d/sub", 0o755);
        l.file("d/sub/deep", "x", 0o644).file("beside", "x", 0o644);
    };
    let first: fn(&mut crate::support::LayerBuilder) = |l| {
        l.opaque("d")
            .file("d/new", "y", 0o644)
            .dir("d/sub", 0o700)
            .file("d/sub/new", "y", 0o644);
    };
    let last: fn(&mut crate::support::LayerBuilder) = |l| {
        l.file("d/new", "y", 0o644)
            .dir("d/sub", 0o700)
            .file("d/sub/new", "y", 0o644)
            .opaque("d");
    };
    for upper in [first, last] {
        let tree = both(ImageBuilder::new().layer(base).layer(upper));
        assert_eq!(paths(&tree), ["beside", "d", "d/new", "d/sub", "d/sub/new"]);
        assert_eq!(at(&tree, "d").mtime_ns, 10_000_000_000);
    }
}

// L-12
#[test]
fn an_opaque_root_hides_everything() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/a", "x", 0o644)
                .file("f", "x", 0o644);
        },
        |l| {
            l.file("g", "x", 0o644);
        },
        |l| {
            l.file("d/b", "y", 0o644).opaque("").file("h", "y", 0o644);
        },
    ]));
    assert_eq!(paths(&tree), ["d", "d/b", "h"]);
}

// A directory of a lower layer that a whiteout hid is not seen through a new one.
#[test]
fn a_directory_after_a_whiteout_begins_empty() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o700)
                .file("d/old", "x", 0o644)
                .dir("e", 0o700)
                .file("e/old", "x", 0o644);
        },
        |l| {
            l.whiteout("d").dir("d", 0o755).file("d/new", "x", 0o644);
            l.whiteout("e").file("e/new", "x", 0o644);
        },
        |l| {
            l.file("d/third", "x", 0o644)
                .whiteout("d/new")
                .whiteout("d/old");
        },
    ]));
    assert_eq!(paths(&tree), ["d", "d/third", "e", "e/new"]);
    assert_eq!((at(&tree, "d").mode, at(&tree, "e").mode), (0o755, 0o755));
}

// One path under two names: what counts is the file.
#[test]
fn a_whiteout_through_a_link_spares_what_the_layer_wrote() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("usr", 0o755)
                .dir("usr/lib", 0o755)
                .symlink("lib", "usr/lib");
            l.file("usr/lib/old", "x", 0o644)
                .file("usr/lib/gone", "x", 0o644);
        },
        |l| {
            l.file("usr/lib/new", "x", 0o644)
                .whiteout("lib/new")
                .whiteout("lib/gone");
            l.file("lib/other", "x", 0o644).opaque("usr/lib");
        },
    ]));
    assert_eq!(
        paths(&tree),
        ["lib", "usr", "usr/lib", "usr/lib/new", "usr/lib/other"]
    );
}

#[test]
fn what_a_third_layer_brings_back_is_there() {
    requires!(root);
    let tree = both(image([
        |l| {
            l.dir("d", 0o755)
                .file("d/a", "1", 0o644)
                .file("b", "1", 0o644);
        },
        |l| {
            l.whiteout("d/a").whiteout("b").file("keep", "x", 0o644);
        },
        |l| {
            l.file("d/a", "3", 0o600).file("b", "3", 0o600);
        },
    ]));
    assert_eq!(paths(&tree), ["b", "d", "d/a", "keep"]);
    assert_eq!(at(&tree, "d/a").mode, 0o600);
}

// L-10, L-11
#[test]
fn whiteouts_of_nothing_and_of_dots_are_refused() {
    for name in [
        ".wh.", "d/.wh.", ".wh..", ".wh...", "d/.wh..", "d/.wh...", ".wh./x", ".wh.a/x",
    ] {
        let odd = ImageBuilder::new()
            .layer(|l| {
                l.dir("d", 0o755).file("d/x", "x", 0o644);
            })
            .layer(|l| {
                l.file(name, "", 0o644);
            });
        refused(odd, "a whiteout");
    }
}

// L-13
#[test]
fn what_aufs_left_is_ignored_and_said() {
    requires!(root);
    let store = crate::support::Store::new();
    let left = image([|l| {
        l.dir(".wh..wh.plnk", 0o755)
            .file(".wh..wh.plnk/1.2", "x", 0o644);
        l.file(".wh..wh.aufs", "", 0o644).file("x", "", 0o644);
    }]);
    let (_, done) = super::unpack(&store, left);
    done.ok().warns("a name of AUFS is left out");
    let tree = crate::support::tree(store.beside("out"));
    assert!(is_there(&tree, "x"));
    assert_eq!(paths(&tree), ["x"]);
}
