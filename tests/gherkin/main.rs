//! flagd's own scenarios for providers, told to ours: behind OpenFeature's client, against services that have the flags
//! of these scenarios.
//!
//! They are not among the tests in `it`: while scenarios run, their runner silences the panics of the whole process.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod exceptions;
#[path = "../it/support/json.rs"]
mod json;
#[path = "../it/support/peer.rs"]
#[expect(dead_code, reason = "what the tests in `it` need of a server is more than what these need")]
mod server;
#[path = "../it/support/common.rs"]
#[expect(dead_code, reason = "what the tests in `it` share is more than what these need")]
mod support;
mod tally;
mod world;

use std::{fs, path::Path, rc::Rc};

use cucumber::Cucumber;
use tempfile::TempDir;
use tokio::sync::Mutex;

use self::{
    bed::{Bed, Server},
    exceptions::Exceptions,
    tally::Tally,
    world::World,
};

#[tokio::test]
async fn scenarios_pass_with_flipswitch_local() {
    check(Server::Local, 300).await;
}

#[tokio::test]
async fn scenarios_pass_with_flagd() {
    check(Server::Flagd, 300).await;
}

#[tokio::test]
async fn scenarios_pass_with_fast_feature() {
    check(Server::FastFeature, 100).await;
}

/// Runs the scenarios with a server. So many must pass at least.
async fn check(server: Server, least: usize) {
    // A run puts a silent panic hook in the place of the one that it finds, and puts that one back at its end. Two at
    // once would leave a silent one.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _turn = ONE_AT_A_TIME.lock().await;

    let features = readable(&bed::scenarios());
    let bed = Rc::new(Bed::start(server).await);
    let exceptions = Rc::new(Exceptions::of(server));
    let entered = Rc::clone(&bed);
    let asked = Rc::clone(&exceptions);
    let tally = Cucumber::new()
        .steps(world::steps())
        .before(move |_, _, _, world: &mut World| {
            world.enter(Rc::clone(&entered));
            Box::pin(async {})
        })
        .with_writer(Tally::new(Rc::clone(&exceptions)))
        // Otherwise the arguments of the test program are taken for the runner's.
        .with_default_cli()
        .filter_run(features.path().to_owned(), move |feature, _, scenario| asked.is_run(feature, scenario))
        .await;

    #[expect(clippy::print_stdout, reason = "the output of the gate shows how many scenarios ran")]
    {
        println!("{server:?}: {tally}\n{exceptions}");
    }
    let problems: Vec<_> = tally.problems().chain(exceptions.mistaken()).collect();
    assert!(problems.is_empty(), "{server:?}: {tally}\n{}", problems.join("\n"));
    assert!(tally.passed() >= least, "{server:?}: {tally}, and at least {least} should pass");
    bed.shutdown().await;
}

/// The features as the parser can read them: in a table's cell it refuses a backslash that escapes nothing. In these
/// files backslashes stand for themselves.
fn readable(scenarios: &Path) -> TempDir {
    let readable = tempfile::tempdir().unwrap();
    for folder in ["gherkin", "evaluator/gherkin"] {
        let to = readable.path().join(folder);
        fs::create_dir_all(&to).unwrap();
        for file in fs::read_dir(scenarios.join(folder)).unwrap() {
            let file = file.unwrap();
            let text = fs::read_to_string(file.path()).unwrap();
            fs::write(to.join(file.file_name()), text.replace('\\', r"\\")).unwrap();
        }
    }
    readable
}
