//! The flags file: read at the start, and again when it changes.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use notify::{RecursiveMode, Watcher};
use tokio::{sync::Notify, time::MissedTickBehavior};

use crate::{
    flags::definition::{self, Flags},
    flags::store::Store,
};

/// Editors write a file in several steps; this long after the first of them it is read.
const SETTLE: Duration = Duration::from_millis(50);

/// The operating system tells of changes at once, but not of all of them: it watches the folder that the path names, not
/// that of a link's target, and not one that takes a removed folder's place. So we look for ourselves this often.
const LOOK: Duration = Duration::from_secs(1);

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

/// Warns of flags in a file that cannot work for everybody.
pub(crate) fn warn_of_mistakes(path: &Path, flags: &Flags) {
    for mistake in flags.iter().filter_map(|(key, flag)| flag.mistake(key)) {
        let name = path.display();
        tracing::warn!(target: "flipswitch_local", "{name}: {mistake}; who meets that gets an error for the flag");
    }
}

/// What tells one state of a file from another without reading it; of a link, that of its target.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    length: u64,
    /// Device and inode: a file that replaces another may be as long and as old.
    #[cfg(unix)]
    file: (u64, u64),
}

impl Stamp {
    /// `None` while there is no file, or none that can be looked at.
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

/// Watches a file for changes.
pub(crate) struct Watch {
    path: PathBuf,
    /// Of the state that was read last, or of an earlier one.
    stamp: Option<Stamp>,
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
        let stamp = Stamp::of(&path);
        Ok(Self { path, stamp, changed, _watcher: watcher })
    }

    /// Brings every change of the file into the store.
    pub(crate) async fn follow(mut self, store: Arc<Store>, last: Flags) {
        let mut follower = Follower { store, last, complaint: None };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                _ = look.tick() => {
                    let path = self.path.clone();
                    match tokio::task::spawn_blocking(move || Stamp::of(&path)).await {
                        Ok(stamp) if stamp != self.stamp => {}
                        _ => continue,
                    }
                }
            }
            tokio::time::sleep(SETTLE).await;
            let path = self.path.clone();
            // The stamp comes first: a change after it makes the next look find another one.
            let Ok((stamp, flags)) = tokio::task::spawn_blocking(move || (Stamp::of(&path), read(&path))).await else {
                continue;
            };
            self.stamp = stamp;
            // A file in the same folder, such as our own log, wakes us as well.
            if let Some(flags) = flags.as_ref().ok().filter(|flags| **flags != follower.last) {
                warn_of_mistakes(&self.path, flags);
            }
            follower.take(flags);
        }
    }
}

/// What has come of the file so far.
struct Follower {
    store: Arc<Store>,
    /// The flags that the file had when it could last be read.
    last: Flags,
    /// What was wrong with the file after that.
    complaint: Option<String>,
}

impl Follower {
    /// Takes over what the file has now. A file that cannot be read changes nothing.
    fn take(&mut self, flags: io::Result<Flags>) {
        match flags {
            Ok(flags) => {
                let changed = self.store.apply(&self.last, &flags);
                if !changed.is_empty() || self.complaint.is_some() {
                    tracing::info!(target: "flipswitch_local", flags = flags.len(), ?changed, "read the flags file");
                }
                self.last = flags;
                self.complaint = None;
            }
            Err(error) => {
                let text = error.to_string();
                // Any change in the folder wakes us; one mistake is told once.
                if self.complaint.as_ref() != Some(&text) {
                    tracing::error!(target: "flipswitch_local", "{text}; the flags stay as they were");
                    self.complaint = Some(text);
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
    fn a_mistake_changes_nothing_and_is_no_state_to_compare_with() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("flags.json");
        let write = |text: &str| {
            std::fs::write(&path, text).unwrap();
            read(&path)
        };
        let good = write(r#"{"a": 1, "b": 1}"#).unwrap();
        let store = Arc::new(Store::new(good.clone(), Arc::default()));
        let mut follower = Follower { store: Arc::clone(&store), last: good.clone(), complaint: None };
        store.set("b", definition::Definition::Plain(json!("by hand")));
        let served = store.to_json();

        for mistake in [r#"{"a": "#, "", r#"{"flags": {"a": {"state": "ON"}}}"#] {
            let outcome = write(mistake);
            let text = outcome.as_ref().unwrap_err().to_string();
            follower.take(outcome);
            assert_eq!(store.to_json(), served, "after {mistake:?}");
            assert_eq!(follower.last, good, "after {mistake:?}");
            assert_eq!(follower.complaint, Some(text));
        }

        // Compared with the last good state: nothing new about b, which was set by hand.
        follower.take(write(r#"{"a": 2, "b": 1}"#));
        assert_eq!(store.to_json(), json!({"flags": {"a": {"value": 2}, "b": {"value": "by hand"}}}));
        assert_eq!(follower.complaint, None);
    }

    #[test]
    fn a_stamp_tells_states_apart() {
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
