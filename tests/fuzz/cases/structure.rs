//! What is done to a payload as JSON: to its members, their names, types, sizes and depth, in the object itself and in
//! the text of `data`.

use std::fmt::Write as _;

use rand::{Rng, RngExt as _};
use sluice::event::{MAX_DEPTH, MAX_PAYLOAD};

use super::tree::Tree;
use super::{Case, pick};

/// Names with a meaning, and how else one may write them.
const NAMES: [&str; 29] = [
    "token",
    "api_key",
    "$token",
    "event",
    "distinct_id",
    "$distinct_id",
    "uuid",
    "timestamp",
    "offset",
    "now",
    "sent_at",
    "ip",
    "$ip",
    "$sent_at",
    "properties",
    "$set",
    "$set_once",
    "$unset",
    "$process_person_profile",
    "data",
    "x",
    "a",
    "",
    "Token",
    r"\u0074oken",
    r"dat\u0061",
    r"\ud83d",
    r"\u0000",
    "é",
];

/// Values that some field may not expect.
const VALUES: [&str; 64] = [
    "null",
    "true",
    "false",
    "0",
    "-0",
    "1.50",
    "1e5",
    "-1e-7",
    "1e999",
    "123456789012345678901234567890",
    "9223372036854775808",
    "01",
    "+1",
    ".5",
    "NaN",
    r#""""#,
    r#"" ""#,
    r#""\u2003\t""#,
    r#""t""#,
    r#"" t ""#,
    r#""é""#,
    r#""a\u0000b""#,
    r#""\ud83d""#,
    r#""\udc00\ud83d""#,
    r#""\ud83d\ude00""#,
    r#""\ud83dx""#,
    r#""$groupidentify""#,
    r#""0190b6a8-3f10-7c9a-8d1e-00000000abcd""#,
    r#""0190B6A83F107C9A8D1E00000000ABCD""#,
    r#"" {0190b6a8-3f10-7c9a-8d1e-00000000abcd}""#,
    r#""URN:UUID:0190b6a8-3f10-7c9a-8d1e-00000000abcd""#,
    r#""0190b6a8-3f10-7c9a-8d1e-00000000abc""#,
    r#""00000000-0000-0000-0000-000000000000""#,
    r#""2024-05-01T11:00:00Z""#,
    r#""2024-05-01t11:00:00.123456789123z""#,
    r#""2024-05-01 11:00:00.5+0530""#,
    r#"" 2024-05-01T11:00:00-07 ""#,
    r#""2024-05-01T11:00""#,
    r#""2024-05-01""#,
    r#""2024-05-02T12:00:00Z""#,
    r#""2024-05-02T12:00:00.001Z""#,
    r#""2024-05-01T23:59:60Z""#,
    r#""2024-02-30T00:00:00Z""#,
    r#""1899-12-31T23:59:59.999Z""#,
    r#""1900-01-01T00:00:00Z""#,
    r#""1969-12-31T23:59:59.9999999Z""#,
    r#""2299-12-31T23:59:59.9999Z""#,
    r#""9999-12-31T23:59:59Z""#,
    r#""0000-01-01T00:00:00Z""#,
    r#""1714560000""#,
    r#""20240501T110000Z""#,
    "{}",
    "[]",
    "[ ]",
    r#"["a", "b"]"#,
    r#"["a",1,null,["b"],"\ud83d"]"#,
    r#"{"a": 1 , "b":null}"#,
    r#"{"a":1,"a":2,"\u0061":3}"#,
    r#"{"$set":{"n":1},"token":"p","distinct_id":"p"}"#,
    r#"{"$process_person_profile":false}"#,
    r#"[[[{"a":[{}]}]]]"#,
    r#""{}""#,
    r#""{\"event\":\"in\",\"properties\":{\"a\":\"\ud83d\"}}""#,
    r#""x""#,
];

/// Lengths around every limit.
const LENGTHS: [usize; 16] = [
    1, 62, 63, 64, 65, 66, 198, 199, 200, 201, 998, 999, 1000, 1001, 1002, 20_000,
];

/// What is not one of the few names and values has no JSON to change; then the bytes stay as they are.
pub(super) fn change(case: &mut Case, rng: &mut impl Rng) {
    let Some(payload) = &case.payload else { return };
    let Some(mut tree) = std::str::from_utf8(payload).ok().and_then(Tree::parse) else {
        return;
    };
    let mut inner = data(&mut tree).and_then(|text| Tree::parse(&text));
    if let Some(inner) = inner.as_mut().filter(|_| rng.random_ratio(2, 3)) {
        change_tree(inner, rng);
    } else {
        change_tree(&mut tree, rng);
        // Else `data` keeps what was made of it.
        inner = inner.filter(|_| rng.random_ratio(1, 2));
    }
    if let (Some(inner), Tree::Object(members)) = (inner, &mut tree) {
        let mut text = String::new();
        inner.write(&mut text);
        if let Some((_, value)) = members.iter_mut().find(|(name, _)| name == r#""data""#) {
            *value = Tree::Leaf(quoted(&text, rng));
        }
    }
    let mut text = String::new();
    tree.write(&mut text);
    if rng.random_ratio(1, 20_000) {
        pad(&mut text, rng);
    }
    case.payload = Some(text.into_bytes());
}

/// What the string in `data` says.
fn data(tree: &mut Tree) -> Option<String> {
    let Tree::Object(members) = tree else { return None };
    let (_, value) = members.iter().find(|(name, _)| name == r#""data""#)?;
    let Tree::Leaf(text) = value else { return None };
    serde_json::from_str(text).ok()
}

/// A string that says so, with as few escapes as can be, or with more.
fn quoted(text: &str, rng: &mut impl Rng) -> String {
    let more = rng.random_ratio(1, 4);
    let mut out = String::from("\"");
    for char in text.chars() {
        match char {
            '"' | '\\' if !more || rng.random_ratio(3, 4) => out.extend(['\\', char]),
            '/' if more => out.push_str("\\/"),
            _ if char < ' ' || matches!(char, '"' | '\\') || (more && rng.random_ratio(1, 8)) => {
                for unit in char.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04X}").expect("text into memory");
                }
            }
            _ => out.push(char),
        }
    }
    out + "\""
}

fn change_tree(tree: &mut Tree, rng: &mut impl Rng) {
    // The outermost object, or its properties, half of the time: most members with a meaning are there.
    let all = tree.containers();
    if all == 0 || rng.random_ratio(1, 200) {
        *tree = value(rng);
        return;
    }
    let mut nth = if rng.random_ratio(1, 2) {
        0
    } else {
        rng.random_range(0..all)
    };
    match tree.container(&mut nth) {
        Some(Tree::Object(members)) => change_members(members, rng),
        Some(Tree::Array(items)) => change_items(items, rng),
        _ => {}
    }
}

fn change_members(members: &mut Vec<(String, Tree)>, rng: &mut impl Rng) {
    let new = (name(rng), value(rng));
    if members.is_empty() {
        members.push(new);
        return;
    }
    let at = rng.random_range(0..members.len());
    let other = rng.random_range(0..members.len());
    match rng.random_range(0..14) {
        0 => members.swap(at, other),
        1 => {
            // Their values alone.
            let moved = members[other].1.clone();
            members[other].1 = std::mem::replace(&mut members[at].1, moved);
        }
        2 => drop(members.remove(at)),
        3 => {
            let again = members[at].clone();
            members.insert(other, again);
        }
        4 => {
            let again = (members[at].0.clone(), new.1);
            members.insert(other, again);
        }
        5 => members[at].0 = new.0,
        6..9 => members[at].1 = new.1,
        9 => members[at].1 = long(rng),
        10 => deepen(&mut members[at].1, rng),
        11 => {
            // The whole object once more, as text in itself.
            let mut text = String::new();
            Tree::Object(members.clone()).write(&mut text);
            if text.len() < 20_000 {
                members.push((r#""data""#.to_owned(), Tree::Leaf(quoted(&text, rng))));
            }
        }
        _ => members.insert(at, new),
    }
}

fn change_items(items: &mut Vec<Tree>, rng: &mut impl Rng) {
    let new = value(rng);
    if items.is_empty() {
        items.push(new);
        return;
    }
    let at = rng.random_range(0..items.len());
    match rng.random_range(0..4) {
        0 => drop(items.remove(at)),
        1 => items[at] = new,
        2 => deepen(&mut items[at], rng),
        _ => items.insert(at, new),
    }
}

fn name(rng: &mut impl Rng) -> String {
    format!("\"{}\"", pick(&NAMES, rng))
}

fn value(rng: &mut impl Rng) -> Tree {
    match rng.random_range(0..16) {
        0 => long(rng),
        1 => {
            let members = (0..rng.random_range(0..5)).map(|_| (name(rng), Tree::leaf(pick(&VALUES, rng))));
            Tree::Object(members.collect())
        }
        2 => Tree::leaf(rng.random::<f64>().to_string()),
        3 => Tree::leaf((rng.random::<i64>() >> rng.random_range(0..64)).to_string()),
        4 => time(rng),
        _ => {
            let text = pick(&VALUES, rng);
            Tree::parse(text).unwrap_or(Tree::leaf(text))
        }
    }
}

/// Near a real time, by its characters.
fn time(rng: &mut impl Rng) -> Tree {
    let mut text = b"2024-05-01T11:00:00.123+02:00".to_vec();
    for _ in 0..rng.random_range(0..3) {
        let at = rng.random_range(0..text.len());
        text[at] = pick(b"0123456789:+-. TZtz", rng);
    }
    text.truncate(pick(&[10, 16, 19, 23, 26, 28, 29, 29, 29], rng));
    Tree::leaf(format!("\"{}\"", String::from_utf8_lossy(&text)))
}

/// A string, or a number, of a length around some limit.
fn long(rng: &mut impl Rng) -> Tree {
    let len = pick(&LENGTHS, rng);
    let piece = pick(
        &["x", "é", "😀", " ", r"\n", r"\u00e9", r"\ud83d\ude00", "7"],
        rng,
    );
    let quote = if piece == "7" && rng.random_ratio(1, 2) {
        ""
    } else {
        "\""
    };
    let end = pick(&["", "", "", "x", " ", "é", r"\u0000", r"\ud83d"], rng);
    let end = if quote.is_empty() { "" } else { end };
    Tree::leaf(format!("{quote}{}{end}{quote}", piece.repeat(len)))
}

/// Around the deepest that is allowed, or some levels.
fn deepen(value: &mut Tree, rng: &mut impl Rng) {
    let limit = MAX_DEPTH as usize;
    let levels = if rng.random_ratio(1, 2) {
        rng.random_range(limit - 4..limit + 3)
    } else {
        rng.random_range(1..8)
    };
    let (mut open, mut close) = (String::new(), String::new());
    for _ in 0..levels {
        let (opens, closes) = pick(&[("[", "]"), (r#"{"a":"#, "}")], rng);
        open.push_str(opens);
        close.insert_str(0, closes);
    }
    let mut text = open;
    value.write(&mut text);
    *value = Tree::Leaf(text + &close);
}

/// Around the longest payload that is read, by blanks or by a property.
fn pad(text: &mut String, rng: &mut impl Rng) {
    let len = MAX_PAYLOAD - 2 + rng.random_range(0..5);
    let Some(room) = len.checked_sub(text.len() + r#""pad":"","#.len()) else {
        return;
    };
    if rng.random_ratio(1, 2) || !text.starts_with("{\"") {
        text.push_str(&" ".repeat(len - text.len()));
    } else {
        text.insert_str(1, &format!(r#""pad":"{}","#, "x".repeat(room)));
    }
}
