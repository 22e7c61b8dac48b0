//! How finely keys are split, so that all CTAs are busy until the end.

use std::cmp::Reverse;

/// Keys of a tile; splits are at multiples of it.
pub(super) const TILE_KEYS: u32 = 64;

/// What beginning and ending a piece costs, in tiles: a latency of the memory or two.
const PIECE_COST: u64 = 1;

/// What the launch that combines pieces costs, in tiles: a few microseconds.
const COMBINE_COST: u64 = 4;

/// Rounds that may be tried beyond those that whole units take.
const MAX_ROUNDS: usize = 8;

/// What runs the pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slots {
    /// CTAs that run at once; CTA `i` takes pieces `i`, `i + num_ctas`, ...
    pub(super) num_ctas: usize,
    /// Tiles that a piece should have at least.
    pub(super) min_tiles: u32,
}

/// Cuts work whose costs in tiles are `lens`, each needed `copies` times, so that the last CTA
/// ends early. Returns the longest that a piece may be, in tiles.
///
/// Pieces are run in the order of their lengths, longest first.
pub(super) fn longest_piece(lens: &[u32], copies: usize, slots: Slots) -> u32 {
    let longest = lens.iter().copied().max().unwrap_or(0).max(1);
    let total: u64 = lens.iter().map(|&len| u64::from(len)).sum::<u64>() * copies as u64;
    let share = total / slots.num_ctas.max(1) as u64;
    let num_whole = lens.len() * copies;
    // Fine enough as they are: the last piece is a small part of what each CTA does.
    if num_whole >= 4 * slots.num_ctas && u64::from(longest) * 4 <= share {
        return longest;
    }
    let mut pieces = Vec::with_capacity(lens.len());
    let mut best = (
        time(lens, copies, slots.num_ctas, longest, &mut pieces),
        longest,
    );
    let fewest = num_whole.div_ceil(slots.num_ctas.max(1)).max(1);
    for rounds in fewest..fewest + MAX_ROUNDS {
        let room = rounds * slots.num_ctas;
        let len = shortest_that_fits(lens, copies, room, slots.min_tiles.min(longest)..longest);
        let time = time(lens, copies, slots.num_ctas, len, &mut pieces);
        if time < best.0 {
            best = (time, len);
        }
    }
    best.1
}

/// The shortest length in `range`, or its end, at which there are no more than `room` pieces.
fn shortest_that_fits(
    lens: &[u32],
    copies: usize,
    room: usize,
    range: std::ops::Range<u32>,
) -> u32 {
    let fits = |piece: u32| {
        let pieces: usize = lens.iter().map(|len| len.div_ceil(piece) as usize).sum();
        pieces * copies <= room
    };
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = low + (high - low) / 2;
        match fits(middle) {
            true => high = middle,
            false => low = middle + 1,
        }
    }
    low
}

/// How long CTA 0 takes, which gets the longest piece of each round.
fn time(
    lens: &[u32],
    copies: usize,
    num_ctas: usize,
    piece: u32,
    pieces: &mut Vec<(u32, usize)>,
) -> u64 {
    pieces.clear();
    let mut split = false;
    for &len in lens.iter().filter(|&&len| len > 0) {
        let count = len.div_ceil(piece);
        split |= count > 1;
        pieces.push((len.div_ceil(count), count as usize * copies));
    }
    pieces.sort_unstable_by_key(|&(len, _)| Reverse(len));
    let mut time = if split { COMBINE_COST } else { 0 };
    let mut first = 0;
    for &(len, count) in pieces.iter() {
        let rounds = (first + count).div_ceil(num_ctas) - first.div_ceil(num_ctas);
        time += rounds as u64 * (u64::from(len) + PIECE_COST);
        first += count;
    }
    time
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOTS: Slots = Slots {
        num_ctas: 264,
        min_tiles: 2,
    };

    fn num_pieces(lens: &[u32], copies: usize, piece: u32) -> usize {
        let pieces = lens.iter().map(|len| len.div_ceil(piece) as usize);
        pieces.sum::<usize>() * copies
    }

    #[test]
    fn work_that_fills_the_device_is_not_split() {
        assert_eq!(longest_piece(&[512; 33], 8, SLOTS), 512);
        assert_eq!(longest_piece(&[16; 1024], 8, SLOTS), 16);
        assert_eq!(longest_piece(&[], 8, SLOTS), 1);
    }

    #[test]
    fn one_long_sequence_fills_the_device() {
        let piece = longest_piece(&[512], 8, SLOTS);
        assert!((16..=17).contains(&piece), "{piece}");
        assert!(num_pieces(&[512], 8, piece) <= 264);
    }

    #[test]
    fn a_short_sequence_is_not_worth_a_second_launch() {
        assert_eq!(longest_piece(&[4], 8, SLOTS), 4);
    }

    #[test]
    fn a_batch_just_above_the_devices_width_is_split_finely() {
        // 320 pieces of 512 would take two rounds, 1024; the least is 320 * 512 / 264 = 621.
        let lens = [512; 40];
        let piece = longest_piece(&lens, 8, SLOTS);
        let found = time(&lens, 8, 264, piece, &mut Vec::new());
        assert!(found < 680, "{found} with pieces of {piece}");
    }

    #[test]
    fn a_long_sequence_among_many_short_ones_is_split() {
        let mut lens = vec![16; 256];
        lens.push(2048);
        let piece = longest_piece(&lens, 8, SLOTS);
        // The least is (256 * 16 + 2048) * 8 / 264 = 186.
        let found = time(&lens, 8, 264, piece, &mut Vec::new());
        assert!(found < 300, "{found} with pieces of {piece}");
    }

    #[test]
    fn the_shortest_length_that_fits_is_found() {
        for room in 1..40 {
            let len = shortest_that_fits(&[5, 9, 30], 1, room, 1..30);
            let fits = |len: u32| num_pieces(&[5, 9, 30], 1, len) <= room;
            assert!(len == 30 || fits(len));
            assert!(len == 1 || !fits(len - 1));
        }
    }
}
