//! The shop as a process.
#![cfg(unix)]

const PROGRAM: &str = env!("CARGO_BIN_EXE_shop-axum");

#[test]
fn it_serves_pages_and_follows_changes() {
    shop_common::testing::serves_pages_and_follows_changes(PROGRAM);
}

#[test]
fn ctrl_c_ends_it() {
    shop_common::testing::ctrl_c_ends_it(PROGRAM);
}

#[test]
fn requests_finish_during_shutdown() {
    shop_common::testing::requests_finish_during_shutdown(PROGRAM);
}

#[test]
fn a_second_signal_ends_it_immediately() {
    shop_common::testing::a_second_signal_ends_it_immediately(PROGRAM);
}
