//! Tests across the crates live in `it/`; there is nothing to use here.
