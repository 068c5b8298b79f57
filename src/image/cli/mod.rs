//! The command line of `pelagos-image`: options before the verb, the verbs, and what a failure looks like.

mod bundle;
mod df;
mod export;
mod fsck;
mod generate;
mod import;
mod inspect;
mod list;
mod prune;
mod registry;
mod rm;
mod run;
mod tag;
mod unpack;
mod untag;
mod volume;

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use nix::unistd::Uid;

use crate::report;

use super::store::Durability;

/// What every verb may need to know of the options before it.
pub(crate) struct Global {
    /// The store's root, absolute. It need not exist.
    pub(crate) root: PathBuf,
    /// When written content has to be on the disk.
    pub(crate) durability: Durability,
    /// No progress and no remarks, only results and errors.
    pub(crate) quiet: bool,
}

/// The shape in which a listing verb prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// One JSON document; its members are described in docs/IMAGE.md.
    Json,
}

/// Where the help lists the options that every verb has: after the verb's own.
const AFTER_THE_VERBS: usize = 900;

#[derive(Parser)]
#[command(
    name = "pelagos-image",
    version,
    about = "Keep OCI images, unpack them, make bundles, and prune without losing what is in use",
    disable_help_subcommand = true,
    arg_required_else_help = true,
    propagate_version = true
)]
struct CommandLine {
    /// The store [default: /var/lib/pelagos; for an ordinary user $XDG_DATA_HOME/pelagos]
    #[arg(long, global = true, value_name = "DIR", display_order = AFTER_THE_VERBS)]
    root: Option<PathBuf>,

    /// When content has to be on the disk: not at all, once before it is recorded, or file by file
    #[arg(
        long,
        global = true,
        display_order = AFTER_THE_VERBS,
        value_enum,
        default_value_t,
        value_name = "HOW",
        hide_possible_values = false
    )]
    sync: Durability,

    /// Only results and errors
    #[arg(long, short, global = true, display_order = AFTER_THE_VERBS)]
    quiet: bool,

    /// Say the steps of the work
    #[arg(long, global = true, display_order = AFTER_THE_VERBS)]
    debug: bool,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Import(import::Import),
    List(list::List),
    Inspect(inspect::Inspect),
    Tag(tag::Tag),
    Untag(untag::Untag),
    Rm(rm::Rm),
    Unpack(unpack::Unpack),
    Bundle(bundle::Bundle),
    Run(run::Run),
    Export(export::Export),
    Volume(volume::Volume),
    Df(df::Df),
    Prune(prune::Prune),
    Fsck(fsck::Fsck),
    #[command(hide = true)]
    Generate(generate::Generate),
}

/// Parse, carry out, report: see [`super::main`].
pub(super) fn main() -> ExitCode {
    let CommandLine {
        root,
        sync,
        quiet,
        debug,
        verb,
    } = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => {
            let shown = matches!(
                error.kind(),
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
            );
            // Nothing can be said where stderr itself is gone.
            drop(error.print());
            return if shown {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(2)
            };
        }
    };
    drop(report::set_up(
        "pelagos-image",
        &report::Target::Stderr,
        report::Format::Text,
        match debug {
            true => report::Level::Debug,
            false => report::Level::Warning,
        },
    ));
    let done = store_root(root).and_then(|root| {
        let global = Global {
            root,
            durability: sync,
            quiet,
        };
        verb.run(&global)
    });
    done.unwrap_or_else(|error| {
        report::fail_plainly("pelagos-image", &error);
        ExitCode::FAILURE
    })
}

impl Verb {
    fn run(self, global: &Global) -> Result<ExitCode> {
        match self {
            Self::Import(verb) => verb.run(global),
            Self::List(verb) => verb.run(global),
            Self::Inspect(verb) => verb.run(global),
            Self::Tag(verb) => verb.run(global),
            Self::Untag(verb) => verb.run(global),
            Self::Rm(verb) => verb.run(global),
            Self::Unpack(verb) => verb.run(global),
            Self::Bundle(verb) => verb.run(global),
            Self::Run(verb) => verb.run(global),
            Self::Export(verb) => verb.run(global),
            Self::Volume(verb) => verb.run(global),
            Self::Df(verb) => verb.run(global),
            Self::Prune(verb) => verb.run(global),
            Self::Fsck(verb) => verb.run(global),
            Self::Generate(verb) => verb.run(&CommandLine::command()),
        }
    }
}

/// The store's root as an absolute path.
fn store_root(given: Option<PathBuf>) -> Result<PathBuf> {
    let root = match given {
        Some(root) if root.as_os_str().is_empty() => bail!("--root: the path is empty"),
        Some(root) => root,
        None if Uid::effective().is_root() => PathBuf::from("/var/lib/pelagos"),
        None => {
            let data = std::env::var_os("XDG_DATA_HOME")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
                .or_else(|| {
                    std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"))
                })
                .context("neither XDG_DATA_HOME nor HOME is set: name the store with --root")?;
            data.join("pelagos")
        }
    };
    std::path::absolute(&root).with_context(|| format!("--root {}", root.display()))
}

/// Whether a question would reach a person.
fn somebody_is_there() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Show `text` on the terminal and ask: whether the answer is yes.
fn confirmed(text: &str, question: &str) -> Result<bool> {
    let mut answer = String::new();
    let asked = write!(io::stderr(), "{text}{question} [y/N] ")
        .and_then(|()| io::stdin().lock().read_line(&mut answer));
    asked.context("ask on the terminal")?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes" | "YES"))
}

/// Print a result. A reader that has gone, as `| head` has, is no failure of ours.
pub(super) fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("write to stdout")
        }
        _ => Ok(()),
    }
}
