//! Tests across the crates, over real sockets.

mod support;

mod evaluation;
mod frameworks;
mod layer;
mod life;
mod local;
mod open_feature;
