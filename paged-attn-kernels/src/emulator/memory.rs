//! Global memory: allocations with unmapped gaps between them.

use super::fault::{Cause, Extent, Fault};
use super::ty::Space;

/// Device memory. Addresses are never used twice, so that a stale one faults.
#[derive(Debug)]
pub struct Memory {
    /// Sorted by address.
    allocations: Vec<Allocation>,
    next: u64,
    /// Index of the allocation used last.
    recent: usize,
}

#[derive(Debug)]
struct Allocation {
    address: u64,
    bytes: Vec<u8>,
}

/// Alignment of allocations, and at least this much lies unmapped between them.
const ALIGN: u64 = 256;
/// The first address: large enough that no index is taken for an address.
const FIRST: u64 = 1 << 36;
/// What fresh memory holds: NaN in every float format.
pub(crate) const POISON: u8 = 0xff;

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// Memory with nothing in it.
    pub fn new() -> Self {
        Self {
            allocations: Vec::new(),
            next: FIRST,
            recent: 0,
        }
    }

    /// Reserves memory, filled with `0xff`: NaN in every float format. Its address is a multiple
    /// of 256.
    pub fn alloc(&mut self, bytes: usize) -> u64 {
        let address = self.next;
        self.next = (address + bytes as u64 + ALIGN).next_multiple_of(ALIGN) + ALIGN;
        self.allocations.push(Allocation {
            address,
            bytes: vec![POISON; bytes],
        });
        address
    }

    /// Gives memory back; whether an allocation begins at `address`.
    pub fn free(&mut self, address: u64) -> bool {
        let found = self
            .allocations
            .binary_search_by_key(&address, |a| a.address);
        self.recent = 0;
        found.map(|at| self.allocations.remove(at)).is_ok()
    }

    /// Copies to the host.
    ///
    /// # Errors
    /// [`Fault::Host`] where the range is not within one allocation.
    pub fn read(&self, address: u64, out: &mut [u8]) -> Result<(), Fault> {
        let range = self.find(address, out.len());
        let (at, start) = range.ok_or_else(|| self.host_fault(address, out.len()))?;
        out.copy_from_slice(&self.allocations[at].bytes[start..start + out.len()]);
        Ok(())
    }

    /// Copies from the host.
    ///
    /// # Errors
    /// [`Fault::Host`] where the range is not within one allocation.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        let range = self.find(address, data.len());
        let (at, start) = range.ok_or_else(|| self.host_fault(address, data.len()))?;
        self.allocations[at].bytes[start..start + data.len()].copy_from_slice(data);
        Ok(())
    }

    fn host_fault(&self, address: u64, bytes: usize) -> Fault {
        Fault::Host {
            address,
            bytes,
            nearest: self.nearest(address),
        }
    }

    /// Index of the allocation that holds a range, and where in it the range starts.
    fn find(&self, address: u64, bytes: usize) -> Option<(usize, usize)> {
        let at = self
            .allocations
            .partition_point(|a| a.address <= address)
            .checked_sub(1)?;
        let start = usize::try_from(address - self.allocations[at].address).ok()?;
        let end = start.checked_add(bytes)?;
        (end <= self.allocations[at].bytes.len()).then_some((at, start))
    }

    fn nearest(&self, address: u64) -> Option<Extent> {
        let distance = |a: &&Allocation| {
            let end = a.address + a.bytes.len() as u64;
            if address < a.address {
                a.address - address
            } else {
                address.saturating_sub(end)
            }
        };
        let nearest = self.allocations.iter().min_by_key(distance)?;
        Some(Extent {
            address: nearest.address,
            bytes: nearest.bytes.len(),
        })
    }

    /// The bytes of an access by a thread, whose alignment is checked already.
    pub(crate) fn access(&mut self, address: u64, bytes: usize) -> Result<&mut [u8], Cause> {
        let inside = |a: &Allocation| {
            let start = address.checked_sub(a.address)?;
            (start.checked_add(bytes as u64)? <= a.bytes.len() as u64).then_some(start as usize)
        };
        let recent = self.allocations.get(self.recent).and_then(inside);
        let (at, start) = match recent {
            Some(start) => (self.recent, start),
            None => match self.find(address, bytes) {
                Some(found) => found,
                None => {
                    let nearest = self.nearest(address);
                    return Err(Cause::OutOfBounds {
                        space: Space::Global,
                        address,
                        bytes,
                        nearest,
                    });
                }
            },
        };
        self.recent = at;
        Ok(&mut self.allocations[at].bytes[start..start + bytes])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_poisoned_and_apart() {
        let mut memory = Memory::new();
        let (a, b) = (memory.alloc(256), memory.alloc(1));
        assert!(a % 256 == 0 && b % 256 == 0 && b > a + 256);
        let mut byte = [0];
        memory.read(a + 255, &mut byte).unwrap();
        assert_eq!(byte, [POISON]);
        assert!(memory.read(a + 256, &mut byte).is_err());
        assert!(memory.access(a + 255, 2).is_err());
    }

    #[test]
    fn freed_memory_faults() {
        let mut memory = Memory::new();
        let a = memory.alloc(8);
        let b = memory.alloc(8);
        memory.write(b, &[7; 8]).unwrap();
        assert!(memory.free(a) && !memory.free(a));
        assert!(memory.access(a, 4).is_err());
        assert_eq!(memory.access(b, 4).unwrap(), [7; 4]);
        assert_ne!(memory.alloc(8), a);
    }
}
