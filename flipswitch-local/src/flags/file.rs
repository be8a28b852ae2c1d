//! The flags file: read at startup, and again whenever it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{RecursiveMode, Watcher};
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::flags::{
    definition::{self, Flags},
    store::FlagStore,
};

/// Time from the first notification to reading the file. Editors write a file in several steps.
const SETTLE_TIME: Duration = Duration::from_millis(50);

/// Interval of checks without a notification. The operating system watches the folder of the path, so it misses changes to the
/// target of a link, and changes in a folder that replaces a removed one.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Reads a flags file.
///
/// # Errors
///
/// Returns an error that names the file and the position in it: line and column, or flag and field.
pub(crate) fn read(path: &Path) -> io::Result<Flags> {
    let name = path.display();
    let text = std::fs::read(path).map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
    let invalid = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let json = serde_json::from_slice(&text)
        .map_err(|error| invalid(format!("{name}:{}:{}: not JSON: {error}", error.line(), error.column())))?;
    definition::parse_document(json).map_err(|error| invalid(format!("{name}: {error}")))
}

/// Logs a warning for each flag whose targeting rule is invalid.
pub(crate) fn warn_of_invalid_rules(path: &Path, flags: &Flags) {
    for error in flags.iter().filter_map(|(key, flag)| flag.validate_rule(key).err()) {
        let name = path.display();
        tracing::warn!(target: "flipswitch_local", "{name}: {error}; evaluations that reach this rule return an error");
    }
}

/// Metadata that differs between two versions of a file. For a link, the metadata of its target.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    /// Device and inode. A file that replaces another one can have the same length and time.
    #[cfg(unix)]
    file: (u64, u64),
}

impl Stamp {
    /// Returns `None` if the metadata cannot be read, for example if there is no file.
    fn of(path: &Path) -> Option<Self> {
        #[cfg(unix)]
        use std::os::unix::fs::MetadataExt;

        let metadata = std::fs::metadata(path).ok()?;
        Some(Self {
            modified: metadata.modified().ok(),
            length: metadata.len(),
            #[cfg(unix)]
            file: (metadata.dev(), metadata.ino()),
        })
    }
}

/// Watches a flags file for changes.
pub(crate) struct FileWatcher {
    path: PathBuf,
    /// The stamp of the version that was read last, or of an earlier one.
    stamp: Option<Stamp>,
    changed: Arc<Notify>,
    /// Dropping it ends the notifications.
    _watcher: notify::RecommendedWatcher,
}

impl FileWatcher {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let changed = Arc::new(Notify::new());
        let notify = Arc::clone(&changed);
        let on_event = move |event: notify::Result<notify::Event>| {
            if !matches!(&event, Ok(event) if event.kind.is_access()) {
                notify.notify_one();
            }
        };
        let mut watcher = notify::recommended_watcher(on_event).map_err(io::Error::other)?;
        // Watches the folder: editors replace the file, and a watch on the file would stay with the old one.
        let folder = path.parent().unwrap_or(&path);
        watcher.watch(folder, RecursiveMode::NonRecursive).map_err(io::Error::other)?;
        let stamp = Stamp::of(&path);
        Ok(Self { path, stamp, changed, _watcher: watcher })
    }

    /// Applies every change to the file to the store. `flags` are the flags that have been read from the file.
    pub(crate) async fn run(mut self, store: Arc<FlagStore>, flags: Flags) {
        let mut reloader = Reloader { store, flags, last_error: None };
        let mut check = tokio::time::interval(CHECK_INTERVAL);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                _ = check.tick() => {
                    let path = self.path.clone();
                    match tokio::task::spawn_blocking(move || Stamp::of(&path)).await {
                        Ok(stamp) if stamp != self.stamp => {}
                        _ => continue,
                    }
                }
            }
            tokio::time::sleep(SETTLE_TIME).await;
            let path = self.path.clone();
            // The stamp comes first, so that the next check notices a change after it.
            let Ok((stamp, flags)) = tokio::task::spawn_blocking(move || (Stamp::of(&path), read(&path))).await else {
                continue;
            };
            self.stamp = stamp;
            // Other files in the folder, such as a log, cause notifications as well.
            if let Some(flags) = flags.as_ref().ok().filter(|flags| **flags != reloader.flags) {
                warn_of_invalid_rules(&self.path, flags);
            }
            reloader.reload(flags);
        }
    }
}

/// Applies versions of the file to the store.
struct Reloader {
    store: Arc<FlagStore>,
    /// The flags of the last valid version.
    flags: Flags,
    /// The error of the latest version, if it is invalid.
    last_error: Option<String>,
}

impl Reloader {
    /// Applies a version of the file. An invalid version changes nothing.
    fn reload(&mut self, flags: io::Result<Flags>) {
        match flags {
            Ok(flags) => {
                let changed = self.store.apply_changes(&self.flags, &flags);
                if !changed.is_empty() || self.last_error.is_some() {
                    tracing::info!(target: "flipswitch_local", flags = flags.len(), ?changed, "reloaded the flags file");
                }
                self.flags = flags;
                self.last_error = None;
            }
            Err(error) => {
                let error = error.to_string();
                // Any change in the folder leads here, so the same error is logged only once.
                if self.last_error.as_ref() != Some(&error) {
                    tracing::error!(target: "flipswitch_local", "{error}; keeping the previous flags");
                    self.last_error = Some(error);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_invalid_version_changes_nothing_and_is_not_compared_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let good = write(r#"{"a": 1, "b": 1}"#).unwrap();
        let store = Arc::new(FlagStore::new(good.clone(), Arc::default()));
        let mut reloader = Reloader { store: Arc::clone(&store), flags: good.clone(), last_error: None };
        store.set("b", definition::Definition::Plain(json!("changed")));
        let served = store.to_json();

        for invalid in [r#"{"a": "#, "", r#"{"flags": {"a": {"state": "ON"}}}"#] {
            let outcome = write(invalid);
            let text = outcome.as_ref().unwrap_err().to_string();
            reloader.reload(outcome);
            assert_eq!(store.to_json(), served, "after {invalid:?}");
            assert_eq!(reloader.flags, good, "after {invalid:?}");
            assert_eq!(reloader.last_error, Some(text));
        }

        // The file is compared with its last valid version, in which b is the same, so the changed b stays.
        reloader.reload(write(r#"{"a": 2, "b": 1}"#));
        assert_eq!(store.to_json(), json!({"flags": {"a": {"value": 2}, "b": {"value": "changed"}}}));
        assert_eq!(reloader.last_error, None);
    }

    #[test]
    fn stamps_of_different_versions_differ() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        assert_eq!(Stamp::of(&path), None);
        let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let write = |path: &Path, text: &str, modified: SystemTime| {
            std::fs::write(path, text).unwrap();
            std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
        };
        write(&path, "{}", old);
        let first = Stamp::of(&path);
        assert!(first.is_some());
        assert_eq!(Stamp::of(&path), first);
        write(&path, "{ }", old);
        assert_ne!(Stamp::of(&path), first, "another length");
        write(&path, "{}", old + Duration::from_millis(1));
        assert_ne!(Stamp::of(&path), first, "another time");
        #[cfg(unix)]
        {
            let other = folder.path().join("other.json");
            write(&other, "{}", old);
            assert_ne!(Stamp::of(&other), first, "another file");
        }
    }
}
