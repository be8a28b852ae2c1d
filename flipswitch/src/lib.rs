#![doc = include_str!("../README.md")]

mod cache;
mod config;
mod context;
mod error;
mod evaluator;
mod events;
mod feature_provider;
mod flags;
mod lifespan;
mod provider;
mod request;
mod runtime;
mod stats;
pub mod testing;
mod updates;
mod wire;

pub use open_feature;
pub use reqwest;
pub use serde_json;

pub use crate::{
    error::{ConfigError, Error, FlagError, ReadyError},
    events::{
        bus::Subscription,
        events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
        health::{Health, HealthState},
    },
    flags::{
        declare::{FlagDef, FlagDefault},
        evaluation::{FlagEvaluation, FlagType},
    },
    lifespan::lifespan::{Lifespan, LifespanBuilder},
    provider::{builder::FlipswitchProviderBuilder, flags::Flags, provider::FlipswitchProvider},
    request::{
        integration as web,
        scope::{IntoContext, RequestScope},
        task_local::{Carried, InRequest, Scoped},
    },
    stats::Stats,
};
