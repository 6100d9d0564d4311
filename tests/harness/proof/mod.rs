//! A small but complete machine in memory for the proofs: bundles, a disk with four slots and a foreign partition, and a
//! device that records its requests. Its readers are written from the documentation of the formats, not with the code under
//! test.
pub mod acts;
pub mod cuts;
pub mod readers;
pub mod scenes;
mod verb;

use std::io::{self, Cursor};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, OnceLock};

use qstage::boot::BootFlag;
use qstage::bundle::writer::{Compression, PayloadInput, ReleaseInfo, pack_payloads, write_front};
use qstage::bundle::{Bundle, Kind, Source, Trust, signature};
use qstage::device::{AlignedBuf, BlockDevice, MemoryDevice, Region};
use qstage::engine::{Engine, Policy, PrepareOptions};
use qstage::error::{Error, Result};
use qstage::gpt::Partition;
use qstage::host::journal::MemoryJournal;
use qstage::host::{Access, Booted, DiskLock, Machine, MountSource};
use qstage::init;
use qstage::progress::{Cancel, Silent};
use qstage::selector;
use qstage::units::{BlockSize, ByteOffset, MIB, Slot};
use ssh_key::private::Ed25519Keypair;
use ssh_key::{HashAlg, LineEnding, PrivateKey};

pub use readers::*;
pub use verb::Verb;

use crate::harness::tables::{Op, Spec};

/// Frame size of every bundle here in bytes: many frames in few bytes.
pub const FRAME: u32 = 4096;
/// Size of every slot in bytes: it has space for firmware after 1 MiB.
pub const SLOT: u64 = MIB + 160 * 1024;

/// The release key. Its seed is public: it signs tests only.
pub fn key() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))
}

/// A signature by that key, in canonical form.
pub fn sign(manifest: &[u8]) -> String {
    let signature = key().sign("qimg", HashAlg::Sha512, manifest).unwrap();
    signature::import(signature.to_pem(LineEnding::LF).unwrap().as_bytes()).unwrap()
}

/// Trust in that key.
pub fn trust() -> &'static Trust {
    static TRUST: OnceLock<Trust> = OnceLock::new();
    TRUST.get_or_init(|| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("release@example.org {}\n", key().public_key().to_openssh().unwrap());
        std::fs::write(file.path(), line).unwrap();
        Trust::parse(file.path(), &std::fs::read(file.path()).unwrap()).unwrap()
    })
}

/// A release to be packed.
#[derive(Clone, Debug)]
pub struct Release {
    pub version: &'static str,
    pub platform: Vec<u8>,
    pub software: Option<Vec<u8>>,
    pub firmware: Option<Vec<u8>>,
}

/// `len` bytes that compress a little, with zeroes in the middle; determined by the seed.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    let mut bytes: Vec<u8> = (0..len.div_ceil(8))
        .flat_map(|i| if i % 4 == 0 { [seed as u8; 8] } else { random.next().to_le_bytes() })
        .collect();
    bytes.truncate(len);
    if len >= 5 * FRAME as usize {
        bytes[2 * FRAME as usize..4 * FRAME as usize].fill(0);
    }
    bytes
}

impl Release {
    /// A release of `frames` frames of platform, a third of that of software, and one and a half of firmware.
    pub fn new(version: &'static str, seed: u64, frames: usize) -> Self {
        let frame = FRAME as usize;
        Self {
            version,
            platform: noise(seed, frames * frame - 100),
            software: Some(noise(seed + 1, frames / 3 * frame)),
            firmware: Some(noise(seed + 2, frame + 1234)),
        }
    }

    /// The bundle, signed.
    pub fn pack(&self) -> Arc<Vec<u8>> {
        let identity = ReleaseInfo {
            product: "demo".to_owned(),
            version: self.version.to_owned(),
            min_version: None,
            needs_platform: None,
            // The release that raises the epoch.
            epoch: if self.version == "9.0" { 9 } else { 0 },
            created: 1_700_000_000,
        };
        let input = |kind, name: &str, image| PayloadInput {
            kind,
            name: name.to_owned(),
            version: self.version.to_owned(),
            image,
        };
        let mut inputs = vec![input(Kind::Platform, "platform", &self.platform)];
        inputs.extend(self.software.as_ref().map(|image| input(Kind::Software, "software", image)));
        inputs.extend(self.firmware.as_ref().map(|image| input(Kind::Firmware, "nic", image)));
        let compression = Compression { level: 1, frame_size: FRAME, jobs: NonZeroUsize::new(1) };
        let mut payloads = Cursor::new(Vec::new());
        let packed =
            pack_payloads(&identity, &inputs, compression, &mut payloads, &Cancel::default(), &Silent)
                .unwrap();
        let manifest = packed.fields.to_bytes().unwrap();
        let mut bundle = Vec::new();
        let signature = sign(&manifest);
        write_front(&mut bundle, &manifest, signature.as_bytes(), &packed.index, identity.created).unwrap();
        bundle.extend(payloads.into_inner());
        Arc::new(bundle)
    }
}

/// A bundle as a file.
pub struct Shared(pub Arc<Vec<u8>>);

impl qstage::bundle::ReadAt for Shared {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        qstage::bundle::ReadAt::read_exact_at(&*self.0, buf, at)
    }
}

/// Opens a bundle as a file.
pub fn open(bundle: &Arc<Vec<u8>>) -> Result<Bundle> {
    Bundle::open(Source::File(Arc::new(Shared(Arc::clone(bundle)))), trust())
}

/// Opens a bundle as a stream.
pub fn open_stream(bundle: &Arc<Vec<u8>>) -> Result<Bundle> {
    struct Bytes(Arc<Vec<u8>>);
    impl AsRef<[u8]> for Bytes {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bundle::open(Source::Stream(Box::new(Cursor::new(Bytes(Arc::clone(bundle))))), trust())
}

/// A device in memory that records its requests. One log for the whole disk: a write through any partition goes into the one
/// cache of the disk, and a flush through any partition empties it.
pub struct Tape {
    pub memory: MemoryDevice,
    /// Whether it had only zeroes at first.
    blank: bool,
    log: Mutex<Vec<Op>>,
}

impl Tape {
    pub fn new(bytes: Vec<u8>, block: u32) -> Arc<Self> {
        let memory = MemoryDevice::new(bytes, BlockSize::from_bytes(block).unwrap());
        Arc::new(Self { memory, blank: false, log: Mutex::default() })
    }
    /// A device of zeroes. Zeroing a range that was never written is not recorded: it changes nothing, and it would be most of
    /// the work if a slot is staged some hundred thousand times.
    pub fn blank(len: u64) -> Arc<Self> {
        let memory = MemoryDevice::new(vec![0; len as usize], BlockSize::B512);
        Arc::new(Self { memory, blank: true, log: Mutex::default() })
    }
    pub fn ops(&self) -> Vec<Op> {
        self.log.lock().unwrap().clone()
    }
    /// The requests since the last call.
    pub fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl BlockDevice for Tape {
    fn len(&self) -> u64 {
        self.memory.len()
    }
    fn block_size(&self) -> BlockSize {
        self.memory.block_size()
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.memory.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        // One lock over both, so that with several workers the order of the log is that of the medium.
        let mut log = self.log.lock().unwrap();
        self.memory.write_at(buf, at)?;
        log.push(Op::Write(at.0, buf.to_vec()));
        Ok(())
    }
    fn write_zeroes(&self, at: ByteOffset, len: u64) -> io::Result<()> {
        let overlaps = |op: &Op| matches!(op, Op::Write(from, bytes) if *from < at.0 + len && at.0 < from + bytes.len() as u64);
        if self.blank && !self.log.lock().unwrap().iter().any(overlaps) {
            return Ok(());
        }
        self.write_at(&AlignedBuf::zeroed(len as usize), at)
    }
    fn sync(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(Op::Sync);
        Ok(())
    }
}

/// A machine around a disk in memory. Partitions are parts of it, and never in use.
pub struct Bench(pub Arc<dyn BlockDevice>);

impl Machine for Bench {
    fn is_image(&self) -> bool {
        true
    }

    fn name(&self) -> &str {
        "disk"
    }
    fn disk(&self) -> Arc<dyn BlockDevice> {
        Arc::clone(&self.0)
    }
    fn lock(&self) -> Result<DiskLock> {
        Ok(DiskLock::new(()))
    }
    fn is_locked(&self) -> Result<bool> {
        Ok(false)
    }
    fn open_partition(&self, partition: &Partition, _: Access) -> Result<Box<dyn BlockDevice>> {
        let region = Region::new(Arc::clone(&self.0), partition.extent);
        Ok(Box::new(region.ok_or(Error::Internal { what: "a partition beyond the disk".to_owned() })?))
    }
    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        Ok(MountSource::Node(partition.name.clone().into()))
    }
    fn in_use(&self, _: &Partition) -> Result<Option<String>> {
        Ok(None)
    }
    fn booted_from(&self, _: &[Partition], _: &[Partition]) -> Result<Booted> {
        Ok(Booted::Unknown { why: "it is in memory".to_owned() })
    }
}

/// The running slot, and the policy.
#[derive(Clone, Copy, Debug)]
pub struct Site {
    pub booted: Slot,
    pub flag: BootFlag,
    pub jobs: usize,
    pub read_back: bool,
}

impl Site {
    pub fn new(booted: Slot, flag: BootFlag) -> Self {
        Self { booted, flag, jobs: 1, read_back: true }
    }

    fn policy(&self) -> Policy {
        Policy { boot_flag: self.flag, booted: Some(self.booted), ..Policy::default() }
    }

    /// Calls `act` with an engine on the disk.
    pub fn engine<T>(&self, disk: Arc<dyn BlockDevice>, act: impl FnOnce(&Engine<'_>) -> T) -> T {
        self.engine_of(&Bench(disk), act)
    }

    /// Calls `act` with an engine on a machine of its own.
    pub fn engine_of<T>(&self, machine: &dyn Machine, act: impl FnOnce(&Engine<'_>) -> T) -> T {
        act(&Engine::new(machine, &MemoryJournal::default(), self.policy()))
    }

    /// Runs a verb.
    pub fn run(&self, disk: Arc<dyn BlockDevice>, verb: &Verb) -> Result<()> {
        if let Verb::Select = verb {
            return selector::select(&Bench(disk), true, &|_| {}).map(drop);
        }
        self.engine(disk, |engine| verb.run(engine, &self.options()))
    }

    pub fn options(&self) -> PrepareOptions {
        PrepareOptions {
            jobs: NonZeroUsize::new(self.jobs),
            read_back: self.read_back,
            sha256: false,
            origin: "/upgrade/x.qimg".to_owned(),
            ..PrepareOptions::default()
        }
    }
}

/// The disk of the proofs: platform a and b, a foreign partition, software a and b, from 64 KiB on.
pub fn spec(block: u32) -> Spec {
    let unit = u64::from(block);
    let (first, size) = (65536 / unit, SLOT / unit);
    let mut spec = Spec::slots(block, first + 5 * size + 65536 / unit, first, size);
    for part in spec.parts.iter_mut().filter(|part| part.1 != "data") {
        part.4 = 0;
    }
    spec
}

/// That disk with a release in slot a, good and selected, noise in the foreign partition and boot code.
pub fn factory(block: u32, flag: BootFlag, bundle: &Arc<Vec<u8>>) -> Vec<u8> {
    let mut image = spec(block).image();
    let data = extent(&image, block, "data");
    image[data].copy_from_slice(&noise(99, SLOT as usize));
    image[..440].fill(0xeb);
    // Boot loaders in the gap, foreign bytes after the last partition: every block that no table names, except for the space
    // of one array before the first partition.
    for bytes in unnamed_blocks(block, image.len()) {
        let noise = noise(bytes.start as u64, bytes.len());
        let never_zero = noise.iter().map(|byte| byte | 1);
        image[bytes].iter_mut().zip(never_zero).for_each(|(to, from)| *to = from);
    }
    let tape = Tape::new(image, block);
    let machine = Bench(tape.clone());
    init::install(&machine, &DiskLock::new(()), &open(bundle).unwrap(), flag, &Silent, &Cancel::default())
        .unwrap();
    tape.memory.snapshot()
}

/// The bytes of that disk that no table names and that are not the spare place: noise in every scene.
pub fn unnamed_blocks(block: u32, len: usize) -> [std::ops::Range<usize>; 2] {
    let (spec, unit) = (spec(block), block as usize);
    let array = spec.array_blocks() as usize * unit;
    let after = spec.parts.iter().map(|part| part.3 as usize + 1).max().unwrap() * unit;
    [2 * unit + array..65536 - array, after..len - unit - array]
}

/// The names of the slots' partitions.
pub const SLOTS: [&str; 4] = ["platform_a", "platform_b", "software_a", "software_b"];

/// The range of a partition of [`spec`] in bytes.
pub fn extent(image: &[u8], block: u32, name: &str) -> std::ops::Range<usize> {
    let _ = image;
    let unit = block as usize;
    let part = spec(block).parts.iter().find(|part| part.1 == name).copied().unwrap();
    part.2 as usize * unit..(part.3 as usize + 1) * unit
}

/// Random numbers by splitmix64: the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
