#![doc = include_str!("../README.md")]

#[cfg(feature = "browser")]
mod browser;
mod extract;
mod gate;
mod health;
mod inspection;
mod layer;
pub mod testing;

pub use flipswitch::{
    self, Auth, Context, ContextId, EvaluationContext, EvaluationEvents, FlipswitchProvider, FlipswitchProviderBuilder,
    InRequest, IntoContext, Lifespan, PreparedContext, RequestScope, SignedOverrides, flags, http,
    integration::{Anonymous, AnonymousCookie, FlagKey, GateFlag, GateRule, SameSite, Unknown},
    time,
};

#[cfg(feature = "browser")]
pub use crate::browser::{BrowserRoutes, browser};
pub use crate::{
    extract::{Flag, Flags, FlagsExt, MissingLayer},
    gate::{FlagGate, GateFuture, GateService},
    health::{HealthService, health},
    inspection::{InspectionService, inspection},
    layer::{FlipswitchLayer, FlipswitchService, RequestExtension, ResponseFuture},
};
