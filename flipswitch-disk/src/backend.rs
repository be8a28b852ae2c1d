//! The file that the database uses.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use redb::{StorageBackend, backends::FileBackend};

use crate::file::Failure;

/// A file that stays locked until the last clone is dropped. A read beyond its end is an error: a damaged page can name any
/// length up to terabytes, and the database allocates that much before it reads, which would terminate the process.
#[derive(Clone, Debug)]
pub(crate) struct LockedFile {
    pub(crate) path: PathBuf,
    file: Arc<FileBackend>,
}

impl LockedFile {
    /// Opens and locks a file. Creates it if it does not exist.
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        for _ in 0..3 {
            let file = open_file(path)?;
            let identity = identity(&file.metadata()?);
            let locked = FileBackend::new(file)?;
            // Another process may have renamed the file before it was locked.
            if fs::metadata(path).is_ok_and(|metadata| self::identity(&metadata) == identity) {
                return Ok(Self { path: path.to_owned(), file: Arc::new(locked) });
            }
        }
        Err(redb::Error::DatabaseAlreadyOpen.into())
    }

    /// Renames the damaged file, so that a new one can be created.
    pub(crate) fn set_aside(&self, damage: &str) -> Result<(), Failure> {
        let aside = with_suffix(&self.path, ".unreadable");
        fs::rename(&self.path, &aside).map_err(|error| {
            Failure::temporary(format!("{damage}, and it cannot be renamed to {}: {error}", aside.display()))
        })?;
        self.forget_starts();
        tracing::warn!(
            target: "flipswitch",
            "the file {} cannot be used: {damage}; renamed it to {} and started with an empty file",
            self.path.display(), aside.display()
        );
        Ok(())
    }

    /// Returns the number of times in a row that the process exited before [`forget_starts`](Self::forget_starts), and adds one
    /// to it.
    pub(crate) fn count_start(&self) -> u32 {
        let starts = with_suffix(&self.path, ".starts");
        let count = fs::read_to_string(&starts).ok().and_then(|count| count.parse().ok()).unwrap_or(0_u32);
        // If this fails, only the protection against a file that terminates the process is missing.
        let _ = fs::write(starts, count.saturating_add(1).to_string());
        count
    }

    /// Sets the number of starts to zero.
    pub(crate) fn forget_starts(&self) {
        let _ = fs::remove_file(with_suffix(&self.path, ".starts"));
    }
}

impl StorageBackend for LockedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        if offset.saturating_add(len as u64) > self.file.len()? {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a page is beyond the end of the file"));
        }
        self.file.read(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self, eventual: bool) -> io::Result<()> {
        self.file.sync_data(eventual)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write(offset, data)
    }
}

/// Opens the file for reading and writing, and creates it if it does not exist.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Returns what distinguishes a file from others.
#[cfg(unix)]
fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;

    (metadata.dev(), metadata.ino())
}

#[cfg(not(unix))]
fn identity(_: &fs::Metadata) -> (u64, u64) {
    (0, 0)
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

#[cfg(all(test, unix))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_locked_file_is_the_one_at_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flags.redb");
        let rename = || {
            for _ in 0..10_000 {
                if let Ok(file) = LockedFile::open(&path) {
                    file.write(0, b"locked").unwrap();
                    assert_eq!(fs::read(&path).unwrap(), b"locked");
                    file.set_aside("damage").unwrap();
                }
            }
        };
        thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(rename))));
    }
}
