//! One step of a verb, as a value.

use std::fmt;

use crate::efi::VariablePlan;
use crate::gpt::Table;
use crate::slot::Mark;
use crate::units::{Group, Slot};

/// One act of a verb, durable and read again before the next one begins.
#[derive(Debug, Clone)]
pub enum Act {
    /// The mark of a slot is set; `None`: it is made void.
    Mark(Group, Slot, Option<Mark>),
    /// EFI variables are set, one after another.
    Variables(VariablePlan),
    /// The table is brought onto the disk, in one transaction.
    Table(Table),
    /// The record of a slot is destroyed.
    Void(Group, Slot),
}

impl fmt::Display for Act {
    /// Its kind, without places and values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mark(group, slot, mark) => {
                let verdict = mark.as_ref().map_or("void", |mark| mark.verdict.word());
                write!(f, "mark of {}: {verdict}", group.partition_name(*slot))
            }
            Self::Variables(turn) => {
                let steps: Vec<String> = turn.steps.iter().map(|step| step.name.to_string()).collect();
                write!(f, "{}", steps.join(", "))
            }
            Self::Table(_) => write!(f, "table"),
            Self::Void(group, slot) => write!(f, "footer of {}: void", group.partition_name(*slot)),
        }
    }
}
