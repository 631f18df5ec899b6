//! `cargo xtask kernels [--check]`: compiles the GPU kernels to the PTX that is committed, and checks it.
//! `cargo xtask device FOLDER`: what tests and measures them on another machine.

mod device;
mod kernels;
mod nvrtc;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
Usage: cargo xtask kernels [--check]
       cargo xtask device FOLDER

  kernels          compile gpu/kernels/*.cu and the planted faults of the tests to PTX, and write the manifest
  kernels --check  compile them again and compare; nothing is written
  device FOLDER    build the GPU suite and the measurements into a folder that can be carried to a machine with a driver;
                   run.sh there runs both, and the suite below compute-sanitizer where that is installed

kernels assembles the PTX for sm_80 and sm_90 with ptxas and fails on a spilled register. NVRTC and ptxas come from PyPI into
target/kernels; XTASK_CUDA_VENV names a virtual environment that has them already.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        ["kernels"] => kernels::run(false),
        ["kernels", "--check"] => kernels::run(true),
        ["device", folder] => device::run(Path::new(folder)),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
