//! A watch of etcd: one line of JSON for each revision that changed a key.

use std::io::{BufRead, BufReader};

use super::super::store::{Entry, Key, Revision};
use super::Etcd;
use super::wire::{KeyEvent, Line};
use crate::error::{Error, Result};

/// Change of a key; `None`: the key was deleted.
pub type KeyChange = (Key, Option<Entry>);

/// Stream of changes, from one revision on.
pub struct Watch {
    etcd: Etcd,
    lines: BufReader<ureq::BodyReader<'static>>,
}

impl Watch {
    pub(super) const fn new(etcd: Etcd, lines: BufReader<ureq::BodyReader<'static>>) -> Self {
        Self { etcd, lines }
    }

    /// Waits for the next changes and returns them with the revision that they lead to.
    ///
    /// # Errors
    /// [`Error::ClusterStore`]: the watch has ended, and all keys must be read again. [`Error::ClusterData`]: garbage.
    pub fn wait(&mut self) -> Result<(Vec<KeyChange>, Revision)> {
        let over = |problem: String| Error::ClusterStore { problem: format!("the watch ended: {problem}") };
        let mut line = String::new();
        let len = self.lines.read_line(&mut line).map_err(|problem| over(problem.to_string()))?;
        if len == 0 {
            return Err(over("the connection was closed".to_owned()));
        }
        let Line { result, error } =
            serde_json::from_str(&line).map_err(|problem| over(problem.to_string()))?;
        // The store was restored from an older copy, or has compacted the revision.
        if result.canceled || !error.is_null() {
            return Err(over(line.trim().to_owned()));
        }
        let mut changes = Vec::new();
        for KeyEvent { what, kv } in &result.events {
            if what == "DELETE" {
                changes.extend(self.etcd.key(&kv.key).map(|key| (key, None)));
            } else if let Some((key, entry)) = self.etcd.entry(kv)? {
                changes.push((key, Some(entry)));
            }
        }
        Ok((changes, result.header.revision))
    }
}
