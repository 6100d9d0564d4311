//! The backup of a table: its header, its place, whether that is ours.

use super::claim::Claims;
use super::codec::Header;
use super::place::{self, check_places};
use super::table::Table;
use crate::units::Lba;

/// The backup that belongs to `primary`, at the place that the primary names. If the old header `theirs` has the
/// same form, it is the model, so that bytes without meaning stay. The array lies where `theirs` says, else just
/// before the header.
///
/// # Errors
/// The first block of that place that is not ours.
pub(super) fn mirror(primary: &Table, theirs: Option<&Header>, claims: &Claims<'_>) -> Result<Table, Lba> {
    let ours = primary.header();
    let same_form =
        |h: &&Header| (h.entry_count(), h.entry_size()) == (ours.entry_count(), ours.entry_size());
    let theirs = theirs.filter(same_form);
    let shaped = |base: &Header, entries_lba| Header {
        my_lba: ours.alternate_lba,
        alternate_lba: ours.my_lba,
        first_usable: ours.first_usable,
        last_usable: ours.last_usable,
        disk_guid: ours.disk_guid,
        entries_lba,
        ..base.clone()
    };
    let kept = theirs.map(|theirs| shaped(theirs, theirs.entries_lba));
    let kept = kept.filter(|header| check_places(header, claims.geometry).is_ok());
    let before = Lba(ours.alternate_lba.0.saturating_sub(ours.array_blocks()));
    let header = kept.unwrap_or_else(|| shaped(theirs.unwrap_or(ours), before));
    check_places(&header, claims.geometry).map_err(|_| header.entries_lba)?;
    let backup = primary.with_header(header);
    claims.array(place::blocks(&backup, backup.header().entries_lba))?;
    claims.backup_header(backup.header().my_lba)?;
    Ok(backup)
}
