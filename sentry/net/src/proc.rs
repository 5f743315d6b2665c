//! The files of `/proc/net` as text (`proc(5)`; the `seq_show` functions of `net/ipv4`, `net/ipv6`, `net/core`).

use core::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use netstack::iface::InterfaceAddress;

use crate::inet::groups;
use crate::inet::report::Row;
use crate::{Domain, Inet, NetworkNamespace};

/// The files' names, in order.
pub const FILES: &[&str] = &[
    "arp",
    "dev",
    "dev_mcast",
    "icmp",
    "icmp6",
    "if_inet6",
    "igmp",
    "igmp6",
    "ipv6_route",
    "netlink",
    "netstat",
    "packet",
    "protocols",
    "psched",
    "raw",
    "raw6",
    "route",
    "rt6_stats",
    "snmp",
    "snmp6",
    "sockstat",
    "sockstat6",
    "softnet_stat",
    "tcp",
    "tcp6",
    "udp",
    "udp6",
    "udplite",
    "udplite6",
    "unix",
    "wireless",
];

/// Columns to which the lines of IPv4 sockets are padded.
const TCP_WIDTH: usize = 149;
const UDP_WIDTH: usize = 127;

const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier \
    compressed\n";
const SOCKETS_V6: &str = "  sl  local_address                         remote_address                        st tx_queue \
    rx_queue tr tm->when retrnsmt   uid  timeout inode";

impl NetworkNamespace {
    /// The text of one file; `None` for a name that is not in [`FILES`].
    pub fn proc_text(&self, name: &str) -> Option<String> {
        let inet = self.inet();
        Some(match name {
            "arp" => arp(inet),
            "dev" => dev(inet),
            "dev_mcast" | "wireless" => String::new(),
            "if_inet6" => if_inet6(inet),
            "igmp" => groups::igmp(inet),
            "igmp6" => groups::igmp6(inet),
            "ipv6_route" => ipv6_route(inet),
            "netlink" => {
                "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n"
                    .into()
            }
            "netstat" => netstat(inet),
            "packet" => inet.taps.rows(),
            "protocols" => protocols(),
            "psched" => "000003e8 00000040 000f4240 3b9aca00\n".into(),
            "route" => route(inet),
            "rt6_stats" => "0000 0000 0000 0000 0000 0000 0000\n".into(),
            "snmp" => snmp(inet),
            "snmp6" => snmp6(inet),
            "sockstat" => sockstat(inet),
            "sockstat6" => {
                "TCP6: inuse 0\nUDP6: inuse 0\nUDPLITE6: inuse 0\nRAW6: inuse 0\nFRAG6: inuse 0 memory 0\n"
                    .into()
            }
            "softnet_stat" => {
                "00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000 \
                00000000 00000000 00000000 00000000 00000000 00000000\n"
                    .into()
            }
            "tcp" => tcp(&inet.tcp_rows(Domain::V4)),
            "tcp6" => tcp6(&inet.tcp_rows(Domain::V6)),
            "udp" => udp(&inet.udp_rows(Domain::V4)),
            "udp6" => udp6(&inet.udp_rows(Domain::V6)),
            "icmp" | "raw" => {
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  \
                timeout inode ref pointer drops\n"
                    .into()
            }
            "udplite" => udp(&[]),
            "icmp6" | "raw6" | "udplite6" => udp6(&[]),
            "unix" => self.unix().proc_text(),
            _ => return None,
        })
    }
}

fn padded(line: &str, width: usize) -> String {
    format!("{line:<width$}\n")
}

/// An address as `/proc/net` prints it: words of the machine's byte order.
fn hex(domain: Domain, at: SocketAddr) -> String {
    let bytes = match (domain, at.ip()) {
        (Domain::V4, IpAddr::V4(ip)) => ip.octets().to_vec(),
        (Domain::V4, IpAddr::V6(_)) => vec![0; 4],
        (Domain::V6, IpAddr::V4(ip)) => ip.to_ipv6_mapped().octets().to_vec(),
        (Domain::V6, IpAddr::V6(ip)) => ip.octets().to_vec(),
    };
    let mut out = String::new();
    for word in bytes.chunks_exact(4) {
        let word = word.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b));
        let _ = write!(out, "{word:08X}");
    }
    let _ = write!(out, ":{:04X}", at.port());
    out
}

/// What the lines of all sockets share.
fn socket_line(domain: Domain, row: &Row) -> String {
    format!(
        "{} {} {:02X} {:08X}:{:08X} 00:00000000 00000000 {:5} {:8} {}",
        hex(domain, row.local),
        hex(domain, row.remote),
        row.state,
        row.send_queue,
        row.receive_queue,
        row.uid,
        0,
        row.inode,
    )
}

fn tcp_line(n: usize, domain: Domain, row: &Row) -> String {
    let line = format!("{n:4}: {} 1 0000000000000000", socket_line(domain, row));
    match row.state {
        // TIME_WAIT has fewer columns.
        6 => line.replacen(" 1 0000", " 3 0000", 1),
        10 => format!("{line} 100 0 0 10 0"),
        _ => format!("{line} 20 4 30 10 -1"),
    }
}

fn tcp(rows: &[Row]) -> String {
    let head =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";
    let mut out = padded(head, TCP_WIDTH);
    for (n, row) in rows.iter().enumerate() {
        out.push_str(&padded(&tcp_line(n, Domain::V4, row), TCP_WIDTH));
    }
    out
}

fn tcp6(rows: &[Row]) -> String {
    let mut out = format!("{SOCKETS_V6}\n");
    for (n, row) in rows.iter().enumerate() {
        let _ = writeln!(out, "{}", tcp_line(n, Domain::V6, row));
    }
    out
}

fn udp_line(n: usize, domain: Domain, row: &Row) -> String {
    format!("{n:5}: {} 2 0000000000000000 {}", socket_line(domain, row), row.drops)
}

fn udp(rows: &[Row]) -> String {
    let head = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref \
        pointer drops";
    let mut out = padded(head, UDP_WIDTH);
    for (n, row) in rows.iter().enumerate() {
        out.push_str(&padded(&udp_line(n, Domain::V4, row), UDP_WIDTH));
    }
    out
}

fn udp6(rows: &[Row]) -> String {
    let mut out = format!("{SOCKETS_V6} ref pointer drops\n");
    for (n, row) in rows.iter().enumerate() {
        let _ = writeln!(out, "{}", udp_line(n, Domain::V6, row));
    }
    out
}

fn dev(inet: &Inet) -> String {
    let mut out = DEV.to_owned();
    for interface in inet.interfaces.lock().iter() {
        let carried = inet.carried(interface.index);
        let ((packets, bytes), (sent, sent_bytes)) = (carried.received, carried.sent);
        let _ = writeln!(
            out,
            "{:>6}: {bytes:7} {packets:7} {:4} {:4} {:4} {:5} {:10} {:9} {sent_bytes:8} {sent:7} {:4} {:4} {:4} {:5} {:7} {:10}",
            interface.name, 0, carried.dropped, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        );
    }
    out
}

fn hex6(ip: std::net::Ipv6Addr) -> String {
    ip.octets().iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

fn if_inet6(inet: &Inet) -> String {
    let mut out = String::new();
    for interface in inet.interfaces.lock().iter() {
        for address in &interface.addresses {
            if let IpAddr::V6(ip) = address.ip {
                let scope = if ip.is_loopback() { 0x10 } else { 0 };
                let _ = writeln!(
                    out,
                    "{} {:02x} {:02x} {scope:02x} 80 {:>8}",
                    hex6(ip),
                    interface.index,
                    address.prefix,
                    interface.name,
                );
            }
        }
    }
    out
}

fn ipv6_route(inet: &Inet) -> String {
    let none = "00000000000000000000000000000000";
    let mut out = String::new();
    for interface in inet.interfaces.lock().iter() {
        for address in &interface.addresses {
            if let IpAddr::V6(ip) = address.ip {
                for (metric, flags) in [(0x100, 1), (0, 0x8020_0001_u32)] {
                    let _ = writeln!(
                        out,
                        "{} {:02x} {none} 00 {none} {metric:08x} 00000002 00000000 {flags:08x} {:>8}",
                        hex6(ip),
                        address.prefix,
                        interface.name,
                    );
                }
            }
        }
    }
    out
}

/// `fib_route_seq_show`.
fn route(inet: &Inet) -> String {
    const UP: u32 = 1;
    const GATEWAY: u32 = 2;
    const HOST: u32 = 4;
    let mut out =
        padded("Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT", 127);
    for row in inet.interfaces.lock().main_routes().filter(|row| row.to.is_ipv4()) {
        let hex = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
            IpAddr::V6(_) => 0,
        };
        let mask = InterfaceAddress { ip: row.to, prefix: row.prefix, scope: 0 }.netmask();
        let flags =
            UP | if row.gateway.is_some() { GATEWAY } else { 0 } | if row.prefix == 32 { HOST } else { 0 };
        let line = format!(
            "{}\t{:08X}\t{:08X}\t{flags:04X}\t0\t0\t{}\t{:08X}\t0\t0\t0",
            row.name,
            hex(row.to),
            row.gateway.map_or(0, hex),
            row.metric,
            u32::from_ne_bytes(mask.octets()),
        );
        out.push_str(&padded(&line, 127));
    }
    out
}

/// `arp_seq_show`.
fn arp(inet: &Inet) -> String {
    let mut out =
        "IP address       HW type     Flags       HW address            Mask     Device\n".to_owned();
    let neighbors = inet.neighbors();
    let interfaces = inet.interfaces.lock();
    for (index, ip, [a, b, c, d, e, f], _) in neighbors.into_iter().filter(|n| n.1.is_ipv4()) {
        let Some(interface) = interfaces.by_index(index) else { continue };
        let hardware = format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        let ip = ip.to_string();
        let _ = writeln!(out, "{ip:<16} 0x1         0x2         {hardware}     *        {}", interface.name);
    }
    out
}

fn sockstat(inet: &Inet) -> String {
    let (resting, tcp, udp) = inet.counts();
    format!(
        "sockets: used {}\nTCP: inuse {tcp} orphan 0 tw {resting} alloc {tcp} mem 0\nUDP: inuse {udp} mem 0\n\
         UDPLITE: inuse 0\nRAW: inuse 0\nFRAG: inuse 0 memory 0\n",
        tcp + udp,
    )
}

fn snmp(inet: &Inet) -> String {
    let s = &inet.stats;
    let all = inet.carried_in_all();
    let ((packets, _), (sent, _)) = (all.received, all.sent);
    let (segments, sent_segments) = (s.tcp_received.get(), s.tcp_sent.get());
    let (udp, sent_udp) = (s.udp_received.get(), s.udp_sent.get());
    let echo = s.icmp_messages.get();
    format!(
        "Ip: Forwarding DefaultTTL InReceives InHdrErrors InAddrErrors ForwDatagrams InUnknownProtos InDiscards \
         InDelivers OutRequests OutDiscards OutNoRoutes ReasmTimeout ReasmReqds ReasmOKs ReasmFails FragOKs FragFails \
         FragCreates OutTransmits\n\
         Ip: 2 64 {packets} 0 0 0 0 0 {packets} {sent} 0 0 0 0 0 0 0 0 0 {sent}\n\
         Icmp: InMsgs InErrors InCsumErrors InDestUnreachs InTimeExcds InParmProbs InSrcQuenchs InRedirects InEchos \
         InEchoReps InTimestamps InTimestampReps InAddrMasks InAddrMaskReps OutMsgs OutErrors OutRateLimitGlobal \
         OutRateLimitHost OutDestUnreachs OutTimeExcds OutParmProbs OutSrcQuenchs OutRedirects OutEchos OutEchoReps \
         OutTimestamps OutTimestampReps OutAddrMasks OutAddrMaskReps\n\
         Icmp: {echo} 0 0 {unreachable} 0 0 0 0 {echo} {echo} 0 0 0 0 {echo} 0 0 0 {unreachable} 0 0 0 0 {echo} {echo} 0 \
         0 0 0\n\
         Tcp: RtoAlgorithm RtoMin RtoMax MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs \
         OutSegs RetransSegs InErrs OutRsts InCsumErrors\n\
         Tcp: 1 200 120000 -1 {} {} {} 0 {} {segments} {sent_segments} {again} 0 {} 0\n\
         Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors\n\
         Udp: {udp} {unreachable} {drops} {sent_udp} {drops} 0 0 0 0\n\
         UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti \
         MemErrors\n\
         UdpLite: 0 0 0 0 0 0 0 0 0\n",
        s.tcp_active_opens.get(),
        s.tcp_passive_opens.get(),
        s.tcp_failed.get(),
        s.tcp_established.get(),
        s.tcp_resets.get(),
        unreachable = s.udp_no_ports.get(),
        drops = s.udp_dropped.get(),
        again = s.tcp_sent_again.get(),
    )
}

fn snmp6(inet: &Inet) -> String {
    let all = inet.carried_in_all();
    let ((packets, _), (sent, _)) = (all.received, all.sent);
    let mut out = String::new();
    for (name, value) in [
        ("Ip6InReceives", packets),
        ("Ip6InHdrErrors", 0),
        ("Ip6InDelivers", packets),
        ("Ip6OutRequests", sent),
        ("Icmp6InMsgs", 0),
        ("Icmp6OutMsgs", 0),
        ("Udp6InDatagrams", 0),
        ("Udp6NoPorts", 0),
        ("Udp6InErrors", 0),
        ("Udp6OutDatagrams", 0),
    ] {
        let _ = writeln!(out, "{name:<32}\t{value}");
    }
    out
}

fn netstat(inet: &Inet) -> String {
    let overflows = inet.stats.listen_overflows.get();
    let all = inet.carried_in_all();
    let ((_, received), (_, sent)) = (all.received, all.sent);
    format!(
        "TcpExt: SyncookiesSent SyncookiesRecv SyncookiesFailed TW ListenOverflows ListenDrops TCPAbortOnData \
         TCPAbortOnClose TCPTimeouts TCPOFOQueue\n\
         TcpExt: 0 0 0 0 {overflows} {overflows} 0 0 0 0\n\
         IpExt: InNoRoutes InTruncatedPkts InMcastPkts OutMcastPkts InBcastPkts OutBcastPkts InOctets OutOctets\n\
         IpExt: 0 0 0 0 0 0 {received} {sent}\n"
    )
}

fn protocols() -> String {
    let mut out = format!(
        "{:<9} {:>4} {:>8}  {:>6}  press maxhdr  slab module     cl co di ac io in de sh ss gs se re bi br ha uh gp em\n",
        "protocol", "size", "sockets", "memory"
    );
    for (name, size) in
        [("UDPv6", 1472), ("TCPv6", 2560), ("UNIX", 1152), ("PING", 1096), ("UDP", 1280), ("TCP", 2368)]
    {
        let _ = writeln!(
            out,
            "{name:<9} {size:>4} {:>8}  {:>6}   no {:>7}   yes  kernel      y  y  y  y  y  y  y  y  y  y  y  y  y  y  y  y  y  y",
            0, -1, 0
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_has_text_and_addresses_are_in_hexadecimal() {
        let ns = NetworkNamespace::default();
        for name in FILES {
            assert!(ns.proc_text(name).is_some(), "{name}");
        }
        assert_eq!(hex(Domain::V4, "127.0.0.1:80".parse().unwrap()), "0100007F:0050");
        assert_eq!(hex(Domain::V6, "127.0.0.1:80".parse().unwrap()), "0000000000000000FFFF00000100007F:0050");
        assert!(
            ns.proc_text("if_inet6")
                .unwrap()
                .starts_with("00000000000000000000000000000001 01 80 10 80       lo")
        );
        assert_eq!(ns.proc_text("tcp").unwrap().len(), 150);
        assert_eq!(ns.proc_text("udp").unwrap().len(), 128);
    }
}
