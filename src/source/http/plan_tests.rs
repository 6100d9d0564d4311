//! The plan alone: which lane requests what, and that readers get the right bytes in any order.

use super::*;

const MIB: u64 = 1 << 20;

/// Fills the next block of a lane with the content of the file: byte n is n % 251.
fn fetch(plan: &mut RequestPlan, lane: usize) -> Option<Range<u64>> {
    let want = plan.next(lane)?;
    let bytes: Vec<u8> = want.block.clone().map(|at| (at % 251) as u8).collect();
    assert_eq!(plan.fill(lane, want.block.start, &bytes, 0), bytes.len());
    Some(want.block)
}

#[test]
fn only_what_is_wanted_is_asked_for_and_readers_come_first() {
    let mut plan = RequestPlan::default();
    assert_eq!(plan.next(0), None);
    plan.declare(10 * MIB..30 * MIB);
    assert_eq!(plan.next(0), Some(FetchRequest { block: 10 * MIB..11 * MIB, until: 30 * MIB }));
    let reader = plan.begin(50 * MIB..50 * MIB + 100);
    assert_eq!(plan.next(0), Some(FetchRequest { block: 50 * MIB..50 * MIB + 100, until: 50 * MIB + 100 }));
    let near = plan.begin(60 * MIB..60 * MIB + 50);
    let nearer = plan.begin(60 * MIB + 60..60 * MIB + 70);
    assert_eq!(plan.next(0).unwrap().until, 60 * MIB + 70, "a small hole is read through");
    for demand in [reader, near, nearer] {
        plan.end(demand);
    }
    let reader = plan.begin(13 * MIB..14 * MIB);
    assert_eq!(plan.next(0).unwrap().block, 11 * MIB..12 * MIB, "declared: from front to back");
    plan.end(reader);
    while plan.next(0).is_some() {}
    assert!(plan.buffered <= BUDGET + BLOCK, "{}", plan.buffered);
    plan.pass(&(0..100 * MIB));
    assert!(!plan.is_waited_for());
}

#[test]
fn what_an_answer_leads_to_is_left_to_its_lane_and_holes_to_the_others() {
    let mut plan = RequestPlan::default();
    // The first response is of the whole file.
    plan.stands(0, Some(0..100 * MIB));
    plan.declare(1000..3 * MIB);
    assert_eq!(plan.next(1), None, "comes by the answer of the first lane");
    assert_eq!(plan.next(0).unwrap().block, 1000..MIB + 1000);
    assert_eq!(plan.next(2), None);
    plan.declare(5 * MIB..6 * MIB);
    assert_eq!(plan.next(1).unwrap().block, 5 * MIB..6 * MIB, "behind a hole");
    assert_eq!(plan.next(0).unwrap().block, MIB + 1000..2 * MIB + 1000);
    // A range that was declared after a request is not part of its response.
    plan.declare(6 * MIB..7 * MIB);
    assert_eq!(plan.next(2).unwrap().block, 6 * MIB..7 * MIB);
    // A lane leaves its open response only where no other lane is free.
    plan.declare(20 * MIB..22 * MIB);
    plan.declare(30 * MIB..31 * MIB);
    assert_eq!(plan.next(3).unwrap().block, 20 * MIB..21 * MIB);
    let reader = plan.begin(10 * MIB..10 * MIB + 5);
    plan.lanes[1].idle = true;
    assert_eq!(plan.next(3).unwrap().block, 21 * MIB..22 * MIB);
    assert_eq!(plan.next(1).unwrap().block, 10 * MIB..10 * MIB + 5);
    plan.end(reader);
    // A lane that fails leaves its block to all.
    plan.give_up(2, 6 * MIB);
    assert_eq!(plan.next(1).unwrap().block, 6 * MIB..7 * MIB);
}

/// Two responses that lead to the same bytes: both lanes took block after block in turns, with a new request for each.
#[test]
fn a_lane_that_another_has_overtaken_leaves_the_bytes_to_it() {
    let mut plan = RequestPlan::default();
    plan.declare(4 * MIB..12 * MIB);
    plan.stands(0, Some(2 * MIB..12 * MIB));
    plan.stands(1, Some(4 * MIB..12 * MIB));
    assert_eq!(plan.next(0), None);
    assert_eq!(plan.next(1).unwrap().block, 4 * MIB..5 * MIB);
    assert_eq!(plan.next(0), None);
    assert_eq!(plan.next(1).unwrap().block, 5 * MIB..6 * MIB);
    // Without the other lane it requests them itself.
    plan.stands(1, None);
    assert_eq!(plan.next(0).unwrap().block, 6 * MIB..7 * MIB);
}

#[test]
fn a_block_that_is_given_up_is_wanted_again_from_where_it_ends() {
    let mut plan = RequestPlan::default();
    plan.declare(0..3000);
    assert_eq!(plan.next(0).unwrap().block, 0..3000);
    assert_eq!(plan.fill(0, 0, &[7; 1000], 0), 1000);
    assert_eq!(plan.missing(0, 0), Some(1000));
    plan.give_up(0, 0);
    assert_eq!(plan.next(0).unwrap().block, 1000..3000);
    assert_eq!(plan.fill(0, 1000, &[8; 5000], 1), 2000);
    let reader = plan.begin(0..3000);
    let mut buf = [0; 3000];
    assert_eq!(plan.take(reader, &mut buf), 3000);
    assert!(buf[..1000].iter().all(|&b| b == 7) && buf[1000..].iter().all(|&b| b == 8));
    assert!(plan.blocks.is_empty() && plan.buffered == 0);
    assert_eq!(plan.senders(&(1500..1501)), [1]);
    assert_eq!(plan.senders(&(0..3000)), [0, 1], "of the second block only one byte is forgotten");
    assert_eq!(plan.senders(&(0..3000)), Vec::<usize>::new(), "each byte is attributed once");
}

#[test]
fn what_a_liar_sent_is_fetched_again() {
    let mut plan = RequestPlan::default();
    plan.declare(0..2 * MIB);
    assert_eq!(fetch(&mut plan, 0), Some(0..MIB));
    plan.distrust(1);
    assert_eq!(plan.blocks.len(), 1);
    plan.distrust(0);
    assert!(plan.blocks.is_empty() && plan.buffered == 0);
    plan.stands(0, None);
    let reader = plan.begin(0..MIB);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB);
    plan.end(reader);
}

/// A frame is read before its block is full, and its bytes turn out to be wrong.
#[test]
fn a_liar_is_known_before_its_block_is_full() {
    let mut plan = RequestPlan::default();
    plan.declare(0..MIB);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB);
    assert_eq!(plan.fill(0, 0, &[1; 5000], 3), 5000);
    let reader = plan.begin(0..4000);
    let mut buf = [0; 4000];
    assert_eq!(plan.take(reader, &mut buf), 4000);
    plan.end(reader);
    assert_eq!(plan.senders(&(0..4000)), [3]);
    plan.distrust(3);
    assert!(plan.blocks.is_empty() && plan.buffered == 0);
    // No byte of it is read again, and the bytes that had not arrived are still wanted.
    let reader = plan.begin(0..4000);
    assert_eq!(plan.take(reader, &mut buf), 0);
    assert_eq!(plan.fill(0, 0, &[1; 5000], 3), 0, "what still comes of it belongs to no block");
    plan.stands(0, None);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB, "over the gap between both");
    plan.end(reader);
}

/// Two frames of one block are wrong, and two readers have them before the first is judged. The second one had no sender
/// left, so that its error ended the transfer although another mirror had the right bytes.
#[test]
fn each_reader_of_a_block_learns_who_sent_it() {
    for (arrived, what) in [(MIB as usize, "full"), (9000, "begun")] {
        let mut plan = RequestPlan::default();
        plan.declare(0..MIB);
        assert_eq!(plan.next(0).unwrap().block, 0..MIB);
        assert_eq!(plan.fill(0, 0, &vec![1; arrived], 3), arrived);
        let frames = [1000..4000, 4000..8000];
        for frame in &frames {
            let reader = plan.begin(frame.clone());
            let mut buf = vec![0; (frame.end - frame.start) as usize];
            assert_eq!(plan.take(reader, &mut buf), buf.len());
            plan.end(reader);
        }
        assert_eq!(plan.senders(&frames[0]), [3], "{what}");
        plan.distrust(3);
        assert_eq!(plan.senders(&frames[1]), [3], "{what}");
        assert_eq!(plan.senders(&frames[1]), Vec::<usize>::new(), "{what}: forgotten, so that a retry ends");
        assert_eq!(plan.senders(&(0..1000)), [3], "{what}: what lies before them");
        assert_eq!(plan.senders(&(8000..9000)), [3], "{what}: what lies after them");
    }
}

/// Wrong bytes end a block for whose further bytes its lane still waits, and another lane fetches it anew. The bytes that the
/// first lane then received went to the beginning of the new block, and the server of the others was taken for the liar.
#[test]
fn a_block_takes_the_bytes_of_its_own_lane_alone() {
    let mut plan = RequestPlan::default();
    plan.declare(0..MIB);
    assert_eq!(plan.next(1).unwrap().block, 0..MIB);
    assert_eq!(plan.fill(1, 0, &[1; 5000], 3), 5000);
    plan.distrust(3);
    plan.stands(1, None);
    let reader = plan.begin(0..MIB);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB);
    assert_eq!((plan.missing(1, 0), plan.missing(0, 0)), (None, Some(0)));
    assert_eq!(plan.fill(1, 0, &[1; 5000], 3), 0);
    plan.give_up(1, 0);
    assert_eq!(plan.fill(0, 0, &vec![2; MIB as usize], 4), MIB as usize);
    let mut buf = vec![0; MIB as usize];
    assert_eq!(plan.take(reader, &mut buf), buf.len());
    assert!(buf.iter().all(|byte| *byte == 2));
    assert_eq!(plan.senders(&(6000..7000)), [4]);
}

/// A server is left for a faster one in the middle of a block: each of both is known by what it sent.
#[test]
fn two_servers_share_a_block() {
    let mut plan = RequestPlan::default();
    plan.declare(0..MIB);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB);
    assert_eq!(plan.fill(0, 0, &[1; 5000], 3), 5000);
    assert_eq!(plan.fill(0, 0, &vec![2; MIB as usize], 4), MIB as usize - 5000);
    assert_eq!(plan.senders(&(4000..6000)), [3, 4]);
    assert_eq!(plan.senders(&(6000..7000)), [4]);
}

/// A server that gives out a file only once: all bytes that are left are declared, but none that were taken or passed.
#[test]
fn the_rest_is_what_nobody_has_had() {
    let mut plan = RequestPlan::default();
    for range in [10..20, 30..40, 20..25, 60..70, 5..8, 26..30] {
        plan.pass(&range);
    }
    assert_eq!(plan.done, [5..8, 10..25, 26..40, 60..70]);
    plan.pass(&(0..26));
    assert_eq!(plan.done, [0..40, 60..70]);
    plan.declare_rest(0, 100);
    assert_eq!(plan.ahead, [40..60, 70..100]);
}

proptest::proptest! {
    /// Ranges are declared, passed, read and abandoned in any order. Readers get the right bytes, nothing that was
    /// passed is fetched again, the budget holds, and nothing is left over.
    #[test]
    fn any_order_of_reads_ends_with_the_right_bytes(
        steps in proptest::collection::vec((0..6u8, 0..64u64, 1..9u64), 1..80),
    ) {
        const UNIT: u64 = 50_000;
        let mut plan = RequestPlan::default();
        let mut reads: Vec<(u64, u64, Vec<u8>, usize)> = Vec::new();
        for (kind, at, len) in steps {
            let range = at * UNIT..(at + len) * UNIT;
            match kind {
                0 => plan.declare(range),
                1 => {
                    let buf = vec![0; (range.end - range.start) as usize];
                    reads.push((plan.begin(range.clone()), range.start, buf, 0));
                }
                2 if reads.is_empty() => plan.pass(&range),
                3 => {
                    let lane = (at % 4) as usize;
                    if let Some(want) = plan.next(lane) {
                        let half: Vec<u8> = want.block.clone().map(|at| (at % 251) as u8).collect();
                        plan.fill(lane, want.block.start, &half[..half.len() / 2], 0);
                        plan.give_up(lane, want.block.start);
                    }
                }
                _ => drop(fetch(&mut plan, (at % 4) as usize)),
            }
            for (demand, _, buf, done) in &mut reads {
                *done += plan.take(*demand, &mut buf[*done..]);
            }
            proptest::prop_assert!(plan.buffered <= BUDGET + BLOCK + 64 * 9 * UNIT);
        }
        for _ in 0..2000 {
            for (demand, _, buf, done) in &mut reads {
                *done += plan.take(*demand, &mut buf[*done..]);
            }
            // As long as any reader waits, one of all lanes has a block to fetch.
            if !plan.is_waited_for() || (0..LANES).find_map(|lane| fetch(&mut plan, lane)).is_none() {
                break;
            }
        }
        for (demand, at, buf, done) in &reads {
            proptest::prop_assert_eq!(*done, buf.len());
            proptest::prop_assert!(buf.iter().zip(*at..).all(|(byte, at)| *byte == (at % 251) as u8));
            plan.end(*demand);
        }
        plan.pass(&(0..1000 * UNIT));
        let held: u64 = plan.blocks.values().map(|block| block.len).sum();
        proptest::prop_assert_eq!(held, plan.buffered);
    }
}

/// A frame was left out because the running slot should have it, and is wanted after all when the file is given out only
/// once.
#[test]
fn what_an_only_answer_has_passed_by_is_asked_for_at_once() {
    let mut plan = RequestPlan::default();
    plan.stands(0, Some(0..100 * MIB));
    plan.declare(0..MIB);
    plan.declare(2 * MIB..30 * MIB);
    assert_eq!(plan.next(0).unwrap().block, 0..MIB);
    plan.declare_rest(4 * MIB, 30 * MIB);
    let reader = plan.begin(MIB..2 * MIB);
    assert_eq!(plan.next(1), None);
    assert_eq!(plan.next(0).unwrap().block, MIB..2 * MIB, "and that request tells that it is gone");
    plan.end(reader);
}

/// Frames of a bundle are read whole. Each comes as a block of its own, whose memory the reader gets: nothing is copied.
#[test]
fn a_block_that_is_just_what_a_reader_wants_is_handed_over() {
    let mut plan = RequestPlan::default();
    // A small frame, one that does not compress and is a little longer than its size, a large one.
    let (small, long, large) = (100_000, MIB + 40, 5 * MIB);
    let begins = [1000, 1000 + small, 1000 + small + long, 1000 + small + long + large];
    plan.begin_blocks_at(begins.to_vec());
    plan.declare(900..begins[3] + 50);
    let blocks: Vec<_> = std::iter::from_fn(|| fetch(&mut plan, 0)).collect();
    assert_eq!(blocks[..3], [900..begins[0], begins[0]..begins[1], begins[1]..begins[2]]);
    assert_eq!(blocks[3], begins[2]..begins[2] + MIB, "in parts");
    let mut buf = vec![7; 5];
    for range in [begins[0]..begins[1], begins[1]..begins[2]] {
        let memory = plan.blocks[&range.start].data.as_ptr();
        let reader = plan.begin(range.clone());
        assert_eq!(plan.take_block(reader, &mut buf), WholeBlock::Taken);
        assert_eq!((buf.as_ptr(), buf.len() as u64), (memory, range.end - range.start), "{range:?}");
        assert!(buf.iter().zip(range.clone()).all(|(byte, at)| u64::from(*byte) == at % 251));
        assert!(!plan.is_waited_for() && plan.take(reader, &mut [0; 9]) == 0, "taken once");
        plan.end(reader);
    }
    // What comes in parts is copied.
    let reader = plan.begin(begins[2]..begins[3]);
    assert_eq!(plan.take_block(reader, &mut buf), WholeBlock::Other);
    plan.end(reader);
}

/// A reader that gets a whole block is woken when there is all of it; one that copies is woken in between.
#[test]
fn a_block_on_its_way_is_waited_for() {
    let mut plan = RequestPlan::default();
    let (range, other) = (0..300_000, 300_000..400_000);
    let reader = plan.begin(range.clone());
    let mut buf = Vec::new();
    assert_eq!(plan.take_block(reader, &mut buf), WholeBlock::Coming, "not requested yet");
    assert!(!plan.covers(&range));
    let want = plan.next(0).unwrap();
    assert_eq!((want.block, plan.covers(&range)), (range.clone(), true));
    plan.fill(0, 0, &[1; 200_000], 0);
    assert_eq!(plan.take_block(reader, &mut buf), WholeBlock::Coming);
    let none: &[u64] = &[];
    assert_eq!(plan.served(&range, false), none);
    assert_eq!(plan.served(&range, true), [reader]);
    assert_eq!(plan.served(&other, true), none);
    let second = plan.begin(100_000..200_000);
    assert_eq!(plan.served(&range, false), [second], "a part of it");
    plan.end(second);
    // The connection breaks: the rest is requested anew, and what is here is copied.
    plan.give_up(0, 0);
    assert_eq!(plan.take_block(reader, &mut buf), WholeBlock::Other);
    buf.resize(300_000, 0);
    assert_eq!(plan.take(reader, &mut buf), 200_000);
    assert_eq!(fetch(&mut plan, 0), Some(200_000..300_000));
    assert_eq!(plan.take(reader, &mut buf[200_000..]), 100_000);
}
