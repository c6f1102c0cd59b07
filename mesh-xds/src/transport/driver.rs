//! A connection that is moved by whoever reads from it.
//!
//! tonic spawns it, so that each frame of a response wakes another task, on another thread where one is idle: for a
//! whole mesh that is a good part of what it costs to receive it. Run by its reader it takes all that has come meanwhile
//! at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use hyper::rt::Executor;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// What tonic hands over to be run: a handful for each connection.
#[derive(Clone)]
pub(super) struct Tasks(mpsc::UnboundedSender<BoxFuture<'static, ()>>);

impl Executor<BoxFuture<'static, ()>> for Tasks {
    fn execute(&self, task: BoxFuture<'static, ()>) {
        // Nobody runs it: then nobody waits for it.
        let _ = self.0.send(task);
    }
}

/// The tasks of a connection. Once it is dropped the runtime has them, so that the connection ends in order.
pub(crate) struct Driver {
    tasks: FuturesUnordered<BoxFuture<'static, ()>>,
    new: mpsc::UnboundedReceiver<BoxFuture<'static, ()>>,
}

impl Driver {
    pub(super) fn new() -> (Tasks, Self) {
        let (tasks, new) = mpsc::unbounded_channel();
        let driver = Self {
            tasks: FuturesUnordered::new(),
            new,
        };
        (Tasks(tasks), driver)
    }

    /// Does what can be done now; to be polled whenever it wakes.
    pub(crate) fn run(&mut self, cx: &mut Context<'_>) {
        loop {
            let mut is_new = false;
            while let Poll::Ready(Some(task)) = self.new.poll_recv(cx) {
                self.tasks.push(task);
                is_new = true;
            }
            let polled = Pin::new(&mut self.tasks).poll_next(cx);
            if !is_new && !matches!(polled, Poll::Ready(Some(()))) {
                return;
            }
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.new.close();
        while let Ok(task) = self.new.try_recv() {
            self.tasks.push(task);
        }
        if let Ok(runtime) = Handle::try_current() {
            for task in std::mem::take(&mut self.tasks) {
                runtime.spawn(task);
            }
        }
    }
}
