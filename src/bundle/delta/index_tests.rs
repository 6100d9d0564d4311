use super::*;
use crate::bundle::delta::samples::mixed;
use crate::progress::Cancel;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| mixed(seed << 40 | i) as u8).collect()
}

fn index(base: &dyn ReadAt) -> BaseIndex {
    let cancel = Cancel::default();
    BaseIndex::new(base, None, workers::at_least_one(3), &Abort::new(&cancel, "testing")).unwrap()
}

#[test]
fn moved_bytes_are_found_whole_at_any_offset_and_across_pieces() {
    let base = noise(1, PIECE + 300_000);
    let index = index(&base);
    for (from, len) in [(0, 70_000), (12_345, 2_001), (PIECE - 30_007, 60_000), (base.len() - 65_536, 65_536)]
    {
        let frame = [&noise(2, 1001)[..], &base[from..from + len], &noise(3, 99)].concat();
        let matches = index.matches(&frame, &mut BaseReader::new(&base)).unwrap();
        let longest = matches.iter().max_by_key(|found| found.len).unwrap();
        // Random bytes may match a byte more on either side by chance.
        assert!(longest.len >= len && longest.len < len + 8, "{longest:?}");
        assert_eq!(longest.base as i64 - longest.at as i64, from as i64 - 1001);
        assert!(matches.windows(2).all(|two| two[0].end() <= two[1].at));
        for found in &matches {
            assert_eq!(frame[found.at..found.end()], base[found.base..found.base + found.len]);
        }
    }
    let matches = |frame: &[u8]| index.matches(frame, &mut BaseReader::new(&base)).unwrap();
    assert!(matches(&noise(4, 100_000)).is_empty());
    assert_eq!(matches(&base[77_777..][..1 << 20])[0].frame_start(), Some(77_777));
}

#[test]
fn what_occurs_twice_is_found_beside_the_last_match() {
    let common = noise(5, 3_000);
    let base = [&common[..], &noise(6, 50_000), &common, &noise(7, 50_000)].concat();
    let mut frame = base[20_000..90_000].to_vec();
    // A change within the bytes that occur twice: the bytes after it are searched for again.
    frame[34_000] ^= 1;
    for found in index(&base).matches(&frame, &mut BaseReader::new(&base)).unwrap() {
        assert_eq!(found.frame_start(), Some(20_000), "{found:?}");
    }
}

#[test]
fn the_table_is_the_same_on_any_number_of_workers() {
    let base = [noise(1, PIECE + 5), noise(1, PIECE)].concat();
    let cancel = Cancel::default();
    let with = |jobs| {
        let abort = Abort::new(&cancel, "testing");
        BaseIndex::new(&base, None, workers::at_least_one(jobs), &abort).unwrap()
    };
    let (one, four) = (with(1), with(4));
    assert!(one.low == four.low && one.high == four.high);
}

#[test]
fn a_run_of_one_byte_is_one_sample_at_most() {
    let count = |bytes: &[u8]| {
        let mut count = 0;
        samples(bytes, SAMPLE_BITS, |_, _| count += 1);
        count
    };
    for byte in 0..=255 {
        assert!(count(&vec![byte; 100_000]) <= 1);
    }
    for len in [0, 1, WINDOW - 1, WINDOW] {
        assert!(count(&vec![0; len]) <= 1);
        drop(index(&noise(1, len)));
    }
}
