//! The models a benchmark runs on: given on the command line, or the example pair of the repository.

use std::path::{Path, PathBuf};

use sparse_codec::Effort;

/// What to measure.
pub struct Subject {
    /// The base model: a file or folder.
    pub base: PathBuf,
    /// The fine-tuned model.
    pub finetune: PathBuf,
    /// The effort of the encoder.
    pub effort: Effort,
    /// Timed runs of each step.
    pub runs: usize,
}

impl Subject {
    /// Reads `BASE FINETUNE [--effort E] [--runs N]`; what cargo adds (`--bench`) is passed over.
    pub fn from_args() -> Result<Self, String> {
        let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/models");
        let mut paths = Vec::new();
        let (mut effort, mut runs) = (Effort::Default, 5);
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--bench" => {}
                "--effort" => {
                    let value = args.next().ok_or("--effort needs fast, default or max")?;
                    effort = value
                        .parse()
                        .map_err(|e| format!("--effort {value}: {e}"))?;
                }
                "--runs" => {
                    let value = args.next().ok_or("--runs needs a number")?;
                    runs = value.parse().map_err(|e| format!("--runs {value}: {e}"))?;
                }
                _ => paths.push(PathBuf::from(arg)),
            }
        }
        let mut paths = paths.into_iter();
        match (paths.next(), paths.next()) {
            (Some(base), Some(finetune)) => Ok(Self {
                base,
                finetune,
                effort,
                runs,
            }),
            (None, _) => Ok(Self {
                base: examples.join("base"),
                finetune: examples.join("sft"),
                effort,
                runs,
            }),
            _ => Err("give BASE and FINETUNE, or neither".to_owned()),
        }
    }
}
