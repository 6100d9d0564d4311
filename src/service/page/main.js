// The page: follows the service, and enables what the state permits.

import * as actions from "/page/actions.js";
import { Failure, events, get, token } from "/page/client.js";
import * as view from "/page/view.js";
import { at, note, text } from "/page/view.js";

// Time in milliseconds between two looks without an event: what events do not show changes slowly, except in a cluster.
const LOOK = 10_000;
const LOOK_OF_CLUSTER = 2_000;
// Time in milliseconds before the stream of events is opened again.
const AGAIN = 2_000;

let v3 = null;
let reboot = null;
let past = [];
let allHistory = false;
let writes = false;
let inCluster = false;
let busy = false;
// Whether the service refuses to answer this caller: then it is not asked again before there is another token.
let refused = false;
let stream = new AbortController();

function buttons() {
  const now = v3 ? view.state(v3) : "";
  const idle = ["IDLE", "PREPARED", "COMMITTED"].includes(now);
  const enabled = {
    verify: idle,
    prepare: idle,
    commit: now === "PREPARED",
    cancel: ["PREPARING", "PREPARED", "COMMITTED"].includes(now) || Boolean(v3?.error_info),
    "roll-back": !inCluster && (now === "IDLE" || now === "COMMITTED"),
    pause: reboot?.state === "REBOOT_IN_PROGRESS",
    resume: reboot?.state === "REBOOT_PAUSED" || reboot?.state === "REBOOT_PAUSED_DUE_TO_ERROR",
  };
  for (const [id, on] of Object.entries(enabled)) at(id).disabled = busy || !on;
  at("actions").hidden = !writes;
  // A complete reboot cannot be paused.
  at("reboot-actions").hidden = !(writes && reboot?.rolling && (enabled.pause || enabled.resume));
  at("read-only").hidden = writes;
  at("forget").hidden = !token.get();
}

function failed(error) {
  refused = error.status === 401 || error.status === 403;
  if (refused) writes = false;
  const why = error.status === 429 ? "too many failed attempts; wait a second" : error.message;
  text("link", refused ? `refused: ${why}` : why);
}

async function look() {
  const [roles, who, version, status, own] = await Promise.all([
    get("/v1/session/roles"),
    get("/v1/session/who-am-i"),
    get("/v1/version"),
    get("/v3/upgrade/status"),
    get("/v1/qstage/status"),
  ]);
  writes = roles.roles.includes("write");
  v3 = status;
  text("who", `You are ${who.name}, and may ${roles.roles.join(" and ")}.`);
  text("runs", `${version.revision_id} runs`);
  document.title = `${version.revision_id} – qstage`;
  view.status(status);
  view.detailed(own);
  const node = await get("/v1/node/state");
  inCluster = node.state !== "UNCONFIGURED";
  if (inCluster) {
    view.cluster(await get("/v1/qstage/cluster"));
    reboot = await get("/v1/shutdown/reboot/status");
    view.reboot(reboot);
  } else {
    reboot = null;
  }
  at("cluster").hidden = !inCluster;
  view.slots(await get("/v1/qstage/slots"));
  past = await get("/v1/qstage/history");
  view.history(past, allHistory);
}

let looking = null;
let lookAgain = false;

// One look at a time; requests meanwhile cause one more.
async function refresh() {
  if (looking) {
    lookAgain = true;
    return looking;
  }
  looking = (async () => {
    do {
      lookAgain = false;
      try {
        await look();
        refused = false;
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        failed(error);
      }
      buttons();
    } while (lookAgain && !refused);
  })();
  try {
    await looking;
  } finally {
    looking = null;
  }
}

function received(status) {
  const changed = !v3 || v3.state !== status.state || v3.error_info !== status.error_info;
  v3 = status;
  view.status(status);
  buttons();
  if (changed) refresh();
}

const sleep = (time) => new Promise((resolve) => { setTimeout(resolve, time); });

async function follow() {
  for (;;) {
    if (!refused) {
      try {
        await events((status) => { text("link", "live"); received(status); }, stream.signal);
        text("link", "connecting again");
      } catch (error) {
        if (error instanceof Failure) failed(error);
        else text("link", "connecting again");
      }
    }
    await sleep(AGAIN);
  }
}

async function poll() {
  for (;;) {
    await sleep(inCluster ? LOOK_OF_CLUSTER : LOOK);
    if (!refused && !document.hidden) await refresh();
  }
}

function act(id, action) {
  return async () => {
    if (busy) return;
    if ((id === "verify" || id === "prepare") && !at("actions").reportValidity()) return;
    busy = true;
    buttons();
    note("answer", "");
    at("answer").className = "";
    try {
      note("answer", await action(inCluster));
    } catch (error) {
      note("answer", error.message);
      at("answer").className = "problem";
    }
    busy = false;
    await refresh();
    if (!at(id).disabled) at(id).focus();
  };
}

function changeToken(value) {
  token.set(value);
  at("token").value = "";
  refused = false;
  stream.abort();
  stream = new AbortController();
  refresh();
}

at("verify").addEventListener("click", act("verify", actions.verify));
const prepare = act("prepare", actions.prepare);
at("actions").addEventListener("submit", (event) => { event.preventDefault(); prepare(); });
at("commit").addEventListener("click", act("commit", actions.commit));
at("cancel").addEventListener("click", act("cancel", actions.cancel));
at("roll-back").addEventListener("click", act("roll-back", actions.rollBack));
at("pause").addEventListener("click", act("pause", actions.pause));
at("resume").addEventListener("click", act("resume", actions.resume));
at("access").addEventListener("submit", (event) => { event.preventDefault(); changeToken(at("token").value.trim()); });
at("forget").addEventListener("click", () => changeToken(""));
at("all-history").addEventListener("click", () => { allHistory = true; view.history(past, allHistory); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && !refused) refresh(); });

buttons();
await refresh();
follow();
poll();
