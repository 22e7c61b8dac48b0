//! What the targets for model files do with a file that opened.

use pageloom_model_runner::weights::Checkpoint;

/// Reads the first and the last row of every weight: their bytes are in the file.
pub(crate) fn read_all(checkpoint: &Checkpoint) {
    let config = checkpoint.config();
    assert_eq!(config.inv_freq().len(), config.head_dim / 2);
    let read = |name: &str| {
        let tensor = checkpoint
            .tensor(name)
            .expect("opening checked that it is there");
        let mut row = vec![0.0; tensor.cols()];
        tensor.read_row(0, &mut row);
        tensor.read_row(tensor.rows() - 1, &mut row);
    };
    for name in ["model.embed_tokens.weight", "model.norm.weight"] {
        read(name);
    }
    let modules = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    for layer in 0..config.num_layers {
        for module in modules {
            read(&format!("model.layers.{layer}.{module}.weight"));
        }
    }
}
