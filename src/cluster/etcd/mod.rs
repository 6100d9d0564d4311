//! etcd as the store, accessed by its JSON gateway (`/v3`, etcd 3.4 and later): all keys below a prefix, transactions, leases,
//! and one watch of all these keys.
//!
//! The gateway is used and not gRPC, because the program has an HTTP client already; a gRPC stack would be its largest part.

mod gateway;
mod tls;
mod watch;
mod wire;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::codec;
use super::store::{Compare, Entry, Key, LeaseId, Revision, Snapshot, Store, Txn, Write};
use crate::error::Result;
use gateway::{Gateway, base64, end_of, number, unbase64};
pub use watch::{KeyChange, Watch};
use wire::{KeyValue, Range};

/// Access to etcd.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EtcdConfig {
    /// Addresses of the members of etcd: `https://HOST:2379`.
    pub endpoints: Vec<String>,
    /// Certificates of the authority that signed those of the members; `None`: the authorities that the system trusts.
    pub ca: Option<PathBuf>,
    /// Certificate and key by which this node authenticates itself.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// User name and file of the password; `None`: etcd has no users.
    pub user: Option<(String, PathBuf)>,
    /// Prefix of all keys; two clusters on one etcd need different ones.
    pub prefix: String,
}

/// Store in etcd. A clone shares its connections.
#[derive(Debug, Clone)]
pub struct Etcd {
    gateway: Arc<Gateway>,
    prefix: String,
    /// See [`Self::written`].
    written: Revision,
}

impl Etcd {
    /// Creates a store; the first request opens the connection.
    ///
    /// # Errors
    /// [`Error::Config`](crate::Error::Config): certificates or password cannot be read.
    /// [`Error::Argument`](crate::Error::Argument): no endpoint, or one that is no URL.
    pub fn new(access: &EtcdConfig) -> Result<Self> {
        Ok(Self { gateway: Arc::new(Gateway::new(access)?), prefix: access.prefix.clone(), written: 0 })
    }

    /// All keys, with the revision of this state.
    ///
    /// # Errors
    /// [`Error::ClusterStore`](crate::Error::ClusterStore), [`Error::ClusterData`](crate::Error::ClusterData).
    pub fn read(&self) -> Result<(Snapshot, Revision)> {
        let body = json!({"key": base64(&self.prefix), "range_end": base64(end_of(self.prefix.as_bytes()))});
        let answer: Range = self.gateway.call_as("kv/range", &body)?;
        let mut snapshot = BTreeMap::new();
        for kv in &answer.kvs {
            if let Some((key, entry)) = self.entry(kv)? {
                snapshot.insert(key, entry);
            }
        }
        Ok((snapshot, answer.header.revision))
    }

    /// Watches all changes after a revision, for as long as the connection lasts.
    ///
    /// # Errors
    /// [`Error::ClusterStore`](crate::Error::ClusterStore).
    pub fn watch(&self, after: Revision) -> Result<Watch> {
        let create = json!({"create_request": {"key": base64(&self.prefix),
            "range_end": base64(end_of(self.prefix.as_bytes())), "start_revision": (after + 1).to_string()}});
        Ok(Watch::new(self.clone(), self.gateway.stream("watch", &create)?))
    }

    /// Revision of the last write of this clone. A decision on an older state would repeat the write: each attempt costs etcd a
    /// consensus, and one that succeeds a message to every node.
    pub const fn written(&self) -> Revision {
        self.written
    }

    /// Result of the last reload of replaced certificates, once: they are used from now on, or cannot be used, and the previous
    /// ones remain in use. `None`: there is no new one.
    pub fn renewal(&self) -> Option<Result<()>> {
        self.gateway.renewal()
    }

    /// Identity of the etcd cluster, in hexadecimal.
    ///
    /// # Errors
    /// [`Error::ClusterStore`](crate::Error::ClusterStore).
    pub fn identity(&self) -> Result<String> {
        let answer =
            self.gateway.call("kv/range", &json!({"key": base64(&self.prefix), "keys_only": true}))?;
        let id: u64 =
            answer["header"]["cluster_id"].as_str().and_then(|id| id.parse().ok()).unwrap_or_default();
        Ok(format!("{id:016x}"))
    }

    /// Renews a lease for its whole duration; returns `false` if it had ended already.
    ///
    /// # Errors
    /// [`Error::ClusterStore`](crate::Error::ClusterStore).
    pub fn keep_alive(&self, lease: LeaseId) -> Result<bool> {
        let answer = self.gateway.call("lease/keepalive", &json!({"ID": lease.to_string()}))?;
        Ok(number(&answer["result"]["TTL"]) > 0)
    }

    fn entry(&self, kv: &KeyValue) -> Result<Option<(Key, Entry)>> {
        let Some(key) = self.key(&kv.key) else { return Ok(None) };
        let value = codec::decode(key, &unbase64(&kv.value))?;
        let lease = Some(kv.lease).filter(|lease| *lease != 0);
        Ok(Some((key, Entry { value, created: kv.create_revision, modified: kv.mod_revision, lease })))
    }

    fn key(&self, name: &str) -> Option<Key> {
        let name = String::from_utf8(unbase64(name)).ok()?;
        codec::key(name.strip_prefix(&self.prefix)?)
    }

    fn name(&self, key: Key) -> String {
        base64(format!("{}{}", self.prefix, codec::path(key)))
    }
}

impl Store for Etcd {
    fn snapshot(&self) -> Result<Snapshot> {
        self.read().map(|(snapshot, _)| snapshot)
    }

    fn transact(&mut self, txn: &Txn) -> Result<bool> {
        let compare = txn.compare.iter().map(|compare| match compare {
            Compare::Modified(key, revision) => json!({"key": self.name(*key), "target": "MOD",
                "result": "EQUAL", "mod_revision": revision.to_string()}),
            Compare::Created(key, revision) => json!({"key": self.name(*key), "target": "CREATE",
                "result": "EQUAL", "create_revision": revision.to_string()}),
        });
        let writes = txn.writes.iter().map(|write| {
            Ok(match write {
                Write::Put(key, value, lease) => json!({"request_put": {"key": self.name(*key),
                    "value": base64(codec::encode(value)?), "lease": lease.unwrap_or_default().to_string()}}),
                Write::Delete(key) => json!({"request_delete_range": {"key": self.name(*key)}}),
            })
        });
        let writes = writes.collect::<Result<Vec<_>>>()?;
        let body = json!({"compare": compare.collect::<Vec<_>>(), "success": writes});
        let answer = self.gateway.call("kv/txn", &body)?;
        let holds = answer["succeeded"] == true;
        if holds && !txn.writes.is_empty() {
            self.written = number(&answer["header"]["revision"]);
        }
        Ok(holds)
    }

    fn grant(&mut self, seconds: u32) -> Result<LeaseId> {
        Ok(number(&self.gateway.call("lease/grant", &json!({"TTL": seconds.to_string()}))?["ID"]))
    }

    fn revoke(&mut self, lease: LeaseId) -> Result<()> {
        self.gateway.call("lease/revoke", &json!({"ID": lease.to_string()})).map(|_| ())
    }
}
