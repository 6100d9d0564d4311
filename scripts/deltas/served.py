"""A web server of a directory, nginx, that counts what it sends: for tools that fetch what they lack by themselves."""

import socket
import subprocess
import tempfile
import time
from pathlib import Path


class Served:
    """Serves `root` on loopback while it is entered; `sent` is all that went over the wire, headers included."""

    def __init__(self, root: Path):
        self.root = root

    def __enter__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.work = tempfile.TemporaryDirectory(prefix="bench-delta-nginx-")
        at = Path(self.work.name)
        self.log = at / "sent"
        # One process, so that its end is the end of all; root's workers would be another user's, who may not read the images.
        (at / "nginx.conf").write_text(f"""daemon off; master_process off; pid {at}/pid; error_log {at}/error;
events {{ }}
http {{
  log_format sent $bytes_sent; access_log {self.log} sent;
  client_body_temp_path {at}; proxy_temp_path {at}; fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};
  server {{ listen 127.0.0.1:{self.port}; root {self.root}; max_ranges 10000; }}
}}
""")
        self.nginx = subprocess.Popen(["nginx", "-p", at, "-c", at / "nginx.conf", "-e", at / "error"])
        until = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except OSError:
                if self.nginx.poll() is not None or time.monotonic() > until:
                    self.__exit__()
                    raise SystemExit("bench-delta: nginx does not come up") from None
                time.sleep(0.05)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def sent(self) -> int:
        # A request is logged when its response has ended.
        self.nginx.terminate()
        self.nginx.wait()
        return sum(map(int, self.log.read_text().split()))

    def __exit__(self, *_):
        self.nginx.terminate()
        self.nginx.wait()
        self.work.cleanup()
