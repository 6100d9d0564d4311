"""The cluster of the demonstration: bundles, keys, etcd, nodes; and queries of all nodes."""

import hashlib
import json
import os
import random

from machines import EtcdMember, Network, Node, TOKEN, log, now, run, wait


class World:
    # Version and content of the platform of each bundle, the first of which is installed.
    RELEASES = [("1.0", 1), ("1.1", 1), ("2.0", 2), ("3.0", 3), ("3.1", 3), ("3.2", 3), ("4.0", 4)]

    def __init__(self, arguments, repo):
        self.work, self.repo = arguments.work, repo
        self.qstage, self.select = arguments.binaries / "qstage", arguments.binaries / "qstage-select"
        self.client = arguments.client
        form = arguments.form
        self.boot_time, self.reboot_timeout, self.pause = form.boot_time, form.reboot_timeout, form.pause
        self.group = 1
        # Turns that began too early, where that can be seen.
        self.early = []
        self.keys()
        for version, platform in self.RELEASES:
            self.bundle(version, platform)
        self.network = self.make_network()
        count, members = form.nodes, form.members
        own = members == 1
        addresses = [(number, "10.77.0.254" if own else f"10.77.0.{10 + number}") for number in range(1, members + 1)]
        self.endpoints = [f"http://{address}:2379" for _, address in addresses]
        self.etcd = [EtcdMember(number, None if own else f"node{number}", address, addresses, self.work)
                     for number, address in addresses]
        self.nodes = [self.make_node(number) for number in range(1, count + 1)]
        for member in self.etcd:
            if own:
                member.start()
            else:
                # It goes down and comes up with its node.
                self.nodes[member.number - 1].etcd = member
        for node in self.nodes:
            node.thread.start()

    def make_network(self):
        return Network()

    def make_node(self, number):
        return Node(number, self)

    def keys(self):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.work / "key")
        (self.work / "signers").write_text('demo namespaces="qimg" ' + (self.work / "key.pub").read_text())
        (self.work / "tokens").write_text(f"qq write {hashlib.sha256(TOKEN.encode()).hexdigest()}\n")
        (self.work / "credentials").write_text(json.dumps({"version": 1, "bearer_token": TOKEN}))
        hook = self.work / "hook"
        hook.write_text(f'#!/bin/sh\necho "$1 $QSTAGE_NODE $QSTAGE_REASON" >> {self.work}/hooks.log\n')
        hook.chmod(0o755)

    def program(self):
        """The software of all bundles."""
        program = self.work / "service"
        if not program.exists():
            source = self.repo / "tests/harness/containers"
            run("cc", "-O1", "-static", "-o", program, source / "app.c", source / "tries.c")
        return program

    def bundle(self, version, platform):
        root, image = self.work / f"root-{version}", self.work / f"{version}.image"
        for name in ["proc", "sys", "dev", "run", "tmp", "etc", "usr", "var", "state"]:
            (root / name).mkdir(parents=True)
        run("cp", self.program(), root / "app")
        (root / "mode").write_text("good")
        (root / "version").write_text(version)
        run("mksquashfs", root, image, "-noappend", "-quiet", "-no-progress")
        flesh = self.work / f"platform{platform}"
        if not flesh.exists():
            flesh.write_bytes(random.Random(platform).randbytes(4 << 20))
        run(self.qstage, "pack", "--product", "Demo", "--level", "1", "--version", version, "--key", self.work / "key",
            "--platform", flesh, "--software", image, "-o", self.path(version))

    def path(self, version):
        return self.work / f"{version}.qimg"

    def ordered(self, version):
        """The path by which a node is ordered to install it."""
        return self.path(version)

    def drains(self):
        """The calls of drain hooks so far."""
        return [line for line in (self.work / "hooks.log").read_text().splitlines() if line.startswith("drain")]

    def node(self, number):
        return self.nodes[number - 1]

    def any(self, path):
        """Response of the first node that is up."""
        for node in self.nodes:
            if (answer := node.get(path)) is not None:
                return answer
        return None

    def state(self):
        status = self.any("/v3/upgrade/status")
        return status and status["state"].removeprefix("UPGRADE_STATE_")

    def reboot(self):
        status = self.any("/v1/shutdown/reboot/status")
        return (status or {"state": "UNKNOWN"})["state"].removeprefix("REBOOT_")

    def error(self):
        return (self.any("/v3/upgrade/status") or {}).get("error_info") or ""

    def status(self):
        return self.any("/v1/qstage/cluster") or {"nodes": [], "leader": None}

    def is_well(self):
        """All nodes see each other as good, and there is a leader."""
        for node in self.nodes:
            status = node.get("/v1/qstage/cluster")
            if not status or not status["connected"] or not status["leader"] or len(status["nodes"]) != len(self.nodes):
                return False
            if any(other["standing"] != "good" for other in status["nodes"]):
                return False
        return True

    def runs(self, version):
        versions = [(node.get("/v1/version") or {}).get("revision_id") for node in self.nodes]
        return all(one == f"Demo {version}" for one in versions)

    def serves(self, version):
        return all(node.answers.version == version for node in self.nodes)

    def join(self):
        for node in self.nodes:
            wait(f"{node.name} sees etcd", lambda node=node: (node.get("/v1/qstage/cluster") or {}).get("connected"))
            node.verb("cluster", "join")
        wait("all are members", self.is_well)
        wait("all serve", lambda: self.serves("1.0"))
        log("cluster", f"{len(self.nodes)} nodes, {len(self.etcd)} members of etcd, led by node {self.status()['leader']}")

    def most_down(self, since, until, but=()):
        """The longest time with more nodes down than a group has, in seconds, and the most that were down at once."""
        spans = []
        for node in self.nodes:
            spans += [(a, b) for a, b in node.downs if b > since and a < until]
            if node.down_since is not None:
                spans.append((node.down_since, until))
        edges = sorted({edge for span in spans for edge in span})
        down = [(b - a, sum(1 for s in spans if s[0] <= a and b <= s[1])) for a, b in zip(edges, edges[1:])]
        too_long = sum(length for length, count in down if count > self.group)
        return too_long, max((count for _, count in down), default=0)

    def close(self):
        for node in self.nodes:
            node.end = True
        for node in self.nodes:
            node.close()
        for member in self.etcd:
            member.stop()
