//! `--shared-prefix`: beginnings of prompts that are kept in the KV cache.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use pageloom_engine::text::{ChatTemplate, RenderOptions, Tokenizer};
use pageloom_model_runner::TokenId;

use crate::api::read_conversation;

/// Largest file that is read.
const MAX_BYTES: u64 = 16 << 20;

/// Reads the files. The text of one is what prompts of `/v1/completions` begin with, as it is to the
/// last byte; a `.json` file has `{"messages": [...]}`, what conversations of `/v1/chat/completions`
/// begin with.
///
/// # Errors
/// What is wrong with which file.
pub fn read_all(
    paths: &[PathBuf],
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> anyhow::Result<Vec<Vec<TokenId>>> {
    let read = |path: &PathBuf| {
        read(path, tokenizer, template)
            .with_context(|| format!("--shared-prefix {}", path.display()))
    };
    paths.iter().map(read).collect()
}

fn read(
    path: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
) -> anyhow::Result<Vec<TokenId>> {
    let mut text = String::new();
    let file = File::open(path).context("cannot open it")?;
    let num_bytes = file.take(MAX_BYTES + 1).read_to_string(&mut text);
    if num_bytes.context("cannot read it as UTF-8 text")? as u64 > MAX_BYTES {
        bail!("it has more than {MAX_BYTES} bytes");
    }
    let is_chat = path
        .extension()
        .is_some_and(|extension| extension == "json");
    let tokens = if is_chat {
        let messages = read_conversation(text.as_bytes())
            .map_err(|error| anyhow::anyhow!("{}", error.message))?;
        let template = template.context("the model has no chat template; give --chat-template")?;
        // As far as the conversations that begin with it: nobody has the turn yet.
        let text = template.render(&messages, &RenderOptions::default())?;
        tokenizer.encode(&text, false)?
    } else {
        tokenizer.encode(&text, true)?
    };
    if tokens.is_empty() {
        bail!("it is empty");
    }
    Ok(tokens)
}
