//! What both shops share: who their users are, which flags they have, and what their pages look like.

mod pages;
mod program;
pub mod testing;
mod users;

pub use crate::{
    pages::{checkout, home, unknown},
    program::{announce, flags_file},
    users::{Login, User, context},
};

/// What a visitor of the beta reads.
pub const BETA: &str = "You are among the first to see this.";
/// What a user of the beta has wished for.
pub const WISHLIST: &str = "You have wished for nothing yet.";
/// What a visitor of the sale reads while it lasts.
pub const SALE: &str = "Everything at half the price.";
/// What a visitor of the sale reads otherwise.
pub const SALE_IS_OVER: &str = "The sale is over.";

flipswitch::flags! {
    /// The checkout on one page.
    pub NewCheckout: bool = "new-checkout", default false;
    /// How many items a cart holds.
    pub MaxItems: i64 = "max-items", default 10;
    /// The look of the shop.
    pub Theme: String = "theme", default "light";
    /// Pages that few may see yet.
    pub Beta: bool = "beta", default false;
    /// Low prices, for a time.
    pub SummerSale: bool = "summer-sale", default false;
}
