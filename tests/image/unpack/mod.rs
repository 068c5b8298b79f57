//! Layers to trees: every rule of the image specification, seen from outside.
//!
//! Most tests unpack an image twice, flat and as layers that are then mounted by overlayfs, and both must show one tree.

mod archives;
mod entries;
mod overlay;
mod peers;
mod verb;
mod whiteouts;

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::support::{
    Built, Entry, ImageBuilder, LayerBuilder, Outcome, Store, assert_same_tree, hex, tree,
};

/// Import `image` as `a:1` and unpack it flat into `out` beside the store.
fn unpack(store: &Store, image: ImageBuilder) -> (Built, Outcome) {
    let built = image.tag("a:1").build();
    store.import(&built);
    let out = store.beside("out");
    let done = store.run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()]);
    (built, done)
}

/// The tree of `image`, flat.
#[track_caller]
pub(crate) fn flat(image: ImageBuilder) -> Vec<Entry> {
    let store = Store::new();
    unpack(&store, image).1.ok();
    tree(store.beside("out"))
}

/// The tree of `image`: flat, and the same when overlayfs puts its layers together. After `requires!(root)`.
#[track_caller]
fn both(image: ImageBuilder) -> Vec<Entry> {
    let store = Store::new();
    let (built, done) = unpack(&store, image);
    done.ok();
    let flat = tree(store.beside("out"));
    store.ok(["unpack", "a:1", "--layers"]);
    let mounted = mount_layers(&store, &built);
    let merged = tree(&mounted);
    umount2(&mounted, MntFlags::MNT_DETACH).expect("unmount");
    assert_same_tree(&flat, &merged);
    flat
}

/// Where the layers of `image` are, base first.
fn layer_paths(store: &Store, image: &Built) -> Vec<PathBuf> {
    let path = |chain: &String| store.path("layers").join(hex(chain));
    image.chain_ids.iter().map(path).collect()
}

/// The layers of `image` put together by overlayfs.
fn mount_layers(store: &Store, image: &Built) -> PathBuf {
    let (empty, merged) = (store.beside("empty"), store.beside("merged"));
    fs::create_dir_all(&empty).expect("directory");
    fs::create_dir_all(&merged).expect("directory");
    let mut lower = String::new();
    for layer in layer_paths(store, image).iter().rev() {
        lower.push_str(&format!("{}:", layer.display()));
    }
    // A single layer needs a second one to be mounted without an upper.
    let options = format!("lowerdir={lower}{}", empty.display());
    let kind = Some("overlay");
    mount(kind, &merged, kind, MsFlags::MS_RDONLY, Some(&*options)).expect("mount overlay");
    merged
}

/// Expect that `image` is refused with these words by import or unpack, and that nothing of it is left.
#[track_caller]
pub(crate) fn refused(image: ImageBuilder, words: &str) {
    let store = Store::new();
    let file = store.beside("image.tar");
    image.tag("a:1").write_oci_archive(&file);
    // What is known of the content alone is refused at the door.
    let done = store.run(["import".as_ref(), file.as_os_str()]);
    if done.code != 0 {
        return done.fails_with(words);
    }
    let out = store.beside("out");
    store
        .run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
        .fails_with(words);
    assert_no_trace(&store);
}

/// Expect that no directory was made beside the store and nothing is unfinished.
#[track_caller]
pub(crate) fn assert_no_trace(store: &Store) {
    assert!(!store.beside("out").exists());
    let left: Vec<_> = fs::read_dir(store.beside(""))
        .expect("list")
        .map(|entry| entry.expect("entry").file_name())
        .filter(|name| name.to_string_lossy().starts_with(".pelagos"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    store.assert_nothing_left();
}

/// An image of these layers.
fn image<const N: usize>(layers: [fn(&mut LayerBuilder); N]) -> ImageBuilder {
    layers
        .into_iter()
        .fold(ImageBuilder::new(), |image, fill| image.layer(fill))
}

fn is_there(tree: &[Entry], path: &str) -> bool {
    tree.iter().any(|entry| entry.path == Path::new(path))
}

/// The paths of a tree without its root.
fn paths(tree: &[Entry]) -> Vec<&str> {
    tree.iter()
        .filter_map(|entry| entry.path.to_str())
        .filter(|path| *path != ".")
        .collect()
}
