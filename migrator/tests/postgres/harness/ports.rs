//! Loopback ports for servers that are stopped and started again on the same port.
//!
//! A port that the kernel hands out may become the local end of any connection while its server is down. These come
//! from below that range, and a port stays reserved against other test processes as long as its `Port` lives: by the
//! name of an abstract socket, which the kernel frees with the process.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

const FIRST: u16 = 12_000;
const COUNT: u16 = 19_000;

/// A port on 127.0.0.1 that no other test process picks while this lives.
pub struct Port {
    number: u16,
    _reserved: UnixListener,
}

impl Port {
    pub fn reserve() -> Self {
        let chance = RandomState::new();
        for attempt in 0..1_000 {
            let number = FIRST + u16::try_from(chance.hash_one(attempt) % u64::from(COUNT)).unwrap();
            let name = SocketAddr::from_abstract_name(format!("foreshard-test-port-{number}")).unwrap();
            let Ok(reserved) = UnixListener::bind_addr(&name) else { continue };
            if TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Self { number, _reserved: reserved };
            }
        }
        panic!("no free port on loopback between {FIRST} and {}", FIRST + COUNT);
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}
