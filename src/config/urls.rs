//! The services' URLs: which are taken, and how one that is refused may be shown.
//!
//! Invariant: no message holds a password, also not of a URL that is wrong in a way nobody thought of.

use url::Url;

use super::raw::{Layers, quote};
use super::secret::{HIDDEN, SecretUrl};

/// A URL as it may be shown while it is refused. One that cannot be parsed, or has an @ in the wrong place, may
/// have its password anywhere.
pub(super) fn shown_url(text: &str) -> String {
    let bare = text.split('?').next().unwrap_or_default();
    match (Url::parse(bare), bare.matches('@').count()) {
        (Ok(url), 1) if url.password().is_some() => quote(&SecretUrl::new(url).to_string()),
        (_, 0) => quote(bare),
        _ => HIDDEN.to_owned(),
    }
}

/// The URL, if it is one of these schemes and of a host, with a password that could not be misread.
pub(super) fn service_url(text: &str, schemes: &[&str]) -> Result<Url, String> {
    let accepted = || {
        let schemes: Vec<String> = schemes
            .iter()
            .map(|scheme| format!("{scheme}://host:port"))
            .collect();
        format!("must be {}", schemes.join(" or "))
    };
    let url = Url::parse(text).map_err(|error| format!("{} ({error})", accepted()))?;
    if !schemes.contains(&url.scheme()) || !url.has_host() {
        return Err(accepted());
    }
    if url.path().contains('@') || url.fragment().is_some() || url.query().is_some_and(|q| q.contains('@')) {
        return Err(
            "must have /, ?, # and @ of its password percent-encoded (%2F, %3F, %23, %40)".to_owned(),
        );
    }
    Ok(url)
}

/// The URL without user and password, and these two, decoded.
pub(super) fn clickhouse_url(layers: &mut Layers) -> Option<(SecretUrl, Option<String>, Option<String>)> {
    const KEY: &str = "clickhouse.url";
    let (text, source) = layers.hidden_text(KEY)?;
    let checked = service_url(&text, &["http", "https"]).and_then(|url| match url.query() {
        Some(_) => {
            Err("must have no ?settings; user and password are clickhouse.user and .password".to_owned())
        }
        None => Ok(url),
    });
    let mut url = match checked {
        Ok(url) => url,
        Err(problem) => {
            layers.problem(format!("{KEY} = {} ({source}): {problem}", shown_url(&text)));
            return None;
        }
    };
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    let user = Some(decoded(url.username())).filter(|user| !user.is_empty());
    let password = url.password().map(decoded);
    if url
        .set_username("")
        .and_then(|()| url.set_password(None))
        .is_err()
    {
        layers.problem(format!("{KEY} ({source}): must be http://host:port"));
    }
    Some((SecretUrl::new(url), user, password))
}
