//! The program, as README.md has its reader meet it.
#![cfg(unix)]

const PROGRAM: &str = env!("CARGO_BIN_EXE_quickstart-actix-demo");

#[test]
fn it_keeps_its_promises() {
    quickstart_common::testing::keeps_its_promises(PROGRAM);
}

#[test]
fn it_ends_at_ctrl_c() {
    quickstart_common::testing::ends_at_ctrl_c(PROGRAM);
}

#[test]
fn it_uses_the_environment() {
    quickstart_common::testing::uses_the_environment(PROGRAM);
}

#[test]
fn it_finishes_what_it_began() {
    quickstart_common::testing::finishes_what_it_began(PROGRAM, &quickstart_common::testing::visit());
}

#[test]
fn it_ends_at_once_when_asked_twice() {
    quickstart_common::testing::ends_at_once_when_asked_twice(PROGRAM, &quickstart_common::testing::visit());
}
