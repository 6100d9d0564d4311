//! Fuzzed functions: one for each parser of untrusted bytes. Every input is valid; the findings are panics, hangs and unbounded
//! memory, and some properties of accepted inputs are asserted. Checksums are corrected where they would end every attempt at
//! the first step.

use std::num::NonZeroUsize;
use std::sync::Arc;

use qstage::boot::Slots;
use qstage::bundle::delta::{Delta, FrameKind, PREFIX_FRAMES, RANGES_MAX, Streams, rebuild};
use qstage::bundle::index::Index;
use qstage::bundle::manifest::{FORMAT, INDEX_ENTRY_LEN, IndexRef, Payload};
use qstage::bundle::{Bundle, Kind, ManifestFields, Release, Source, Trust, verify};
use qstage::commit;
use qstage::device::{BlockDevice, MemoryDevice};
use qstage::gpt::plan::{plan_repair, plan_restore};
use qstage::gpt::{Copy, CopyState};
use qstage::progress::{Cancel, Silent};
use qstage::slot::Content;
use qstage::units::{Blake3, BlockSize, ByteOffset, Group, Sha256};

/// A whole bundle, without trust: as a file and as a stream, to the last frame.
pub fn bundle(data: &[u8]) {
    let shared = Arc::new(data.to_vec());
    let as_file = Source::File(shared);
    let as_stream = Source::Stream(Box::new(std::io::Cursor::new(data.to_vec())));
    let results = [as_file, as_stream].map(|source| {
        let bundle = Bundle::open(source, &Trust::dangerously_unsigned())?;
        verify::verify(&bundle, NonZeroUsize::new(1), &Cancel::default(), &Silent)
            .map(|report| report.version)
    });
    match results {
        [Ok(file), Ok(stream)] => assert_eq!(file, stream),
        [Err(_), Err(_)] => {}
        [file, stream] => panic!("file {file:?}, stream {stream:?}"),
    }
}

/// `manifest.json`: what is accepted can be written again and read back as the same.
pub fn manifest(data: &[u8]) {
    if let Ok(claims) = ManifestFields::parse(data) {
        let bytes = claims.to_bytes().expect("what was accepted can be written");
        assert_eq!(ManifestFields::parse(&bytes).expect("and read again"), claims);
    }
}

/// `index.bin` of a manifest whose sizes come from the first bytes.
pub fn index(data: &[u8]) {
    let Some((head, rest)) = data.split_at_checked(12) else { return };
    let size = |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], 0])) + 1;
    let payload = |kind, name: &str, at: usize| Payload {
        kind,
        name: name.to_owned(),
        version: "1".to_owned(),
        size: size(at),
        frame_size: 4096 << (head[at + 3] % 12),
        blake3: Blake3([0; 32]),
        sha256: Sha256([0; 32]),
    };
    let mut claims = ManifestFields {
        format: FORMAT,
        product: "p".to_owned(),
        version: "1".to_owned(),
        min_version: None,
        needs_platform: None,
        epoch: 0,
        created: 0,
        payloads: vec![payload(Kind::Platform, "platform", 0), payload(Kind::Firmware, "f", 4)],
        index: IndexRef { size: rest.len() as u64, blake3: Blake3(*blake3::hash(rest).as_bytes()) },
    };
    // The manifest has been checked when an index is looked at: its size fits.
    let frames = claims.payloads.iter().map(Payload::frames).sum::<u64>();
    let fits = frames * INDEX_ENTRY_LEN as u64;
    let mut bytes = rest.to_vec();
    if fits > 1 << 20 {
        return;
    }
    bytes.resize(fits as usize, 0);
    claims.index = IndexRef { size: fits, blake3: Blake3(*blake3::hash(&bytes).as_bytes()) };
    if let Ok(index) = Index::parse(bytes, &claims) {
        for (number, payload) in claims.payloads.iter().enumerate() {
            let sum: u64 = (0..payload.frames()).map(|f| u64::from(index.entry(number, f).compressed)).sum();
            assert_eq!(index.compressed_size(number, payload), sum);
        }
    }
}

/// `delta.bin` of a release of three payloads, after its first 40 bytes: what is accepted names no range beyond its base, and
/// no more of them than fits. It is the same as one zstd frame. What begins as a zstd frame is a whole `delta.bin`.
pub fn delta(data: &[u8]) {
    let sound = include_bytes!("../../../fixtures/corpus/bundle/sound").to_vec();
    let source = Source::File(Arc::new(sound));
    let bundle = Bundle::open(source, &Trust::dangerously_unsigned()).expect("it is sound");
    let release = bundle.release();
    if data.starts_with(&0xfd2f_b528_u32.to_le_bytes()) {
        recipes(data.to_vec(), release);
        return;
    }
    let mut bytes = b"qdelta\0\x01".to_vec();
    bytes.extend_from_slice(blake3::hash(release.manifest.bytes()).as_bytes());
    bytes.extend_from_slice(data);
    for (number, payload) in release.manifest.payloads.iter().enumerate() {
        let at = 40 + 44 * number;
        if at + 4 <= bytes.len() {
            put_u32(&mut bytes, at, payload.frame_size);
        }
    }
    // In blocks of the largest size of all windows.
    let blocks = bytes.chunks(1 << 17);
    let (mut packed, last) = (zstd_header(bytes.len()), blocks.len().saturating_sub(1));
    for (number, block) in blocks.enumerate() {
        packed.extend_from_slice(&((block.len() as u32) << 3 | u32::from(number == last)).to_le_bytes()[..3]);
        packed.extend_from_slice(block);
    }
    assert_eq!(recipes(packed, release), recipes(bytes, release));
}

/// Header of a zstd frame of one segment, its size in 4 bytes.
fn zstd_header(len: usize) -> Vec<u8> {
    [&[0x28, 0xb5, 0x2f, 0xfd, 0xa0][..], &(len as u32).to_le_bytes()].concat()
}

/// What a `delta.bin` says, if it is accepted.
fn recipes(bytes: Vec<u8>, release: &Release) -> Option<String> {
    let delta = Delta::parse(bytes, release).ok()?;
    for (number, payload) in release.manifest.payloads.iter().enumerate() {
        let base = delta.base(number).map_or(0, |base| base.size);
        for frame in release.frames(number) {
            let recipe = delta.recipe(&frame);
            assert!(recipe.ranges().count() <= RANGES_MAX);
            assert!(recipe.ranges().all(|range| range.at.0 <= base && range.len <= base - range.at.0));
            assert!(recipe.base_len() <= PREFIX_FRAMES * u64::from(payload.frame_size));
        }
    }
    Some(format!("{delta:?}"))
}

/// The streams of an aligned frame, after the lengths of the first four (2 bytes each): whatever they are, an error or a frame of
/// the right length comes of it. They are wrapped as zstd frames here, which mutations would seldom hit.
pub fn aligned(data: &[u8]) {
    let Some((lengths, mut rest)) = data.split_at_checked(8) else { return };
    let sound = include_bytes!("../../../fixtures/corpus/bundle/sound").to_vec();
    let bundle =
        Bundle::open(Source::File(Arc::new(sound)), &Trust::dangerously_unsigned()).expect("it is sound");
    let frame = bundle.release().frame(0, 0);
    let (mut packed, mut parts) = (Vec::new(), Vec::new());
    for length in
        lengths.chunks_exact(2).map(|two| usize::from(two[0]) | usize::from(two[1]) << 8).chain([usize::MAX])
    {
        let (stream, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        // One segment, its size in 4 bytes, one raw block.
        let stream = &stream[..stream.len().min(128 << 10)];
        let block = ((stream.len() as u32) << 3 | 1).to_le_bytes();
        let header = [&zstd_header(stream.len())[..], &block[..3]].concat();
        if packed.len() < 16 {
            packed.extend_from_slice(&((header.len() + stream.len()) as u32).to_le_bytes());
        }
        parts.extend_from_slice(&header);
        parts.extend_from_slice(stream);
    }
    packed.extend_from_slice(&parts);
    let prefix: Vec<u8> = (0..=255).cycle().take(2 * frame.len()).collect();
    let mut out = vec![0; frame.len()];
    let _ = rebuild(FrameKind::Aligned, &frame, &prefix, &packed, &mut Streams::default(), &mut out);
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn u32_of(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_of(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_of(bytes, at)) | u64::from(u32_of(bytes, at + 4)) << 32
}

/// Gives the header at `at` the CRCs that fit it, as far as the array that it names is on the disk.
fn fix_header(disk: &mut [u8], at: usize) {
    let Some(end) = at.checked_add(512).filter(|end| *end <= disk.len()) else { return };
    let from = usize::try_from(u64_of(disk, at + 72)).ok().and_then(|lba| lba.checked_mul(512));
    let len = (u32_of(disk, at + 80) as usize).checked_mul(u32_of(disk, at + 84) as usize);
    let array = from.zip(len).and_then(|(from, len)| disk.get(from..from.checked_add(len)?));
    if let Some(crc) = array.map(crc32fast::hash) {
        put_u32(disk, at + 88, crc);
    }
    let size = (u32_of(disk, at + 12) as usize).clamp(92, end - at);
    put_u32(disk, at + 16, 0);
    let crc = crc32fast::hash(&disk[at..at + size]);
    put_u32(disk, at + 16, crc);
}

/// A disk with a table: both copies, the slots, and the repair of one by the other.
pub fn gpt(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    // A protective MBR in front: without it nothing is looked at.
    let mut disk = data.to_vec();
    disk.resize(data.len().clamp(8 * 512, 1 << 20).next_multiple_of(512), 0);
    disk[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    disk[462..510].fill(0);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    if mode & 1 != 0 {
        fix_header(&mut disk, 512);
    }
    if mode & 2 != 0 {
        let last = disk.len() - 512;
        fix_header(&mut disk, last);
    }
    let device = MemoryDevice::new(disk, BlockSize::B512);
    let Ok(loaded) = commit::load(&device, "disk") else { return };
    let Ok(table) = loaded.table() else { return };
    let _ = Slots::resolve(table, "disk");
    let _ = commit::plan(&loaded, table);
    let _ = plan_repair(loaded.reading());
    for from in [Copy::Primary, Copy::Backup] {
        let _ = plan_restore(loaded.reading(), from);
    }
    // A repair that succeeds leaves two equal copies that say what the ruling one said.
    let ruling = table.clone();
    if commit::repair(&device, &qstage::host::DiskLock::new(()), &loaded).is_ok() {
        let again = commit::load(&device, "disk").expect("a repaired disk can be read");
        assert!(matches!(again.state(), CopyState::Equal | CopyState::NoBackup));
        assert!(again.table().is_ok_and(|table| table.same_partitions(&ruling)));
    }
}

/// The end of a slot: mark, footer and body.
pub fn record(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else { return };
    let mut slot = data.to_vec();
    slot.resize(data.len().max(4 * 4096).next_multiple_of(4096), 0);
    let footer = slot.len() - 4096;
    if mode & 1 != 0 {
        slot[footer..footer + 8].copy_from_slice(b"QSTGSLOT");
        put_u32(&mut slot, footer + 8, 1);
    }
    if mode & 2 != 0 {
        let len = [24, 28, 32].map(|at| u32_of(&slot, footer + at) as usize).iter().sum::<usize>();
        let from = (footer - 4096).saturating_sub(len.min(footer).next_multiple_of(4096));
        slot[footer + 16..footer + 24].copy_from_slice(&(from as u64).to_le_bytes());
        if let Some(body) = slot.get(from..from.saturating_add(len)) {
            let crc = crc32fast::hash(body);
            put_u32(&mut slot, footer + 36, crc);
        }
    }
    let crc = crc32fast::hash(&slot[footer..footer + 4092]);
    put_u32(&mut slot, footer + 4092, crc);
    let group = if mode & 4 != 0 { Group::Software } else { Group::Platform };
    let device = MemoryDevice::new(slot, BlockSize::B512);
    if let Ok(Content::Whole(record, _)) = Content::read(&device, group, "slot") {
        // What it names lies within the slot, before the record.
        for place in &record.layout.places {
            assert!(place.at + place.len <= record.layout.body_at);
        }
        let mut byte = qstage::device::AlignedBuf::zeroed(512);
        device.read_at(&mut byte, ByteOffset(record.layout.body_at)).expect("the body is on the device");
    }
}
