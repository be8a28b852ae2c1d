//! What packages for web frameworks are made of: whom a request is from, the rule of a gate, and a probe's.
//!
//! Applications use `flipswitch-axum` or `flipswitch-actix`, which hand on what they need of this. A package for another
//! framework opens a [`RequestScope`](crate::RequestScope) in each request and adds what is the framework's own.

pub use crate::{
    anonymous::Anonymous,
    gate::{FlagKey, GateFlag, GateRule},
    health::HealthProbe,
    misuse::Misuse,
};
