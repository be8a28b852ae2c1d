//! Lists the scenarios that are left out or that fail, with the reasons.

use std::{cell::Cell, fmt};

use cucumber::gherkin::{Feature, Scenario};

use crate::bed::Server::{self, FastFeature, Flagd, Local};

/// Scenarios that are left out or that fail with one or more servers.
struct Exception {
    servers: &'static [Server],
    of: Of,
    is: Is,
    because: &'static str,
}

/// How scenarios are selected.
#[derive(Debug)]
enum Of {
    Feature(&'static str),
    Scenario(&'static str),
    /// The name of a table of examples.
    Examples(&'static str),
    Tag(&'static str),
}

enum Is {
    /// They are not run, because they do not apply to our provider or to this server.
    LeftOut,
    /// They are run, and exactly this many of them must fail.
    Deviating(usize),
}

const ALL: &[Server] = &[Local, Flagd, FastFeature];

const fn left_out(servers: &'static [Server], of: Of, because: &'static str) -> Exception {
    Exception { servers, of, is: Is::LeftOut, because }
}

const fn deviating(servers: &'static [Server], of: Of, failures: usize, because: &'static str) -> Exception {
    Exception { servers, of, is: Is::Deviating(failures), because }
}

/// All exceptions. The first one that matches a scenario applies. The run fails if an exception does not behave as listed.
#[rustfmt::skip]
const EXCEPTIONS: &[Exception] = &[
    // Features that only flagd has.
    left_out(ALL, Of::Feature("Configuration Test"), "the options and environment variables of flagd's providers"),
    left_out(ALL, Of::Tag("contextEnrichment"), "a context that flagd sends to its providers"),
    left_out(ALL, Of::Tag("sync-payload"), "a context that flagd sends along with its flags"),
    left_out(ALL, Of::Tag("caching"), "the reason CACHED, which our provider never returns, because the reason comes from the service"),
    left_out(ALL, Of::Tag("grace"), "flagd's grace period between stale and error; our provider uses its polling interval"),
    left_out(ALL, Of::Tag("targetURI"), "addresses in gRPC's format"),
    left_out(ALL, Of::Tag("customCert"), "a certificate as an option; our provider has certificates in the HTTP client"),
    left_out(ALL, Of::Tag("unixsocket"), "a service behind a Unix socket, which OFREP does not have"),
    left_out(ALL, Of::Tag("reconnect"), "an error once the stream is lost; our provider becomes stale, see tests/it/stream/events.rs"),
    left_out(ALL, Of::Scenario("Provider events chain ready -> error -> ready"), "also an error once the stream is lost"),
    left_out(ALL, Of::Tag("unavailable"), "flagd's deadline for connecting; tests/it/evaluation/lifecycle.rs tests our time limit"),
    left_out(ALL, Of::Tag("forbidden"), "a list of fatal gRPC codes; tests/it/auth/key_rotation.rs tests refused keys"),
    left_out(ALL, Of::Tag("deprecated"), "an earlier rule for flags without default variant; other scenarios have the current rule"),
    left_out(&[Local, Flagd], Of::Examples("v1"), "an earlier algorithm for fractional rollouts"),
    left_out(&[Local, Flagd], Of::Examples("v2"), "another earlier algorithm for fractional rollouts"),

    // Features that the other servers do not have.
    left_out(&[Flagd, FastFeature], Of::Scenario("Flag change event"), "no stream of changes"),
    left_out(&[FastFeature], Of::Tag("fractional"), "a different algorithm for fractional rollouts"),
    left_out(&[FastFeature], Of::Tag("no-default-variant"), "no flags without default variant"),
    left_out(&[FastFeature], Of::Tag("metadata-provider"), "no metadata of a set of flags"),
    deviating(&[FastFeature], Of::Tag("disabled"), 11, "a disabled flag is sent with the value of its default variant, which the provider returns"),
    deviating(&[FastFeature], Of::Tag("operator-errors"), 15, "an operator with invalid arguments is a parse error instead of a null result"),
    deviating(&[FastFeature], Of::Tag("semver"), 16, "only texts of three numbers are versions; other versions are invalid or not compared"),
    deviating(&[FastFeature], Of::Scenario("Time-based operations"), 2, "rules have no access to the time"),
    deviating(&[FastFeature], Of::Scenario("Errors and edge cases"), 3, "a rule must return a text, all its failures are parse errors, and null has its own share"),

    // Deviations of flipswitch-local.
    deviating(&[Local], Of::Tag("non-existent-evaluator-ref"), 2, "such a flag is rejected by name when it is loaded, and not when it is evaluated"),
    deviating(&[Local], Of::Tag("semver-edge-cases"), 30, "flagd-evaluation-engine accepts only complete versions that are texts, without v or build"),
    deviating(&[Local], Of::Scenario("starts_with and ends_with return null for non-string input"), 4, "flagd-evaluation-engine returns false"),
    deviating(&[Local], Of::Scenario("starts_with and ends_with return null for wrong argument count"), 4, "flagd-evaluation-engine returns false"),
];

/// The exceptions for one server, with the numbers of matching and failed scenarios.
pub(crate) struct Exceptions(Vec<Met>);

struct Met {
    exception: &'static Exception,
    scenarios: Cell<usize>,
    failures: Cell<usize>,
}

impl Exceptions {
    pub(crate) fn of(server: Server) -> Self {
        let exceptions = EXCEPTIONS.iter().filter(|exception| exception.servers.contains(&server));
        let met = |exception| Met { exception, scenarios: Cell::default(), failures: Cell::default() };
        Self(exceptions.map(met).collect())
    }

    /// Returns whether a scenario is run. Called once for each scenario.
    pub(crate) fn is_run(&self, feature: &Feature, scenario: &Scenario) -> bool {
        let Some(met) = self.find(feature, scenario) else { return true };
        met.scenarios.update(|count| count + 1);
        matches!(met.exception.is, Is::Deviating(_))
    }

    /// Returns whether the failure of a scenario is listed.
    pub(crate) fn deviates(&self, feature: &Feature, scenario: &Scenario) -> bool {
        let Some(met) = self.find(feature, scenario) else { return false };
        met.failures.update(|count| count + 1);
        true
    }

    /// Returns the exceptions that do not behave as listed.
    pub(crate) fn mistaken(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|Met { exception: Exception { of, is, .. }, scenarios, failures }| match is {
            Is::LeftOut if scenarios.get() == 0 => Some(format!("{of:?} is listed, but there is no such scenario")),
            Is::Deviating(listed) if failures.get() != *listed => {
                Some(format!("{of:?}: {} scenarios fail, but {listed} are listed", failures.get()))
            }
            Is::LeftOut | Is::Deviating(_) => None,
        })
    }

    /// Returns the first exception that matches a scenario.
    fn find(&self, feature: &Feature, scenario: &Scenario) -> Option<&Met> {
        self.0.iter().find(|met| match met.exception.of {
            Of::Feature(name) => feature.name == name,
            Of::Scenario(name) => scenario.name == name,
            Of::Examples(name) => scenario.examples.iter().any(|examples| examples.name.as_deref() == Some(name)),
            Of::Tag(name) => feature.tags.iter().chain(&scenario.tags).any(|tag| tag == name),
        })
    }
}

impl fmt::Display for Exceptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Met { exception: Exception { of, is, because, .. }, scenarios, failures } in &self.0 {
            match is {
                Is::LeftOut => write!(f, "{:5} left out", scenarios.get())?,
                Is::Deviating(_) => write!(f, "{:5} of {} deviated", failures.get(), scenarios.get())?,
            }
            writeln!(f, ", {of:?}: {because}")?;
        }
        Ok(())
    }
}
