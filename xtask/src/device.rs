//! `cargo xtask device FOLDER`: what tests and measures the kernels on a machine that has a driver and nothing else.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

/// Runs all there is, in the order of what is worth most; ends with the first that fails.
const RUN: &str = "\
#!/bin/sh
# The GPU suite, the same below NVIDIA's checker where it is installed, and what the kernels reach on this machine.
# ROWS: rows of 4096 elements that are measured (32768 if not set).
set -eu
cd \"$(dirname \"$0\")\"
echo '== suite'
./suite suite:: --ignored --test-threads 1
if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck initcheck synccheck; do
        echo \"== compute-sanitizer --tool $tool\"
        compute-sanitizer --tool $tool --error-exitcode 1 ./suite suite:: --ignored --test-threads 1
    done
else
    echo '== compute-sanitizer is not installed: left out'
fi
echo '== measure'
./measure ${ROWS:-32768}
";

/// Builds the suite and the measurements and puts them into `folder`, with the script that runs them.
pub(crate) fn run(folder: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("{}: {error}", folder.display());
    fs::create_dir_all(folder).map_err(failed)?;
    let suite = built(&["test", "--no-run", "--test", "it"], "it")?;
    let measure = built(&["build", "--example", "measure"], "measure")?;
    for (from, name) in [(suite, "suite"), (measure, "measure")] {
        fs::copy(from, folder.join(name)).map_err(failed)?;
    }
    let script = folder.join("run.sh");
    fs::write(&script, RUN).map_err(failed)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    println!("{} runs it all", script.display());
    Ok(())
}

/// The program `name` that cargo makes of the crate `sparse-gpu`, optimised.
fn built(arguments: &[&str], name: &str) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(arguments)
        .args(["--release", "--package", "sparse-gpu"])
        .args(["--message-format", "json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut made = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_it = message["target"]["name"] == name;
        let program = message["executable"].as_str()?;
        is_it.then(|| program.to_owned())
    });
    made.next_back()
        .ok_or_else(|| format!("cargo told of no program {name}"))
}
