//! Servers of bundles: one that misbehaves as servers in the field do, real ones, and a long link.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::clock::HANG;
use super::machine::Bench;

/// One request: its number, from 1; the first byte that it asks for; and the byte after the last one, if it names that.
pub struct Asked {
    pub number: usize,
    pub at: usize,
    pub end: Option<usize>,
    pub path: String,
}

/// Behaviour of a server: its response to a request for its file.
pub type Manners = dyn Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync;

/// An address that takes no connection: its queue is full, so that the kernel drops what asks for one.
pub struct Full {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
    /// Without a slash at its end.
    pub url: String,
}

impl Full {
    pub fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let mut queue = Vec::new();
        loop {
            match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) => queue.push(stream),
                // This machine stood still: a queue of length 0 takes one connection.
                Err(_) if queue.is_empty() => {}
                Err(_) => break,
            }
            assert!(queue.len() < 50);
        }
        Self { _listener: listener, _queue: queue, url: format!("http://{address}") }
    }
}

/// A server of one file on loopback, until it is dropped. Each connection serves one request.
pub struct Server {
    pub url: String,
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub fn new(
        file: Vec<u8>,
        manners: impl Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(file, false, manners)
    }

    /// A server of whatever `manners` sends for a path, deltas too; as the proxy of a client, it is every server for it.
    pub fn of_all(
        manners: impl Fn(&Asked, &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self::start(Vec::new(), true, move |asked, _, stream| manners(asked, stream))
    }

    fn start(
        file: Vec<u8>,
        deltas: bool,
        manners: impl Fn(&Asked, &[u8], &mut TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x.qimg", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (seen, file, manners): (_, _, Arc<Manners>) =
            (Arc::clone(&asked), Arc::new(file), Arc::new(manners));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, file, manners) = (Arc::clone(&seen), Arc::clone(&file), Arc::clone(&manners));
                let serve = move |mut stream: TcpStream| -> std::io::Result<()> {
                    let mut text = Vec::new();
                    while !text.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        stream.read_exact(&mut byte)?;
                        text.push(byte[0]);
                    }
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let lower = text.to_lowercase();
                    let range =
                        lower.split_once("range: bytes=").and_then(|(_, rest)| rest.split_once("\r\n"));
                    let (at, last) = range.and_then(|(range, _)| range.split_once('-')).unwrap_or(("0", ""));
                    let (at, end) = (at.parse().unwrap(), last.parse::<usize>().ok().map(|last| last + 1));
                    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                    // It has no deltas, and no test asks how often that was said.
                    if path.ends_with(".qdelta") && !deltas {
                        return status("404 Not Found", "", &mut stream);
                    }
                    let number = {
                        let mut seen = seen.lock().unwrap();
                        seen.push(text);
                        seen.len()
                    };
                    manners(&Asked { number, at, end, path }, &file, &mut stream)
                };
                std::thread::spawn(move || stream.and_then(serve));
            }
        });
        Self { url, asked }
    }

    pub fn requests(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        self.url.trim_start_matches("http://").trim_end_matches("/x.qimg")
    }
}

/// The header of a correct response with a range; it closes the connection afterwards.
pub fn partial(asked: &Asked, file: &[u8], more: &str) -> String {
    let (at, len) = (asked.at, file.len());
    let end = end(asked, file);
    format!(
        "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {at}-{}/{len}\r\nContent-Length: {}\r\nConnection: close\r\n{more}\r\n",
        end - 1,
        end - at
    )
}

/// The byte after the last one that was requested.
pub fn end(asked: &Asked, file: &[u8]) -> usize {
    asked.end.map_or(file.len(), |end| end.min(file.len()))
}

pub fn ranges(asked: &Asked, file: &[u8], stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(partial(asked, file, "ETag: \"1\"\r\n").as_bytes())?;
    stream.write_all(&file[asked.at..end(asked, file)])
}

pub fn whole(file: &[u8], stream: &mut TcpStream, more: &str) -> std::io::Result<()> {
    let len = file.len();
    stream.write_all(
        format!("HTTP/1.1 200 OK\r\nContent-Length: {len}\r\nConnection: close\r\n{more}\r\n").as_bytes(),
    )?;
    stream.write_all(file)
}

/// Sends a response without a body.
pub fn status(status: &str, more: &str, stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(
        format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n{more}\r\n").as_bytes(),
    )
}

/// A server from Debian with its own configuration, in a directory of the bench; the drop ends it.
pub struct Daemon {
    child: Child,
    port: u16,
    pub dir: PathBuf,
}

impl Daemon {
    /// Starts a program in the foreground and waits until it answers at `port`.
    fn start(dir: PathBuf, command: &mut Command, port: u16) -> Self {
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let log = std::fs::File::create(dir.join("out.log")).unwrap();
        command.env("PATH", path).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut daemon = Self { child: command.spawn().unwrap(), port, dir };
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = daemon.child.try_wait().unwrap();
            if ended.is_some() || begun.elapsed() > HANG {
                let log = std::fs::read_to_string(daemon.dir.join("out.log")).unwrap();
                panic!("{command:?} {ended:?}: {log}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn dir(bench: &Bench, name: &str) -> PathBuf {
        let dir = bench.path(name);
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// nginx, which serves the files of the bench at `port`; `server` is more of its `server` section.
    pub fn nginx(bench: &Bench, port: u16, listen: &str, server: &str) -> Self {
        let dir = Self::dir(bench, "nginx");
        let at = dir.to_str().unwrap();
        let user = if nix::unistd::geteuid().is_root() { "user root;" } else { "" };
        // Bytes in its send buffer are logged but not transferred: a small buffer makes its log accurate.
        let text = format!(
            "{user} daemon off; pid {at}/pid; error_log {at}/error.log; worker_processes 1;\n\
             events {{ worker_connections 256; }}\n\
             http {{ limit_conn_zone $binary_remote_addr zone=one:1m; log_format short '$status $body_bytes_sent $http_range $connection $scheme';\n\
             access_log {at}/access.log short; sendfile on; client_body_temp_path {at}; proxy_temp_path {at};\n\
             fastcgi_temp_path {at}; uwsgi_temp_path {at}; scgi_temp_path {at};\n\
             server {{ listen 127.0.0.1:{port} {listen} sndbuf=64k; root {root}; {server} }} }}\n",
            root = bench.path("").to_str().unwrap(),
        );
        std::fs::write(dir.join("nginx.conf"), text).unwrap();
        let mut command = Command::new("nginx");
        command.args(["-p", at, "-e", &format!("{at}/error.log"), "-c", &format!("{at}/nginx.conf")]);
        Self::start(dir, &mut command, port)
    }

    /// lighttpd with the files of the bench.
    pub fn lighttpd(bench: &Bench, port: u16) -> Self {
        let dir = Self::dir(bench, "lighttpd");
        let text = format!(
            "server.document-root = \"{}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\nserver.modules = (\"mod_accesslog\")\n\
             accesslog.filename = \"{}/access.log\"\naccesslog.format = \"%s %b %{{Range}}i\"\n",
            bench.path("").to_str().unwrap(),
            dir.to_str().unwrap()
        );
        std::fs::write(dir.join("conf"), text).unwrap();
        let mut command = Command::new("lighttpd");
        command.args(["-D", "-f"]).arg(dir.join("conf"));
        Self::start(dir, &mut command, port)
    }

    /// squid, a proxy for all.
    pub fn squid(bench: &Bench, port: u16) -> Self {
        let dir = Self::dir(bench, "squid");
        let at = dir.to_str().unwrap();
        let text = format!(
            "http_port 127.0.0.1:{port}\nhttp_access allow all\ncache deny all\npid_filename {at}/pid\n\
             logformat short %rm %ru %>Hs\naccess_log stdio:{at}/access.log short\ncache_log {at}/cache.log\n\
             coredump_dir {at}\nshutdown_lifetime 0 seconds\nvisible_hostname test\npinger_enable off\n\
             netdb_filename none\nmemory_pools off\ncache_mem 8 MB\n"
        );
        std::fs::write(dir.join("conf"), text).unwrap();
        open_to_all(&dir);
        let mut command = Command::new("squid");
        command.args(["-N", "-f"]).arg(dir.join("conf"));
        Self::start(dir, &mut command, port)
    }

    /// The lines of its access log, once there are `least`; they are written after the responses.
    pub fn log(&self, least: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
            let lines: Vec<String> = text.lines().map(str::to_owned).collect();
            if lines.len() >= least || begun.elapsed() > HANG {
                return lines;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the server has closed each of its connections; before that it has logged their requests. Its clients have ended.
    fn is_idle(&self) {
        let begun = Instant::now();
        let local = format!(":{:04X}", self.port);
        // ESTABLISHED or CLOSE_WAIT in proc_net_tcp(5): a process has it open.
        let is_open = |line: &str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[1].ends_with(&local) && ["01", "08"].contains(&fields[3])
        };
        while std::fs::read_to_string("/proc/net/tcp").unwrap().lines().any(is_open) {
            if begun.elapsed() > HANG {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Truncates the log, to whose end nginx appends.
    pub fn forget(&self) {
        self.is_idle();
        std::fs::File::options().write(true).open(self.dir.join("access.log")).unwrap().set_len(0).unwrap();
    }

    /// Number of body bytes that nginx sent, by its log.
    pub fn sent(&self) -> u64 {
        self.is_idle();
        self.log(1).iter().map(|line| line.split(' ').nth(1).unwrap().parse::<u64>().unwrap()).sum()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().try_into().unwrap());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let begun = Instant::now();
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            if begun.elapsed() > Duration::from_secs(10) {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Opens a directory to servers that drop their rights.
fn open_to_all(dir: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
    for above in dir.ancestors().skip(1) {
        let Ok(meta) = std::fs::metadata(above) else { break };
        let mode = meta.permissions().mode();
        if mode & 0o001 == 0 {
            let _ = std::fs::set_permissions(above, std::fs::Permissions::from_mode(mode | 0o011));
        }
    }
}

/// A long link to a server: bytes arrive `delay` later each way, at a limited rate, and are counted. Each connection breaks
/// after `cut` bytes.
pub struct Link {
    pub host: String,
    pub came: Arc<AtomicU64>,
}

/// Properties of a link.
#[derive(Clone, Copy)]
pub struct Manner {
    /// Delay one way.
    pub delay: Duration,
    /// Rate of one connection towards the client in bytes per second; `None`: no limit.
    pub rate: Option<u64>,
    pub cut: Option<u64>,
}

impl Link {
    pub fn new(to: &str, manner: Manner) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (to, came) = (to.to_owned(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&came);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (to, count) = (to.clone(), Arc::clone(&count));
                std::thread::spawn(move || -> std::io::Result<()> {
                    let client = client?;
                    // The handshake takes a round trip as well.
                    std::thread::sleep(manner.delay * 2);
                    let server = TcpStream::connect(&to)?;
                    client.set_nodelay(true)?;
                    server.set_nodelay(true)?;
                    let up = Manner { rate: None, cut: None, ..manner };
                    carry(client.try_clone()?, server.try_clone()?, up, Arc::new(AtomicU64::new(0)));
                    carry(server, client, manner, count);
                    Ok(())
                });
            }
        });
        Self { host, came }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.host)
    }
}

/// Carries one direction of a connection by two threads: one reads, the other writes after the delay.
fn carry(mut from: TcpStream, mut to: TcpStream, manner: Manner, count: Arc<AtomicU64>) {
    // As much as a path of 100 ms and 1 Gbit/s holds.
    let (sender, receiver) = mpsc::sync_channel::<(Instant, Vec<u8>)>(256);
    std::thread::spawn(move || {
        let mut due = Instant::now();
        loop {
            let mut bytes = vec![0; 64 << 10];
            let Ok(len) = from.read(&mut bytes) else { return };
            if len == 0 {
                return;
            }
            bytes.truncate(len);
            due = due.max(Instant::now());
            if let Some(rate) = manner.rate {
                due += Duration::from_secs_f64(len as f64 / rate as f64);
            }
            if sender.send((due + manner.delay, bytes)).is_err() {
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let mut left = manner.cut.unwrap_or(u64::MAX);
        while let Ok((due, mut bytes)) = receiver.recv() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len()));
            left -= bytes.len() as u64;
            count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            if to.write_all(&bytes).is_err() || left == 0 {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}
