//! What a commit's metadata says: the announcement of a block, and the record before the committed offset.
//!
//! Text of the form `v1;i=0;p=41:9a…;e=99;d=…;t=…;u=1;f=…`. Owns that format. What follows from it for
//! a partition is in `position`.

use std::fmt::Write as _;

/// A block that was announced: `[committed offset, end)` is written under a token made of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The offset after the block's last.
    pub end: i64,
    /// The digest of its records.
    pub digest: u128,
    /// When it was announced by the worker's clock, ms since 1970; the rows' `ingested_at`.
    pub time_ms: i64,
    /// Its permits were not asked for (limits were off), so they are recorded nowhere: all passed.
    pub unlimited: bool,
    /// When it was announced first, ms since 1970, if nobody had written any of it before: then every row that the table
    /// has of it came under its token, at that time or later.
    pub first_ms: Option<i64>,
}

/// A record that is known to have been at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Previous {
    /// Its offset.
    pub offset: i64,
    /// Its fingerprint.
    pub hash: u64,
}

/// A commit's metadata.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// `kafka.incarnation` of the worker that committed.
    pub incarnation: u32,
    /// The last record before the committed offset.
    pub previous: Option<Previous>,
    /// The block that follows, if it was announced.
    pub announced: Option<Announcement>,
}

/// Metadata of a version that this worker does not know. It must not guess.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("the committed offset has metadata of a version that this worker does not know: {0:?}")]
pub struct UnknownVersion(pub String);

impl Metadata {
    /// The text to commit.
    pub fn encode(&self) -> String {
        let mut out = format!("v1;i={}", self.incarnation);
        let mut push = |args: std::fmt::Arguments<'_>| out.write_fmt(args).unwrap_or_default();
        if let Some(p) = self.previous {
            push(format_args!(";p={}:{:016x}", p.offset, p.hash));
        }
        if let Some(a) = self.announced {
            push(format_args!(";e={};d={:032x};t={}", a.end, a.digest, a.time_ms));
            if a.unlimited {
                push(format_args!(";u=1"));
            }
            if let Some(first_ms) = a.first_ms {
                push(format_args!(";f={first_ms}"));
            }
        }
        out
    }

    /// Reads a commit's metadata. Text that is none of ours is `None`: an offset that an operator or another
    /// program has set.
    pub fn decode(text: &str) -> Result<Option<Self>, UnknownVersion> {
        let Some((version, rest)) = text.split_once(';') else {
            return Ok(None);
        };
        match version.strip_prefix('v').and_then(|v| v.parse::<u32>().ok()) {
            None => Ok(None),
            Some(1) => Self::fields(rest)
                .map(Some)
                .ok_or_else(|| UnknownVersion(text.to_owned())),
            Some(_) => Err(UnknownVersion(text.to_owned())),
        }
    }

    fn fields(text: &str) -> Option<Self> {
        let mut found = Self::default();
        let (mut end, mut digest, mut time_ms, mut unlimited, mut first_ms, mut incarnation) =
            (None, None, None, false, None, None);
        for field in text.split(';') {
            let (name, value) = field.split_once('=')?;
            match name {
                "i" => incarnation = Some(value.parse().ok()?),
                "p" => {
                    let (offset, hash) = value.split_once(':')?;
                    found.previous = Some(Previous {
                        offset: offset.parse().ok()?,
                        hash: u64::from_str_radix(hash, 16).ok()?,
                    });
                }
                "e" => end = Some(value.parse().ok()?),
                "d" => digest = Some(u128::from_str_radix(value, 16).ok()?),
                "t" => time_ms = Some(value.parse().ok()?),
                "u" => unlimited = value == "1",
                "f" => first_ms = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        found.incarnation = incarnation?;
        found.announced = match (end, digest, time_ms) {
            (None, None, None) => None,
            (Some(end), Some(digest), Some(time_ms)) => Some(Announcement {
                end,
                digest,
                time_ms,
                unlimited,
                first_ms,
            }),
            _ => return None,
        };
        Some(found)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::kafka) const ANNOUNCED: Announcement = Announcement {
        end: 99,
        digest: 7,
        time_ms: 1_700_000_000_000,
        unlimited: false,
        first_ms: None,
    };
    pub(in crate::kafka) const PREVIOUS: Previous = Previous {
        offset: 41,
        hash: 0xdead_beef,
    };

    #[test]
    fn metadata_comes_back_as_it_was_committed() {
        for metadata in [
            Metadata::default(),
            Metadata {
                incarnation: 3,
                previous: Some(PREVIOUS),
                announced: None,
            },
            Metadata {
                incarnation: 3,
                previous: None,
                announced: Some(ANNOUNCED),
            },
            Metadata {
                incarnation: u32::MAX,
                previous: Some(Previous {
                    offset: i64::MAX,
                    hash: u64::MAX,
                }),
                announced: Some(Announcement {
                    end: i64::MAX,
                    digest: u128::MAX,
                    time_ms: i64::MAX,
                    unlimited: true,
                    first_ms: Some(i64::MAX),
                }),
            },
        ] {
            let text = metadata.encode();
            assert!(text.len() < 4096);
            assert_eq!(Metadata::decode(&text), Ok(Some(metadata)), "{text}");
        }
    }

    #[test]
    fn foreign_text_is_no_announcement_and_an_unknown_version_is_refused() {
        for foreign in ["", "hello", "set by hand; see wiki", "vx;e=1"] {
            assert_eq!(Metadata::decode(foreign), Ok(None), "{foreign}");
        }
        for unknown in ["v2;i=0", "v1;i=0;z=1", "v1;e=5", "v1;i=0;e=5", "v1;i=x"] {
            assert!(Metadata::decode(unknown).is_err(), "{unknown}");
        }
    }

    /// Text that is nearly ours.
    fn near() -> impl Strategy<Value = String> {
        let field = "[iepdtufz]?[=:]{0,2}[0-9a-f+x: -]{0,40}";
        proptest::collection::vec(field, 0..7).prop_map(|fields| format!("v1;{}", fields.join(";")))
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic_and_ours_means_one_thing(
            text in prop_oneof![any::<String>(), near(), "v[0-9]{0,12};.{0,40}"],
        ) {
            if let Ok(Some(read)) = Metadata::decode(&text) {
                prop_assert_eq!(Metadata::decode(&read.encode()), Ok(Some(read)), "{}", text);
            }
        }

        #[test]
        fn whatever_was_committed_comes_back(
            incarnation: u32,
            previous: Option<(i64, u64)>,
            announced: Option<(i64, u128, i64, bool, Option<i64>)>,
        ) {
            let metadata = Metadata {
                incarnation,
                previous: previous.map(|(offset, hash)| Previous { offset, hash }),
                announced: announced.map(|(end, digest, time_ms, unlimited, first_ms)| Announcement {
                    end, digest, time_ms, unlimited, first_ms,
                }),
            };
            prop_assert_eq!(Metadata::decode(&metadata.encode()), Ok(Some(metadata)));
        }
    }
}
