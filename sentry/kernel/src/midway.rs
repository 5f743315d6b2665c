//! Threads that are found in a detour of changed text: they are shown where the text of the file has them.
//!
//! A detour may stand for several instructions. A thread between two of them is at a place that the changed text does not
//! have, and whoever learns of that place might go on there. So nobody learns of it: an interrupted thread goes on by
//! single steps until it is past them. Only where one of these instructions faults, and that is for the application to
//! see, the text becomes the file's first.

use abi::signal::sig;
use platform::TrapEvent;
use sentry_mm::Place;

use crate::Current;
use crate::run::fault;

/// `TRAP_TRACE`: a single step.
const TRAP_TRACE: i32 = 2;

/// Puts the registers right after `event`, which was no call. True if that was all there is to do about it. `midway` says
/// that the thread was to make a step of a detour, and whether it is to make one more.
pub(crate) fn settle(cx: &mut Current, event: &TrapEvent, midway: &mut bool) -> bool {
    let step =
        matches!(event, TrapEvent::Exception(info) if info.signo == sig::TRAP && info.code == TRAP_TRACE);
    let ours = core::mem::take(midway) && step;
    let mm = cx.task.mm();
    match mm.shown_place(cx.regs.rip) {
        Place::Plain => ours,
        Place::At(place) => {
            if step && !ours {
                // The application steps itself, and has stepped over the jump to the detour: the instruction is still to
                // come, and has to be in its place, for the thread would come from there to the detour for ever.
                mm.keep_text();
            }
            cx.regs.rip = place;
            step
        }
        Place::Between(place) => {
            let goes_on = match *event {
                TrapEvent::Interrupted => true,
                TrapEvent::Fault { addr, access } if fault(cx, addr, access) => true,
                _ => ours,
            };
            if goes_on {
                *midway = true;
                return true;
            }
            mm.show_text_of(cx.regs.rip);
            cx.regs.rip = place;
            matches!(event, TrapEvent::Fault { .. })
        }
    }
}
