#![doc = include_str!("../README.md")]

mod extract;
mod middleware;

pub use flipswitch::{self, IntoContext, Lifespan, RequestScope};

pub use crate::{
    extract::{Flag, FlagFuture, Flags, FlagsFuture, MissingMiddleware},
    middleware::{Flipswitch, FlipswitchService},
};
