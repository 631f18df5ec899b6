//! Products of matrices of `f32`, and small dense algebra in `f64`.

use matrixmultiply::{dgemm, sgemm};
use nalgebra::{Cholesky, DMatrix, SymmetricEigen};

/// Long columns that are made `f64` at a time.
const PANEL: usize = 256;
/// What a column of `f32` must at least add to those before it, as a share of the longest.
pub(crate) const LEAST: f64 = 1e-4;

/// A matrix as it lies in memory.
#[derive(Clone, Copy)]
pub(crate) struct Strided<'a> {
    data: &'a [f32],
    /// From a row to the next, and from a column to the next; one of the two is 1.
    strides: [usize; 2],
}

impl<'a> Strided<'a> {
    /// Rows that lie whole, `stride` apart.
    pub(crate) fn rows(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            strides: [stride, 1],
        }
    }

    /// Columns that lie whole, `stride` apart: the transpose of [`Self::rows`].
    pub(crate) fn columns(data: &'a [f32], stride: usize) -> Self {
        Self {
            data,
            strides: [1, stride],
        }
    }

    fn holds(&self, rows: usize, cols: usize) -> bool {
        let [r, c] = self.strides;
        rows == 0 || cols == 0 || (rows - 1) * r + (cols - 1) * c < self.data.len()
    }
}

/// `c = beta c + alpha a b`, rows of `c` so many numbers apart. `[m, k, n]` are the sizes: `a` is `m x k`, `b` is `k x n`.
pub(crate) fn multiply(
    (alpha, a): (f32, Strided<'_>),
    b: Strided<'_>,
    (beta, c, c_stride): (f32, &mut [f32], usize),
    [m, k, n]: [usize; 3],
) {
    let out = Strided::rows(c, c_stride);
    assert!(
        a.holds(m, k) && b.holds(k, n) && out.holds(m, n) && (n <= c_stride || m <= 1),
        "matrices fit"
    );
    let ([ar, ac], [br, bc]) = (a.strides.map(stride), b.strides.map(stride));
    // SAFETY: the assertion holds all that is read and written within the slices.
    unsafe {
        sgemm(
            m,
            k,
            n,
            alpha,
            a.data.as_ptr(),
            ar,
            ac,
            b.data.as_ptr(),
            br,
            bc,
            beta,
            c.as_mut_ptr(),
            stride(c_stride),
            1,
        );
    }
}

fn stride(n: usize) -> isize {
    isize::try_from(n).unwrap_or(0)
}

/// A tall matrix: `width` columns, row after row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Tall {
    pub(crate) width: usize,
    pub(crate) data: Vec<f32>,
}

impl Tall {
    pub(crate) fn rows(&self) -> usize {
        self.data.len() / self.width.max(1)
    }

    /// `self^T other`, summed in `f64`.
    pub(crate) fn gram(&self, other: &Self) -> DMatrix<f64> {
        let (m, n) = (self.width, other.width);
        let mut sums = vec![0f64; m * n];
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let mine = self.data.chunks((PANEL * m).max(1));
        for (a, b) in mine.zip(other.data.chunks((PANEL * n).max(1))) {
            let k = a.len() / m;
            let (a, b) = (wide(a), wide(b));
            assert!(a.len() == k * m && b.len() == k * n, "matrices fit");
            // SAFETY: the assertion holds all that is read within the slices; what is written has been allocated above.
            unsafe {
                dgemm(
                    m,
                    k,
                    n,
                    1.0,
                    a.as_ptr(),
                    1,
                    stride(m),
                    b.as_ptr(),
                    stride(n),
                    1,
                    1.0,
                    sums.as_mut_ptr(),
                    1,
                    stride(m),
                );
            }
        }
        DMatrix::from_vec(m, n, sums)
    }

    /// `self^T other`, in `f32`.
    fn overlap(&self, other: &Self) -> Vec<f32> {
        let mut out = vec![0f32; self.width * other.width];
        multiply(
            (1.0, Strided::columns(&self.data, self.width)),
            Strided::rows(&other.data, other.width),
            (0.0, &mut out, other.width),
            [self.width, self.rows(), other.width],
        );
        out
    }

    /// Takes away what of `self` lies in the space of orthonormal columns.
    pub(crate) fn project_out(&mut self, space: &Self) {
        let overlap = space.overlap(self);
        multiply(
            (-1.0, Strided::rows(&space.data, space.width)),
            Strided::rows(&overlap, self.width),
            (1.0, &mut self.data, self.width),
            [space.rows(), space.width, self.width],
        );
    }

    /// `out += self small`.
    pub(crate) fn add_times(&self, small: &DMatrix<f64>, out: &mut [f32]) {
        // Column after column, so that its transpose is row after row.
        let columns: Vec<f32> = small.iter().map(|x| narrow(*x)).collect();
        multiply(
            (1.0, Strided::rows(&self.data, self.width)),
            Strided::columns(&columns, small.nrows()),
            (1.0, out, small.ncols()),
            [self.rows(), self.width, small.ncols()],
        );
    }

    /// The length of the longest column.
    pub(crate) fn longest(&self) -> f64 {
        let mut squares = vec![0f64; self.width];
        for row in self.data.chunks_exact(self.width.max(1)) {
            for (sum, x) in squares.iter_mut().zip(row) {
                *sum += f64::from(*x) * f64::from(*x);
            }
        }
        squares.into_iter().fold(0.0, f64::max).sqrt()
    }

    /// The first `width` columns.
    pub(crate) fn truncated(&self, width: usize) -> Self {
        let width = width.min(self.width);
        let rows = self.data.chunks_exact(self.width.max(1));
        Self {
            width,
            data: rows.flat_map(|row| &row[..width]).copied().collect(),
        }
    }
}

/// `R^-1` of `gram = R^T R`, where each column adds at least a share of the longest to those before it.
pub(crate) fn inverse_root(gram: &DMatrix<f64>, least: f64) -> Option<DMatrix<f64>> {
    let lower = Cholesky::new(gram.clone())?.unpack();
    let diagonal = lower.diagonal();
    let largest = diagonal.iter().copied().fold(0.0, f64::max);
    let safe = diagonal.iter().all(|d| *d > least * largest);
    if !safe || diagonal.is_empty() {
        return None;
    }
    let n = lower.nrows();
    lower
        .solve_lower_triangular(&DMatrix::identity(n, n))
        .map(|inverse| inverse.transpose())
        .filter(|inverse| inverse.iter().all(|x| x.is_finite()))
}

/// `C` with `C^T gram C = 1`, as wide as there are directions that are more than rounding errors.
pub(crate) fn whitening(gram: DMatrix<f64>) -> DMatrix<f64> {
    if let Some(root) = inverse_root(&gram, 0.03) {
        return root;
    }
    let (values, vectors) = eigen(gram);
    let least = values.first().copied().unwrap_or(0.0) * 1e-3;
    let kept = values.iter().take_while(|v| **v > least).count();
    let mut root = vectors.columns(0, kept).into_owned();
    for (mut column, value) in root.column_iter_mut().zip(&values) {
        column /= value.sqrt();
    }
    root
}

/// An estimate of the largest singular value of a small matrix, by a few steps of the power method: hardly ever below half.
pub(crate) fn norm(matrix: &DMatrix<f64>) -> f64 {
    let n = matrix.ncols();
    let mut vector = DMatrix::from_fn(n, 1, |i, _| 1.0 + (i % 7) as f64);
    let mut found = 0.0;
    for _ in 0..12 {
        let length = vector.norm();
        if length == 0.0 || !length.is_finite() {
            break;
        }
        vector.unscale_mut(length);
        let image = matrix * &vector;
        found = image.norm();
        vector = matrix.tr_mul(&image);
    }
    found
}

/// Eigenvalues of a symmetric matrix, the largest first and none below zero, and their vectors as columns. Signs are such that
/// the largest component is positive.
pub(crate) fn eigen(matrix: DMatrix<f64>) -> (Vec<f64>, DMatrix<f64>) {
    let n = matrix.nrows();
    if n == 0 {
        return (Vec::new(), matrix);
    }
    let found = SymmetricEigen::new(matrix);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|a, b| found.eigenvalues[*b].total_cmp(&found.eigenvalues[*a]));
    let mut vectors = DMatrix::zeros(n, n);
    for (to, from) in order.iter().enumerate() {
        let column = found.eigenvectors.column(*from);
        let largest = column
            .iter()
            .copied()
            .max_by(|a, b| a.abs().total_cmp(&b.abs()));
        let sign = if largest.unwrap_or(0.0) < 0.0 {
            -1.0
        } else {
            1.0
        };
        vectors.set_column(to, &(column * sign));
    }
    let values = order
        .iter()
        .map(|i| found.eigenvalues[*i].max(0.0))
        .collect();
    (values, vectors)
}

#[expect(clippy::cast_possible_truncation, reason = "to the nearest f32")]
pub(crate) fn narrow(x: f64) -> f32 {
    x as f32
}
