//! `alluvium`: one program for the server and everything that talks to it.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    alluvium::commands::run(std::env::args_os().collect())
}
