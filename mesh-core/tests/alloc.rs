//! What is kept, and what is not, as allocations show it. Its own binary: the counting allocator is the
//! whole process's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use mesh_core::layers::{ReplayBody, RetryLayer};
use mesh_core::snapshot::Snapshot;
use mesh_core::xds::model::{Batch, Update, Workload};
use tower::{Layer, ServiceExt, service_fn};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// The one way to see allocations; the library itself has no unsafe code here.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Of more workloads than are kept, the answer is made again.
#[test]
fn policies_are_kept_for_as_many_workloads_as_is_set() {
    let updates: Vec<Update> = (0..8)
        .map(|number| Workload::new(format!("w{number}"), "default", format!("w{number}")).into())
        .collect();
    let batch = Batch::new(updates, Vec::new());
    for (most, again) in [(None, false), (Some(2), true), (Some(8), false)] {
        let mut snapshot = Snapshot::new();
        if let Some(most) = most {
            snapshot = snapshot.with_max_policy_views(most);
        }
        let snapshot = snapshot.apply(&batch).snapshot;
        let ask = || {
            let before = ALLOCATIONS.get();
            for uid in ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w7"] {
                snapshot.policies(uid).unwrap();
            }
            ALLOCATIONS.get() - before
        };
        assert!(ask() > 0);
        assert_eq!(ask() > 0, again, "{most:?}");
    }
}

/// Frames of ten bytes without end.
struct Small;

impl Body for Small {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = Frame::data(Bytes::from_static(b"ten bytes."));
        Poll::Ready(Some(Ok(frame)))
    }
}

/// Small frames that are kept are kept as copies.
#[tokio::test]
async fn a_body_is_copied_as_far_as_it_is_kept_and_no_further() {
    const KEPT: u64 = 20;
    let read = service_fn(async |request: Request<ReplayBody>| {
        let mut body = request.into_body();
        let mut read = |frames| {
            let before = ALLOCATIONS.get();
            for _ in 0..frames {
                let mut cx = Context::from_waker(Waker::noop());
                let frame = Pin::new(&mut body).poll_frame(&mut cx);
                assert!(matches!(frame, Poll::Ready(Some(Ok(_)))));
            }
            ALLOCATIONS.get() - before
        };
        let kept = read(KEPT);
        assert!(kept >= KEPT, "a copy of each: {kept}");
        assert_eq!(read(1000), 0, "of the rest nothing");
        Ok::<_, Infallible>(Response::new(http_body_util::Empty::<Bytes>::new()))
    });
    let bound = 10 * usize::try_from(KEPT).unwrap();
    let service = RetryLayer::new().replay_buffer(bound).layer(read);
    let request = Request::get("http://server/").body(Small).unwrap();
    service.oneshot(request).await.unwrap();
}
