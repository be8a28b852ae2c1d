//! Detects contexts that differ between requests from the same user and make the cache useless. No I/O; the time is
//! passed in.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::sanitize::printable;

/// Maximum number of users whose last context is kept.
const USERS: usize = 256;

/// An attribute that differs this many times within [`WINDOW`] is reported. Some attributes, such as a plan, differ now and
/// then.
const MANY: u32 = 30;
const WINDOW: Duration = Duration::from_secs(3600);

/// Maximum number of attributes that are counted, across all users.
const MAX_NAMES: usize = 64;

/// Maximum number of attributes of one context that are compared.
const MAX_ATTRIBUTES: usize = 128;

/// Number of new contexts after which the use of the cache is judged again.
const JUDGE_EVERY: u64 = 1_000;

/// Compares each new context with the previous one for the same user.
#[derive(Debug, Default)]
pub(crate) struct Variety {
    hasher: RandomState,
    /// Each user has one place, which the next user with this place takes over.
    users: Vec<User>,
    differences: HashMap<String, Differences>,
    new_contexts: u64,
    /// The number of evaluations when the cache was last judged.
    judged_at: u64,
    is_cache_reported: bool,
}

#[derive(Clone, Debug, Default)]
struct User {
    targeting_key: u64,
    /// Hashes of the names and of the values of attributes.
    attributes: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
struct Differences {
    since: Instant,
    count: u32,
    is_reported: bool,
}

/// An attribute that differs between requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Differing {
    pub(crate) attribute: String,
    pub(crate) count: u32,
    pub(crate) within: Duration,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    context: BTreeMap<&'a str, &'a RawValue>,
}

/// How much the cache is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CacheUse {
    /// Contexts in the cache.
    pub(crate) contexts: u64,
    /// Evaluations so far.
    pub(crate) evaluations: u64,
}

impl Variety {
    /// Returns whether to report that most contexts are dropped before they are used again. Must be called for each new context.
    pub(crate) fn wastes_cache(&mut self, cache: impl FnOnce() -> CacheUse) -> bool {
        self.new_contexts += 1;
        if self.is_cache_reported || self.new_contexts % JUDGE_EVERY != 0 {
            return false;
        }
        let CacheUse { contexts, evaluations } = cache();
        let since = evaluations.saturating_sub(std::mem::replace(&mut self.judged_at, evaluations));
        self.is_cache_reported = self.new_contexts >= 2 * contexts && since < 2 * JUDGE_EVERY;
        self.is_cache_reported
    }

    /// Takes the canonical form of a context that was not in the cache. Returns the attributes to report, each of them once.
    pub(crate) fn observe(&mut self, canonical: &[u8], now: Instant) -> Vec<Differing> {
        // A name with an escaped character cannot be borrowed; such contexts are not compared.
        let Ok(Body { mut context }) = serde_json::from_slice(canonical) else { return Vec::new() };
        // Visitors without a targeting key are not the same user.
        let targeting_key = context.remove("targetingKey").filter(|key| key.get() != "\"\"");
        let Some(targeting_key) = targeting_key else { return Vec::new() };
        let targeting_key = self.hasher.hash_one(targeting_key.get());
        let hashed =
            |(name, value): (&&str, &&RawValue)| (self.hasher.hash_one(name), self.hasher.hash_one(value.get()));
        let attributes = context.iter().take(MAX_ATTRIBUTES).map(hashed).collect();
        self.users.resize_with(USERS, User::default);
        let place = &mut self.users[(targeting_key % USERS as u64) as usize];
        let last = std::mem::replace(place, User { targeting_key, attributes });
        if last.targeting_key != targeting_key {
            return Vec::new();
        }
        let is_different =
            |(name, value): &(u64, u64)| last.attributes.iter().any(|it| it.0 == *name && it.1 != *value);
        let different = context.keys().zip(&place.attributes).filter(|(_, attribute)| is_different(attribute));
        different.filter_map(|(name, _)| count(&mut self.differences, name, now)).collect()
    }
}

/// Counts a difference, and returns the attribute if it is to be reported.
fn count(differences: &mut HashMap<String, Differences>, name: &str, now: Instant) -> Option<Differing> {
    if !differences.contains_key(name) {
        if differences.len() >= MAX_NAMES {
            differences
                .retain(|_, counted| counted.is_reported || now.saturating_duration_since(counted.since) <= WINDOW);
        }
        if differences.len() >= MAX_NAMES {
            return None;
        }
        differences.insert(name.to_owned(), Differences { since: now, count: 0, is_reported: false });
    }
    let counted = differences.get_mut(name)?;
    if counted.is_reported {
        return None;
    }
    if now.saturating_duration_since(counted.since) > WINDOW {
        (counted.since, counted.count) = (now, 0);
    }
    counted.count += 1;
    counted.is_reported = counted.count >= MANY;
    let within = now.saturating_duration_since(counted.since);
    counted.is_reported.then(|| Differing { attribute: printable(name), count: counted.count, within })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(user: &str, attributes: &str) -> String {
        format!(r#"{{"context":{{{attributes}"targetingKey":"{user}"}}}}"#)
    }

    #[test]
    fn an_attribute_that_differs_between_requests_of_a_user_is_reported_once() {
        let (mut variety, start) = (Variety::default(), Instant::now());
        let mut reported = Vec::new();
        for request in 0..1_000 {
            let attributes = format!(r#""id":"request-{request}","plan":"free","text":"a\"b","#);
            let now = start + Duration::from_secs(request);
            reported.extend(variety.observe(context("alice", &attributes).as_bytes(), now));
            // Users with a context each, and visitors without a targeting key.
            reported.extend(variety.observe(context(&format!("user-{request}"), r#""plan":"free","#).as_bytes(), now));
            let visitor = format!(r#"{{"context":{{"country":"{request}"}}}}"#);
            reported.extend(variety.observe(visitor.as_bytes(), now));
            reported.extend(variety.observe(context("", &format!(r#""city":"{request}","#)).as_bytes(), now));
        }
        // Another user may have the same place.
        let within = reported.first().map_or(Duration::ZERO, |differing| differing.within);
        assert_eq!(reported, [Differing { attribute: "id".to_owned(), count: MANY, within }]);
        assert!((29..60).contains(&within.as_secs()), "{within:?}");
    }

    #[test]
    fn an_attribute_that_seldom_differs_is_not_reported() {
        let (mut variety, start) = (Variety::default(), Instant::now());
        for change in 0..1_000 {
            let now = start + (WINDOW / (MANY / 2)) * change;
            let attributes = format!(r#""plan":"{change}","#);
            assert_eq!(variety.observe(context("alice", &attributes).as_bytes(), now), []);
        }
    }

    #[test]
    fn a_cache_that_drops_most_contexts_unused_is_reported_once() {
        let reported = |contexts, evaluations_per_context| {
            let mut variety = Variety::default();
            let mut evaluations = 0;
            let is_reported = |_: &u64| {
                evaluations += evaluations_per_context;
                variety.wastes_cache(|| CacheUse { contexts, evaluations })
            };
            (0..10 * JUDGE_EVERY).filter(is_reported).count()
        };
        assert_eq!(reported(1_000, 1), 1);
        assert_eq!(reported(1_000, 2), 0, "half of the evaluations find their context in the cache");
        assert_eq!(reported(10_000, 1), 0, "the cache is being filled");
    }

    #[test]
    fn the_number_of_attributes_is_bounded() {
        let (mut variety, now) = (Variety::default(), Instant::now());
        for request in 0..10 * MAX_NAMES {
            for value in 0..2 {
                let attributes = format!(r#""name-{request}":{value},"#);
                assert_eq!(variety.observe(context("alice", &attributes).as_bytes(), now), []);
            }
        }
        assert_eq!((variety.differences.len(), variety.users.len()), (MAX_NAMES, USERS));
        // Attributes that no longer differ make room for others.
        let later = now + WINDOW + Duration::from_secs(1);
        let mut reported = (0..=MANY)
            .flat_map(|value| variety.observe(context("alice", &format!(r#""id":{value},"#)).as_bytes(), later));
        assert_eq!(reported.next().map(|differing| differing.attribute).as_deref(), Some("id"));
        drop(reported);
        assert_eq!(variety.observe(b"no JSON", now), []);
    }
}
