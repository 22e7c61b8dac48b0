//! Loads and stores.

use super::super::fault::{Cause, Extent};
use super::super::inst::{Access, Address};
use super::super::shared::By;
use super::super::ty::{MODULE_GLOBALS, Space};
use super::super::warp::Warp;
use super::{Machine, Raised, lanes};

/// Bytes of the widest access: four registers of eight.
const MAX_BYTES: usize = 32;

impl Warp {
    /// The address a lane means, generic ones told apart.
    pub(super) fn address(&self, address: Address, lane: usize) -> (Space, u64) {
        let base = self.regs[address.base as usize][lane];
        // Addresses of windows other than the global one may be held in 32 bits.
        let base = match address.space {
            Space::Global | Space::Generic => base,
            _ => base & 0xffff_ffff,
        };
        let at = base.wrapping_add_signed(address.offset);
        match address.space {
            Space::Generic => Space::resolve(at),
            Space::Global => (Space::Global, at),
            space => (space, at & 0xffff_ffff),
        }
    }

    pub(super) fn copy_local(&mut self, (to, from): (usize, usize), bytes: usize, mask: u32) {
        for lane in lanes(mask) {
            let start = lane * self.local_bytes;
            self.local
                .copy_within(start + from..start + from + bytes, start + to);
        }
    }

    fn local(&mut self, lane: usize, at: u64, bytes: usize) -> Result<&mut [u8], Cause> {
        let start = lane * self.local_bytes;
        let space = &mut self.local[start..start + self.local_bytes];
        window(Space::Local, space.len(), at, bytes)?;
        Ok(&mut space[at as usize..at as usize + bytes])
    }
}

/// Checks an access to a space that is one run of bytes.
fn window(space: Space, len: usize, address: u64, bytes: usize) -> Result<(), Cause> {
    if address
        .checked_add(bytes as u64)
        .is_none_or(|end| end > len as u64)
    {
        let nearest = Some(Extent {
            address: 0,
            bytes: len,
        });
        return Err(Cause::OutOfBounds {
            space,
            address,
            bytes,
            nearest,
        });
    }
    aligned(space, address, bytes)
}

fn aligned(space: Space, address: u64, bytes: usize) -> Result<(), Cause> {
    if address.is_multiple_of(bytes as u64) {
        return Ok(());
    }
    Err(Cause::Misaligned {
        space,
        address,
        bytes,
    })
}

impl Machine<'_> {
    /// Reads bytes of any space for a lane.
    pub(super) fn read(
        &mut self,
        warp: &mut Warp,
        (lane, strong): (usize, bool),
        (space, address): (Space, u64),
        out: &mut [u8],
    ) -> Result<(), Cause> {
        let bytes = out.len();
        match space {
            Space::Global | Space::Generic => {
                let globals = &self.entry.images.globals;
                if address >= MODULE_GLOBALS {
                    let at = address - MODULE_GLOBALS;
                    window(Space::Global, globals.len(), at, bytes)?;
                    out.copy_from_slice(&globals[at as usize..at as usize + bytes]);
                    return Ok(());
                }
                aligned(Space::Global, address, bytes)?;
                self.stats.global_load_bytes += bytes as u64;
                out.copy_from_slice(self.memory.access(address, bytes)?);
            }
            Space::Shared => {
                self.stats.shared_load_bytes += bytes as u64;
                let by = By {
                    thread: warp.thread(lane),
                    strong,
                };
                self.shared.read(address, out, by)?;
            }
            Space::Local => out.copy_from_slice(warp.local(lane, address, bytes)?),
            Space::Param | Space::Const => {
                let image = match space {
                    Space::Param => self.params,
                    _ => &self.entry.images.constants,
                };
                window(space, image.len(), address, bytes)?;
                out.copy_from_slice(&image[address as usize..address as usize + bytes]);
            }
        }
        Ok(())
    }

    /// Writes bytes of any space for a lane.
    fn write(
        &mut self,
        warp: &mut Warp,
        (lane, strong): (usize, bool),
        (space, address): (Space, u64),
        data: &[u8],
    ) -> Result<(), Cause> {
        match space {
            Space::Global | Space::Generic if address < MODULE_GLOBALS => {
                aligned(Space::Global, address, data.len())?;
                self.stats.global_store_bytes += data.len() as u64;
                self.memory
                    .access(address, data.len())?
                    .copy_from_slice(data);
            }
            Space::Shared => {
                self.stats.shared_store_bytes += data.len() as u64;
                let by = By {
                    thread: warp.thread(lane),
                    strong,
                };
                self.shared.write(address, data, by)?;
            }
            Space::Local => warp.local(lane, address, data.len())?.copy_from_slice(data),
            _ => return Err(Cause::ReadOnly { space, address }),
        }
        Ok(())
    }

    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        mask: u32,
    ) -> Result<(), Raised> {
        let size = access.ty.bytes();
        let total = size * access.regs.len;
        for lane in lanes(mask) {
            let at = warp.address(access.address, lane);
            let mut buffer = [0; MAX_BYTES];
            let by = (lane, access.strong);
            self.read(warp, by, at, &mut buffer[..total])
                .map_err(|cause| (lane, cause))?;
            for (i, reg) in access.regs.as_slice().iter().enumerate() {
                let mut item = [0; 8];
                item[..size].copy_from_slice(&buffer[i * size..(i + 1) * size]);
                let mut value = u64::from_le_bytes(item);
                if access.ty.is_signed() {
                    let unused = 64 - 8 * size as u32;
                    value = ((value << unused) as i64 >> unused) as u64;
                }
                warp.regs[*reg as usize][lane] = value;
            }
        }
        Ok(())
    }

    pub(super) fn store(
        &mut self,
        warp: &mut Warp,
        access: &Access,
        mask: u32,
    ) -> Result<(), Raised> {
        let size = access.ty.bytes();
        let total = size * access.regs.len;
        for lane in lanes(mask) {
            let at = warp.address(access.address, lane);
            let mut buffer = [0; MAX_BYTES];
            for (i, reg) in access.regs.as_slice().iter().enumerate() {
                let value = warp.regs[*reg as usize][lane].to_le_bytes();
                buffer[i * size..(i + 1) * size].copy_from_slice(&value[..size]);
            }
            let by = (lane, access.strong);
            self.write(warp, by, at, &buffer[..total])
                .map_err(|cause| (lane, cause))?;
        }
        Ok(())
    }
}
