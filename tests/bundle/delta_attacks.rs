//! The generator of the deltas in fixtures/attacks, and of the bundles that they belong to. All have the manifest, the
//! signature and the index of a sound release: who changes a delta needs no key for it. Add one for every new attack; never
//! remove one.

use std::sync::Arc;

use qstage::bundle::archive;
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

use super::attacks::{Attack, fit, raw_frame};
use crate::harness::proof::{FRAME, Random, Release};

/// The code of a delta that proposes the right bytes, in however strange a way: it is prepared.
pub(crate) const HARMLESS: &str = "-";

const LEN: usize = FRAME as usize;
/// When every release of the proofs was made.
const CREATED: u64 = 1_700_000_000;
const BASE_LEN: usize = 3 * LEN + 500;
/// Length of the last frame, which is not in the base.
const TAIL: usize = 700;

/// A recipe and the bytes that it has in the member.
#[derive(Clone)]
struct Recipe {
    kind: u8,
    ranges: Vec<(u64, u32)>,
    packed: Vec<u8>,
    /// Length that the recipe has instead of the one of its bytes.
    said: Option<u32>,
}

impl Recipe {
    fn new(kind: u8, ranges: &[(u64, u32)], packed: Vec<u8>) -> Self {
        Self { kind, ranges: ranges.to_vec(), packed, said: None }
    }
}

/// The parts of a delta between two releases of one image.
#[derive(Clone)]
struct Delta {
    manifest: Vec<u8>,
    signature: Vec<u8>,
    index: Vec<u8>,
    /// Hash of the manifest that it is for.
    of: [u8; 32],
    frame_size: u32,
    base: (u64, [u8; 32]),
    recipes: Vec<Recipe>,
}

/// Bytes that nothing compresses: each version of zstd makes the same frames of them.
fn random(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn release(version: &'static str, platform: Vec<u8>) -> Release {
    Release { version, platform, software: None, firmware: None }
}

/// The release that the deltas start from.
pub(crate) fn base() -> Release {
    release("1.0", random(61, BASE_LEN))
}

/// The release that they lead to: one frame of each kind.
pub(crate) fn next() -> Release {
    let old = base().platform;
    let mut changed = old[LEN..2 * LEN].to_vec();
    changed[100] = changed[100].wrapping_add(1);
    changed[LEN - LITERALS..].copy_from_slice(&random(63, LITERALS));
    let parts = [&old[..LEN], &old[5001..5001 + LEN], &changed, &random(62, TAIL)];
    release("2.0", parts.concat())
}

/// Bytes at the end of the frame of kind 5 that the base does not have.
const LITERALS: usize = 50;

/// A zstd frame of one raw block that declares this size.
fn declaring(size: u32, bytes: &[u8]) -> Vec<u8> {
    raw_frame(&[&[0xa0], &size.to_le_bytes()[..]].concat(), bytes)
}

fn raw(bytes: &[u8]) -> Vec<u8> {
    declaring(bytes.len() as u32, bytes)
}

/// A zstd frame of `blocks` blocks of 128 KiB of one repeated byte each, with this header.
fn repeated(head: &[u8], blocks: usize) -> Vec<u8> {
    let mut frame = [&[0x28, 0xb5, 0x2f, 0xfd], head].concat();
    for number in 1..=blocks {
        let block = (128_u32 << 10) << 3 | 1 << 1 | u32::from(number == blocks);
        frame.extend_from_slice(&block.to_le_bytes()[..3]);
        frame.push(b'x');
    }
    frame
}

/// A number of the streams of kind 5.
fn number(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn numbers(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| number(*value)).collect()
}

/// The bytes of a frame of kind 5 with these zstd frames as streams.
fn streams(streams: &[Vec<u8>; 5]) -> Vec<u8> {
    let lengths = streams[..4].iter().flat_map(|stream| (stream.len() as u32).to_le_bytes());
    lengths.chain(streams.iter().flatten().copied()).collect()
}

/// The streams of the frame of kind 5 in the sound delta: copies, gaps, runs, differences, literals.
fn sound_streams() -> [Vec<u8>; 5] {
    let copied = LEN - LITERALS;
    [
        numbers(&[0, copied as u32, 0]),
        numbers(&[100, copied as u32 - 101]),
        numbers(&[1]),
        vec![1],
        random(63, LITERALS),
    ]
}

/// The member from this offset on, up to the next one.
fn member(bundle: &[u8], at: &mut usize) -> Vec<u8> {
    let header = tar::Header::from_byte_slice(bundle[*at..*at + 512].try_into().unwrap());
    let size = header.size().unwrap() as usize;
    let bytes = bundle[*at + 512..*at + 512 + size].to_vec();
    *at += archive::member_len(size as u64).unwrap() as usize;
    bytes
}

impl Delta {
    fn sound() -> Self {
        let (old, new) = (base().platform, next());
        let bundle = new.pack();
        let mut at = 0;
        let [manifest, signature, index] = [(); 3].map(|()| member(&bundle, &mut at));
        let recipes = vec![
            Recipe::new(1, &[], vec![]),
            Recipe::new(2, &[(5001, FRAME)], vec![]),
            Recipe::new(5, &[(LEN as u64, FRAME)], streams(&sound_streams().map(|stream| raw(&stream)))),
            Recipe::new(3, &[(0, 1000), (2000, 1000)], raw(&new.platform[3 * LEN..])),
        ];
        Self {
            of: *blake3::hash(&manifest).as_bytes(),
            manifest,
            signature,
            index,
            frame_size: FRAME,
            base: (BASE_LEN as u64, *blake3::hash(&old).as_bytes()),
            recipes,
        }
    }

    /// The same with another recipe for this frame.
    fn with(&self, frame: usize, recipe: Recipe) -> Self {
        let mut changed = self.clone();
        changed.recipes[frame] = recipe;
        changed
    }

    fn head(&self) -> Vec<u8> {
        let mut head = [&b"qdelta\0\x01"[..], &self.of, &self.frame_size.to_le_bytes()].concat();
        head.extend_from_slice(&self.base.0.to_le_bytes());
        head.extend_from_slice(&self.base.1);
        for recipe in &self.recipes {
            head.extend_from_slice(&[recipe.kind, recipe.ranges.len() as u8, 0, 0]);
            let len = recipe.said.unwrap_or(recipe.packed.len() as u32);
            head.extend_from_slice(&len.to_le_bytes());
            for (at, len) in &recipe.ranges {
                head.extend_from_slice(&at.to_le_bytes());
                head.extend_from_slice(&len.to_le_bytes());
            }
        }
        head
    }

    fn pack(&self) -> Vec<u8> {
        self.around(&[("delta.bin", self.head())])
    }

    /// The archive with these members instead of `delta.bin`.
    fn around(&self, heads: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut members = vec![
            ("manifest.json", self.manifest.clone()),
            ("manifest.json.sig", self.signature.clone()),
            ("index.bin", self.index.clone()),
        ];
        members.extend(heads.iter().cloned());
        let packed = self.recipes.iter().flat_map(|recipe| recipe.packed.iter().copied());
        members.push(("platform.img.delta", packed.collect()));
        let mut bytes = Vec::new();
        for (name, member) in members {
            let size = member.len() as u64;
            bytes.extend(archive::header(name, size, CREATED).unwrap());
            bytes.extend(member);
            bytes.resize(bytes.len() + archive::padding(size) as usize, 0);
        }
        bytes.resize(bytes.len() + archive::END_LEN, 0);
        bytes
    }
}

/// A sound delta from [`base`] to [`next`].
pub(crate) fn sound() -> Arc<Vec<u8>> {
    Arc::new(Delta::sound().pack())
}

/// All of them.
pub(crate) fn attacks() -> Vec<Attack> {
    let good = Delta::sound();
    let bytes = good.pack();
    let mut all = Vec::new();
    let mut add = |name: &str, code: &'static str, what, bytes| {
        let (file, stream) = code.split_once(' ').unwrap_or((code, code));
        all.push(Attack { file: format!("delta-{name}.qdelta"), codes: [file, stream], what, bytes });
    };
    add("sound", HARMLESS, "what the others are changes of", bytes.clone());
    archives(&good, &mut add);
    heads(&good, &mut add);
    recipes(&good, &mut add);
    frames(&good, &mut add);
    aligned(&good, &mut add);
    all
}

type Add<'a> = dyn FnMut(&str, &'static str, &'static str, Vec<u8>) + 'a;

/// The archive, and what is signed.
fn archives(good: &Delta, add: &mut Add<'_>) {
    let bytes = good.pack();
    let at = |name: &str| bytes.windows(name.len()).position(|part| part == name.as_bytes()).unwrap();
    let (head_at, member_at) = (at("delta.bin\0"), at("platform.img.delta\0"));
    let cut = "BUNDLE_TRUNCATED";
    add("cut-in-head", cut, "ends within delta.bin", bytes[..head_at + 512 + 60].to_vec());
    add("cut-in-frame", cut, "ends within a frame", bytes[..member_at + 512 + 500].to_vec());
    add("cut-at-end", cut, "ends before the end-of-archive mark", bytes[..bytes.len() - 1024].to_vec());
    let tail = [&bytes[..], &[0]].concat();
    add("trailing-byte", "BUNDLE_TRAILING_BYTES", "one byte after the end", tail);
    let mut huge = bytes.clone();
    let mut header = tar::Header::from_byte_slice(huge[head_at..head_at + 512].try_into().unwrap()).clone();
    header.set_size(1 << 40);
    huge[head_at..head_at + 512].copy_from_slice(header.as_bytes());
    fit(&mut huge[head_at..head_at + 512]);
    add("head-size", "BUNDLE_LIMIT", "delta.bin of a terabyte, by its header", huge);
    let twice = [("delta.bin", good.head()), ("delta.bin", good.head())];
    add(
        "head-twice",
        "BUNDLE_TRAILING_BYTES BUNDLE_TAR_HEADER",
        "delta.bin is there twice",
        good.around(&twice),
    );
    add(
        "head-missing",
        "BUNDLE_TRUNCATED BUNDLE_TAR_HEADER",
        "the bytes of a delta without delta.bin",
        good.around(&[]),
    );
    let mut longer = good.clone();
    longer.recipes[3].said = Some(longer.recipes[3].packed.len() as u32 + 1);
    add("length-longer", "BUNDLE_TAR_HEADER", "a recipe has one byte more than the member", longer.pack());
    let mut moved = good.clone();
    for (frame, by) in [(2, -10), (3, 10)] {
        let len = moved.recipes[frame].packed.len() as i64 + by;
        moved.recipes[frame].said = Some(len as u32);
    }
    add("length-moved", "DELTA_FRAME", "the lengths of two recipes lie, their sum does not", moved.pack());

    let mut unsigned = good.clone();
    unsigned.signature.clear();
    add("unsigned", "UNSIGNED", "no signature", unsigned.pack());
    let stranger = PrivateKey::from(Ed25519Keypair::from_seed(&[8; 32]));
    let signature = stranger.sign("qimg", HashAlg::Sha512, &good.manifest).unwrap();
    let mut by_stranger = good.clone();
    by_stranger.signature = signature.to_pem(LineEnding::LF).unwrap().into_bytes();
    if !by_stranger.signature.ends_with(b"\n") {
        by_stranger.signature.push(b'\n');
    }
    add("signed-by-stranger", "UNTRUSTED", "signed by a key that is not listed", by_stranger.pack());
    let mut index = good.clone();
    index.index[9] ^= 1;
    add("index-changed", "BUNDLE_INDEX_DIGEST", "the index is not the one of the manifest", index.pack());
}

/// The start of `delta.bin`.
fn heads(good: &Delta, add: &mut Add<'_>) {
    let head = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut head = good.head();
        change(&mut head);
        good.around(&[("delta.bin", head)])
    };
    let parts = |change: &dyn Fn(&mut Delta)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed.pack()
    };
    add("head-empty", "DELTA", "delta.bin is empty", head(&|head| head.clear()));
    add(
        "head-short",
        "DELTA",
        "delta.bin ends within its last recipe",
        head(&|head| head.truncate(head.len() - 1)),
    );
    add("head-longer", "DELTA", "delta.bin goes on after its last recipe", head(&|head| head.push(0)));
    add("version", "DELTA", "version 2 of the format", head(&|head| head[7] = 2));
    let other = blake3::hash(b"other");
    add(
        "other-manifest",
        "DELTA",
        "it is for another manifest",
        parts(&|delta| delta.of = *other.as_bytes()),
    );
    add("frame-size", "DELTA", "another frame size than the manifest's", parts(&|d| d.frame_size *= 2));
    add("base-zero", "DELTA", "a base of no bytes that has a hash", parts(&|delta| delta.base.0 = 0));
    let none = parts(&|delta| delta.base = (0, [0; 32]));
    add("base-none", "DELTA", "no base, and recipes that read it", none);
    add("other-base", "DELTA_BASE", "for another base", parts(&|delta| delta.base.1[0] ^= 1));
    let larger = parts(&|delta| delta.base.0 = u64::MAX);
    add("base-larger", "DELTA_BASE", "the hash of the base, and a size of 2^64 - 1 bytes", larger);
}

/// Kinds, ranges and lengths of the recipes.
fn recipes(good: &Delta, add: &mut Add<'_>) {
    let (len, base) = (TAIL as u32, BASE_LEN as u64);
    let sound = good.recipes[3].clone();
    let ranges =
        |ranges: &[(u64, u32)]| good.with(3, Recipe { ranges: ranges.to_vec(), ..sound.clone() }).pack();
    let kind =
        |kind, of: &[(u64, u32)], said| good.with(3, Recipe { said, ..Recipe::new(kind, of, vec![]) }).pack();
    let code = "DELTA";
    add("range-beyond", code, "a range ends one byte after the base", ranges(&[(base - 9, 10)]));
    add("range-outside", code, "a range begins at the end of the base", ranges(&[(base, 1)]));
    add("range-huge", code, "a range of 4 GiB", ranges(&[(0, u32::MAX)]));
    add("range-overflow", code, "a range that ends after 2^64", ranges(&[(u64::MAX, 2)]));
    add("range-overlap", code, "two ranges overlap by a byte", ranges(&[(0, 1000), (999, 1000)]));
    add("range-same", code, "16 times the same range", ranges(&[(0, 500); 16]));
    add("range-order", code, "a range before the one that precedes it", ranges(&[(5000, 10), (0, 10)]));
    add("range-empty", code, "a range of no bytes", ranges(&[(100, 0)]));
    let many: Vec<_> = (0..17).map(|number| (number * 2, 1)).collect();
    add("ranges-many", code, "17 ranges", ranges(&many));
    add(
        "ranges-long",
        code,
        "ranges of two frames and a byte",
        ranges(&[(0, FRAME), (FRAME.into(), FRAME + 1)]),
    );
    add("length-huge", code, "4 GiB of bytes for a frame", kind(3, &[], Some(u32::MAX)));
    add("length-zero", code, "a frame to decompress of no bytes", kind(3, &[], None));
    add("copy-short", code, "a copy of less than its frame", kind(2, &[(0, len - 1)], None));
    add("copy-long", code, "a copy of more than its frame", kind(2, &[(0, len + 1)], None));
    add("copy-nothing", code, "a copy without a range", kind(2, &[], None));
    add("copy-bytes", code, "a copy with bytes in the member", kind(2, &[(0, len)], Some(1)));
    add("zero-bytes", code, "zeroes with bytes in the member", kind(0, &[], Some(1)));
    add("in-place-range", code, "a range where the place is given", kind(1, &[(0, 10)], None));
    add("in-place-beyond", code, "in place, after the end of the base", kind(1, &[], None));
    // What no later version can refuse, since such a recipe is of a later one.
    let unknown = Recipe { kind: 6, ..sound.clone() };
    add(
        "kind-unknown",
        "DELTA_FRAME",
        "a kind that this version does not know",
        good.with(3, unknown).pack(),
    );
    add("kind-left-out", "DELTA_FRAME", "a frame is left to the bundle", kind(4, &[], None));
    add("copy-other", "DELTA_FRAME", "a copy of other bytes than the frame's", kind(2, &[(7, len)], None));
    add("zero-other", "DELTA_FRAME", "zeroes for a frame that has others", kind(0, &[], None));
}

/// zstd frames.
fn frames(good: &Delta, add: &mut Add<'_>) {
    let plain = random(62, TAIL);
    let packed = |packed: Vec<u8>| good.with(3, Recipe { packed, ..good.recipes[3].clone() }).pack();
    let size = (TAIL as u32).to_le_bytes();
    let single = [&[0xa0], &size[..]].concat();
    // With a window instead of a single segment: its exponent, and the size in four bytes.
    let window = |byte: u8| [&[0x80, byte], &size[..]].concat();
    let skippable = [0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4];
    let code = "DELTA_FRAME";
    add("bomb-size", code, "declares 3 GiB", packed(declaring(0xc000_0000, &plain)));
    add("bomb-blocks", code, "declares its size and has 22 MiB", packed(repeated(&window(0x38), 180)));
    add("bomb-segment", code, "the same as a single segment", packed(repeated(&single, 180)));
    add("bomb-window", code, "a window of 3.75 TiB", packed(raw_frame(&window(0xff), &plain)));
    add(
        "large-window",
        HARMLESS,
        "a window of 2 GiB, which takes no memory",
        packed(raw_frame(&window(0xa8), &plain)),
    );
    add("frame-sizeless", code, "declares no size", packed(raw_frame(&[0x00, 0x50], &plain)));
    add("frame-longer", code, "declares less than it has", packed(declaring(TAIL as u32 - 1, &plain)));
    add("frame-shorter", code, "declares more than it has", packed(declaring(TAIL as u32, &plain[1..])));
    let dictionary = raw_frame(&[&[0xa1, 1], &size[..]].concat(), &plain);
    add("frame-dictionary", code, "wants a dictionary", packed(dictionary));
    let reserved = raw_frame(&[&[0xa8], &size[..]].concat(), &plain);
    add("frame-reserved-bit", code, "sets the reserved bit", packed(reserved));
    let half = raw(&plain[..TAIL / 2]);
    add("frame-twice", code, "two zstd frames of half the size", packed(half.repeat(2)));
    let more = [&good.recipes[3].packed[..], &skippable].concat();
    add("frame-and-more", code, "a skippable frame follows", packed(more));
    add("frame-skippable", code, "a skippable frame only", packed(skippable.to_vec()));
    add("frame-garbage", code, "no zstd at all", packed(vec![0x5a; TAIL]));
    let other: Vec<u8> = plain.iter().map(|byte| byte ^ 1).collect();
    add("frame-other", code, "a sound zstd frame of other bytes", packed(raw(&other)));
}

/// Frames of kind 5.
fn aligned(good: &Delta, add: &mut Add<'_>) {
    let sound = sound_streams();
    let packed = |packed: Vec<u8>| good.with(2, Recipe { packed, ..good.recipes[2].clone() }).pack();
    let with = |number: usize, stream: Vec<u8>| {
        let mut changed = sound.clone().map(|stream| raw(&stream));
        changed[number] = stream;
        packed(streams(&changed))
    };
    let numbers = |number, values: &[u32]| with(number, raw(&numbers(values)));
    let whole = good.recipes[2].packed.clone();
    let copied = (LEN - LITERALS) as u32;
    let code = "DELTA_FRAME";
    add("aligned-short", code, "kind 5: less than its lengths", packed(whole[..15].to_vec()));
    let lying = [&u32::MAX.to_le_bytes()[..], &whole[4..]].concat();
    add("aligned-length", code, "kind 5: a stream of 4 GiB", packed(lying));
    let cut = whole[..whole.len() - 20].to_vec();
    add("aligned-cut", code, "kind 5: the last stream is cut", packed(cut));
    let mut four = sound.clone().map(|stream| raw(&stream));
    four[4].clear();
    add("aligned-four", code, "kind 5: four streams", packed(streams(&four)));
    add("aligned-bomb", code, "kind 5: a stream declares 3 GiB", with(4, declaring(0xc000_0000, &sound[4])));
    let block = (FRAME << 3 | 1 << 1 | 1).to_le_bytes();
    let head = [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &FRAME.to_le_bytes(), &block[..3]].concat();
    let sum = with(1, [&head[..], &[0]].concat());
    add("aligned-sum", code, "kind 5: the streams are longer than the frame", sum);
    let blocks = repeated(&[&[0x80, 0x38], &(LITERALS as u32).to_le_bytes()[..]].concat(), 900);
    add("aligned-blocks", code, "kind 5: a stream declares 50 bytes and has 115 MiB", with(4, blocks));
    let dictionary = [&[0xa1, 1], &(LITERALS as u32).to_le_bytes()[..]].concat();
    let dictionary = with(4, raw_frame(&dictionary, &sound[4]));
    add("aligned-dictionary", code, "kind 5: a stream wants a dictionary", dictionary);
    let more = [raw(&sound[3]), raw(&sound[3])].concat();
    add("aligned-and-more", code, "kind 5: a stream is two zstd frames", with(3, more));
    add("aligned-copy-long", code, "kind 5: a copy longer than its ranges", numbers(0, &[0, FRAME + 1, 0]));
    add(
        "aligned-copy-beyond",
        code,
        "kind 5: a copy after the end of its ranges",
        numbers(0, &[0, copied, 200]),
    );
    add("aligned-copy-before", code, "kind 5: a copy before its ranges", numbers(0, &[0, copied, 1]));
    add("aligned-copy-far", code, "kind 5: a copy 2 GiB away", numbers(0, &[0, copied, u32::MAX]));
    let overlong = with(0, raw(&[0xff; 6]));
    add("aligned-number", code, "kind 5: a number of more than 32 bits", overlong);
    add("aligned-number-cut", code, "kind 5: a number without an end", with(0, raw(&[0, 0x80])));
    add("aligned-gap-long", code, "kind 5: equal bytes after the end of a copy", numbers(1, &[u32::MAX, 1]));
    add("aligned-gap-missing", code, "kind 5: too few gaps", numbers(1, &[100]));
    add("aligned-run-empty", code, "kind 5: a change of no bytes", numbers(2, &[0]));
    add("aligned-run-long", code, "kind 5: a change after the end of its copy", numbers(2, &[copied]));
    add("aligned-left-over", code, "kind 5: differences are left over", with(3, raw(&[1, 1])));
    add("aligned-literals", code, "kind 5: too few literals", with(4, raw(&sound[4][1..])));
    add(
        "aligned-literals-before",
        code,
        "kind 5: a copy after more literals than there are",
        numbers(0, &[51, copied, 0]),
    );
    add("aligned-other", code, "kind 5: sound streams of other bytes", with(3, raw(&[2])));
}
