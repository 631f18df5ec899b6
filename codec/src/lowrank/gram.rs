//! Small dense algebra on Gram matrices, in `f64`: what turns tall factors into orthonormal ones.

use matrixmultiply::{dgemm, sgemm};
use nalgebra::{Cholesky, DMatrix, SymmetricEigen};

/// A symmetric `n x n` matrix, row after row.
pub(crate) type Gram = Vec<f64>;

/// Long rows that are made `f64` at a time.
const PANEL: usize = 256;

/// The Gram matrix of the columns of `tall` (`rows x n`, row after row).
pub(crate) fn of_columns(tall: &[f32], n: usize) -> Gram {
    let mut gram = vec![0f64; n * n];
    for rows in tall.chunks((PANEL * n).max(1)) {
        let panel: Vec<f64> = rows.iter().map(|x| f64::from(*x)).collect();
        add_square(&panel, rows.len() / n.max(1), n, [1, n], &mut gram);
    }
    gram
}

/// The Gram matrix of the rows of `wide` (`n x cols`, row after row).
pub(crate) fn of_rows(wide: &[f32], n: usize) -> Gram {
    let cols = wide.len() / n.max(1);
    let mut gram = vec![0f64; n * n];
    for start in (0..cols).step_by(PANEL) {
        let k = PANEL.min(cols - start);
        let mut panel = Vec::with_capacity(n * k);
        for row in wide.chunks_exact(cols) {
            panel.extend(row[start..start + k].iter().map(|x| f64::from(*x)));
        }
        add_square(&panel, k, n, [k, 1], &mut gram);
    }
    gram
}

/// Adds the Gram matrix of `n` vectors of `k` numbers: number `j` of vector `i` is at `i * strides[0] + j * strides[1]`.
fn add_square(panel: &[f64], k: usize, n: usize, strides: [usize; 2], gram: &mut [f64]) {
    assert!(panel.len() >= n * k && gram.len() >= n * n, "matrices fit");
    let [vector, number] = strides.map(stride);
    // SAFETY: the assertion holds all that is read and written within the slices, for one stride is 1 and the other n or k.
    unsafe {
        dgemm(
            n,
            k,
            n,
            1.0,
            panel.as_ptr(),
            vector,
            number,
            panel.as_ptr(),
            number,
            vector,
            1.0,
            gram.as_mut_ptr(),
            stride(n),
            1,
        );
    }
}

/// The inverse of the lower Cholesky factor of `gram`, row after row; a little is added to the diagonal of a singular one.
pub(crate) fn inverse_root(gram: &Gram, n: usize) -> Vec<f64> {
    let matrix = DMatrix::from_row_slice(n, n, gram);
    let trace = matrix.trace().max(f64::MIN_POSITIVE);
    let mut ridge = 0.0;
    loop {
        let mut shifted = matrix.clone();
        for i in 0..n {
            shifted[(i, i)] += ridge * trace;
        }
        let inverse = Cholesky::new(shifted)
            .and_then(|c| c.l().solve_lower_triangular(&DMatrix::identity(n, n)))
            .filter(|inverse| inverse.iter().all(|x| x.is_finite()));
        if let Some(inverse) = inverse {
            // Column after column, so the transpose is row after row.
            return inverse.transpose().as_slice().to_vec();
        }
        if ridge > 1.0 {
            return DMatrix::<f64>::identity(n, n).as_slice().to_vec();
        }
        ridge = if ridge == 0.0 { 1e-12 } else { ridge * 100.0 };
    }
}

/// Eigenvalues of `gram`, the largest first, and their vectors, a row each. Signs are such that the largest component is
/// positive.
pub(crate) fn eigen(gram: &Gram, n: usize) -> (Vec<f64>, Vec<f64>) {
    let decomposed = SymmetricEigen::new(DMatrix::from_row_slice(n, n, gram));
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| decomposed.eigenvalues[*b].total_cmp(&decomposed.eigenvalues[*a]));
    let values = order
        .iter()
        .map(|i| decomposed.eigenvalues[*i].max(0.0))
        .collect();
    let vectors = order
        .iter()
        .flat_map(|i| {
            let column = decomposed.eigenvectors.column(*i);
            let largest = column
                .iter()
                .copied()
                .max_by(|a, b| a.abs().total_cmp(&b.abs()));
            let sign = if largest.unwrap_or(0.0) < 0.0 {
                -1.0
            } else {
                1.0
            };
            column.iter().map(|x| x * sign).collect::<Vec<_>>()
        })
        .collect();
    (values, vectors)
}

/// `small x wide`: an `m x n` matrix times one of `n` long rows.
pub(crate) fn times_rows(small: &[f64], wide: &[f32], n: usize) -> Vec<f32> {
    let (m, cols) = (small.len() / n.max(1), wide.len() / n.max(1));
    let small: Vec<f32> = small.iter().map(|x| narrow(*x)).collect();
    let mut out = vec![0f32; m * cols];
    multiply((&small, [n, 1]), (wide, [cols, 1]), &mut out, [m, n, cols]);
    out
}

/// `tall x small^T`: every row of `n` becomes one of `m`, for a small `m x n` matrix.
pub(crate) fn columns_times(tall: &[f32], small: &[f64], n: usize) -> Vec<f32> {
    let (m, rows) = (small.len() / n.max(1), tall.len() / n.max(1));
    let small: Vec<f32> = small.iter().map(|x| narrow(*x)).collect();
    let mut out = vec![0f32; rows * m];
    multiply((tall, [n, 1]), (&small, [1, n]), &mut out, [rows, n, m]);
    out
}

/// `c = a b` for matrices of `[m, k, n]`, given with the strides of row and column, one of which is 1; `c` row after row.
fn multiply(
    (a, a_strides): (&[f32], [usize; 2]),
    (b, b_strides): (&[f32], [usize; 2]),
    c: &mut [f32],
    [m, k, n]: [usize; 3],
) {
    assert!(
        a.len() >= m * k && b.len() >= k * n && c.len() >= m * n,
        "matrices fit"
    );
    let ([ar, ac], [br, bc]) = (a_strides.map(stride), b_strides.map(stride));
    // SAFETY: the assertion holds all that is read and written within the slices.
    unsafe {
        sgemm(
            m,
            k,
            n,
            1.0,
            a.as_ptr(),
            ar,
            ac,
            b.as_ptr(),
            br,
            bc,
            0.0,
            c.as_mut_ptr(),
            stride(n),
            1,
        );
    }
}

fn stride(n: usize) -> isize {
    isize::try_from(n).unwrap_or(0)
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32")]
pub(crate) fn narrow(x: f64) -> f32 {
    x as f32
}
