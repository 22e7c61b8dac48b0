//! Asynchronous copies: they land in shared memory when their thread waits for them, not before.

use super::super::fault::Cause;
use super::super::inst::Copy16;
use super::super::ty::Space;
use super::super::warp::{InFlight, Warp};
use super::{Machine, Raised, lanes};

impl Machine<'_> {
    pub(super) fn copy_async(
        &mut self,
        warp: &mut Warp,
        copy: &Copy16,
        mask: u32,
    ) -> Result<(), Raised> {
        let ignored = copy.ignore.map_or(0, |cond| warp.cond(cond));
        for lane in lanes(mask) {
            let raise = |cause| (lane, cause);
            let (_, to) = warp.address(copy.to, lane);
            let (space, from) = warp.address(copy.from, lane);
            let source_bytes = match copy.source_bytes {
                _ if ignored >> lane & 1 == 1 => 0,
                Some(reg) => warp.regs[reg as usize][lane] as u32,
                None => copy.bytes as u32,
            };
            if source_bytes as usize > copy.bytes {
                return Err(raise(Cause::CopySize {
                    bytes: copy.bytes,
                    source_bytes,
                }));
            }
            if from % copy.bytes as u64 != 0 {
                let cause = Cause::Misaligned {
                    space,
                    address: from,
                    bytes: copy.bytes,
                };
                return Err(raise(cause));
            }
            let thread = warp.thread(lane);
            self.shared
                .begin_copy(to, copy.bytes, thread)
                .map_err(raise)?;
            let mut data = [0; 16];
            // A copy of no bytes reads nothing, so its address need not be one.
            if source_bytes > 0 {
                let out = &mut data[..source_bytes as usize];
                self.read_source(space, from, out).map_err(raise)?;
            }
            warp.copies[lane].open.push(InFlight {
                to,
                data,
                bytes: copy.bytes,
            });
        }
        Ok(())
    }

    fn read_source(&mut self, space: Space, from: u64, out: &mut [u8]) -> Result<(), Cause> {
        if space != Space::Global {
            return Err(Cause::OutOfBounds {
                space,
                address: from,
                bytes: out.len(),
                nearest: None,
            });
        }
        self.stats.global_load_bytes += out.len() as u64;
        out.copy_from_slice(self.memory.access(from, out.len())?);
        Ok(())
    }

    /// Lands all groups but the latest ones; without a number, also copies in no group.
    pub(super) fn wait_group(&mut self, warp: &mut Warp, groups: Option<usize>, mask: u32) {
        for lane in lanes(mask) {
            let thread = warp.thread(lane);
            let copies = &mut warp.copies[lane];
            if groups.is_none() {
                copies.commit();
            }
            while copies.groups.len() > groups.unwrap_or(0) {
                for copy in copies.groups.pop_front().unwrap_or_default() {
                    self.stats.shared_store_bytes += copy.bytes as u64;
                    self.shared
                        .land_copy(copy.to, &copy.data[..copy.bytes], thread);
                }
            }
        }
    }
}
