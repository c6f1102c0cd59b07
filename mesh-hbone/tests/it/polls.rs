//! Futures that are dropped before they are complete.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::task::Poll;

/// Runs a future and drops it in its `polls`th poll unless it is complete by then.
pub(crate) async fn cut<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (pin!(future), polls);
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Tells the story with a cut after each number of polls until there is none: the story says whether
/// there was one. A future without a wait in it is no test of this.
pub(crate) async fn at_every_poll(at_least: usize, mut story: impl AsyncFnMut(usize) -> bool) {
    let mut polls = 0;
    while story(polls).await {
        polls += 1;
        assert!(polls < 2000, "it does not end");
    }
    assert!(polls >= at_least, "only {polls} places to cut it at");
}

/// Runs a future; the one that is under way in the `left`th poll of all is dropped there.
pub(crate) async fn once<F: Future>(left: &AtomicUsize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if left.load(SeqCst) == 0 => Poll::Pending,
        Poll::Pending if left.fetch_sub(1, SeqCst) == 1 => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}
