//! The codec's functions on an NVIDIA GPU, bit for bit as the CPU computes them, and singular value decompositions as near to the
//! exact ones as the CPU's.
//!
//! Nothing of CUDA is needed to build or to run: the driver is looked for at run time ([`probe`]), and what is not there is a
//! reason in words. Kernels are PTX in this binary, made of `gpu/kernels/*.cu` by `cargo xtask kernels`.
//!
//! ```
//! use sparse_gpu::{Choice, probe};
//! match probe() {
//!     Ok(found) => println!("{found}"),
//!     Err(absent) => println!("no GPU: {absent}"),
//! }
//! // `auto` takes the CPU where there is no GPU; `cuda` would be an error that says why.
//! assert!(Choice::Auto.open().is_ok());
//! ```

mod blas;
mod blocks;
mod cast;
mod choice;
mod compute;
mod decode;
mod device;
mod encode;
mod error;
mod int8;
mod int8_ring;
mod int8_streamed;
mod kernels;
mod lane;
mod lowrank;
mod measure;
mod needs;
mod probe;
mod resident;
mod restore;
mod ring;
mod slots;
mod stats;
mod steps;
mod streamed;
mod strips;
mod svd;
mod svd_streamed;

pub use blas::NoBlas;
pub use blocks::Blocks;
pub use choice::Choice;
pub use compute::Compute;
pub use device::Device;
pub use encode::{Encoded, Encoding, ForEncoding};
pub use error::GpuError;
pub use int8::{Quantised, Segments};
pub use int8_streamed::Int8Streamed;
pub use kernels::kernels;
pub use lowrank::DeviceMatrices;
pub use measure::{Measurement, measure, measure_svd};
pub use probe::{Absent, Found, features, probe};
pub use resident::{Resident, Update};
pub use restore::{Coded, Restored};
pub use ring::OnDevice;
pub use streamed::{Ran, Ring, predict_streamed};
pub use svd_streamed::SvdStreamed;
