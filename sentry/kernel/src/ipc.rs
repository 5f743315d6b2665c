//! What a task has to do with System V IPC: its namespace, and the semaphore changes that end with it.

use std::sync::Arc;

use sentry_ipc::{IpcNamespace, UndoList};

use crate::Task;

impl Task {
    /// The IPC objects that the task sees.
    pub fn ipc(&self) -> Arc<IpcNamespace> {
        self.namespaces().ipc.extension::<IpcNamespace>()
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
