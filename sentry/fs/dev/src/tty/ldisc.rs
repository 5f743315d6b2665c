//! The line discipline of terminals (`termios(3)`, `drivers/tty/n_tty.c`): editing, echo, signals, output processing.
//!
//! Pure state: bytes in, bytes out, and the signals that are due. Locks, queues and processes are the terminal's.

use std::collections::VecDeque;

use abi::tty::{Termios, cc, iflag, lflag, oflag, pkt};

/// Input that is edited or not yet read; one line may be this long, its end included.
const READ_SIZE: usize = 4096;
/// Input that waits for room in the read buffer.
const PENDING_SIZE: usize = 64 * 1024;
/// Output that nobody has taken yet.
const OUTPUT_SIZE: usize = 64 * 1024;
/// Echo above a full output buffer, or while output is stopped; what comes then is lost, as in Linux.
const ECHO_SIZE: usize = 4096;
/// What a flush of the output leaves: Linux cannot take back what the other side has already in its buffer.
const UNFLUSHED: usize = 4095;

/// One byte of input and whether it ends a line.
#[derive(Debug, Clone, Copy)]
struct Cell {
    byte: u8,
    /// The last of its line.
    ends: bool,
    /// The end-of-file character: ends a line and is not read.
    eof: bool,
}

/// What happened besides.
#[derive(Debug, Default)]
pub(super) struct Effects {
    /// Signals for the foreground group, in order.
    pub(super) signals: Vec<i32>,
    /// Bits of [`pkt`] for a master in packet mode.
    pub(super) status: u8,
    /// Output grew.
    pub(super) wrote: bool,
}

/// The state of a terminal's line.
#[derive(Debug)]
pub(super) struct Ldisc {
    termios: Termios,
    input: VecDeque<Cell>,
    /// Cells from the front that belong to complete lines.
    lines: usize,
    pending: VecDeque<u8>,
    output: VecDeque<u8>,
    held_echo: Vec<u8>,
    /// Stopped by the STOP character or `TCOOFF`.
    stopped: bool,
    tco_stopped: bool,
    literal_next: bool,
    /// Within an `ECHOPRT` erasure.
    erasing: bool,
    column: usize,
    canon_column: usize,
}

impl Default for Ldisc {
    fn default() -> Self {
        Self {
            termios: Termios::COOKED,
            input: VecDeque::new(),
            lines: 0,
            pending: VecDeque::new(),
            output: VecDeque::new(),
            held_echo: Vec::new(),
            stopped: false,
            tco_stopped: false,
            literal_next: false,
            erasing: false,
            column: 0,
            canon_column: 0,
        }
    }
}

fn is_control(c: u8) -> bool {
    c < 0x20 || c == 0x7f
}

/// `isalnum` of the kernel's Latin-1 table.
fn is_alnum(c: u8) -> bool {
    c.is_ascii_alphanumeric() || (c >= 0xc0 && c != 0xd7 && c != 0xf7)
}

impl Ldisc {
    pub(super) fn termios(&self) -> &Termios {
        &self.termios
    }

    fn i(&self, bit: u32) -> bool {
        self.termios.iflag & bit != 0
    }

    fn o(&self, bit: u32) -> bool {
        self.termios.oflag & bit != 0
    }

    pub(super) fn l(&self, bit: u32) -> bool {
        self.termios.lflag & bit != 0
    }

    /// A control character's value; 0 for one that is switched off.
    pub(super) fn cc(&self, which: usize) -> u8 {
        self.termios.cc.get(which).copied().unwrap_or(0)
    }

    fn is_cc(&self, which: usize, c: u8) -> bool {
        c != 0 && self.cc(which) == c
    }

    fn is_continuation(&self, c: u8) -> bool {
        self.i(iflag::IUTF8) && c & 0xc0 == 0x80
    }

    /// Takes new settings (`n_tty_set_termios`). A switch to canonical mode makes a line of what is there; a switch from
    /// it makes everything readable.
    pub(super) fn set_termios(&mut self, new: Termios, effects: &mut Effects) {
        let changed = self.termios.lflag ^ new.lflag;
        let was_ixon = self.i(iflag::IXON);
        self.termios = new;
        if changed & lflag::ICANON != 0 {
            for cell in &mut self.input {
                cell.ends = false;
                cell.eof = false;
            }
            self.lines = 0;
            if self.l(lflag::ICANON)
                && let Some(last) = self.input.back_mut()
            {
                last.ends = true;
                self.lines = self.input.len();
            }
            self.erasing = false;
            self.literal_next = false;
        }
        if was_ixon && !self.i(iflag::IXON) && !self.tco_stopped {
            self.start(effects);
        }
        let standard_flow = self.i(iflag::IXON) && self.cc(cc::VSTART) == 0x11 && self.cc(cc::VSTOP) == 0x13;
        if was_ixon != self.i(iflag::IXON) {
            effects.status |= if standard_flow { pkt::DOSTOP } else { pkt::NOSTOP };
        }
        self.process_pending(effects);
    }

    // Input.

    /// Takes typed bytes; returns how many there was room for.
    pub(super) fn receive(&mut self, bytes: &[u8], effects: &mut Effects) -> usize {
        let n = bytes.len().min(PENDING_SIZE.saturating_sub(self.pending.len()));
        self.pending.extend(bytes.iter().take(n));
        self.process_pending(effects);
        n
    }

    pub(super) fn input_room(&self) -> bool {
        self.pending.len() < PENDING_SIZE
    }

    fn process_pending(&mut self, effects: &mut Effects) {
        while !self.pending.is_empty() {
            if self.input.len() >= READ_SIZE - 1 {
                // A full buffer without a line in it still takes the line's end, over its last byte.
                if !self.l(lflag::ICANON) || self.lines > 0 {
                    return;
                }
                if self.input.len() >= READ_SIZE {
                    self.input.pop_back();
                }
            }
            if let Some(c) = self.pending.pop_front() {
                self.receive_byte(c, effects);
            }
        }
    }

    fn receive_byte(&mut self, mut c: u8, effects: &mut Effects) {
        if self.i(iflag::ISTRIP) {
            c &= 0x7f;
        }
        if self.i(iflag::IUCLC) && self.l(lflag::IEXTEN) {
            c = c.to_ascii_lowercase();
        }
        if core::mem::take(&mut self.literal_next) {
            self.receive_plain(c, effects);
            return;
        }
        if self.i(iflag::IXON) {
            if self.is_cc(cc::VSTART, c) {
                self.start(effects);
                return;
            }
            if self.is_cc(cc::VSTOP, c) {
                if !self.stopped {
                    self.stopped = true;
                    effects.status |= pkt::STOP;
                }
                return;
            }
        }
        if self.l(lflag::ISIG) {
            let signal = [(cc::VINTR, libc::SIGINT), (cc::VQUIT, libc::SIGQUIT), (cc::VSUSP, libc::SIGTSTP)]
                .into_iter()
                .find(|(which, _)| self.is_cc(*which, c));
            if let Some((_, signal)) = signal {
                self.receive_signal(signal, c, effects);
                return;
            }
        }
        self.restart_on_any(effects);
        if c == b'\r' {
            if self.i(iflag::IGNCR) {
                return;
            }
            if self.i(iflag::ICRNL) {
                c = b'\n';
            }
        } else if c == b'\n' && self.i(iflag::INLCR) {
            c = b'\r';
        }
        if self.l(lflag::ICANON) && self.receive_canonical(c, effects) {
            return;
        }
        if self.l(lflag::ECHO) {
            self.finish_erasing(effects);
            if c == b'\n' {
                self.echo_raw(b'\n', effects);
            } else {
                self.note_column();
                self.echo(c, effects);
            }
        }
        self.put(c);
    }

    fn restart_on_any(&mut self, effects: &mut Effects) {
        if self.stopped && !self.tco_stopped && self.i(iflag::IXON) && self.i(iflag::IXANY) {
            self.start(effects);
        }
    }

    /// A byte without a meaning of its own.
    fn receive_plain(&mut self, c: u8, effects: &mut Effects) {
        self.restart_on_any(effects);
        if self.l(lflag::ECHO) {
            self.finish_erasing(effects);
            self.note_column();
            self.echo(c, effects);
        }
        self.put(c);
    }

    fn put(&mut self, c: u8) {
        if c == 0xff && self.i(iflag::PARMRK) {
            self.input.push_back(Cell { byte: c, ends: false, eof: false });
        }
        self.input.push_back(Cell { byte: c, ends: false, eof: false });
    }

    fn end_line(&mut self, byte: u8, eof: bool) {
        self.input.push_back(Cell { byte, ends: true, eof });
        self.lines = self.input.len();
    }

    fn receive_signal(&mut self, signal: i32, c: u8, effects: &mut Effects) {
        effects.signals.push(signal);
        if !self.l(lflag::NOFLSH) {
            self.flush_input();
            self.flush_output();
            effects.status |= pkt::FLUSHREAD | pkt::FLUSHWRITE;
        }
        if self.i(iflag::IXON) {
            self.start(effects);
        }
        if self.l(lflag::ECHO) {
            self.echo(c, effects);
        }
    }

    /// The bytes that edit a line or end it; false for all others.
    fn receive_canonical(&mut self, c: u8, effects: &mut Effects) -> bool {
        let extended = self.l(lflag::IEXTEN);
        if self.is_cc(cc::VERASE, c) || self.is_cc(cc::VKILL, c) || (extended && self.is_cc(cc::VWERASE, c)) {
            self.erase(c, effects);
            return true;
        }
        if extended && self.is_cc(cc::VLNEXT, c) {
            self.literal_next = true;
            if self.l(lflag::ECHO) {
                self.finish_erasing(effects);
                if self.l(lflag::ECHOCTL) {
                    self.echo_raw(b'^', effects);
                    self.echo_raw(8, effects);
                }
            }
            return true;
        }
        if extended && self.l(lflag::ECHO) && self.is_cc(cc::VREPRINT, c) {
            self.finish_erasing(effects);
            self.echo(c, effects);
            self.echo_raw(b'\n', effects);
            let line: Vec<u8> = self.input.iter().skip(self.lines).map(|cell| cell.byte).collect();
            for byte in line {
                self.echo(byte, effects);
            }
            return true;
        }
        if c == b'\n' {
            if self.l(lflag::ECHO) || self.l(lflag::ECHONL) {
                self.echo_raw(b'\n', effects);
            }
            self.end_line(c, false);
            return true;
        }
        if self.is_cc(cc::VEOF, c) {
            self.end_line(0, true);
            return true;
        }
        if self.is_cc(cc::VEOL, c) || (extended && self.is_cc(cc::VEOL2, c)) {
            if self.l(lflag::ECHO) {
                self.note_column();
                self.echo(c, effects);
            }
            if c == 0xff && self.i(iflag::PARMRK) {
                self.put(c);
            }
            self.end_line(c, false);
            return true;
        }
        false
    }

    /// ERASE, WERASE and KILL (`eraser`).
    fn erase(&mut self, c: u8, effects: &mut Effects) {
        if self.input.len() <= self.lines {
            return;
        }
        let kill = self.is_cc(cc::VKILL, c);
        let word = self.is_cc(cc::VWERASE, c) && !self.is_cc(cc::VERASE, c) && self.l(lflag::IEXTEN);
        let kill = kill && !word && !self.is_cc(cc::VERASE, c);
        if kill {
            if !self.l(lflag::ECHO) {
                self.input.truncate(self.lines);
                return;
            }
            if !self.l(lflag::ECHOK) || !self.l(lflag::ECHOKE) || !self.l(lflag::ECHOE) {
                self.input.truncate(self.lines);
                self.finish_erasing(effects);
                self.echo(self.cc(cc::VKILL), effects);
                if self.l(lflag::ECHOK) {
                    self.echo_raw(b'\n', effects);
                }
                return;
            }
        }
        let mut seen_alnum = false;
        while self.input.len() > self.lines {
            // One character: a byte, or a byte of UTF-8 with its continuations.
            let mut at = self.input.len();
            let mut first = 0;
            while at > self.lines {
                at -= 1;
                first = self.input.get(at).map_or(0, |cell| cell.byte);
                if !self.is_continuation(first) {
                    break;
                }
            }
            if self.is_continuation(first) {
                break;
            }
            if word {
                if is_alnum(first) || first == b'_' {
                    seen_alnum = true;
                } else if seen_alnum {
                    break;
                }
            }
            let tail: Vec<u8> = self.input.iter().skip(at + 1).map(|cell| cell.byte).collect();
            self.input.truncate(at);
            if self.l(lflag::ECHO) {
                self.echo_erasure(first, &tail, !word && !kill, effects);
            }
            if !word && !kill {
                break;
            }
        }
        if self.input.len() == self.lines && self.l(lflag::ECHO) {
            self.finish_erasing(effects);
        }
    }

    /// Shows that a character has gone.
    fn echo_erasure(&mut self, c: u8, tail: &[u8], single: bool, effects: &mut Effects) {
        if self.l(lflag::ECHOPRT) {
            if !self.erasing {
                self.echo_raw(b'\\', effects);
                self.erasing = true;
            }
            self.echo(c, effects);
            for byte in tail {
                self.echo_raw(*byte, effects);
            }
        } else if single && !self.l(lflag::ECHOE) {
            self.echo(self.cc(cc::VERASE), effects);
        } else if c == b'\t' {
            // Back to where the tab began: the columns since the last tab or the line's start.
            let mut columns = self.canon_column;
            for i in (self.lines..self.input.len()).rev() {
                let byte = self.input.get(i).map_or(0, |cell| cell.byte);
                if byte == b'\t' {
                    columns -= self.canon_column;
                    break;
                }
                if is_control(byte) {
                    columns += if self.l(lflag::ECHOCTL) { 2 } else { 0 };
                } else if !self.is_continuation(byte) {
                    columns += 1;
                }
            }
            for _ in 0..8 - (columns & 7) {
                self.emit_echo(&[8], effects);
                self.column = self.column.saturating_sub(1);
            }
        } else {
            if is_control(c) && self.l(lflag::ECHOCTL) {
                for byte in [8, b' ', 8] {
                    self.echo_raw(byte, effects);
                }
            }
            if !is_control(c) || self.l(lflag::ECHOCTL) {
                for byte in [8, b' ', 8] {
                    self.echo_raw(byte, effects);
                }
            }
        }
    }

    fn finish_erasing(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.erasing) {
            self.echo_raw(b'/', effects);
        }
    }

    /// Remembers where the line on the screen begins, for the erasure of tabs.
    fn note_column(&mut self) {
        if self.input.len() == self.lines {
            self.canon_column = self.column;
        }
    }

    // Reading.

    /// Bytes of whole lines or, in raw mode, of all input.
    pub(super) fn available(&self) -> usize {
        if self.l(lflag::ICANON) { self.lines } else { self.input.len() }
    }

    /// Takes up to `max` bytes: in canonical mode of one line. An end-of-file character gives an empty vector.
    pub(super) fn read(&mut self, max: usize, effects: &mut Effects) -> Vec<u8> {
        let canonical = self.l(lflag::ICANON);
        let mut out = Vec::new();
        while out.len() < max {
            let Some(cell) = self.pop_cell(canonical) else { break };
            if !cell.eof {
                out.push(cell.byte);
            }
            if canonical && cell.ends {
                break;
            }
            if out.len() == max && canonical && self.input.front().is_some_and(|c| c.eof) {
                // The end-of-file character right behind a full buffer only pushed the line: it is used up.
                self.pop_cell(canonical);
            }
        }
        self.process_pending(effects);
        out
    }

    fn pop_cell(&mut self, canonical: bool) -> Option<Cell> {
        if canonical && self.lines == 0 {
            return None;
        }
        let cell = self.input.pop_front()?;
        self.lines = self.lines.saturating_sub(1);
        Some(cell)
    }

    pub(super) fn flush_input(&mut self) {
        self.input.clear();
        self.lines = 0;
        self.literal_next = false;
        self.erasing = false;
    }

    /// Drops what waits for room as well (`TCIFLUSH`).
    pub(super) fn flush_pending(&mut self) {
        self.flush_input();
        self.pending.clear();
    }

    // Output.

    pub(super) fn flush_output(&mut self) {
        self.output.truncate(UNFLUSHED);
        self.held_echo.clear();
    }

    /// Raw bytes that may be written now.
    pub(super) fn output_room(&self) -> usize {
        if self.stopped { 0 } else { OUTPUT_SIZE.saturating_sub(self.output.len()) }
    }

    pub(super) fn output_len(&self) -> usize {
        self.output.len()
    }

    /// Writes a program's bytes, processed as `oflag` says.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        if self.o(oflag::OPOST) {
            for c in bytes {
                let processed = self.process(*c);
                self.output.extend(processed.as_slice());
            }
        } else {
            self.output.extend(bytes);
        }
    }

    /// Takes up to `max` bytes of output, for whoever shows them.
    pub(super) fn take_output(&mut self, max: usize) -> Vec<u8> {
        let n = max.min(self.output.len());
        self.output.drain(..n).collect()
    }

    /// Output processing of one byte (`do_output_char`).
    fn process(&mut self, mut c: u8) -> Processed {
        match c {
            b'\n' => {
                if self.o(oflag::ONLRET) {
                    self.column = 0;
                }
                if self.o(oflag::ONLCR) {
                    self.column = 0;
                    self.canon_column = 0;
                    return Processed::two(b'\r', b'\n');
                }
                self.canon_column = self.column;
            }
            b'\r' => {
                if self.o(oflag::ONOCR) && self.column == 0 {
                    return Processed::none();
                }
                if self.o(oflag::OCRNL) {
                    c = b'\n';
                    if self.o(oflag::ONLRET) {
                        self.column = 0;
                        self.canon_column = 0;
                    }
                } else {
                    self.column = 0;
                    self.canon_column = 0;
                }
            }
            b'\t' => {
                let spaces = 8 - (self.column & 7);
                self.column += spaces;
                if self.termios.oflag & oflag::TABDLY == oflag::XTABS {
                    return Processed { bytes: [b' '; 8], len: spaces };
                }
            }
            8 => self.column = self.column.saturating_sub(1),
            _ => {
                if !is_control(c) {
                    if self.o(oflag::OLCUC) {
                        c = c.to_ascii_uppercase();
                    }
                    if !self.is_continuation(c) {
                        self.column += 1;
                    }
                }
            }
        }
        Processed::one(c)
    }

    fn echo(&mut self, c: u8, effects: &mut Effects) {
        if self.l(lflag::ECHOCTL) && is_control(c) && c != b'\t' {
            self.column += 2;
            self.emit_echo(&[b'^', c ^ 0o100], effects);
        } else {
            self.echo_raw(c, effects);
        }
    }

    /// Echo with output processing alone.
    fn echo_raw(&mut self, c: u8, effects: &mut Effects) {
        if self.o(oflag::OPOST) {
            let processed = self.process(c);
            self.emit_echo(processed.as_slice(), effects);
        } else {
            self.emit_echo(&[c], effects);
        }
    }

    fn emit_echo(&mut self, bytes: &[u8], effects: &mut Effects) {
        if self.stopped {
            if self.held_echo.len() < ECHO_SIZE {
                self.held_echo.extend_from_slice(bytes);
            }
        } else if self.output.len() < OUTPUT_SIZE + ECHO_SIZE {
            self.output.extend(bytes);
            effects.wrote = true;
        }
    }

    pub(super) fn stop(&mut self, effects: &mut Effects) {
        self.tco_stopped = true;
        if !self.stopped {
            self.stopped = true;
            effects.status |= pkt::STOP;
        }
    }

    /// `TCOON`.
    pub(super) fn resume(&mut self, effects: &mut Effects) {
        if core::mem::take(&mut self.tco_stopped) {
            self.start(effects);
        }
    }

    fn start(&mut self, effects: &mut Effects) {
        if self.stopped && !self.tco_stopped {
            self.stopped = false;
            effects.status |= pkt::START;
            let held = core::mem::take(&mut self.held_echo);
            self.output.extend(held);
            // Writers may go on, too.
            effects.wrote = true;
        }
    }
}

/// What one byte becomes.
struct Processed {
    bytes: [u8; 8],
    len: usize,
}

impl Processed {
    fn none() -> Self {
        Self { bytes: [0; 8], len: 0 }
    }

    fn one(c: u8) -> Self {
        Self { bytes: [c, 0, 0, 0, 0, 0, 0, 0], len: 1 }
    }

    fn two(a: u8, b: u8) -> Self {
        Self { bytes: [a, b, 0, 0, 0, 0, 0, 0], len: 2 }
    }

    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(ldisc: &mut Ldisc, text: &[u8]) -> Effects {
        let mut effects = Effects::default();
        assert_eq!(ldisc.receive(text, &mut effects), text.len());
        effects
    }

    fn read(ldisc: &mut Ldisc, max: usize) -> Vec<u8> {
        ldisc.read(max, &mut Effects::default())
    }

    fn shown(ldisc: &mut Ldisc) -> String {
        String::from_utf8(ldisc.take_output(usize::MAX)).unwrap()
    }

    #[test]
    fn lines_are_edited_and_echoed() {
        let mut l = Ldisc::default();
        typed(&mut l, b"helo\x7fp\r");
        assert_eq!(shown(&mut l), "helo\x08 \x08p\r\n");
        assert_eq!(read(&mut l, 100), b"help\n");
        typed(&mut l, b"one two  \x17three\x15four\x16\x03\n");
        assert_eq!(read(&mut l, 100), b"four\x03\n");
        shown(&mut l);
        typed(&mut l, b"a\x01\x7f\x7f");
        assert_eq!(shown(&mut l), "a^A\x08 \x08\x08 \x08\x08 \x08");
        typed(&mut l, b"ab\t\x7f");
        assert_eq!(shown(&mut l), "ab\t\x08\x08\x08\x08\x08\x08");
    }

    #[test]
    fn end_of_file_ends_a_line_or_the_input() {
        let mut l = Ldisc::default();
        typed(&mut l, b"half\x04\x04");
        assert_eq!(read(&mut l, 100), b"half");
        assert!(l.available() > 0);
        assert_eq!(read(&mut l, 100), b"");
        assert_eq!(l.available(), 0);
        // A full buffer swallows the character that pushed the line.
        typed(&mut l, b"half\x04");
        assert_eq!(read(&mut l, 4), b"half");
        assert_eq!(l.available(), 0);
        typed(&mut l, b"two\nlines\n");
        assert_eq!(read(&mut l, 2), b"tw");
        assert_eq!(read(&mut l, 100), b"o\n");
        assert_eq!(read(&mut l, 100), b"lines\n");
    }

    #[test]
    fn signals_flush_and_are_shown() {
        let mut l = Ldisc::default();
        let effects = typed(&mut l, b"junk\x03");
        assert_eq!(effects.signals, [libc::SIGINT]);
        assert!(shown(&mut l).ends_with("^C"));
        typed(&mut l, b"\n");
        assert_eq!(read(&mut l, 100), b"\n");
        let effects = typed(&mut l, b"\x1a\x1c");
        assert_eq!(effects.signals, [libc::SIGTSTP, libc::SIGQUIT]);
    }

    #[test]
    fn raw_mode_passes_everything() {
        let mut l = Ldisc::default();
        let mut raw = *l.termios();
        raw.iflag = 0;
        raw.oflag = 0;
        raw.lflag = 0;
        typed(&mut l, b"left");
        assert_eq!(l.available(), 0);
        l.set_termios(raw, &mut Effects::default());
        assert_eq!(l.available(), 4);
        let effects = typed(&mut l, b"\x03\r\x04");
        assert!(effects.signals.is_empty());
        assert_eq!(read(&mut l, 100), b"left\x03\r\x04");
        l.write(b"a\n");
        assert!(shown(&mut l).ends_with("a\n"));
        typed(&mut l, b"kept");
        l.set_termios(Termios::COOKED, &mut Effects::default());
        assert_eq!(read(&mut l, 100), b"kept");
    }

    #[test]
    fn a_line_holds_4095_bytes_and_its_end() {
        let mut l = Ldisc::default();
        typed(&mut l, &[b'x'; 5000]);
        typed(&mut l, b"\nnext\n");
        let line = read(&mut l, 10_000);
        assert_eq!((line.len(), line.last()), (4096, Some(&b'\n')));
        assert_eq!(read(&mut l, 100), b"next\n");
    }

    #[test]
    fn stopped_output_waits() {
        let mut l = Ldisc::default();
        typed(&mut l, b"\x13a");
        assert_eq!((l.output_room(), shown(&mut l)), (0, String::new()));
        let effects = typed(&mut l, b"\x11");
        assert!(effects.wrote);
        assert_eq!(shown(&mut l), "a");
        assert!(l.output_room() > 0);
    }
}
