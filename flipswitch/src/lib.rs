#![doc = include_str!("../README.md")]

mod anonymous;
mod answer;
mod backoff;
mod buffer;
mod builder;
mod cache;
mod context;
mod current;
mod endpoint;
mod error;
mod evaluation;
mod events;
mod flags;
mod flights;
mod gate;
mod health;
mod hub;
mod intern;
mod lifespan;
mod memory;
mod misuse;
#[cfg(test)]
mod model;
mod ofrep;
mod overrides;
mod pause;
mod provider;
mod refresh;
mod request;
mod resolution;
mod runtime;
mod service;
mod signals;
mod slots;
mod snapshot;
mod stats;
mod stream;
pub mod testing;
mod transport;
mod typed;
pub mod web;

pub use open_feature;
pub use reqwest;
pub use serde_json;

pub use crate::{
    builder::FlipswitchProviderBuilder,
    current::{Carried, InRequest, Scoped},
    error::{ConfigError, Error, FlagError, ReadyError},
    evaluation::{FlagEvaluation, FlagType},
    events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
    flags::Flags,
    health::{Health, HealthState},
    hub::Subscription,
    lifespan::{Lifespan, LifespanBuilder},
    provider::FlipswitchProvider,
    request::{IntoContext, RequestScope},
    stats::Stats,
    typed::{FlagDef, FlagDefault},
};
