//! Micro-benchmarks of the parts of prepare and commit: `cargo bench`. They compare two versions of a part on one machine; for
//! a machine as a whole there is `qstage bench`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot be set up has nothing to say")]

#[path = "../harness/tables/mod.rs"]
#[allow(missing_docs)]
mod tables;

use std::io::Cursor;
use std::num::NonZeroUsize;
use std::sync::Arc;

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use qstage::boot::{BootFlag, Flags, Slots};
use qstage::bundle::feed::Feed;
use qstage::bundle::frame::{FrameDecoder, chaining_value};
use qstage::bundle::index::Index;
use qstage::bundle::sha256::Hasher;
use qstage::bundle::writer::{Compression, PayloadInput, ReleaseInfo, pack_payloads, write_front};
use qstage::bundle::{Bundle, Kind, Source, Trust};
use qstage::commit;
use qstage::device::{AlignedBuf, MemoryDevice};
use qstage::progress::{Cancel, Silent};
use qstage::units::{BlockSize, Group, MIB, Slot};
use qstage::workers::Abort;

const FRAMES: [u32; 4] = [256 << 10, 512 << 10, 1 << 20, 4 << 20];

fn main() {
    divan::main();
}

/// A bundle of 8 MiB of words out of a vocabulary of 4096.
fn bundle(frame_size: u32) -> Bundle {
    let mut state = 7_u32;
    let mut word = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 20).wrapping_mul(0x9e37_79b9)
    };
    // Words of 12 bytes: shorter ones zstd takes for no match.
    let words = std::iter::repeat_with(|| {
        let word = word();
        [word, word ^ 0x5555_5555, word.rotate_left(9)]
    });
    let image: Vec<u8> = words.flatten().flat_map(u32::to_le_bytes).take(8 * MIB as usize).collect();
    let identity = ReleaseInfo {
        product: "bench".to_owned(),
        version: "1".to_owned(),
        min_version: None,
        needs_platform: None,
        epoch: 0,
        created: 0,
    };
    let input = PayloadInput {
        kind: Kind::Platform,
        name: "platform".to_owned(),
        version: "1".to_owned(),
        image: &image,
    };
    let compression = Compression { level: 3, frame_size, jobs: NonZeroUsize::new(2) };
    let mut payloads = Cursor::new(Vec::new());
    let packed = pack_payloads(&identity, &[input], compression, &mut payloads, &Cancel::default(), &Silent)
        .expect("packs");
    let manifest = packed.fields.to_bytes().expect("is a manifest");
    let mut bytes = Vec::new();
    write_front(&mut bytes, &manifest, b"", &packed.index, 0).expect("is a bundle");
    bytes.extend_from_slice(payloads.get_ref());
    Bundle::open(Source::File(Arc::new(bytes)), &Trust::dangerously_unsigned()).expect("opens")
}

/// One frame, decompressed and verified.
#[divan::bench(args = FRAMES)]
fn decode_and_verify(bencher: Bencher<'_, '_>, frame_size: u32) {
    let bundle = bundle(frame_size);
    let (feed, cancel) = (Feed::new(&bundle, |_| true), Cancel::default());
    let mut compressed = Vec::new();
    let claim = feed.claim(&mut compressed, &Abort::new(&cancel, "")).expect("reads").expect("has a frame");
    feed.load(&claim, &mut compressed).expect("reads");
    let mut decoder = FrameDecoder::new().expect("zstd");
    let mut out = AlignedBuf::zeroed(frame_size as usize);
    bencher.counter(BytesCount::new(frame_size)).bench_local(|| {
        let frame = decoder.decode(&claim, &compressed, &mut out);
        black_box(frame.expect("is right").len())
    });
}

/// One frame, verified only: what reading back costs.
#[divan::bench(args = FRAMES)]
fn verify(bencher: Bencher<'_, '_>, frame_size: u32) {
    let bytes = vec![0x5a; frame_size as usize];
    let at = u64::from(frame_size);
    bencher.counter(BytesCount::new(frame_size)).bench_local(|| chaining_value(black_box(&bytes), at, false));
}

/// The same bytes by SHA-256, as `pack` and `verify` compute it of whole images.
#[divan::bench]
fn sha256_of_an_image(bencher: Bencher<'_, '_>) {
    let bytes = vec![0x5a; MIB as usize];
    bencher.counter(BytesCount::new(MIB)).bench_local(|| {
        let mut hasher = Hasher::default();
        hasher.update(black_box(&bytes));
        hasher.finish()
    });
}

/// The same by the crate `sha2`, portable code where the processor has no instructions for it.
#[divan::bench]
fn sha256_by_sha2(bencher: Bencher<'_, '_>) {
    use sha2::Digest as _;
    let bytes = vec![0x5a; MIB as usize];
    bencher.counter(BytesCount::new(MIB)).bench_local(|| sha2::Sha256::digest(black_box(&bytes)));
}

/// An index checked and merged to the hash of the image.
#[divan::bench]
fn parse_and_merge_an_index(bencher: Bencher<'_, '_>) {
    let bundle = bundle(64 << 10);
    let (claims, bytes) = (bundle.manifest().clone(), bundle.index().bytes().to_vec());
    bencher.with_inputs(|| bytes.clone()).bench_local_values(|bytes| Index::parse(bytes, &claims));
}

/// The plan of a switch, from a table in memory: what commit computes, without the disk.
#[divan::bench]
fn plan_a_switch(bencher: Bencher<'_, '_>) {
    let disk = MemoryDevice::new(tables::Spec::slots(512, 16384, 2048, 2048).image(), BlockSize::B512);
    let loaded = commit::load(&disk, "disk").expect("has a table");
    let table = loaded.table().expect("has a table");
    let slots = Slots::resolve(table, "disk").expect("has slots");
    bencher.bench_local(|| {
        let flags = Flags::new(table.clone(), &slots, BootFlag::Priority);
        let table = flags.select_trial(Group::Platform, Slot::B, 3).map(Flags::into_table);
        commit::plan(&loaded, &table.expect("can be selected")).map(|plan| plan.steps.len())
    });
}
