//! Which faults there are, and whom they strike.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::{
    broadcast::{Broadcaster, Topic},
    faults::effect::Effect,
    faults::error::FaultError,
    faults::fault::{Endpoint, Fault},
    faults::handle::ConnectionAction,
    faults::response::ResponseCutter,
};

/// This many faults are kept. Those that have struck as often as they were to go first.
const KEPT: usize = 1_024;

/// Names a fault among those of its service. Ids are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FaultId(pub(crate) u64);

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fault that was added and not removed since.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ActiveFault {
    /// Names the fault.
    pub id: FaultId,
    /// The fault as it was added.
    #[serde(flatten)]
    pub fault: Fault,
    /// How many requests it has struck; connections or heartbeats, if it is about these.
    pub struck: u64,
    /// How many more it will strike: zero if it is over, `None` if it is never over.
    pub remaining: Option<u64>,
}

/// The faults of one service, in the order in which they were added.
pub(crate) struct Book {
    state: Mutex<State>,
    pub(crate) broadcaster: Arc<Broadcaster>,
    /// Cancelled when the server shuts down.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    entries: Vec<Entry>,
    /// The streams, oldest first.
    streams: Vec<Weak<ResponseCutter>>,
}

#[derive(Debug)]
struct Entry {
    id: FaultId,
    fault: Fault,
    passed: u64,
    struck: u64,
    /// Cancelled when the fault is removed.
    removed: CancellationToken,
    /// What it has silenced, or will.
    held: Vec<Arc<ResponseCutter>>,
}

/// What a fault does to the request that it struck.
pub(crate) struct Struck {
    pub(crate) effect: Effect,
    /// Cancelled when the fault is removed.
    pub(crate) removed: CancellationToken,
}

impl Book {
    pub(crate) fn new(broadcaster: Arc<Broadcaster>, stop: CancellationToken) -> Self {
        Self { state: Mutex::default(), broadcaster, stop }
    }

    pub(crate) fn add(&self, fault: Fault) -> Result<ActiveFault, FaultError> {
        fault.check()?;
        let mut state = self.state.lock();
        let mut over = None;
        if state.entries.len() >= KEPT {
            let Some(index) = state.entries.iter().position(|entry| entry.remaining() == Some(0)) else {
                return Err(FaultError::new("", format!("there are {KEPT} faults; remove some")));
            };
            over = Some(state.entries.remove(index));
        }
        state.last_id += 1;
        let id = FaultId(state.last_id);
        let mut entry = Entry { id, fault, passed: 0, struck: 0, removed: CancellationToken::new(), held: Vec::new() };
        if entry.fault.is_about_open_streams() {
            for stream in state.streams() {
                entry.strike_open(&stream);
            }
        }
        let active = entry.active();
        state.entries.push(entry);
        drop(state);
        if let Some(entry) = over {
            entry.end();
        }
        self.broadcaster.changed(Topic::Faults);
        Ok(active)
    }

    pub(crate) fn all(&self) -> Vec<ActiveFault> {
        self.state.lock().entries.iter().map(Entry::active).collect()
    }

    pub(crate) fn get(&self, id: FaultId) -> Option<ActiveFault> {
        self.state.lock().entries.iter().find(|entry| entry.id == id).map(Entry::active)
    }

    pub(crate) fn remove(&self, id: FaultId) -> bool {
        let mut state = self.state.lock();
        let Some(index) = state.entries.iter().position(|entry| entry.id == id) else { return false };
        let entry = state.entries.remove(index);
        drop(state);
        entry.end();
        self.broadcaster.changed(Topic::Faults);
        true
    }

    pub(crate) fn clear(&self) {
        let entries = std::mem::take(&mut self.state.lock().entries);
        for entry in entries {
            entry.end();
        }
        self.broadcaster.changed(Topic::Faults);
    }

    /// A request that comes in is struck by the first fault that is about it. An answer that is to be cut off is told so
    /// here, along with the open streams, so that no stream slips in between.
    pub(crate) fn request(&self, endpoint: Endpoint, cutter: &Arc<ResponseCutter>) -> Option<Struck> {
        let mut state = self.state.lock();
        let struck = state.strike(|fault| fault.is_about(endpoint), cutter);
        let answers = struck.as_ref().is_none_or(|struck| struck.effect.asks_the_endpoint());
        if endpoint == Endpoint::Stream && answers {
            state.streams.retain(|stream| stream.strong_count() > 0);
            state.streams.push(Arc::downgrade(cutter));
        }
        drop(state);
        if struck.is_some() {
            self.broadcaster.changed(Topic::Faults);
        }
        struck
    }

    /// The same for a new connection, which is silenced here if it is to hang.
    pub(crate) fn connection(&self, cutter: &Arc<ResponseCutter>) -> Option<Effect> {
        let mut state = self.state.lock();
        let struck = state.strike(|fault| fault.on == Endpoint::Connections, cutter)?;
        if struck.effect == (Effect::Hang {}) {
            cutter.silence();
        }
        drop(state);
        self.broadcaster.changed(Topic::Faults);
        Some(struck.effect)
    }

    /// Whether a heartbeat is left out.
    pub(crate) fn heartbeat(&self) -> bool {
        let left_out = |entry: &mut Entry| entry.fault.effect == Effect::NoHeartbeats {} && entry.strikes();
        let left_out = self.state.lock().entries.iter_mut().any(left_out);
        if left_out {
            self.broadcaster.changed(Topic::Faults);
        }
        left_out
    }

    /// Ends the connections of all streams; returns how many there are.
    pub(crate) fn end_streams(&self, action: ConnectionAction) -> usize {
        let streams = self.state.lock().streams();
        for stream in &streams {
            stream.connection.act_now(action);
        }
        streams.len()
    }
}

impl State {
    fn strike(&mut self, is_about: impl Fn(&Fault) -> bool, cutter: &Arc<ResponseCutter>) -> Option<Struck> {
        let entry =
            self.entries.iter_mut().find_map(|entry| (is_about(&entry.fault) && entry.strikes()).then_some(entry))?;
        if let Some((after, action)) = entry.fault.effect.cut() {
            cutter.cut_after(after, action);
        }
        let silences = match entry.fault.effect {
            Effect::HalfOpen { .. } => true,
            // A request that hangs has a task that sees the end of the fault.
            Effect::Hang {} => entry.fault.on == Endpoint::Connections,
            _ => false,
        };
        if silences {
            entry.hold(cutter);
        }
        Some(Struck { effect: entry.fault.effect.clone(), removed: entry.removed.clone() })
    }

    fn streams(&self) -> Vec<Arc<ResponseCutter>> {
        self.streams.iter().filter_map(Weak::upgrade).filter(|stream| !stream.connection.is_closed()).collect()
    }
}

impl Entry {
    /// Counts a request that the fault is about; returns whether it is struck.
    fn strikes(&mut self) -> bool {
        if self.remaining() == Some(0) {
            return false;
        }
        let passes = self.passed < self.fault.after;
        *(if passes { &mut self.passed } else { &mut self.struck }) += 1;
        !passes
    }

    fn strike_open(&mut self, stream: &Arc<ResponseCutter>) {
        let Some((after, action)) = self.fault.effect.cut() else { return };
        // Whatever has been cut off already is no longer there to be struck.
        if !stream.is_cut() && self.strikes() && stream.cut_after(after, action) {
            self.hold(stream);
        }
    }

    fn hold(&mut self, cutter: &Arc<ResponseCutter>) {
        // An answer may be complete long before its connection ends.
        self.held.retain(|cutter| !cutter.connection.is_closed());
        self.held.push(Arc::clone(cutter));
    }

    fn remaining(&self) -> Option<u64> {
        self.fault.times.map(|times| times.saturating_sub(self.struck))
    }

    fn active(&self) -> ActiveFault {
        ActiveFault { id: self.id, fault: self.fault.clone(), struck: self.struck, remaining: self.remaining() }
    }

    fn end(self) {
        self.removed.cancel();
        for cutter in self.held {
            cutter.release();
        }
    }
}
