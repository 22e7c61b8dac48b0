//! What simulations share.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use pageloom_engine::text::Tokenizer;
use pageloom_model_runner::Checkpoint;

/// The tokenizer of a test model, read once.
///
/// # Panics
/// If the test model is not where the repository has it.
pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = folder.join("../model-runner/tests/models/smollm2");
        let checkpoint = Checkpoint::open(&folder).expect("the repository's test model");
        Arc::new(Tokenizer::from_checkpoint(&checkpoint).expect("its tokenizer"))
    });
    TOKENIZER.clone()
}
