//! Tasks that try what a sandbox must not allow, and tell how it went.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs, UdpSocket},
};

use rtask::task;

/// By what was tried: the error, or nothing where it worked.
type Attempts = BTreeMap<&'static str, Option<String>>;

fn outcome<T>(attempt: io::Result<T>) -> Option<String> {
    attempt.err().map(|error| error.to_string())
}

/// Tries to read and write files.
#[task]
fn files() -> Attempts {
    Attempts::from([
        ("list the root folder", outcome(fs::read_dir("/"))),
        ("list the current folder", outcome(fs::read_dir("."))),
        ("read the users", outcome(fs::read("/etc/passwd"))),
        ("read the own environment", outcome(fs::read("/proc/self/environ"))),
        ("write a file", outcome(File::create("/tmp/probe"))),
        ("write a file here", outcome(File::create("probe"))),
        ("make a folder", outcome(fs::create_dir("probe"))),
    ])
}

/// What it was started with: variables of the environment, and arguments.
#[task]
fn environment() -> Vec<String> {
    std::env::vars().map(|(name, value)| format!("{name}={value}")).chain(std::env::args()).collect()
}

/// Tries to reach an address at which something listens.
#[task]
fn network(address: SocketAddr) -> Attempts {
    Attempts::from([
        ("connect", outcome(TcpStream::connect(address))),
        ("listen", outcome(TcpListener::bind(("127.0.0.1", 0)))),
        (
            "send a datagram",
            outcome(UdpSocket::bind(("127.0.0.1", 0)).and_then(|socket| socket.send_to(b"x", address))),
        ),
        ("look a name up", outcome(("localhost", 80).to_socket_addrs())),
    ])
}
