//! Values that may be used but never shown.
//!
//! Owns the two wrappers of the configuration's secrets. Their `Debug`, `Display` and `Serialize` never give
//! the secret away; the one way to it is a method named `expose`, so that a review finds every use.

use std::fmt;

use serde::{Serialize, Serializer};
use url::Url;

/// What stands in the place of a secret.
pub const HIDDEN: &str = "***";

/// A password or another text that must not be shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the client that needs it and nothing else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is nothing to hide.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `***`, or nothing where the secret is empty: an empty password is worth knowing about.
impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "" } else { HIDDEN })
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A service's URL, which may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    /// Wraps a URL that has been parsed.
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The URL with its password, for the client that needs it and nothing else.
    pub fn expose(&self) -> &Url {
        &self.0
    }

    /// The password as it stands in the URL (percent-encoded), if there is one.
    pub(super) fn expose_password(&self) -> Option<&str> {
        self.0.password().filter(|password| !password.is_empty())
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The URL with `***` for its password.
impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.expose_password().is_none() {
            return f.write_str(self.0.as_str());
        }
        let mut shown = self.0.clone();
        // Refused only for a URL without a host, which cannot have a password either.
        if shown.set_password(Some(HIDDEN)).is_err() {
            return f.write_str(HIDDEN);
        }
        f.write_str(shown.as_str())
    }
}

impl Serialize for SecretUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The URLs of a service that is reached at several addresses. The first may hold a password, for all.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrls {
    first: SecretUrl,
    rest: Vec<SecretUrl>,
}

impl SecretUrls {
    /// Wraps URLs that have been parsed and fit each other.
    pub fn new(first: SecretUrl, rest: Vec<SecretUrl>) -> Self {
        Self { first, rest }
    }

    /// The one that tells scheme, user, password and database.
    pub fn first(&self) -> &SecretUrl {
        &self.first
    }

    /// The first URL with its password, for the client that needs it and nothing else.
    pub fn expose(&self) -> &Url {
        self.first.expose()
    }

    /// All of them, the first one first.
    pub fn iter(&self) -> impl Iterator<Item = &SecretUrl> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

impl fmt::Debug for SecretUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Separated by commas, with `***` for passwords.
impl fmt::Display for SecretUrls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first)?;
        self.rest.iter().try_for_each(|url| write!(f, ",{url}"))
    }
}

impl Serialize for SecretUrls {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "*** ***");
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(Secret::default().to_string(), "");
    }

    #[test]
    fn a_url_hides_its_password_and_nothing_else() {
        let url = SecretUrl::new("redis://user:hunter2@cache:6379/1".parse().unwrap());
        assert_eq!(url.to_string(), "redis://user:***@cache:6379/1");
        assert_eq!(format!("{url:?}"), "redis://user:***@cache:6379/1");
        assert_eq!(url.expose().as_str(), "redis://user:hunter2@cache:6379/1");
        let open = SecretUrl::new("http://127.0.0.1:8123".parse().unwrap());
        assert_eq!(open.to_string(), "http://127.0.0.1:8123/");
    }
}
