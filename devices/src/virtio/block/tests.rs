//! The block device's queue against a driver in guest memory and files of the host.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::Queue;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::virtio::testing::{DriverQueue, Part, ram, readable, writable};
use crate::virtio::{DeviceMemory, DeviceSlice};

const RING: u64 = 0x1_0000;
const HEADER: u64 = 0x2_0000;
const STATUS: u64 = 0x2_1000;
const DATA: u64 = 0x3_0000;
const RAM_BYTES: usize = 1 << 20;
const UNTOUCHED: u8 = 0x77;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// A disk and its driver.
struct Bench {
    disk: Disk,
    memory: DeviceMemory,
    driver: DriverQueue,
    queue: Queue,
}

impl Bench {
    fn on(backend: impl Backend + 'static) -> Self {
        let memory = ram(RAM_BYTES);
        let driver = DriverQueue::new(&memory, RING, 128);
        Self {
            disk: Disk {
                backend: Arc::new(backend),
                id: DiskId::new("root"),
                durability: Durability::AtFlush,
                throttle: None,
            },
            queue: driver.device_queue(),
            memory,
            driver,
        }
    }

    fn read_only(contents: &[u8]) -> Self {
        Self::on(RawFile::new(file_with(contents), Access::ReadOnly).unwrap())
    }

    /// A writable disk, and its file.
    fn writable(contents: &[u8]) -> (Self, File) {
        let file = file_with(contents);
        let own = file.try_clone().unwrap();
        (
            Self::on(RawFile::new(file, Access::ReadWrite).unwrap()),
            own,
        )
    }

    /// Submits `parts` and returns the status byte and the used length.
    fn submit(&mut self, parts: &[Part]) -> (u8, u32) {
        self.memory
            .write_obj(UNTOUCHED, GuestAddress(STATUS))
            .unwrap();
        self.driver.add(parts);
        queue::process(&self.disk, &mut self.queue, &self.memory).unwrap();
        let (_, length) = self.driver.take_used().unwrap();
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), length)
    }

    fn header(&self, request_type: u32, sector: u64) -> Part {
        self.memory
            .write_obj(request_type, GuestAddress(HEADER))
            .unwrap();
        self.memory
            .write_obj(sector, GuestAddress(HEADER + 8))
            .unwrap();
        readable(HEADER, 16)
    }

    /// A request with a header, data and a status, one descriptor each.
    fn request(&mut self, request_type: u32, sector: u64, data: Part) -> (u8, u32) {
        let header = self.header(request_type, sector);
        self.submit(&[header, data, writable(STATUS, 1)])
    }

    fn data(&self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory
            .read_slice(&mut bytes, GuestAddress(DATA))
            .unwrap();
        bytes
    }

    fn set_data(&self, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
    }

    fn set_range(&self, sector: u64, count: u32, flags: u32) -> Part {
        let bytes = [
            &sector.to_le_bytes()[..],
            &count.to_le_bytes(),
            &flags.to_le_bytes(),
        ]
        .concat();
        self.set_data(&bytes);
        readable(DATA, 16)
    }
}

fn file_with(contents: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(contents).unwrap();
    file
}

fn contents(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).unwrap();
    bytes
}

/// `sectors` sectors, each filled with its number plus one.
fn numbered(sectors: u8) -> Vec<u8> {
    (0..sectors).flat_map(|sector| [sector + 1; 512]).collect()
}

#[test]
fn the_configuration_space_has_the_capacity_and_the_limits() {
    let backend = RawFile::new(file_with(&[0; 1300]), Access::ReadOnly).unwrap();
    let config = Block::new(Arc::new(backend), DiskId::new("x")).config_space();
    assert_eq!(config[0..8], 2_u64.to_le_bytes());
    assert_eq!(config[12..16], 126_u32.to_le_bytes());
    assert_eq!(config[40..44], 16_u32.to_le_bytes());
    assert_eq!(config.len(), 60);
}

#[test]
fn sectors_are_read() {
    let mut bench = Bench::read_only(&numbered(8));
    let result = bench.request(READ, 2, writable(DATA, 1024));
    assert_eq!(result, (0, 1025));
    assert_eq!(bench.data(1024), [[3; 512], [4; 512]].concat());
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let mut bench = Bench::read_only(&numbered(8));
    bench.header(READ, 1);
    let result = bench.submit(&[
        readable(HEADER, 3),
        readable(HEADER + 3, 13),
        writable(DATA, 100),
        writable(DATA + 100, 0),
        writable(DATA + 100, 412),
        writable(STATUS, 1),
    ]);
    assert_eq!(result, (0, 513));
    assert_eq!(bench.data(512), [2; 512]);
}

#[test]
fn a_status_may_share_its_descriptor_with_data() {
    let mut bench = Bench::read_only(&numbered(1));
    let header = bench.header(READ, 0);
    let result = bench.submit(&[header, writable(STATUS - 512, 513)]);
    assert_eq!(result, (0, 513));
}

#[test]
fn sectors_are_written() {
    let (mut bench, file) = Bench::writable(&numbered(4));
    bench.set_data(&[9; 512]);
    assert_eq!(bench.request(WRITE, 3, readable(DATA, 512)), (0, 1));
    assert_eq!(contents(&file, 1024, 1024), [[3; 512], [9; 512]].concat());
}

#[test]
fn a_write_to_a_read_only_disk_fails() {
    let mut bench = Bench::read_only(&numbered(4));
    assert_eq!(bench.request(WRITE, 0, readable(DATA, 512)), (1, 1));
}

#[test]
fn a_disk_that_is_only_read_can_be_offered_as_a_writable_one() {
    let disk = |access| {
        let backend = RawFile::new(file_with(&numbered(4)), access).unwrap();
        Block::new(Arc::new(backend), DiskId::new("data"))
    };
    let read_only = disk(Access::ReadOnly);
    let is_read_only = 1 << VIRTIO_BLK_F_RO;
    assert_eq!(read_only.features() & is_read_only, is_read_only);
    assert_eq!(
        read_only.offered_as_writable().features(),
        disk(Access::ReadWrite).features()
    );
}

#[test]
fn a_read_beyond_the_end_fails() {
    let mut bench = Bench::read_only(&numbered(4));
    let result = bench.request(READ, 3, writable(DATA, 1024));
    assert_eq!(result, (1, 0));
}

#[test]
fn a_sector_that_overflows_fails() {
    let mut bench = Bench::read_only(&numbered(4));
    for sector in [u64::MAX, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(bench.request(READ, sector, writable(DATA, 512)), (1, 0));
    }
}

#[test]
fn a_write_beyond_the_end_does_not_grow_the_file() {
    let (mut bench, file) = Bench::writable(&numbered(4));
    assert_eq!(bench.request(WRITE, 4, readable(DATA, 512)).0, 1);
    assert_eq!(file.metadata().unwrap().len(), 4 * 512);
}

#[test]
fn half_a_sector_fails() {
    let mut bench = Bench::read_only(&numbered(4));
    assert_eq!(bench.request(READ, 0, writable(DATA, 256)), (1, 0));
}

#[test]
fn a_file_that_became_shorter_is_an_io_error() {
    let file = file_with(&numbered(4));
    let own = file.try_clone().unwrap();
    let mut bench = Bench::on(RawFile::new(file, Access::ReadOnly).unwrap());
    own.set_len(512).unwrap();
    assert_eq!(bench.request(READ, 2, writable(DATA, 512)), (1, 0));
}

#[test]
fn the_identification_is_padded_with_zeros() {
    let mut bench = Bench::read_only(&[]);
    bench.set_data(&[0xee; 20]);
    assert_eq!(bench.request(GET_ID, 0, writable(DATA, 20)), (0, 21));
    assert_eq!(bench.data(20), *b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn an_identification_without_room_fails() {
    let mut bench = Bench::read_only(&[]);
    assert_eq!(bench.request(GET_ID, 0, writable(DATA, 19)), (1, 0));
}

#[test]
fn a_flush_needs_no_data() {
    let (mut bench, _file) = Bench::writable(&numbered(1));
    let header = bench.header(FLUSH, 0);
    assert_eq!(bench.submit(&[header, writable(STATUS, 1)]), (0, 1));
}

/// A disk of four sectors that takes everything and counts flushes.
struct FlushCounter(Arc<AtomicUsize>);

impl Backend for FlushCounter {
    fn size_bytes(&self) -> u64 {
        4 * SECTOR_BYTES
    }

    fn access(&self) -> Access {
        Access::ReadWrite
    }

    fn read(&self, _memory: &[DeviceSlice<'_>], _offset_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _memory: &[DeviceSlice<'_>], _offset_bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn discard(&self, _range: DiskRange) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _range: DiskRange, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn writes_of_a_driver_that_cannot_flush_are_durable_at_once() {
    let flushes = Arc::new(AtomicUsize::new(0));
    let mut bench = Bench::on(FlushCounter(Arc::clone(&flushes)));
    bench.request(WRITE, 0, readable(DATA, 512));
    assert_eq!(flushes.load(Ordering::SeqCst), 0);
    bench.disk.durability = Durability::negotiated(0);
    bench.request(WRITE, 0, readable(DATA, 512));
    assert_eq!(flushes.load(Ordering::SeqCst), 1);
}

#[test]
fn zeros_are_written() {
    let (mut bench, file) = Bench::writable(&numbered(4));
    let range = bench.set_range(1, 2, 0);
    assert_eq!(bench.request(WRITE_ZEROES, 0, range), (0, 1));
    let expected = [[1; 512], [0; 512], [0; 512], [4; 512]].concat();
    assert_eq!(contents(&file, 0, 2048), expected);
}

#[test]
fn a_discard_is_carried_out_and_keeps_the_size() {
    let (mut bench, file) = Bench::writable(&numbered(16));
    let range = bench.set_range(0, 16, 0);
    assert_eq!(bench.request(DISCARD, 0, range), (0, 1));
    assert_eq!(file.metadata().unwrap().len(), 16 * 512);
}

/// How long two requests take of a disk that may be written to ten times a second, and with 1 MiB.
fn time_of_two(request_type: u32, sectors: u32) -> Duration {
    let (mut bench, _) = Bench::writable(&[7; 1 << 20]);
    let write = Rate {
        bytes: Some(1 << 20),
        requests: Some(10),
    };
    let limits = RateLimits {
        write,
        ..RateLimits::default()
    };
    bench.disk.throttle = Some(Arc::new(Throttle::new(limits)));
    let begin = Instant::now();
    for _ in 0..2 {
        let range = bench.set_range(0, sectors, 0);
        assert_eq!(bench.request(request_type, 0, range).0, 0);
    }
    begin.elapsed()
}

#[test]
fn a_discard_counts_as_a_write_of_nothing() {
    let time = time_of_two(DISCARD, 1024);
    assert!(time >= Duration::from_millis(100), "{time:?}");
}

#[test]
fn zeroes_that_are_written_count_as_they_are_long() {
    let time = time_of_two(WRITE_ZEROES, 1024);
    assert!(time >= Duration::from_millis(500), "{time:?}");
}

#[test]
fn flags_of_a_discard_are_unsupported() {
    let (mut bench, _file) = Bench::writable(&numbered(16));
    let unmap = bench.set_range(0, 1, 1);
    assert_eq!(bench.request(DISCARD, 0, unmap).0, 2);
    let unknown = bench.set_range(0, 1, 2);
    assert_eq!(bench.request(WRITE_ZEROES, 0, unknown).0, 2);
}

#[test]
fn a_discard_beyond_the_end_fails_and_touches_nothing() {
    let (mut bench, file) = Bench::writable(&numbered(4));
    let first = [&0_u64.to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
    let second = [&4_u64.to_le_bytes()[..], &1_u32.to_le_bytes(), &[0; 4]].concat();
    bench.set_data(&[first, second].concat());
    assert_eq!(bench.request(DISCARD, 0, readable(DATA, 32)).0, 1);
    assert_eq!(contents(&file, 0, 512), [1; 512]);
}

#[test]
fn too_many_ranges_fail() {
    let (mut bench, _file) = Bench::writable(&numbered(4));
    bench.set_data(&[0; 17 * 16]);
    assert_eq!(bench.request(DISCARD, 0, readable(DATA, 17 * 16)).0, 1);
}

#[test]
fn an_unknown_request_is_unsupported() {
    let mut bench = Bench::read_only(&numbered(1));
    assert_eq!(bench.request(0x1234, 0, writable(DATA, 512)), (2, 0));
}

#[test]
fn a_header_that_is_too_short_fails() {
    let mut bench = Bench::read_only(&numbered(1));
    bench.header(READ, 0);
    let result = bench.submit(&[readable(HEADER, 15), writable(STATUS, 1)]);
    assert_eq!(result, (1, 1));
}

#[test]
fn a_request_without_a_status_is_used_with_nothing_written() {
    let mut bench = Bench::read_only(&numbered(1));
    let header = bench.header(READ, 0);
    assert_eq!(bench.submit(&[header]), (UNTOUCHED, 0));
}

#[test]
fn a_status_outside_of_memory_has_no_place() {
    let mut bench = Bench::read_only(&numbered(1));
    let header = bench.header(READ, 0);
    let result = bench.submit(&[header, writable(DATA, 512), writable(1 << 40, 1)]);
    assert_eq!(result, (UNTOUCHED, 0));
    assert_eq!(bench.data(512), [0; 512]);
}

#[test]
fn data_outside_of_memory_fails() {
    let mut bench = Bench::read_only(&numbered(1));
    let beyond = u64::try_from(RAM_BYTES).unwrap() - 256;
    assert_eq!(bench.request(READ, 0, writable(beyond, 512)).0, 1);
}

#[test]
fn a_request_for_nothing_moves_nothing() {
    let (mut bench, file) = Bench::writable(&numbered(1));
    let header = bench.header(READ, 0);
    assert_eq!(bench.submit(&[header, writable(STATUS, 1)]), (0, 1));
    assert_eq!(bench.request(READ, 1, writable(DATA, 0)), (0, 1));
    assert_eq!(bench.request(WRITE, 0, readable(DATA, 0)), (0, 1));
    assert_eq!(contents(&file, 0, 512), [1; 512]);
}

#[test]
fn a_length_of_four_gibibytes_fails() {
    let (mut bench, file) = Bench::writable(&numbered(1));
    assert_eq!(bench.request(READ, 0, writable(DATA, 1 << 31)).0, 1);
    assert_eq!(bench.request(WRITE, 0, readable(DATA, 1 << 31)).0, 1);
    // A chain ends before it is longer than that (VirtIO 1.2 section 2.7.5), and so before its status.
    let endless = bench.request(READ, 0, writable(DATA, u32::MAX));
    assert_eq!(endless, (UNTOUCHED, 0));
    assert_eq!(contents(&file, 0, 512), [1; 512]);
}

#[test]
fn parts_that_overlap_end_with_the_status() {
    let mut bench = Bench::read_only(&numbered(2));
    let header = bench.header(READ, 1);
    // The data lies over the header and over the status.
    let result = bench.submit(&[
        header,
        writable(HEADER, 512),
        writable(STATUS - 511, 512),
        writable(STATUS, 1),
    ]);
    assert_eq!(result.0, 1, "the disk has no third sector");
    let header = bench.header(READ, 1);
    assert_eq!(
        bench.submit(&[header, writable(HEADER, 512), writable(STATUS, 1)]),
        (0, 513)
    );
}

#[test]
fn parts_in_the_wrong_order_fail() {
    let mut bench = Bench::read_only(&numbered(1));
    let header = bench.header(READ, 0);
    let result = bench.submit(&[writable(DATA, 512), header, writable(STATUS, 1)]);
    assert_eq!(result, (1, 0));
}

#[test]
fn a_chain_that_loops_ends() {
    let mut bench = Bench::read_only(&numbered(1));
    bench.header(READ, 0);
    let next = u16::try_from(VRING_DESC_F_NEXT).unwrap();
    bench
        .driver
        .write_descriptor(0, Descriptor::new(HEADER, 16, next, 0));
    bench.driver.publish(0);
    queue::process(&bench.disk, &mut bench.queue, &bench.memory).unwrap();
    assert_eq!(bench.driver.take_used(), Some((0, 0)));
}

#[test]
fn an_indirect_table_with_too_many_parts_is_refused() {
    let mut bench = Bench::read_only(&numbered(1));
    bench.header(READ, 0);
    let flags = u16::try_from(VRING_DESC_F_NEXT | VRING_DESC_F_WRITE).unwrap();
    for index in 0..1000_u16 {
        let part = Descriptor::new(DATA, 1, flags, index + 1);
        let address = GuestAddress(0x8_0000 + u64::from(index) * 16);
        bench
            .memory
            .write_obj(virtio_queue::desc::RawDescriptor::from(part), address)
            .unwrap();
    }
    let indirect = u16::try_from(VRING_DESC_F_INDIRECT).unwrap();
    bench
        .driver
        .write_descriptor(0, Descriptor::new(0x8_0000, 16_000, indirect, 0));
    bench.driver.publish(0);
    queue::process(&bench.disk, &mut bench.queue, &bench.memory).unwrap();
    assert_eq!(bench.driver.take_used(), Some((0, 0)));
}

#[test]
fn an_impossible_ring_index_is_an_error_and_ends() {
    let mut bench = Bench::read_only(&numbered(1));
    let index = GuestAddress(bench.driver.avail() + 2);
    bench.memory.write_obj(1000_u16, index).unwrap();
    assert!(queue::process(&bench.disk, &mut bench.queue, &bench.memory).is_err());
}

#[test]
fn a_head_outside_of_the_table_is_an_error_and_ends() {
    let mut bench = Bench::read_only(&numbered(1));
    bench.driver.publish(5000);
    assert!(queue::process(&bench.disk, &mut bench.queue, &bench.memory).is_err());
}

fn extents() -> Extents {
    let extent = |file: &[u8], file_offset_bytes, disk_offset_bytes, length_bytes| Extent {
        file: file_with(file),
        file_offset_bytes,
        disk_offset_bytes,
        length_bytes,
    };
    let second = extent(&numbered(8), 512, 4096, 1024);
    let first = extent(&numbered(2), 0, 0, 1024);
    Extents::new(vec![second, first], 8192).unwrap()
}

#[test]
fn extents_and_the_gaps_between_them_are_read_as_one_disk() {
    let mut bench = Bench::on(extents());
    bench.set_data(&[0xee; 8192]);
    assert_eq!(bench.request(READ, 0, writable(DATA, 8192)), (0, 8193));
    let mut expected = vec![0; 8192];
    expected[0..1024].copy_from_slice(&numbered(2));
    expected[4096..5120].copy_from_slice(&numbered(8)[512..1536]);
    assert_eq!(bench.data(8192), expected);
}

#[test]
fn a_read_may_begin_inside_of_an_extent() {
    let mut bench = Bench::on(extents());
    assert_eq!(bench.request(READ, 9, writable(DATA, 1024)), (0, 1025));
    assert_eq!(bench.data(1024), [[3; 512], [0; 512]].concat());
}

#[test]
fn extents_that_overlap_are_refused() {
    let extent = |disk_offset_bytes| Extent {
        file: file_with(&[]),
        file_offset_bytes: 0,
        disk_offset_bytes,
        length_bytes: 1024,
    };
    let error = Extents::new(vec![extent(0), extent(512)], 4096).unwrap_err();
    assert_eq!(
        error,
        ExtentsError::Overlap {
            disk_offset_bytes: 512
        }
    );
}

#[test]
fn an_extent_outside_of_the_disk_is_refused() {
    let extent = Extent {
        file: file_with(&[]),
        file_offset_bytes: 0,
        disk_offset_bytes: u64::MAX,
        length_bytes: 1024,
    };
    assert!(Extents::new(vec![extent], 4096).is_err());
}

pub(super) fn any_descriptor() -> impl Strategy<Value = (u64, u32, u16, u16)> {
    let address = prop_oneof![
        Just(HEADER),
        Just(STATUS),
        Just(DATA),
        Just(RING),
        0..0x10_0000_u64,
        any::<u64>()
    ];
    let length = prop_oneof![
        Just(1_u32),
        Just(16),
        Just(512),
        Just(0),
        0..8192_u32,
        any::<u32>()
    ];
    (address, length, 0..8_u16, 0..16_u16)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn no_table_of_descriptors_harms_the_device(
        descriptors in proptest::collection::vec(any_descriptor(), 16),
        heads in proptest::collection::vec(0..16_u16, 1..16),
        request_type in 0..14_u32,
        sector in prop_oneof![0..20_u64, any::<u64>()],
    ) {
        let (mut bench, file) = Bench::writable(&numbered(8));
        bench.header(request_type, sector);
        for (index, (address, length, flags, next)) in (0..).zip(descriptors) {
            bench
                .driver
                .write_descriptor(index, Descriptor::new(address, length, flags, next));
        }
        for head in heads {
            bench.driver.publish(head);
        }
        let _ = queue::process(&bench.disk, &mut bench.queue, &bench.memory);
        prop_assert_eq!(file.metadata().unwrap().len(), 8 * 512);
    }
}
