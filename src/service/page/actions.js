// What a caller with a token for writing can do. Every change is asked for in a dialog first.

import { get, post } from "/page/client.js";
import { ask } from "/page/dialog.js";
import { TYPES, at, rebooted, state } from "/page/view.js";

const path = () => at("path").value.trim();

function query() {
  const rules = [["override", "override_compatibility_check"], ["retry", "retry"], ["replace", "replace"]];
  const set = rules.filter(([id]) => at(id).checked).map(([, name]) => `${name}=true`);
  return set.length ? `?${set.join("&")}` : "";
}

const running = async () => (await get("/v1/version")).revision_id;
const type = (word) => TYPES[word] ?? word;

// The plan of the bundle that is named; changes nothing.
async function plan() {
  const found = await post(`/v1/qstage/plan${query()}`, { image_path: path() });
  const obstacles = found.blocked_by.map((obstacle) => `${obstacle.message} (${obstacle.code})`);
  return { found, obstacles, release: `${found.product} ${found.target_version}` };
}

export async function verify() {
  const { found, obstacles, release } = await plan();
  const refused = obstacles.length ? ` It cannot be prepared now: ${obstacles.join("; ")}` : "";
  return `The signature is valid: ${release}, ${type(found.upgrade_type)}. ${await running()} runs now.${refused}`;
}

export async function prepare(cluster) {
  const { found, obstacles, release } = await plan();
  const payloads = found.payloads.map((payload) => {
    const target = payload.target ? `to ${payload.target}` : "installed already";
    return `${payload.name} ${payload.version} (${target})`;
  });
  const answer = await ask({
    title: "Prepare",
    facts: [
      ["Runs now", await running()],
      ["New", release],
      ["Type", type(found.upgrade_type)],
      ["Payloads", payloads.join(", ")],
      ["Bundle", path()],
    ],
    explanation: found.already_prepared
      ? "This bundle is already prepared."
      : "Writes the bundle into the slots that do not run. The running system is not disturbed.",
    obstacles,
    yes: "Prepare",
    mode: cluster && found.upgrade_type === "SOFTWARE_AND_PLATFORM"
      ? { rolling: false, nodes: null, possible: true }
      : null,
  });
  if (!answer) return null;
  await post(`/v2/upgrade/prepare${query()}`, {
    image_path: path(),
    auto_commit: false,
    do_rolling_reboot: answer.rolling,
    num_nodes_to_reboot: answer.nodes,
  });
  return `Preparing ${release}.`;
}

// Waits until the status shows these settings: nothing is committed that was not agreed to.
async function settled(rolling, nodes) {
  for (let tries = 0; tries < 20; tries += 1) {
    const { settings } = await get("/v3/upgrade/status");
    if (settings?.do_rolling_reboot === rolling && settings?.num_nodes_to_reboot === nodes) return;
    await new Promise((resolve) => { setTimeout(resolve, 250); });
  }
  throw new Error("How the nodes reboot could not be changed; nothing was committed.");
}

export async function commit(cluster) {
  const { settings } = await get("/v3/upgrade/status");
  const platform = settings.upgrade_type === "SOFTWARE_AND_PLATFORM";
  const answer = await ask({
    title: "Commit",
    facts: [
      ["Runs now", await running()],
      ["New", settings.target_version],
      ["Type", type(settings.upgrade_type)],
      ["Bundle", settings.install_path],
    ],
    explanation: platform
      ? `Selects the new platform. It starts with the reboot, on trial: unless it is marked good, the machine falls back.${
        cluster ? "" : " A rolling reboot needs a cluster."}`
      : "Stops the running software and starts the new one. If that is not healthy, the former one comes back.",
    yes: "Commit",
    mode: platform
      ? { rolling: settings.do_rolling_reboot, nodes: settings.num_nodes_to_reboot, possible: cluster }
      : null,
  });
  if (!answer) return null;
  const nodes = answer.rolling ? answer.nodes : null;
  // The same bundle again takes the new settings; it stays prepared.
  if (platform && (answer.rolling !== settings.do_rolling_reboot || nodes !== settings.num_nodes_to_reboot)) {
    await post("/v2/upgrade/prepare", {
      image_path: settings.install_path,
      auto_commit: false,
      do_rolling_reboot: answer.rolling,
      num_nodes_to_reboot: nodes,
    });
    await settled(answer.rolling, nodes);
  }
  await post("/v2/upgrade/commit");
  return `Committing ${settings.target_version}.`;
}

const CANCELS = {
  IDLE: "Clears the error that is shown.",
  PREPARING: "Stops the prepare and discards what it has written.",
  PREPARED: "Discards the prepared bundle.",
  COMMITTED: "Undoes the commit, as long as the new release has not been started.",
};

export async function cancel() {
  const status = await get("/v3/upgrade/status");
  const { settings } = status;
  const facts = [["Runs now", await running()]];
  if (settings?.target_version) {
    facts.push(["New", settings.target_version], ["Type", type(settings.upgrade_type)]);
  }
  const explanation = CANCELS[state(status)] ?? "";
  if (!(await ask({ title: "Cancel the upgrade", facts, explanation, yes: "Cancel the upgrade" }))) return null;
  const report = await post("/v1/qstage/cancel");
  return report?.done ?? "Cancelled.";
}

// The release that the slots would have which the dry run names.
export async function rollBack() {
  const planned = await post("/v1/qstage/roll-back?dry_run=true");
  const { slots } = await get("/v1/qstage/slots");
  const back = slots.filter((slot) => planned.done.includes(`${slot.group}_${slot.slot}`));
  const names = back.map((slot) => `${slot.group} ${slot.slot}: ${slot.product} ${slot.version}`);
  const platform = back.some((slot) => slot.group === "platform");
  const answer = await ask({
    title: "Roll back",
    facts: [
      ["Runs now", await running()],
      ["New", names.join(", ")],
      ["Type", type(platform ? "SOFTWARE_AND_PLATFORM" : "SOFTWARE_ONLY")],
    ],
    explanation: "Selects the other slot, which is good. What is left on trial is marked bad.",
    yes: "Roll back",
  });
  if (!answer) return null;
  const report = await post("/v1/qstage/roll-back");
  const next = report.next_step === "nothing" ? "" : ` Next step: ${report.next_step}.`;
  return `${report.done}.${next}`;
}

// Asks before a rolling reboot is paused or resumed: what runs, what the nodes reboot into, and how many have.
async function askOfReboot(title, explanation) {
  const [{ settings }, reboot] = await Promise.all([get("/v3/upgrade/status"), get("/v1/shutdown/reboot/status")]);
  const facts = [["Runs now", await running()]];
  if (settings?.target_version) {
    facts.push(["New", settings.target_version], ["Type", type(settings.upgrade_type)]);
  }
  facts.push(["Rebooted", rebooted(reboot)]);
  return ask({ title, facts, explanation: explanation(reboot), yes: title });
}

export async function pause() {
  const explanation = () => "The nodes whose turn it is reboot to the end. No other node goes down until the reboot is resumed.";
  if (!(await askOfReboot("Pause the reboot", explanation))) return null;
  await post("/v1/shutdown/reboot/pause");
  return "Paused after the nodes whose turn it is.";
}

export async function resume() {
  const explanation = ({ error_message: error }) => (error
    ? `The reboot is paused, because ${error}. The node that failed is tried again, then the others.`
    : "The other nodes reboot in turns.");
  if (!(await askOfReboot("Resume the reboot", explanation))) return null;
  await post("/v1/shutdown/reboot/resume");
  return "The reboot goes on.";
}
