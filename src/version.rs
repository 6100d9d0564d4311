//! Compares version strings by the UAPI version format specification (UAPI.10), the order of systemd, pacman and
//! rpm: `1.0~rc1 < 1.0 < 1.0-1 < 1.0.1 < 1.1 < 1.10`. Semantic versioning was rejected: appliances ship versions of
//! four components (`7.7.0.2`), which it forbids.

use std::cmp::Ordering;

/// Compares two versions. Never fails: any two strings have an order.
///
/// ```
/// use std::cmp::Ordering;
/// assert_eq!(qstage::version::compare("7.7.0.3", "7.7.0.10"), Ordering::Less);
/// assert_eq!(qstage::version::compare("2.0~rc1", "2.0"), Ordering::Less);
/// ```
pub fn compare(left: &str, right: &str) -> Ordering {
    let (mut a, mut b) = (left.as_bytes(), right.as_bytes());
    loop {
        // Characters outside the alphabet separate components and do not affect the order.
        a = skip(a, |c| !c.is_ascii_alphanumeric() && !b"-.~^".contains(&c));
        b = skip(b, |c| !c.is_ascii_alphanumeric() && !b"-.~^".contains(&c));
        // `~` sorts before the end of the string: a pre-release. `-` and `^` sort after it; of the two strings the
        // one that has reached its end is then the smaller.
        for mark in [b'~', b'-', b'^', b'.'] {
            let (in_a, in_b) = (a.first() == Some(&mark), b.first() == Some(&mark));
            if mark == b'-' && (a.is_empty() || b.is_empty()) {
                // The end is tested between `~` and the rest.
                return a.len().min(1).cmp(&b.len().min(1));
            }
            match (in_a, in_b) {
                (true, true) => {
                    a = &a[1..];
                    b = &b[1..];
                    break;
                }
                (true, false) => return Ordering::Less,
                (false, true) => return Ordering::Greater,
                (false, false) => {}
            }
        }
        let digits = a.first().is_some_and(u8::is_ascii_digit) || b.first().is_some_and(u8::is_ascii_digit);
        let belongs = |c: u8| if digits { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
        let (part_a, rest_a) = split(a, belongs);
        let (part_b, rest_b) = split(b, belongs);
        let order = if digits {
            // Numbers of any length: without leading zeroes the longer is the larger. A missing number sorts before
            // zero, so that letters come before digits ("1.a" < "1.0").
            let (m, n) = (skip(part_a, |c| c == b'0'), skip(part_b, |c| c == b'0'));
            (!part_a.is_empty()).cmp(&!part_b.is_empty()).then(m.len().cmp(&n.len())).then_with(|| m.cmp(n))
        } else {
            // Byte order puts capitals before small letters, as the specification demands.
            part_a.cmp(part_b)
        };
        if order != Ordering::Equal {
            return order;
        }
        a = rest_a;
        b = rest_b;
    }
}

fn skip(text: &[u8], belongs: impl Fn(u8) -> bool) -> &[u8] {
    split(text, belongs).1
}

fn split(text: &[u8], belongs: impl Fn(u8) -> bool) -> (&[u8], &[u8]) {
    text.split_at(text.iter().position(|&c| !belongs(c)).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_examples_of_the_specification() {
        // UAPI.10, "Examples", and systemd.version(7)'s comparison table.
        for (a, b) in [
            ("11", "11"),
            ("systemd-123", "systemd-123"),
            ("bar-123", "foo-123"),
            ("123", "123a"),
            ("123.a", "123.b"),
            ("123a", "123b"),
            ("123a", "123.a"),
            ("11α", "11β"),
            ("B", "a"),
            ("", "0"),
            ("0.", "0"),
            ("0.0", "0"),
            ("0", "~"),
            ("", "~"),
            ("1_", "1"),
            ("_1", "1"),
            ("1_", "1.2"),
            ("1_2_3", "1.3.3"),
            ("1+", "1"),
            ("+1", "1"),
            ("1+", "1.2"),
            ("1+2+3", "1.3.3"),
        ] {
            let expected = match (a, b) {
                ("11", "11") | ("systemd-123", "systemd-123") | ("11α", "11β") => Ordering::Equal,
                ("1_", "1") | ("_1", "1") | ("1+", "1") | ("+1", "1") => Ordering::Equal,
                ("1_2_3", "1.3.3") | ("1+2+3", "1.3.3") | ("123a", "123.a") => Ordering::Greater,
                ("0.", "0") | ("0.0", "0") | ("0", "~") | ("", "~") => Ordering::Greater,
                _ => Ordering::Less,
            };
            assert_eq!(compare(a, b), expected, "{a:?} against {b:?}");
            assert_eq!(compare(b, a), expected.reverse(), "{b:?} against {a:?}");
        }
    }

    #[test]
    fn versions_that_appliances_ship() {
        let ascending = [
            "4.0.0~rc1",
            "4.0.0~rc2",
            "4.0.0",
            "4.0.0-1",
            "4.0.0^git1",
            "4.0.0.1",
            "4.0.6",
            "4.0.10",
            "4.1.0",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} against {b}");
            }
        }
        assert_eq!(compare("7.7.0.0000000000000000000000000000002", "7.7.0.2"), Ordering::Equal);
    }

    proptest! {
        #[test]
        fn it_is_an_order(a in "[0-9a-c.~^_-]{0,8}", b in "[0-9a-c.~^_-]{0,8}", c in "[0-9a-c.~^_-]{0,8}") {
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            if compare(&a, &b) != Ordering::Greater && compare(&b, &c) != Ordering::Greater {
                prop_assert_ne!(compare(&a, &c), Ordering::Greater);
            }
        }
    }
}
