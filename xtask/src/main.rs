//! `cargo xtask kernels [--check]`: compiles the GPU kernels to the PTX that is committed, and checks it.

mod kernels;
mod nvrtc;

use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask kernels [--check]

  kernels          compile gpu/kernels/*.cu and the planted faults of the tests to PTX, and write the manifest
  kernels --check  compile them again and compare; nothing is written

Either assembles the PTX for sm_80 and sm_90 with ptxas and fails on a spilled register. NVRTC and ptxas come from PyPI into
target/kernels; XTASK_CUDA_VENV names a virtual environment that has them already.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["kernels"] => false,
        ["kernels", "--check"] => true,
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match kernels::run(check) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
