//! `generate`: manual pages and completions from the command definitions. Hidden: it is for packagers and `make`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use clap::builder::PossibleValuesParser;
use clap::{Arg, Command};
use clap_complete::Shell;

use super::{Count, Global, Verb, whole_tree};

#[derive(Debug, clap::Args)]
pub(super) struct Generate {
    #[arg(hide = true)]
    arguments: Vec<String>,
}

impl Verb for Generate {
    const NAME: &'static str = "generate";
    const ABOUT: &'static str = "write manual pages or completions into a directory";
    const USAGE: &'static str = "man|completions <directory>";
    const ARGUMENTS: Count = Count::Exactly(2);
    const HIDDEN: bool = true;

    fn run(self, _: &Global) -> Result<u8> {
        let directory = Path::new(&self.arguments[1]);
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        match self.arguments[0].as_str() {
            "man" => manual_pages(directory),
            "completions" => completions(directory),
            other => bail!("cannot generate {other:?}, only man or completions"),
        }
        .with_context(|| format!("write into {}", directory.display()))?;
        Ok(0)
    }
}

/// `pelagos.8` and one page per verb.
fn manual_pages(directory: &Path) -> Result<()> {
    // Without clap's `help` among the verbs: `pelagos help` works, but has no page that could be referred to.
    let tree = whole_tree().disable_help_subcommand(true);
    let pages = tree
        .get_subcommands()
        .cloned()
        .map(|verb| (format!("pelagos-{}", verb.get_name()), verb));
    for (name, command) in [("pelagos".to_owned(), tree.clone())]
        .into_iter()
        .chain(pages)
    {
        let page = clap_mangen::Man::new(command.display_name(name.clone()))
            .section("8")
            .source(concat!("pelagos ", env!("CARGO_PKG_VERSION")));
        let mut text = Vec::new();
        page.render(&mut text)?;
        fs::write(directory.join(format!("{name}.8")), text)?;
    }
    Ok(())
}

/// Options with few values, by their long names, and what they are. The verbs parse them with runc's messages, so that the
/// definitions do not hold them.
const VALUES: [(&str, &[&str]); 7] = [
    ("cgroup-manager", &["cgroupfs", "systemd", "disabled"]),
    ("format", &["table", "json"]),
    ("log-format", &["text", "json"]),
    ("log-level", &["error", "warning", "debug"]),
    ("manage-cgroups-mode", &["soft", "full", "strict", "ignore"]),
    ("network-lock", &["iptables", "nftables", "skip"]),
    ("rootless", &["true", "false", "auto"]),
];

/// The definition with the values that a shell can offer.
fn offering(command: Command) -> Command {
    let values = |arg: &Arg| {
        let long = arg.get_long()?;
        VALUES.iter().find(|(name, _)| *name == long)
    };
    command
        .mut_args(|arg| match values(&arg) {
            Some((_, values)) => arg.value_parser(PossibleValuesParser::new(*values)),
            None => arg,
        })
        .mut_subcommands(offering)
}

fn completions(directory: &Path) -> Result<()> {
    let mut tree = offering(whole_tree());
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut tree, "pelagos", directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(directory: &Path, name: &str) -> String {
        fs::read_to_string(directory.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn every_page_that_the_manual_refers_to_is_written() {
        let directory = tempfile::tempdir().unwrap();
        manual_pages(directory.path()).unwrap();
        let whole = read(directory.path(), "pelagos.8").replace('\\', "");
        let named: Vec<_> = whole
            .lines()
            .filter_map(|line| line.strip_suffix("(8)"))
            .collect();
        assert!(named.contains(&"pelagos-create"), "{named:?}");
        for name in named {
            let page = read(directory.path(), &format!("{name}.8"));
            assert!(page.contains(concat!("\"pelagos ", env!("CARGO_PKG_VERSION"))));
        }
    }

    #[test]
    fn completions_know_every_verb() {
        let directory = tempfile::tempdir().unwrap();
        completions(directory.path()).unwrap();
        for name in ["pelagos.bash", "pelagos.fish", "_pelagos"] {
            let text = read(directory.path(), name);
            for verb in whole_tree().get_subcommands() {
                assert!(text.contains(verb.get_name()), "{name}");
            }
        }
        let bash = read(directory.path(), "pelagos.bash");
        for (_, values) in VALUES {
            let offered = format!("compgen -W \"{}\"", values.join(" "));
            assert!(bash.contains(&offered), "{offered}");
        }
    }
}
