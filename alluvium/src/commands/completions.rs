//! `alluvium completions SHELL`: the script is made from the command line itself, so it is never out of date.

use clap::Args;
use clap_complete::Shell;

#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  alluvium completions bash > /etc/bash_completion.d/alluvium\n  \
    alluvium completions zsh > ~/.zfunc/_alluvium\n  alluvium completions fish > ~/.config/fish/completions/alluvium.fish")]
pub(super) struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::command_line(), "alluvium", &mut script);
    std::io::Write::write_all(&mut std::io::stdout(), &script)?;
    Ok(())
}
