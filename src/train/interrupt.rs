use std::{
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{Flow, Observer, StepReport};
use crate::Result;

static ASKED: AtomicBool = AtomicBool::new(false);
static LISTENING: Mutex<bool> = Mutex::new(false);

/// Ctrl-C as a word to the loop: the step is finished, [`fit`](super::Trainer::fit) returns, and there is time to save. A
/// second one ends the process at once, with code 130; so does any other signal, and what was saved before is whole.
///
/// [`Checkpoint`](super::Checkpoint) shows it at work.
#[derive(Debug)]
pub struct Interrupt(());

impl Interrupt {
    /// Listens from here on, in place of whoever did before. All of a process share one flag.
    ///
    /// # Errors
    /// [`Interrupt`](crate::Error::Interrupt) when the system refuses, or the program has set a handler with `ctrlc` itself.
    pub fn listen() -> Result<Self> {
        let mut listening = LISTENING.lock().unwrap_or_else(PoisonError::into_inner);
        if !*listening {
            ctrlc::set_handler(|| {
                if ASKED.swap(true, Ordering::Relaxed) {
                    process::exit(130);
                }
            })?;
            *listening = true;
        }
        Ok(Self(()))
    }

    /// Whether Ctrl-C was pressed.
    pub fn is_asked(&self) -> bool {
        ASKED.load(Ordering::Relaxed)
    }

    /// Forgets it, so that the process may go on with something else.
    pub fn forget(&mut self) {
        ASKED.store(false, Ordering::Relaxed);
    }
}

impl Observer for Interrupt {
    fn on_step(&mut self, _: &StepReport) -> Flow {
        if self.is_asked() { Flow::Stop } else { Flow::Continue }
    }
}
