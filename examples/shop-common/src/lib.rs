//! Code that both shops share: users, pages, and helpers of tests.

mod pages;
mod program;
pub mod testing;
mod users;

pub use crate::{
    pages::{checkout, home, unknown},
    program::{announce, flags_file},
    users::{Login, User},
};

/// Text of the beta.
pub const BETA: &str = "You are among the first to see this.";
/// Text of the wishlist in the beta.
pub const WISHLIST: &str = "You have wished for nothing yet.";
/// Text of the sale while it is on.
pub const SALE: &str = "Everything at half the price.";
/// Text of the sale while it is off.
pub const SALE_IS_OVER: &str = "The sale is over.";
