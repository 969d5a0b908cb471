//! Requests to addresses that users choose, such as webhooks: they may leave for the public Internet, and for nothing
//! else unless the operator allows it.
//!
//! Invariant: what is checked is what is connected to. Literal addresses are checked in the parsed URL, in whatever
//! spelling (`0x7f.1`, `2130706433`); names are checked by the resolver whose answer the connection is made to, so a
//! second answer for the same name (DNS rebinding) gains nothing. Redirects are not followed, and no proxy is used,
//! because a proxy would resolve names by itself.

mod address;

pub use address::{Network, is_public};

use crate::env::{Env, EnvError};
use futures::StreamExt;
use reqwest::{
    Method, RequestBuilder, Response,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use url::{Host, Url};

const VARIABLE: &str = "OUTGOING_ALLOW";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a request does not leave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("`{0}` is not a URL")]
    Url(String),
    #[error("only https URLs may be used here, unless the operator allows the host ({VARIABLE})")]
    Scheme,
    #[error("a URL must not hold a user name or password")]
    Credentials,
    #[error("`{0}` is not a public address, and the operator does not allow it ({VARIABLE})")]
    Address(String),
    // One text for names that do not exist and for names of private addresses: it is no way to look into a network.
    #[error("`{0}` has no address that may be reached")]
    Name(String),
}

/// Where outgoing requests may go besides public addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Allowed {
    hosts: BTreeSet<String>,
    networks: Vec<Network>,
}

impl Allowed {
    /// `OUTGOING_ALLOW`: names and networks, separated by commas. A name may have any address; a network such as
    /// `10.0.0.0/8` may be reached by any name. Both may be called without TLS.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let Some(list) = env.get(VARIABLE) else { return Ok(Self::default()) };
        Self::parse(list).map_err(|reason| EnvError::Invalid { name: VARIABLE.into(), value: list.into(), reason })
    }

    fn parse(list: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        for entry in list.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            if let Ok(network) = entry.parse() {
                allowed.networks.push(network);
                continue;
            }
            match Host::parse(entry) {
                Ok(Host::Domain(name)) if !entry.contains('/') => allowed.hosts.insert(canonical(&name)),
                _ => return Err(format!("`{entry}` is neither a host name nor a network such as 10.0.0.0/8")),
            };
        }
        Ok(allowed)
    }

    fn host(&self, name: &str) -> bool {
        self.hosts.contains(&canonical(name))
    }

    fn network(&self, ip: IpAddr) -> bool {
        self.networks.iter().any(|n| n.contains(ip) || n.contains(ip.to_canonical()))
    }

    fn address(&self, ip: IpAddr) -> bool {
        is_public(ip) || self.network(ip)
    }

    /// Checks what can be known without a look into the DNS.
    pub fn check(&self, url: &str) -> Result<Url, Refused> {
        let url = Url::parse(url).map_err(|_| Refused::Url(url.chars().take(200).collect()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(Refused::Credentials);
        }
        let (literal, listed) = match url.host() {
            Some(Host::Ipv4(ip)) => (Some(IpAddr::V4(ip)), self.network(ip.into())),
            Some(Host::Ipv6(ip)) => (Some(IpAddr::V6(ip)), self.network(ip.into())),
            Some(Host::Domain(name)) => (None, self.host(name)),
            None => return Err(Refused::Scheme),
        };
        match url.scheme() {
            "https" => {}
            "http" if listed => {}
            _ => return Err(Refused::Scheme),
        }
        match literal {
            Some(ip) if !self.address(ip) => Err(Refused::Address(ip.to_string())),
            _ => Ok(url),
        }
    }

    /// The addresses of `name` that may be connected to.
    fn permit(&self, name: &str, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let any = self.host(name);
        let permitted: Vec<SocketAddr> = found.filter(|at| any || self.address(at.ip())).collect();
        if permitted.is_empty() { Err(Refused::Name(name.to_owned())) } else { Ok(permitted) }
    }
}

/// Names are equal whatever their case and the dot of the root.
fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// An HTTP client for URLs of users. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Outgoing {
    http: reqwest::Client,
    allowed: Arc<Allowed>,
}

impl Outgoing {
    /// `timeout` is for a whole request with its reply.
    pub fn new(allowed: Allowed, timeout: Duration) -> Result<Self, reqwest::Error> {
        let allowed = Arc::new(allowed);
        let http = reqwest::Client::builder()
            .user_agent(concat!("hone/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(timeout)
            .redirect(redirect::Policy::none())
            .no_proxy()
            .dns_resolver(Arc::new(Guard(Arc::clone(&allowed))))
            .build()?;
        Ok(Self { http, allowed })
    }

    /// Checks a URL before it is stored.
    pub fn check(&self, url: &str) -> Result<Url, Refused> {
        self.allowed.check(url)
    }

    /// A request to `url`, which is checked again now.
    pub fn request(&self, method: Method, url: &str) -> Result<RequestBuilder, Refused> {
        Ok(self.http.request(method, self.allowed.check(url)?))
    }
}

/// At most the first `limit` bytes of a reply; the rest is not read.
pub async fn read_at_most(response: Response, limit: usize) -> Result<Vec<u8>, reqwest::Error> {
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        let room = limit.saturating_sub(body.len());
        body.extend(chunk.iter().take(room));
        if body.len() >= limit {
            break;
        }
    }
    Ok(body)
}

/// The system's resolver, with the answers that may not be used left out.
struct Guard(Arc<Allowed>);

impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let allowed = Arc::clone(&self.0);
        Box::pin(async move {
            // The port is the connector's business.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await;
            let found = found.map_err(|_| Refused::Name(name.as_str().to_owned()))?;
            let permitted = allowed.permit(name.as_str(), found)?;
            Ok::<Addrs, Box<dyn std::error::Error + Send + Sync>>(Box::new(permitted.into_iter()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::chain;

    fn allowed(list: &str) -> Allowed {
        Allowed::parse(list).unwrap()
    }

    #[test]
    fn private_addresses_are_refused_in_every_spelling() {
        let nobody = Allowed::default();
        for host in [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.0.0.1",
            "0177.0.0.1",
            "0",
            "10.1.2.3",
            "172.31.255.255",
            "192.168.0.1",
            "100.64.0.1",
            "169.254.169.254",
            "0xA9FEA9FE",
            "%31%32%37.0.0.1",
            "１２７.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[fd00:ec2::254]",
            "[ff02::1]",
            "[::ffff:127.0.0.1]",
            "[::ffff:7f00:1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[2002:7f00:1::]",
            "255.255.255.255",
            "224.0.0.1",
        ] {
            let refused = nobody.check(&format!("https://{host}/hook"));
            assert!(matches!(refused, Err(Refused::Address(_))), "{host}: {refused:?}");
        }
        assert!(nobody.check("https://93.184.215.14/hook").is_ok());
        assert!(nobody.check("https://[2606:4700::1111]/hook").is_ok());
    }

    #[test]
    fn only_https_without_credentials_unless_the_host_is_allowed() {
        let nobody = Allowed::default();
        for url in ["http://example.com/", "ftp://example.com/", "file:///etc/passwd", "data:,x"] {
            assert_eq!(nobody.check(url), Err(Refused::Scheme), "{url}");
        }
        assert_eq!(nobody.check("https://me:secret@example.com/"), Err(Refused::Credentials));
        assert!(matches!(nobody.check("example.com/hook"), Err(Refused::Url(_))));
        let some = allowed("hooks.intern, 10.0.0.0/8,::1");
        for url in ["http://hooks.intern/x", "http://HOOKS.intern.:8080/", "http://10.9.8.7/", "http://[::1]:1/"] {
            assert!(some.check(url).is_ok(), "{url}");
        }
        assert_eq!(some.check("http://other.intern/"), Err(Refused::Scheme));
        assert_eq!(some.check("https://11.0.0.1/").err(), None);
        assert_eq!(some.check("https://192.168.0.1/"), Err(Refused::Address("192.168.0.1".into())));
    }

    #[test]
    fn names_keep_only_the_addresses_that_may_be_reached() {
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 0);
        let found = ["10.0.0.1", "93.184.215.14", "::1"].map(at);
        let keep = |list: &str| allowed(list).permit("rebind.example", found.into_iter());
        assert_eq!(keep("").unwrap(), [at("93.184.215.14")]);
        assert_eq!(keep("10.0.0.0/24").unwrap(), [at("10.0.0.1"), at("93.184.215.14")]);
        assert_eq!(keep("rebind.example").unwrap(), found);
        let private = allowed("").permit("intern.example", [at("10.0.0.1")].into_iter());
        assert_eq!(private, Err(Refused::Name("intern.example".into())));
    }

    #[test]
    fn a_list_that_cannot_be_understood_names_the_entry() {
        for bad in ["10.0.0.0/33", "a b", "10.0.0.0/8/9", "http://x/"] {
            let env: Env = [(VARIABLE, bad)].into_iter().collect();
            let error = Allowed::from_env(&env).unwrap_err().to_string();
            assert!(error.contains("is neither a host name nor a network"), "{bad}: {error}");
        }
    }

    /// A server on a loopback address that answers every connection with `reply`; its port.
    async fn server(reply: &'static str) -> u16 {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let _ = socket.read(&mut head).await.unwrap();
                socket.write_all(reply.as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn client(list: &str) -> Outgoing {
        Outgoing::new(allowed(list), Duration::from_secs(5)).unwrap()
    }

    #[tokio::test]
    async fn a_name_of_a_private_address_is_refused_when_it_is_connected_to() {
        let port = server("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n").await;
        // `localhost.` is the same name to the resolver; https, so that the scheme is no reason.
        for name in ["localhost", "localhost."] {
            let request = client("").request(Method::POST, &format!("https://{name}:{port}/")).unwrap();
            let error = chain(&request.send().await.unwrap_err());
            assert!(error.contains("has no address that may be reached"), "{error}");
        }
        let allowed = client("localhost").request(Method::POST, &format!("http://localhost:{port}/")).unwrap();
        assert_eq!(allowed.send().await.unwrap().status(), 204);
    }

    #[tokio::test]
    async fn redirects_are_not_followed_and_long_replies_not_read() {
        let to =
            "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 9\r\n\r\nelsewhere";
        let port = server(to).await;
        let request = client("127.0.0.0/8").request(Method::POST, &format!("http://127.0.0.1:{port}/")).unwrap();
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 307);
        assert_eq!(read_at_most(response, 4).await.unwrap(), b"else");
    }
}
