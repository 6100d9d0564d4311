//! The conditions on a cluster for an upgrade of it.

use super::state::{Alive, Standing};
use super::view::View;
use crate::error::{Error, Result};

/// Names the release of a node, and how that of the cluster differs from it.
fn other_release(node: &Alive, cluster: &Alive) -> String {
    let both = |alive: &Alive| format!("{} {}", alive.product, alive.version).trim().to_owned();
    if node.product != cluster.product {
        format!("{}, the cluster {}", both(node), both(cluster))
    } else if node.version != cluster.version {
        format!("{}, the cluster {}", node.version, cluster.version)
    } else {
        format!("another build of {} than the cluster", node.version)
    }
}

/// Checks that the cluster can be upgraded: all nodes are alive, run the same release on the same platform, none is on trial,
/// protection is whole. The checks are made in this order, each for all nodes.
///
/// # Errors
/// [`Error::Blocked`], with the node and its problem.
pub fn admission(view: &View) -> Result<()> {
    let blocked = |reason: String| Err(Error::Blocked { reason });
    if let Some(away) = view.members.iter().find(|node| !view.alive.contains_key(node)) {
        return blocked(format!("{away} is away"));
    }
    let first = view.members.first().and_then(|node| view.alive.get(node));
    let members = || view.members.iter().filter_map(|node| Some((*node, view.alive.get(node)?)));
    for (node, alive) in members() {
        let Some(first) = first else { continue };
        if alive.runs != first.runs {
            return blocked(format!("{node} runs {}", other_release(alive, first)));
        }
        // Whether a bundle needs a reboot is decided for all nodes by one of them.
        if alive.platform.zip(first.platform).is_some_and(|(own, first)| own != first) {
            return blocked(format!(
                "{node} has another platform than the cluster below the same software; upgrade it as a single node ('qstage cluster leave' on it), and join again"
            ));
        }
        if alive.protocol != first.protocol {
            let oldest = view.alive.iter().min_by_key(|(_, alive)| alive.protocol);
            let oldest = oldest.map_or(node, |(oldest, _)| *oldest);
            return blocked(format!("{oldest} has an older qstage; install one version of it on all nodes"));
        }
    }
    for (node, alive) in members() {
        // A node that fell back may try again.
        let again = matches!(alive.standing, Standing::FellBack(_)) && !alive.leaving && !alive.drained;
        if let Some(reason) = view.unfit(node).filter(|_| !again) {
            return blocked(reason);
        }
        if let Some(why) = &alive.blocked {
            return blocked(format!("{node}: {why}"));
        }
    }
    if !view.protection().whole() {
        return blocked(format!("the protection of data is not whole: {}", view.protection_words()));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::orders::prepare;
    use super::super::state::{BootId, NodeId, Ordered, PROTOCOL, Protection};
    use super::*;
    use crate::state::UpgradeType;
    use crate::units::Blake3;

    /// A cluster of equal nodes that rests.
    pub(in crate::cluster) fn view(nodes: u32, remaining: u32, maximum: u32) -> View {
        let mut view = View::default();
        for node in (1..=nodes).map(NodeId) {
            view.members.insert(node);
            let alive = Alive {
                boot: BootId(1),
                runs: Blake3([1; 32]),
                platform: Some(Blake3([3; 32])),
                version: "1".into(),
                product: "Demo".into(),
                protocol: PROTOCOL,
                standing: Standing::Good,
                protection: Protection { remaining, maximum, rebuilding: false },
                progress: 0,
                blocked: None,
                leaving: false,
                drained: false,
                unknown: None,
                failed_in: None,
                staging: None,
            };
            view.alive.insert(node, alive);
        }
        view
    }

    #[test]
    fn a_cluster_that_is_not_fit_is_told_by_the_node() {
        let told = |view: &View| admission(view).map_err(|error| error.to_string());
        assert!(told(&view(3, 1, 1)).is_ok());
        assert!(told(&view(3, 0, 1)).unwrap_err().contains("0 of 1"));
        let with = |act: &dyn Fn(&mut Alive)| {
            let mut view = view(3, 1, 1);
            view.alive.get_mut(&NodeId(3)).map(act);
            told(&view).unwrap_err()
        };
        let other = with(&|alive| (alive.runs, alive.version) = (Blake3([2; 32]), "0.9".into()));
        assert_eq!(other, "node 3 runs 0.9, the cluster 1");
        let build = with(&|alive| alive.runs = Blake3([2; 32]));
        assert_eq!(build, "node 3 runs another build of 1 than the cluster");
        let product = with(&|alive| (alive.runs, alive.product) = (Blake3([2; 32]), "Other".into()));
        assert_eq!(product, "node 3 runs Other 1, the cluster Demo 1");
        let platform = with(&|alive| alive.platform = Some(Blake3([4; 32])));
        assert!(platform.starts_with("node 3 has another platform than the cluster"), "{platform}");
        let older = with(&|alive| alive.protocol = 0);
        assert_eq!(older, "node 3 has an older qstage; install one version of it on all nodes");
        assert!(with(&|alive| alive.standing = Standing::Trial).contains("node 3 is on trial"));
        assert!(with(&|alive| alive.drained = true).contains("node 3 is not back in service"));
        assert!(
            with(&|alive| alive.protection.rebuilding = true).contains("1 of 1 nodes may fail, and it is")
        );
        let unknown = with(&|alive| {
            (alive.protection.remaining, alive.unknown) = (0, Some("the hook says no".into()));
        });
        assert!(unknown.ends_with("node 3 does not know it: the hook says no"), "{unknown}");
        assert!(
            with(&|alive| alive.blocked = Some("its slot is in use".into())).contains("node 3: its slot")
        );
        let mut away = view(3, 1, 1);
        away.alive.remove(&NodeId(2));
        assert_eq!(told(&away).unwrap_err(), "node 2 is away");
    }

    #[test]
    fn obstacles_are_named_in_one_order_whichever_node_has_them() {
        // Each obstacle is at a node before those of the obstacles that are checked first.
        let mut view = view(5, 2, 2);
        let at = |view: &mut View, node: u32, act: fn(&mut Alive)| {
            view.alive.get_mut(&NodeId(node)).map(act).unwrap();
        };
        at(&mut view, 1, |alive| alive.protection.remaining = 1);
        at(&mut view, 2, |alive| alive.blocked = Some("its slot is in use".into()));
        at(&mut view, 3, |alive| alive.standing = Standing::Trial);
        at(&mut view, 4, |alive| alive.runs = Blake3([2; 32]));
        let away = view.alive.remove(&NodeId(5)).unwrap();
        let told = |view: &View| admission(view).unwrap_err().to_string();
        assert_eq!(told(&view), "node 5 is away");
        view.alive.insert(NodeId(5), away);
        assert_eq!(told(&view), "node 4 runs another build of 1 than the cluster");
        at(&mut view, 4, |alive| alive.runs = Blake3([1; 32]));
        assert_eq!(told(&view), "node 2: its slot is in use");
        at(&mut view, 2, |alive| alive.blocked = None);
        assert_eq!(told(&view), "node 3 is on trial");
        at(&mut view, 3, |alive| alive.standing = Standing::Good);
        assert!(told(&view).contains("1 of 2 nodes may fail"), "{}", told(&view));
        at(&mut view, 1, |alive| alive.protection.remaining = 2);
        assert!(admission(&view).is_ok());
        // The number of nodes per group is the last check.
        let order =
            Ordered { upgrade_type: UpgradeType::SoftwareAndPlatform, rolling: true, ..Ordered::sample() };
        let error = prepare(&view, Ordered { nodes: Some(3), ..order.clone() }).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_BAD_REQUEST");
        at(&mut view, 3, |alive| alive.standing = Standing::Trial);
        let error = prepare(&view, Ordered { nodes: Some(3), ..order }).unwrap_err();
        assert_eq!(error.code(), "UPGRADE_ERROR_BLOCKED");
    }
}
