//! The attribute field of a partition entry, as a type with one method per bit field.

use std::fmt;

/// The 64 attribute bits of a partition entry (UEFI 2.10, table 5.8, and the ChromeOS disk format).
///
/// | bits  | meaning                                                  | edited |
/// |-------|----------------------------------------------------------|--------|
/// | 0     | required by the platform                                 | never  |
/// | 1     | no block I/O protocol                                    | never  |
/// | 2     | legacy BIOS bootable: syslinux, U-Boot                   | yes    |
/// | 3-47  | reserved                                                 | never  |
/// | 48-51 | priority: 15 first, 1 last, 0 never                      | yes    |
/// | 52-55 | tries left, counted down by the boot loader              | yes    |
/// | 56    | successful: boots whatever the tries say                 | yes    |
/// | 57-63 | reserved for the owner of the partition type             | never  |
///
/// Every `with_` returns a changed copy; nothing here writes to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes(pub u64);

const LEGACY: u64 = 1 << 2;
const PRIORITY: u32 = 48;
const TRIES: u32 = 52;
const NIBBLE: u64 = 0xf;
const SUCCESSFUL: u64 = 1 << 56;

impl Attributes {
    /// The largest priority and the largest number of tries: both have four bits.
    pub const MAX_NIBBLE: u8 = 15;

    /// Boot priority, 0 (never) to 15 (first).
    pub const fn priority(self) -> u8 {
        ((self.0 >> PRIORITY) & NIBBLE) as u8
    }

    /// These attributes with another priority; values above 15 become 15.
    #[must_use]
    pub fn with_priority(self, priority: u8) -> Self {
        self.with_nibble(PRIORITY, priority)
    }

    /// Tries left, 0 to 15.
    pub const fn tries(self) -> u8 {
        ((self.0 >> TRIES) & NIBBLE) as u8
    }

    /// These attributes with another number of tries left; values above 15 become 15.
    #[must_use]
    pub fn with_tries(self, tries: u8) -> Self {
        self.with_nibble(TRIES, tries)
    }

    /// Whether the successful bit is set: the slot was marked good.
    pub const fn successful(self) -> bool {
        self.0 & SUCCESSFUL != 0
    }

    /// These attributes with the successful bit set or cleared.
    #[must_use]
    pub const fn with_successful(self, yes: bool) -> Self {
        self.with_bit(SUCCESSFUL, yes)
    }

    /// Whether bit 2 (legacy BIOS bootable) is set.
    pub const fn legacy_bootable(self) -> bool {
        self.0 & LEGACY != 0
    }

    /// These attributes with bit 2 set or cleared.
    #[must_use]
    pub const fn with_legacy_bootable(self, yes: bool) -> Self {
        self.with_bit(LEGACY, yes)
    }

    /// Whether a boot loader that goes by priority may take the entry: it has a priority, and is successful or has
    /// tries left.
    pub const fn will_boot(self) -> bool {
        self.priority() > 0 && (self.successful() || self.tries() > 0)
    }

    fn with_nibble(self, shift: u32, value: u8) -> Self {
        Self(self.0 & !(NIBBLE << shift) | u64::from(value.min(Self::MAX_NIBBLE)) << shift)
    }

    const fn with_bit(self, bit: u64, yes: bool) -> Self {
        Self(if yes { self.0 | bit } else { self.0 & !bit })
    }
}

impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (good, legacy) = (u8::from(self.successful()), u8::from(self.legacy_bootable()));
        write!(f, "priority={} tries={} successful={good} legacy={legacy}", self.priority(), self.tries())
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({:#018x}: {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_method_edits_only_its_bits() {
        for start in [0, u64::MAX, 0xa5a5_5a5a_a5a5_5a5a] {
            let attrs = Attributes(start);
            for n in 0..=15 {
                assert_eq!(attrs.with_priority(n).0, start & !(0xf << 48) | u64::from(n) << 48);
                assert_eq!(attrs.with_priority(n).priority(), n);
                assert_eq!(attrs.with_tries(n).0, start & !(0xf << 52) | u64::from(n) << 52);
                assert_eq!(attrs.with_tries(n).tries(), n);
            }
            assert_eq!(attrs.with_tries(200).tries(), 15);
            assert_eq!(attrs.with_successful(true).0, start | 1 << 56);
            assert_eq!(attrs.with_successful(false).0, start & !(1 << 56));
            assert_eq!(attrs.with_legacy_bootable(true).0, start | 4);
            assert_eq!(attrs.with_legacy_bootable(false).0, start & !4);
        }
    }

    #[test]
    fn priority_zero_never_boots() {
        let dead = Attributes(0).with_successful(true).with_tries(3);
        assert!(!dead.will_boot());
        assert!(dead.with_priority(1).will_boot());
        assert!(!Attributes(0).with_priority(15).will_boot());
    }
}
