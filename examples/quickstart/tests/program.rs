//! The demo as a process.
#![cfg(unix)]

const PROGRAM: &str = env!("CARGO_BIN_EXE_quickstart-demo");

#[test]
fn it_behaves_as_the_readme_says() {
    quickstart_common::testing::behaves_as_the_readme_says(PROGRAM);
}

#[test]
fn ctrl_c_ends_it() {
    quickstart_common::testing::ctrl_c_ends_it(PROGRAM);
}

#[test]
fn it_uses_the_service_from_the_environment() {
    quickstart_common::testing::uses_the_service_from_the_environment(PROGRAM);
}

#[test]
fn requests_finish_during_shutdown() {
    quickstart_common::testing::requests_finish_during_shutdown(PROGRAM);
}

#[test]
fn a_second_signal_ends_it_immediately() {
    quickstart_common::testing::a_second_signal_ends_it_immediately(PROGRAM);
}
