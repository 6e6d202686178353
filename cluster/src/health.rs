//! Whether this node, or one of its groups, must stop, and why. The first reason stays.

use std::sync::OnceLock;

use tokio::sync::watch;

/// The node's health: once it has a reason to stop, it never loses it.
#[derive(Debug)]
pub(crate) struct Health {
    why: watch::Sender<Option<String>>,
}

impl Health {
    pub(crate) fn new() -> Health {
        Health { why: watch::Sender::new(None) }
    }

    /// A log could not be synced: what is on disk is unknown, so the process must not go on (DESIGN 3).
    pub(crate) fn stop(&self, why: String) {
        self.why.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                tracing::error!(why, "the node must stop");
                *now = Some(why);
            }
            first
        });
    }

    /// The reason, if there is one.
    pub(crate) fn stopped(&self) -> Option<String> {
        self.why.borrow().clone()
    }

    /// Returns with the reason as soon as there is one.
    pub(crate) async fn wait_stopped(&self) -> String {
        let mut why = self.why.subscribe();
        let now = why.wait_for(Option::is_some).await.expect("the sender is ours");
        now.clone().expect("waited for it")
    }
}

/// One group's health: the others go on when it stops.
#[derive(Debug, Default)]
pub(crate) struct GroupHealth {
    why: OnceLock<String>,
}

impl GroupHealth {
    pub(crate) fn stop(&self, what: &str, why: String) {
        if self.why.set(why).is_ok() {
            tracing::error!(group = what, why = self.why.get(), "a group has stopped; the others go on");
        }
    }

    pub(crate) fn stopped(&self) -> Option<&str> {
        self.why.get().map(String::as_str)
    }
}
