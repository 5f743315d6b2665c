//! Passing a notification on: an object that is told of readiness by many others tells its own observers once.
//!
//! Epoll instances watch one another, and one event may reach an instance by very many ways. Whatever is to be passed on
//! while a thread tells the observers of a queue waits until all of them are told.

use core::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

/// Somebody who tells others in turn.
pub trait Relay: Send + Sync {
    /// Tells them. Called without locks, under the rules of [`crate::Observer::notify`].
    fn pass_on(&self);
}

struct Walk {
    depth: Cell<usize>,
    waiting: RefCell<VecDeque<Arc<dyn Relay>>>,
}

thread_local! {
    static WALK: Walk = const { Walk { depth: Cell::new(0), waiting: RefCell::new(VecDeque::new()) } };
}

/// Runs `tell`, then, if it is the outermost call of this thread, everyone who was left to [`pass_on`] meanwhile.
pub(crate) fn during(tell: impl FnOnce()) {
    WALK.with(|walk| {
        let depth = walk.depth.get();
        walk.depth.set(depth + 1);
        tell();
        if depth == 0 {
            loop {
                let next = walk.waiting.borrow_mut().pop_front();
                let Some(next) = next else { break };
                next.pass_on();
            }
        }
        walk.depth.set(depth);
    });
}

/// Has `next` tell others once this thread has told the observers that it is at; at once if it is at none.
pub fn pass_on(next: Arc<dyn Relay>) {
    WALK.with(|walk| walk.waiting.borrow_mut().push_back(next));
    during(|| {});
}
