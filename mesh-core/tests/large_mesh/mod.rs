//! A mesh of any size as istiod describes it, and an allocator that counts: of the whole process, so each test that
//! has it is a binary of its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

/// Bytes that are allocated now.
pub(crate) static LIVE: AtomicUsize = AtomicUsize::new(0);

// The one way to see allocations; the library itself has no unsafe code here.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// What a general allocator hands out for a request: a multiple of 16 bytes.
fn rounded(size: usize) -> usize {
    size.next_multiple_of(16)
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Writes protobuf: fields with a length, and numbers.
#[derive(Default)]
pub(crate) struct Writer(pub(crate) Vec<u8>);

impl Writer {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn bytes(mut self, number: u64, value: &[u8]) -> Self {
        self.varint(number << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn text(self, number: u64, value: &str) -> Self {
        self.bytes(number, value.as_bytes())
    }

    pub(crate) fn number(mut self, number: u64, value: u64) -> Self {
        self.varint(number << 3);
        self.varint(value);
        self
    }
}

/// The uid and the `istio.workload.Address` of a Pod. Pods of one deployment each 16, in namespaces of 32 deployments; 50 pods a node, three zones.
pub(crate) fn workload(index: usize) -> (String, Vec<u8>) {
    let deployment = index / 16;
    let namespace = format!("team-{}", deployment / 32);
    let app = format!("service-{deployment}");
    let pod = format!(
        "{app}-{:08x}-{:05x}",
        deployment.wrapping_mul(0x9e37_79b9) as u32,
        index
    );
    let uid = format!("Kubernetes//Pod/{namespace}/{pod}");
    let node = index * 7 % 100_000 / 50;
    let ip = [10, (index >> 16) as u8, (index >> 8) as u8, index as u8];
    let port = Writer::default().number(1, 80).number(2, 8080).number(3, 2);
    let ports = Writer::default().bytes(1, &port.0);
    let hostname = format!("{namespace}/{app}.{namespace}.svc.cluster.local");
    let service = Writer::default().text(1, &hostname).bytes(2, &ports.0);
    let zone = format!("region-1-{}", node % 3);
    let locality = Writer::default().text(1, "region-1").text(2, &zone);
    let workload = Writer::default()
        .text(1, &pod)
        .text(2, &namespace)
        .bytes(3, &ip)
        .text(4, "network-1")
        .number(5, 1)
        .text(7, &app)
        .text(9, &format!("node-{node}.internal"))
        .text(10, &app)
        .text(11, "v1")
        .text(13, &app)
        .text(18, "Kubernetes")
        .text(20, &uid)
        .bytes(22, &service.0)
        .bytes(24, &locality.0);
    (uid, Writer::default().bytes(1, &workload.0).0)
}

/// The name and the `istio.workload.Address` of a deployment's service.
pub(crate) fn service(index: usize) -> (String, Vec<u8>) {
    let namespace = format!("team-{}", index / 32);
    let app = format!("service-{index}");
    let hostname = format!("{app}.{namespace}.svc.cluster.local");
    let name = format!("{namespace}/{hostname}");
    let vip = Writer::default().text(1, "network-1").bytes(
        2,
        &[172, (index >> 16) as u8, (index >> 8) as u8, index as u8],
    );
    let port = Writer::default().number(1, 80).number(2, 8080).number(3, 2);
    let service = Writer::default()
        .text(1, &app)
        .text(2, &namespace)
        .text(3, &hostname)
        .bytes(4, &vip.0)
        .bytes(5, &port.0)
        .number(11, 1);
    (name, Writer::default().bytes(2, &service.0).0)
}
