//! The flags file: read at the start, and again when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::{
    definition::{self, Flags},
    store::Store,
};

/// Editors write a file in several steps; this long after the first of them it is read.
const SETTLE: Duration = Duration::from_millis(50);

/// Reads a flags file.
///
/// # Errors
///
/// An error that names the file, and the place in it: line and column, or flag and field.
pub(crate) fn read(path: &Path) -> io::Result<Flags> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let json = serde_json::from_slice(&text)
        .map_err(|error| invalid(format!("{name}:{}:{}: not JSON: {error}", error.line(), error.column())))?;
    definition::document(json).map_err(|error| invalid(format!("{name}: {error}")))
}

/// Watches a file for changes.
pub(crate) struct Watch {
    path: PathBuf,
    changed: Arc<Notify>,
    /// Keeps the operating system telling us.
    _watcher: notify::RecommendedWatcher,
}

impl Watch {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let told = move |event: notify::Result<notify::Event>| {
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                notify.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(told).map_err(io::Error::other)?;
        // The folder, not the file: editors replace the file, and a watch would go with the old one.
        let folder = path.parent().unwrap_or(&path);
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        Ok(Self { path, changed, _watcher: watcher })
    }

    /// Brings every change of the file into the store. A file that cannot be read changes nothing.
    pub(crate) async fn follow(self, store: Arc<Store>, mut last: Flags) {
        let mut complaint = None;
        loop {
            self.changed.notified().await;
            tokio::time::sleep(SETTLE).await;
            let path = self.path.clone();
            let Ok(flags) = tokio::task::spawn_blocking(move || read(&path)).await else { continue };
            match flags {
                Ok(flags) => {
                    let changed = store.apply(&last, &flags);
                    if !changed.is_empty() || complaint.is_some() {
                        tracing::info!(target: "flipswitch_local", flags = flags.len(), ?changed, "read the flags file");
                    }
                    last = flags;
                    complaint = None;
                }
                Err(error) => {
                    let text = error.to_string();
                    // Any change in the folder wakes us; one mistake is told once.
                    if complaint.as_ref() != Some(&text) {
                        tracing::error!(target: "flipswitch_local", "{text}; the flags stay as they were");
                        complaint = Some(text);
                    }
                }
            }
        }
    }
}
