//! `alluvium cluster dev|status|move|split|drain|hand-over|recover`: a cluster on this machine, and what an operator does to a running
//! one.

mod dev;
mod live;
mod members;
mod operate;

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  alluvium cluster dev                             3 ingest, 3 storage, 3 query nodes; Ctrl-C ends them\n  \
    alluvium cluster dev --restart storage-2         in another terminal: starts a node that was killed\n  \
    alluvium cluster status\n  \
    alluvium cluster move 3 storage-2\n  \
    alluvium cluster split 3 --wait\n  \
    alluvium cluster drain storage-3 --wait"
)]
pub(super) struct ClusterArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Start a whole cluster as processes of this machine, and follow it until Ctrl-C
    Dev(dev::DevArgs),
    /// Show nodes and shards of a running cluster
    Status(operate::StatusArgs),
    /// Move a shard to a node, or make a node that holds it its leader
    Move(operate::MoveArgs),
    /// Make two shards of one, so that each can have nodes of its own
    Split(operate::SplitArgs),
    /// Give away all that a node holds, before it is taken out for good
    Drain(operate::DrainArgs),
    /// Let others lead what a node leads, before it is stopped for a while
    HandOver(operate::HandOverArgs),
    /// Give up the replicas of a shard whose majority is gone for ever, and go on with what is left
    Recover(operate::RecoverArgs),
}

pub(super) fn run(args: ClusterArgs) -> anyhow::Result<()> {
    // Processes are started on the thread that stays to the end: they end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match args.what {
            What::Dev(args) => dev::run(args).await,
            What::Status(args) => super::interruptible(operate::status(args)).await,
            What::Move(args) => super::interruptible(operate::move_shard(args)).await,
            What::Split(args) => super::interruptible(operate::split(args)).await,
            What::Drain(args) => super::interruptible(operate::drain(args)).await,
            What::HandOver(args) => super::interruptible(operate::hand_over(args)).await,
            What::Recover(args) => super::interruptible(operate::recover(args)).await,
        }
    })
}
