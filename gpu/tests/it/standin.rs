//! Runs ignored tests of this binary in processes that load the stand-in, and the probe in processes that find less.

use std::path::{Path, PathBuf};
use std::process::Command;

use sparse_gpu::{Choice, SvdStreamed};
use sparse_svd::Rank;

use crate::suite::svd::{Pair, decaying};

/// Every name under which cuBLAS is looked for, the version's own first.
const CUBLAS: [&str; 5] = [
    "libcublas.so.12",
    "libcublas.so",
    "libcublas.so.11",
    "libcublas.so.10",
    "libcublas.so.9",
];

/// A folder with the stand-in under the driver's name, and under that of cuBLAS: a link, so that both are one library.
fn driver() -> tempfile::TempDir {
    let folder = without_cublas();
    for name in &CUBLAS[..2] {
        let link = folder.path().join(name);
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("libcuda.so", link).unwrap();
    }
    folder
}

/// As [`driver`], where no cuBLAS loads: under its names is what is no library, so that a real one is not found either.
fn without_cublas() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(built(), folder.path().join("libcuda.so")).unwrap();
    for name in CUBLAS {
        std::fs::write(folder.path().join(name), "no library").unwrap();
    }
    folder
}

/// The stand-in that cargo built beside this binary.
fn built() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    let library = deps.with_file_name("libsparse_gpu_standin.so");
    assert!(library.is_file(), "{} is not there", library.display());
    library
}

/// What a process of this binary says that runs ignored tests with a folder first on the loader's path.
fn run(folder: &Path, tests: &str, variables: &[(&str, &str)]) -> (bool, String) {
    let mut path = folder.as_os_str().to_owned();
    if let Some(more) = std::env::var_os("LD_LIBRARY_PATH") {
        path.push(":");
        path.push(more);
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([tests, "--ignored", "--nocapture", "--test-threads", "1"])
        .env("LD_LIBRARY_PATH", path)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.into_owned())
}

fn passes(tests: &str, variables: &[(&str, &str)]) {
    let folder = driver();
    let (good, text) = run(folder.path(), tests, variables);
    assert!(good && !text.contains("running 0 tests"), "{text}");
}

#[test]
fn the_suite_passes() {
    for seed in ["1", "2"] {
        passes("suite::", &[("SPARSE_STANDIN_SEED", seed)]);
    }
}

#[test]
fn planted_faults_are_told() {
    passes("faults::", &[]);
}

#[test]
fn injected_errors_end_cleanly() {
    passes("injected::", &[]);
}

/// What the probe says, in a process of its own.
#[test]
#[ignore = "run by others"]
fn says_what_it_finds() {
    match sparse_gpu::probe() {
        Ok(found) => println!("found: {found}"),
        Err(absent) => println!("absent: {absent}"),
    }
    // What was asked for and is not there is an error; `auto` is not.
    let cuda = sparse_gpu::Choice::Cuda.open();
    match (sparse_gpu::probe(), cuda) {
        (Ok(_), Ok(Some(_))) => {}
        (Err(absent), Err(error)) => {
            let text = error.to_string();
            assert!(
                text.contains(&absent.to_string()) && text.contains("cpu"),
                "{text}"
            );
            assert!(sparse_gpu::Choice::Auto.open().unwrap().is_none());
        }
        other => panic!("{other:?}"),
    }
}

/// What decompositions come to with the cuBLAS that there is, in a process of its own.
#[test]
#[ignore = "run by others"]
fn says_where_it_decomposes() {
    let pair = Pair::new(
        [sparse_codec::DType::BF16; 2],
        40,
        &decaying(50, 40, 20, 0.9, 3),
        &[0.25; 2000],
    );
    for choice in [Choice::Cuda, Choice::Auto] {
        let found = SvdStreamed::open(choice)
            .and_then(|all| all.decompose(pair.tuned(), pair.base(), Rank::Fixed(4), &|| Ok(())));
        match found {
            Ok(Some(svd)) => println!("{choice}: rank {}", svd.rank()),
            Ok(None) => println!("{choice}: left to the CPU"),
            Err(error) => println!("{choice}: {error}"),
        }
    }
}

fn decomposes(folder: &Path, variables: &[(&str, &str)], wanted: &[&str]) {
    let (good, text) = run(folder, "says_where_it_decomposes", variables);
    for wanted in wanted {
        assert!(good && text.contains(wanted), "wanted '{wanted}': {text}");
    }
}

#[test]
fn decompositions_need_cublas() {
    let folder = driver();
    decomposes(folder.path(), &[], &["cuda: rank 4", "auto: rank 4"]);
    // A matrix that does not fit is the CPU's, whatever was chosen.
    let small = [("SPARSE_STANDIN_MEMORY", "200000")];
    let left = ["cuda: left to the CPU", "auto: left to the CPU"];
    decomposes(folder.path(), &small, &left);

    let none = without_cublas();
    let says = [
        "cuda: singular value decompositions on a GPU need cuBLAS: libcublas.so.12 was not found",
        "use the device auto or cpu",
        "auto: left to the CPU",
    ];
    decomposes(none.path(), &[], &says);
    probe_says(
        none.path(),
        &[],
        "no libcublas.so.12, so decompositions run on the CPU",
    );
    probe_says(folder.path(), &[], "driver for CUDA 12.5, cuBLAS)");

    let old = without_cublas();
    without_symbol(&built(), "cublasDgemm_v2", &old.path().join(CUBLAS[0]));
    let says = [
        "cuda: singular value decompositions on a GPU need cuBLAS: the cuBLAS that was found lacks cublasDgemm_v2",
    ];
    decomposes(old.path(), &[], &says);
}

/// Copies a library but for a function: its name is another one there.
fn without_symbol(library: &Path, symbol: &str, to: &Path) {
    let mut bytes = std::fs::read(library).unwrap();
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, window)| *window == name)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at + 1] = b'x';
    }
    std::fs::write(to, bytes).unwrap();
}

fn probe_says(folder: &Path, variables: &[(&str, &str)], wanted: &str) {
    let (good, text) = run(folder, "says_what_it_finds", variables);
    assert!(good && text.contains(wanted), "wanted '{wanted}': {text}");
}

#[test]
fn the_probe_says_what_is_missing() {
    let folder = driver();
    let here = folder.path();
    probe_says(
        here,
        &[],
        "found: Sparse stand-in (no GPU) (compute capability 8.0, 256 MiB, driver for CUDA 12.5",
    );
    probe_says(
        here,
        &[("SPARSE_STANDIN_DRIVER", "11080")],
        "absent: the NVIDIA driver supports CUDA 11.8",
    );
    probe_says(
        here,
        &[("SPARSE_STANDIN_DEVICES", "0")],
        "absent: the NVIDIA driver sees no device",
    );
    probe_says(
        here,
        &[("SPARSE_STANDIN_CAPABILITY", "75")],
        "has compute capability 7.5",
    );
    probe_says(
        here,
        &[("SPARSE_STANDIN_FAIL", "lost:1")],
        "absent: the NVIDIA driver does not work",
    );

    without_symbol(&built(), "cuMemHostAlloc", &here.join("libcuda.so"));
    probe_says(here, &[], "absent: the NVIDIA driver lacks cuMemHostAlloc");

    // Under every name that is tried, so that a real driver is not found either.
    for name in [
        "libcuda.so",
        "libcuda.so.1",
        "libcuda.so.12",
        "libnvcuda.so",
    ] {
        std::fs::write(here.join(name), "no library").unwrap();
    }
    probe_says(here, &[], "absent: libcuda.so was not found");
}
