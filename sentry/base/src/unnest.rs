//! Dropping values that may hold more of their kind, without recursion.

use core::cell::RefCell;
use std::thread::LocalKey;

/// What waits to be dropped by the call further up this thread's stack, if there is one.
pub type Waiting<T> = RefCell<Option<Vec<T>>>;

/// Drops `values`. What their own drop lets go by this function, with the same list, is dropped here and not by recursion:
/// nobody can overflow the stack with a chain of them.
pub fn drop_in_turn<T>(waiting: &'static LocalKey<Waiting<T>>, values: Vec<T>) {
    if values.is_empty() {
        return;
    }
    let mut values = Some(values);
    let nested = waiting.with_borrow_mut(|waiting| {
        if let Some(list) = waiting {
            list.extend(values.take().unwrap_or_default());
            return true;
        }
        *waiting = values.take();
        false
    });
    if nested {
        return;
    }
    while let Some(value) = waiting.with_borrow_mut(|waiting| waiting.as_mut().and_then(Vec::pop)) {
        drop(value);
    }
    waiting.set(None);
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static WAITING: Waiting<Link> = const { RefCell::new(None) };
    }

    struct Link(Option<Box<Link>>);

    impl Drop for Link {
        fn drop(&mut self) {
            drop_in_turn(&WAITING, self.0.take().map(|next| *next).into_iter().collect());
        }
    }

    #[test]
    fn a_long_chain_needs_no_stack() {
        let mut chain = Link(None);
        for _ in 0..100_000 {
            chain = Link(Some(Box::new(chain)));
        }
        let small = std::thread::Builder::new().stack_size(64 * 1024);
        small.spawn(move || drop(chain)).unwrap().join().unwrap();
    }
}
