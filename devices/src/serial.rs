//! The serial port (16550A): the guest kernel's log, and nothing else.
//!
//! Output goes into a [`KernelLog`], which keeps the last part of it in memory, for the report
//! about a guest that died, and passes it on to a writer, up to a limit in total. So a guest that
//! floods its console costs neither memory nor disk beyond what was set. There is no input.

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial as Uart, SerialState};

use crate::bus::{BusDevice, PioAddress};
use crate::interrupt::Interrupt;

/// The first port of the first serial port of a PC (COM1).
pub const BASE: PioAddress = PioAddress(0x3f8);

/// Number of ports of a 16550A.
pub const SIZE_BYTES: u64 = 8;

/// How much of the guest kernel's output is kept and passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLogLimits {
    /// How many of the last bytes stay in memory.
    pub tail_bytes: usize,
    /// How many bytes are passed to the writer in the life of the machine.
    pub written_bytes: u64,
}

impl Default for KernelLogLimits {
    fn default() -> Self {
        Self {
            tail_bytes: 16 * 1024,
            written_bytes: 1024 * 1024,
        }
    }
}

/// What the guest kernel printed, bounded; clones are the same log.
#[derive(Clone)]
pub struct KernelLog {
    inner: Arc<Mutex<Log>>,
}

struct Log {
    /// A ring once it has grown to `tail_bytes`; `oldest` is then its first byte.
    tail: Vec<u8>,
    oldest: usize,
    tail_bytes: usize,
    writer: Option<Box<dyn Write + Send>>,
    writable_bytes: u64,
}

impl KernelLog {
    /// Makes an empty log that passes what it gets to `writer`, if there is one.
    #[must_use]
    pub fn new(limits: KernelLogLimits, writer: Option<Box<dyn Write + Send>>) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Log {
                tail: Vec::new(),
                oldest: 0,
                tail_bytes: limits.tail_bytes,
                writer,
                writable_bytes: limits.written_bytes,
            })),
        }
    }

    /// Returns the last bytes that the guest printed, oldest first. They are the guest's: escape
    /// them before they reach a terminal.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        let log = self.lock();
        let (newer, older) = log.tail.split_at(log.oldest);
        [older, newer].concat()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn keep(&mut self, byte: u8) {
        if self.tail.len() < self.tail_bytes {
            self.tail.push(byte);
        } else if let Some(slot) = self.tail.get_mut(self.oldest) {
            *slot = byte;
            self.oldest = (self.oldest + 1) % self.tail_bytes;
        }
    }

    fn pass_on(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.writable_bytes).unwrap_or(usize::MAX);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        let Some(writer) = self.writer.as_mut().filter(|_| !bytes.is_empty()) else {
            return;
        };
        // What cannot be written is lost, not waited for: the guest must not hang on our disk.
        if writer.write_all(bytes).is_err() {
            self.writer = None;
        }
        let written = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.writable_bytes = self.writable_bytes.saturating_sub(written);
    }
}

impl fmt::Debug for KernelLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KernelLog")
            .field("tail_bytes", &self.lock().tail.len())
            .finish_non_exhaustive()
    }
}

impl Write for KernelLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut log = self.lock();
        for byte in bytes {
            log.keep(*byte);
        }
        log.pass_on(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

/// A serial port as it is written down: its registers from the divisor to the scratch register, and the bytes that a loop-back
/// put into it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedSerial {
    registers: [u8; 9],
    input: Vec<u8>,
}

/// What was saved is no serial port's state.
#[derive(Debug, Error)]
#[error("what was saved is no serial port's state")]
pub struct BadSerial;

/// The serial port on the port bus, from [`BASE`] on.
pub struct Serial {
    /// One guest CPU prints at a time; the others wait for it in the guest already.
    uart: Mutex<Uart<Line, NoEvents, KernelLog>>,
}

impl Serial {
    /// Makes a serial port that interrupts through `line` and prints into `log`.
    #[must_use]
    pub fn new(line: Arc<dyn Interrupt>, log: KernelLog) -> Self {
        Self {
            uart: Mutex::new(Uart::new(Line(line), log)),
        }
    }

    /// Makes a serial port that goes on where a saved machine's stood.
    ///
    /// # Errors
    ///
    /// Returns [`BadSerial`] if no serial port can have been there.
    pub fn restore(
        saved: &SavedSerial,
        line: Arc<dyn Interrupt>,
        log: KernelLog,
    ) -> Result<Self, BadSerial> {
        let [
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
        ] = saved.registers;
        let state = SerialState {
            baud_divisor_low,
            baud_divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: saved.input.clone(),
        };
        let uart = Uart::from_state(&state, Line(line), NoEvents, log).map_err(|_| BadSerial)?;
        Ok(Self {
            uart: Mutex::new(uart),
        })
    }

    /// Writes down where the port stands. What was printed is not part of it.
    #[must_use]
    pub fn save(&self) -> SavedSerial {
        let state = self.uart().state();
        SavedSerial {
            registers: [
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            input: state.in_buffer,
        }
    }

    fn uart(&self) -> MutexGuard<'_, Uart<Line, NoEvents, KernelLog>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Serial")
    }
}

impl BusDevice for Serial {
    /// Registers are one byte wide; a wider access reads all ones.
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), &mut *data) {
            (Ok(offset), [byte]) => *byte = self.uart().read(offset),
            _ => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            // A lost interrupt delays the guest's next byte; there is nothing to do about it here.
            let _ = self.uart().write(offset, *byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::virtio::testing::CountingLine;

    /// A writer that shares what it got.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Broken;

    impl Write for Broken {
        fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn limits(tail_bytes: usize, written_bytes: u64) -> KernelLogLimits {
        KernelLogLimits {
            tail_bytes,
            written_bytes,
        }
    }

    fn serial(log: &KernelLog) -> Serial {
        Serial::new(Arc::new(CountingLine::default()), log.clone())
    }

    fn print(serial: &Serial, text: &[u8]) {
        for byte in text {
            serial.write(0, &[*byte]);
        }
    }

    #[test]
    fn what_the_guest_prints_is_in_the_log() {
        let log = KernelLog::new(KernelLogLimits::default(), None);
        print(&serial(&log), b"Kernel panic");
        assert_eq!(log.tail(), b"Kernel panic");
    }

    #[test]
    fn a_full_tail_keeps_the_last_bytes_in_order() {
        let log = KernelLog::new(limits(4, 0), None);
        print(&serial(&log), b"0123456789");
        assert_eq!(log.tail(), b"6789");
    }

    #[test]
    fn the_writer_gets_no_more_than_its_limit() {
        let written = Shared::default();
        let log = KernelLog::new(limits(100, 7), Some(Box::new(written.clone())));
        print(&serial(&log), b"0123456789");
        assert_eq!(*written.0.lock().unwrap(), b"0123456");
        assert_eq!(log.tail(), b"0123456789");
    }

    #[test]
    fn a_writer_that_fails_is_given_up() {
        let log = KernelLog::new(limits(100, 100), Some(Box::new(Broken)));
        print(&serial(&log), b"still alive");
        assert_eq!(log.tail(), b"still alive");
    }

    #[test]
    fn the_transmitter_is_always_ready() {
        let log = KernelLog::new(KernelLogLimits::default(), None);
        let mut line_status = [0];
        serial(&log).read(5, &mut line_status);
        assert_eq!(line_status[0] & 0x20, 0x20);
    }

    #[test]
    fn a_wide_read_is_all_ones() {
        let log = KernelLog::new(KernelLogLimits::default(), None);
        let mut data = [0; 2];
        serial(&log).read(0, &mut data);
        assert_eq!(data, [0xff; 2]);
    }

    #[test]
    fn a_restored_port_has_the_registers_of_the_saved_one() {
        let log = || KernelLog::new(KernelLogLimits::default(), None);
        let line = Arc::new(CountingLine::default());
        let serial = Serial::new(line.clone(), log());
        // Interrupt enable, line control, modem control, scratch.
        for (offset, value) in [(1, 0x0f), (3, 0x1b), (4, 0x0b), (7, 0x5a)] {
            serial.write(offset, &[value]);
        }
        let restored = Serial::restore(&serial.save(), line, log()).unwrap();
        for offset in [1, 3, 4, 7] {
            let (mut before, mut after) = ([0], [0]);
            serial.read(offset, &mut before);
            restored.read(offset, &mut after);
            assert_eq!(before, after, "register {offset}");
        }
    }

    #[test]
    fn more_input_than_a_port_holds_is_refused() {
        let saved = SavedSerial {
            registers: [0; 9],
            input: vec![0; 4096],
        };
        let line = Arc::new(CountingLine::default());
        let log = KernelLog::new(KernelLogLimits::default(), None);
        assert!(Serial::restore(&saved, line, log).is_err());
    }

    proptest! {
        #[test]
        fn no_access_harms_the_port(
            accesses in proptest::collection::vec((0..8_u64, any::<u8>(), any::<bool>()), 0..500)
        ) {
            let log = KernelLog::new(limits(64, 0), None);
            let serial = serial(&log);
            for (offset, value, is_write) in accesses {
                if is_write {
                    serial.write(offset, &[value]);
                } else {
                    serial.read(offset, &mut [value]);
                }
            }
            prop_assert!(log.tail().len() <= 64);
        }
    }
}
