//! How a command ends: the exit codes that scripts rely on.
//!
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | failed, or damage was found |
//! | 2 | wrong usage: a flag, a setting, a file of settings |
//! | 3 | the server could not be reached |
//! | 4 | done in part |
//! | 130 | interrupted with Ctrl-C |
//!
//! A reader that goes away (`| head`) is no failure: the command ends silently with 0.

use std::fmt;

/// An end other than "done" or "failed"; anything else that a command returns as an error is exit code 1.
#[derive(Debug)]
pub enum Exit {
    /// Wrong usage.
    Usage(String),
    /// Nobody answers at the address.
    Unreachable(String),
    /// Some of it was done; what was not has been printed already.
    Partly(String),
    /// It was not done, or damage was found; what exactly has been printed already.
    Failed(String),
    /// Ctrl-C.
    Interrupted,
}

impl Exit {
    /// The number that the shell sees.
    pub fn code(&self) -> u8 {
        match self {
            Exit::Failed(_) => 1,
            Exit::Usage(_) => 2,
            Exit::Unreachable(_) => 3,
            Exit::Partly(_) => 4,
            Exit::Interrupted => 130,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Usage(why) | Exit::Unreachable(why) | Exit::Partly(why) | Exit::Failed(why) => f.write_str(why),
            Exit::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for Exit {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_contract() {
        let codes = [
            Exit::Failed(String::new()),
            Exit::Usage(String::new()),
            Exit::Unreachable(String::new()),
            Exit::Partly(String::new()),
            Exit::Interrupted,
        ]
        .map(|e| e.code());
        assert_eq!(codes, [1, 2, 3, 4, 130]);
    }
}
