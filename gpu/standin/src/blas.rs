//! The entry points of cuBLAS that are used: products of matrices, queued in a stream like kernels. The same library stands in for
//! `libcublas.so.12` by a link to the one that stands in for the driver: the loader opens one file once, whatever its names.

use std::ffi::{c_int, c_uint};

use crate::driver::{
    Driver, Failures, INVALID_HANDLE, INVALID_VALUE, OUT_OF_MEMORY, SUCCESS, Status, put, within,
};
use crate::memory::{Fault, Memory};
use crate::streams::Work;

const NOT_INITIALIZED: Status = 1;
const ALLOC_FAILED: Status = 3;
const BLAS_INVALID_VALUE: Status = 7;
const EXECUTION_FAILED: Status = 13;

/// A handle's stream, and whether products keep to the precision of their numbers.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Handle {
    stream: u64,
    pedantic: bool,
}

/// A matrix in the device's memory: column after column, or row after row where it is transposed.
#[derive(Clone, Copy, Debug)]
struct Matrix {
    at: u64,
    /// Numbers from one column to the next.
    ld: usize,
    transposed: bool,
}

/// `c = alpha a b + beta c`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gemm {
    /// Of `c`, and of what is summed over.
    rows: usize,
    cols: usize,
    inner: usize,
    a: Matrix,
    b: Matrix,
    c: Matrix,
    alpha: f64,
    beta: f64,
    /// Whether numbers are `f64`.
    wide: bool,
}

impl Gemm {
    pub(crate) fn run(&self, memory: &mut Memory) -> Result<(), Fault> {
        let place = |fault: Fault| {
            let wide = if self.wide { "d" } else { "s" };
            fault.at(&format!(
                "cublas {wide}gemm of {} x {} x {}",
                self.rows, self.cols, self.inner
            ))
        };
        if self.wide {
            self.run_in::<f64>(memory)
        } else {
            self.run_in::<f32>(memory)
        }
        .map_err(place)
    }

    fn run_in<N: Number>(&self, memory: &mut Memory) -> Result<(), Fault> {
        // Both so that what is summed over lies together.
        let turned = |m: Matrix| Matrix {
            transposed: !m.transposed,
            ..m
        };
        let a: Vec<N> = read(memory, turned(self.a), self.inner, self.rows)?;
        let b: Vec<N> = read(memory, self.b, self.inner, self.cols)?;
        let (alpha, beta) = (N::of(self.alpha), N::of(self.beta));
        for j in 0..self.cols {
            let mut column = if self.beta == 0.0 {
                vec![N::of(0.0); self.rows]
            } else {
                let at = self.c.at + (j * self.c.ld * N::SIZE) as u64;
                N::take(memory.aligned(at, self.rows * N::SIZE, N::SIZE)?)
            };
            for (i, c) in column.iter_mut().enumerate() {
                let (a, b) = (&a[i * self.inner..], &b[j * self.inner..]);
                let terms = a.iter().zip(b).take(self.inner);
                let sum = terms.fold(N::of(0.0), |sum, (a, b)| N::add(sum, N::times(*a, *b)));
                let scaled = N::times(alpha, sum);
                *c = if self.beta == 0.0 {
                    scaled
                } else {
                    N::add(scaled, N::times(beta, *c))
                };
            }
            let at = self.c.at + (j * self.c.ld * N::SIZE) as u64;
            if !at.is_multiple_of(N::SIZE as u64) {
                return Err(Fault::Misaligned(format!("write at {at:#x}")));
            }
            memory.write_bytes(at, &N::give(&column))?;
        }
        Ok(())
    }
}

/// Reads a matrix of so many rows and columns; what comes back is column after column.
fn read<N: Number>(
    memory: &Memory,
    matrix: Matrix,
    rows: usize,
    cols: usize,
) -> Result<Vec<N>, Fault> {
    let (long, many) = if matrix.transposed {
        (cols, rows)
    } else {
        (rows, cols)
    };
    let mut stored = Vec::with_capacity(rows * cols);
    for number in 0..many {
        let at = matrix.at + (number * matrix.ld * N::SIZE) as u64;
        stored.extend(N::take(memory.aligned(at, long * N::SIZE, N::SIZE)?));
    }
    if !matrix.transposed {
        return Ok(stored);
    }
    let each = (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col));
    Ok(each.map(|at| stored[at]).collect())
}

trait Number: Copy {
    const SIZE: usize;

    fn of(x: f64) -> Self;
    fn add(a: Self, b: Self) -> Self;
    fn times(a: Self, b: Self) -> Self;
    fn take(bytes: &[u8]) -> Vec<Self>;
    fn give(numbers: &[Self]) -> Vec<u8>;
}

macro_rules! number {
    ($type:ty, $size:literal) => {
        impl Number for $type {
            const SIZE: usize = $size;

            fn of(x: f64) -> Self {
                x as Self
            }

            fn add(a: Self, b: Self) -> Self {
                a + b
            }

            fn times(a: Self, b: Self) -> Self {
                a * b
            }

            fn take(bytes: &[u8]) -> Vec<Self> {
                let words = bytes.as_chunks::<$size>().0.iter();
                words.map(|word| Self::from_le_bytes(*word)).collect()
            }

            fn give(numbers: &[Self]) -> Vec<u8> {
                numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
            }
        }
    };
}

number!(f32, 4);
number!(f64, 8);

/// Does a call's work; errors are those of cuBLAS. A call that is told to fail does.
fn call(work: impl FnOnce(&mut Driver) -> Status) -> Status {
    let mut failed = false;
    let status = within(|driver| {
        if Failures::falls(&mut driver.failures.blas) {
            failed = true;
            return SUCCESS;
        }
        work(driver)
    });
    match status {
        _ if failed => EXECUTION_FAILED,
        SUCCESS => SUCCESS,
        OUT_OF_MEMORY => ALLOC_FAILED,
        INVALID_VALUE => BLAS_INVALID_VALUE,
        INVALID_HANDLE => NOT_INITIALIZED,
        _ => EXECUTION_FAILED,
    }
}

/// As [`call`], with a handle that there is.
fn with(handle: u64, work: impl FnOnce(&mut Driver, Handle) -> Status) -> Status {
    call(|driver| match driver.blas.get(&handle) {
        Some(found) => {
            let found = *found;
            work(driver, found)
        }
        None => INVALID_HANDLE,
    })
}

/// Takes memory for a workspace, as cuBLAS does.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cublasCreate_v2(to: *mut u64) -> Status {
    call(|driver| {
        if Failures::falls(&mut driver.failures.alloc) {
            return OUT_OF_MEMORY;
        }
        let handle = driver.handle();
        driver.blas.insert(handle, Handle::default());
        // SAFETY: the caller's pointer, checked for null.
        unsafe { put(to, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cublasDestroy_v2(handle: u64) -> Status {
    with(handle, |driver, _| {
        driver.blas.remove(&handle);
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cublasSetStream_v2(handle: u64, stream: u64) -> Status {
    with(handle, |driver, found| {
        if !driver.streams.queues.contains_key(&stream) {
            return INVALID_VALUE;
        }
        driver.blas.insert(handle, Handle { stream, ..found });
        SUCCESS
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cublasSetMathMode(handle: u64, mode: c_uint) -> Status {
    with(handle, |driver, found| {
        let pedantic = mode == 2;
        driver.blas.insert(handle, Handle { pedantic, ..found });
        SUCCESS
    })
}

/// What both products have in common; `wide` for `f64`. Products that might round to fewer bits than their numbers have are
/// refused, since nobody here wants them.
#[expect(clippy::too_many_arguments, reason = "the library's own arguments")]
fn gemm(
    handle: u64,
    ops: [c_uint; 2],
    sizes: [c_int; 3],
    alpha: f64,
    beta: f64,
    a: (u64, c_int),
    b: (u64, c_int),
    c: (u64, c_int),
    wide: bool,
) -> Status {
    with(handle, |driver, found| {
        let size = |n: c_int| usize::try_from(n).ok();
        let [Some(rows), Some(cols), Some(inner)] = sizes.map(size) else {
            return INVALID_VALUE;
        };
        let matrix = |(at, ld): (u64, c_int), op: c_uint, rows: usize, cols: usize| {
            let long = if op == 0 { rows } else { cols };
            let ld = size(ld).filter(|ld| *ld >= long.max(1))?;
            (op < 2).then_some(Matrix {
                at,
                ld,
                transposed: op == 1,
            })
        };
        let (Some(a), Some(b), Some(c)) = (
            matrix(a, ops[0], rows, inner),
            matrix(b, ops[1], inner, cols),
            matrix(c, 0, rows, cols),
        ) else {
            return INVALID_VALUE;
        };
        if !wide && !found.pedantic {
            return INVALID_VALUE;
        }
        if rows == 0 || cols == 0 {
            return SUCCESS;
        }
        let wrong = Failures::falls(&mut driver.failures.wrong);
        let alpha = if wrong { f64::NAN } else { alpha };
        let gemm = Gemm {
            rows,
            cols,
            inner,
            a,
            b,
            c,
            alpha,
            beta,
            wide,
        };
        driver.queue(found.stream, Work::Gemm(Box::new(gemm)))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cublasSgemm_v2(
    handle: u64,
    op_a: c_uint,
    op_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f32,
    a: u64,
    lda: c_int,
    b: u64,
    ldb: c_int,
    beta: *const f32,
    c: u64,
    ldc: c_int,
) -> Status {
    if alpha.is_null() || beta.is_null() {
        return BLAS_INVALID_VALUE;
    }
    // SAFETY: the caller's pointers, to numbers on the host.
    let (alpha, beta) = unsafe { (f64::from(*alpha), f64::from(*beta)) };
    gemm(
        handle,
        [op_a, op_b],
        [m, n, k],
        alpha,
        beta,
        (a, lda),
        (b, ldb),
        (c, ldc),
        false,
    )
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cublasDgemm_v2(
    handle: u64,
    op_a: c_uint,
    op_b: c_uint,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: *const f64,
    a: u64,
    lda: c_int,
    b: u64,
    ldb: c_int,
    beta: *const f64,
    c: u64,
    ldc: c_int,
) -> Status {
    if alpha.is_null() || beta.is_null() {
        return BLAS_INVALID_VALUE;
    }
    // SAFETY: as above.
    let (alpha, beta) = unsafe { (*alpha, *beta) };
    gemm(
        handle,
        [op_a, op_b],
        [m, n, k],
        alpha,
        beta,
        (a, lda),
        (b, ldb),
        (c, ldc),
        true,
    )
}
