//! The systems compared.

mod example;
mod faster_transformer;
mod orca;
mod paged;
mod pageloom;

use anyhow::bail;

use faster_transformer::FasterTransformer;
use orca::Orca;
use paged::Paged;
use pageloom::Pageloom;

use super::system::System;

/// All that can be named.
pub(crate) const ALL: [&dyn System; 19] = [
    &FasterTransformer,
    &Orca::Max,
    &Orca::Pow2,
    &Orca::Oracle,
    &Paged,
    &Pageloom::CHUNKED,
    &Pageloom::CACHING,
    &Pageloom::INT8_SLOTS,
    &Pageloom::INT8,
    &Pageloom::HEADROOM,
    &Pageloom::SWAP,
    &Pageloom::AUTO,
    &Pageloom::ALL_16_BITS,
    &Pageloom::ALL_SLOTS,
    &Pageloom::ALL,
    &Pageloom::ALL_EAGER,
    &Pageloom::ALL_TIERS,
    &Pageloom::ALL_TIERS_16_BITS,
    &example::Capped,
];

/// The system of this name.
///
/// # Errors
/// Lists the known ones.
pub(crate) fn named(name: &str) -> anyhow::Result<&'static dyn System> {
    match ALL.into_iter().find(|system| system.name() == name) {
        Some(system) => Ok(system),
        None => {
            let known: Vec<_> = ALL.iter().map(|system| system.name()).collect();
            bail!("no system {name:?}; there are {}", known.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_unknown_ones_list_them() {
        for (i, system) in ALL.iter().enumerate() {
            assert!(!ALL[..i].iter().any(|other| other.name() == system.name()));
            assert_eq!(named(system.name()).unwrap().name(), system.name());
        }
        let error = named("lifo").err().unwrap().to_string();
        assert!(error.contains("orca-max"), "{error}");
    }
}
