//! The doorbell: one page of device memory by which the guest's agent says where it stands.
//!
//! It is not a virtio device, because it must work before and after everything else: the first
//! ring says that the agent listens, the last one that the machine may end. A ring is a write, so
//! the vCPU that rings stands still until the listener has returned.

use std::fmt;

use crate::bus::BusDevice;

/// Length of the doorbell's range: one page, because the guest maps it.
pub const SIZE_BYTES: u64 = 0x1000;

/// What the guest said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Code 1: the agent listens on its vsock port.
    AgentReady,
    /// Code 2: the machine may end.
    MachineEnd,
    /// Code 3: nothing is open and nothing under way; the machine may be frozen inside this write.
    MayFreeze,
    /// Code 4: the agent of a clone has taken over what it was handed.
    HandedOver,
    /// Code 5: the agent was asked to let the machine be frozen, and its workload cannot be stopped.
    CannotFreeze,
    /// Code 6: the agent was asked to let the machine be forked, and its workload does not wait for that.
    NoForkPoint,
    /// A code that means nothing (yet).
    Unknown(u32),
}

impl From<u32> for Ring {
    fn from(code: u32) -> Self {
        match code {
            1 => Self::AgentReady,
            2 => Self::MachineEnd,
            3 => Self::MayFreeze,
            4 => Self::HandedOver,
            5 => Self::CannotFreeze,
            6 => Self::NoForkPoint,
            code => Self::Unknown(code),
        }
    }
}

/// The doorbell on the bus: a 32-bit little-endian write at offset 0 rings, everything else is
/// ignored, and all reads are zero.
pub struct Doorbell {
    listener: Box<dyn Fn(Ring) + Send + Sync>,
}

impl Doorbell {
    /// Makes a doorbell that calls `listener` on the vCPU thread that rings, as often as the guest
    /// likes.
    pub fn new(listener: impl Fn(Ring) + Send + Sync + 'static) -> Self {
        Self {
            listener: Box::new(listener),
        }
    }
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Doorbell")
    }
}

impl BusDevice for Doorbell {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Ok(code)) = (offset, <[u8; 4]>::try_from(data)) {
            (self.listener)(Ring::from(u32::from_le_bytes(code)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn codes_are_rings() {
        let (sender, rings) = channel();
        let doorbell = Doorbell::new(move |ring| sender.send(ring).unwrap());
        for code in [1_u32, 2, 3, 4, 5, 6, 7] {
            doorbell.write(0, &code.to_le_bytes());
        }
        let heard: Vec<Ring> = rings.try_iter().collect();
        assert_eq!(
            heard,
            [
                Ring::AgentReady,
                Ring::MachineEnd,
                Ring::MayFreeze,
                Ring::HandedOver,
                Ring::CannotFreeze,
                Ring::NoForkPoint,
                Ring::Unknown(7)
            ]
        );
    }

    #[test]
    fn only_a_word_at_the_start_rings() {
        let (sender, rings) = channel();
        let doorbell = Doorbell::new(move |ring| sender.send(ring).unwrap());
        doorbell.write(0, &[1]);
        doorbell.write(0, &1_u64.to_le_bytes());
        doorbell.write(4, &1_u32.to_le_bytes());
        assert_eq!(rings.try_iter().count(), 0);
    }

    #[test]
    fn reads_are_zero() {
        let mut data = [0xaa; 8];
        Doorbell::new(|_| {}).read(0, &mut data);
        assert_eq!(data, [0; 8]);
    }
}
