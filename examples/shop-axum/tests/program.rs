//! The program, as README.md has its reader meet it.
#![cfg(unix)]

const PROGRAM: &str = env!("CARGO_BIN_EXE_shop-axum");

#[test]
fn it_serves_and_follows() {
    shop_common::testing::it_serves_and_follows(PROGRAM);
}

#[test]
fn it_ends_at_ctrl_c() {
    shop_common::testing::ends_at_ctrl_c(PROGRAM);
}

#[test]
fn it_finishes_what_it_began() {
    shop_common::testing::finishes_what_it_began(PROGRAM);
}

#[test]
fn it_ends_at_once_when_asked_twice() {
    shop_common::testing::ends_at_once_when_asked_twice(PROGRAM);
}
