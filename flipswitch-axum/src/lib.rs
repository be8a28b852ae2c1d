#![doc = include_str!("../README.md")]

mod extract;
mod layer;

pub use flipswitch::{self, IntoContext, Lifespan, RequestScope};

pub use crate::{
    extract::{Flag, Flags, MissingLayer},
    layer::{FlipswitchLayer, FlipswitchService},
};
