//! Deltas that are made and applied: the new image comes back, and any number of workers makes the same delta.

use std::io::Cursor;
use std::sync::Arc;

use super::*;
use crate::bundle::delta::tests::{bundle, noise};
use crate::bundle::delta::{MEMBER, Streams, rebuild};
use crate::bundle::feed::Feed;
use crate::bundle::writer::{write_front, write_members};
use crate::bundle::{Source, Trust};
use crate::progress::Silent;

const FRAME: u32 = 64 << 10;

fn text(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len).iter().map(|byte| b"etaoinshrdlu cm\n"[usize::from(byte % 16)]).collect()
}

/// An old image and a new one with all that a delta can describe: moved, changed, in place, new, zero.
fn pair() -> (Vec<u8>, Vec<u8>) {
    let old = [noise(1, 3 * 65_536), text(2, 4 * 65_536), vec![0; 65_536], text(3, 100_000)].concat();
    let mut new = old[..2 * 65_536].to_vec();
    new.extend_from_slice(&[0; 65_536]);
    // Unchanged, but at another offset.
    new.extend_from_slice(&old[200_001..][..2 * 65_536]);
    // Moved, and every 700th byte is changed.
    let mut changed = text(2, 4 * 65_536)[30_000..][..100_000].to_vec();
    changed.iter_mut().step_by(700).for_each(|byte| *byte ^= 1);
    new.extend_from_slice(&changed);
    new.extend_from_slice(&noise(9, 65_536));
    (old, new)
}

fn made(bundle: &Bundle, old: &[u8], jobs: usize, lean: bool) -> Vec<u8> {
    made_by(bundle, old, Options { level: Some(9), lean, jobs: NonZeroUsize::new(jobs) })
}

fn made_by(bundle: &Bundle, old: &[u8], options: Options) -> Vec<u8> {
    let image = old.to_vec();
    let of = BaseRef::of(&image).unwrap();
    let mut members = Cursor::new(Vec::new());
    let bases = [Some(Base { image: &image, of })];
    let head = make(bundle, &bases, options, &mut members, &Cancel::default(), &Silent).unwrap();
    let mut bytes = Vec::new();
    let (manifest, release) = (bundle.manifest(), bundle.release());
    write_front(&mut bytes, manifest.bytes(), b"", release.index().bytes(), manifest.created).unwrap();
    write_members(&mut bytes, &[(MEMBER, &head)], manifest.created).unwrap();
    bytes.extend_from_slice(members.get_ref());
    bytes
}

/// The image that a delta makes of `old`, in memory, by the steps of a worker.
fn applied(opened: &Bundle, old: &[u8]) -> Result<Vec<u8>> {
    let (cancel, feed) = (Cancel::default(), Feed::new(opened, |_| true));
    let (abort, mut packed) = (Abort::new(&cancel, ""), Vec::new());
    let mut image = Vec::new();
    while let Some(claim) = feed.claim(&mut packed, &abort)? {
        feed.load(&claim, &mut packed)?;
        let recipe = opened.delta().unwrap().recipe(&claim);
        let mut prefix = Vec::new();
        recipe.read(&old.to_vec(), &mut prefix)?;
        let mut buffer = vec![0; claim.len()];
        rebuild(recipe.kind, &claim, &prefix, &packed, &mut Streams::default(), &mut buffer)?;
        claim.verify(&mut buffer)?;
        image.extend_from_slice(&buffer);
    }
    Ok(image)
}

#[test]
fn what_is_made_gives_the_new_image() {
    let (old, new) = pair();
    let bundle = bundle(&new, FRAME);
    let bytes = made(&bundle, &old, 3, false);
    assert_eq!(bytes, made(&bundle, &old, 1, false), "on one worker");
    for stream in [false, true] {
        let source = if stream {
            Source::Stream(Box::new(Cursor::new(bytes.clone())))
        } else {
            Source::File(Arc::new(bytes.clone()))
        };
        let opened = Bundle::open(source, &Trust::dangerously_unsigned()).unwrap();
        assert_eq!(opened.size().unwrap(), bytes.len() as u64);
        let delta = opened.delta().unwrap();
        let mut tally = Tally::default();
        tally.add(delta, opened.release(), 0);
        assert!(tally.zero == 1 && tally.in_place == 2 && tally.copied == 2, "{tally:?}");
        assert!(tally.patched >= 2 && tally.plain >= 1 && tally.from_bundle == 0, "{tally:?}");
        let patched = delta.packed_size(opened.release(), 0);
        assert!(applied(&opened, &old).unwrap() == new);
        // The new random bytes, and some bytes for each change.
        assert!((65_536..65_536 + 3000).contains(&patched), "{patched}");
    }
}

#[test]
fn little_is_compressed_at_the_higher_level() {
    let (old, new) = pair();
    let bundle = bundle(&new, FRAME);
    let at = |level| made_by(&bundle, &old, Options { level, lean: false, jobs: None });
    assert!(at(None) == at(Some(LEVEL_OF_LITTLE)) && at(None) != at(Some(LEVEL)));
}

#[test]
fn a_lean_delta_leaves_out_what_is_new() {
    let (old, new) = pair();
    let bundle = bundle(&new, FRAME);
    let bytes = made(&bundle, &old, 2, true);
    let opened = Bundle::open(Source::File(Arc::new(bytes.clone())), &Trust::dangerously_unsigned()).unwrap();
    assert!(opened.delta().unwrap().needs_bundle(opened.release(), 0));
    let (lean, whole) = (bytes.len(), made(&bundle, &old, 2, false).len());
    assert!(lean + 30_000 < whole, "{lean} {whole}");
}

#[test]
fn without_a_base_it_is_the_bundle_again() {
    let (_, new) = pair();
    let bundle = bundle(&new, FRAME);
    let options = Options { level: Some(9), lean: false, jobs: None };
    let mut members = Cursor::new(Vec::new());
    let head = make(&bundle, &[None], options, &mut members, &Cancel::default(), &Silent).unwrap();
    let delta = Delta::parse(head, bundle.release()).unwrap();
    assert!(delta.packed_size(bundle.release(), 0) <= bundle.release().compressed_size(0));
}

/// Every truncation and every changed bit of a small delta, in head, recipes, archive and payload, gives an error or the
/// signed image. A delta is not signed, so nothing else stands between its author and the slot.
#[test]
fn a_damaged_delta_makes_the_signed_image_or_an_error() {
    let old = [text(1, 4096), noise(2, 4096), text(3, 4096)].concat();
    let mut new = [&old[..4096], &old[5000..9096], &text(3, 4096)[..], &text(4, 300)[..]].concat();
    new[8200..8210].fill(b'!');
    let bundle = bundle(&new, 4096);
    let good = made(&bundle, &old, 1, false);
    let outcome = |bytes: &[u8], stream: bool| {
        let source = if stream {
            Source::Stream(Box::new(Cursor::new(bytes.to_vec())))
        } else {
            Source::File(Arc::new(bytes.to_vec()))
        };
        let opened = Bundle::open(source, &Trust::dangerously_unsigned())?;
        // With a changed name of a member it may be no delta any more, and then it is no bundle either.
        if opened.delta().is_some() {
            applied(&opened, &old)
        } else {
            Err(Error::Delta { problem: String::new() })
        }
    };
    let tally =
        |bytes: &[u8]| [false, true].map(|stream| outcome(bytes, stream).is_ok_and(|image| image == new));
    assert_eq!(tally(&good), [true, true]);
    // The blocks at the end are empty, so a file that ends within them may pass.
    for len in 0..good.len() - END_LEN {
        assert!(outcome(&good[..len], false).is_err() && outcome(&good[..len], true).is_err(), "{len} bytes");
    }
    let (mut refused, mut bytes) = (0, good.clone());
    for bit in 0..good.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        match outcome(&bytes, false) {
            Ok(image) => assert!(image == new, "bit {bit} of byte {}", bit / 8),
            Err(_) => refused += 1,
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(refused > good.len() * 4, "{refused} of {}", good.len() * 8);
}

/// Where bytes were inserted, all frames after them are at other offsets; little of them is new. Nor is a frame of zeroes.
#[test]
fn frames_that_only_moved_are_not_lacking() {
    let mut old = noise(1, 16 * 65_536);
    // What the seventh frame begins with is found at the start of the image first.
    old.copy_within(0..3000, 7 * 65_536 - 5000);
    let mut new = old.clone();
    new.splice(100_000..100_000, noise(2, 5000));
    new[5 * 65_536..6 * 65_536].fill(0);
    let bundle = bundle(&new, FRAME);
    let cancel = Cancel::default();
    let (abort, jobs) = (Abort::new(&cancel, ""), workers::at_least_one(2));
    let base = Base { image: &old, of: BaseRef::of(&old).unwrap() };
    let options = Options { level: None, lean: false, jobs: Some(jobs) };
    let maker =
        Maker { bundle: &bundle, number: 0, base: Some(&base), options, cancel: &cancel, progress: &Silent };
    let survey = Survey::of(&bundle, 0, &old, jobs, &abort).unwrap();
    assert!(survey.changed_bytes > 15 * 65_536);
    let index = BaseIndex::new(&old, survey.wanted.as_ref(), jobs, &abort).unwrap();
    // The frame with the insertion, for the frames around it have all their bytes in one place.
    assert_eq!(maker.lacks(&base, &survey, &index, jobs, &abort).unwrap(), 65_536);
}
