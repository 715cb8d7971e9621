//! News without content, across threads: whoever hears it looks for himself.

use std::sync::{Mutex, PoisonError};

use async_channel::{Receiver, Sender, TrySendError};

/// Rung by one, heard by many, on any thread.
#[derive(Debug, Default)]
pub(crate) struct Bell(Mutex<Vec<Sender<()>>>);

impl Bell {
    /// An ear: it holds one ring at most, so that many are heard as one.
    pub(crate) fn listen(&self) -> Receiver<()> {
        let (sender, receiver) = async_channel::bounded(1);
        self.ring_into(sender);
        receiver
    }

    /// An ear that the listener rings itself as well.
    pub(crate) fn ring_into(&self, ear: Sender<()>) {
        let ears = self.0.lock();
        ears.unwrap_or_else(PoisonError::into_inner).push(ear);
    }

    /// Tells everyone who still listens.
    pub(crate) fn ring(&self) {
        let ears = self.0.lock();
        let mut ears = ears.unwrap_or_else(PoisonError::into_inner);
        ears.retain(|ear| !matches!(ear.try_send(()), Err(TrySendError::Closed(()))));
    }
}

/// Something that happens once, and can be waited for on any thread.
#[derive(Clone, Debug)]
pub(crate) struct Once {
    sender: Sender<()>,
    receiver: Receiver<()>,
}

impl Once {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = async_channel::bounded(1);
        Self { sender, receiver }
    }

    /// It has happened.
    pub(crate) fn set(&self) {
        self.sender.close();
    }

    pub(crate) fn is_set(&self) -> bool {
        self.sender.is_closed()
    }

    /// Completes once it has happened. Cancel safe.
    pub(crate) async fn wait(&self) {
        // Nothing is ever sent: an error means closed.
        let _closed = self.receiver.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_heard_once_and_by_all_who_listen() {
        let bell = Bell::default();
        let (a, b) = (bell.listen(), bell.listen());
        bell.ring();
        bell.ring();
        assert!(a.try_recv().is_ok() && a.try_recv().is_err());
        drop(a);
        bell.ring();
        assert!(b.try_recv().is_ok() && b.try_recv().is_err());
        let ears = bell.0.lock();
        assert_eq!(ears.map(|ears| ears.len()).ok(), Some(1));
    }
}
