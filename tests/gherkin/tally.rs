//! Records the outcomes of scenarios.

use std::{collections::BTreeMap, fmt, rc::Rc};

use cucumber::{
    Event, Writer, cli,
    event::{self, Hook, RetryableScenario, Step},
    parser, writer,
};

use crate::{exceptions::Exceptions, world::World};

/// Records which scenarios ran and what failed. A step without an implementation is also a failure.
pub(crate) struct Tally {
    exceptions: Rc<Exceptions>,
    ran: BTreeMap<String, Outcome>,
    unreadable: Vec<String>,
}

enum Outcome {
    Passed,
    /// The scenario failed as listed.
    Deviated,
    Failed(String),
}

impl Tally {
    pub(crate) fn new(exceptions: Rc<Exceptions>) -> Self {
        Self { exceptions, ran: BTreeMap::new(), unreadable: Vec::new() }
    }

    pub(crate) fn passed(&self) -> usize {
        self.ran.values().filter(|outcome| matches!(outcome, Outcome::Passed)).count()
    }

    /// Returns unexpected failures, and features that cannot be parsed.
    pub(crate) fn problems(&self) -> impl Iterator<Item = String> {
        let ran = self.ran.iter().filter_map(|(place, outcome)| match outcome {
            Outcome::Failed(failure) => Some(format!("{place}: {failure}")),
            Outcome::Passed | Outcome::Deviated => None,
        });
        ran.chain(self.unreadable.iter().cloned())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deviated = self.ran.values().filter(|outcome| matches!(outcome, Outcome::Deviated)).count();
        let failed = self.ran.len() - self.passed() - deviated;
        let ran = self.ran.len();
        write!(f, "{ran} scenarios ran, {} passed, {deviated} deviated as listed, {failed} failed", self.passed())
    }
}

impl Writer<World> for Tally {
    type Cli = cli::Empty;

    async fn handle_event(&mut self, event: parser::Result<Event<event::Cucumber<World>>>, _: &Self::Cli) {
        let (feature, event) = match event.map(Event::into_inner) {
            Ok(event::Cucumber::Feature(feature, event)) => (feature, event),
            Ok(_) => return,
            Err(error) => return self.unreadable.push(error.to_string()),
        };
        let (event::Feature::Scenario(scenario, RetryableScenario { event, .. })
        | event::Feature::Rule(_, event::Rule::Scenario(scenario, RetryableScenario { event, .. }))) = event
        else {
            return;
        };
        let file = feature.path.as_deref().unwrap_or("".as_ref()).file_name().unwrap_or_default();
        // The line is the line of the example, so each place has one scenario.
        let place = format!("{}, {}:{}, {}", feature.name, file.display(), scenario.position.line, scenario.name);
        let (failure, may_be_listed) = match event {
            event::Scenario::Started => {
                self.ran.insert(place, Outcome::Passed);
                return;
            }
            event::Scenario::Background(step, event) | event::Scenario::Step(step, event) => match event {
                Step::Failed(_, _, _, error) => (format!("{}: {error}", step.value), true),
                Step::Skipped => (format!("{}: there is no such step", step.value), false),
                Step::Started | Step::Passed(..) => return,
            },
            event::Scenario::Hook(_, Hook::Failed(..)) => ("the scenario cannot start".to_owned(), false),
            event::Scenario::Hook(..) | event::Scenario::Log(_) | event::Scenario::Finished => return,
        };
        let listed = may_be_listed && self.exceptions.deviates(&feature, &scenario);
        self.ran.insert(place, if listed { Outcome::Deviated } else { Outcome::Failed(failure) });
    }
}

/// The record does not depend on the order of events.
impl writer::Normalized for Tally {}
