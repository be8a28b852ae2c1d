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
