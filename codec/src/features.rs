//! What this build and machine offer.

/// One fact about this build or machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is about.
    pub name: &'static str,
    /// What was found.
    pub value: String,
}

/// Version, format version, instruction sets and cores.
pub fn features() -> Vec<Feature> {
    let feature = |name, value: String| Feature { name, value };
    vec![
        feature("version", env!("CARGO_PKG_VERSION").to_owned()),
        feature("format_version", crate::FORMAT_VERSION.to_string()),
        feature("arch", std::env::consts::ARCH.to_owned()),
        feature("os", std::env::consts::OS.to_owned()),
        feature("simd", simd().to_owned()),
        feature(
            "threads",
            std::thread::available_parallelism()
                .map_or(1, std::num::NonZero::get)
                .to_string(),
        ),
    ]
}

#[cfg(target_arch = "x86_64")]
fn simd() -> &'static str {
    if std::arch::is_x86_feature_detected!("avx512f") {
        "avx512"
    } else if std::arch::is_x86_feature_detected!("avx2") {
        "avx2"
    } else {
        "sse2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> &'static str {
    if cfg!(target_arch = "aarch64") {
        "neon"
    } else {
        "portable"
    }
}
