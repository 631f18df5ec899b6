//! Scalar SQL functions over tensor columns: `data` (the bytes), `dtype` (as safetensors names it) and `shape`, the columns
//! that `sparse_tensors` and the SAFETENSORS format give.
//!
//! One file per function, named after it. The functions hold no arithmetic: they hand rows to `sparse-codec` and `sparse-svd`.

mod args;
mod doc;
mod tensor;

mod delta_decode;
mod delta_encode;
mod int8_dequantize;
mod int8_quantize;
mod lora_merge;
mod svd_factors;
mod tensor_cast;
mod tensor_norm;
mod tensor_stats;
mod tensor_values;

#[cfg(test)]
mod testing;

use std::sync::Arc;

use datafusion::logical_expr::ScalarUDF;

/// Every scalar function, sorted by name.
pub fn functions() -> Vec<Arc<ScalarUDF>> {
    vec![
        delta_decode::delta_decode_udf(),
        delta_encode::delta_encode_udf(),
        int8_dequantize::int8_dequantize_udf(),
        int8_quantize::int8_quantize_udf(),
        lora_merge::lora_merge_udf(),
        svd_factors::svd_factors_udf(),
        tensor_cast::tensor_cast_udf(),
        tensor_norm::tensor_norm_udf(),
        tensor_stats::tensor_stats_udf(),
        tensor_values::tensor_values_udf(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sorted_and_documented() {
        let functions = functions();
        let names: Vec<&str> = functions.iter().map(|f| f.name()).collect();
        assert!(names.is_sorted(), "{names:?}");
        for function in &functions {
            let doc = function.documentation();
            assert!(
                doc.is_some_and(|d| d.sql_example.is_some() && d.arguments.is_some()),
                "{} lacks documentation",
                function.name()
            );
        }
    }
}
