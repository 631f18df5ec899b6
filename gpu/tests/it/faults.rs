//! Kernels that go wrong on purpose (`tests/faults`), and host code that does: each is told. For the stand-in only.

use std::ffi::{CStr, c_char};
use std::sync::Arc;

use cudarc::driver::{CudaStream, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use sparse_gpu::Device;

/// What the stand-in says of its last fault.
pub(crate) fn fault() -> String {
    // SAFETY: the library is loaded; the symbol is the stand-in's, and its text lasts until the next fault.
    unsafe {
        let fault = sys::culib()
            .get::<extern "C" fn() -> *const c_char>(b"standin_fault\0")
            .unwrap();
        CStr::from_ptr(fault()).to_string_lossy().into_owned()
    }
}

fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig {
        grid_dim: (blocks, 1, 1),
        block_dim: (threads, 1, 1),
        shared_mem_bytes: 0,
    }
}

/// Runs a kernel on a buffer of numbers, an output buffer and a count, as far as it takes them, and returns the error's name.
fn run(name: &str, threads: u32, takes_data: bool, takes_out: bool, takes_count: bool) -> String {
    let device = Device::open().unwrap();
    let module = device
        .context()
        .load_module(Ptx::from_src(include_str!("../faults/faults.ptx")))
        .unwrap();
    let function = module.load_function(name).unwrap();
    let stream = device.stream();
    let zeros = [0u32; 64];
    let mut data = stream.clone_htod(&zeros).unwrap();
    if name == "uninitialised_global" {
        // SAFETY: that nobody writes it is the point.
        data = unsafe { stream.alloc::<u32>(64) }.unwrap();
    }
    let mut out = stream.clone_htod(&zeros).unwrap();
    let mut launch = stream.launch_builder(&function);
    if takes_data {
        launch.arg(&mut data);
    }
    if takes_out {
        launch.arg(&mut out);
    }
    let count = 64u32;
    if takes_count {
        launch.arg(&count);
    }
    // SAFETY: the parameters are the kernel's; what it does with them is caught.
    let queued = unsafe { launch.launch(config(1, threads)) }.map(|_| ());
    match queued.and_then(|()| stream.synchronize()) {
        Ok(()) => "no error".to_owned(),
        Err(error) => format!("{:?}", error.0),
    }
}

#[test]
#[ignore = "needs the stand-in"]
fn every_planted_fault_is_told() {
    let illegal = "CUDA_ERROR_ILLEGAL_ADDRESS";
    let misaligned = "CUDA_ERROR_MISALIGNED_ADDRESS";
    let failed = "CUDA_ERROR_LAUNCH_FAILED";
    let divergent = "CUDA_ERROR_ILLEGAL_INSTRUCTION";
    #[rustfmt::skip]
    let cases = [
        ("out_of_bounds", 128, true, false, true, illegal, "out of bounds: write of 4 bytes"),
        ("out_of_bounds_read", 32, true, true, true, illegal, "out of bounds: read of 4 bytes"),
        ("misaligned", 8, true, true, false, misaligned, "misaligned: 4 bytes"),
        ("misaligned_vector", 8, true, true, false, misaligned, "misaligned: 16 bytes"),
        ("uninitialised_shared", 64, false, true, false, failed, "uninitialised: read of 4 bytes, Shared"),
        ("uninitialised_global", 64, true, true, false, failed, "uninitialised: read of 4 bytes, Global"),
        ("missing_barrier", 64, false, true, false, failed, "uninitialised: read of 4 bytes, Shared"),
        ("divergent_barrier", 64, false, true, false, divergent, "divergent barrier: threads of the block"),
        ("divergent_ballot", 32, false, true, false, divergent, "divergent barrier: threads of its mask"),
        ("stray_shuffle", 32, false, true, false, divergent, "divergent barrier: a shuffle reads lane 20"),
        ("endless", 1, true, false, false, "CUDA_ERROR_LAUNCH_TIMEOUT", "no end"),
    ];
    for (name, threads, data, out, count, error, text) in cases {
        assert_eq!(run(name, threads, data, out, count), error, "{name}");
        let fault = fault();
        assert!(fault.starts_with(text), "{name}: {fault}");
        if name != "endless" {
            assert!(
                fault.contains(&format!("kernel {name}, block [0, 0, 0]")),
                "{fault}"
            );
        }
    }
}

/// Every way of launching wrongly is refused at once, and the device lives on.
#[test]
#[ignore = "needs the stand-in"]
fn impossible_launches_are_refused() {
    let device = Device::open().unwrap();
    let module = device
        .context()
        .load_module(Ptx::from_src(include_str!("../faults/faults.ptx")))
        .unwrap();
    assert!(module.load_function("absent").is_err());
    let function = module.load_function("missing_barrier").unwrap();
    let stream = device.stream();
    let mut out = stream.clone_htod(&[0u32; 64]).unwrap();
    for (blocks, threads) in [(0, 32), (1, 0), (1, 2048)] {
        // SAFETY: never run.
        let result = unsafe {
            stream
                .launch_builder(&function)
                .arg(&mut out)
                .launch(config(blocks, threads))
        };
        assert_eq!(
            result.unwrap_err().0,
            sys::cudaError_enum::CUDA_ERROR_INVALID_VALUE
        );
    }
    assert!(
        device
            .context()
            .load_module(Ptx::from_src("nonsense"))
            .is_err()
    );
    let unknown = include_str!("../faults/faults.ptx").replace("popc.b32", "popcorn.b32");
    assert!(
        device
            .context()
            .load_module(Ptx::from_src(unknown))
            .is_err()
    );
    assert_eq!(stream.clone_dtoh(&out).unwrap(), [0; 64]);
}

#[test]
#[ignore = "needs the stand-in"]
fn a_sound_kernel_runs_in_any_order() {
    let device = Device::open().unwrap();
    let module = device
        .context()
        .load_module(Ptx::from_src(include_str!("../faults/faults.ptx")))
        .unwrap();
    let function = module.load_function("sound").unwrap();
    let stream = device.stream();
    let numbers: Vec<u32> = (0..1000u32)
        .map(|i| (i * i).wrapping_mul(2_654_435_761) >> 7)
        .collect();
    let count = 1000u32;
    let data = stream.clone_htod(&numbers).unwrap();
    let mut sums = stream.alloc_zeros::<u32>(4).unwrap();
    let mut odd = stream.alloc_zeros::<u32>(1).unwrap();
    let mut ballots = stream.alloc_zeros::<u32>(1).unwrap();
    // SAFETY: the parameters are the kernel's.
    unsafe {
        stream
            .launch_builder(&function)
            .arg(&data)
            .arg(&count)
            .arg(&mut sums)
            .arg(&mut odd)
            .arg(&mut ballots)
            .launch(config(4, 256))
    }
    .unwrap();
    let wanted: Vec<u32> = numbers
        .chunks(256)
        .map(|part| part.iter().fold(0u32, |a, b| a.wrapping_add(*b)))
        .collect();
    assert_eq!(stream.clone_dtoh(&sums).unwrap(), wanted);
    let odds = numbers.iter().filter(|n| *n % 2 == 1).count() as u32;
    assert_eq!(stream.clone_dtoh(&odd).unwrap(), [odds]);
    let ballot = numbers.chunks(32).fold(0u32, |all, warp| {
        all ^ warp
            .iter()
            .enumerate()
            .fold(0, |b, (lane, n)| b | (n & 1) << lane)
    });
    assert_eq!(stream.clone_dtoh(&ballots).unwrap(), [ballot]);
}

/// Two streams that share a buffer without an event between them.
fn unordered(seed: u64, wait: bool) -> Result<Vec<u32>, cudarc::driver::DriverError> {
    let device = Device::open().unwrap();
    // SAFETY: the symbol is the stand-in's.
    unsafe {
        let set = sys::culib()
            .get::<extern "C" fn(u64)>(b"standin_seed\0")
            .unwrap();
        set(seed);
        device.context().disable_event_tracking();
    }
    let (a, b): (Arc<CudaStream>, Arc<CudaStream>) = (
        device.context().new_stream()?,
        device.context().new_stream()?,
    );
    // SAFETY: written by a copy, on another stream.
    let mut buffer = unsafe { a.alloc::<u32>(16) }?;
    a.memcpy_htod(&[7u32; 16], &mut buffer)?;
    if wait {
        b.join(&a)?;
    }
    let mut host = vec![0u32; 16];
    b.memcpy_dtoh(&buffer, &mut host)?;
    a.join(&b)?;
    Ok(host)
}

#[test]
#[ignore = "needs the stand-in"]
fn streams_that_do_not_wait_are_found_out() {
    let mut found = 0;
    for seed in 1..40 {
        found += u32::from(unordered(seed, false).is_err());
        assert_eq!(unordered(seed, true).unwrap(), [7; 16]);
    }
    assert!(found > 0);
}
