"""Scenes: events in the cluster, and the conditions that must hold then."""

import threading
import time

from machines import Waiting, log, now, stalls, wait

MEASURED = []


def measured(what, figure):
    MEASURED.append((what, figure))
    log("measured", f"{what}: {figure}")


def check(holds, what):
    if not holds:
        raise AssertionError(what)


class Watch(threading.Thread):
    """The states that the status shows, each once, on the time line; its progress must never fall."""

    def __init__(self, world):
        super().__init__(daemon=True)
        self.world, self.seen, self.end, self.fell = world, [], False, False
        self.start()

    def run(self):
        progress = 0
        while not self.end:
            status = self.world.any("/v3/upgrade/status")
            if status:
                state = status["state"].removeprefix("UPGRADE_STATE_")
                if not self.seen or self.seen[-1] != state:
                    self.seen.append(state)
                    log("upgrade", state + (f": {status['error_info']}" if status["error_info"] else ""))
                if state == "PREPARING":
                    self.fell |= (status["progress"] or 0) < progress
                    progress = status["progress"] or 0
            time.sleep(0.2)

    def stop(self):
        """The states, when it is idle again."""
        wait("the status shows the end", lambda: self.seen[-1] == "IDLE")
        self.end = True
        self.join()
        check(not self.fell, "progress fell")
        return self.seen


def client(world, number, *words):
    """Runs the official client, which must succeed."""
    done = world.node(number).client(*words)
    said, _ = done.communicate(timeout=180 * Waiting.factor)
    check(done.returncode == 0 and "rror" not in said, f"qq {' '.join(map(str, words))}: {said}")
    last = (said.strip().splitlines() or ["done"])[-1]
    log("qq", " ".join(map(str, words)).replace(f"{world.work}/", "") + f": {last}")


class Order(threading.Thread):
    """The official client, which stays until the order is carried out or stops."""

    def __init__(self, world, number, *words):
        super().__init__(daemon=True)
        self.arguments, self.failure = (world, number, *words), None
        self.start()

    def run(self):
        try:
            client(*self.arguments)
        except Exception as failure:
            self.failure = failure

    def done(self):
        """Waits for its end; fails if it did."""
        self.join()
        if self.failure:
            raise self.failure


def admitted(world):
    wait("the cluster is well", lambda: world.is_well())
    wait("an upgrade is admitted", lambda: (world.any("/v2/upgrade/blocked") or {}).get("is_blocked") is False)


def goes_on(world):
    """Fails at once when a reboot has stopped, since nothing would follow."""
    if world.reboot() == "PAUSED_DUE_TO_ERROR":
        raise AssertionError(f"the reboot stopped: {world.any('/v1/shutdown/reboot/status')['error_message']}")
    return True


def through(world, version, limit=150):
    wait(f"all run {version}", lambda: goes_on(world) and world.runs(version) and world.state() == "IDLE", limit)
    wait(f"all serve {version}", lambda: world.serves(version))


def rolled(world, since, name):
    too_long, most = world.most_down(since, now())
    measured(f"{name}: longest time with more than {world.group} down", f"{too_long:.1f} s")
    check(not world.early, "; ".join(world.early))
    check(too_long == 0 and most <= world.group, f"{most} nodes were down at once")


def complete(world):
    """an upgrade by complete reboot, prepared and committed one by one: all nodes at once, one verdict"""
    admitted(world)
    watch, begun = Watch(world), now()
    client(world, 1, "upgrade_cluster", "prepare", "--path", world.ordered("2.0"))
    check(world.state() == "PREPARED", "the client leaves when all are prepared")
    client(world, world.nodes[-1].number, "upgrade_cluster", "commit")
    through(world, "2.0")
    check(watch.stop()[-4:] == ["COMMITTING", "COMMITTED", "REBOOTING", "IDLE"], watch.seen)
    measured("complete reboot, from the order to the end", f"{now() - begun:.1f} s")


def rolling(world):
    """an upgrade by rolling reboot, paused and resumed by the official client"""
    admitted(world)
    begun = now()
    order = Order(world, 1, "upgrade_cluster", "--rolling", "--path", world.ordered("3.0"))
    wait("it rolls", lambda: world.reboot() == "IN_PROGRESS")
    last = world.nodes[-1].number
    client(world, last, "reboot_pause")
    wait("the group has ended", lambda: goes_on(world) and world.reboot() == "PAUSED" and not any(
        "reboot" in node["doing"] and "has" not in node["doing"] or node["doing"] == "boots" or "proves" in node["doing"]
        for node in world.status()["nodes"]))
    boots = [node.boots for node in world.nodes]
    time.sleep(world.pause)
    check([node.boots for node in world.nodes] == boots, "a node reboots while it is paused")
    log("cluster", "is paused, and no node goes")
    client(world, last, "reboot_resume")
    order.done()
    through(world, "3.0")
    rolled(world, begun, "rolling reboot")
    check(len(world.drains()) == len(world.nodes), "a node was not drained")


def instant(world):
    """an upgrade of the software alone: all nodes swap together"""
    admitted(world)
    for node in world.nodes:
        node.answers.fresh()
    boots = [node.boots for node in world.nodes]
    begun, stalled = now(), stalls.seconds
    client(world, 2, "upgrade_cluster", "--path", world.ordered("3.1"))
    through(world, "3.1")
    at = [node.answers.since["3.1"] for node in world.nodes]
    measured("instant upgrade: from the first swap to the last", f"{max(at) - min(at):.3f} s")
    for node in world.nodes:
        measured(f"instant upgrade: downtime of the container of {node.name}", f"{node.answers.gap * 1000:.0f} ms")
    check(max(at) - min(at) < 1 + stalls.seconds - stalled, at)
    check([node.boots for node in world.nodes] == boots, "an instant upgrade needs no reboot")
    measured("instant upgrade: from the order to the end", f"{now() - begun:.1f} s")


def instant_back(world):
    """an upgrade of the software that one node does not take: all go back"""
    admitted(world)
    sick = world.nodes[-1]
    checks = sick.dir / "health.d"
    (checks / "10-app").write_text("#!/bin/sh\necho the new one is slow >&2\nexit 1\n")
    (checks / "10-app").chmod(0o755)
    status, text = world.node(1).ask("POST", "/v2/upgrade/prepare", {
        "image_path": str(world.ordered("3.2")), "auto_commit": False, "do_rolling_reboot": False, "num_nodes_to_reboot": None})
    check(status == 202, text)
    wait("it is prepared", lambda: world.state() == "PREPARED")
    begun, stalled = now(), stalls.seconds
    check(world.node(1).ask("POST", "/v2/upgrade/commit")[0] == 202, "the commit is accepted")
    wait("all went back", lambda: world.state() == "PREPARED" and world.error(), 40)
    measured("instant upgrade that fails: from the commit to the old one everywhere", f"{now() - begun:.1f} s")
    check(now() - begun < 30 + stalls.seconds - stalled, "it took too long")
    check(world.error().startswith(f"node {sick.number}: "), world.error())
    wait("all serve 3.1", lambda: world.serves("3.1"))
    (checks / "10-app").unlink()
    check(world.node(1).ask("POST", "/v1/qstage/cancel", {})[0] == 200, "the cancel is accepted")
    wait("it is idle", lambda: world.state() == "IDLE")


def falls_back(world):
    """a rolling upgrade in which a node falls back: it stops there; seen to and resumed"""
    admitted(world)
    leader = world.status()["leader"]
    stops_at(world, leader, next(node for node in reversed(world.nodes) if node.number != leader))


def the_first_falls_back(world):
    """a rolling upgrade whose first node does not come up with it: no other node follows; seen to and resumed"""
    admitted(world)
    leader = world.status()["leader"]
    first = next(node for node in world.nodes if node.number != leader)
    others = [(node, node.boots) for node in world.nodes if node is not first]

    def stopped():
        for node, boots in others:
            check(node.boots == boots and node.get("/v1/version")["revision_id"] == "Demo 3.0", f"{node.name} followed")
        log("cluster", "is stopped, and the others run 3.0")

    stops_at(world, leader, first, stopped)


def stops_at(world, leader, bad, stopped=lambda: None):
    """Orders 4.0, which does not come up on one node; the conditions while it is stopped; goes on when it is mended."""
    begun = now()
    bad.cannot_start("4.0")
    order = Order(world, leader, "upgrade_cluster", "--rolling", "--path", world.ordered("4.0"))
    wait("it stops", lambda: world.reboot() == "PAUSED_DUE_TO_ERROR", 150)
    order.done()
    log("cluster", world.error())
    check(f"node {bad.number} fell back" in world.error(), world.error())
    boots = [node.boots for node in world.nodes]
    time.sleep(world.pause)
    check([node.boots for node in world.nodes] == boots, "a node goes on after a fallback")
    stopped()
    bad.cannot_start(None)
    client(world, 1, "reboot_resume")
    wait("it goes on", lambda: world.reboot() != "PAUSED_DUE_TO_ERROR")
    through(world, "4.0")
    rolled(world, begun, "rolling reboot with a fallback")


def dies(world):
    """a rolling reboot in which a node dies: its name after the time limit; taken back by hand, and resumed"""
    admitted(world)
    begun = now()
    before = [node.boots for node in world.nodes]
    client(world, 1, "reboot_start", "--rolling", "--force")
    gone = wait("the first goes", lambda: next((node for node in world.nodes if node.down_since is not None), None))
    gone.off = True
    wait("it stops", lambda: world.reboot() == "PAUSED_DUE_TO_ERROR", world.reboot_timeout + 60)
    shown = world.any("/v1/shutdown/reboot/status")["error_message"]
    log("cluster", shown)
    check(f"node {gone.number}" in shown, shown)
    gone.off = False
    wait("it is back, and all are well", world.is_well)
    other = next(node for node in world.nodes if node is not gone)
    other.verb("cluster", "take-back", gone.number)
    other.verb("cluster", "resume")
    wait("all are through", lambda: world.reboot() == "IDLE", 150)
    check(all(node.boots > one for node, one in zip(world.nodes, before)), "a node was left out")
    rolled(world, begun, "rolling reboot with a node that dies")


def without_etcd(world):
    """etcd stopped and started: every answer comes from what was seen, nothing moves, then all goes on"""
    admitted(world)
    for member in world.etcd:
        member.stop()
    wait("it is noticed", lambda: all((node.get("/v1/qstage/cluster") or {}).get("connected") is False for node in world.nodes))
    status, text = world.node(1).ask("POST", "/v2/upgrade/prepare", {
        "image_path": str(world.ordered("2.0")), "auto_commit": False, "do_rolling_reboot": False, "num_nodes_to_reboot": None})
    check(status == 503, f"{status} {text}")
    check(all(node.get("/v3/upgrade/status")["state"] == "UPGRADE_STATE_IDLE" for node in world.nodes), "the status answers")
    check(world.serves(world.nodes[0].answers.version), "the software serves")
    log("cluster", "without etcd: a prepare is refused (503), every status answers, the software serves")
    begun = now()
    for member in world.etcd:
        member.start()
    wait("the cluster is well again", world.is_well)
    measured("from the start of etcd until all nodes see each other", f"{now() - begun:.1f} s")


def leader_killed(world):
    """the leader killed in the middle of a rolling reboot: another one leads on"""
    admitted(world)
    begun = now()
    leader = world.status()["leader"]
    client(world, leader, "reboot_start", "--rolling", "--force")
    wait("a node is down", lambda: any(node.down_since is not None for node in world.nodes))
    leader = world.status()["leader"]
    log(f"node{leader}", "its service is killed: it leads")
    world.node(leader).kill_service()
    wait("all are through, or it stopped", lambda: world.reboot() in ("IDLE", "PAUSED_DUE_TO_ERROR"), 150)
    if world.reboot() == "PAUSED_DUE_TO_ERROR":
        # Its lease ended before its manager had started it again: with one node down that is one too many, and it says so.
        log("cluster", world.any("/v1/shutdown/reboot/status")["error_message"])
        wait("all are well", world.is_well)
        client(world, 1, "reboot_resume")
        wait("all are through", lambda: world.reboot() == "IDLE", 150)
    rolled(world, begun, "rolling reboot whose leader is killed")


def cut_off(world):
    """a rolling reboot in which another node loses the network: no node goes until it is back"""
    admitted(world)
    begun, leader = now(), world.status()["leader"]
    # One without a member of etcd.
    lonely = next(node for node in reversed(world.nodes) if not node.etcd and node.number != leader)
    before = [node.boots for node in world.nodes]
    client(world, 1, "reboot_start", "--rolling", "--force")
    wait("a node is down", lambda: any(node.down_since is not None for node in world.nodes))
    world.network.connect(lonely.name, False)
    log(lonely.name, "is cut off")
    # A change of etcd's leader prolongs its lease. A node that boots knows nothing of the others before etcd answers.
    wait("the others notice it", lambda: world.status().get("connected") and world.status()["leader"] and any(
        node["id"] == lonely.number and node["standing"] == "away" for node in world.status()["nodes"]), 60)
    # Longer than the turn of a node that has begun.
    time.sleep(8)
    boots = [node.boots for node in world.nodes]
    time.sleep(5)
    check([node.boots for node in world.nodes] == boots, "a node reboots while another one is cut off")
    shown = world.any("/v1/shutdown/reboot/status")
    why = shown["error_message"] or world.status()["waits_for"]
    check(f"node {lonely.number}" in why, why)
    log("cluster", f"{shown['state'].removeprefix('REBOOT_')}: {why}")
    check(lonely.get("/v1/qstage/cluster")["connected"] is False, "it knows that it is cut off")
    check(lonely.answers.version == world.nodes[0].answers.version, "its software serves")
    world.network.connect(lonely.name, True)
    log(lonely.name, "is connected")
    wait("all are well", world.is_well)
    if world.reboot() == "PAUSED_DUE_TO_ERROR":
        client(world, 1, "reboot_resume")
    wait("all are through", lambda: world.reboot() == "IDLE", 150)
    check(all(node.boots == one + 1 for node, one in zip(world.nodes, before)), "each node rebooted once")
    rolled(world, begun, "rolling reboot with a node that is cut off")


def turns(world):
    """how long the turn of each virtual machine took, and that each boot was one"""
    for turn, node in sorted(((turn, node) for node in world.nodes for turn in node.turns), key=lambda pair: pair[0]["down"]):
        check("drain" in turn, f"{node.name} rebooted without its turn")
        fell = "" if turn["runs"] == turn["release"] else f", falls back to {turn['runs']}"
        measured(f"turn of {node.name}: release {turn['release']}{fell}",
                 f"{turn['good'] - turn['drain']:.1f} s until good, {turn['serves'] - turn['down']:.1f} s of it down")
    for node in world.nodes:
        check(len(node.boot_ids) == node.boots, f"{node.name}: {node.boots} boots, and {len(node.boot_ids)} identifiers of a boot")


QUICK = [complete, rolling, instant]
FULL = [complete, rolling, instant, instant_back, falls_back, dies, cut_off, without_etcd, leader_killed]
# Without software; real boots take their time.
GUESTS = [rolling, the_first_falls_back, turns]
