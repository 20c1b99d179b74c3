//! What workers say of themselves, as text in a store.

use crate::{RegistryError, WorkerStatus};

/// Celery's node names are host names with a short prefix; in bytes.
const MAX_NAME: usize = 255;

pub(crate) fn encode(worker: &WorkerStatus) -> Result<String, RegistryError> {
    if worker.name.is_empty() || worker.name.len() > MAX_NAME {
        return Err(RegistryError::InvalidName {
            what: "worker",
            name: worker.name.chars().take(MAX_NAME).collect(),
            rule: "use 1 to 255 bytes",
        });
    }
    Ok(serde_json::to_string(worker).expect("a status is plain values with text for keys"))
}

/// In the order of names. A worker whose words a newer rtask chose is passed over: it is better to miss one than
/// to see none.
pub(crate) fn decode(texts: Vec<String>) -> Vec<WorkerStatus> {
    let read = |text: &String| {
        serde_json::from_str(text).inspect_err(|error| tracing::warn!(%error, "a worker's status cannot be read")).ok()
    };
    let mut workers: Vec<WorkerStatus> = texts.iter().filter_map(read).collect();
    workers.sort_by(|one, other| one.name.cmp(&other.name));
    workers
}
