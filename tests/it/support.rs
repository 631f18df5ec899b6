//! What the tests share: the repository's folders, the binary, Python, folders compared byte for byte.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// One of the example models.
pub(crate) fn example(name: &str) -> String {
    root()
        .join("examples/models")
        .join(name)
        .to_string_lossy()
        .into_owned()
}

/// A path as text.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// The binary, with a cache of its own below `work`, run at the root of the repository.
pub(crate) fn sparse(work: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparse"));
    command
        .current_dir(root())
        .env("SPARSE_CACHE", work.join("cache"))
        .env("HF_HOME", work.join("hf"))
        .env("HF_HUB_OFFLINE", "1")
        .env_remove("RUST_LOG");
    command
}

/// Runs the binary to its end.
pub(crate) fn run(work: &Path, arguments: &[&str]) -> Output {
    sparse(work).args(arguments).output().unwrap()
}

/// Runs the binary, which must succeed, and returns what it printed.
pub(crate) fn run_ok(work: &Path, arguments: &[&str]) -> String {
    let output = run(work, arguments);
    assert!(
        output.status.success(),
        "sparse {arguments:?} failed with {}:\n{}",
        output.status,
        stderr(&output)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the binary with `--json`, which must succeed, and returns the document it printed.
pub(crate) fn run_json(work: &Path, arguments: &[&str]) -> serde_json::Value {
    let mut all = arguments.to_vec();
    all.push("--json");
    serde_json::from_str(&run_ok(work, &all)).unwrap()
}

/// Runs the binary, which must fail with `code` and a clear error that holds every one of `needles`.
pub(crate) fn run_fails(work: &Path, arguments: &[&str], code: i32, needles: &[&str]) {
    let output = run(work, arguments);
    let message = stderr(&output);
    assert_eq!(
        output.status.code(),
        Some(code),
        "sparse {arguments:?}: {message}"
    );
    for needle in needles {
        assert!(
            message.contains(needle),
            "sparse {arguments:?} says nothing of {needle:?}:\n{message}"
        );
    }
    assert_clear(&message);
}

/// An error is for people: no panic, no backtrace, no internal error.
pub(crate) fn assert_clear(message: &str) {
    for word in [
        "panicked",
        "RUST_BACKTRACE",
        "internal error",
        "Internal error",
        "This was likely caused by a bug",
    ] {
        assert!(!message.contains(word), "{message}");
    }
    assert!(message.contains("error: "), "{message}");
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Every file below a folder (or the file itself), by relative path.
pub(crate) fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    fn walk(root: &Path, at: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
        if at.is_dir() {
            for entry in std::fs::read_dir(at).unwrap() {
                walk(root, &entry.unwrap().path(), files);
            }
        } else if at.exists() {
            let name = at.strip_prefix(root).unwrap();
            files.insert(text(name), std::fs::read(at).unwrap());
        }
    }
    let mut all = BTreeMap::new();
    walk(path, path, &mut all);
    all
}

/// Two folders hold the same files with the same bytes.
pub(crate) fn assert_same(a: &Path, b: &Path) {
    let (left, right) = (files(a), files(b));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(
        names(&left),
        names(&right),
        "{} and {}",
        a.display(),
        b.display()
    );
    for (name, bytes) in &left {
        assert!(
            right[name] == *bytes,
            "{name} differs in {} and {}",
            a.display(),
            b.display()
        );
    }
}

/// Names of everything directly in a folder, hidden files too.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Copies a folder.
pub(crate) fn copy(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}

/// The Python that has the oracles. None where there is none, which is an error where they are required (CI).
pub(crate) fn python() -> Option<String> {
    let python = std::env::var("SPARSE_TEST_PYTHON").ok();
    assert!(
        python.is_some() || std::env::var_os("SPARSE_REQUIRE_ORACLES").is_none(),
        "SPARSE_TEST_PYTHON is not set; tests/run.sh sets it"
    );
    if python.is_none() {
        eprintln!("skipped: SPARSE_TEST_PYTHON is not set; tests/run.sh sets it");
    }
    python
}

/// Sends a signal, such as `-INT`.
pub(crate) fn signal(process: &std::process::Child, signal: &str) {
    let sent = Command::new("kill")
        .args([signal, &process.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// Changes a byte in the middle of the largest file of a folder.
pub(crate) fn damage(folder: &Path) {
    let largest = files(folder).into_iter().max_by_key(|(_, b)| b.len());
    let (name, mut bytes) = largest.unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// The first of some programs that is on the PATH. None where none is, which is an error where they are required (`.ci/run`, once it
/// has installed them).
pub(crate) fn program<'n>(names: &[&'n str]) -> Option<&'n str> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there =
        |name: &&&str| std::env::split_paths(&path).any(|folder| folder.join(name).is_file());
    let found = names.iter().find(there).copied();
    if found.is_none() {
        let problem = format!(
            "{} is not installed; .ci/run installs it on Debian",
            names[0]
        );
        assert!(
            std::env::var_os("SPARSE_REQUIRE_PROGRAMS").is_none(),
            "{problem}"
        );
        eprintln!("skipped: {problem}");
    }
    found
}

/// Runs a Python program with arguments; it must succeed. Returns what it printed.
pub(crate) fn run_python(python: &str, program: &str, arguments: &[&str]) -> String {
    let output = Command::new(python)
        .arg("-c")
        .arg(program)
        .args(arguments)
        .env("HF_HUB_OFFLINE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Numbers that look like nothing else, reproducibly (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next().to_le_bytes()[0]).collect()
    }
}
