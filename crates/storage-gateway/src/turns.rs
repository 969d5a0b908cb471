//! One at a time for each upload.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::OwnedMutexGuard;
use uuid::Uuid;

type Turn = tokio::sync::Mutex<()>;

/// Held as long as an upload is worked on.
pub type Guard = OwnedMutexGuard<()>;

/// Only what is being worked on takes memory.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<Uuid, Weak<Turn>>>);

impl Turns {
    /// Waits until nobody else has the turn of `upload`.
    pub async fn take(&self, upload: Uuid) -> Guard {
        let turn: Arc<Turn> = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| turn.strong_count() > 0);
            let turn = turns.get(&upload).and_then(Weak::upgrade).unwrap_or_default();
            turns.insert(upload, Arc::downgrade(&turn));
            turn
        };
        turn.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn an_upload_has_one_turn_at_a_time_and_leaves_nothing_behind() {
        let (turns, a, b) = (Turns::default(), Uuid::new_v4(), Uuid::new_v4());
        let first = turns.take(a).await;
        assert!(turns.take(a).now_or_never().is_none());
        let other = turns.take(b).await;
        drop(first);
        drop(turns.take(a).await);
        drop(other);
        drop(turns.take(Uuid::new_v4()).await);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
    }
}
