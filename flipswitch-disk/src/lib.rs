//! A file store for the provider in the crate [`flipswitch`], which evaluates feature flags from
//! [Flipswitch](https://flipswitch.io) and from any other service that speaks OFREP.
//!
//! If the process restarts while the flag service is unavailable, users get their last known flags from the file.
//!
//! # Example
//!
//! ```no_run
//! use flipswitch_disk::{
//!     DiskStore,
//!     flipswitch::{Context, FlipswitchProvider},
//! };
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let provider = FlipswitchProvider::builder("an API key of the flag service")
//!         // The directory must exist and be writable.
//!         .store(DiskStore::open("/var/lib/my-application/flags.redb")?)
//!         .build()?;
//!
//!     let flags = provider.flags(Context::user("user-123")).await;
//!     println!("{}", flags.bool("new-checkout", false));
//!     provider.shutdown().await;
//!     Ok(())
//! }
//! ```
//!
//! The provider encrypts the entries. This requires an API key of at least 16 bytes, or a
//! [`secret`](flipswitch::FlipswitchProviderBuilder::secret).
//!
//! # Items by purpose
//!
//! | purpose | items |
//! |---|---|
//! | Open a file | [`DiskStore::open`] |
//! | Open a file with a limit other than 256 MiB | [`DiskStore::open_with_limit`] |
//! | Share a file between providers in one process | an `Arc` of a [`DiskStore`] |
//! | The version of the provider's crate | [`flipswitch`] |
//!
//! This crate has no features.
//!
//! # The file
//!
//! Only one store in one process can use the file at a time. Its directory must exist, be writable, and be on a local disk. On
//! Unix, only the owner can read a new file.
//!
//! - If another process or store has the file open, operations fail. The store tries again every 3 seconds, so a new process gets
//!   the file after a rolling restart.
//! - If the file is damaged or was written by a newer version, the store logs a warning, renames the file to `<path>.unreadable`,
//!   and starts with an empty file. You can delete the renamed file.
//! - If such a file cannot be renamed, operations fail, and the store tries again. This is the case if the file itself is a mount
//!   point, or if its directory is read-only.
//! - If the disk is full or fails, operations fail, and the store opens the file again every 3 seconds.
//! - If the process crashes or is killed, the writes of the last second may be lost.
//! - If the directory does not exist, or the file cannot be written, [`DiskStore::open`] returns an error.
//!
//! The provider logs when operations fail, and when they succeed again. Evaluations never fail because of the store.
//!
//! # Damage that terminates the process
//!
//! Damage can make the database library panic, and the store catches the panic. In rare cases, the damage still terminates the
//! process, as every panic does in a program that is built with `panic = "abort"`. For this reason, the store counts its starts
//! in the file `<path>.starts`, and removes this file after 10 seconds or when the store is dropped. If the process has exited
//! before that three times in a row, for any reason, the next start treats the file as damaged. A program that usually runs for
//! less than 10 seconds must therefore drop the store before it exits. Damage that terminates the process later is not detected,
//! and the store never checks the whole file.
//!
//! # Shutdown and size
//!
//! Dropping the store commits the last writes, which can block for up to 3 seconds. The global API of OpenFeature never drops its
//! provider, so its store is not dropped either, and the writes of the last second may be lost.
//!
//! If the limit is exceeded, the store removes the entries that expire first. An entry can be up to 1 MiB in size. The file can
//! be 2.5 times as large as the limit, and a burst of writes adds up to 64 MiB. A file that is mostly unused shrinks when it is
//! opened, which takes about half a second for 100 MiB. Two threads use the file, one for reads and one for writes. The store
//! needs no async runtime.

// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod backend;
mod file;
mod store;

pub use flipswitch;

pub use crate::store::DiskStore;
