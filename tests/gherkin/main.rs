//! Runs flagd's scenarios for providers with our provider, behind OpenFeature's client, against services that have the
//! flags of these scenarios.
//!
//! This is a separate test binary, because the runner silences the panics of the whole process while scenarios run.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test fails by panicking")]

mod bed;
mod exceptions;
#[path = "../it/support/json.rs"]
mod json;
#[path = "../it/support/peer.rs"]
#[expect(dead_code, reason = "the tests in `it` use more of it")]
mod server;
#[path = "../it/support/common.rs"]
#[expect(dead_code, reason = "the tests in `it` use more of it")]
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

/// Runs the scenarios with a server. At least this many must pass.
async fn check(server: Server, least: usize) {
    // A run replaces the panic hook by a silent one, and restores it at its end. Two runs at the same time would leave a
    // silent hook behind.
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
        // Otherwise the runner would parse the arguments of the test program.
        .with_default_cli()
        .filter_run(features.path().to_owned(), move |feature, _, scenario| asked.is_run(feature, scenario))
        .await;

    #[expect(clippy::print_stdout, reason = "the output of the gate shows how many scenarios ran")]
    {
        println!("{server:?}: {tally}\n{exceptions}");
    }
    let problems: Vec<_> = tally.problems().chain(exceptions.mistaken()).collect();
    assert!(problems.is_empty(), "{server:?}: {tally}\n{}", problems.join("\n"));
    assert!(tally.passed() >= least, "{server:?}: {tally}; at least {least} must pass");
    bed.shutdown().await;
}

/// Returns a folder with the features in a form that the parser accepts. The parser rejects a backslash that escapes nothing in
/// the cell of a table. In these files, backslashes are literal.
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
