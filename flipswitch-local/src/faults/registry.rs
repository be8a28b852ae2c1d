//! The faults that are active, and the requests that they apply to.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::Instant,
};

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    broadcast::{Broadcaster, Topic},
    faults::{
        effect::Effect,
        error::FaultError,
        fault::{Endpoint, Fault},
        filter::IncomingRequest,
        handle::{ConnectionAction, ConnectionHandle},
        rate_limiter::RateLimiter,
        response::{ResponseCutter, ScheduledEnd},
    },
};

/// Limits the number of faults. Faults that are exhausted make room for new ones.
const MAX_FAULTS: usize = 1_024;

/// Identifies a fault of one server. Ids are not reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct FaultId(pub(crate) u64);

impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A fault that has been added and has not been removed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ActiveFault {
    /// Identifies the fault.
    pub id: FaultId,
    /// The fault as it was added.
    #[serde(flatten)]
    pub fault: Fault,
    /// How many requests it has been applied to, or how many connections or heartbeats if it applies to them.
    #[serde(rename = "struck")]
    pub applied: u64,
    /// How many more times it will be applied: zero if it is exhausted, `None` if there is no limit.
    pub remaining: Option<u64>,
}

/// The faults of one server, in the order in which they were added.
pub(crate) struct FaultRegistry {
    state: Mutex<State>,
    pub(crate) broadcaster: Arc<Broadcaster>,
    /// Cancelled when the server shuts down.
    pub(crate) stop: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    last_id: u64,
    entries: Vec<Entry>,
    /// The open streams, oldest first.
    streams: Vec<Weak<ResponseCutter>>,
    /// The open connections, oldest first, and some that have been closed.
    connections: Vec<ConnectionHandle>,
}

#[derive(Debug)]
struct Entry {
    id: FaultId,
    fault: Fault,
    skipped: u64,
    applied: u64,
    rate_limiter: Option<RateLimiter>,
    /// Limits how many requests are delayed at a time.
    slots: Option<Arc<Semaphore>>,
    /// Cancelled when the fault is removed.
    removed: CancellationToken,
    /// The connections that it has silenced or will silence.
    silenced: Vec<Arc<ResponseCutter>>,
}

/// A fault that applies to a request.
pub(crate) struct AppliedFault {
    pub(crate) effect: Effect,
    /// Limits how many requests are delayed at a time. `None` for no limit.
    pub(crate) slots: Option<Arc<Semaphore>>,
    /// Cancelled when the fault is removed.
    pub(crate) removed: CancellationToken,
}

impl FaultRegistry {
    pub(crate) fn new(broadcaster: Arc<Broadcaster>, stop: CancellationToken) -> Self {
        Self { state: Mutex::default(), broadcaster, stop }
    }

    pub(crate) fn add(&self, fault: Fault) -> Result<ActiveFault, FaultError> {
        fault.validate()?;
        let mut state = self.state.lock();
        let mut exhausted = None;
        if state.entries.len() >= MAX_FAULTS {
            let Some(index) = state.entries.iter().position(|entry| entry.remaining() == Some(0)) else {
                return Err(FaultError::new("", format!("there are {MAX_FAULTS} faults, which is the limit")));
            };
            exhausted = Some(state.entries.remove(index));
        }
        state.last_id += 1;
        let mut entry = Entry::new(FaultId(state.last_id), fault);
        if entry.fault.applies_to_open_streams() {
            for stream in state.open_streams() {
                entry.apply_to_open_stream(&stream);
            }
        }
        if entry.fault.applies_to_open_connections() {
            for connection in state.connections.iter().filter(|connection| connection.can_be_silenced()) {
                entry.silence_open_connection(connection);
            }
        }
        let active = entry.active();
        state.entries.push(entry);
        drop(state);
        if let Some(entry) = exhausted {
            entry.release();
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
        entry.release();
        self.broadcaster.changed(Topic::Faults);
        true
    }

    pub(crate) fn clear(&self) {
        let entries = std::mem::take(&mut self.state.lock().entries);
        for entry in entries {
            entry.release();
        }
        self.broadcaster.changed(Topic::Faults);
    }

    /// Applies the first matching fault to a request. Schedules a cut of the response under the same lock under
    /// which the stream is registered as open, so that no stream escapes a fault that is added in the meantime.
    pub(crate) fn apply_to_request(
        &self,
        request: &IncomingRequest,
        response: &Arc<ResponseCutter>,
    ) -> Option<AppliedFault> {
        let mut state = self.state.lock();
        let applied = state.apply(|fault| fault.applies_to(request), response);
        let reaches_endpoint = applied.as_ref().is_none_or(|applied| applied.effect.reaches_endpoint());
        if request.endpoint == Endpoint::Stream && reaches_endpoint {
            state.streams.retain(|stream| stream.strong_count() > 0);
            state.streams.push(Arc::downgrade(response));
        }
        drop(state);
        if applied.is_some() {
            self.broadcaster.changed(Topic::Faults);
        }
        applied
    }

    /// Applies the first matching fault to a new connection. A connection that must hang is silenced here.
    pub(crate) fn apply_to_connection(&self, response: &Arc<ResponseCutter>) -> Option<Effect> {
        let mut state = self.state.lock();
        let applied = state.apply(Fault::ends_new_connections, response)?;
        if applied.effect == (Effect::Hang {}) {
            response.silence();
        }
        drop(state);
        self.broadcaster.changed(Topic::Faults);
        Some(applied.effect)
    }

    /// Adds a connection to the connections that later faults can silence.
    pub(crate) fn register_connection(&self, connection: ConnectionHandle) {
        let connections = &mut self.state.lock().connections;
        // Before the list grows, so that its length stays proportional to the number of open connections.
        if connections.len() == connections.capacity() {
            connections.retain(|connection| !connection.is_closed());
        }
        connections.push(connection);
    }

    /// Applies the faults to a heartbeat that is due. Returns whether one of them suppresses it.
    pub(crate) fn suppresses_heartbeat(&self) -> bool {
        let suppresses = |entry: &mut Entry| entry.fault.effect == Effect::NoHeartbeats {} && entry.try_apply();
        let suppressed = self.state.lock().entries.iter_mut().any(suppresses);
        if suppressed {
            self.broadcaster.changed(Topic::Faults);
        }
        suppressed
    }

    /// Ends the connections of the open streams. Returns the number of streams.
    pub(crate) fn end_streams(&self, action: ConnectionAction) -> usize {
        let streams = self.state.lock().open_streams();
        for stream in &streams {
            stream.connection.act_now(action);
        }
        streams.len()
    }
}

impl State {
    fn apply(&mut self, matches: impl Fn(&Fault) -> bool, response: &Arc<ResponseCutter>) -> Option<AppliedFault> {
        let mut matching = self.entries.iter_mut().filter(|entry| matches(&entry.fault));
        let entry = matching.find_map(|entry| entry.try_apply().then_some(entry))?;
        if let Some((bytes, action)) = entry.fault.effect.cut() {
            response.cut_after(bytes, action);
        }
        entry.schedule_end(response);
        let silences = match entry.fault.effect {
            Effect::HalfOpen { .. } => true,
            // A request that hangs ends by itself when the fault is removed.
            Effect::Hang {} => entry.fault.on == Endpoint::Connections,
            _ => false,
        };
        if silences {
            entry.keep_silenced(response);
        }
        let (effect, slots, removed) = (entry.fault.effect.clone(), entry.slots.clone(), entry.removed.clone());
        Some(AppliedFault { effect, slots, removed })
    }

    fn open_streams(&self) -> Vec<Arc<ResponseCutter>> {
        self.streams.iter().filter_map(Weak::upgrade).filter(|stream| !stream.connection.is_closed()).collect()
    }
}

impl Entry {
    fn new(id: FaultId, fault: Fault) -> Self {
        let rate_limiter = match fault.effect {
            Effect::RateLimit { per_second, .. } => Some(RateLimiter::new(per_second)),
            _ => None,
        };
        let slots = match fault.effect {
            Effect::Delay { concurrency: Some(concurrency), .. } => Some(Arc::new(Semaphore::new(concurrency))),
            _ => None,
        };
        let (removed, silenced) = (CancellationToken::new(), Vec::new());
        Self { id, fault, skipped: 0, applied: 0, rate_limiter, slots, removed, silenced }
    }

    /// Counts a matching request. Returns whether the fault applies to it.
    fn try_apply(&mut self) -> bool {
        if self.remaining() == Some(0) {
            return false;
        }
        if self.rate_limiter.as_mut().is_some_and(|limiter| limiter.admits(Instant::now())) {
            return false;
        }
        let skips = self.skipped < self.fault.after;
        *(if skips { &mut self.skipped } else { &mut self.applied }) += 1;
        !skips
    }

    fn apply_to_open_stream(&mut self, stream: &Arc<ResponseCutter>) {
        // A stream that has been cut off is not counted.
        if stream.is_cut() || !self.try_apply() {
            return;
        }
        self.schedule_end(stream);
        if let Some((bytes, action)) = self.fault.effect.cut()
            && stream.cut_after(bytes, action)
        {
            self.keep_silenced(stream);
        }
    }

    fn schedule_end(&self, stream: &ResponseCutter) {
        // A time that is too far in the future is never reached.
        if let Some((after, action)) = self.fault.effect.end_of_stream()
            && let Some(due) = tokio::time::Instant::now().checked_add(after)
        {
            stream.schedule(ScheduledEnd { due, action, removed: self.removed.clone() });
        }
    }

    fn silence_open_connection(&mut self, connection: &ConnectionHandle) {
        if self.try_apply() {
            let cutter = Arc::new(ResponseCutter::new(connection.clone()));
            cutter.silence();
            self.keep_silenced(&cutter);
        }
    }

    fn keep_silenced(&mut self, response: &Arc<ResponseCutter>) {
        // A response can complete long before its connection closes.
        self.silenced.retain(|response| !response.connection.is_closed());
        self.silenced.push(Arc::clone(response));
    }

    fn remaining(&self) -> Option<u64> {
        self.fault.times.map(|times| times.saturating_sub(self.applied))
    }

    fn active(&self) -> ActiveFault {
        let (id, fault) = (self.id, self.fault.clone());
        ActiveFault { id, fault, applied: self.applied, remaining: self.remaining() }
    }

    /// Ends the effects of a fault that has been removed.
    fn release(self) {
        self.removed.cancel();
        for response in self.silenced {
            response.release();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> FaultRegistry {
        FaultRegistry::new(Arc::default(), CancellationToken::new())
    }

    #[test]
    fn closed_connections_and_those_for_control_are_not_silenced() {
        let registry = registry();
        let connections = [(); 4].map(|()| ConnectionHandle::default());
        connections.iter().for_each(|connection| registry.register_connection(connection.clone()));
        connections[0].mark_closed();
        connections[1].mark_control();
        let fault = Fault::on(Endpoint::Connections).half_open();
        assert_eq!(registry.add(fault.clone()).unwrap().applied, 2);
        assert_eq!(registry.add(fault).unwrap().applied, 0, "they are silent already");
    }

    #[test]
    fn connections_that_were_closed_are_forgotten() {
        let registry = registry();
        for _ in 0..1_000 {
            let connection = ConnectionHandle::default();
            registry.register_connection(connection.clone());
            connection.mark_closed();
        }
        assert!(registry.state.lock().connections.len() < 10);
    }
}
