//! What the kernel should find, by the definition, in f64.

use super::{Case, Input, Kv, first_visible};

impl Input {
    /// A key as it was before its rotation, or a value.
    fn read(&self, sequence: usize, key: usize, head: usize, values: bool) -> Vec<f64> {
        let (row, scale) = self.place(sequence, key, head, values);
        let kv = self.case.kv;
        let factor = match kv.scaled() {
            true => f64::from(f32::from_le_bytes(
                self.pages[scale..scale + 4].try_into().unwrap(),
            )),
            false => 1.0,
        };
        let element = |d: usize| kv.read(&self.pages[row + d * kv.bytes()..]) * factor;
        let mut out: Vec<f64> = (0..self.case.head_dim).map(element).collect();
        if kv == Kv::Int8 && !values {
            rotate(&mut out);
        }
        out
    }

    /// By the definition, `[num_tokens, num_heads, head_dim]`.
    pub(crate) fn reference(&self) -> Vec<f64> {
        let case = &self.case;
        let mut out = Vec::new();
        for (s, seq) in self.sequences.iter().enumerate() {
            let all = |head: usize, values: bool| -> Vec<Vec<f64>> {
                (0..seq.prefix + seq.chunk)
                    .map(|key| self.read(s, key, head, values))
                    .collect()
            };
            let keys: Vec<_> = (0..case.num_kv_heads)
                .map(|head| (all(head, false), all(head, true)))
                .collect();
            for token in 0..seq.chunk {
                for head in 0..case.num_heads() {
                    let at = (seq.first_row + token) * case.stride() + head * case.head_dim;
                    let q: Vec<f64> = self.q[at..at + case.head_dim]
                        .iter()
                        .map(|&x| case.decode(x))
                        .collect();
                    let end = seq.prefix + token + 1;
                    let seen = first_visible(case, end - 1)..end;
                    let (k, v) = &keys[head / case.group];
                    out.extend(attend_row(case, &q, &k[seen.clone()], &v[seen]));
                }
            }
        }
        out
    }
}

fn attend_row(case: &Case, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
    let cap = f64::from(case.soft_cap);
    let score = |key: &Vec<f64>| {
        let score = case.scale() * q.iter().zip(key).map(|(a, b)| a * b).sum::<f64>();
        if cap > 0.0 {
            cap * (score / cap).tanh()
        } else {
            score
        }
    };
    let scores: Vec<f64> = keys.iter().map(score).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let mean = |d: usize| {
        weights
            .iter()
            .zip(values)
            .map(|(w, v)| w * v[d])
            .sum::<f64>()
            / sum
    };
    (0..case.head_dim).map(mean).collect()
}

/// The orthonormal Walsh-Hadamard transform, by its definition.
fn rotate(x: &mut [f64]) {
    let len = 1 << x.len().trailing_zeros();
    for block in x.chunks_exact_mut(len) {
        let sign = |i: usize, j: usize| {
            if (i & j).count_ones().is_multiple_of(2) {
                1.0
            } else {
                -1.0
            }
        };
        let turned = |i| (0..len).map(|j| sign(i, j) * block[j]).sum::<f64>() / (len as f64).sqrt();
        let turned: Vec<f64> = (0..len).map(turned).collect();
        block.copy_from_slice(&turned);
    }
}
