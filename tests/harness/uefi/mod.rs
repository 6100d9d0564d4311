//! A machine with EFI variables for the proofs, and a model of its boot manager, written from UEFI 2.10, 3.1.1, not with the
//! code under test.
pub mod scenes;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use qstage::boot::BootFlag;
use qstage::device::BlockDevice;
use qstage::efi::{Name, Nvram, Variable};
use qstage::engine::{Engine, Policy};
use qstage::error::Result;
use qstage::gpt::Partition;
use qstage::host::efivars::{MemoryVariables, Variables};
use qstage::host::journal::MemoryJournal;
use qstage::host::{Access, Booted, DiskLock, Machine, MountSource};
use qstage::units::Slot::{self, A, B};

use crate::harness::proof::{Bench, Site, Tape, Verb};
use crate::harness::tables::Op;

pub type Store = BTreeMap<Name, Variable>;

/// An event that reaches the machine, in its order.
#[derive(Clone, Debug)]
pub enum Event {
    Disk(Op),
    Set(Name, Option<Variable>),
}

/// Disk and EFI variables, with one log.
pub struct Uefi {
    bench: Bench,
    pub tape: Arc<Tape>,
    variables: MemoryVariables,
    sets: Mutex<Vec<(usize, Name, Option<Variable>)>>,
}

impl Uefi {
    pub fn new(image: Vec<u8>, store: &Store) -> Self {
        let tape = Tape::new(image, 512);
        let bench = Bench(tape.clone());
        Self { bench, tape, variables: MemoryVariables::new(store.clone()), sets: Mutex::default() }
    }

    pub fn run(&self, booted: Slot, verb: &Verb) -> Result<()> {
        let options = Site::new(booted, BootFlag::Efi).options();
        self.engine(booted, |engine| verb.run(engine, &options))
    }

    pub fn engine<T>(&self, booted: Slot, act: impl FnOnce(&Engine<'_>) -> T) -> T {
        let policy = Policy { boot_flag: BootFlag::Efi, booted: Some(booted), ..Policy::default() };
        act(&Engine::new(self, &MemoryJournal::default(), policy))
    }

    pub fn store(&self) -> Store {
        let names = (0..20).map(Name::entry).chain([Name::order(), Name::next()]);
        let nvram = self.variables.read().unwrap();
        names.filter_map(|name| Some((name.clone(), nvram.get(&name)?.clone()))).collect()
    }

    pub fn events(&self) -> Vec<Event> {
        let mut sets = self.sets.lock().unwrap().clone().into_iter().peekable();
        let mut events = Vec::new();
        let mut set = |events: &mut Vec<Event>, at: usize| {
            while let Some((_, name, value)) = sets.next_if(|(before, ..)| *before <= at) {
                let unflushed = matches!(events.last(), Some(Event::Disk(Op::Write(..))));
                assert!(!unflushed, "{name} is written while the disk may still lose what was before");
                events.push(Event::Set(name, value));
            }
        };
        for (i, op) in self.tape.ops().into_iter().enumerate() {
            set(&mut events, i);
            events.push(Event::Disk(op));
        }
        set(&mut events, usize::MAX);
        events
    }
}

impl Variables for Uefi {
    fn read(&self) -> Result<Nvram> {
        self.variables.read()
    }
    fn set(&self, name: &Name, value: Option<&Variable>) -> Result<()> {
        self.sets.lock().unwrap().push((self.tape.ops().len(), name.clone(), value.cloned()));
        self.variables.set(name, value)
    }
}

impl Machine for Uefi {
    fn name(&self) -> &str {
        self.bench.name()
    }
    fn disk(&self) -> Arc<dyn BlockDevice> {
        self.bench.disk()
    }
    fn lock(&self) -> Result<DiskLock> {
        self.bench.lock()
    }
    fn is_locked(&self) -> Result<bool> {
        self.bench.is_locked()
    }
    fn open_partition(&self, partition: &Partition, access: Access) -> Result<Box<dyn BlockDevice>> {
        self.bench.open_partition(partition, access)
    }
    fn mount_source(&self, partition: &Partition) -> Result<MountSource> {
        self.bench.mount_source(partition)
    }
    fn in_use(&self, partition: &Partition) -> Result<Option<String>> {
        self.bench.in_use(partition)
    }
    fn booted_from(&self, candidates: &[Partition], table: &[Partition]) -> Result<Booted> {
        self.bench.booted_from(candidates, table)
    }
    fn firmware(&self) -> Result<&dyn Variables> {
        Ok(self)
    }
    fn is_image(&self) -> bool {
        true
    }
}

/// The slot that a boot entry starts, by the GUIDs of proof::spec in the bytes of the option; `None`: none.
fn starts(store: &Store, number: u16, by_order: bool) -> Option<Slot> {
    let bytes = &store.get(&Name::entry(number))?.data;
    let attributes = u32::from_le_bytes(bytes[..4].try_into().unwrap());
    if by_order && (attributes & 1 == 0 || attributes & 0x1f00 != 0) {
        return None;
    }
    let node = bytes.windows(4).position(|four| four == [4, 1, 42, 0])?;
    match bytes[node + 24..node + 40] {
        [0x41, ..] => Some(A),
        [0x42, ..] => Some(B),
        _ => None,
    }
}

fn numbers(store: &Store, name: &Name) -> Vec<u16> {
    let data = store.get(name).map_or(&[][..], |variable| &variable.data);
    data.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// The slots that the boot manager tries in order, of which it boots the first that loads; and the variables afterwards.
pub fn boot(store: &Store) -> (Vec<Slot>, Store) {
    let mut after = store.clone();
    after.remove(&Name::next());
    let next = numbers(store, &Name::next()).into_iter().filter_map(|number| starts(store, number, false));
    let order = numbers(store, &Name::order()).into_iter().filter_map(|number| starts(store, number, true));
    (next.chain(order).collect(), after)
}

/// The variables of a new machine: an entry for the setup of the UEFI itself, and one for the disk as a whole.
pub fn new_machine() -> Store {
    let option = |attributes: u32, name: &str| {
        let name = name.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
        let data = attributes.to_le_bytes().into_iter().chain([4, 0]).chain(name).chain([0x7f, 0xff, 4, 0]);
        Variable { attributes: 7, data: data.collect() }
    };
    Store::from([
        (Name::entry(0), option(0x109, "UiApp")),
        (Name::entry(1), option(1, "UEFI Disk")),
        (Name::order(), Variable { attributes: 7, data: vec![0, 0, 1, 0] }),
    ])
}
