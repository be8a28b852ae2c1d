#![doc = include_str!("../README.md")]

mod hook;
mod metrics;

pub use flipswitch;
pub use opentelemetry;

pub use crate::{hook::EvaluationHook, metrics::observe};
