//! Tests random outages: the circuit breaker, the backoffs of contexts and the limiter together, as the evaluator uses them.
//!
//! The service treats each context differently, and changes this from time to time. Evaluations for random contexts, as well as
//! events, occur at random times, and rounds occur when they are due. Nothing sleeps.

use std::time::{Duration, Instant};

use http::StatusCode;
use proptest::{collection::vec, prelude::*, test_runner::TestCaseResult};

use crate::{
    cache::epoch::EpochReading,
    context::canonical::CanonicalContext,
    error::{Error, Failure},
    evaluator::{
        backoffs::Backoffs,
        circuit_breaker::CircuitBreaker,
        limiter::{Limiter, Permit, Ticket},
    },
};

/// Contexts in addition to the start-up context.
const CONTEXTS: usize = 5;

const PERMITS: usize = 64;

/// How the service treats a context.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    Answers,
    Fails,
    Rejects,
    Unreachable,
}

#[derive(Clone, Debug)]
enum Op {
    /// An evaluation that finds no fresh flags.
    Evaluate(usize),
    /// An event invalidates all flags.
    Event,
    /// The service treats contexts differently from now on. The start-up context is the last one.
    Change(Vec<Behaviour>),
    Advance(u64),
}

fn behaviour() -> impl Strategy<Value = Behaviour> {
    use Behaviour::{Answers, Fails, Rejects, Unreachable};
    prop_oneof![3 => Just(Answers), 3 => Just(Fails), 1 => Just(Rejects), 1 => Just(Unreachable)]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..CONTEXTS).prop_map(Op::Evaluate),
        2 => Just(Op::Event),
        1 => vec(behaviour(), CONTEXTS + 1).prop_map(Op::Change),
        1 => Just(Op::Change(vec![Behaviour::Answers; CONTEXTS + 1])),
        8 => (1..4_000_u64).prop_map(Op::Advance),
    ]
}

struct World {
    breaker: CircuitBreaker,
    backoffs: Backoffs,
    limiter: Limiter,
    now: Instant,
    epoch: u64,
    random: f64,
    behaviours: Vec<Behaviour>,
    /// For each context: its failures in a row, when the last one was, and the epoch that it saw.
    failures: Vec<(u32, Instant, u64)>,
}

fn context(number: usize) -> CanonicalContext {
    match number {
        CONTEXTS => CanonicalContext::start_up(),
        other => CanonicalContext::from_bytes(format!("context {other}").as_bytes()),
    }
}

impl World {
    fn new(random: f64) -> Self {
        let now = Instant::now();
        Self {
            breaker: CircuitBreaker::default(),
            backoffs: Backoffs::new(),
            limiter: Limiter::new(PERMITS, 1_000),
            now,
            epoch: 0,
            random,
            behaviours: vec![Behaviour::Answers; CONTEXTS + 1],
            failures: vec![(0, now, 0); CONTEXTS + 1],
        }
    }

    fn step(&mut self, op: Op) -> TestCaseResult {
        match op {
            Op::Evaluate(number) => self.evaluate(number)?,
            Op::Event => self.epoch += 2,
            Op::Change(behaviours) => self.behaviours = behaviours,
            Op::Advance(millis) => self.advance(Duration::from_millis(millis))?,
        }
        if self.breaker.error().is_some() {
            prop_assert!(self.breaker.due().is_some(), "an open breaker plans a round");
        }
        Ok(())
    }

    fn evaluate(&mut self, number: usize) -> TestCaseResult {
        let context = context(number);
        if self.breaker.error().is_some() {
            self.breaker.want(&context, true);
            return Ok(());
        }
        let reading = EpochReading { epoch: self.epoch, streaming: true };
        if self.backoffs.error(&context, reading, self.now).is_some() {
            return Ok(());
        }
        let (failures, failed_at, epoch) = self.failures[number];
        // The random number is the same throughout a run, so that the wait is known.
        let wait = Duration::from_secs(1 << failures.saturating_sub(1).min(5)).min(Duration::from_secs(30));
        let has_waited = self.now >= failed_at + wait.mul_f64(0.5 + self.random / 2.0);
        prop_assert!(
            failures == 0 || has_waited || self.epoch > epoch,
            "a context that fails is requested again too soon"
        );
        self.request(number)
    }

    /// Sends a request now, and records its outcome.
    fn request(&mut self, number: usize) -> TestCaseResult {
        let (context, sent, random) = (context(number), self.now, self.random);
        let was_open = self.breaker.error().is_some();
        let failure: Failure = match self.behaviours[number] {
            Behaviour::Answers => {
                self.failures[number].0 = 0;
                self.backoffs.remove(&context);
                self.limiter.answered(self.now);
                self.breaker.answered(&context, sent);
                return self.closed(was_open);
            }
            Behaviour::Fails => Error::Status(StatusCode::BAD_GATEWAY).into(),
            Behaviour::Rejects => Error::Status(StatusCode::BAD_REQUEST).into(),
            Behaviour::Unreachable => Failure { is_connect: true, ..Error::Timeout.into() },
        };
        self.failures[number] = (self.failures[number].0 + 1, self.now, self.epoch);
        self.backoffs.add(&context, self.epoch, &failure, self.now, random);
        self.breaker.failed(&context, &failure, sent, self.now, false, random);
        self.closed(was_open)
    }

    /// Does what the evaluator does when the breaker closes, and checks the state after that.
    fn closed(&mut self, was_open: bool) -> TestCaseResult {
        if !was_open || self.breaker.error().is_some() {
            return Ok(());
        }
        self.limiter.recover();
        self.backoffs.clear();
        self.failures.iter_mut().for_each(|(failures, ..)| *failures = 0);
        prop_assert_eq!(self.backoffs.count(self.now), 0);
        prop_assert_eq!(self.permits(), 4, "a recovered service does not receive all requests at once");
        Ok(())
    }

    /// Returns how many requests for known contexts may be in flight.
    fn permits(&self) -> usize {
        let ticket = |id| Ticket { id, is_known: true, bytes: 1, is_waited_for: Box::new(|| true) };
        let held: Vec<Permit> = (0..).map_while(|id| self.limiter.acquire(ticket(id), self.now).ok()).collect();
        held.len()
    }

    /// Lets time pass, with the rounds that are due in that time.
    fn advance(&mut self, time: Duration) -> TestCaseResult {
        let end = self.now + time;
        while let Some(due) = self.breaker.due().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let requested = self.breaker.begin_round(self.now);
            prop_assert!((1..=3).contains(&requested.len()), "{requested:?}");
            for requested in &requested {
                let number = (0..=CONTEXTS).find(|number| context(*number) == *requested);
                self.request(number.unwrap_or(CONTEXTS))?;
            }
            self.breaker.end_round(self.now, self.random);
            prop_assert!(
                self.breaker.due().is_none_or(|due| due > self.now),
                "rounds follow each other without a wait"
            );
        }
        self.now = end;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_outage_ends_within_its_backoff(random in 0.0..1.0_f64, ops in vec(op(), 1..120)) {
        let mut world = World::new(random);
        for op in ops {
            world.step(op)?;
        }
        world.behaviours = vec![Behaviour::Answers; CONTEXTS + 1];
        world.advance(Duration::from_secs(31))?;
        prop_assert!(world.breaker.error().is_none() && world.breaker.failing().is_none(), "{:?}", world.breaker);
        for number in 0..CONTEXTS {
            world.evaluate(number)?;
            prop_assert_eq!(world.failures[number].0, 0, "a context is requested again");
        }
    }

    #[test]
    fn contexts_that_fail_do_not_stop_others(random in 0.0..1.0_f64, ops in vec(op(), 1..120)) {
        let mut world = World::new(random);
        for op in ops {
            let op = match op {
                Op::Change(mut behaviours) => {
                    behaviours.iter_mut().filter(|one| **one == Behaviour::Unreachable).for_each(|one| *one = Behaviour::Fails);
                    behaviours[CONTEXTS] = Behaviour::Answers;
                    Op::Change(behaviours)
                }
                op => op,
            };
            world.step(op)?;
            prop_assert!(world.breaker.error().is_none(), "the breaker opened");
        }
    }
}
