//! The kernels: PTX in this binary.

use cudarc::driver::PushKernelArg;
use sparse_codec::DType;

/// A source file of kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Module {
    LowRank,
    Stats,
    Int8,
    Decode,
    Encode,
    Steps,
    Cast,
    Svd,
}

impl Module {
    pub(crate) const ALL: [Self; 8] = [
        Self::LowRank,
        Self::Stats,
        Self::Int8,
        Self::Decode,
        Self::Encode,
        Self::Steps,
        Self::Cast,
        Self::Svd,
    ];

    pub(crate) fn ptx(self) -> &'static str {
        match self {
            Self::LowRank => include_str!("../kernels/lowrank.ptx"),
            Self::Stats => include_str!("../kernels/stats.ptx"),
            Self::Int8 => include_str!("../kernels/int8.ptx"),
            Self::Decode => include_str!("../kernels/decode.ptx"),
            Self::Encode => include_str!("../kernels/encode.ptx"),
            Self::Steps => include_str!("../kernels/steps.ptx"),
            Self::Cast => include_str!("../kernels/cast.ptx"),
            Self::Svd => include_str!("../kernels/svd.ptx"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::LowRank => "lowrank",
            Self::Stats => "stats",
            Self::Int8 => "int8",
            Self::Decode => "decode",
            Self::Encode => "encode",
            Self::Steps => "steps",
            Self::Cast => "cast",
            Self::Svd => "svd",
        }
    }

    fn kernels(self) -> impl Iterator<Item = &'static str> {
        self.ptx()
            .lines()
            .filter_map(|line| line.split_once(".entry ")?.1.split('(').next())
    }
}

/// The names of all kernels, file by file.
pub fn kernels() -> Vec<&'static str> {
    Module::ALL
        .iter()
        .flat_map(|module| module.kernels())
        .collect()
}

/// The files of kernels, each with how many it holds.
pub(crate) fn summary() -> String {
    Module::ALL
        .map(|module| format!("{} ({})", module.name(), module.kernels().count()))
        .join(", ")
}

/// The name of a dtype that kernels take, as it stands in their names.
pub(crate) fn dtype_name(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::BF16 => Some("bf16"),
        DType::F16 => Some("f16"),
        DType::F32 => Some("f32"),
        _ => None,
    }
}

/// A pointer that a kernel takes and that is null.
pub(crate) const NULL: u64 = 0;

/// A launch with a buffer or, where there is none, a null pointer.
pub(crate) fn pointer_or_null<'a, T>(
    launch: &mut cudarc::driver::LaunchArgs<'a>,
    buffer: Option<&'a cudarc::driver::CudaSlice<T>>,
) {
    match buffer {
        Some(buffer) => launch.arg(buffer),
        None => launch.arg(&NULL),
    };
}
