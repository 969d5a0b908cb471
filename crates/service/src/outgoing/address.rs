//! Which addresses are public, and networks of addresses.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

/// Networks of IPv4 that are not the public Internet: the IANA special-purpose registry, multicast, and the address of
/// Azure's host, which has a metadata service.
const SPECIAL_V4: [(Ipv4Addr, u8); 16] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Of IPv6 only 2000::/3 is public; that leaves out loopback, link-local, unique local, multicast, mapped and
/// compatible addresses and NAT64. In it these are not: protocol assignments with Teredo, documentation, 6to4.
const GLOBAL_V6: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const SPECIAL_V6: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

/// Whether `ip` belongs to a host on the public Internet.
#[must_use]
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !SPECIAL_V4.iter().any(|(net, bits)| same_v4(*net, ip, *bits)),
        IpAddr::V6(ip) => {
            same_v6(GLOBAL_V6.0, ip, GLOBAL_V6.1) && !SPECIAL_V6.iter().any(|(net, bits)| same_v6(*net, ip, *bits))
        }
    }
}

/// Whether the first `bits` are the same.
fn same_v4(a: Ipv4Addr, b: Ipv4Addr, bits: u8) -> bool {
    (a.to_bits() ^ b.to_bits()).checked_shr(32_u32.saturating_sub(bits.into())).unwrap_or(0) == 0
}

fn same_v6(a: Ipv6Addr, b: Ipv6Addr, bits: u8) -> bool {
    (a.to_bits() ^ b.to_bits()).checked_shr(128_u32.saturating_sub(bits.into())).unwrap_or(0) == 0
}

/// A network of addresses, or a single one: `10.0.0.0/8`, `::1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    ip: IpAddr,
    bits: u8,
}

impl Network {
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.ip, other) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => same_v4(net, ip, self.bits),
            (IpAddr::V6(net), IpAddr::V6(ip)) => same_v6(net, ip, self.bits),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (ip, bits) = text.split_once('/').map_or((text, None), |(ip, bits)| (ip, Some(bits)));
        let ip: IpAddr = ip.parse().map_err(|_| format!("`{text}` is not a network"))?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(most), str::parse).ok().filter(|b| *b <= most);
        bits.map(|bits| Self { ip, bits }).ok_or_else(|| format!("`{text}`: a prefix has at most {most} bits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_edges_of_special_networks() {
        for (inside, outside) in [
            ("10.255.255.255", "11.0.0.0"),
            ("100.127.255.255", "100.128.0.0"),
            ("172.31.255.255", "172.32.0.0"),
            ("169.254.0.0", "169.253.255.255"),
            ("192.0.0.192", "192.0.1.0"),
            ("198.19.255.255", "198.20.0.0"),
            ("168.63.129.16", "168.63.129.17"),
            ("224.0.0.0", "223.255.255.255"),
            ("fdff::1", "2a00::1"),
            ("2001:1ff:ffff::", "2001:200::"),
            ("2002::", "2003::"),
            ("4000::", "2600::"),
        ] {
            assert!(!is_public(ip(inside)), "{inside}");
            assert!(is_public(ip(outside)), "{outside}");
        }
    }

    #[test]
    fn networks_hold_their_addresses_only() {
        let net: Network = "10.1.0.0/16".parse().unwrap();
        assert!(net.contains(ip("10.1.255.1")) && !net.contains(ip("10.2.0.1")) && !net.contains(ip("::1")));
        let all: Network = "::/0".parse().unwrap();
        assert!(all.contains(ip("fe80::1")));
        assert!("10.0.0.0/33".parse::<Network>().is_err() && "::1/129".parse::<Network>().is_err());
    }
}
