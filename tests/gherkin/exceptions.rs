//! Which scenarios are left out, which fail, and why.

use std::{cell::Cell, fmt};

use cucumber::gherkin::{Feature, Scenario};

use crate::bed::Server::{self, FastFeature, Flagd, Local};

/// The scenarios that something is the matter with, with one or more servers.
struct Exception {
    servers: &'static [Server],
    of: Of,
    is: Is,
    because: &'static str,
}

/// What scenarios are recognised by.
#[derive(Debug)]
enum Of {
    Feature(&'static str),
    Scenario(&'static str),
    /// The name of a table of examples.
    Examples(&'static str),
    Tag(&'static str),
}

enum Is {
    /// They are not run, since they cannot be about our provider or about this server.
    LeftOut,
    /// They are run, and this many of them must fail.
    Deviating(usize),
}

const ALL: &[Server] = &[Local, Flagd, FastFeature];

const fn left_out(servers: &'static [Server], of: Of, because: &'static str) -> Exception {
    Exception { servers, of, is: Is::LeftOut, because }
}

const fn deviating(servers: &'static [Server], of: Of, failures: usize, because: &'static str) -> Exception {
    Exception { servers, of, is: Is::Deviating(failures), because }
}

/// All exceptions; the first one that is about a scenario counts. One that is not as it is listed fails the run.
#[rustfmt::skip]
const EXCEPTIONS: &[Exception] = &[
    // What is flagd's own.
    left_out(ALL, Of::Feature("Configuration Test"), "the options and environment variables of flagd's providers"),
    left_out(ALL, Of::Tag("contextEnrichment"), "a context that flagd sends to its providers"),
    left_out(ALL, Of::Tag("sync-payload"), "a context that flagd sends along with its flags"),
    left_out(ALL, Of::Tag("caching"), "the reason CACHED, which ours never gives: a reason is the service's own"),
    left_out(ALL, Of::Tag("grace"), "flagd's time of grace between stale and error; ours goes by its polling interval"),
    left_out(ALL, Of::Tag("targetURI"), "addresses as gRPC resolves them"),
    left_out(ALL, Of::Tag("customCert"), "a certificate as an option; here it is the HTTP client's"),
    left_out(ALL, Of::Tag("unixsocket"), "a service behind a Unix socket, which OFREP is not"),
    left_out(ALL, Of::Tag("reconnect"), "an error once the stream is lost; ours is stale then, which tests/it/stream/events.rs has"),
    left_out(ALL, Of::Scenario("Provider events chain ready -> error -> ready"), "an error once the stream is lost, as well"),
    left_out(ALL, Of::Tag("unavailable"), "flagd's deadline for connecting; tests/it/evaluation/lifecycle.rs has ours"),
    left_out(ALL, Of::Tag("forbidden"), "a list of fatal codes of gRPC; tests/it/auth/key_rotation.rs has our refusals"),
    left_out(ALL, Of::Tag("deprecated"), "an earlier rule for flags without default variant; the scenarios have the present one as well"),
    left_out(&[Local, Flagd], Of::Examples("v1"), "an earlier way to share users out among variants"),
    left_out(&[Local, Flagd], Of::Examples("v2"), "another earlier one"),

    // What the others cannot.
    left_out(&[Flagd, FastFeature], Of::Scenario("Flag change event"), "no stream of changes"),
    left_out(&[FastFeature], Of::Tag("fractional"), "a way of its own to share users out among variants"),
    left_out(&[FastFeature], Of::Tag("no-default-variant"), "no flags without default variant"),
    left_out(&[FastFeature], Of::Tag("metadata-provider"), "no metadata of a set of flags"),
    deviating(&[FastFeature], Of::Tag("disabled"), 11, "a disabled flag is sent with the value of its default variant, and what is sent is the value"),
    deviating(&[FastFeature], Of::Tag("operator-errors"), 15, "an operator that cannot work is a parse error; here it finds nothing"),
    deviating(&[FastFeature], Of::Tag("semver"), 16, "a version is a text of three numbers, and all else is none or is not compared"),
    deviating(&[FastFeature], Of::Scenario("Time-based operations"), 2, "rules see no time"),
    deviating(&[FastFeature], Of::Scenario("Errors and edge cases"), 3, "a rule must find a text, all its failures are parse errors, and null has a share of its own"),

    // What flipswitch-local does otherwise.
    deviating(&[Local], Of::Tag("non-existent-evaluator-ref"), 2, "such a flag is refused by its name when it is loaded, and not when it is evaluated"),
    deviating(&[Local], Of::Tag("semver-edge-cases"), 30, "flagd-evaluation-engine takes versions that are whole, texts, and without v or build"),
    deviating(&[Local], Of::Scenario("starts_with and ends_with return null for non-string input"), 4, "flagd-evaluation-engine has false"),
    deviating(&[Local], Of::Scenario("starts_with and ends_with return null for wrong argument count"), 4, "flagd-evaluation-engine has false"),
];

/// The exceptions with one server, and how often each was met.
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

    /// Whether a scenario is run. Each is asked about once.
    pub(crate) fn is_run(&self, feature: &Feature, scenario: &Scenario) -> bool {
        let Some(met) = self.find(feature, scenario) else { return true };
        met.scenarios.update(|count| count + 1);
        matches!(met.exception.is, Is::Deviating(_))
    }

    /// Whether it is listed that a scenario fails, which it did.
    pub(crate) fn deviates(&self, feature: &Feature, scenario: &Scenario) -> bool {
        let Some(met) = self.find(feature, scenario) else { return false };
        met.failures.update(|count| count + 1);
        true
    }

    /// The exceptions that are not as they are listed.
    pub(crate) fn mistaken(&self) -> impl Iterator<Item = String> {
        self.0.iter().filter_map(|Met { exception: Exception { of, is, .. }, scenarios, failures }| match is {
            Is::LeftOut if scenarios.get() == 0 => Some(format!("{of:?} is listed, and there is no such scenario")),
            Is::Deviating(listed) if failures.get() != *listed => {
                Some(format!("{of:?}: {} scenarios fail, and {listed} are listed", failures.get()))
            }
            Is::LeftOut | Is::Deviating(_) => None,
        })
    }

    /// The first one listed that is about a scenario.
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
