//! Addresses to listen on, as flags name them, and the listeners there.
//!
//! Enters: what a flag says. Leaves: a listener, on loopback unless a host is named. Refused: what is no address, or not this host's, with
//! what to do about it.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs as _};

use tokio::net::{TcpListener, TcpSocket};

use crate::exit::{Code, Failure};

/// Clients that the kernel holds until they are accepted. Linux takes no more by default (`net.core.somaxconn`).
const BACKLOG: u32 = 4096;

/// What a user knows a listener by.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    /// The flag that names the address.
    pub flag: &'static str,
    /// What is served: `metrics`.
    pub what: &'static str,
    /// A port that examples name.
    pub port: u16,
}

/// `9464`, `:9464`, `host:9464`, `[::1]:9464`.
pub(super) fn parse(address: &str, known: Known) -> Result<Vec<SocketAddr>, Failure> {
    let Known { flag, port: example, .. } = known;
    let bad = |why: String| {
        Failure::new(
            Code::Usage,
            format!("{flag} {address:?} is no address to listen on: {why}"),
            format!("give a port ({example}) or host:port (127.0.0.1:{example}, 0.0.0.0:{example}, [::1]:{example})"),
        )
    };
    let port_only = address.strip_prefix(':').unwrap_or(address);
    if let Ok(port) = port_only.parse::<u16>() {
        return Ok(vec![(Ipv4Addr::LOCALHOST, port).into()]);
    }
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(|error| bad(error.to_string()))?.collect();
    if addresses.is_empty() { Err(bad("the host has no address".to_owned())) } else { Ok(addresses) }
}

/// Inside a runtime.
pub(super) fn bind(address: &str, known: Known) -> Result<TcpListener, Failure> {
    let mut last = None;
    for candidate in parse(address, known)? {
        match listen(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => last = Some(error),
        }
    }
    let error = last.unwrap_or_else(|| std::io::ErrorKind::AddrNotAvailable.into());
    let fix = match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "another process listens there (perhaps another inferspan); choose another port, or 0 for a free one"
        }
        std::io::ErrorKind::PermissionDenied => "ports below 1024 need CAP_NET_BIND_SERVICE; choose another port",
        _ => "choose an address of this host",
    };
    Err(Failure::new(Code::Finding, format!("cannot listen for {} on {address}: {error}", known.what), fix))
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known { flag: "--metrics", what: "metrics", port: 9464 };

    #[test]
    fn a_port_alone_is_loopback() {
        let parse = |address| parse(address, KNOWN).unwrap();
        assert_eq!(parse("9464"), ["127.0.0.1:9464".parse().unwrap()]);
        assert_eq!(parse(":9464"), ["127.0.0.1:9464".parse().unwrap()]);
        assert_eq!(parse("[::1]:9464"), ["[::1]:9464".parse().unwrap()]);
        assert_eq!(parse("0.0.0.0:9464"), ["0.0.0.0:9464".parse().unwrap()]);
    }

    #[test]
    fn what_is_no_address_is_a_usage_error() {
        for address in ["", "port", "70000", "127.0.0.1", "host:"] {
            assert_eq!(parse(address, KNOWN).unwrap_err().code, Code::Usage, "{address}");
        }
    }

    #[test]
    fn an_address_in_use_says_so_and_what_to_do() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let _context = runtime.enter();
        let failure = bind(&taken.local_addr().unwrap().to_string(), KNOWN).unwrap_err();
        assert!(failure.what.contains("in use"), "{failure}");
        assert!(failure.fix.contains("another port"), "{failure}");
    }
}
