//! Sizes and rates in human-readable form. Multiples are binary: a `K` is 1024 bytes.

use super::BlockSize;

/// Suffix letters in rising order; each is 1024 times the one before.
const UNITS: [char; 4] = ['K', 'M', 'G', 'T'];

/// Parses `512`, `512M`, `512MiB`, `2G`: a whole number of bytes or of binary multiples.
///
/// `MB` is refused rather than guessed: half of all tools mean 10^6 by it and the other half 2^20.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let suffix = &text[digits.len()..];
    let count: u64 = match digits.parse() {
        Ok(count) => count,
        Err(_) if digits.bytes().all(|c| c.is_ascii_digit()) && !digits.is_empty() => {
            return Err(format!("'{text}' is more than 64 bits hold"));
        }
        Err(_) => {
            return Err(format!("'{text}' is no size: write a whole number with K, M, G or T, as in 512M"));
        }
    };
    let mut rest = suffix.chars();
    let shift = match rest.next() {
        None => 0,
        Some('B') if suffix == "B" => 0,
        Some(letter) => {
            let power = UNITS.iter().position(|&unit| unit == letter.to_ascii_uppercase());
            match (power, rest.as_str()) {
                (Some(power), "" | "iB") => 10 * (power as u32 + 1),
                (Some(_), "B") => {
                    let unit = letter.to_ascii_uppercase();
                    return Err(format!(
                        "'{suffix}' is ambiguous: write {unit} or {unit}iB for the binary multiple"
                    ));
                }
                _ => return Err(format!("unknown unit '{suffix}': use K, M, G or T (powers of 1024)")),
            }
        }
    };
    count.checked_mul(1 << shift).ok_or_else(|| format!("'{text}' is more than 64 bits hold"))
}

/// Parses a rate in bytes per second: a size, with or without `/s`. Zero is refused: the transfer would never end.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_size(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of 0 would never end: leave the option out for no limit".to_owned()),
        rate => Ok(rate),
    }
}

/// Parses a logical block size.
pub(crate) fn parse_sector_size(text: &str) -> Result<BlockSize, String> {
    text.parse()
        .ok()
        .and_then(BlockSize::from_bytes)
        .ok_or_else(|| format!("'{text}' is no sector size: write 512 or 4096"))
}

/// A size for people: three to four digits and a binary unit.
pub(crate) fn human(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut unit = None;
    for letter in UNITS {
        // 1023.95 would be shown as 1024.0; it belongs to the next unit.
        if value < 1023.95 {
            break;
        }
        value /= 1024.0;
        unit = Some(letter);
    }
    unit.map_or_else(|| format!("{bytes} B"), |letter| format!("{value:.1} {letter}iB"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiples_are_binary() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("7B", 7),
            ("1K", 1 << 10),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("512MiB", 512 << 20),
            ("2G", 2 << 30),
            ("1GiB", 1 << 30),
            ("3T", 3 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn ambiguous_sizes_are_refused() {
        for (text, reason) in [
            ("", "no size"),
            ("M", "no size"),
            ("-1", "no size"),
            ("1.5G", "no size"),
            ("1 G", "unknown unit"),
            ("1X", "unknown unit"),
            ("1Gib", "unknown unit"),
            ("1GiBB", "unknown unit"),
            ("1KB", "ambiguous"),
            ("1gB", "ambiguous"),
            ("18446744073709551616", "64 bits"),
            ("16777216T", "64 bits"),
            ("1µ", "unknown unit"),
        ] {
            let problem = parse_size(text).unwrap_err();
            assert!(problem.contains(reason), "{text}: {problem}");
        }
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_rate("10M/s"), Ok(10 << 20));
        assert!(parse_sector_size("1024").is_err());
        assert_eq!(parse_sector_size("4096"), Ok(BlockSize::B4096));
    }

    #[test]
    fn people_read_four_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (64 << 20, "64.0 MiB"),
            ((1 << 30) - 1, "1.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }
}
