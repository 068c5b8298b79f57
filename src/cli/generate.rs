//! `generate`: manual pages and completions from the command definitions. Hidden: it is for packagers and `make`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
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
    let tree = whole_tree();
    let pages = tree
        .get_subcommands()
        .cloned()
        .map(|verb| (format!("pelagos-{}", verb.get_name()), verb));
    for (name, command) in [("pelagos".to_owned(), tree.clone())]
        .into_iter()
        .chain(pages)
    {
        let page = clap_mangen::Man::new(command.display_name(name.clone())).section("8");
        let mut text = Vec::new();
        page.render(&mut text)?;
        fs::write(directory.join(format!("{name}.8")), text)?;
    }
    Ok(())
}

fn completions(directory: &Path) -> Result<()> {
    let mut tree = whole_tree();
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut tree, "pelagos", directory)?;
    }
    Ok(())
}
