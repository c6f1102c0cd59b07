//! The orders in which threads can meet at the registry of live connections, at that of the TLS connections below
//! them, and at the drain that waits for both, by loom: all in which at most three turns are cut short.
//!
//! All are the library's own files, compiled here with loom's primitives in the place of `std`'s and tokio's
//! (`src/sync.rs` is the seam). What they ask of their surroundings is played below.
#![cfg(feature = "http")]

mod drain;

use std::sync::Arc;

use loom::thread;
use mesh_core::ConnectionContext;
use mesh_core::authz::Identity;

use enforcement::Enforcement;
use net::{Cut, CutReason};
use registry::{Judgement, Refused, Registry};

mod sync {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    pub(crate) use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
    pub(crate) use loom::sync::{Mutex, MutexGuard};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().unwrap()
    }

    /// tokio's, as far as it is used: what was notified before is ordered before who sees it.
    #[derive(Debug, Default)]
    pub(crate) struct Notify(Mutex<Told>);

    #[derive(Debug, Default)]
    struct Told {
        calls: u64,
        waiting: Vec<Waker>,
    }

    pub(crate) struct Notified<'a> {
        notify: &'a Notify,
        before: u64,
    }

    impl Notify {
        pub(crate) fn new() -> Self {
            Self::default()
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            let before = self.0.lock().unwrap().calls;
            Notified {
                notify: self,
                before,
            }
        }

        pub(crate) fn notify_waiters(&self) {
            let waiting = {
                let mut told = self.0.lock().unwrap();
                told.calls += 1;
                std::mem::take(&mut told.waiting)
            };
            for waker in waiting {
                waker.wake();
            }
        }
    }

    pub(crate) mod watch {
        use std::ops::Deref;
        use std::sync::Arc;
        use std::task::{Poll, Waker};

        use loom::sync::Mutex;

        /// tokio's, as far as it is used, of values that are copied.
        #[derive(Debug)]
        pub(crate) struct Sender<T>(Arc<Mutex<State<T>>>);

        #[derive(Debug, Clone)]
        pub(crate) struct Receiver<T>(Arc<Mutex<State<T>>>);

        #[derive(Debug)]
        struct State<T> {
            value: T,
            waiting: Vec<Waker>,
        }

        pub(crate) struct Ref<T>(T);

        impl<T> Deref for Ref<T> {
            type Target = T;

            fn deref(&self) -> &T {
                &self.0
            }
        }

        impl<T: Copy> Sender<T> {
            pub(crate) fn new(value: T) -> Self {
                let waiting = Vec::new();
                Self(Arc::new(Mutex::new(State { value, waiting })))
            }

            pub(crate) fn subscribe(&self) -> Receiver<T> {
                Receiver(Arc::clone(&self.0))
            }

            pub(crate) fn borrow(&self) -> Ref<T> {
                Ref(self.0.lock().unwrap().value)
            }

            pub(crate) fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) {
                let waiting = {
                    let mut state = self.0.lock().unwrap();
                    match modify(&mut state.value) {
                        true => std::mem::take(&mut state.waiting),
                        false => Vec::new(),
                    }
                };
                for waker in waiting {
                    waker.wake();
                }
            }

            pub(crate) fn send_replace(&self, value: T) {
                self.send_if_modified(|before| {
                    *before = value;
                    true
                });
            }
        }

        impl<T: Copy> Receiver<T> {
            pub(crate) async fn wait_for(
                &mut self,
                wanted: impl Fn(&T) -> bool,
            ) -> Result<Ref<T>, ()> {
                std::future::poll_fn(|cx| {
                    let mut state = self.0.lock().unwrap();
                    if wanted(&state.value) {
                        return Poll::Ready(Ok(Ref(state.value)));
                    }
                    state.waiting.push(cx.waker().clone());
                    Poll::Pending
                })
                .await
            }
        }
    }

    impl Notified<'_> {
        pub(crate) fn enable(self: Pin<&mut Self>) -> bool {
            self.before != self.notify.0.lock().unwrap().calls
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            let mut told = self.notify.0.lock().unwrap();
            if told.calls != self.before {
                return Poll::Ready(());
            }
            told.waiting.push(cx.waker().clone());
            Poll::Pending
        }
    }
}

mod net {
    use loom::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug, Default)]
    pub(crate) struct Cut(AtomicBool);

    #[derive(Debug, Clone, Copy)]
    pub(crate) enum CutReason {
        Policy,
        Drain,
    }

    impl Cut {
        pub(crate) fn cut(&self, _: CutReason) {
            self.0.store(true, Ordering::Release);
        }

        pub(crate) fn cut_because(&self, reason: CutReason, _: String) {
            self.cut(reason);
        }

        pub(crate) fn is_cut(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }
}

#[path = "../../src/inbound/registry.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
pub(crate) mod registry;

#[path = "../../src/missed.rs"]
pub(crate) mod missed;

#[path = "../../src/inbound/sessions.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
pub(crate) mod sessions;

#[path = "../../src/inbound/live.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
pub(crate) mod live;

pub(crate) mod places {
    #[derive(Debug)]
    pub(crate) struct Place;
}

pub(crate) mod enforcement {
    use std::sync::Arc;

    use loom::sync::atomic::{AtomicBool, Ordering};
    use mesh_core::authz::PolicySet;
    use mesh_core::authz::policy::{Action, Policy, PolicyName};

    /// One set that allows everybody, and then one that allows nobody.
    #[derive(Debug)]
    pub(crate) struct Enforcement {
        everybody: PolicySet,
        nobody: PolicySet,
        denies: AtomicBool,
    }

    pub(crate) struct Policies<'a>(&'a Enforcement);

    pub(crate) struct Loaded<'a>(&'a PolicySet);

    impl Enforcement {
        pub(crate) fn new() -> Self {
            let name = PolicyName::new("default", "nobody");
            let nobody = Policy::new(name, Action::Allow, Vec::new());
            Self {
                everybody: PolicySet::new([]),
                nobody: PolicySet::new([Arc::new(nobody)]),
                denies: AtomicBool::new(false),
            }
        }

        /// As the library's `update`: whether it is another set than before.
        pub(crate) fn deny(&self) -> bool {
            !self.denies.swap(true, Ordering::AcqRel)
        }

        pub(crate) fn on(&self, _: u16) -> Policies<'_> {
            Policies(self)
        }
    }

    impl<'a> Policies<'a> {
        pub(crate) fn load(&self) -> Loaded<'a> {
            let Enforcement {
                everybody,
                nobody,
                denies,
            } = self.0;
            Loaded(match denies.load(Ordering::Acquire) {
                true => nobody,
                false => everybody,
            })
        }
    }

    impl<'a> Loaded<'a> {
        pub(crate) fn policies(&self) -> &'a PolicySet {
            self.0
        }
    }
}

fn context() -> ConnectionContext {
    let address = "10.0.0.1:80".parse().unwrap();
    let identity = Identity::new("cluster.local", "default", "client").unwrap();
    ConnectionContext::tunnel(address, address, identity)
}

fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Registered, then judged; stored, then swept: one of the two sees the other.
#[test]
fn no_connection_slips_through_a_change_of_policy() {
    check(|| {
        let registry = Arc::new(Registry::new(8));
        let enforcement = Arc::new(Enforcement::new());
        let arrives = {
            let (registry, enforcement) = (Arc::clone(&registry), Arc::clone(&enforcement));
            thread::spawn(move || registry.admit(&context(), Judgement::L4, &enforcement))
        };
        registry.enforce(&enforcement, Enforcement::deny);
        match arrives.join().unwrap() {
            Ok(registered) => assert!(registered.cut().is_cut(), "denied, and alive"),
            Err(refused) => assert!(matches!(refused, Refused::Denied(..))),
        }
        assert_eq!(registry.live(), 0);
    });
}

/// Never more than permitted, and whoever is refused takes no room.
#[test]
fn the_limit_holds_for_those_who_come_at_once() {
    check(|| {
        let registry = Arc::new(Registry::new(1));
        let arrive = || {
            let registry = Arc::clone(&registry);
            thread::spawn(move || registry.enter(context(), Judgement::L4))
        };
        let (one, other) = (arrive(), arrive());
        let entered = [one.join().unwrap(), other.join().unwrap()];
        assert!(entered.iter().flatten().count() <= 1);
        drop(entered);
        assert_eq!(registry.live(), 0);
        assert!(registry.enter(context(), Judgement::L4).is_some());
    });
}

/// A drain that waits hears of the last that leaves, whenever it does.
#[test]
fn a_drain_hears_of_the_last_that_leaves() {
    check(|| {
        let registry = Arc::new(Registry::new(8));
        let registered = registry.enter(context(), Judgement::L4).unwrap();
        let leaves = thread::spawn(move || drop(registered));
        loom::future::block_on(registry.emptied());
        assert_eq!((registry.live(), registry.left()), (0, 1));
        leaves.join().unwrap();
    });
}

/// Whoever was there when the deadline passed was cut, or left by itself.
#[test]
fn a_deadline_cuts_whoever_has_not_left() {
    check(|| {
        let registry = Arc::new(Registry::new(8));
        let stays = registry.enter(context(), Judgement::L4).unwrap();
        let goes = registry.enter(context(), Judgement::L4).unwrap();
        let cut: Arc<Cut> = Arc::clone(stays.cut());
        let leaves = thread::spawn(move || drop(goes));
        let count = registry.cut_all(CutReason::Policy);
        assert!((1..=2).contains(&count));
        assert!(cut.is_cut());
        leaves.join().unwrap();
    });
}
