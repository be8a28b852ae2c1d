#![doc = include_str!("../README.md")]

mod connection;
mod error;
mod script;
mod server;
mod store;

pub use flipswitch;
pub use redis;

pub use crate::{
    error::RedisStoreError,
    store::{RedisStore, RedisStoreBuilder},
};
