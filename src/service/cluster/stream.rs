//! The bundle, from the node that received the order to those that have nothing at its path.
//!
//! ```text
//!   this node ── GET /v1/qstage/cluster/bundle/DIGEST, ranges ──▶ another node
//!      │  its certificate for etcd                                   │  the certificate of its service
//!      └───────── checked with the authorities 'ca'                  └───── the one in its key in etcd
//! ```
//!
//! The reader checks the signature and the ordered digest itself, so that a node can pass on only what was ordered.

use std::ffi::OsString;
use std::path::Path;

use crate::cluster::state::{Member, Ordered, Stage};
use crate::cluster::store::{Key, Snapshot, Value};
use crate::error::{Error, Result};
use crate::host::files::{private_directory, replace};
use crate::service::cluster::{Cluster, Membership};
use crate::service::owner::worker::Arguments;
use crate::source::address;
use crate::units::Blake3;

/// Path of a bundle at the service of a node, without its digest.
pub(in crate::service) const PATH: &str = "/v1/qstage/cluster/bundle/";
/// File in the state directory with the certificates of the other nodes.
const CERTIFICATES: &str = "cluster-peers.pem";

impl Cluster {
    /// Path of the bundle with this digest, while another node may need it.
    ///
    /// # Errors
    /// [`Error::Blocked`]: no upgrade to it is in progress.
    pub(in crate::service) fn offered(&self, digest: Blake3) -> Result<String> {
        let seen = self.cache.get();
        let view = seen.view();
        let progresses = view.upgrade.stage != Stage::Idle;
        let missed = || view.alive.iter().any(|(node, alive)| view.missed(*node, alive.runs));
        let order = view.upgrade.order.as_ref().filter(|order| order.digest == digest);
        match order.filter(|order| !address::is_web(&order.install_path) && (progresses || missed())) {
            Some(order) => Ok(order.install_path.clone()),
            None => Err(Error::Blocked { reason: "no upgrade to that bundle is in progress".to_owned() }),
        }
    }
}

/// The other members, the one that received the order first.
pub(super) fn peers(snapshot: &Snapshot, own: &Membership, order: Option<&Ordered>) -> Vec<Member> {
    let source = order.and_then(|order| order.source);
    let mut members: Vec<_> = snapshot
        .iter()
        .filter_map(|(key, entry)| match (key, &entry.value) {
            (Key::Member(node), Value::Member(member)) if *node != own.node => Some((*node, member)),
            _ => None,
        })
        .collect();
    members.sort_by_key(|(node, _)| Some(*node) != source);
    members.into_iter().map(|(_, member)| member.clone()).collect()
}

/// URL of the ordered bundle at the other nodes, and the arguments of a prepare that fetches it from them. `None`: the nodes have
/// no certificates by which they know each other.
///
/// # Errors
/// [`Error::Open`]: the certificates cannot be stored.
pub(super) fn fetch(
    order: &Ordered,
    peers: &[Member],
    own: &Membership,
    arguments: &Arguments,
    state_dir: &Path,
) -> Result<Option<(String, Arguments)>> {
    let known = || peers.iter().filter(|peer| !peer.certificate.is_empty());
    let url = |peer: &Member| format!("{}{PATH}{}", peer.address.trim_end_matches('/'), order.digest);
    let Some(first) = known().next().filter(|_| order.source.is_some() && own.authorities().is_some()) else {
        return Ok(None);
    };
    let certificates: String = known().map(|peer| format!("{}\n", peer.certificate.trim())).collect();
    let written = private_directory(state_dir, false)
        .and_then(|()| replace(state_dir, CERTIFICATES, certificates.as_bytes(), 0o600));
    let path = state_dir.join(CERTIFICATES);
    written.map_err(|source| Error::Open { path: path.clone(), source })?;
    let mut prepare: Vec<OsString> = arguments.prepare.clone();
    prepare.extend(["--from-member".into(), path.into()]);
    prepare.extend(["--manifest".into(), order.digest.to_string().into()]);
    for mirror in known().skip(1) {
        prepare.extend(["--mirror".into(), url(mirror).into()]);
    }
    Ok(Some((url(first), Arguments { prepare, ..arguments.clone() })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::etcd::EtcdConfig;
    use crate::cluster::state::NodeId;
    use crate::cluster::store::Entry;

    #[test]
    fn the_node_that_received_the_order_comes_first_and_only_nodes_with_certificates_count() {
        let dir = tempfile::tempdir().unwrap();
        let member = |node: u32, certificate: &str| {
            let (uuid, address) = (String::new(), format!("https://node{node}:8000"));
            let member = Member { uuid, address, certificate: certificate.to_owned() };
            let entry = Entry { value: Value::Member(member), created: 1, modified: 1, lease: None };
            (Key::Member(NodeId(node)), entry)
        };
        let snapshot =
            Snapshot::from([member(1, "one"), member(2, "two"), member(3, "three"), member(4, "")]);
        let order = Ordered { source: Some(NodeId(3)), ..Ordered::sample() };
        let mut own = Membership {
            access: EtcdConfig { ca: Some("ca".into()), ..EtcdConfig::default() },
            node: NodeId(2),
            address: String::new(),
            certificate: "/dev/null".into(),
            reboot_timeout: std::time::Duration::ZERO,
            commit_timeout: std::time::Duration::ZERO,
            health: "/".into(),
            health_timeout: std::time::Duration::ZERO,
            hooks: crate::service::cluster::hooks::Hooks::default(),
        };
        let peers = peers(&snapshot, &own, Some(&order));
        let fetch = |own: &Membership| fetch(&order, &peers, own, &Arguments::default(), dir.path()).unwrap();
        assert!(fetch(&own).is_none(), "without a certificate of its own");
        own.access.identity = Some(("cert".into(), "key".into()));
        let (url, arguments) = fetch(&own).unwrap();
        assert_eq!(url, format!("https://node3:8000{PATH}{}", order.digest));
        let words: Vec<_> = arguments.prepare.iter().map(|word| word.to_string_lossy()).collect();
        assert!(
            words.ends_with(&["--mirror".into(), format!("https://node1:8000{PATH}{}", order.digest).into()])
        );
        assert_eq!(words.len(), 6, "{words:?}");
        assert_eq!(std::fs::read_to_string(dir.path().join(CERTIFICATES)).unwrap(), "three\none\n");
    }
}
