//! Numbers on the command line. The messages of the standard library ("invalid digit found in string") say
//! neither what is wrong nor what to write.

use std::num::NonZeroUsize;
use std::str::FromStr;

const TOO_SMALL: &str = "0 is too small: write 1 or more";

/// Parses a whole number.
pub(super) fn whole<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| match is_number(text) {
        true => format!("{text} is too large"),
        false => format!("'{text}' is no whole number: write digits only, as in 3"),
    })
}

/// Parses a whole number above zero.
pub(super) fn count(text: &str) -> Result<NonZeroUsize, String> {
    NonZeroUsize::new(whole(text)?).ok_or_else(|| TOO_SMALL.to_owned())
}

/// Parses a time limit in seconds.
pub(super) fn seconds(text: &str) -> Result<u32, String> {
    whole(text).and_then(|seconds| if seconds == 0 { Err(TOO_SMALL.to_owned()) } else { Ok(seconds) })
}

/// Parses a level of zstd.
pub(super) fn level(text: &str) -> Result<i32, String> {
    let level = whole(text)?;
    if (1..=19).contains(&level) { Ok(level) } else { Err(format!("{level} is not in 1..=19")) }
}

/// Parses a ratio.
pub(super) fn ratio(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|ratio: &f64| ratio.is_finite() && *ratio >= 0.0);
    parsed.ok_or_else(|| format!("'{text}' is no ratio: write a number, as in 0.8"))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit())
}
