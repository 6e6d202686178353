//! Access tokens: who is let in, and what they may do.
//!
//! A token is a secret text of whoever made it (`alluvium token create` draws 256 random bits); only its SHA-256 is ever
//! kept, agreed on by the metadata group. A hash without salt is enough because nobody can try 2^256 secrets. Comparing
//! takes the same time wherever the bytes differ. What a request needs is decided at the doors; [`Access`] travels with
//! the request and answers whether it may.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use model::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use thiserror::Error;

/// Tokens of a cluster; each request without a match compares with all of them.
pub const MAX_TOKENS: usize = 1_000;
/// Bytes of a token's name.
pub const MAX_TOKEN_NAME_BYTES: usize = 255;

/// What a token keeps of its secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenHash(#[serde(with = "hexadecimal")] [u8; 32]);

impl TokenHash {
    /// The hash of a secret.
    pub fn of(secret: &str) -> TokenHash {
        TokenHash(Sha256::digest(secret.as_bytes()).into())
    }

    /// Whether both are of one secret, in a time that does not tell where they differ.
    pub fn matches(&self, other: &TokenHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for TokenHash {
    /// The first bytes are enough to tell two apart.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenHash({:02x}{:02x}{:02x}{:02x}…)", self.0[0], self.0[1], self.0[2], self.0[3])
    }
}

/// Something that a token may let one do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Permission {
    /// Ask.
    Read,
    /// Write points, make databases, flush.
    Write,
    /// Both, and drop, set retention; of all databases: tokens and the cluster itself too.
    Admin,
}

impl Permission {
    /// All of them, the smallest first.
    pub const ALL: [Permission; 3] = [Permission::Read, Permission::Write, Permission::Admin];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Permission::Read => "read",
            Permission::Write => "write",
            Permission::Admin => "admin",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Permission {
    type Err = String;

    fn from_str(text: &str) -> Result<Permission, String> {
        Permission::ALL.into_iter().find(|p| p.name() == text).ok_or_else(|| format!("'{text}' is none of read, write, admin"))
    }
}

/// A token as everyone may know it: all but its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// What people call it.
    pub name: Arc<str>,
    /// The hash of its secret.
    pub hash: TokenHash,
    /// What it lets one do; sorted, not empty.
    pub permissions: Vec<Permission>,
    /// With this database only; `None`: with all of them.
    pub database: Option<Arc<str>>,
    /// When it was made.
    pub created: Timestamp,
}

impl Token {
    /// A token for everything, under this name.
    pub fn admin(name: &str, hash: TokenHash, created: Timestamp) -> Token {
        Token { name: name.into(), hash, permissions: vec![Permission::Admin], database: None, created }
    }

    /// Whether it lets one do `what` with a database; without one: with all of them and what belongs to none.
    pub fn allows(&self, what: Permission, database: Option<&str>) -> bool {
        let there = self.database.is_none() || self.database.as_deref() == database;
        there && (self.permissions.contains(&what) || self.permissions.contains(&Permission::Admin))
    }

    /// Whether it may make and revoke tokens.
    pub fn is_admin_of_all(&self) -> bool {
        self.allows(Permission::Admin, None)
    }
}

/// What the sender of a request may do.
#[derive(Clone, Debug, Default)]
pub enum Access {
    /// Everything: there are no tokens, or the node itself asks.
    #[default]
    Everything,
    /// What this token lets one do.
    Token(Arc<Token>),
}

impl Access {
    /// Whether `what` may be done with a database; without one: with all of them and what belongs to none.
    pub fn allows(&self, what: Permission, database: Option<&str>) -> bool {
        match self {
            Access::Everything => true,
            Access::Token(token) => token.allows(what, database),
        }
    }

    /// The same as a result, for whoever answers with its words.
    pub fn check(&self, what: Permission, database: Option<&str>) -> Result<(), Forbidden> {
        match self {
            Access::Token(token) if !token.allows(what, database) => {
                Err(Forbidden { token: token.name.clone(), what, database: database.map(Into::into) })
            }
            _ => Ok(()),
        }
    }

    /// The one database that may be seen, if it is not all of them.
    pub fn only_database(&self) -> Option<&Arc<str>> {
        match self {
            Access::Everything => None,
            Access::Token(token) => token.database.as_ref(),
        }
    }

    /// The token's name; those without one share the empty name.
    pub fn name(&self) -> &str {
        match self {
            Access::Everything => "",
            Access::Token(token) => &token.name,
        }
    }
}

/// A token that is known and may not do this.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("token '{token}' may not {} {}", verb(*what), object(database.as_deref()))]
pub struct Forbidden {
    token: Arc<str>,
    what: Permission,
    database: Option<Arc<str>>,
}

fn verb(what: Permission) -> &'static str {
    match what {
        Permission::Read => "read",
        Permission::Write => "write to",
        Permission::Admin => "administer",
    }
}

fn object(database: Option<&str>) -> String {
    database.map_or_else(|| "all databases".to_owned(), |name| format!("database '{name}'"))
}

/// The token of a secret; all are looked at, so that the time tells nothing.
pub(crate) fn find<'a>(tokens: impl IntoIterator<Item = &'a Arc<Token>>, secret: &str) -> Option<&'a Arc<Token>> {
    let hash = TokenHash::of(secret);
    tokens.into_iter().fold(None, |found, token| if token.hash.matches(&hash) { Some(token) } else { found })
}

/// 64 digits in JSON.
mod hexadecimal {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        serializer.serialize_str(&digits)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
        let digits = String::deserialize(deserializer)?;
        let wrong = || D::Error::custom("a token's hash is 64 hexadecimal digits");
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(permissions: &[Permission], database: Option<&str>) -> Token {
        Token {
            name: "t".into(),
            hash: TokenHash::of("secret"),
            permissions: permissions.to_vec(),
            database: database.map(Into::into),
            created: Timestamp(0),
        }
    }

    #[test]
    fn a_token_allows_what_it_says_and_nothing_else() {
        use Permission::{Admin, Read, Write};
        for (has, of, what, with, may) in [
            (Read, None, Read, Some("home"), true),
            (Read, None, Write, Some("home"), false),
            (Write, None, Read, Some("home"), false),
            (Write, Some("home"), Write, Some("home"), true),
            (Write, Some("home"), Write, Some("homes"), false),
            (Write, Some("home"), Write, None, false),
            (Admin, Some("home"), Read, Some("home"), true),
            (Admin, Some("home"), Write, Some("home"), true),
            (Admin, Some("home"), Admin, Some("home"), true),
            (Admin, Some("home"), Admin, None, false),
            (Admin, None, Admin, None, true),
            (Admin, None, Read, Some("home"), true),
        ] {
            assert_eq!(token(&[has], of).allows(what, with), may, "{has} of {of:?}: {what} with {with:?}");
        }
    }

    #[test]
    fn a_secret_finds_its_token_only() {
        let tokens = [Arc::new(token(&[Permission::Read], None))];
        assert!(find(&tokens, "secret").is_some());
        for wrong in ["", "secre", "secret ", "Secret", "secretsecret"] {
            assert!(find(&tokens, wrong).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_token_survives_its_bytes_and_shows_no_secret() {
        let token = token(&[Permission::Read, Permission::Write], Some("home"));
        let text = serde_json::to_string(&token).unwrap();
        assert_eq!(serde_json::from_str::<Token>(&text).unwrap(), token);
        assert!(text.contains("\"permissions\":[\"read\",\"write\"]"), "{text}");
        assert!(!format!("{token:?}{text}").contains("secret"));
        for bad in ["", "00", &"0".repeat(63), &"g".repeat(64), &"ä".repeat(32)] {
            assert!(serde_json::from_value::<TokenHash>(serde_json::json!(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_refusal_says_who_may_not_do_what() {
        let access = Access::Token(Arc::new(token(&[Permission::Read], Some("home"))));
        let words = |what, database| access.check(what, database).unwrap_err().to_string();
        assert_eq!(words(Permission::Write, Some("home")), "token 't' may not write to database 'home'");
        assert_eq!(words(Permission::Admin, None), "token 't' may not administer all databases");
        assert!(Access::Everything.check(Permission::Admin, None).is_ok());
    }
}
