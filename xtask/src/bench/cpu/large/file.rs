//! A GGUF file of a given shape with random weights of 4 bits (Q4_0), made as it is written.
//!
//! ```text
//! header | metadata: shape, a byte-level vocabulary | tensor entries | data, each aligned to 32
//! ```
//!
//! Source of the layout: the GGUF specification of the ggml project.

use std::io::{self, Write};

use half::f16;

/// Bytes that a tensor's data begins at a multiple of; GGUF's default.
const ALIGNMENT: u64 = 32;
/// Numbers in a block of Q4_0 and its bytes: an f16 scale, then a nibble for each.
const BLOCK_LEN: u64 = 32;
const BLOCK_BYTES: u64 = 18;
/// Standard deviation of a nibble minus 8, if all 16 are as likely.
const NIBBLE_DEVIATION: f32 = 4.61;
/// Ids of the tokens that begin and end a text.
const BOS: u32 = 0;
const EOS: u32 = 1;

/// Sizes of a model of the LLaMA family.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Shape {
    pub(super) num_layers: u32,
    pub(super) hidden_size: u32,
    pub(super) intermediate_size: u32,
    pub(super) num_heads: u32,
    pub(super) num_kv_heads: u32,
    pub(super) vocab_size: u32,
    pub(super) context: u32,
}

/// LLaMA 2 with 7 billion weights. Source: Touvron et al. 2023 and the published `config.json`.
pub(super) const LLAMA_2_7B: Shape = Shape {
    num_layers: 32,
    hidden_size: 4096,
    intermediate_size: 11_008,
    num_heads: 32,
    num_kv_heads: 32,
    vocab_size: 32_000,
    context: 4096,
};

struct Tensor {
    name: String,
    rows: u64,
    cols: u64,
}

impl Tensor {
    /// Vectors are norms and stay f32; matrices are blocks.
    fn is_vector(&self) -> bool {
        self.rows == 1
    }

    fn num_bytes(&self) -> u64 {
        match self.is_vector() {
            true => 4 * self.cols,
            false => self.rows * self.cols / BLOCK_LEN * BLOCK_BYTES,
        }
    }
}

impl Shape {
    fn tensors(&self) -> Vec<Tensor> {
        let [hidden, intermediate, vocab] =
            [self.hidden_size, self.intermediate_size, self.vocab_size].map(u64::from);
        let kv_len = hidden / u64::from(self.num_heads) * u64::from(self.num_kv_heads);
        let tensor = |name: String, rows, cols| Tensor { name, rows, cols };
        let mut tensors = vec![tensor("token_embd.weight".to_owned(), vocab, hidden)];
        for layer in 0..self.num_layers {
            let of_layer = [
                ("attn_norm", 1, hidden),
                ("attn_q", hidden, hidden),
                ("attn_k", kv_len, hidden),
                ("attn_v", kv_len, hidden),
                ("attn_output", hidden, hidden),
                ("ffn_norm", 1, hidden),
                ("ffn_gate", intermediate, hidden),
                ("ffn_up", intermediate, hidden),
                ("ffn_down", hidden, intermediate),
            ];
            tensors.extend(of_layer.map(|(name, rows, cols)| {
                tensor(format!("blk.{layer}.{name}.weight"), rows, cols)
            }));
        }
        tensors.push(tensor("output_norm.weight".to_owned(), 1, hidden));
        tensors.push(tensor("output.weight".to_owned(), vocab, hidden));
        tensors
    }

    /// Bytes of the tensors' data, which are nearly all of the file.
    pub(super) fn data_bytes(&self) -> u64 {
        let bytes = self.tensors().into_iter().map(|tensor| tensor.num_bytes());
        bytes.map(|bytes| bytes.next_multiple_of(ALIGNMENT)).sum()
    }

    /// Writes the file; the same shape and seed give the same bytes.
    ///
    /// # Errors
    /// Those of `out`.
    pub(super) fn write(&self, seed: u64, out: &mut impl Write) -> io::Result<()> {
        let tensors = self.tensors();
        let mut head = Header::default();
        head.bytes.extend(b"GGUF");
        head.u32(3);
        head.u64(tensors.len() as u64);
        let metadata = self.metadata();
        head.u64(metadata.num_keys);
        head.bytes.extend(metadata.header.bytes);
        let mut offset = 0;
        for tensor in &tensors {
            head.string(&tensor.name);
            let dims: &[u64] = match tensor.is_vector() {
                true => &[tensor.cols],
                false => &[tensor.cols, tensor.rows],
            };
            head.u32(dims.len() as u32);
            dims.iter().for_each(|dim| head.u64(*dim));
            // F32 and Q4_0 as ggml numbers them.
            head.u32(if tensor.is_vector() { 0 } else { 2 });
            head.u64(offset);
            offset += tensor.num_bytes().next_multiple_of(ALIGNMENT);
        }
        out.write_all(&head.bytes)?;
        pad(head.bytes.len() as u64, out)?;
        // Seed 0 must not start the generator at its fixed point.
        let mut random = Random((seed ^ 0x9e37_79b9_7f4a_7c15).max(1));
        for tensor in &tensors {
            if tensor.is_vector() {
                (0..tensor.cols).try_for_each(|_| out.write_all(&1f32.to_le_bytes()))?;
            } else {
                let blocks = tensor.rows * tensor.cols / BLOCK_LEN;
                // Outputs are then about as large as inputs.
                let deviation = 1.0 / (tensor.cols as f32).sqrt();
                (0..blocks).try_for_each(|_| out.write_all(&random.block(deviation)))?;
            }
            pad(tensor.num_bytes(), out)?;
        }
        out.flush()
    }

    fn metadata(&self) -> Metadata {
        let mut metadata = Metadata::default();
        metadata.string("general.architecture", "llama");
        for (key, value) in [
            ("block_count", self.num_layers),
            ("context_length", self.context),
            ("embedding_length", self.hidden_size),
            ("feed_forward_length", self.intermediate_size),
            ("attention.head_count", self.num_heads),
            ("attention.head_count_kv", self.num_kv_heads),
        ] {
            metadata.u32(&format!("llama.{key}"), value);
        }
        metadata.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
        metadata.f32("llama.rope.freq_base", 10_000.0);
        metadata.string("tokenizer.ggml.model", "gpt2");
        metadata.string("tokenizer.ggml.pre", "gpt-2");
        metadata.strings("tokenizer.ggml.tokens", &self.tokens());
        metadata.strings("tokenizer.ggml.merges", &[]);
        metadata.u32("tokenizer.ggml.bos_token_id", BOS);
        metadata.u32("tokenizer.ggml.eos_token_id", EOS);
        metadata
    }

    /// Begin and end, each byte by its letter in GPT-2's alphabet, and words that no text has.
    fn tokens(&self) -> Vec<String> {
        let named = ["<s>", "</s>"].map(str::to_owned);
        let mut next_letter = 256u32;
        let letters = (0..=255u8).map(|byte| {
            let code = match byte {
                b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
                _ => {
                    next_letter += 1;
                    next_letter - 1
                }
            };
            char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
        });
        let letters: Vec<String> = letters.map(String::from).collect();
        let words = (0..).map(|id| format!("<word{id}>"));
        let all = named.into_iter().chain(letters).chain(words);
        all.take(self.vocab_size as usize).collect()
    }
}

fn pad(num_bytes: u64, out: &mut impl Write) -> io::Result<()> {
    let zeros = num_bytes.next_multiple_of(ALIGNMENT) - num_bytes;
    out.write_all(&[0; ALIGNMENT as usize][..zeros as usize])
}

/// Numbers as the file has them: little endian, strings with their length before them.
#[derive(Default)]
struct Header {
    bytes: Vec<u8>,
}

impl Header {
    fn u32(&mut self, value: u32) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes.extend(value.to_le_bytes());
    }

    fn string(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.bytes.extend(text.as_bytes());
    }
}

/// Keys with their values, each value after the number of its type.
#[derive(Default)]
struct Metadata {
    header: Header,
    num_keys: u64,
}

impl Metadata {
    fn key(&mut self, key: &str, kind: u32) -> &mut Header {
        self.num_keys += 1;
        self.header.string(key);
        self.header.u32(kind);
        &mut self.header
    }

    fn u32(&mut self, key: &str, value: u32) {
        self.key(key, 4).u32(value);
    }

    fn f32(&mut self, key: &str, value: f32) {
        self.key(key, 6).u32(value.to_bits());
    }

    fn string(&mut self, key: &str, value: &str) {
        self.key(key, 8).string(value);
    }

    fn strings(&mut self, key: &str, values: &[String]) {
        let header = self.key(key, 9);
        header.u32(8);
        header.u64(values.len() as u64);
        values.iter().for_each(|value| header.string(value));
    }
}

/// Xorshift (Marsaglia 2003); never zero.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A block of weights whose standard deviation is half to three halves of `deviation`.
    fn block(&mut self, deviation: f32) -> [u8; BLOCK_BYTES as usize] {
        let share = 0.5 + (self.next() >> 40) as f32 / (1 << 24) as f32;
        let scale = f16::from_f32(share * deviation / NIBBLE_DEVIATION);
        let mut block = [0; BLOCK_BYTES as usize];
        block[..2].copy_from_slice(&scale.to_le_bytes());
        block[2..10].copy_from_slice(&self.next().to_le_bytes());
        block[10..].copy_from_slice(&self.next().to_le_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use pageloom_engine::text::Tokenizer;
    use pageloom_model_runner::Checkpoint;
    use pageloom_model_runner::weights::Gguf;

    use super::*;

    const TINY: Shape = Shape {
        num_layers: 2,
        hidden_size: 64,
        intermediate_size: 96,
        num_heads: 4,
        num_kv_heads: 2,
        vocab_size: 300,
        context: 128,
    };

    fn bytes(shape: Shape, seed: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        shape.write(seed, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_written_file_is_a_model_of_its_shape_with_a_tokenizer() {
        let gguf = Gguf::from_bytes(bytes(TINY, 0), Path::new("tiny.gguf")).unwrap();
        let checkpoint = Checkpoint::from_gguf(gguf).unwrap();
        let config = checkpoint.config();
        let found = [
            config.num_layers,
            config.hidden_size,
            config.intermediate_size,
            config.num_heads,
            config.num_kv_heads,
            config.vocab_size,
            config.max_position_embeddings,
        ];
        assert_eq!(found, [2, 64, 96, 4, 2, 300, 128]);
        assert!(!config.tie_word_embeddings);
        let tokenizer = Tokenizer::from_checkpoint(&checkpoint).unwrap();
        let ids = tokenizer.encode("a\u{e9} b", false).unwrap();
        assert_eq!(ids.len(), 5, "one for each byte: {ids:?}");
    }

    #[test]
    fn weights_are_random_and_as_large_as_their_width_asks_for() {
        let gguf = Gguf::from_bytes(bytes(TINY, 7), Path::new("tiny.gguf")).unwrap();
        let checkpoint = Checkpoint::from_gguf(gguf).unwrap();
        let tensor = checkpoint
            .tensor("model.layers.1.mlp.down_proj.weight")
            .unwrap();
        let mut row = vec![0.0; 96];
        let mut squares = 0.0;
        for r in 0..64 {
            tensor.read_row(r, &mut row);
            squares += row.iter().map(|w| w * w).sum::<f32>();
        }
        let deviation = (squares / (64.0 * 96.0)).sqrt();
        let wanted = 1.0 / 96f32.sqrt();
        assert!(
            (0.9..1.2).contains(&(deviation / wanted)),
            "{deviation} for {wanted}"
        );
        assert_ne!(bytes(TINY, 7), bytes(TINY, 8));
        assert_eq!(bytes(TINY, 7), bytes(TINY, 7));
    }

    #[test]
    fn the_size_is_known_before_a_byte_is_written() {
        let len = bytes(TINY, 0).len() as u64;
        let head = len - TINY.data_bytes();
        assert!(head > 0 && head < 16 << 10, "{head}");
        // 6.6e9 weights in matrices of 4.5 bits each.
        let large = LLAMA_2_7B.data_bytes() as f64;
        assert!((large / 1e9 - 3.79).abs() < 0.01, "{large}");
    }
}
