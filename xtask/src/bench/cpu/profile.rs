//! Where the time of each phase goes, as `pageloom bench --profile` tells it.

use super::Setup;

pub(super) fn run(_: &Setup) -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
