#![doc = include_str!("../README.md")]

mod cache;
mod cache_store;
mod clock;
mod config;
mod context;
mod credential;
mod error;
mod evaluator;
mod events;
mod feature_provider;
mod flag_type;
mod flags;
mod lifespan;
mod provider;
mod request;
mod runtime;
mod sanitize;
mod secret;
mod stats;
mod store;
pub mod testing;
mod updates;
mod warn_once;
mod wire;

pub use async_trait::async_trait;
pub use http;
pub use open_feature::{self, EvaluationContext};
pub use reqwest;
pub use serde_json;
pub use time;

pub use crate::{
    cache_store::{CacheStore, Lease, Leased, Lookup, StoreError, StoredEntry},
    config::{ContextId, EvaluationEvents},
    context::{
        attribute::AttributeValue,
        context::{Context, PreparedContext},
        into_context::IntoContext,
    },
    credential::Auth,
    error::{ConfigError, Error, FlagError, ReadyError},
    events::{
        bus::Subscription,
        events::{ConnectionStatus, FlagChangeEvent, ProviderEvent, ProviderEvents},
        health::{Health, HealthState},
    },
    flag_type::FlagType,
    flags::{
        declare::{DeclaredFlag, FlagDef, FlagDefault, manifest},
        evaluation::FlagEvaluation,
        usage::{FlagUsage, Usage},
    },
    lifespan::lifespan::{Lifespan, LifespanBuilder},
    provider::{
        builder::FlipswitchProviderBuilder,
        explanation::Explanation,
        flags::{FlagSource, Flags},
        provider::{FlipswitchProvider, WeakProvider},
    },
    request::{
        integration,
        overrides::{OverrideToken, SignedOverrides},
        scope::RequestScope,
        task_local::{Carried, InRequest, Scoped},
    },
    stats::{Stats, Throttling},
};
