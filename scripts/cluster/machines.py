"""Nodes and etcd members of the demonstration: namespaces, processes, power."""

import ctypes
import http.client
import json
import os
import signal
import socket
import subprocess
import threading
import time

BEGUN = time.monotonic()
TOKEN = "demo"


def now():
    return time.monotonic() - BEGUN


class Stalls(threading.Thread):
    """Measures for how long this machine stood still: what it loses then is not the cluster's fault."""

    TICK, LATE = 0.005, 0.05

    def __init__(self):
        super().__init__(daemon=True)
        self.seconds = 0
        self.start()

    def run(self):
        while True:
            begun = time.monotonic()
            time.sleep(self.TICK)
            late = time.monotonic() - begun - self.TICK
            self.seconds += late if late > self.LATE else 0


stalls = Stalls()


def run(*words, **more):
    done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, capture_output=True, text=True, **more)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stdout}{done.stderr}")
    return done.stdout


class Log:
    """The time line: one line per event, printed at once."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, who, what):
        with self.lock:
            print(f"{now():7.1f} s  {who:<8} {what}", flush=True)


log = Log()


class Network:
    """A bridge in this namespace, and a namespace per machine on it."""

    def __init__(self):
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "none", "/run/netns")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "bridge", "type", "bridge")
        run("ip", "addr", "add", "10.77.0.254/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")

    def add(self, name, address):
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"v-{name}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "link", "set", f"v-{name}", "master", "bridge", "up")
        run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")

    def connect(self, name, connected):
        run("ip", "link", "set", f"v-{name}", "up" if connected else "down")


def inside_of(namespace):
    """Not "ip netns exec": its /sys has no control groups, which containers need."""
    return ["nsenter", f"--net=/run/netns/{namespace}", "--"]


def kill_all(namespace):
    """Like a power cut: no process gets a signal that it could handle."""
    while pids := run("ip", "netns", "pids", namespace).split():
        for pid in pids:
            try:
                os.kill(int(pid), signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(0.02)


class EtcdMember:
    def __init__(self, number, namespace, address, cluster, work):
        self.number, self.namespace, self.address, self.cluster = number, namespace, address, cluster
        self.data, self.log = work / f"etcd{number}", work / f"etcd{number}.log"
        self.process = None

    def start(self):
        peers = ",".join(f"m{number}=http://{address}:2380" for number, address in self.cluster)
        inside = inside_of(self.namespace) if self.namespace else []
        words = [*inside, "etcd", "--name", f"m{self.number}", "--data-dir", str(self.data),
                 "--listen-client-urls", f"http://{self.address}:2379", "--advertise-client-urls", f"http://{self.address}:2379",
                 "--listen-peer-urls", f"http://{self.address}:2380", "--initial-advertise-peer-urls", f"http://{self.address}:2380",
                 "--initial-cluster", peers, "--initial-cluster-state", "new", "--log-level", "error"]
        with open(self.log, "a") as output:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class Node:
    """A machine: firmware that asks qstage-select, a service, a container, and a reboot command."""

    def __init__(self, number, world):
        self.number, self.world, self.name = number, world, f"node{number}"
        self.address = f"10.77.0.{10 + number}"
        self.dir = world.work / self.name
        self.etcd = None
        self.off, self.broken, self.end = False, None, False
        self.boots, self.slot, self.service = 0, "", None
        self.downs, self.down_since = [], None
        world.network.add(self.name, self.address)
        self.failed = None
        self.answers = self.watch_software()
        self.install()
        self.thread = threading.Thread(target=self.machine, daemon=True)

    def watch_software(self):
        return Answers(self.name)

    def install(self):
        self.dir.mkdir()
        at = lambda name: json.dumps(str(self.dir / name))
        shared = lambda name: json.dumps(str(self.world.work / name))
        hook = lambda name: json.dumps([str(self.world.work / "hook"), name])
        (self.dir / "config").write_text(f"""disk = {at("disk")}
trust = {shared("signers")}
state_dir = {at("state")}
[service]
listen = "{self.address}:8000"
image_paths = [{json.dumps(str(self.world.work))}]
socket = {at("socket")}
tokens = {shared("tokens")}
reboot_command = ["touch", {at("reboot")}]
[container]
command = ["/app", "80"]
network = "host"
users = "host"
capabilities = ["CAP_NET_BIND_SERVICE"]
probe = "http://127.0.0.1:80/"
state = {json.dumps(f"{self.dir}/app:/state")}
run_dir = {at("run")}
stop_timeout = 1
deadline = 8
options = ["--resolv-conf=off", "--timezone=off"]
[cluster]
endpoints = {json.dumps(self.world.endpoints)}
node = {self.number}
address = "https://{self.address}:8000"
prefix = "/demo"
health_checks = {at("health.d")}
reboot_timeout = {self.world.reboot_timeout}
drain_command = {hook("drain")}
undrain_command = {hook("undrain")}
hook_timeout = 10
""")
        (self.dir / "run").mkdir()
        (self.dir / "health.d").mkdir()
        run(self.world.qstage, "init", self.dir / "disk", "--slot-size", "12M", "--software-size", "8M",
            "--bundle", self.world.work / "1.0.qimg", "--config", self.dir / "config")

    def machine(self):
        while not self.end:
            if self.off:
                time.sleep(0.05)
                continue
            self.slot = self.select()
            self.boots += 1
            self.start()
            if self.down_since is not None:
                self.downs.append((self.down_since, now()))
                self.down_since = None
            log(self.name, f"boots slot {self.slot}")
            reboot = self.dir / "reboot"
            while not (reboot.exists() or self.off or self.end):
                if self.service.poll() is not None:
                    # As systemd would.
                    self.serve()
                time.sleep(0.02)
            self.down_since = now()
            self.answers.planned(False)
            log(self.name, "has no power" if self.off else "reboots")
            kill_all(self.name)
            if self.etcd:
                self.etcd.stop()
            reboot.unlink(missing_ok=True)
            time.sleep(self.world.boot_time)

    def select(self):
        while True:
            shown = json.loads(run(self.world.select, "--json", "--disk", self.dir / "disk"))
            if not (self.broken and shown["reason"] == "trial"):
                return shown["slot"]
            log(self.name, f"slot {shown['slot']} does not come up")

    def cannot_start(self, release):
        """Makes a release one that does not come up here; None: all do."""
        self.broken = release

    def start(self):
        if self.etcd:
            self.etcd.start()
        (self.dir / "boot_id").write_text(f"00000000-0000-4000-8000-{self.number:04x}{self.boots:08x}\n")
        self.serve()

    def serve(self):
        script = 'mount --bind "$1" /proc/sys/kernel/random/boot_id && shift && exec "$@"'
        words = [*inside_of(self.name), "unshare", "--mount", "sh", "-c", script, "sh", self.dir / "boot_id",
                 self.world.qstage, "serve", "--booted", self.slot, "--config", self.dir / "config"]
        with open(self.dir / "log", "a") as output:
            self.service = subprocess.Popen(list(map(str, words)), stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def kill_service(self):
        self.service.kill()

    def get(self, path):
        """Response to a GET; None while the service is down."""
        try:
            status, text = self.ask("GET", path)
        except (OSError, http.client.HTTPException):
            return None
        if status != 200:
            raise AssertionError(f"{self.name}: GET {path}: {status} {text}")
        return json.loads(text)

    def ask(self, method, path, body=""):
        connection, headers = self.connection()
        connection.request(method, path, body=json.dumps(body) if body != "" else None, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    def connection(self):
        """To its Unix socket, with the headers of each request."""
        connection = http.client.HTTPConnection("x", timeout=60)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(60)
        connection.sock.connect(str(self.dir / "socket"))
        return connection, {}

    def verb(self, *words):
        return run(self.world.qstage, *words, "--config", self.dir / "config")

    def last_words(self):
        """The end of its log, for a failure."""
        text = (self.dir / "log").read_text() if (self.dir / "log").exists() else ""
        return [line for line in text.splitlines() if '"audit"' not in line][-40:]

    def close(self):
        self.end = True
        self.thread.join(timeout=10)
        kill_all(self.name)

    def client(self, *words):
        """The unchanged official client, at this node."""
        return subprocess.Popen([str(self.world.client), "--host", self.address, "--credentials-store",
                                 str(self.world.work / "credentials"), *map(str, words)], stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, "HOME": str(self.world.work)})


class Answers(threading.Thread):
    """Polls the software of a node: since when each version responds, and the longest time without a response."""

    def __init__(self, namespace):
        super().__init__(daemon=True)
        self.namespace = namespace
        self.version, self.since, self.gap, self.last = None, {}, 0.0, None
        self.start()

    def planned(self, counted):
        """Whether the next gap counts as downtime; that of a reboot does not."""
        self.last = now() if counted else None

    def fresh(self):
        self.since, self.gap = {}, 0.0

    def run(self):
        # Of this thread alone: the program listens on the loopback of its node.
        with open(f"/run/netns/{self.namespace}") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), "setns")
        while True:
            got = self.once()
            at = now()
            if got:
                if self.last is not None:
                    self.gap = max(self.gap, at - self.last)
                self.last, self.version = at, got
                self.since.setdefault(got, at)
            time.sleep(0.005)

    def once(self):
        try:
            with socket.create_connection(("127.0.0.1", 80), timeout=0.5) as stream:
                stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
                text = stream.makefile("rb").read().decode()
        except OSError:
            return None
        return text.rsplit("\r\n", 1)[-1] if text.startswith("HTTP/1.0 200") else None


class Waiting:
    """Limits of waits: how much longer than usual they are, and the nodes whose failure ends them at once."""

    factor = 1
    nodes = ()


def wait(what, holds, limit=90):
    limit *= Waiting.factor
    until = time.monotonic() + limit
    while time.monotonic() < until:
        if value := holds():
            return value
        for node in Waiting.nodes:
            if node.failed:
                raise AssertionError(f"{node.name}: {node.failed}; waited until {what}")
        time.sleep(0.1)
    raise AssertionError(f"not within {limit} s: {what}")
