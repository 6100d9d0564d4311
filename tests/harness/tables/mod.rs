//! Disk images and a reader for the GPT tests, written from UEFI 2.10, not with the code under test.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

pub mod cuts;

use std::io;
use std::sync::Mutex;

use qstage::boot::{BootFlag, Flags, Slots};
use qstage::device::{BlockDevice, MemoryDevice};
use qstage::gpt::{Plan, Step, Table};
use qstage::units::{BlockSize, ByteOffset, Group, Slot};

/// Description of a disk.
#[derive(Clone)]
pub struct Spec {
    pub block: u32,
    pub physical: u32,
    pub blocks: u64,
    pub entries_lba: u64,
    pub first_usable: u64,
    pub count: u32,
    pub entry_size: u32,
    /// Number, name, first LBA, last LBA, attributes.
    pub parts: Vec<(u32, &'static str, u64, u64, u64)>,
}

pub const A_GOOD: u64 = 2 << 48 | 1 << 56;
pub const B_OLD: u64 = 1 << 48 | 1 << 56;

impl Spec {
    /// Two pairs of slots from block `first` on, `a` selected in both, a foreign partition between.
    pub fn slots(block: u32, blocks: u64, first: u64, size: u64) -> Self {
        let names = ["platform_a", "platform_b", "data", "software_a", "software_b"];
        let bits = [A_GOOD, B_OLD, 0xdead << 48, A_GOOD, B_OLD];
        // A hole: numbers 1, 2, 4, 5, 6.
        let parts = (0..5).map(|i| {
            let from = first + i as u64 * size;
            ([1, 2, 4, 5, 6][i], names[i], from, from + size - 1, bits[i])
        });
        let parts = parts.collect();
        let first_usable = (2 + (16384 / block)) as u64;
        Self {
            block,
            physical: block,
            blocks,
            entries_lba: 2,
            first_usable,
            count: 128,
            entry_size: 128,
            parts,
        }
    }

    /// The same with every entry of the array in use: foreign partitions of one block after the slots.
    pub fn full(mut self) -> Self {
        let from = self.parts.iter().map(|p| p.3).max().unwrap_or(0) + 1;
        let used: Vec<u32> = self.parts.iter().map(|p| p.0).collect();
        let free = (1..=self.count).filter(|n| !used.contains(n));
        self.parts.extend(free.zip(from..).map(|(n, lba)| (n, "foreign", lba, lba, u64::from(n) << 48)));
        self
    }

    pub fn array_blocks(&self) -> u64 {
        u64::from((self.count * self.entry_size).div_ceil(self.block))
    }

    fn array(&self) -> Vec<u8> {
        let mut array = vec![0; (self.count * self.entry_size) as usize];
        for &(number, name, first, last, bits) in &self.parts {
            let e = &mut array[((number - 1) * self.entry_size) as usize..];
            // Linux filesystem data, 0FC63DAF-8483-4772-8E79-3D69D8477DE4.
            e[..16].copy_from_slice(b"\xaf\x3d\xc6\x0f\x83\x84\x72\x47\x8e\x79\x3d\x69\xd8\x47\x7d\xe4");
            // The number in a second byte too: above 63 the first byte repeats.
            e[16..32].fill(0x40 | number as u8);
            e[28..32].copy_from_slice(&number.to_le_bytes());
            e[32..40].copy_from_slice(&first.to_le_bytes());
            e[40..48].copy_from_slice(&last.to_le_bytes());
            e[48..56].copy_from_slice(&bits.to_le_bytes());
            for (i, unit) in name.encode_utf16().enumerate() {
                e[56 + 2 * i..58 + 2 * i].copy_from_slice(&unit.to_le_bytes());
            }
        }
        array
    }

    fn header(&self, my: u64, other: u64, entries: u64) -> Vec<u8> {
        let mut h = vec![0; self.block as usize];
        h[..8].copy_from_slice(b"EFI PART");
        h[8..12].copy_from_slice(&[0, 0, 1, 0]);
        h[12..16].copy_from_slice(&92u32.to_le_bytes());
        let last_usable = self.blocks - 2 - self.array_blocks();
        for (at, v) in [(24, my), (32, other), (40, self.first_usable), (48, last_usable), (72, entries)] {
            h[at..at + 8].copy_from_slice(&v.to_le_bytes());
        }
        h[56..72].fill(0xd5);
        h[80..84].copy_from_slice(&self.count.to_le_bytes());
        h[84..88].copy_from_slice(&self.entry_size.to_le_bytes());
        h[88..92].copy_from_slice(&crc32fast::hash(&self.array()).to_le_bytes());
        let crc = crc32fast::hash(&h[..92]);
        h[16..20].copy_from_slice(&crc.to_le_bytes());
        h
    }

    pub fn image(&self) -> Vec<u8> {
        let mut image = vec![0; (self.blocks * u64::from(self.block)) as usize];
        let last = self.blocks - 1;
        let mut put = |lba: u64, bytes: &[u8]| {
            let at = (lba * u64::from(self.block)) as usize;
            image[at..at + bytes.len()].copy_from_slice(bytes);
        };
        let mut mbr = vec![0; 512];
        mbr[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
        mbr[458..462].copy_from_slice(&(last as u32).to_le_bytes());
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        put(0, &mbr);
        put(1, &self.header(1, last, self.entries_lba));
        put(self.entries_lba, &self.array());
        put(last - self.array_blocks(), &self.array());
        put(last, &self.header(last, 1, last - self.array_blocks()));
        image
    }

    pub fn device(&self, bytes: Vec<u8>) -> Recorder {
        let memory = MemoryDevice::new(bytes, BlockSize::from_bytes(self.block).unwrap());
        Recorder { memory, physical: self.physical, log: Mutex::default() }
    }
}

/// A request that reached a device.
#[derive(Clone, Debug)]
pub enum Op {
    Write(u64, Vec<u8>),
    Sync,
}

/// A device in memory that records its requests.
pub struct Recorder {
    pub memory: MemoryDevice,
    physical: u32,
    log: Mutex<Vec<Op>>,
}

impl Recorder {
    pub fn ops(&self) -> Vec<Op> {
        self.log.lock().unwrap().clone()
    }
}

impl BlockDevice for Recorder {
    fn len(&self) -> u64 {
        self.memory.len()
    }
    fn block_size(&self) -> BlockSize {
        self.memory.block_size()
    }
    fn physical_block_size(&self) -> u32 {
        self.physical
    }
    fn read_at(&self, buf: &mut [u8], at: ByteOffset) -> io::Result<()> {
        self.memory.read_at(buf, at)
    }
    fn write_at(&self, buf: &[u8], at: ByteOffset) -> io::Result<()> {
        self.log.lock().unwrap().push(Op::Write(at.0, buf.to_vec()));
        self.memory.write_at(buf, at)
    }
    fn sync(&self) -> io::Result<()> {
        self.log.lock().unwrap().push(Op::Sync);
        self.memory.sync()
    }
}

/// The writes and barriers of a plan, as a device would see them.
pub fn ops_of(plan: &Plan) -> Vec<Op> {
    let op = |step: &Step| match step {
        Step::Write(write) => Some(Op::Write(write.at().0, write.bytes().to_vec())),
        Step::Barrier => Some(Op::Sync),
        Step::ReadBack { .. } => None,
    };
    plan.steps.iter().filter_map(op).collect()
}

/// The table with a slot selected on trial, by priority.
pub fn trial(table: &Table, slots: &Slots, group: Group, slot: Slot, tries: u8) -> Table {
    let flags = Flags::new(table.clone(), slots, BootFlag::Priority);
    flags.select_trial(group, slot, tries).unwrap().into_table()
}

/// The platform slot and the software slot that a reader selects; `None`: none.
pub type Selection = (Option<char>, Option<char>);

/// Kind of reader, by its strictness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// U-Boot, OVMF, libblkid: the primary if it is valid, else the backup.
    Fallback,
    /// Linux without the option `gpt`: the primary or nothing.
    Strict,
    /// syslinux' gptmbr, GRUB: the primary, whatever its CRCs say.
    Lenient,
    /// EEPROM loaders of some boards: the entries at LBA 2, whatever the header says.
    Blind,
}

/// The entry array that a reader of this kind finds on this disk, and the size of its entries.
pub fn entries(image: &[u8], block: u32, reader: Reader) -> Option<(&[u8], usize)> {
    let last = image.len() as u64 / u64::from(block) - 1;
    match reader {
        Reader::Fallback => copy(image, block, 1, true).or_else(|| copy(image, block, last, true)),
        Reader::Strict => copy(image, block, 1, true),
        Reader::Lenient => copy(image, block, 1, false),
        Reader::Blind => {
            let from = 2 * block as usize;
            let field = |at: usize| {
                let at = block as usize + at;
                u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize
            };
            let (count, size) = (field(80), field(84));
            Some((image.get(from..from + count * size)?, size))
        }
    }
}

/// Name and attributes of every partition that a reader of this kind finds, in the order of the table. A table that was torn
/// while its entries moved may have two of one name.
pub fn named(image: &[u8], block: u32, reader: Reader) -> Option<Vec<(String, u64)>> {
    let (array, size) = entries(image, block, reader)?;
    let used = array.chunks(size).filter(|entry| entry[..16] != [0; 16]);
    let named = used.map(|entry| {
        let units: Vec<u16> = entry[56..128].chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect();
        (String::from_utf16_lossy(&units).trim_end_matches('\0').to_owned(), le(entry, 48))
    });
    Some(named.collect())
}

/// The attributes of every partition that a reader of this kind finds, by name.
pub fn flags(image: &[u8], block: u32, reader: Reader) -> Option<std::collections::HashMap<String, u64>> {
    Some(named(image, block, reader)?.into_iter().collect())
}

/// The slots that a reader of this kind selects on this disk; `None`: it finds no table.
pub fn selection(image: &[u8], block: u32, reader: Reader) -> Option<Selection> {
    let bits = flags(image, block, reader)?;
    let pick = |group: &str| {
        let rank = |slot: char| {
            let bits = *bits.get(&format!("{group}_{slot}"))?;
            let (priority, tries, good) = (bits >> 48 & 15, bits >> 52 & 15, bits >> 56 & 1);
            (priority > 0 && (good == 1 || tries > 0)).then_some(priority)
        };
        match (rank('a'), rank('b')) {
            (None, None) => None,
            (a, b) => Some(if a >= b { 'a' } else { 'b' }),
        }
    };
    Some((pick("platform"), pick("software")))
}

/// The disk with each part of the table lost in turn: header, first block of the array, and the same of the backup. The
/// backup array must have the usual 128 entries.
pub fn damages(image: &[u8], block: usize) -> [(&'static str, Vec<u8>); 4] {
    let array = le(image, block + 72) as usize * block;
    let last = image.len() - block;
    let backup = last - 128 * 128;
    let parts = [
        ("header", block, 0x5a),
        ("array", array, 0x5a),
        ("backup header", last, 0),
        ("backup array", backup, 0),
    ];
    parts.map(|(what, at, rot)| {
        let mut lost = image.to_vec();
        lost[at..at + block].fill(rot);
        (what, lost)
    })
}

fn le(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// The entry array of the primary copy and the size of an entry, if both CRCs hold.
pub fn primary(image: &[u8], block: u32) -> Option<(&[u8], usize)> {
    copy(image, block, 1, true)
}

fn copy(image: &[u8], block: u32, lba: u64, check: bool) -> Option<(&[u8], usize)> {
    let at = (lba * u64::from(block)) as usize;
    let mut header = image[at..at + 92].to_vec();
    let u32_at = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
    let (crc, count, size, array_crc) = (u32_at(at + 16), u32_at(at + 80), u32_at(at + 84), u32_at(at + 88));
    header[16..20].fill(0);
    if &header[..8] != b"EFI PART" || check && (crc32fast::hash(&header) != crc || le(&header, 24) != lba) {
        return None;
    }
    let from = usize::try_from(le(&header, 72).checked_mul(u64::from(block))?).ok()?;
    let len = (count as usize).checked_mul(size as usize).filter(|_| size >= 128)?;
    let array = image.get(from..from.checked_add(len)?)?;
    (!check || crc32fast::hash(array) == array_crc).then_some((array, size as usize))
}
