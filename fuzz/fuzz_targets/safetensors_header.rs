#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sparse_fuzz::safetensors::header(data));
