//! The entry functions of the fuzz targets. Each takes any bytes and panics only where the code under test is at fault.
//! The crates' own tests include these files and drive them over made-up and damaged inputs.

pub mod codec;
pub mod manifest;
pub mod safetensors;
