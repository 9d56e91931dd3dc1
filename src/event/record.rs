//! A Kafka record as a block holds it: borrowed, with its headers in one canonical encoding.
//!
//! Owns the encoding of headers, which the block's digest is taken over. It never judges a record and
//! never copies one.

/// A record borrowed from its block.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Offset in its partition.
    pub offset: i64,
    /// Time that Kafka has for the record, ms since 1970 UTC; -1 for none.
    pub timestamp: i64,
    /// Key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Payload; `None` is a tombstone.
    pub payload: Option<&'a [u8]>,
    /// Headers, in the order in which they were sent.
    pub headers: Headers<'a>,
}

/// Record headers in the block's canonical encoding, one after the other: u32 LE length of the name, the
/// name, i32 LE length of the value (-1 for null), the value.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a>(pub &'a [u8]);

impl<'a> Headers<'a> {
    /// Name and value of each header. Bytes that are not this encoding end the iteration.
    pub fn iter(&self) -> HeaderIter<'a> {
        HeaderIter { rest: self.0 }
    }

    /// The value of the last header of that name that has one: a null is absent, and of several the last
    /// one counts, as with Kafka's own `lastHeader`.
    pub fn get(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.iter()
            .filter(|(found, _)| *found == name)
            .filter_map(|(_, value)| value)
            .last()
    }

    /// Appends one header to `out`. What exceeds Kafka's own limit of 2 GiB is left out.
    pub fn encode(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
        let Ok(name_len) = i32::try_from(name.len()) else {
            return;
        };
        let Ok(value_len) = value.map_or(Ok(-1), |value| i32::try_from(value.len())) else {
            return;
        };
        out.extend_from_slice(&name_len.to_le_bytes());
        out.extend_from_slice(name);
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(value.unwrap_or_default());
    }
}

impl<'a> IntoIterator for &Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);
    type IntoIter = HeaderIter<'a>;

    fn into_iter(self) -> HeaderIter<'a> {
        self.iter()
    }
}

/// Iterator over [`Headers`].
#[derive(Clone, Debug)]
pub struct HeaderIter<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name_len, rest) = self.rest.split_first_chunk()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_len) as usize)?;
        let (value_len, rest) = rest.split_first_chunk()?;
        let (value, rest) = match usize::try_from(i32::from_le_bytes(*value_len)) {
            Ok(len) => rest
                .split_at_checked(len)
                .map(|(value, rest)| (Some(value), rest))?,
            Err(_) => (None, rest),
        };
        self.rest = rest;
        Some((name, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(headers: &[(&str, Option<&str>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, value) in headers {
            Headers::encode(&mut out, name.as_bytes(), value.map(str::as_bytes));
        }
        out
    }

    #[test]
    fn headers_are_encoded_with_their_lengths_first() {
        let bytes = encoded(&[("ab", Some("c")), ("d", None)]);
        assert_eq!(bytes, b"\x02\0\0\0ab\x01\0\0\0c\x01\0\0\0d\xff\xff\xff\xff");
    }

    #[test]
    fn the_last_header_of_a_name_that_is_not_null_counts() {
        let bytes = encoded(&[("a", Some("1")), ("a", Some("2")), ("b", Some("x")), ("a", None)]);
        assert_eq!(Headers(&bytes).get(b"a"), Some(&b"2"[..]));
        assert_eq!(Headers(&bytes).get(b"c"), None);
    }

    #[test]
    fn an_empty_value_is_not_null() {
        let bytes = encoded(&[("a", Some("")), ("b", None)]);
        assert_eq!(Headers(&bytes).get(b"a"), Some(&b""[..]));
        assert_eq!(Headers(&bytes).get(b"b"), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_read_back(headers: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
            let mut bytes = Vec::new();
            for (name, value) in &headers {
                Headers::encode(&mut bytes, name, value.as_deref());
            }
            let read: Vec<_> =
                Headers(&bytes).iter().map(|(n, v)| (n.to_vec(), v.map(<[u8]>::to_vec))).collect();
            prop_assert_eq!(read, headers);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            prop_assert!(Headers(&bytes).iter().count() <= bytes.len());
        }
    }
}
