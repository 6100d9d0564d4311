//! Procedures for the write of a table, and the disks that power cuts leave.
#![allow(unreachable_pub, reason = "a part of one test")]

use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};

use crate::harness::tables::{Op, Reader, entries};

const SECTOR: usize = 512;

/// A disk that a cut left.
pub struct Cut {
    pub name: String,
    pub image: Vec<u8>,
    /// A sector is neither old nor new: more than a disk with whole sectors can do.
    pub torn: bool,
}

/// The disks that cuts of `ops` leave. For each stretch between two flushes: up to each of its changed sectors, each of
/// them alone, each of them missing, every second sector; its first changed sector torn in two ways; all of it.
pub fn cuts(image: &[u8], ops: &[Op]) -> Vec<Cut> {
    /// Of the given number of changed sectors of a range.
    const EACH: usize = 4;
    let mut durable = image.to_vec();
    let mut found: Vec<Cut> = Vec::new();
    let mut add = |name: String, image: Vec<u8>, torn| {
        if found.iter().all(|cut| cut.image != image) {
            found.push(Cut { name, image, torn });
        }
    };
    add("nothing written".to_owned(), durable.clone(), false);
    for epoch in ops.split(|op| matches!(op, Op::Sync)) {
        let mut flight: Vec<(usize, &[u8])> = Vec::new();
        for op in epoch {
            if let Op::Write(at, bytes) = op {
                flight.extend(bytes.chunks(SECTOR).enumerate().map(|(i, b)| (*at as usize + i * SECTOR, b)));
            }
        }
        let changed: Vec<usize> = (0..flight.len())
            .filter(|&i| flight[i].1 != &durable[flight[i].0..flight[i].0 + SECTOR])
            .collect();
        let state = |set: &dyn Fn(usize) -> bool| {
            let mut state = durable.clone();
            for (_, (at, new)) in flight.iter().enumerate().filter(|(i, _)| set(*i)) {
                state[*at..at + SECTOR].copy_from_slice(new);
            }
            state
        };
        let lba = |i: usize| format!("LBA {}", flight[i].0 / SECTOR);
        let step = changed.len().div_ceil(EACH).max(1);
        for &one in changed.iter().step_by(step) {
            add(format!("up to {}, not behind it", lba(one)), state(&|i| i <= one), false);
            add(format!("{}, nothing else", lba(one)), state(&|i| i == one), false);
            add(format!("all but {}", lba(one)), state(&|i| i != one), false);
        }
        let Some(&first) = changed.first() else { continue };
        add(format!("from {} on every second sector", lba(first)), state(&|i| i % 2 == 1), false);
        for (what, rubbish) in [("half new", false), ("rubbish", true)] {
            let mut state = state(&|i| i <= first);
            let sector = &mut state[flight[first].0..flight[first].0 + SECTOR];
            if rubbish {
                sector.fill(0xa5);
            } else {
                sector[80..].copy_from_slice(&durable[flight[first].0 + 80..flight[first].0 + SECTOR]);
            }
            add(format!("{}, {what}", lba(first)), state, true);
        }
        let all = state(&|_| true);
        add(format!("all from {} to {}", lba(first), lba(changed[changed.len() - 1])), all.clone(), false);
        durable = all;
    }
    found
}

/// Moves an entry within both arrays, and makes both copies valid again.
pub fn move_entry(image: &mut [u8], from: usize, to: usize) {
    let (array, size) = entries(image, 512, Reader::Strict).unwrap();
    let mut array = array.to_vec();
    let entry: Vec<u8> = array[(from - 1) * size..from * size].to_vec();
    array[(from - 1) * size..from * size].fill(0);
    array[(to - 1) * size..to * size].copy_from_slice(&entry);
    let last = image.len() / SECTOR - 1;
    for lba in [1, last] {
        let header = header_for(image, lba, &array);
        let at = u64::from_le_bytes(header[72..80].try_into().unwrap()) as usize * SECTOR;
        image[at..at + array.len()].copy_from_slice(&array);
        image[lba * SECTOR..(lba + 1) * SECTOR].copy_from_slice(&header);
    }
}

/// The header at `lba` with the CRCs of another array.
fn header_for(image: &[u8], lba: usize, array: &[u8]) -> Vec<u8> {
    let mut header = image[lba * SECTOR..(lba + 1) * SECTOR].to_vec();
    header[88..92].copy_from_slice(&crc32fast::hash(array).to_le_bytes());
    header[16..20].fill(0);
    let crc = crc32fast::hash(&header[..92]);
    header[16..20].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The switch from the table of `before` to that of `after`, written over the current one, which is what most programs
/// do: array and header of the primary copy, then of the backup, each flushed.
pub fn in_place(before: &[u8], after: &[u8]) -> Vec<Op> {
    let (array, _) = entries(after, 512, Reader::Strict).unwrap();
    let last = before.len() / SECTOR - 1;
    let writes = [1, last].into_iter().flat_map(|lba| {
        let header = header_for(before, lba, array);
        let at = u64::from_le_bytes(header[72..80].try_into().unwrap()) * SECTOR as u64;
        [(at, array.to_vec()), ((lba * SECTOR) as u64, header)]
    });
    writes.flat_map(|(at, bytes)| [Op::Write(at, bytes), Op::Sync]).collect()
}

/// The same switch as the `gpt` crate writes it.
pub fn gpt_crate(before: &[u8]) -> Vec<Op> {
    let tape = Tape { disk: Cursor::new(before.to_vec()), ops: Vec::new() };
    let mut disk = gpt::GptConfig::new().writable(true).open_from_device(tape).unwrap();
    let mut partitions = disk.partitions().clone();
    for partition in partitions.values_mut().filter(|partition| partition.name.starts_with("platform")) {
        partition.flags ^= 4;
    }
    disk.update_partitions(partitions).unwrap();
    let ops = disk.write().unwrap().ops;
    assert!(ops.len() > 4, "{}", ops.len());
    ops
}

/// A disk in memory that writes down what reaches it, in whole sectors.
#[derive(Debug)]
struct Tape {
    disk: Cursor<Vec<u8>>,
    ops: Vec<Op>,
}

impl Read for Tape {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.disk.read(buf)
    }
}

impl Seek for Tape {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.disk.seek(to)
    }
}

impl Write for Tape {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let from = self.disk.position() as usize / SECTOR * SECTOR;
        let n = self.disk.write(buf)?;
        let to = (self.disk.position() as usize).next_multiple_of(SECTOR);
        self.ops.push(Op::Write(from as u64, self.disk.get_ref()[from..to].to_vec()));
        Ok(n)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
