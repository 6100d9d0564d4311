//! The upgrade as `qstage watch` shows it: JSON lines, progress bars on a terminal, or a few lines for a journal; of a cluster
//! also a line per node.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::super::output::{self, json_line, note, print};
use super::super::terminal;
use super::cluster::{ClusterSummary, MemberSummary};
use super::status::V3Status;
use crate::error::Result;
use crate::units::text;

/// The upgrade as it is shown. The drop removes the bars.
pub(super) struct UpgradeView {
    form: Form,
    /// Nodes as they were shown last, and what the cluster waited for.
    nodes: BTreeMap<u32, String>,
    waits_for: String,
}

enum Form {
    Json,
    Bars {
        all: MultiProgress,
        upgrade: ProgressBar,
        nodes: BTreeMap<u32, ProgressBar>,
    },
    /// With the tens of percent that were shown last.
    Lines(Option<u64>),
}

impl UpgradeView {
    pub(super) fn new(json: bool) -> Self {
        let form = if json {
            Form::Json
        } else if io::stderr().is_terminal() {
            let all = MultiProgress::with_draw_target(terminal::target());
            let upgrade = all.add(ProgressBar::new(100));
            upgrade.set_style(style("{prefix:>12} [{bar:30}] {pos} % {elapsed} {wide_msg}"));
            Form::Bars { all, upgrade, nodes: BTreeMap::new() }
        } else {
            Form::Lines(None)
        };
        Self { form, nodes: BTreeMap::new(), waits_for: String::new() }
    }

    /// Shows a status that has changed.
    pub(super) fn show(&mut self, status: &V3Status) -> Result<()> {
        let word = status.state.trim_start_matches("UPGRADE_STATE_").to_lowercase();
        match &mut self.form {
            Form::Json => print(&json_line(&output::JsonEvent::new("status", status))?)?,
            Form::Bars { upgrade, .. } => {
                upgrade.set_prefix(text::shown(&word).into_owned());
                upgrade.set_position(status.progress.unwrap_or_default());
            }
            Form::Lines(last) => {
                // Ten lines are acceptable in a journal.
                let tens = status.progress.map(|percent| percent / 10);
                if *last != tens || word != "preparing" {
                    *last = tens;
                    note(&format!("{word} {} %", status.progress.unwrap_or_default()));
                }
            }
        }
        Ok(())
    }

    /// Shows the nodes that have changed.
    pub(super) fn show_nodes(&mut self, cluster: &ClusterSummary) -> Result<()> {
        let tens = matches!(self.form, Form::Lines(_));
        let lines: BTreeMap<u32, String> =
            cluster.nodes.iter().map(|node| (node.id, line(node, tens))).collect();
        if lines == self.nodes && cluster.waits_for == self.waits_for {
            return Ok(());
        }
        match &mut self.form {
            Form::Json => print(&json_line(&output::JsonEvent::new("cluster", cluster))?)?,
            Form::Bars { all, upgrade, nodes } => {
                upgrade.set_message(
                    waits(cluster).map(|waits| text::shown(&waits).into_owned()).unwrap_or_default(),
                );
                for gone in nodes.extract_if(.., |id, _| !lines.contains_key(id)) {
                    all.remove(&gone.1);
                }
                for node in &cluster.nodes {
                    let bar = nodes.entry(node.id).or_insert_with(|| all.add(ProgressBar::new(100)));
                    let template = match node.progress {
                        Some(_) => "{prefix:>12} [{bar:30}] {pos} % {wide_msg}",
                        None => "{prefix:>12} {wide_msg}",
                    };
                    bar.set_style(style(template));
                    bar.set_prefix(format!("node {}", node.id));
                    bar.set_position(node.progress.unwrap_or_default());
                    bar.set_message(text::shown(&words(node)).into_owned());
                }
            }
            Form::Lines(_) => {
                for (id, line) in &lines {
                    if self.nodes.get(id) != Some(line) {
                        note(&format!("node {id}: {line}"));
                    }
                }
                if let Some(waits) = waits(cluster).filter(|_| cluster.waits_for != self.waits_for) {
                    note(&waits);
                }
            }
        }
        (self.nodes, self.waits_for) = (lines, cluster.waits_for.clone());
        Ok(())
    }
}

impl Drop for UpgradeView {
    fn drop(&mut self) {
        if let Form::Bars { all, .. } = &self.form {
            let _ = all.clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style.progress_chars("=> ")
}

fn waits(cluster: &ClusterSummary) -> Option<String> {
    (!cluster.waits_for.is_empty()).then(|| format!("waits for {}", cluster.waits_for))
}

/// Version, standing and activity of a node.
fn words(node: &MemberSummary) -> String {
    let reason = if node.reason.is_empty() { String::new() } else { format!(": {}", node.reason) };
    let doing = if node.doing.is_empty() { String::new() } else { format!(", {}", node.doing) };
    format!("{} {}{reason}{doing}", node.version, node.standing).trim().to_owned()
}

/// The same with the progress, `tens` rounded down to tens of percent.
fn line(node: &MemberSummary, tens: bool) -> String {
    let step = if tens { 10 } else { 1 };
    let percent = node.progress.map(|percent| format!(" {} %", percent / step * step)).unwrap_or_default();
    format!("{}{percent}", words(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(doing: &str, progress: Option<u64>) -> MemberSummary {
        MemberSummary {
            id: 3,
            address: String::new(),
            version: "1.0".to_owned(),
            standing: "good".to_owned(),
            reason: String::new(),
            doing: doing.to_owned(),
            progress,
        }
    }

    #[test]
    fn the_line_of_a_node() {
        assert_eq!(line(&node("prepares", Some(47)), true), "1.0 good, prepares 40 %");
        assert_eq!(line(&node("prepares", Some(47)), false), "1.0 good, prepares 47 %");
        let fell = MemberSummary { reason: "it did not boot".to_owned(), ..node("", None) };
        assert_eq!(line(&fell, true), "1.0 good: it did not boot");
        let away =
            MemberSummary { version: String::new(), standing: "away".to_owned(), ..node("boots", None) };
        assert_eq!(line(&away, true), "away, boots");
    }

    #[test]
    fn bars_come_and_go_with_the_nodes() {
        let mut cluster: ClusterSummary = serde_json::from_value(serde_json::json!({
            "node_id": 1, "state": "ACTIVE", "cluster_id": "x", "connected": true, "problem": "",
            "leader": null, "stage": "rebooting", "starting_version": "1.0", "target_version": "2.0", "waits_for": "node 3 to come back",
            "nodes": [node("prepares", Some(47)), MemberSummary { id: 4, ..node("boots", None) }],
        }))
        .unwrap();
        let all = MultiProgress::with_draw_target(indicatif::ProgressDrawTarget::hidden());
        let upgrade = all.add(ProgressBar::hidden());
        let form = Form::Bars { all, upgrade, nodes: BTreeMap::new() };
        let mut view = UpgradeView { form, nodes: BTreeMap::new(), waits_for: String::new() };
        view.show_nodes(&cluster).unwrap();
        let Form::Bars { upgrade, nodes, .. } = &view.form else { unreachable!() };
        assert_eq!(upgrade.message(), "waits for node 3 to come back");
        assert_eq!((nodes[&3].position(), nodes[&4].message().as_str()), (47, "1.0 good, boots"));
        cluster.nodes.pop();
        view.show_nodes(&cluster).unwrap();
        let Form::Bars { nodes, .. } = &view.form else { unreachable!() };
        assert_eq!(nodes.len(), 1);
    }
}
