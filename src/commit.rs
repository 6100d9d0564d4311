//! The partition table on a device: read both copies, repair, switch, and prove it by reading again.
//!
//! All that decides is pure and lies in [`gpt`](crate::gpt) and [`boot`](crate::boot); here steps are run.
//!
//! ```no_run
//! # use qstage::{boot, boot::BootFlag, commit, device::BlockDevice, error::Result, host::DiskLock, units::{Group, Slot}};
//! # fn f(disk: &dyn BlockDevice, lock: &DiskLock) -> Result<()> {
//! let loaded = commit::load(disk, "/dev/sda")?;
//! let slots = boot::Slots::resolve(loaded.table()?, "/dev/sda")?;
//! let new = boot::select_trial(loaded.table()?, &slots, Group::Platform, Slot::B, 3, BootFlag::Priority)?;
//! for line in commit::plan(&loaded, &new)?.describe() { println!("{line}") } // --dry-run
//! commit::switch(disk, lock, &loaded, &new)?;
//! # Ok(()) }
//! ```

mod cursor;

use std::io;

use cursor::Cursor;

use crate::device::{self, AlignedBuf, BlockDevice};
use crate::error::{Error, Result};
use crate::gpt::plan::{check_places, plan_repair, plan_switch};
use crate::gpt::second::{self, Scope};
use crate::gpt::{
    Copies, CopyState, Damaged, Fault, Geometry, Head, Header, Plan, Step, Table, has_protective_mbr,
};
use crate::host::DiskLock;
use crate::units::{ByteOffset, Lba};

/// What was read of a disk: both copies of the table and the space before the first partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    name: String,
    geometry: Geometry,
    copies: Copies,
    head: Head,
}

impl Loaded {
    /// The table that rules: the primary where it is valid, else the backup. An error where neither is.
    pub fn table(&self) -> Result<&Table> {
        self.copies.ruling().ok_or_else(|| damaged(&self.name, &self.copies))
    }

    /// How sound the copies are.
    pub fn state(&self) -> CopyState {
        self.copies.state()
    }

    /// Both copies.
    pub const fn copies(&self) -> &Copies {
        &self.copies
    }

    /// Block sizes and size of the disk.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// How much of this table the independent second reader can judge after a change.
    pub fn second_reader(&self) -> Result<Scope> {
        Ok(second::scope(self.table()?, &self.geometry))
    }
}

/// Reads both copies of the table of a disk called `name` in errors. A copy that is damaged or cannot be read
/// is no error here; a disk without protective MBR is ([`Error::NotGpt`]), whatever an older table left behind.
pub fn load(disk: &dyn BlockDevice, name: &str) -> Result<Loaded> {
    let geometry = Geometry::new(disk.len(), disk.block_size(), disk.physical_block_size());
    let not_gpt = || Error::NotGpt { disk: name.to_owned() };
    // Block 0, header, one block of entries, and the same again at the end.
    if geometry.blocks < 6 {
        return Err(not_gpt());
    }
    let mut mbr = AlignedBuf::zeroed(geometry.block.bytes() as usize);
    device::read(disk, "the protective MBR", &mut mbr, ByteOffset(0))?;
    if !has_protective_mbr(&mbr) {
        return Err(not_gpt());
    }
    let primary = read_copy(disk, Lba(1), &geometry);
    // The primary header says where the other one is, even where its array is damaged.
    let header =
        primary.as_ref().map_or_else(|damaged| damaged.header.as_ref(), |table| Some(table.header()));
    let said = header.map_or(geometry.last_lba(), |header| header.alternate_lba);
    let mut backup = read_copy(disk, said, &geometry);
    if primary.is_err() && backup.is_err() && said != geometry.last_lba() {
        backup = read_copy(disk, geometry.last_lba(), &geometry);
    }
    let copies = Copies { primary, backup };
    let head = copies.ruling().map_or_else(Head::default, |table| read_head(disk, table, &geometry));
    Ok(Loaded { name: name.to_owned(), geometry, copies, head })
}

/// What [`switch`] would do to bring `new` onto the disk, a repair that is due included. Writes nothing.
pub fn plan(loaded: &Loaded, new: &Table) -> Result<Plan> {
    let Loaded { geometry, copies, head, .. } = loaded;
    let ruling = loaded.table()?;
    if !ruling.same_partitions(new) {
        let what = "a switch that would change more than attributes".to_owned();
        return Err(Error::Internal { what });
    }
    match (repair_plan(loaded)?, copies) {
        (Some(repair), _) => {
            let head = repair.apply(head.clone(), geometry);
            let switch = plan_switch(&repair.primary, &repair.backup, new, geometry, &head);
            Ok(if switch.is_empty() { repair } else { repair.then(switch) })
        }
        (None, Copies { primary: Ok(primary), backup: Ok(backup) }) => {
            Ok(plan_switch(primary, backup, new, geometry, head))
        }
        // No repair is due only where both are valid.
        (None, _) => Err(damaged(&loaded.name, copies)),
    }
}

/// Makes both copies valid and equal, the ruling one staying as it is. `None` and no write where they are.
pub fn repair(disk: &dyn BlockDevice, _lock: &DiskLock, loaded: &Loaded) -> Result<Option<Plan>> {
    unchanged(disk, loaded)?;
    let plan = repair_plan(loaded)?;
    if let Some(plan) = &plan {
        run(disk, &loaded.name, plan)?;
    }
    Ok(plan)
}

/// Brings `new` onto the disk: the loaded table with other attributes. Returns what was done; the plan is empty,
/// and nothing was written, where the disk already was so. On return the table has been re-read from the
/// device and by a second reader. After an error the disk holds the old table or the new one (except in place,
/// as [`Method`](crate::gpt::Method) says), and the next [`load`] tells which.
pub fn switch(disk: &dyn BlockDevice, _lock: &DiskLock, loaded: &Loaded, new: &Table) -> Result<Plan> {
    unchanged(disk, loaded)?;
    let plan = plan(loaded, new)?;
    if !plan.is_empty() {
        run(disk, &loaded.name, &plan)?;
    }
    Ok(plan)
}

/// Writes the table of [`layout::create`](crate::gpt::layout::create) and reads it back. Destroys what was there.
pub fn lay_out(disk: &dyn BlockDevice, name: &str, _lock: &DiskLock, layout: &Plan) -> Result<()> {
    run(disk, name, layout)
}

/// Another program may have written between reading and taking the lock: acting on a stale table would undo it.
fn unchanged(disk: &dyn BlockDevice, loaded: &Loaded) -> Result<()> {
    if load(disk, &loaded.name)? == *loaded {
        return Ok(());
    }
    let problem = "another program changed the partition table meanwhile; run it again".to_owned();
    Err(Error::GptUnsupported { disk: loaded.name.clone(), problem })
}

fn repair_plan(loaded: &Loaded) -> Result<Option<Plan>> {
    if loaded.state() == CopyState::None {
        return Err(damaged(&loaded.name, &loaded.copies));
    }
    plan_repair(&loaded.copies, &loaded.geometry, &loaded.head).map_err(|fault| {
        let problem = format!(
            "the copies of the partition table cannot be made equal: {fault}; correct it first (sgdisk --move-second-header)"
        );
        Error::GptUnsupported { disk: loaded.name.clone(), problem }
    })
}

fn damaged(name: &str, copies: &Copies) -> Error {
    let text = |copy: &Result<Table, Box<Damaged>>| {
        copy.as_ref().map_or_else(|damaged| damaged.fault.to_string(), |_| "valid".to_owned())
    };
    Error::GptDamaged { disk: name.to_owned(), primary: text(&copies.primary), backup: text(&copies.backup) }
}

/// Runs the steps, then reads everything again. The first failure ends it: after a failed sync nothing that is
/// written later can be trusted to be durable, so there is no second try.
fn run(disk: &dyn BlockDevice, name: &str, plan: &Plan) -> Result<()> {
    let verify = |problem: String| Error::GptVerify { disk: name.to_owned(), problem };
    for step in &plan.steps {
        match step {
            Step::Write { at, bytes, what } => {
                let buf = AlignedBuf::padded(bytes, disk.block_size().bytes() as usize);
                device::write(disk, what, &buf, *at)?;
            }
            Step::Barrier => device::sync(disk, "the partition table")?,
            Step::ReadBack { at, bytes, what } => {
                let mut buf = AlignedBuf::zeroed(bytes.len());
                device::read(disk, what, &mut buf, *at)?;
                if let Some(off) = buf.iter().zip(bytes).position(|(got, expected)| got != expected) {
                    return Err(verify(format!("{what} differs at byte {}", at.0 + off as u64)));
                }
            }
        }
    }
    let after = load(disk, name)?;
    let both =
        [("primary", &after.copies.primary, &plan.primary), ("backup", &after.copies.backup, &plan.backup)];
    for (copy, got, expected) in both {
        match got {
            Ok(table) if table == expected => {}
            Ok(_) => return Err(verify(format!("the {copy} is valid but not the one intended"))),
            Err(damaged) => return Err(verify(format!("{copy}: {}", damaged.fault))),
        }
    }
    second::check(Cursor::new(disk), &plan.primary, &after.geometry).map_err(verify)?;
    Ok(())
}

/// Reads and checks the copy whose header is at `lba`.
fn read_copy(disk: &dyn BlockDevice, lba: Lba, geometry: &Geometry) -> Result<Table, Box<Damaged>> {
    let header = read_blocks(disk, "header", lba, 1, geometry)
        .and_then(|block| Header::decode(&block, lba))
        .map_err(|fault| Box::new(Damaged { fault, header: None }))?;
    let with_header = |fault| Box::new(Damaged { fault, header: Some(header.clone()) });
    check_places(&header, geometry).map_err(with_header)?;
    let mut entries = read_blocks(disk, "entry array", header.entries_lba, header.array_blocks(), geometry)
        .map_err(with_header)?;
    entries.truncate(header.array_len());
    Table::new(header.clone(), entries).map_err(with_header)
}

fn read_blocks(
    disk: &dyn BlockDevice,
    what: &'static str,
    lba: Lba,
    blocks: u64,
    geometry: &Geometry,
) -> Result<Vec<u8>, Fault> {
    let (from, to) = (Lba(0), geometry.last_lba());
    let past = lba.0.checked_add(blocks).filter(|past| *past <= geometry.blocks);
    let (Some(at), Some(_)) = (lba.offset(geometry.block), past) else {
        return Err(Fault::Outside { what, lba, blocks, from, to });
    };
    let mut buf = AlignedBuf::zeroed(blocks as usize * geometry.block.bytes() as usize);
    // A sector that the medium lost is damage of this copy, and writing it anew is its repair.
    let unreadable = |error: io::Error| Fault::Unreadable { what, lba, problem: error.to_string() };
    disk.read_at(&mut buf, at).map_err(unreadable)?;
    Ok(buf.to_vec())
}

/// Reads up to the first partition: at once, and where that fails block by block, so that one lost block costs
/// that block only.
fn read_head(disk: &dyn BlockDevice, table: &Table, geometry: &Geometry) -> Head {
    let block = u64::from(geometry.block.bytes());
    let gap = table.first_partition().map_or(Head::MAX, |lba| lba.0.saturating_mul(block));
    let whole = gap.min(Head::MAX).max(2 * block).next_multiple_of(u64::from(geometry.physical));
    let blocks = (whole / block).min(geometry.blocks);
    if let Ok(bytes) = read_blocks(disk, "head", Lba(0), blocks, geometry) {
        return Head { bytes, ..Head::default() };
    }
    let mut head = Head::default();
    for lba in 0..blocks {
        match read_blocks(disk, "head", Lba(lba), 1, geometry) {
            Ok(bytes) => head.bytes.extend(bytes),
            Err(_) => {
                head.unreadable.insert(lba);
                head.bytes.resize(head.bytes.len() + block as usize, 0);
            }
        }
    }
    head
}
