//! What TCP tells of a connection: `struct tcp_info` (`include/uapi/linux/tcp.h`).

use abi::net::TcpInfo;
use netstack::stream::TcpState;

/// The answer to `TCP_INFO`. Over the loopback nothing is ever lost or late, so that most of it is constant.
pub(super) fn tcp_info(state: TcpState, (sent, received): (u64, u64)) -> TcpInfo {
    let open = !matches!(state, TcpState::Close | TcpState::Listen | TcpState::SynSent);
    let mut info =
        TcpInfo { state: state as u8, snd_mss: 536, advmss: 536, rcv_mss: 536, ..TcpInfo::default() };
    info.rto = 1_000_000;
    info.snd_cwnd = 10;
    info.snd_ssthresh = i32::MAX.cast_unsigned();
    info.reordering = 3;
    if open {
        // Time stamps, selective acknowledgements, window scaling; a shift of 7 both ways.
        info.options = 0x7;
        info.wscale = 0x77;
        info.rto = 201_000;
        info.ato = 40_000;
        info.snd_mss = 32_768;
        info.rcv_mss = 536;
        info.pmtu = 65_535;
        info.rtt = 30;
        info.rttvar = 15;
        info.advmss = 65_483;
        info.rcv_space = 65_495;
        info.rcv_ssthresh = 65_495;
        info.pacing_rate = u64::MAX;
        info.max_pacing_rate = u64::MAX;
        info.bytes_acked = sent + 1;
        info.bytes_sent = sent;
        info.bytes_received = received;
        info.min_rtt = 10;
        info.snd_wnd = 65_536;
        info.delivered = 1;
    }
    info
}
