//! The rebuilt bytes of an approximated tensor: base plus factors (plus signs), rounded once.

use sparse_svd::{Factors, Product, Signs};

use super::floats::Float;

/// An approximated matrix.
pub(crate) struct Approximation<'a> {
    pub(crate) factors: Factors,
    pub(crate) signs: Option<Signs>,
    pub(crate) base: (Float, &'a [u8]),
    pub(crate) dtype: Float,
}

impl Approximation<'_> {
    /// Gives the rebuilt bytes, some rows at a time.
    pub(crate) fn each<E: From<sparse_svd::SvdError>>(
        &self,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (rows, cols) = (self.factors.rows, self.factors.cols);
        let product = Product::new(&self.factors)?;
        let mut work = product.work();
        let (float, base) = self.base;
        let width = cols * float.size();
        let mut values = vec![0f32; cols];
        let mut bytes = vec![0u8; Product::ROWS * cols * self.dtype.size()];
        for first in (0..rows).step_by(Product::ROWS) {
            let range = first..rows.min(first + Product::ROWS);
            let bytes = &mut bytes[..range.len() * cols * self.dtype.size()];
            let outs = bytes.chunks_exact_mut((cols * self.dtype.size()).max(1));
            let updates = product.rows(range.clone(), &mut work)?;
            for ((row, update), out) in range.zip(updates).zip(outs) {
                let base = base.get(row * width..(row + 1) * width).unwrap_or_default();
                float.read(base, &mut values);
                match &self.signs {
                    None => {
                        for (x, u) in values.iter_mut().zip(update) {
                            *x += u;
                        }
                    }
                    Some(signs) => {
                        // The residual joins the update first, so that the base is rounded once.
                        let mut update = update.to_vec();
                        signs.add_to(row, &mut update);
                        for (x, u) in values.iter_mut().zip(&update) {
                            *x += u;
                        }
                    }
                }
                self.dtype.write(&values, out);
            }
            each(bytes)?;
        }
        Ok(())
    }
}
