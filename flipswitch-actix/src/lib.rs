#![doc = include_str!("../README.md")]

mod browser;
mod extract;
mod gate;
mod guard;
mod health;
mod inspection;
mod middleware;
pub mod testing;

pub use flipswitch::{
    self, Auth, Context, ContextId, EvaluationContext, EvaluationEvents, FlipswitchProvider, FlipswitchProviderBuilder,
    InRequest, IntoContext, Lifespan, PreparedContext, RequestScope, SignedOverrides, flags, http,
    integration::{Anonymous, AnonymousCookie, FlagKey, GateFlag, GateRule, SameSite, Unknown},
    time,
};

pub use crate::{
    browser::{BrowserRoutes, browser},
    extract::{ExtractFuture, Flag, Flags, FlagsExt, MissingMiddleware},
    gate::{Fallback, FlagGate, GateFuture, GateService},
    guard::flag_on,
    health::health,
    inspection::inspection,
    middleware::{FlipswitchMiddleware, FlipswitchService, ResponseFuture},
};
