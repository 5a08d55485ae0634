//! The router of the target, through which each tenant is probed.

use std::net::Ipv6Addr;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::net::{TcpStream, lookup_host};

/// How long it may take to be found, and then to take a connection.
const PATIENCE: Duration = Duration::from_secs(5);

/// `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Router(String);

impl Router {
    /// A host, an IPv4 address or an IPv6 address in brackets, and a port.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let wrong = |why: &str| {
            Err(format!(
                "{why}: give HOST:PORT, as router.example:80 or [2001:db8::1]:80"
            ))
        };
        if text.contains("//") {
            return wrong("it is an address of the web");
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|(host, _)| !host.is_empty()) else {
            return wrong("the host or the port is missing");
        };
        match host.strip_prefix('[') {
            Some(address) => {
                let address = address.strip_suffix(']').map(str::parse::<Ipv6Addr>);
                if !matches!(address, Some(Ok(_))) {
                    return wrong("there is no IPv6 address in the brackets");
                }
            }
            None if host.contains(':') => return wrong("an IPv6 address needs brackets"),
            None if !host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) => {
                return wrong("that is no name of a host");
            }
            None => {}
        }
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        if !digits || !port.parse::<u16>().is_ok_and(|port| port > 0) {
            return wrong("the port is a number from 1 to 65535");
        }
        Ok(Self(text.to_owned()))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// Refuses a router that takes no connection: the first tenant would be down when that is noticed.
    pub(crate) async fn check(&self) -> Result<()> {
        let tried = match tokio::time::timeout(PATIENCE, lookup_host(self.as_str())).await {
            Err(_) => Err(format!("looking for the host: no answer within {PATIENCE:?}")),
            Ok(Err(error)) => Err(format!("looking for the host: {error}")),
            Ok(Ok(found)) => connect(&found.collect::<Vec<_>>()).await,
        };
        if let Err(why) = tried {
            bail!(
                "--probe {}: {why}; nothing was begun: give the address of the target's router as it is reached from \
                 here, or leave --probe out",
                self.0
            );
        }
        Ok(())
    }
}

async fn connect(addresses: &[std::net::SocketAddr]) -> std::result::Result<(), String> {
    let all: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let to = format!("connecting to {}", all.join(", "));
    match tokio::time::timeout(PATIENCE, TcpStream::connect(addresses)).await {
        Err(_) => Err(format!("{to}: no answer within {PATIENCE:?}")),
        Ok(Err(error)) => Err(format!("{to}: {error}")),
        Ok(Ok(_)) => Ok(()),
    }
}
