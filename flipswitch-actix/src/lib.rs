#![doc = include_str!("../README.md")]

mod extract;
mod gate;
mod guard;
mod health;
mod middleware;
pub mod testing;

pub use flipswitch::{
    self, InRequest, IntoContext, Lifespan, RequestScope,
    web::{Anonymous, FlagKey, GateFlag},
};

pub use crate::{
    extract::{Flag, FlagFuture, Flags, FlagsExt, FlagsFuture, MissingMiddleware},
    gate::{FlagGate, GateFuture, GateService, Otherwise},
    guard::flag_on,
    health::health,
    middleware::{Flipswitch, FlipswitchService, ResponseFuture},
};
