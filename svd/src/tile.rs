//! A few rows of a source in memory, and the two products that a pass needs of them.

#[cfg(target_arch = "x86_64")]
use crate::avx2;
use crate::{Source, SvdError, portable};

/// Floats in a cache line; blocks of vectors are padded to as many.
pub(crate) const LINE: usize = 16;
/// Rows of a tile: a multiple of the kernels' six, few enough that a tile of a large model's matrix stays in the second cache
/// level column block by column block.
pub(crate) const ROWS: usize = 48;
/// Columns of a tile whose products are taken at a time.
const COLS: usize = 1024;

/// Up to [`ROWS`] rows of a matrix.
pub(crate) struct Tile {
    data: Vec<f32>,
    cols: usize,
    stride: usize,
    rows: usize,
}

/// Vectors to multiply a matrix with, laid out as the kernel reads them.
pub(crate) struct Packed {
    /// Panels of [`LINE`] vectors: element `j` of vector `v` at `(v / LINE * cols + j) * LINE + v % LINE`.
    panels: Vec<f32>,
    cols: usize,
    /// The number of vectors, rounded up to whole panels.
    pub(crate) width: usize,
}

impl Packed {
    /// `vectors` holds `width` numbers for each of `cols` columns.
    pub(crate) fn new(vectors: &[f32], width: usize, cols: usize) -> Self {
        let padded = width.next_multiple_of(LINE);
        let mut panels = vec![0f32; cols * padded];
        for (j, row) in vectors.chunks_exact(width.max(1)).enumerate() {
            for (p, part) in row.chunks(LINE).enumerate() {
                let at = (p * cols + j) * LINE;
                panels[at..at + part.len()].copy_from_slice(part);
            }
        }
        Self {
            panels,
            cols,
            width: padded,
        }
    }
}

impl Tile {
    pub(crate) fn new(cols: usize) -> Self {
        // An odd number of cache lines to a row, so that elements below one another fall into different cache sets.
        let stride = (cols.div_ceil(LINE) | 1) * LINE;
        Self {
            data: vec![0.0; stride * ROWS],
            cols,
            stride,
            rows: 0,
        }
    }

    /// Reads some rows, at most [`ROWS`], times `scale`.
    pub(crate) fn read(
        &mut self,
        source: &(impl Source + ?Sized),
        rows: std::ops::Range<usize>,
        scale: f32,
    ) -> Result<(), SvdError> {
        self.rows = rows.len().min(ROWS);
        for (row, out) in rows.zip(self.data.chunks_exact_mut(self.stride)) {
            let out = &mut out[..self.cols];
            source.row(row, out)?;
            if scale != 1.0 {
                for x in out {
                    *x *= scale;
                }
            }
        }
        Ok(())
    }

    /// Its rows, to change.
    pub(crate) fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.data
            .chunks_exact_mut(self.stride)
            .take(self.rows)
            .map(|row| &mut row[..self.cols])
    }

    /// `out = tile x vectors`: `out` has the vectors' padded width for each row.
    pub(crate) fn times(&self, vectors: &Packed, out: &mut [f32]) {
        assert!(
            vectors.cols == self.cols && out.len() >= self.rows * vectors.width,
            "the vectors fit the tile"
        );
        out[..self.rows * vectors.width].fill(0.0);
        for start in (0..self.cols).step_by(COLS) {
            let n = COLS.min(self.cols - start);
            for p in 0..vectors.width / LINE {
                let panel = &vectors.panels[(p * self.cols + start) * LINE..][..n * LINE];
                self.times_panel(start, panel, &mut out[p * LINE..], vectors.width);
            }
        }
    }

    /// Adds the product of some columns and a panel to the first columns of `out`: fused multiply-adds in the columns' order,
    /// so that every machine finds the same bits.
    fn times_panel(&self, start: usize, panel: &[f32], out: &mut [f32], width: usize) {
        #[cfg(target_arch = "x86_64")]
        if avx2::available() {
            // SAFETY: the CPU has AVX2 and FMA.
            unsafe {
                avx2::times(
                    &self.data[start..],
                    self.stride,
                    self.rows,
                    panel,
                    out,
                    width,
                )
            };
            return;
        }
        portable::times(
            &self.data[start..],
            self.stride,
            self.rows,
            panel,
            out,
            width,
        );
    }

    /// `sums += tile^T x left`: `left` has `width` numbers (whole panels) for each row, `sums` as many for each column.
    pub(crate) fn transposed_times(&self, left: &[f32], width: usize, sums: &mut [f32]) {
        assert!(
            width.is_multiple_of(LINE)
                && left.len() >= self.rows * width
                && sums.len() >= self.cols * width,
            "the factors fit the tile"
        );
        #[cfg(target_arch = "x86_64")]
        if avx2::available() {
            // SAFETY: the CPU has AVX2 and FMA.
            unsafe {
                avx2::transposed_times(
                    &self.data,
                    self.stride,
                    self.rows,
                    self.cols,
                    left,
                    width,
                    sums,
                );
            };
            return;
        }
        portable::transposed_times(
            &self.data,
            self.stride,
            self.rows,
            self.cols,
            left,
            width,
            sums,
        );
    }
}
