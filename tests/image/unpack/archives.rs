//! The archive and its wrapping: headers of every writer, compression, digests, and what is malformed.

use std::collections::BTreeMap;
use std::path::Path;

use tar::{EntryType, Header};

use crate::support::{LayerBuilder, Store, at, gzip, sha256, zstd};

use super::{ImageBuilder, flat, image, is_there, paths, refused, unpack};

const OCI: &str = "application/vnd.oci.image.layer.";
const DOCKER: &str = "application/vnd.docker.image.rootfs.";

fn one_file() -> Vec<u8> {
    let mut layer = LayerBuilder::new();
    layer.file("x", "content", 0o644);
    layer.finish()
}

fn of_tar(tar: Vec<u8>) -> ImageBuilder {
    ImageBuilder::new().tar_layer(tar)
}

/// GNU's header: its magic, and no prefix.
fn gnu(kind: u8, name: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::new(kind));
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size);
    header
}

// L-24
#[test]
fn long_names_and_large_numbers_of_every_format_are_read() {
    requires!(root);
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(200));
    let gnu_long = format!("{}/{}", "g".repeat(150), "h".repeat(200));
    let link = "l".repeat(300);
    let prefixed = format!("{}/file", "p".repeat(120));
    let tree = flat(ImageBuilder::new().layer(|l| {
        l.owner(3_000_000_000, 4_000_000_000)
            .file(&long, "pax", 0o644);
        l.owner(0, 0).symlink("pax-link", &link);
        let terminated = format!("{gnu_long}\0").into_bytes();
        l.raw_entry(
            gnu(b'L', "././@LongLink", terminated.len() as u64),
            &terminated,
        );
        l.raw_entry(gnu(b'0', "short", 3), b"gnu");
        l.raw_entry(
            gnu(b'K', "././@LongLink", link.len() as u64),
            link.as_bytes(),
        );
        l.raw_entry(gnu(b'2', "gnu-link", 0), b"");
        let mut header = gnu(b'0', "base-256", 0);
        header.as_mut_bytes()[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xb2, 0xd0, 0x5e, 0]);
        header.as_mut_bytes()[136..148].fill(0xff);
        l.raw_entry(header, b"");
        let mut header = Header::new_ustar();
        header.set_path(&prefixed).expect("path");
        header.set_mode(0o600);
        header.set_size(0);
        l.raw_entry(header, b"");
    }));
    let entry = at(&tree, &long);
    assert_eq!((entry.uid, entry.gid), (3_000_000_000, 4_000_000_000));
    assert_eq!(at(&tree, &gnu_long).sha256, Some(sha256(b"gnu")));
    for path in ["pax-link", "gnu-link"] {
        assert_eq!(
            at(&tree, path).target.as_deref(),
            Some(Path::new(&link)),
            "{path}"
        );
    }
    assert_eq!(at(&tree, "base-256").uid, 3_000_000_000);
    assert_eq!(at(&tree, "base-256").mtime_ns, -1_000_000_000);
    assert_eq!(at(&tree, &prefixed).mode, 0o600);
}

// L-24
#[test]
fn a_global_header_is_ignored_and_numbers_win_over_names() {
    requires!(root);
    let tree = flat(ImageBuilder::new().layer(|l| {
        l.pax_global(&BTreeMap::from([
            ("uid", "77"),
            ("path", "other"),
            ("comment", "x"),
        ]));
        l.pax("uname", "nobody").pax("gname", "nogroup");
        l.owner(5, 6).file("x", "x", 0o644);
    }));
    assert_eq!(paths(&tree), ["x"]);
    assert_eq!((at(&tree, "x").uid, at(&tree, "x").gid), (5, 6));
}

/// The data of the sparse files below: 1 at 0 and 2 at 8192, in a file of 20000 bytes.
fn sparse_data() -> Vec<u8> {
    [[1u8; 512], [2u8; 512]].concat()
}

// L-24
#[test]
fn sparse_files_of_every_form_are_read() {
    requires!(root);
    let data = sparse_data();
    let tree = flat(ImageBuilder::new().layer(|l| {
        let mut header = gnu(b'S', "old-gnu", 1024);
        let fields = header.as_mut_bytes();
        for (at, (offset, length)) in [(0, 512), (8192, 512), (20_000, 0)].iter().enumerate() {
            let slot = 386 + 24 * at;
            let text = format!("{offset:011o}\0{length:011o}\0");
            fields[slot..slot + 24].copy_from_slice(text.as_bytes());
        }
        fields[483..495].copy_from_slice(format!("{:011o}\0", 20_000).as_bytes());
        l.raw_entry(header, &data);

        l.pax("GNU.sparse.size", "20000")
            .pax("GNU.sparse.numblocks", "2");
        l.pax("GNU.sparse.offset", "0")
            .pax("GNU.sparse.numbytes", "512");
        l.pax("GNU.sparse.offset", "8192")
            .pax("GNU.sparse.numbytes", "512");
        l.file("pax-0.0", &data, 0o644);

        l.pax("GNU.sparse.size", "20000")
            .pax("GNU.sparse.numblocks", "2");
        l.pax("GNU.sparse.map", "0,512,8192,512")
            .pax("GNU.sparse.name", "pax-0.1");
        l.file("GNUSparseFile.0/pax-0.1", &data, 0o644);

        l.pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
        l.pax("GNU.sparse.name", "pax-1.0")
            .pax("GNU.sparse.realsize", "20000");
        let mut map = b"2\n0\n512\n8192\n512\n".to_vec();
        map.resize(512, 0);
        map.extend_from_slice(&data);
        l.file("GNUSparseFile.0/pax-1.0", &map, 0o644);
        l.file("after", "x", 0o644);
    }));
    let mut content = vec![0; 20_000];
    content[..512].fill(1);
    content[8192..8192 + 512].fill(2);
    for path in ["old-gnu", "pax-0.0", "pax-0.1", "pax-1.0"] {
        let file = at(&tree, path);
        assert_eq!(
            (file.size, &file.sha256),
            (20_000, &Some(sha256(&content))),
            "{path}"
        );
    }
    assert_eq!(paths(&tree).len(), 5);
}

// L-24: old GNU has room for four pieces in the header, and then blocks of 21.
#[test]
fn a_sparse_file_of_many_pieces_goes_on_in_extension_blocks() {
    requires!(root);
    let pieces = 60usize;
    let slot = |at: usize| format!("{:011o}\0{:011o}\0", at * 4096, 512);
    let tree = flat(ImageBuilder::new().layer(|l| {
        let mut header = gnu(b'S', "many", pieces as u64 * 512);
        let fields = header.as_mut_bytes();
        for at in 0..4 {
            fields[386 + 24 * at..][..24].copy_from_slice(slot(at).as_bytes());
        }
        fields[482] = 1;
        fields[483..495].copy_from_slice(format!("{:011o}\0", pieces * 4096).as_bytes());
        header.set_cksum();
        l.raw_bytes(header.as_bytes());
        for first in (4..pieces).step_by(21) {
            let last = (first + 21).min(pieces);
            let mut block = (first..last).map(slot).collect::<String>().into_bytes();
            block.resize(512, 0);
            block[504] = u8::from(last < pieces);
            l.raw_bytes(&block);
        }
        l.raw_bytes(&vec![7; pieces * 512])
            .file("after", "x", 0o644);
    }));
    assert_eq!(at(&tree, "many").size, pieces as u64 * 4096);
    assert!(is_there(&tree, "after"));
}

// L-24, S-6
#[test]
fn a_sparse_file_that_lies_is_refused() {
    let lie = |map: &str, size: &str| {
        let (map, size) = (map.to_owned(), size.to_owned());
        ImageBuilder::new().layer(move |l| {
            l.pax("GNU.sparse.size", size).pax("GNU.sparse.map", map);
            l.file("sparse", sparse_data(), 0o644);
        })
    };
    for (map, size) in [
        ("0,512,8192,512", "8000"),
        ("8192,512,0,512", "20000"),
        ("0,512,100,512", "20000"),
        ("0,512", "20000"),
        ("0,512,8192,512,9000", "20000"),
        ("0,512,18446744073709551615,512", "18446744073709551615"),
        ("0,1024", "x"),
        ("0,-1,5,1025", "20000"),
    ] {
        refused(lie(map, size), "");
    }
    // 8 EiB of nothing.
    refused(lie("0,1024", "9223372036854775807"), "--max-size");
}

// L-25, S-7, CVE-2025-62518
#[test]
fn the_size_of_a_pax_header_decides_where_the_next_entry_is() {
    requires!(root);
    let mut inner = LayerBuilder::new();
    inner.file("smuggled", "x", 0o644);
    let inner = inner.finish();
    let tree = flat(ImageBuilder::new().layer(|l| {
        let mut header = Header::new_ustar();
        header.set_path("outer").expect("path");
        header.set_mode(0o644);
        header.set_size(0);
        l.pax("size", inner.len().to_string())
            .raw_entry(header, &inner);
        l.file("after", "x", 0o644);
    }));
    assert_eq!(paths(&tree), ["after", "outer"]);
    assert_eq!(at(&tree, "outer").sha256, Some(sha256(&inner)));
}

// S-7
#[test]
fn malformed_headers_are_refused() {
    for (key, value) in [
        ("path", "a\0b"),
        ("size", "-1"),
        ("size", "1x"),
        ("uid", "-1"),
        ("uid", "4294967295"),
        ("gid", "99999999999"),
        ("mtime", "soon"),
    ] {
        let odd = ImageBuilder::new().layer(|l| {
            l.pax(key, value).file("x", "", 0o644);
        });
        refused(odd, "pax record");
    }
    let mut broken = one_file();
    broken[20] ^= 1;
    refused(of_tar(broken), "checksum");
    for text in [
        "99 path=x\n",
        "path=x\n",
        "9 path=x",
        "8 path=x\n",
        "0 \n",
        "\0\0",
    ] {
        let mut layer = LayerBuilder::new();
        let mut header = gnu(b'x', "pax", text.len() as u64);
        header.set_mtime(0);
        layer
            .raw_entry(header, text.as_bytes())
            .file("x", "", 0o644);
        refused(of_tar(layer.finish()), "malformed pax record");
    }
    // Negative in base-256.
    let mut header = gnu(b'0', "x", 0);
    header.as_mut_bytes()[124..136].fill(0xff);
    let mut layer = LayerBuilder::new();
    layer.raw_entry(header, b"");
    refused(of_tar(layer.finish()), "size");
}

// S-6
#[test]
fn a_header_that_is_larger_than_any_name_is_refused() {
    for kind in *b"xgLK" {
        let mut layer = LayerBuilder::new();
        layer
            .raw_entry(gnu(kind, "large", 4 << 30), b"")
            .file("x", "", 0o644);
        refused(
            of_tar(layer.finish()),
            "an extended header of 4294967296 bytes",
        );
    }
    let deep = ImageBuilder::new().layer(|l| {
        l.file("d/".repeat(600) + "x", "", 0o644);
    });
    refused(deep, "deeper than");
    let long = ImageBuilder::new().layer(|l| {
        l.file(format!("{}/", "d".repeat(200)).repeat(30) + "x", "", 0o644);
    });
    refused(long, "longer than");
}

// L-26
#[test]
fn what_follows_the_end_of_the_archive_counts_for_the_digest_only() {
    requires!(root);
    let mut layer = LayerBuilder::new();
    layer.file("x", "x", 0o644).end();
    layer.raw_bytes(&[0; 10_240]).file("after", "x", 0o644);
    let tar = layer.finish();
    assert_eq!(paths(&flat(of_tar(tar.clone()))), ["x"]);

    let given = |kind: &str, blob: Vec<u8>| {
        ImageBuilder::new().given_layer(&format!("{OCI}v1.tar+{kind}"), blob, &sha256(&tar))
    };
    let (first, second) = tar.split_at(700);
    let members = [gzip(first), gzip(second), vec![0; 700]].concat();
    assert_eq!(paths(&flat(given("gzip", members.clone()))), ["x"]);
    let store = Store::new();
    let (_, done) = unpack(
        &store,
        given("gzip", [members, b"rubbish".to_vec()].concat()),
    );
    done.ok().warns("bytes after the end of a gzip stream");
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let frames = [zstd(first), zstd(second), skippable].concat();
    assert_eq!(paths(&flat(given("zstd", frames))), ["x"]);
}

// L-26
#[test]
fn an_archive_may_end_without_its_end() {
    requires!(root);
    let mut layer = LayerBuilder::new();
    layer.file("x", "content", 0o644).without_end();
    let whole = layer.finish();
    let mut one_block = whole.clone();
    one_block.resize(whole.len() + 512, 0);
    // Without the padding of the last file.
    let bare = whole[..512 + 7].to_vec();
    for tar in [whole, one_block, bare] {
        assert_eq!(paths(&flat(of_tar(tar))), ["x"]);
    }
}

// L-27
#[test]
fn an_empty_layer_is_accepted() {
    requires!(root);
    for tar in [vec![], vec![0; 1024], vec![0; 10_240]] {
        assert_eq!(paths(&flat(of_tar(tar.clone()))), [""; 0]);
        assert_eq!(paths(&flat(of_tar(tar).plain())), [""; 0]);
    }
}

#[test]
fn an_archive_that_stops_short_is_refused() {
    let mut layer = LayerBuilder::new();
    layer.file("a", "x", 0o644).file("x", vec![1; 5000], 0o644);
    let tar = layer.finish();
    for length in [1, 511, 1024 + 5, 1536 + 100, 1536 + 4999] {
        refused(of_tar(tar[..length].to_vec()), "the archive ends within");
    }
    let given = |kind: &str, blob: Vec<u8>| {
        ImageBuilder::new().given_layer(&format!("{OCI}v1.tar+{kind}"), blob, &sha256(&tar))
    };
    let zipped = gzip(&tar);
    refused(
        given("gzip", zipped[..zipped.len() - 9].to_vec()),
        "decompress",
    );
    let mut spoilt = zipped;
    let last = spoilt.len() - 6;
    spoilt[last] ^= 1;
    refused(given("gzip", spoilt), "decompress");
    let framed = zstd(&tar);
    refused(
        given("zstd", framed[..framed.len() - 3].to_vec()),
        "decompress",
    );
}

// L-31
#[test]
fn every_media_type_of_a_layer_is_unpacked_and_mislabelled_ones_are_said() {
    requires!(root);
    let tar = one_file();
    let diff_id = sha256(&tar);
    let of = |kind: &str| match kind {
        "gzip" => gzip(&tar),
        "zstd" => zstd(&tar),
        _ => tar.clone(),
    };
    for (prefix, name, content, mislabelled) in [
        (OCI, "v1.tar", "tar", false),
        (OCI, "v1.tar+gzip", "gzip", false),
        (OCI, "v1.tar+zstd", "zstd", false),
        (OCI, "nondistributable.v1.tar", "tar", false),
        (OCI, "nondistributable.v1.tar+gzip", "gzip", false),
        (OCI, "nondistributable.v1.tar+zstd", "zstd", false),
        (DOCKER, "diff.tar", "tar", false),
        (DOCKER, "diff.tar.gzip", "gzip", false),
        (DOCKER, "diff.tar.zstd", "zstd", false),
        (DOCKER, "foreign.diff.tar", "tar", false),
        (DOCKER, "foreign.diff.tar.gzip", "gzip", false),
        (OCI, "v1.tar+gzip", "zstd", true),
        (OCI, "v1.tar+gzip", "tar", true),
        (OCI, "v1.tar+zstd", "gzip", true),
        (DOCKER, "diff.tar", "gzip", true),
        (DOCKER, "diff.tar.gzip", "tar", true),
    ] {
        let store = Store::new();
        let media_type = format!("{prefix}{name}");
        let image = ImageBuilder::new().given_layer(&media_type, of(content), &diff_id);
        let done = unpack(&store, image).1.ok();
        let said = done.stderr.contains(&media_type);
        assert_eq!(said, mislabelled, "{media_type}: {done}");
        assert!(store.beside("out/x").exists(), "{media_type}");
    }
    // Plain OCI tar is taken at its word.
    let literal = format!("{OCI}v1.tar");
    refused(
        ImageBuilder::new().given_layer(&literal, gzip(&tar), &diff_id),
        "",
    );
}

// L-33
#[test]
fn a_layer_of_an_unknown_type_is_refused() {
    for media_type in [
        "application/octet-stream",
        "application/vnd.oci.image.layer.v1.tar+xz",
    ] {
        let tar = one_file();
        let odd = ImageBuilder::new().given_layer(media_type, tar.clone(), &sha256(&tar));
        refused(odd, media_type);
    }
}

// L-37
#[test]
fn content_that_is_not_what_the_configuration_says_is_refused() {
    let tar = one_file();
    let gz = format!("{OCI}v1.tar+gzip");
    for lie in [sha256(b"other"), sha256(&gzip(&tar))] {
        let image = ImageBuilder::new().given_layer(&gz, gzip(&tar), &lie);
        refused(image, &format!("its configuration says {lie}"));
    }
}

// L-37: what import has let in may have been damaged since.
#[test]
fn a_blob_that_became_another_is_refused_and_nothing_is_left() {
    requires!(root);
    let store = Store::new();
    let built = image([|l| {
        l.file("x", "content", 0o644);
    }])
    .tag("a:1")
    .build();
    store.import(&built);
    let mut other = LayerBuilder::new();
    other.file("x", "content", 0o4755);
    std::fs::write(store.blob(&built.layers[0]), gzip(&other.finish())).expect("damage it");
    let out = store.beside("out");
    let words = format!("its configuration says {}", built.diff_ids[0]);
    store
        .run(["unpack".as_ref(), "a:1".as_ref(), out.as_os_str()])
        .fails_with(&words);
    store.run(["unpack", "a:1", "--layers"]).fails_with(&words);
    super::assert_no_trace(&store);
    assert_eq!(store.names("layers"), [""; 0]);
}

// S-6: a few bytes of zstd that ask for a window of 2 GiB.
#[test]
fn a_window_that_no_layer_needs_is_refused() {
    // The magic, a descriptor without single segment, the window 2^(10+21), an empty last block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
    let zstd = format!("{OCI}v1.tar+zstd");
    let bomb = ImageBuilder::new().given_layer(&zstd, frame.to_vec(), &sha256(b""));
    refused(bomb, "decompress");
}

// L-24: a directory of the time before there was a type for it.
#[test]
fn a_name_with_a_slash_at_its_end_is_a_directory_in_the_oldest_format() {
    requires!(root);
    let tree = flat(image([|l| {
        let mut header = Header::new_old();
        header.set_path("old/").expect("path");
        header.as_mut_bytes()[156] = 0;
        header.set_mode(0o750);
        header.set_size(0);
        l.raw_entry(header, b"");
    }]));
    assert_eq!(
        (at(&tree, "old").kind, at(&tree, "old").mode),
        ("dir", 0o750)
    );
}
