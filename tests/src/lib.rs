//! Tests across the crates live in `it/`. This library only has the examples of the project's README compiled.

/// The project's README.
#[doc = include_str!("../../README.md")]
#[cfg(doctest)]
#[derive(Debug)]
pub struct Readme;
