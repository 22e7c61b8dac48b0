//! The routers compared.

mod least_loaded;
mod least_waiting;
mod prefix_aware;
mod round_robin;

pub(crate) use least_loaded::LeastLoaded;
pub(crate) use least_waiting::{LeastWaiting, least};
pub(crate) use prefix_aware::PrefixAware;
pub(crate) use round_robin::RoundRobin;
