//! The EFI variables that concern booting, as read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::LoadOption;
use crate::units::Guid;

/// EFI_GLOBAL_VARIABLE (UEFI 2.10, 3.3).
const GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
/// The vendor GUID of the variables of the systemd Boot Loader Interface.
const LOADER: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
/// The vendor GUID of qstage's own variable.
const OWN: &str = "0d1e5bd3-6a6c-4b55-8f6e-6a0a2f7c2b19";
/// NON_VOLATILE, BOOTSERVICE_ACCESS, RUNTIME_ACCESS: required by the specification for every variable made here.
const ATTRIBUTES: u32 = 7;

/// Name and vendor of a variable, in the form of efivarfs file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    fn global(name: &str) -> Self {
        Self(format!("{name}-{GLOBAL}"))
    }

    /// `BootOrder`.
    pub fn order() -> Self {
        Self::global("BootOrder")
    }

    /// `BootNext`.
    pub fn next() -> Self {
        Self::global("BootNext")
    }

    /// `Boot####`.
    pub fn entry(number: u16) -> Self {
        Self::global(&format!("Boot{number:04X}"))
    }

    /// `QstageEpoch`: the highest epoch that was ever marked good, as a little-endian u64.
    pub fn epoch() -> Self {
        Self(format!("QstageEpoch-{OWN}"))
    }

    /// The name of a file, if its variable concerns booting; else `None`.
    pub fn relevant(file: &str) -> Option<Self> {
        let known = ["BootOrder", "BootNext", "BootCurrent"].map(Self::global);
        let name = Self(file.to_owned());
        let relevant = known.contains(&name)
            || name.number().is_some()
            || [Self::loader(), Self::stub(), Self::epoch()].contains(&name);
        relevant.then_some(name)
    }

    fn loader() -> Self {
        Self(format!("LoaderDevicePartUUID-{LOADER}"))
    }

    fn stub() -> Self {
        Self(format!("StubDevicePartUUID-{LOADER}"))
    }

    /// The number in `Boot####`: four upper-case hexadecimal digits; in lower case it is a different variable to
    /// firmware.
    fn number(&self) -> Option<u16> {
        let digits = self.0.strip_prefix("Boot")?.strip_suffix(GLOBAL)?.strip_suffix('-')?;
        let valid = |c: u8| c.is_ascii_digit() || (b'A'..=b'F').contains(&c);
        (digits.len() == 4 && digits.bytes().all(valid)).then(|| u16::from_str_radix(digits, 16).ok())?
    }

    /// The file name in efivarfs.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the vendor GUID: 36 characters without use to people.
        f.write_str(self.0.get(..self.0.len().saturating_sub(37)).unwrap_or(&self.0))
    }
}

/// The content of a variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Attributes: bit 0 non-volatile, 1 boot services, 2 runtime.
    pub attributes: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// All variables that concern booting. A malformed one counts as absent, as it does to firmware, but its name stays
/// taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Nvram {
    variables: BTreeMap<Name, Variable>,
}

impl Nvram {
    /// Collects the variables as read.
    pub fn new(variables: impl IntoIterator<Item = (Name, Variable)>) -> Self {
        Self { variables: variables.into_iter().collect() }
    }

    /// The variable with that name.
    pub fn get(&self, name: &Name) -> Option<&Variable> {
        self.variables.get(name)
    }

    fn data(&self, name: &Name) -> &[u8] {
        self.get(name).map_or(&[], |variable| &variable.data)
    }

    /// The entry with that number.
    pub fn entry(&self, number: u16) -> Option<LoadOption> {
        LoadOption::parse(self.data(&Name::entry(number)).to_vec())
    }

    /// All entries, by number.
    pub fn entries(&self) -> impl Iterator<Item = (u16, LoadOption)> {
        let numbers = self.variables.keys().filter_map(Name::number);
        numbers.filter_map(|number| Some((number, self.entry(number)?)))
    }

    /// `BootOrder`, including numbers of missing entries.
    pub fn order(&self) -> Vec<u16> {
        self.data(&Name::order()).chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    }

    /// `QstageEpoch`; 0 if it is missing or unreadable.
    pub fn epoch(&self) -> u64 {
        self.data(&Name::epoch()).try_into().map_or(0, u64::from_le_bytes)
    }

    /// `BootNext`.
    pub fn next(&self) -> Option<u16> {
        self.number(&Name::next())
    }

    /// `BootCurrent`.
    pub fn current(&self) -> Option<u16> {
        self.number(&Name::global("BootCurrent"))
    }

    fn number(&self, name: &Name) -> Option<u16> {
        self.data(name).try_into().ok().map(u16::from_le_bytes)
    }

    /// The partition from which the boot loader was loaded, or the kernel image if it was started by systemd-stub
    /// alone.
    pub fn loaded_from(&self) -> Option<Guid> {
        self.partition(&Name::loader())
    }

    /// The partition from which systemd-stub, and the kernel within it, was loaded.
    pub fn stub(&self) -> Option<Guid> {
        self.partition(&Name::stub())
    }

    /// A PARTUUID as written by systemd's boot loaders: text in UTF-16.
    fn partition(&self, name: &Name) -> Option<Guid> {
        let units = self.data(name).chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
        String::from_utf16(&units).ok()?.parse().ok()
    }

    /// The lowest number that no variable has and no list names: a dangling reference must not come to mean an
    /// entry of ours.
    pub fn free_number(&self) -> u16 {
        let taken: BTreeSet<u16> =
            self.variables.keys().filter_map(Name::number).chain(self.order()).chain(self.next()).collect();
        (0..u16::MAX).find(|number| !taken.contains(number)).unwrap_or(u16::MAX)
    }

    /// The variable with other data. Existing attributes stay: firmware refuses to change them.
    pub(super) fn with_data(&self, name: &Name, data: Vec<u8>) -> Variable {
        let attributes = self.get(name).map_or(ATTRIBUTES, |variable| variable.attributes);
        Variable { attributes, data }
    }

    pub(super) fn put(&mut self, name: Name, variable: Option<Variable>) {
        match variable {
            Some(variable) => drop(self.variables.insert(name, variable)),
            None => drop(self.variables.remove(&name)),
        }
    }
}
