// Shows what the service reports. Versions, names, paths and messages come from bundles and other machines: they are only
// ever set as text, never parsed as HTML.

export const at = (id) => document.getElementById(id);

export function text(id, value) {
  const node = at(id);
  if (node.textContent !== value) node.textContent = value;
}

// Sets a text, or hides its element if there is none.
export function note(id, value) {
  text(id, value || "");
  at(id).hidden = !value;
}

export const TYPES = {
  SOFTWARE_ONLY: "software only, without a reboot",
  SOFTWARE_AND_PLATFORM: "platform and software, with a reboot",
};

const STATES = {
  IDLE: "Idle",
  PREPARING: "Preparing",
  PREPARED: "Prepared",
  COMMITTING: "Committing",
  COMMITTED: "Committed",
  REBOOTING: "Rebooting",
};

export const state = (status) => status.state.replace("UPGRADE_STATE_", "");

// Fills a table. `rows` are lists of cells: a text, or a text and a class.
function table(id, columns, rows) {
  const made = JSON.stringify([columns, rows]);
  const node = at(id);
  // An unchanged table stays, so that a selection and the reading position of a screen reader do.
  if (node.dataset.made === made) return;
  node.dataset.made = made;
  const head = document.createElement("thead");
  const names = head.insertRow();
  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    cell.textContent = column;
    names.append(cell);
  }
  const body = document.createElement("tbody");
  for (const row of rows) {
    const line = body.insertRow();
    row.forEach((cell, index) => {
      const [content, kind] = Array.isArray(cell) ? cell : [cell];
      const made = line.insertCell();
      made.dataset.column = columns[index];
      // A code may be broken after each of its words.
      const parts = kind?.startsWith("code") ? content.split(/(?<=_)/) : [content ?? ""];
      made.append(...parts.flatMap((part, place) => (place ? [document.createElement("wbr"), part] : [part])));
      if (kind) made.className = kind;
    });
  }
  node.replaceChildren(head, body);
}

export function status(v3) {
  const now = state(v3);
  text("state-word", STATES[now] ?? now);
  const settings = v3.settings;
  const target = settings && [settings.target_version, settings.install_path].filter(Boolean).join(" from ");
  text("state-target", target ? `${target} (${TYPES[settings.upgrade_type] ?? settings.upgrade_type})` : "");
  const moving = v3.progress !== null && now !== "IDLE";
  at("bar").hidden = !moving;
  if (moving) {
    at("progress").value = v3.progress;
    text("percent", `${v3.progress} %`);
  }
  note("error", v3.error_info);
}

export function detailed(own) {
  note("details", own.details);
  note("blocked", own.is_blocked ? `No upgrade may begin now: ${own.blocked_reason}` : "");
}

const GOOD = { good: "good", bad: "problem", torn: "problem", trial: "notice" };

export function slots(report) {
  const rows = report.slots.map((slot) => [
    [`${slot.group} ${slot.slot}`, "short"],
    [slot.state, GOOD[slot.state]],
    [[slot.product, slot.version].filter(Boolean).join(" ") + (slot.unsigned ? ", unsigned" : ""), "free"],
    [slot.booted ? "runs" : "", "short"],
    [slot.boots_next ? "boots next" : "", "short"],
    [slot.reason, "free"],
  ]);
  table("slots", ["Slot", "State", "Content", "Now", "Next", "Reason"], rows);
  text("disk", `${report.disk}; copies of its partition table: ${report.table}; boot flag: ${report.boot_flag}`);
}

export function history(events, all) {
  const newest = [...events].reverse();
  const shown = all ? newest : newest.slice(0, 10);
  const rows = shown.map((event) => [
    [event.time, "time"],
    [event.verb, "short"],
    event.code === "UPGRADE_ERROR_NO_ERROR" ? ["done", "good"] : [event.code, "code problem"],
    [event.message, "free"],
  ]);
  table("history", ["Time", "Verb", "Outcome", "Message"], rows);
  at("all-history").hidden = shown.length === events.length;
}

const REBOOTS = {
  REBOOT_IN_PROGRESS: ["is in progress", ""],
  REBOOT_PAUSED: ["is paused", "notice"],
  REBOOT_PAUSED_DUE_TO_ERROR: ["is paused by an error", "problem"],
};

export const rebooted = (report) => `${report.rebooted_node_count} of ${report.total_node_count} nodes`;

export function reboot(report) {
  const [word, kind] = REBOOTS[report.state] ?? ["", ""];
  const error = report.error_message ? `: ${report.error_message}` : "";
  const how = report.rolling ? "rolling" : "complete";
  note("reboot", word && `The ${how} reboot ${word}; ${rebooted(report)} have rebooted${error}`);
  at("reboot").className = kind;
}

export function cluster(report) {
  at("cluster").hidden = false;
  const link = report.connected ? "" : `; etcd is not reached, as of earlier: ${report.problem}`;
  const waits = report.waits_for ? `; waits for ${report.waits_for}` : "";
  text("stage", `Node ${report.node_id} of ${report.nodes.length}, ${report.state}, stage ${report.stage}${waits}${link}`);
  const rows = report.nodes.map((node) => [
    [`${node.id} ${node.node_name}`, "free"],
    [node.node_status, node.node_status === "online" ? "good" : "problem"],
    [node.version, "version"],
    [node.standing, GOOD[node.standing] ?? "problem"],
    [node.doing, node.progress === null ? "" : `${node.progress} %`].filter(Boolean).join(", "),
    [node.reason, "free"],
  ]);
  table("nodes", ["Node", "Link", "Runs", "Standing", "Does", "Reason"], rows);
}
