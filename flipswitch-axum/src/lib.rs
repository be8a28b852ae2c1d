#![doc = include_str!("../README.md")]

mod extract;
mod gate;
mod health;
mod layer;
pub mod testing;

pub use flipswitch::{
    self, InRequest, IntoContext, Lifespan, RequestScope,
    web::{Anonymous, FlagKey, GateFlag},
};

pub use crate::{
    extract::{Flag, Flags, FlagsExt, MissingLayer},
    gate::{FlagGate, GateFuture, GateService},
    health::{HealthService, health},
    layer::{FlipswitchLayer, FlipswitchService, RequestExtension, ResponseFuture},
};
