//! Writes what our model computes for a text, for `scripts/ref_peft_load.py` to compare with PEFT:
//!
//! ```text
//! cargo run --release --workspace --example dump_logits -- MODEL_DIR ADAPTER_DIR TEXT LOGITS_FILE
//! scripts/ref_peft_load.py MODEL_DIR ADAPTER_DIR TEXT LOGITS_FILE
//! ```

use anyhow::{Context, bail};
use std::path::Path;
use trainer::engine::{dump_logits, files};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, text, target] = args.as_slice() else {
        bail!("usage: dump_logits MODEL_DIR ADAPTER_DIR TEXT LOGITS_FILE");
    };
    let tensors = dump_logits(Path::new(model), Some(Path::new(adapter)), text)?;
    files::write_tensors(Path::new(target), tensors).context("cannot write the logits")
}
