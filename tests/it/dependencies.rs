//! One Arrow, one object_store, permissive licences.

use std::collections::BTreeMap;
use std::process::Command;

use crate::support::root;

#[test]
fn types_that_cross_crates_have_one_version() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).unwrap();
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let field = |name: &str| {
            let line = package.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split('"').nth(1)).unwrap()
        };
        versions
            .entry(field("name"))
            .or_default()
            .push(field("version"));
    }
    let wanted = [
        ("arrow", "59."),
        ("arrow-array", "59."),
        ("arrow-schema", "59."),
        ("parquet", "59."),
        ("object_store", "0.13."),
        ("datafusion", "55."),
    ];
    for (name, prefix) in wanted {
        let found = &versions[name];
        assert!(
            found.len() == 1 && found[0].starts_with(prefix),
            "{name}: {found:?}, wanted one {prefix}x"
        );
    }
}

/// Every dependency may be used under one of these.
const PERMISSIVE: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    // Copyleft of single files, which are used unchanged: `colored`, through hf-hub.
    "MPL-2.0",
    "OpenSSL",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "bzip2-1.0.6",
];

#[test]
fn licences_are_permissive() {
    let host = Command::new("rustc").arg("-vV").output().unwrap();
    let host = String::from_utf8(host.stdout).unwrap();
    let host = host.lines().find_map(|line| line.strip_prefix("host: "));
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked", "--offline"])
        .args(["--filter-platform", host.unwrap()])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for package in metadata["packages"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        let licence = package["license"].as_str().unwrap_or("none");
        // An expression of SPDX: one alternative of each part joined by AND must be permissive.
        let allowed = licence.replace(['(', ')'], "").split(" AND ").all(|part| {
            part.split([' ', '/'])
                .filter(|word| *word != "OR" && !word.is_empty())
                .any(|word| PERMISSIVE.contains(&word))
        });
        assert!(allowed, "{name} is licensed under {licence}");
    }
}
