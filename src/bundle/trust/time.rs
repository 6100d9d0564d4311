//! Times of ssh-keygen(1), `YYYYMMDD[HHMM[SS]][Z]`, as `parse_absolute_time` in OpenSSH's misc.c reads them.

use jiff::civil::Date;
use jiff::tz::{Dst, TimeZone};
use jiff::{SignedDuration, Timestamp};

/// Seconds since 1970, more than 0. Local time unless `Z` or `UTC` follows.
pub(super) fn parse(text: &[u8]) -> Result<i64, String> {
    let bad = || "a time is not YYYYMMDD[HHMM[SS]][Z]".to_owned();
    let ends = |suffix: &[u8]| {
        let split = text.len().checked_sub(suffix.len()).filter(|at| *at > 0)?;
        let (digits, end) = text.split_at(split);
        end.eq_ignore_ascii_case(suffix).then_some(digits)
    };
    let (digits, zone) = match ends(b"Z").or_else(|| ends(b"UTC")) {
        Some(digits) => (digits, TimeZone::UTC),
        None => (text, TimeZone::system()),
    };
    if !matches!(digits.len(), 8 | 12 | 14) {
        return Err(bad());
    }
    let part = |at: usize, len: usize, from: i64, to: i64| match digits.get(at..at + len) {
        // strptime(3) skips blanks before a number.
        Some(part) => std::str::from_utf8(part)
            .ok()
            .map(|part| part.trim_start_matches(' '))
            .filter(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|part| part.parse::<i64>().ok())
            .filter(|number| (from..=to).contains(number))
            .ok_or_else(bad),
        None => Ok(0),
    };
    let (year, month) = (part(0, 4, 0, 9999)?, part(4, 2, 1, 12)?);
    // Day 31 of a shorter month is a day of the next one, second 60 one of the next minute: mktime(3) normalizes.
    let days = part(6, 2, 1, 31)? - 1;
    let seconds = part(8, 2, 0, 23)? * 3600 + part(10, 2, 0, 59)? * 60 + part(12, 2, 0, 61)?;
    let first = Date::new(year as i16, month as i8, 1).map_err(|_| bad())?;
    let time = first.at(0, 0, 0, 0).checked_add(SignedDuration::from_secs(days * 86_400 + seconds));
    let local = time.map_err(|_| bad())?;
    let utc = local.to_zoned(TimeZone::UTC).map_err(|_| bad())?.timestamp();
    let zoned = local.to_zoned(zone.clone()).map_err(|_| bad())?.timestamp();
    // OpenSSH passes tm_isdst = 0, so winter time applies in summer too.
    let time = match standard_offset(&zone, zoned) {
        Some(offset) => utc.as_second() - offset,
        None => zoned.as_second(),
    };
    if time > 0 { Ok(time) } else { Err(bad()) }
}

/// The offset of standard time in seconds if daylight saving time applies at `time`; else `None`.
fn standard_offset(zone: &TimeZone, time: Timestamp) -> Option<i64> {
    if zone.to_offset_info(time).dst() == Dst::No {
        return None;
    }
    let standard = |found: jiff::tz::TimeZoneTransition<'_>| {
        (found.dst() == Dst::No).then(|| i64::from(found.offset().seconds()))
    };
    zone.preceding(time).find_map(standard).or_else(|| zone.following(time).find_map(standard))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn valid_and_invalid_times() {
        let day = |text: &str| parse(text.as_bytes());
        assert_eq!(day("20200102Z"), Ok(1_577_923_200));
        assert_eq!(day("20200102UTC"), day("20200102z"));
        assert_eq!(day("202001021530Z"), Ok(1_577_923_200 + 15 * 3600 + 30 * 60));
        assert_eq!(day("20200102153061Z"), day("20200102153101Z"));
        assert_eq!(day("20210231Z"), day("20210303Z"));
        for wrong in
            ["soon", "", "Z", "2020", "20201301Z", "20200132Z", "2020010224Z", "19691231Z", "19700101Z"]
        {
            assert!(day(wrong).is_err(), "{wrong}");
        }
    }
}
