//! What a task has to do with System V IPC: its namespace, and what ends with it: semaphore changes, and the segments that it
//! made where their end is forced.

use core::sync::atomic::Ordering;
use std::sync::Arc;

use sentry_ipc::{IpcNamespace, UndoList};

use crate::Task;

impl Task {
    /// The IPC objects that the task sees.
    pub fn ipc(&self) -> Arc<IpcNamespace> {
        self.namespaces().ipc.extension::<IpcNamespace>()
    }

    /// Names the task as the maker of shared memory segments; never 0.
    pub fn shm_maker(&self) -> usize {
        self.made_shm.store(true, Ordering::Relaxed);
        core::ptr::from_ref(self).addr()
    }

    /// The namespace in which it may have made segments, to be told by [`Task::leave_shm`] that it is gone.
    pub(crate) fn ipc_of_made_shm(&self) -> Option<Arc<IpcNamespace>> {
        self.made_shm.swap(false, Ordering::Relaxed).then(|| self.ipc())
    }

    /// Is no segment's maker any more (`exit_shm`).
    pub(crate) fn leave_shm(&self, ipc: &IpcNamespace) {
        ipc.shm.maker_left(core::ptr::from_ref(self).addr());
    }

    /// The list of semaphore changes that are taken back at the task's end; made when it is first asked for.
    pub fn sem_undo_list(&self) -> Arc<UndoList> {
        Arc::clone(self.sem_undo.lock().get_or_insert_with(UndoList::new))
    }

    /// Shares the parent's list (`CLONE_SYSVSEM`).
    pub(crate) fn share_sem_undo(&self, parent: &Self) {
        let list = parent.sem_undo_list();
        *self.sem_undo.lock() = Some(list);
    }

    /// Names the list for comparison (`kcmp(2)`); 0 for none.
    pub fn sem_undo_identity(&self) -> u64 {
        self.sem_undo.lock().as_ref().map_or(0, |list| list.id())
    }

    /// Lets go of the list; the last one who does has the changes taken back (`exit_sem`).
    pub fn leave_sem_undo(&self) {
        let list = self.sem_undo.lock().take();
        if let Some(list) = list.and_then(Arc::into_inner) {
            list.apply(self.pid());
        }
    }
}
