//! The kernels: sources, the PTX made of them, the manifest that ties the two together.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use crate::nvrtc::Nvrtc;

/// What PTX every driver since 525 and every GPU since Ampere takes; a fused multiply-add only where one is written.
const FLAGS: &[&str] = &[
    "--gpu-architecture=compute_80",
    "--fmad=false",
    "--std=c++17",
];
const COMPILER: &str = "nvidia-cuda-nvrtc-cu12==12.0.140";
/// Assembles for the GPUs that the PTX is checked for.
const ASSEMBLER: &[&str] = &[
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-nvvm==13.0.88",
];
const ARCHITECTURES: &[&str] = &["sm_80", "sm_90"];
/// Where kernels are. Those of the tests go wrong on purpose.
const FOLDERS: &[&str] = &["gpu/kernels", "gpu/tests/faults"];

pub(crate) fn run(check: bool) -> Result<(), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .ok_or("xtask lies nowhere")?;
    let packages = packages(root)?;
    let compiler = Nvrtc::open(&packages.join("cuda_nvrtc/lib"))?;
    let ptxas = packages.join("cu13/bin/ptxas");
    for folder in FOLDERS {
        let folder = root.join(folder);
        let mut manifest = format!("compiler {COMPILER}\nflags {}\n", FLAGS.join(" "));
        let headers = sources(&folder, "cuh")?;
        for (name, source) in sources(&folder, "cu")? {
            let ptx = compiler.compile(&name, &source, &headers, FLAGS)?;
            let path = folder.join(&name).with_extension("ptx");
            if check {
                if std::fs::read_to_string(&path).ok().as_deref() != Some(&ptx) {
                    return Err(stale(&path));
                }
            } else {
                write(&path, &ptx)?;
            }
            assemble(&ptxas, &path)?;
            let all: String = headers
                .iter()
                .map(|(_, text)| text.as_str())
                .chain([source.as_str()])
                .collect();
            let _infallible = writeln!(manifest, "{name} source {} ptx {}", hash(&all), hash(&ptx));
        }
        let path = folder.join("manifest.txt");
        if !check {
            write(&path, &manifest)?;
        } else if std::fs::read_to_string(&path).ok().as_deref() != Some(&manifest) {
            return Err(stale(&path));
        }
    }
    Ok(())
}

fn stale(path: &Path) -> String {
    format!(
        "{} is not what its source makes: run `cargo xtask kernels` and commit the result",
        path.display()
    )
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    std::fs::write(path, text).map_err(|e| format!("{}: {e}", path.display()))
}

fn hash(text: &str) -> String {
    Sha256::digest(text)
        .iter()
        .fold(String::new(), |mut out, byte| {
            let _infallible = write!(out, "{byte:02x}");
            out
        })
}

/// The files with an extension, by name.
fn sources(folder: &Path, extension: &str) -> Result<Vec<(String, String)>, String> {
    let says = |e: std::io::Error| format!("{}: {e}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(says)? {
        let path = entry.map_err(says)?.path();
        if path.extension().is_some_and(|e| e == extension)
            && let Some(name) = path.file_name().and_then(|n| n.to_str())
        {
            let text = std::fs::read_to_string(&path).map_err(says)?;
            found.push((name.to_owned(), text));
        }
    }
    found.sort();
    Ok(found)
}

/// Assembles PTX for each architecture, and fails on a spill or a stack frame.
fn assemble(ptxas: &Path, ptx: &Path) -> Result<(), String> {
    for architecture in ARCHITECTURES {
        let output = Command::new(ptxas)
            .args(["-v", "-warn-spills", "-Werror", "-o", "/dev/null"])
            .arg(format!("-arch={architecture}"))
            .arg(ptx)
            .output()
            .map_err(|e| format!("{}: {e}", ptxas.display()))?;
        let log = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            return Err(format!("{}: ptxas says:\n{log}", ptx.display()));
        }
        let registers: Vec<u32> = log
            .lines()
            .filter_map(|line| line.split_once("Used ")?.1.split(' ').next()?.parse().ok())
            .collect();
        if log.lines().any(|line| {
            line.contains("bytes stack frame") && !line.trim_start().starts_with("0 bytes stack")
        }) {
            return Err(format!(
                "{}: a kernel has a stack frame:\n{log}",
                ptx.display()
            ));
        }
        eprintln!(
            "{} {architecture}: {} kernels, at most {} registers, no spills",
            ptx.file_name().unwrap_or_default().display(),
            registers.len(),
            registers.iter().max().unwrap_or(&0)
        );
    }
    Ok(())
}

/// The folder of NVIDIA's packages; they are installed the first time.
fn packages(root: &Path) -> Result<PathBuf, String> {
    let given = std::env::var_os("XTASK_CUDA_VENV").map(PathBuf::from);
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let venv = given.clone().unwrap_or_else(|| target.join("kernels"));
    let find = || {
        let lib = std::fs::read_dir(venv.join("lib")).ok()?;
        lib.filter_map(Result::ok)
            .map(|entry| entry.path().join("site-packages/nvidia"))
            .find(|nvidia| {
                nvidia.join("cuda_nvrtc/lib").is_dir() && nvidia.join("cu13/bin/ptxas").is_file()
            })
    };
    if let Some(found) = find() {
        return Ok(found);
    }
    if given.is_some() {
        return Err(format!(
            "{} has not both {COMPILER} and {}",
            venv.display(),
            ASSEMBLER.join(" ")
        ));
    }
    eprintln!("installing the compilers into {}", venv.display());
    command(Command::new("python3").arg("-m").arg("venv").arg(&venv))?;
    command(
        Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", COMPILER])
            .args(ASSEMBLER),
    )?;
    find().ok_or_else(|| format!("{}: the packages are not where they were", venv.display()))
}

fn command(command: &mut Command) -> Result<(), String> {
    let status = command
        .status()
        .map_err(|e| format!("{}: {e}", command.get_program().display()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed", command.get_program().display()))
    }
}
