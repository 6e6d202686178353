//! Access tokens at a node: how a new one is drawn, which ones it is given from outside, and how to get in again.
//!
//! An admin token given by `ALLUVIUM_ADMIN_TOKEN` or `--admin-token-file` is good at this node for as long as it runs with
//! it, and is kept nowhere. `alluvium token reset` leaves a file in a stopped node's data directory; the next start
//! hands the token in it to the cluster and then removes the file.
//!
//! `DIR/reset-token` = one JSON object, `cluster::Token`: a name and a hash, never a secret.

pub mod http;

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, Token, TokenHash};
use model::{ErrorKind, Timestamp};
use rand::TryRngCore;
use rand::rngs::OsRng;

use crate::config::Settings;

/// What the token given from outside is called in messages and `system.queries`.
const OUTSIDE: &str = "ALLUVIUM_ADMIN_TOKEN";
/// Letters of a token given from outside: fewer can be guessed.
const SHORTEST: usize = 16;
/// The file that `token reset` leaves.
const RESET_FILE: &str = "reset-token";
/// While the cluster cannot decide, a reset token is handed over again after so long.
const HAND_OVER_AGAIN: Duration = Duration::from_secs(1);

/// Why a token from outside cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read or written.
    #[error("could not {doing} {}: {source}", path.display())]
    File {
        /// What was tried.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A token that anyone could guess.
    #[error("the admin token of {from} has fewer than {SHORTEST} letters: anyone could guess it ('openssl rand -hex 32' makes a good one)")]
    TooShort {
        /// Where it comes from.
        from: String,
    },
    /// A token that no request can show: what stands before `:` is taken for a user's name.
    #[error("the admin token of {from} has a ':', which no request can show: take letters and digits only")]
    Colon {
        /// Where it comes from.
        from: String,
    },
    /// Both ways at once, with two tokens.
    #[error("ALLUVIUM_ADMIN_TOKEN and --admin-token-file give different tokens: which one is meant?")]
    Two,
}

/// A new secret: 256 random bits that are easily told to be a token of ours.
pub fn draw() -> String {
    let mut bytes = [0; 32];
    OsRng.try_fill_bytes(&mut bytes).expect("the system has randomness");
    let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("alluvium_{digits}")
}

/// The admin token that this node was started with, if it was.
pub fn from_outside(settings: &Settings, now: Timestamp) -> Result<Option<Token>, Error> {
    let given = settings.admin_token.trim();
    let mut from = OUTSIDE.to_owned();
    let mut secret = given.to_owned();
    if let Some(path) = &settings.admin_token_file.0 {
        let text = std::fs::read_to_string(path).map_err(|source| Error::File { doing: "read", path: path.clone(), source })?;
        if !given.is_empty() && given != text.trim() {
            return Err(Error::Two);
        }
        from = path.display().to_string();
        secret = text.trim().to_owned();
    } else if given.is_empty() {
        return Ok(None);
    }
    if secret.contains(':') {
        return Err(Error::Colon { from });
    }
    match secret.len() >= SHORTEST {
        true => Ok(Some(Token::admin(OUTSIDE, TokenHash::of(&secret), now))),
        false => Err(Error::TooShort { from }),
    }
}

/// Leaves a new admin token of this name in a stopped node's directory, for its next start. Gives the secret.
pub fn leave_reset(data_dir: &Path, name: &str, now: Timestamp) -> Result<String, Error> {
    let secret = draw();
    let token = Token::admin(name, TokenHash::of(&secret), now);
    let path = data_dir.join(RESET_FILE);
    let beside = path.with_extension("new");
    let text = serde_json::to_vec(&token).expect("a token becomes JSON");
    let written = || {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&beside, &path)
    };
    written().map_err(|source| Error::File { doing: "write", path: path.clone(), source })?;
    Ok(secret)
}

/// The token that `token reset` has left, if it has.
pub fn reset_left(data_dir: &Path) -> Result<Option<Token>, Error> {
    let path = data_dir.join(RESET_FILE);
    let read = std::fs::read(&path).and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other));
    match read {
        Ok(token) => Ok(Some(token)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::File { doing: "read", path, source }),
    }
}

/// Hands a token that was left to the cluster, as often as it takes, then removes the file. Whether the cluster knows it.
pub async fn hand_over(cluster: Arc<Cluster>, token: Token, data_dir: PathBuf) -> bool {
    let name = token.name.clone();
    loop {
        match cluster.reset_token(token.clone()).await {
            Ok(()) => break,
            Err(error) if error.kind() == ErrorKind::TryAgain => {
                tracing::warn!(%error, "could not hand the reset token to the cluster yet");
                tokio::time::sleep(HAND_OVER_AGAIN).await;
            }
            Err(error) => {
                tracing::error!(%error, "could not hand the reset token to the cluster; it is good at this node only");
                return false;
            }
        }
    }
    match std::fs::remove_file(data_dir.join(RESET_FILE)) {
        Ok(()) => tracing::info!(token = &*name, "the token that 'alluvium token reset' made is known to the cluster"),
        Err(error) => tracing::error!(%error, "could not remove {RESET_FILE}: it would reset the token again"),
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_secret_is_its_own_and_long_enough() {
        let (a, b) = (draw(), draw());
        assert_ne!(a, b);
        assert_eq!(a.len(), "alluvium_".len() + 64);
    }

    #[test]
    fn a_reset_is_found_by_the_next_start_and_shows_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        assert!(reset_left(dir.path()).unwrap().is_none());
        let secret = leave_reset(dir.path(), "admin", Timestamp(1)).unwrap();
        let token = reset_left(dir.path()).unwrap().unwrap();
        assert!(token.hash.matches(&TokenHash::of(&secret)));
        assert!(token.is_admin_of_all());
        assert!(!std::fs::read_to_string(dir.path().join(RESET_FILE)).unwrap().contains(&secret[9..]));
        std::fs::write(dir.path().join(RESET_FILE), "{").unwrap();
        assert!(reset_left(dir.path()).is_err());
    }
}
