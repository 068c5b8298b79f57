//! `generate`: manual pages and completions; hidden.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

/// What is written.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Man,
    Completions,
}

/// Write manual pages or completions into a directory
#[derive(Args)]
pub(super) struct Generate {
    kind: Kind,
    dir: PathBuf,
}

impl Generate {
    pub(super) fn run(self, program: &Command) -> Result<ExitCode> {
        let name = program.get_name().to_owned();
        let mut program = program.clone();
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("make directory {}", self.dir.display()))?;
        match self.kind {
            Kind::Man => {
                program.build();
                let mut pages = vec![(name.clone(), &program)];
                while let Some((title, command)) = pages.pop() {
                    pages.extend(
                        command
                            .get_subcommands()
                            .filter(|verb| !verb.is_hide_set())
                            .map(|verb| (format!("{title}-{}", verb.get_name()), verb)),
                    );
                    let path = self.dir.join(format!("{title}.8"));
                    let mut file = File::create(&path)
                        .with_context(|| format!("create {}", path.display()))?;
                    clap_mangen::Man::new(command.clone())
                        .title(title.to_uppercase())
                        .section("8")
                        .render(&mut file)
                        .with_context(|| format!("write {}", path.display()))?;
                }
            }
            Kind::Completions => {
                for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                    clap_complete::generate_to(shell, &mut program, &name, &self.dir)
                        .with_context(|| format!("write into {}", self.dir.display()))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
