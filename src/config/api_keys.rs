//! The keys of the read API.

use toml::Value;

use super::ApiKey;
use super::raw::{Layers, quote, suggest};

const KEY: &str = "api.keys";
const ACCEPTED: &str = "an array of { key_sha256 = \"64 hex digits\", token = \"…\" }";

/// Takes the keys out of the raw values, noting each that is refused.
pub(super) fn read(layers: &mut Layers) -> Vec<ApiKey> {
    let Some((value, source)) = layers.compound(KEY, ACCEPTED) else {
        return Vec::new();
    };
    let Value::Array(values) = value else {
        layers.problem(format!("{KEY} ({source}): must be {ACCEPTED}"));
        return Vec::new();
    };
    let mut keys: Vec<ApiKey> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        match api_key(value) {
            Ok(key) if keys.iter().any(|other| other.key_sha256 == key.key_sha256) => {
                layers.problem(format!(
                    "{KEY}[{index}] ({source}): the same key_sha256 as one before it"
                ));
            }
            Ok(key) => keys.push(key),
            Err(problem) => layers.problem(format!("{KEY}[{index}]{problem} ({source})")),
        }
    }
    keys
}

fn api_key(value: &Value) -> Result<ApiKey, String> {
    let table = value
        .as_table()
        .ok_or_else(|| ": must be { key_sha256, token }".to_owned())?;
    let names = ["key_sha256", "token"];
    if let Some(unknown) = table.keys().find(|name| !names.contains(&name.as_str())) {
        return Err(format!(
            ".{unknown}: no such key; {}",
            suggest(unknown, names.into_iter())
        ));
    }
    let hash = table
        .get("key_sha256")
        .and_then(Value::as_str)
        .and_then(hash_from_hex);
    // The value is not shown: it may well be the key itself.
    let key_sha256 = hash.ok_or(".key_sha256: must be the 64 hex digits of the key's SHA-256, in quotes")?;
    let token = table
        .get("token")
        .and_then(Value::as_str)
        .map(str::trim)
        .unwrap_or_default();
    if token.is_empty() || token.len() > 64 || !token.is_ascii() {
        return Err(format!(
            ".token = {}: must be 1 to 64 bytes of ASCII",
            quote(token)
        ));
    }
    Ok(ApiKey {
        key_sha256,
        token: token.to_owned(),
    })
}

fn hash_from_hex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let mut hash = [0; 32];
    for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    Some(hash)
}
