//! The command line: global options, the verbs and how they are found, what a person gets to read.
//!
//! Parsing is on the start path, so only the global options and the one verb that was named are built. The whole tree
//! exists for manual pages and completions alone.
//!
//! COMPAT: runc's parser (urfave/cli) is imitated where engines rely on it: a long flag may have one dash, flags may
//! follow the container's id, usage errors exit with 1, an unknown verb with 3.

mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod generate;
mod kill;
mod list;
mod mounts;
mod pause;
mod ps;
mod restore;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::builder::{OsStringValueParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Args, Command};
use nix::unistd::Uid;

use crate::container::{self, Driver, Rootless};
use crate::report::{self, Format, Level, Target};
use crate::sys::{self, start::end_by_sigpipe};

/// The runc release whose interface is followed; engines read it when we are called by that name.
const RUNC_VERSION: &str = "1.5.0";
/// The runtime specification that is implemented.
const SPEC_VERSION: &str = "1.3.0";

/// What every verb may need to know of the options before it.
#[derive(Debug)]
pub(crate) struct Global {
    /// The name this program was called by.
    pub(crate) program: String,
    /// The state root, absolute.
    pub(crate) root: PathBuf,
    pub(crate) root_is_default: bool,
    pub(crate) rootless: Rootless,
    pub(crate) driver: Driver,
}

/// The options before the verb.
#[derive(Debug, Args)]
struct Flags {
    /// Log at debug level: the steps of the work, with the place they come from
    #[arg(long)]
    debug: bool,

    /// File to log to instead of stderr; or syslog:NAME, journald:NAME, file:PATH
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,

    /// How much to log: error, warning or debug [default: warning]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Format of log lines: text or json
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: String,

    /// Directory for the state of containers, in a tmpfs [default: /run/pelagos; rootless: $XDG_RUNTIME_DIR/pelagos]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,

    /// Let systemd make the cgroups; cgroupsPath is then "slice:prefix:name"
    #[arg(long, overrides_with = "cgroup_manager")]
    systemd_cgroup: bool,

    /// Who makes the cgroups: cgroupfs, systemd or disabled
    #[arg(long, value_name = "MANAGER")]
    cgroup_manager: Option<String>,

    /// Ignore cgroup permission errors: true, false or auto
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    rootless: String,

    /// Accepted and ignored: older engines still send it
    #[arg(long, value_name = "PATH", hide = true)]
    criu: Option<OsString>,

    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long)]
    version: bool,
}

/// A verb: its clap struct, and what it does. Positional arguments are collected as `arguments` and counted here.
trait Verb: Args {
    const NAME: &'static str;
    const ABOUT: &'static str;
    /// What follows the name in the usage line.
    const USAGE: &'static str;
    const ARGUMENTS: Count;
    const HIDDEN: bool = false;
    /// Whether what follows the first positional argument is for another program, flags included.
    const FOREIGN_ARGUMENTS: bool = false;

    /// Carries the verb out; returns the exit code.
    fn run(self, global: &Global) -> Result<u8>;
}

/// How many positional arguments a verb takes.
#[derive(Clone, Copy, Debug)]
enum Count {
    Exactly(usize),
    AtLeast(usize),
    Between(usize, usize),
}

/// A verb as the table holds it.
struct Entry {
    name: &'static str,
    about: &'static str,
    hidden: bool,
    command: fn(&str) -> Command,
    run: fn(&str, Flags, Vec<OsString>) -> Result<u8>,
}

const fn entry<V: Verb>() -> Entry {
    Entry {
        name: V::NAME,
        about: V::ABOUT,
        hidden: V::HIDDEN,
        command: command::<V>,
        run: parse_and_run::<V>,
    }
}

const VERBS: [Entry; 19] = [
    entry::<checkpoint::Checkpoint>(),
    entry::<create::Create>(),
    entry::<delete::Delete>(),
    entry::<events::Events>(),
    entry::<exec::Exec>(),
    entry::<features::Features>(),
    entry::<generate::Generate>(),
    entry::<kill::Kill>(),
    entry::<list::List>(),
    entry::<mounts::Mounts>(),
    entry::<pause::Pause>(),
    entry::<ps::Ps>(),
    entry::<restore::Restore>(),
    entry::<resume::Resume>(),
    entry::<run::Run>(),
    entry::<spec::Spec>(),
    entry::<start::Start>(),
    entry::<state::State>(),
    entry::<update::Update>(),
];

/// Parses the command line, carries out one verb and reports its failure; the code is the process's.
pub(crate) fn main() -> u8 {
    sys::start::streams_and_signals();
    let mut args = std::env::args_os();
    let program = program_name(&args.next().unwrap_or_default());
    let args: Vec<_> = args.collect();
    match run(&program, args) {
        Ok(code) => code,
        Err(error) => {
            report::fail(&error);
            1
        }
    }
}

/// The last part of argv[0]. go-runc may call us as `/proc/self/fd/7`; a number is nobody's name.
fn program_name(argv0: &OsStr) -> String {
    let name = Path::new(argv0)
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        return "pelagos".to_owned();
    }
    name.into_owned()
}

fn run(program: &str, args: Vec<OsString>) -> Result<u8> {
    let mut command = global_command(program).arg(
        Arg::new("rest")
            .num_args(..)
            .trailing_var_arg(true)
            .value_parser(clap::value_parser!(OsString)),
    );
    let args = with_two_dashes(&command, args, Stop::AtVerb);
    let mut matches = match parse(&mut command, args)? {
        Parsed::Matches(matches) => matches,
        Parsed::Help(text) => return print(&text),
    };
    let rest = matches.remove_many::<OsString>("rest");
    let mut rest = rest.into_iter().flatten();
    let flags = <Flags as clap::FromArgMatches>::from_arg_matches(&matches).map_err(usage_error)?;
    if flags.version {
        return print(&version(program));
    }
    let Some(name) = rest.next() else {
        return print(&command.render_help().to_string());
    };
    if name == "help" || name == "h" {
        return help(program, &flags, &mut command, rest.next());
    }
    let Some(verb) = VERBS.iter().find(|verb| name == verb.name) else {
        // ORDER: before the error, which engines look for in the log.
        open_log(program, &flags)?;
        return Ok(no_such_verb(&name));
    };
    (verb.run)(program, flags, rest.collect())
}

fn help(
    program: &str,
    flags: &Flags,
    command: &mut Command,
    topic: Option<OsString>,
) -> Result<u8> {
    let Some(topic) = topic else {
        return print(&command.render_help().to_string());
    };
    match VERBS.iter().find(|verb| topic == verb.name) {
        Some(verb) => print(&(verb.command)(program).render_help().to_string()),
        None => {
            open_log(program, flags)?;
            Ok(no_such_verb(&topic))
        }
    }
}

/// COMPAT: an exit code of its own, as urfave/cli has it.
fn no_such_verb(name: &OsStr) -> u8 {
    report::fail(&anyhow!("No help topic for '{}'", name.to_string_lossy()));
    3
}

fn open_log(program: &str, flags: &Flags) -> Result<()> {
    let format = match flags.log_format.as_str() {
        // COMPAT: an empty word is one that was not given.
        "text" | "" => Format::Text,
        "json" => Format::Json,
        other => bail!("invalid log-format: {other}"),
    };
    let level = match flags.log_level.as_deref() {
        _ if flags.debug => Level::Debug,
        None | Some("warning") => Level::Warning,
        Some("error") => Level::Error,
        Some("debug") => Level::Debug,
        Some(other) => bail!("invalid log-level: {other}, expected error, warning or debug"),
    };
    let target = flags.log.as_ref().map_or(Target::Stderr, |text| {
        Target::parse(text.as_os_str(), program)
    });
    report::set_up(program, &target, format, level)
}

impl Global {
    fn new(program: &str, flags: Flags) -> Result<Self> {
        let rootless = rootless(&flags.rootless)?;
        let root_is_default = flags.root.is_none();
        let root = match flags.root {
            None => default_root()?,
            Some(root) => match absolute(&root)? {
                // CVE hardening as in runc: state directories in / would be taken for a whole system.
                root if root == Path::new("/") => {
                    bail!("option --root argument should not be set to /")
                }
                root => root,
            },
        };
        Ok(Self {
            program: program.to_owned(),
            root,
            root_is_default,
            rootless,
            driver: driver(flags.systemd_cgroup, flags.cgroup_manager.as_deref())?,
        })
    }
}

/// COMPAT: Go's truth values, and as in runc "auto" in any case or nothing.
fn rootless(word: &str) -> Result<Rootless> {
    match truth(word) {
        Some(true) => Ok(Rootless::Yes),
        Some(false) => Ok(Rootless::No),
        None if word.is_empty() || word.eq_ignore_ascii_case("auto") => Ok(Rootless::Auto),
        None => bail!("invalid value for --rootless: {word:?}, expected true, false or auto"),
    }
}

/// COMPAT: runc has the switch, crun both; Podman sends either, and "disabled" for containers without a cgroup.
fn driver(systemd: bool, manager: Option<&str>) -> Result<Driver> {
    match manager {
        Some("disabled") => Ok(Driver::Disabled),
        Some("systemd") => Ok(Driver::Systemd),
        None if systemd => Ok(Driver::Systemd),
        Some("cgroupfs") | None => Ok(Driver::Cgroupfs),
        Some(other) => bail!(
            "invalid value for --cgroup-manager: {other:?}, expected cgroupfs, systemd or disabled"
        ),
    }
}

/// `/run/pelagos`, or a directory of the user's own for one who is not root in the initial user namespace.
fn default_root() -> Result<PathBuf> {
    let shared = PathBuf::from("/run/pelagos");
    let Some(runtime_dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty())
    else {
        return Ok(shared);
    };
    if !honours_runtime_dir() {
        return Ok(shared);
    }
    let root = Path::new(&runtime_dir).join("pelagos");
    let make = || {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&root)?;
        // The sticky bit keeps cleaners of old files away (XDG base directory specification).
        fs::set_permissions(&root, Permissions::from_mode(0o1700))
    };
    make().with_context(|| {
        report::Hinted::new(
            format!("create state root {}", root.display()),
            "the directory in $XDG_RUNTIME_DIR must be writable by the user",
        )
    })?;
    Ok(root)
}

fn honours_runtime_dir() -> bool {
    if !Uid::effective().is_root() {
        return true;
    }
    if std::env::var_os("USER").is_some_and(|user| user == "root") {
        return false;
    }
    // Root of a user namespace, started by somebody else.
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        let mut fields = map.split_ascii_whitespace();
        !fields.by_ref().take(3).eq(["0", "0", "4294967295"])
    })
}

/// `path` made absolute and freed of `.` and `..` by its text alone.
fn absolute(path: &Path) -> Result<PathBuf> {
    let whole = std::path::absolute(path)
        .with_context(|| format!("make path {} absolute", path.display()))?;
    let mut clean = PathBuf::new();
    for component in whole.components() {
        match component {
            Component::ParentDir => drop(clean.pop()),
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// The one positional argument of most verbs.
fn only_id(arguments: &[String]) -> Result<container::Id> {
    arguments.first().map_or("", String::as_str).parse()
}

/// How many descriptors to pass on. COMPAT: less than none is none.
fn descriptors(text: &str) -> Result<u32> {
    Ok(text.parse::<i64>()?.max(0).try_into()?)
}

/// Do something to every container that the first argument matches. All are tried; what failed is told as one error.
fn to_each(
    global: &Global,
    arguments: &[String],
    act: impl Fn(&container::Id) -> Result<()>,
) -> Result<u8> {
    let expression = arguments.first().map_or("", String::as_str);
    let mut errors = Vec::new();
    for id in container::matching(&global.root, expression)? {
        errors.extend(act(&id).err());
    }
    if errors.is_empty() {
        return Ok(0);
    }
    let texts: Vec<_> = errors.iter().map(report::sentence).collect();
    bail!("{}", texts.join("; "))
}

/// The name of a user, or `#uid`. A static program has no name services, so `/etc/passwd` is all there is.
fn owner_name(uid: u32) -> String {
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    name_in(&users, uid).unwrap_or_else(|| format!("#{uid}"))
}

fn name_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

fn print(text: &str) -> Result<u8> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written
        .as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    {
        // COMPAT: as runc, whose Go ends so when standard output is a pipe that nobody reads: `events | head`.
        end_by_sigpipe();
    }
    written.context("write to stdout")?;
    Ok(0)
}

fn version(program: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    let first = match program {
        // COMPAT: an engine that was told we are runc looks for runc's release.
        "runc" => format!("runc version {RUNC_VERSION}+pelagos.{own}"),
        _ => format!("pelagos version {own}"),
    };
    let commit = option_env!("PELAGOS_COMMIT").unwrap_or("unknown");
    let libseccomp = libseccomp::ScmpVersion::current()
        .map_or_else(|_| "unknown".to_owned(), |version| version.to_string());
    format!("{first}\ncommit: {commit}\nspec: {SPEC_VERSION}\nlibseccomp: {libseccomp}\n")
}

fn global_command(program: &str) -> Command {
    let verbs: String = VERBS
        .iter()
        .filter(|verb| !verb.hidden)
        .map(|verb| format!("   {:<12}{}\n", verb.name, verb.about))
        .collect();
    Flags::augment_args(Command::new("pelagos"))
        .about("Open Container Initiative runtime")
        .display_name(program.to_owned())
        .mut_args(any_bytes)
        // COMPAT: the last of several wins, so that a caller can add to what another has configured.
        .args_override_self(true)
        .override_usage(format!("{program} [global options] command [command options] [arguments...]"))
        .help_template(format!(
            "NAME:\n   {{name}} - {{about}}\n\nUSAGE:\n   {{usage}}\n\nCOMMANDS:\n{verbs}\nGLOBAL OPTIONS:\n{{options}}\n"
        ))
}

fn command<V: Verb>(program: &str) -> Command {
    V::augment_args(Command::new(V::NAME))
        .about(V::ABOUT)
        .mut_args(any_bytes)
        .display_name(format!("{program} {}", V::NAME))
        .override_usage(format!("{program} {} {}", V::NAME, V::USAGE))
        .help_template("NAME:\n   {name} - {about}\n\nUSAGE:\n   {usage}\n\nOPTIONS:\n{options}\n")
        .args_override_self(true)
        .hide(V::HIDDEN)
}

/// COMPAT: bytes that are no text arrive as U+FFFD, as Go writes them into a configuration. What is wrong with such a
/// word is for the verb to say, with its own exit code.
fn any_bytes(arg: Arg) -> Arg {
    let text = clap::builder::ValueParser::string();
    if arg.get_value_parser().type_id() != text.type_id() {
        return arg;
    }
    arg.value_parser(OsStringValueParser::new().map(|word| word.to_string_lossy().into_owned()))
}

/// Everything at once, for manual pages and completions.
fn whole_tree() -> Command {
    let tree = VERBS
        .iter()
        .filter(|verb| !verb.hidden)
        .map(|verb| (verb.command)("pelagos"));
    global_command("pelagos").subcommands(tree)
}

fn parse_and_run<V: Verb>(program: &str, flags: Flags, args: Vec<OsString>) -> Result<u8> {
    open_log(program, &flags)?;
    let mut command = command::<V>(program);
    let args = with_two_dashes(&command, args, Stop::of::<V>());
    let matches = match parse(&mut command, args)? {
        Parsed::Matches(matches) => matches,
        Parsed::Help(text) => return print(&text),
    };
    let given = matches
        .try_get_raw("arguments")
        .ok()
        .flatten()
        .map_or(0, Iterator::count);
    if let Some(fault) = V::ARGUMENTS.fault(given) {
        print(&format!("Incorrect Usage.\n\n{}", command.render_help()))?;
        bail!("{program}: \"{}\" requires {fault} argument(s)", V::NAME);
    }
    let verb = V::from_arg_matches(&matches).map_err(usage_error)?;
    // ORDER: after the usage was looked at. Help must not fail for the want of a state root.
    verb.run(&Global::new(program, flags)?)
}

impl Count {
    fn fault(self, given: usize) -> Option<String> {
        match self {
            Self::Exactly(wanted) if given != wanted => Some(format!("exactly {wanted}")),
            Self::AtLeast(least) | Self::Between(least, _) if given < least => {
                Some(format!("a minimum of {least}"))
            }
            Self::Between(_, most) if given > most => Some(format!("a maximum of {most}")),
            _ => None,
        }
    }
}

enum Parsed {
    Matches(ArgMatches),
    Help(String),
}

fn parse(command: &mut Command, args: Vec<OsString>) -> Result<Parsed> {
    let name = OsString::from(command.get_name());
    match command.try_get_matches_from_mut([name].into_iter().chain(args)) {
        Ok(matches) => Ok(Parsed::Matches(matches)),
        Err(error) if error.kind() == ErrorKind::DisplayHelp => {
            Ok(Parsed::Help(error.render().to_string()))
        }
        Err(error) => {
            let error = usage_error(error);
            print(&format!(
                "Incorrect Usage: {error}\n\n{}",
                command.render_help()
            ))?;
            Err(error)
        }
    }
}

/// What is wrong in one line, in runc's words where it has its own; else clap's first line, without its heading.
fn usage_error(error: clap::Error) -> anyhow::Error {
    let word = |kind| match error.get(kind) {
        Some(ContextValue::String(word)) => Some(word.as_str()),
        _ => None,
    };
    let flag = word(ContextKind::InvalidArg).unwrap_or_default();
    let flag = flag
        .split(' ')
        .next()
        .unwrap_or_default()
        .trim_start_matches('-');
    match (error.kind(), word(ContextKind::InvalidValue)) {
        (ErrorKind::UnknownArgument, _) if !flag.is_empty() => {
            return anyhow!("flag provided but not defined: -{flag}");
        }
        (ErrorKind::InvalidValue, Some("")) if !flag.is_empty() => {
            return anyhow!("flag needs an argument: -{flag}");
        }
        (ErrorKind::ValueValidation, Some(value)) if !flag.is_empty() => {
            return anyhow!("invalid value {value:?} for flag -{flag}: parse error");
        }
        (ErrorKind::TooManyValues, Some(value)) if !flag.is_empty() => {
            return anyhow!("invalid boolean value {value:?} for -{flag}: parse error");
        }
        _ => {}
    }
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    anyhow!(
        "{}",
        first.strip_prefix("error: ").unwrap_or(first).to_owned()
    )
}

/// Where the first positional argument ends what is ours to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Never,
    /// It is the verb, which has flags of its own.
    AtVerb,
    /// What follows is for another program, and no flag for clap either.
    AtForeign,
}

impl Stop {
    fn of<V: Verb>() -> Self {
        if V::FOREIGN_ARGUMENTS {
            Self::AtForeign
        } else {
            Self::Never
        }
    }
}

/// COMPAT: `-no-subreaper` means `--no-subreaper`, and go-runc sends it so; a switch may say `=true` or `=false`.
/// Rewrites long flags of `command` that have one dash, switches that have a value and letters behind one dash; values,
/// positional arguments and everything behind `--` stay, and so does what follows the first positional argument where
/// `stop` says so.
fn with_two_dashes(command: &Command, args: Vec<OsString>, stop: Stop) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut rewritten: Vec<OsString> = Vec::with_capacity(args.len());
    while let Some(arg) = args.next() {
        // What is no text is part of a value, which stays as it is.
        let text = arg.to_string_lossy();
        if text.len() < 2 || !text.starts_with('-') {
            if stop == Stop::AtForeign {
                rewritten.push("--".into());
            }
            rewritten.push(arg);
            if stop != Stop::Never {
                break;
            }
            continue;
        }
        if text == "--" {
            rewritten.push(arg);
            break;
        }
        let Some(word) = Word::read(command, &text) else {
            rewritten.push(arg);
            continue;
        };
        let before = word.before.chars();
        rewritten.extend(before.map(|letter| OsString::from(format!("-{letter}"))));
        let is_switch = !word.flag.get_action().takes_values();
        let takes_next = word.value.is_none() && !is_switch && !word.flag.is_require_equals_set();
        let next = args.as_slice().first().filter(|_| takes_next);
        let is_empty = word.value == Some("") || next.is_some_and(|next| next.is_empty());
        // COMPAT: an empty path is one that was not given.
        if is_empty && is_path(word.flag) {
            if takes_next {
                args.next();
            }
            continue;
        }
        match word.value.and_then(truth).filter(|_| is_switch) {
            Some(true) => rewritten.push(OsString::from(format!("{}{}", word.dashes, word.name))),
            Some(false) => {
                let short = word.flag.get_short().map(|letter| format!("-{letter}"));
                let long = word.flag.get_long().map(|name| format!("--{name}"));
                let on: Vec<_> = short.into_iter().chain(long).collect();
                rewritten.retain(|arg| on.iter().all(|on| arg != on.as_str()));
            }
            None => {
                // A switch has no such value, and clap has words for that where its name is a long one.
                let long = word.flag.get_long().filter(|_| is_switch);
                rewritten.push(match (long, word.value) {
                    (Some(long), Some(value)) => format!("--{long}={value}").into(),
                    _ => {
                        let own = &arg.as_bytes()[word.start..];
                        OsString::from_vec([word.dashes.as_bytes(), own].concat())
                    }
                });
            }
        }
        if takes_next {
            rewritten.extend(args.next());
        }
    }
    rewritten.extend(args);
    rewritten
}

/// One argument that names a flag: a long one, or letters of which the last one is looked at.
struct Word<'a> {
    /// The letters before it, all of them switches.
    before: &'a str,
    flag: &'a Arg,
    dashes: &'static str,
    name: &'a str,
    /// Where the name begins.
    start: usize,
    /// What the same argument gives it.
    value: Option<&'a str>,
}

impl<'a> Word<'a> {
    /// None for a flag that is not there, which clap has words for.
    fn read(command: &'a Command, text: &'a str) -> Option<Self> {
        let whole = text.trim_start_matches('-');
        let start = text.len() - whole.len();
        let (name, value) = match whole.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (whole, None),
        };
        let mut flags = command.get_arguments();
        if let Some(flag) = flags.find(|flag| flag.get_long() == Some(name)) {
            return Some(Self {
                before: "",
                flag,
                dashes: "--",
                name,
                start,
                value,
            });
        }
        if start != 1 {
            return None;
        }
        for (at, letter) in whole.char_indices() {
            let mut flags = command.get_arguments();
            let flag = flags.find(|flag| flag.get_short() == Some(letter))?;
            let rest = &whole[at + letter.len_utf8()..];
            if rest.is_empty() || rest.starts_with('=') || flag.get_action().takes_values() {
                return Some(Self {
                    before: &whole[..at],
                    flag,
                    dashes: "-",
                    name: &whole[at..whole.len() - rest.len()],
                    start: start + at,
                    value: (!rest.is_empty()).then(|| rest.strip_prefix('=').unwrap_or(rest)),
                });
            }
        }
        None
    }
}

fn is_path(flag: &Arg) -> bool {
    flag.get_value_parser().type_id() == clap::builder::ValueParser::path_buf().type_id()
}

/// The words that Go takes for a truth value (strconv.ParseBool).
fn truth(word: &str) -> Option<bool> {
    match word {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_flags_may_have_one_dash() {
        for (given, meant) in [
            ("-no-subreaper id", "--no-subreaper id"),
            ("id -detach -b x", "id --detach -b x"),
            ("-bundle=/b id", "--bundle=/b id"),
            ("--pid-file -detach id", "--pid-file -detach id"),
            ("-b -detach id", "-b -detach id"),
            ("-d -- -detach", "-d -- -detach"),
            ("--detach=true id", "--detach id"),
            ("-keep=1 -d=T id", "--keep -d id"),
            ("--detach -b x --detach=false id", "-b x id"),
            ("--detach=perhaps id", "--detach=perhaps id"),
            ("-d=perhaps id", "--detach=perhaps id"),
            ("--bundle=true id", "--bundle=true id"),
            ("--pid-file= --bundle  -d id", "-d id"),
            ("-db x id", "-d -b x id"),
            ("-dbx -ddb=y id", "-d -bx -d -d -b=y id"),
            ("-db  id", "-d id"),
            ("--detach -d=0 -dd=f id", "id"),
            ("-dx -xd --d id", "-dx -xd --d id"),
        ] {
            let args = given.split(' ').map(OsString::from).collect();
            let meant: Vec<_> = meant.split(' ').map(OsString::from).collect();
            let command = command::<run::Run>("pelagos");
            assert_eq!(with_two_dashes(&command, args, Stop::Never), meant);
        }
    }

    #[test]
    fn what_follows_the_id_may_be_for_another_program() {
        for (given, meant) in [
            ("id -ef", "-- id -ef"),
            ("-format json id -f x", "--format json -- id -f x"),
            ("-f json -- id -ef", "-f json -- id -ef"),
        ] {
            let args = given.split(' ').map(OsString::from).collect();
            let meant: Vec<_> = meant.split(' ').map(OsString::from).collect();
            let command = command::<ps::Ps>("pelagos");
            assert_eq!(with_two_dashes(&command, args, Stop::of::<ps::Ps>()), meant);
        }
        let args = ["-de", "A=1", "a", "-x"].map(OsString::from).to_vec();
        let command = command::<exec::Exec>("pelagos");
        let meant = ["-d", "-e", "A=1", "--", "a", "-x"];
        assert_eq!(
            with_two_dashes(&command, args, Stop::of::<exec::Exec>()),
            meant.map(OsString::from)
        );
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let given = [&b"-env=A=\xff"[..], b"-deB=\xfe", b"-e", b"C=\xfd", b"\xfc"];
        let meant = [
            &b"--env=A=\xff"[..],
            b"-d",
            b"-eB=\xfe",
            b"-e",
            b"C=\xfd",
            b"--",
            b"\xfc",
        ];
        let os = |bytes: &&[u8]| OsString::from_vec(bytes.to_vec());
        let args = given.iter().map(os).collect();
        let meant: Vec<_> = meant.iter().map(os).collect();
        let command = command::<exec::Exec>("pelagos");
        assert_eq!(with_two_dashes(&command, args, Stop::AtForeign), meant);
    }

    #[test]
    fn every_command_is_well_formed() {
        whole_tree().debug_assert();
        for verb in &VERBS {
            (verb.command)("pelagos").debug_assert();
        }
    }

    #[test]
    fn name_is_the_last_part_of_argv0_and_never_a_number() {
        for (argv0, name) in [
            ("/usr/bin/runc", "runc"),
            ("pelagos", "pelagos"),
            ("/proc/self/fd/7", "pelagos"),
            ("", "pelagos"),
        ] {
            assert_eq!(program_name(OsStr::new(argv0)), name);
        }
    }

    #[test]
    fn version_begins_as_engines_expect() {
        let own = env!("CARGO_PKG_VERSION");
        assert!(version("pelagos").starts_with(&format!("pelagos version {own}\ncommit: ")));
        assert!(
            version("runc").starts_with(&format!("runc version 1.5.0+pelagos.{own}\ncommit: "))
        );
        assert_eq!(version("runc").lines().nth(2), Some("spec: 1.3.0"));
    }

    #[test]
    fn paths_are_made_absolute_by_text() {
        for (path, whole) in [("/a/./b/../c", "/a/c"), ("/..", "/"), ("//", "/")] {
            assert_eq!(absolute(Path::new(path)).unwrap(), Path::new(whole));
        }
    }

    #[test]
    fn cgroup_managers_are_words_and_a_switch() {
        for (words, expected) in [
            ("", Some(Driver::Cgroupfs)),
            ("--systemd-cgroup", Some(Driver::Systemd)),
            ("--cgroup-manager=cgroupfs", Some(Driver::Cgroupfs)),
            ("--cgroup-manager=disabled", Some(Driver::Disabled)),
            ("--cgroup-manager=Systemd", None),
            ("--cgroup-manager=", None),
            // The last one wins.
            (
                "--systemd-cgroup --cgroup-manager=cgroupfs",
                Some(Driver::Cgroupfs),
            ),
            (
                "--cgroup-manager=cgroupfs --systemd-cgroup",
                Some(Driver::Systemd),
            ),
            (
                "--cgroup-manager=disabled --systemd-cgroup --systemd-cgroup",
                Some(Driver::Systemd),
            ),
        ] {
            let words = ["pelagos"].into_iter().chain(words.split_terminator(' '));
            let matches = global_command("pelagos").get_matches_from(words);
            let flags = <Flags as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
            let found = driver(flags.systemd_cgroup, flags.cgroup_manager.as_deref());
            assert_eq!(found.ok(), expected, "{flags:?}");
        }
    }

    #[test]
    fn rootless_is_a_truth_value_or_auto() {
        for (word, expected) in [
            ("1", Some(Rootless::Yes)),
            ("T", Some(Rootless::Yes)),
            ("True", Some(Rootless::Yes)),
            ("f", Some(Rootless::No)),
            ("0", Some(Rootless::No)),
            ("FALSE", Some(Rootless::No)),
            ("Auto", Some(Rootless::Auto)),
            ("", Some(Rootless::Auto)),
            ("tRUE", None),
            ("yes", None),
        ] {
            assert_eq!(rootless(word).ok(), expected, "{word}");
        }
    }

    #[test]
    fn owner_is_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nweb:x:33:33::/:\n";
        assert_eq!(name_in(passwd, 33).as_deref(), Some("web"));
        assert_eq!(name_in(passwd, 34), None);
    }

    #[test]
    fn wrong_counts_are_named_as_runc_does() {
        assert_eq!(Count::Exactly(1).fault(2).as_deref(), Some("exactly 1"));
        assert_eq!(
            Count::Between(1, 2).fault(0).as_deref(),
            Some("a minimum of 1")
        );
        assert_eq!(
            Count::Between(1, 2).fault(3).as_deref(),
            Some("a maximum of 2")
        );
        assert_eq!(Count::Between(1, 2).fault(2), None);
    }
}
