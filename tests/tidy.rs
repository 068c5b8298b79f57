//! The rules of the house that no compiler keeps: which room may know which, where `unsafe` stands, what a file begins
//! with, and that the pages which describe the tree describe this one. Plain text is searched, no code is run but the
//! binary itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which room may name which: a room is a folder or a file directly below `src`. What is not here is refused, and what
/// is here has to exist, so that the map in `src/README.md`, which repeats these lines, shows the house as it is.
const ARROWS: &[(&str, &[&str])] = &[
    // sys: a caller that ignores SIGCHLD would take the exit codes of hooks from us; `main` sets that right first.
    ("cli", &["container", "report", "spec", "sys"]),
    // handshake: a command that creates and starts says the word to start itself.
    // idmap: the fifos of the start protocol belong to the container's root as the host sees it.
    (
        "container",
        &[
            "cgroup",
            "criu",
            "handshake",
            "hooks",
            "idmap",
            "launch",
            "plan",
            "report",
            "spec",
            "sys",
        ],
    ),
    ("spec", &[]),
    // spec: what a sysctl's name, a mount option or a place in /proc means is decided once. sys: types only, but for the
    // host's facts.
    ("plan", &["idmap", "spec", "sys"]),
    // report: the steps of `--debug` are those of the launch. idmap is reached through the plan.
    (
        "launch",
        &[
            "cgroup",
            "child",
            "handshake",
            "hooks",
            "plan",
            "report",
            "sys",
        ],
    ),
    ("child", &["handshake", "hooks", "plan", "sys"]),
    ("handshake", &["sys"]),
    ("hooks", &["sys"]),
    ("idmap", &[]),
    ("cgroup", &["sys"]),
    // report: what CRIU is asked and says are steps of `--debug`.
    ("criu", &["report", "sys"]),
    // spec: a bundle's config.json begins as the one that `spec` writes. idmap: a layer's owners are mapped as the
    // container's will be. Nothing else of the runtime: a container is started by starting the program.
    ("image", &["idmap", "report", "spec", "sys"]),
    ("report", &["sys"]),
    ("sys", &[]),
];

/// Words that a room does without, each with the reason.
const ABSENCES: &[(&str, &str, &str)] = &[
    ("child", "serde_json", "it is given a plan, not a text"),
    (
        "child",
        "anyhow",
        "it says a step and an errno; the parent makes the sentence",
    ),
    (
        "handshake",
        "serde",
        "a message is a kind, two numbers and a text",
    ),
    ("sys", "oci_spec", "the kernel knows no container"),
    (
        "spec",
        "Command",
        "what the user wrote is read, nothing is done",
    ),
    (
        "plan",
        "Command",
        "a plan is worked out, nothing is done yet",
    ),
];

/// Lines in a file of `src` or `tests`. A longer one has more than one subject.
const LONGEST_FILE: usize = 1200;

/// Bytes of the runtime's release binary on x86_64: what it has, and about a seventh more. Starting it is most of the
/// cost that is our own.
const LARGEST_RUNTIME: u64 = 5_600_000;

/// The same of the companion.
const LARGEST_COMPANION: u64 = 5_200_000;

/// Words of the companion and of what it rests on. None is in the runtime: they share a library, and the linker takes
/// into each program only what it reaches.
const COMPANION_ONLY: &[&str] = &["index.json", "indicatif", "oci-layout", "zstd"];

#[test]
fn rooms_name_only_the_rooms_they_may() {
    let allowed: BTreeMap<&str, BTreeSet<&str>> = ARROWS
        .iter()
        .map(|(room, others)| (*room, others.iter().copied().collect()))
        .collect();
    let rooms: BTreeSet<String> = sources().iter().filter_map(|file| room_of(file)).collect();
    let listed: BTreeSet<String> = allowed.keys().map(|room| (*room).to_owned()).collect();
    assert_eq!(
        rooms, listed,
        "the rooms in src, and those in the table of arrows"
    );

    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut faults = Vec::new();
    for file in sources() {
        let Some(room) = room_of(&file) else { continue };
        for other in rooms_named_in(&code_of(&file), &room, &rooms) {
            if !allowed[room.as_str()].contains(other.as_str()) {
                faults.push(format!(
                    "{}: {room} may not know {other}",
                    shown(&file).display()
                ));
            }
            found.entry(room.clone()).or_default().insert(other);
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (room, others) in allowed {
        for other in others {
            let there = found.get(room).is_some_and(|set| set.contains(other));
            assert!(
                there,
                "{room} does not use {other} any more: take the arrow out of the table and the map"
            );
        }
    }
}

#[test]
fn rooms_go_without_what_their_rules_exclude() {
    for (room, word, reason) in ABSENCES {
        for file in sources() {
            if room_of(&file).as_deref() == Some(room) {
                assert!(
                    !has_word(&code_of(&file), word),
                    "{}: {word} in {room}: {reason}",
                    shown(&file).display()
                );
            }
        }
    }
}

#[test]
fn no_thread_is_started_outside_the_companion() {
    for file in sources() {
        // It has threads for what it unpacks, and none before it enters a user namespace.
        if room_of(&file).as_deref() == Some("image") {
            continue;
        }
        let code = code_of(&file);
        // Tests have threads of their own.
        let program = code.split("#[cfg(test)]").next().unwrap_or_default();
        for call in ["thread::spawn", "thread::scope", "thread::Builder"] {
            assert!(
                !program.contains(call),
                "{}: {call}: namespaces and rights belong to a thread",
                shown(&file).display()
            );
        }
    }
}

#[test]
fn unsafe_stands_only_in_sys_and_says_why_it_is_sound() {
    /// How far above an `unsafe` its note may begin.
    const NEAR: usize = 10;
    for file in sources() {
        let in_sys = room_of(&file).as_deref() == Some("sys");
        let text = read(&file);
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = without_comment(line);
            // What an unsafe function asks for is told by its callers' notes; here they are all in the same file.
            let declares = code.contains("unsafe fn") || code.contains("unsafe extern \"C\" fn");
            if !has_word(code, "unsafe") || declares {
                continue;
            }
            let place = format!("{}:{}", shown(&file).display(), at + 1);
            // The name by which the C library finds a program that does without Rust's own start.
            let entered =
                shown(&file) == Path::new("src/main.rs") && code == "#[unsafe(no_mangle)]";
            assert!(
                in_sys || entered,
                "{place}: unsafe outside src/sys: write a safe door there"
            );
            let near = &lines[at.saturating_sub(NEAR)..=at];
            assert!(
                near.iter().any(|line| line.contains("SAFETY:")),
                "{place}: unsafe without a SAFETY: note"
            );
        }
    }
}

#[test]
fn every_file_of_the_integration_tests_is_registered() {
    for binary in ["runtime", "image"] {
        for file in files_below(&root().join("tests").join(binary)) {
            let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
            let folder = file.parent().unwrap();
            let (name, parent) = match stem.as_str() {
                "main" => continue,
                "mod" => (
                    folder.file_name().unwrap().to_string_lossy().into_owned(),
                    folder.parent().unwrap(),
                ),
                _ => (stem, folder),
            };
            let parent = ["main.rs", "mod.rs"]
                .map(|name| parent.join(name))
                .into_iter()
                .find(|parent| parent.is_file())
                .unwrap();
            let line = format!("mod {name};");
            let registered = read(&parent).lines().any(|found| {
                let found = found.trim();
                found == line || found.strip_prefix("pub(crate) ") == Some(line.as_str())
            });
            assert!(
                registered,
                "{}: no `{line}` in {}, so it never runs",
                shown(&file).display(),
                shown(&parent).display()
            );
        }
    }
}

#[test]
fn binary_is_one_static_file() {
    for path in binaries() {
        let bytes = fs::read(&path).unwrap();
        let kinds = program_headers(&bytes);
        const LOAD: u32 = 1;
        const INTERPRETER: u32 = 3;
        assert!(
            kinds.contains(&LOAD),
            "{}: {kinds:?} are not the headers of a program",
            path.display()
        );
        assert!(
            !kinds.contains(&INTERPRETER),
            "{}: asks for a dynamic linker",
            path.display()
        );
    }
}

#[test]
fn release_binaries_stay_small() {
    for (path, most) in [
        (release(built(), "RUNTIME"), LARGEST_RUNTIME),
        (release(companion(), "PELAGOS_IMAGE"), LARGEST_COMPANION),
    ] {
        let Some(path) = path else { continue };
        let size = fs::metadata(&path).unwrap().len();
        assert!(
            size <= most,
            "{}: {size} bytes, more than {most}",
            path.display()
        );
    }
}

#[test]
fn nothing_of_the_companion_is_in_the_runtime() {
    let has = |program: &Path, word: &str| {
        let bytes = fs::read(program).unwrap();
        memmem(&bytes, word.as_bytes())
    };
    if let Some(runtime) = release(built(), "RUNTIME") {
        for word in COMPANION_ONLY {
            assert!(!has(&runtime, word), "{}: {word:?}", runtime.display());
        }
    }
    if let Some(companion) = release(companion(), "PELAGOS_IMAGE") {
        for word in COMPANION_ONLY {
            assert!(
                has(&companion, word),
                "{word:?} is no word of {}: choose another",
                companion.display()
            );
        }
    }
}

#[test]
fn nothing_is_left_to_be_done_later() {
    // Put together here, or this file would be its own finding.
    let words = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
    ];
    let calls = [
        concat!("todo", "!("),
        concat!("unimplemented", "!("),
        concat!("#[ig", "nore"),
    ];
    for folder in ["src", "tests", "hack", "integration"] {
        for file in files_below(&root().join(folder)) {
            // A disk image in hack/vm is no text.
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            for (at, line) in text.lines().enumerate() {
                let found = words
                    .iter()
                    .find(|word| has_word(line, word))
                    .or_else(|| calls.iter().find(|call| line.contains(**call)));
                assert_eq!(found, None, "{}:{}", shown(&file).display(), at + 1);
            }
        }
    }
}

/// The rows of the tables of docs/SPEC.md: property, behaviour, tests.
fn rows_of_the_specification() -> Vec<[String; 3]> {
    let page = read(&root().join("docs/SPEC.md"));
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|');
        let cells = [cells.next(), cells.next(), cells.next()]
            .map(|cell| cell.unwrap_or_default().trim().to_owned());
        assert!(
            cells.iter().all(|cell| !cell.is_empty()),
            "empty cell: {row}"
        );
        cells
    })
    .collect()
}

#[test]
fn every_property_of_the_specification_has_its_row() {
    let listed: BTreeSet<String> = read(&root().join("tests/properties"))
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::to_owned)
        .collect();
    let rows = rows_of_the_specification();
    let named: BTreeSet<String> = rows
        .iter()
        .map(|[property, ..]| property.trim_matches('`').to_owned())
        .collect();
    assert_eq!(
        named.len(),
        rows.len(),
        "a property has two rows in docs/SPEC.md"
    );
    assert_eq!(named, listed, "docs/SPEC.md and tests/properties");
}

#[test]
fn every_test_that_the_specifications_page_names_is_there() {
    let mut tests = BTreeSet::new();
    for folder in ["src", "tests"] {
        for file in files_below(&root().join(folder)) {
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            for pair in lines.windows(2).filter(|pair| pair[0] == "#[test]") {
                if let Some((name, _)) = pair[1]
                    .strip_prefix("fn ")
                    .and_then(|rest| rest.split_once('('))
                {
                    tests.insert(name.to_owned());
                }
            }
        }
    }
    assert!(tests.len() > 500, "{}", tests.len());
    for [property, _, named] in rows_of_the_specification() {
        for name in named.split_whitespace() {
            let bare = name.trim_matches('`');
            assert!(
                name.starts_with('`') && tests.contains(bare),
                "{property}: no test {name}"
            );
        }
    }
}

#[test]
fn every_source_file_begins_by_saying_what_it_is() {
    for file in sources() {
        let text = read(&file);
        let first = text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 10,
            "{}: begins with {first:?}",
            shown(&file).display()
        );
    }
}

#[test]
fn source_files_have_one_subject_each() {
    for folder in ["src", "tests"] {
        for file in files_below(&root().join(folder)) {
            let lines = read(&file).lines().count();
            assert!(
                lines <= LONGEST_FILE,
                "{}: {lines} lines, more than {LONGEST_FILE}",
                shown(&file).display()
            );
        }
    }
}

#[test]
fn every_verb_has_its_file_and_stands_in_the_readme() {
    let readme = read(&root().join("README.md"));
    for (program, folder, known) in [
        (built(), "src/cli", "create"),
        (companion(), "src/image/cli", "import"),
    ] {
        let verbs = verbs(&program);
        assert!(
            verbs.contains(&known.to_owned()),
            "{verbs:?} are not the verbs of --help"
        );
        for verb in verbs {
            let file = root().join(format!("{folder}/{verb}.rs"));
            assert!(file.is_file(), "{verb}: no {folder}/{verb}.rs");
            assert!(
                readme.contains(&format!("`{verb}`")),
                "{verb}: not in README.md"
            );
        }
    }
}

#[test]
fn the_map_names_every_file_and_every_arrow() {
    let map = read(&root().join("src/README.md"));
    for file in sources() {
        let name = shown(&file);
        let name = name.strip_prefix("src").unwrap().display().to_string();
        assert!(
            map.contains(&format!("`{name}`")),
            "src/{name}: not in src/README.md"
        );
    }
    for name in named_files(&map) {
        assert!(
            root().join("src").join(&name).is_file(),
            "src/README.md names {name}, which is not there"
        );
    }
    for (room, others) in ARROWS {
        let line = match others {
            [] => format!("{room} → nothing"),
            others => format!("{room} → {}", others.join(", ")),
        };
        assert!(
            map.lines().any(|found| found == line),
            "src/README.md: no line {line:?}"
        );
    }
}

#[test]
fn every_compatibility_tag_has_its_file_in_the_ledger() {
    let ledger = read(&root().join("docs/COMPAT.md"));
    for file in sources() {
        if read(&file).contains("COMPAT:") {
            let name = shown(&file);
            let name = name.strip_prefix("src").unwrap().display().to_string();
            assert!(
                ledger.contains(&format!("`{name}`")),
                "src/{name}: has a COMPAT: tag and is not in docs/COMPAT.md"
            );
        }
    }
    for name in named_files(&ledger) {
        assert!(
            root().join("src").join(&name).is_file(),
            "docs/COMPAT.md names {name}, which is not in src"
        );
    }
}

// The tree.

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The path as seen from the root of the project.
fn shown(file: &Path) -> PathBuf {
    file.strip_prefix(root()).unwrap().to_owned()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Every file below `folder`, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// Every Rust file below `src`.
fn sources() -> Vec<PathBuf> {
    let mut files = files_below(&root().join("src"));
    files.retain(|file| file.extension().is_some_and(|ending| ending == "rs"));
    assert!(!files.is_empty(), "no source");
    files
}

/// The room that a file belongs to. `lib.rs`, `main.rs` and what is in `bin` are the doors of the house and in none.
fn room_of(file: &Path) -> Option<String> {
    let shown = shown(file);
    let first = shown.strip_prefix("src").unwrap().components().next()?;
    let name = Path::new(first.as_os_str())
        .file_stem()?
        .to_string_lossy()
        .into_owned();
    (!["lib", "main", "bin"].contains(&name.as_str())).then_some(name)
}

/// Names of files in backticks, such as `room/file.rs`.
fn named_files(page: &str) -> Vec<String> {
    let spans = page.split('`').skip(1).step_by(2);
    spans
        .filter(|span| span.ends_with(".rs") && !span.contains(char::is_whitespace))
        .filter(|span| !span.starts_with("tests/"))
        .map(str::to_owned)
        .collect()
}

// Text.

/// The line without what follows `//`; one inside a string is taken for a comment too, which no rule here minds.
fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

fn code_of(file: &Path) -> String {
    let text = read(file);
    text.lines()
        .map(without_comment)
        .collect::<Vec<_>>()
        .join("\n")
}

fn is_word_character(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn has_word(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_word_character) && !after.is_some_and(is_word_character)
    })
}

/// The rooms that this code of `room` names: by `crate::…`, in a group or alone, or by `super::…` from the room's top.
fn rooms_named_in(code: &str, room: &str, rooms: &BTreeSet<String>) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| is_word_character(c) || c == '$') {
            continue;
        }
        named.extend(first_names(&code[at + start.len()..]));
    }
    for (at, start) in code.match_indices("super::") {
        for name in first_names(&code[at + start.len()..]) {
            // A room's own file of that name is what is meant there.
            let own = sources().into_iter().any(|file| {
                room_of(&file).as_deref() == Some(room)
                    && (file.file_stem().is_some_and(|stem| stem == name.as_str())
                        || file.ends_with(format!("{name}/mod.rs")))
            });
            if !own {
                named.insert(name);
            }
        }
    }
    named.retain(|name| name != room && rooms.contains(name));
    named
}

/// The first name of a path, or of each path in a group in braces.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String {
        let text = text.trim_start();
        text.chars().take_while(|c| is_word_character(*c)).collect()
    };
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut names = vec![name(group)];
    let mut depth = 1;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(name(&group[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

// The binary.

fn built() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_pelagos"))
}

fn companion() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_pelagos-image"))
}

/// The optimised program: the one built with this test, or the one that `make test` has tested and that `variable`
/// names.
fn release(built: PathBuf, variable: &str) -> Option<PathBuf> {
    if !cfg!(debug_assertions) {
        return Some(built);
    }
    let named = PathBuf::from(std::env::var_os(variable)?);
    let same = named.file_name() == built.file_name();
    let optimised = named.parent().is_some_and(|dir| dir.ends_with("release"));
    (same && optimised && named.is_file()).then_some(named)
}

fn binaries() -> BTreeSet<PathBuf> {
    [
        Some(built()),
        Some(companion()),
        release(built(), "RUNTIME"),
        release(companion(), "PELAGOS_IMAGE"),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Whether `bytes` hold `word`.
fn memmem(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// The types of the program headers of a 64-bit ELF file in native byte order (elf(5)).
fn program_headers(bytes: &[u8]) -> Vec<u32> {
    assert_eq!(&bytes[..5], b"\x7fELF\x02", "no 64-bit ELF file");
    let short = |at: usize| usize::from(u16::from_ne_bytes(bytes[at..at + 2].try_into().unwrap()));
    let table = u64::from_ne_bytes(bytes[32..40].try_into().unwrap());
    let (size, count) = (short(54), short(56));
    let table = usize::try_from(table).unwrap();
    (0..count)
        .map(|n| table + n * size)
        .map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()))
        .collect()
}

/// The verbs that `--help` lists.
fn verbs(program: &Path) -> Vec<String> {
    let output = Command::new(program).arg("--help").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let commands = text
        .lines()
        .skip_while(|line| !line.eq_ignore_ascii_case("commands:"))
        .skip(1);
    commands
        .take_while(|line| !line.trim().is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}
