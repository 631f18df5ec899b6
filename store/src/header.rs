//! The safetensors header, read as if it were written by an enemy.
//!
//! Layout: 8 bytes little-endian length `n`, then `n` bytes of JSON (name to dtype, shape and offsets), then the tensors.
//! Nothing in it is believed before it is checked against the size of the file, and no allocation exceeds a constant
//! times the bytes that are really there.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use sparse_codec::DType;

use crate::error::{Bytes, StoreError};

/// The largest header accepted, as in the safetensors library.
pub const MAX_HEADER: u64 = 100_000_000;
/// The most dimensions accepted: torch and numpy stop at 64.
const MAX_DIMENSIONS: usize = 64;
/// Bytes of the length before the JSON.
const PREFIX: usize = 8;

const REMEDY_DAMAGED: &str = "download or export the file again";

/// What a safetensors file says it holds, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The tensors, in the order of their bytes in the file; together they cover the file's data exactly.
    pub entries: Vec<TensorEntry>,
    /// The `__metadata__` map, in the file's order.
    pub metadata: Vec<(String, String)>,
    /// Where the data starts: everything before is the length and the JSON.
    pub data_start: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// The tensor's name.
    pub name: String,
    /// The dtype as written, known or not.
    pub dtype: String,
    /// The shape; the product of its non-zero dimensions fits in 64 bits.
    pub shape: Vec<u64>,
    /// Where its bytes are, from the start of the file.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// The number of elements.
    #[must_use]
    pub fn params(&self) -> u64 {
        // Cannot overflow: the header was refused otherwise.
        self.shape.iter().product()
    }

    /// The size in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

impl Header {
    /// How many bytes of the file [`Header::parse`] needs, from the first 8 of them.
    pub fn needed(file: &str, first: &[u8], file_len: u64) -> Result<u64, StoreError> {
        let bad = |problem: String, remedy: &str| StoreError::Header {
            file: file.to_owned(),
            problem,
            remedy: remedy.to_owned(),
        };
        let Some(prefix) = first
            .first_chunk::<8>()
            .filter(|_| file_len >= PREFIX as u64)
        else {
            let problem = format!(
                "it has {} where the header's length alone takes 8",
                Bytes(file_len)
            );
            return Err(bad(problem, REMEDY_DAMAGED));
        };
        let length = u64::from_le_bytes(*prefix);
        if length > MAX_HEADER {
            let problem = if first.starts_with(b"version ") {
                "it is a Git LFS pointer, not the file itself".to_owned()
            } else if first.starts_with(b"PK\x03\x04") || first.starts_with(b"\x80\x02") {
                "it is a PyTorch pickle file".to_owned()
            } else {
                format!("its header claims {length} bytes and the limit is {MAX_HEADER}")
            };
            return Err(bad(
                problem,
                "check that it is a safetensors file (Git LFS: run `git lfs pull`)",
            ));
        }
        let end = PREFIX as u64 + length;
        if end > file_len {
            let problem =
                format!("its header claims {length} bytes and the file has only {file_len}");
            return Err(bad(problem, REMEDY_DAMAGED));
        }
        Ok(end)
    }

    /// Reads and checks the header of `file` (a name for messages), which is `file_len` bytes long and starts with
    /// `start`: the 8-byte length and the JSON at least, anything after is ignored.
    pub fn parse(file: &str, start: &[u8], file_len: u64) -> Result<Self, StoreError> {
        let bad = |problem: String| StoreError::Header {
            file: file.to_owned(),
            problem,
            remedy: REMEDY_DAMAGED.to_owned(),
        };
        let data_start = Self::needed(file, start, file_len)?;
        let json = usize::try_from(data_start)
            .ok()
            .and_then(|end| start.get(PREFIX..end))
            .ok_or_else(|| {
                bad(format!(
                    "only {} of its header could be read",
                    Bytes(start.len() as u64)
                ))
            })?;
        let json = std::str::from_utf8(json).map_err(|error| {
            bad(format!(
                "its header is not UTF-8 at byte {}",
                PREFIX + error.valid_up_to()
            ))
        })?;
        let raw: RawHeader = serde_json::from_str(json)
            .map_err(|error| bad(format!("its header is not valid: {error}")))?;
        let entries = check(file, raw.entries, data_start, file_len)?;
        Ok(Self {
            entries,
            metadata: raw.metadata,
            data_start,
        })
    }
}

/// Turns raw entries into checked ones, in the order of their bytes.
fn check(
    file: &str,
    mut raw: Vec<RawEntry>,
    data_start: u64,
    file_len: u64,
) -> Result<Vec<TensorEntry>, StoreError> {
    let data_len = file_len - data_start;
    raw.sort_by_key(|entry| entry.info.data_offsets);
    let mut expected = 0_u64;
    let mut entries: Vec<TensorEntry> = Vec::with_capacity(raw.len());
    for RawEntry { name, info } in raw {
        let (begin, end) = info.data_offsets;
        let bad = |problem: String| StoreError::Tensor {
            file: file.to_owned(),
            tensor: name.clone(),
            problem,
            remedy: REMEDY_DAMAGED.to_owned(),
        };
        if begin > end {
            return Err(bad(format!(
                "its data begins at {begin}, after its end at {end}"
            )));
        }
        if end > data_len {
            return Err(bad(format!(
                "its data ends at {end} and the file's data at {data_len}: the file is cut short"
            )));
        }
        if begin < expected {
            let previous = entries.last().map_or("", |entry| entry.name.as_str());
            return Err(bad(format!(
                "its data begins at {begin}, inside tensor {previous:?}, which ends at {expected}"
            )));
        }
        if begin > expected {
            return Err(bad(format!(
                "{} before its data belong to no tensor",
                Bytes(begin - expected)
            )));
        }
        check_size(&info, end - begin).map_err(bad)?;
        expected = end;
        entries.push(TensorEntry {
            name,
            dtype: info.dtype,
            shape: info.shape.0,
            range: data_start + begin..data_start + end,
        });
    }
    if expected != data_len {
        return Err(StoreError::Header {
            file: file.to_owned(),
            problem: format!(
                "{} after the last tensor belong to no tensor",
                Bytes(data_len - expected)
            ),
            remedy: REMEDY_DAMAGED.to_owned(),
        });
    }
    Ok(entries)
}

/// Checks dtype x shape against the bytes there. An unknown dtype may have any size per element.
fn check_size(info: &RawInfo, bytes: u64) -> Result<(), String> {
    let shape = &info.shape.0;
    let overflow = || format!("its shape {shape:?} has more elements than can be counted");
    // The non-zero dimensions must multiply up even beside a zero: whoever multiplies a part of them must be safe.
    let nonzero = shape
        .iter()
        .filter(|&&n| n != 0)
        .try_fold(1_u64, |product, &n| product.checked_mul(n))
        .ok_or_else(overflow)?;
    let Some(dtype) = DType::parse(&info.dtype) else {
        return Ok(());
    };
    let elements = if shape.contains(&0) { 0 } else { nonzero };
    let bits = elements
        .checked_mul(u64::from(dtype.bits()))
        .ok_or_else(overflow)?;
    if bits % 8 != 0 {
        return Err(format!(
            "{elements} elements of {} do not fill whole bytes",
            info.dtype
        ));
    }
    if bits / 8 != bytes {
        let need = Bytes(bits / 8);
        return Err(format!(
            "{} of shape {shape:?} takes {need} and its offsets span {bytes}",
            info.dtype
        ));
    }
    Ok(())
}

/// The header as written: names in order, none twice.
struct RawHeader {
    entries: Vec<RawEntry>,
    metadata: Vec<(String, String)>,
}

struct RawEntry {
    name: String,
    info: RawInfo,
}

/// Unknown fields are ignored, as the safetensors library does; a field given twice is an error.
#[derive(Deserialize)]
struct RawInfo {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape whose length is bounded while it is read, so that a header cannot ask for memory by the dimension.
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShapeVisitor;
        impl<'de> Visitor<'de> for ShapeVisitor {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut dimensions = Vec::new();
                while let Some(dimension) = seq.next_element()? {
                    if dimensions.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom(format_args!(
                            "a shape of more than {MAX_DIMENSIONS} dimensions"
                        )));
                    }
                    dimensions.push(dimension);
                }
                Ok(Shape(dimensions))
            }
        }
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

/// A JSON object whose keys are unique; serde's own maps would silently keep the last of two.
struct UniqueStrings(Vec<(String, String)>);

impl<'de> Deserialize<'de> for UniqueStrings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MetadataVisitor;
        impl<'de> Visitor<'de> for MetadataVisitor {
            type Value = UniqueStrings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`__metadata__` as an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueStrings, A::Error> {
                let mut seen = HashSet::new();
                let mut pairs = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "metadata key {key:?} is given twice"
                        )));
                    }
                    pairs.push((key, value));
                }
                Ok(UniqueStrings(pairs))
            }

            fn visit_unit<E>(self) -> Result<UniqueStrings, E> {
                Ok(UniqueStrings(Vec::new()))
            }
        }
        deserializer.deserialize_any(MetadataVisitor)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeaderVisitor;
        impl<'de> Visitor<'de> for HeaderVisitor {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut names = HashSet::new();
                let mut header = RawHeader {
                    entries: Vec::new(),
                    metadata: Vec::new(),
                };
                while let Some(name) = map.next_key::<String>()? {
                    if !names.insert(name.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "tensor {name:?} is described twice"
                        )));
                    }
                    if name == "__metadata__" {
                        header.metadata = map.next_value::<UniqueStrings>()?.0;
                    } else {
                        let info = map.next_value::<RawInfo>().map_err(|error| {
                            A::Error::custom(format_args!("tensor {name:?}: {error}"))
                        })?;
                        header.entries.push(RawEntry { name, info });
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(HeaderVisitor)
    }
}

#[cfg(test)]
#[expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests on known inputs"
)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 7);
        bytes
    }

    fn parse(json: &str, data: usize) -> Result<Header, StoreError> {
        let bytes = file(json, data);
        Header::parse("x.safetensors", &bytes, bytes.len() as u64)
    }

    fn refused(json: &str, data: usize, expected: &str) {
        let error = parse(json, data).unwrap_err().to_string();
        assert!(error.contains("x.safetensors"), "{error}");
        assert!(
            error.contains(expected),
            "expected {expected:?} in {error:?}"
        );
        assert!(error.contains("; "), "a remedy in {error:?}");
    }

    #[test]
    fn a_valid_header_in_offset_order() {
        let json = r#"{"b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},"__metadata__":{"format":"pt","a":"1"},
            "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"z":{"dtype":"I64","shape":[0,5],"data_offsets":[16,16]}}   "#;
        let header = parse(json, 16).unwrap();
        let names: Vec<_> = header.entries.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "z"]);
        assert_eq!(
            header.metadata,
            [
                ("format".to_owned(), "pt".to_owned()),
                ("a".to_owned(), "1".to_owned())
            ]
        );
        assert_eq!(header.data_start, 8 + json.len() as u64);
        assert_eq!(
            header.entries[1].range,
            header.data_start + 4..header.data_start + 16
        );
        assert_eq!(header.entries[0].params(), 1);
        assert_eq!(header.entries[2].params(), 0);
    }

    #[test]
    fn empty_models_and_null_metadata_pass_as_in_the_library() {
        assert!(parse("{}", 0).unwrap().entries.is_empty());
        assert!(
            parse(r#"{"__metadata__":null}"#, 0)
                .unwrap()
                .metadata
                .is_empty()
        );
        let extra = r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":[{"x":1}]}}"#;
        assert_eq!(parse(extra, 1).unwrap().entries.len(), 1);
    }

    #[test]
    fn hostile_lengths() {
        for len in 0..8_u64 {
            let error = Header::parse("x", &vec![0; len as usize], len)
                .unwrap_err()
                .to_string();
            assert!(error.contains(&format!("{len} byte")), "{error}");
        }
        let mut bytes = file("{}", 0);
        for length in [3_u64, MAX_HEADER, MAX_HEADER + 1, u64::MAX, u64::MAX - 7] {
            bytes[..8].copy_from_slice(&length.to_le_bytes());
            assert!(
                Header::parse("x", &bytes, 10)
                    .unwrap_err()
                    .to_string()
                    .contains("claims")
            );
        }
        // The caller lied about what it read.
        assert!(
            Header::parse("x", &2_u64.to_le_bytes(), 10)
                .unwrap_err()
                .to_string()
                .contains("could be read")
        );
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n";
        let error = Header::parse("x", pointer, pointer.len() as u64)
            .unwrap_err()
            .to_string();
        assert!(error.contains("git lfs pull"), "{error}");
    }

    #[test]
    fn hostile_json() {
        refused("", 0, "EOF");
        refused("[]", 0, "object of tensors");
        refused("{", 0, "EOF");
        refused("{} x", 0, "trailing");
        refused(r#"{"a":1}"#, 0, "\"a\"");
        refused(&format!("{{\"a\":{}", "[".repeat(10_000)), 0, "\"a\"");
        refused(
            r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":[[[[[[["#,
            0,
            "EOF",
        );
        let deep = format!(
            r#"{{"a":{{"x":{}{},"dtype":"U8"}}}}"#,
            "[".repeat(9999),
            "]".repeat(9999)
        );
        refused(&deep, 0, "missing field");
        let mut bytes = file("{\"a\":1}", 0);
        bytes[9] = 0xff;
        let error = Header::parse("x", &bytes, bytes.len() as u64)
            .unwrap_err()
            .to_string();
        assert!(error.contains("UTF-8 at byte 9"), "{error}");
    }

    #[test]
    fn duplicates() {
        let entry = r#"{"dtype":"U8","shape":[1],"data_offsets":[0,1]}"#;
        refused(
            &format!(r#"{{"a":{entry},"a":{entry}}}"#),
            1,
            "\"a\" is described twice",
        );
        refused(r#"{"__metadata__":{},"__metadata__":{}}"#, 0, "twice");
        refused(
            r#"{"__metadata__":{"k":"1","k":"2"}}"#,
            0,
            "\"k\" is given twice",
        );
        refused(
            r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
            1,
            "duplicate field",
        );
    }

    #[test]
    fn metadata_must_be_strings() {
        refused(r#"{"__metadata__":{"k":1}}"#, 0, "string");
        refused(r#"{"__metadata__":{"k":{"x":"y"}}}"#, 0, "string");
        refused(r#"{"__metadata__":[]}"#, 0, "object of strings");
        refused(r#"{"__metadata__":"x"}"#, 0, "object of strings");
    }

    #[test]
    fn offsets_against_the_file() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        refused(&one("U8", "[4]", "[0,4]"), 3, "cut short");
        refused(
            &one("U8", "[4]", "[0,4]"),
            5,
            "1 byte after the last tensor",
        );
        refused(&one("U8", "[4]", "[1,5]"), 5, "1 byte before its data");
        refused(&one("U8", "[4]", "[4,0]"), 4, "after its end");
        refused(&one("U8", "[3]", "[0,4]"), 4, "takes 3 bytes");
        refused(&one("F32", "[2]", "[0,4]"), 4, "takes 8 bytes");
        refused(
            &one("F32", "[4294967296,4294967296]", "[0,4]"),
            4,
            "more elements than can be counted",
        );
        refused(
            &one("F64", "[2305843009213693952]", "[0,4]"),
            4,
            "more elements than can be counted",
        );
        refused(
            &one(
                "U8",
                "[0,18446744073709551615,18446744073709551615]",
                "[0,0]",
            ),
            0,
            "counted",
        );
        refused(
            &one("X9", "[18446744073709551615,2]", "[0,4]"),
            4,
            "counted",
        );
        refused(&one("U8", "[-1]", "[0,1]"), 1, "-1");
        refused(&one("U8", "[1.5]", "[0,1]"), 1, "1.5");
        refused(&one("U8", "[1e3]", "[0,1]"), 1, "1000");
        refused(&one("U8", "[18446744073709551616]", "[0,1]"), 1, "w");
        refused(&one("U8", "[1]", "[0,1,2]"), 1, "trailing");
        refused(&one("U8", "[1]", "[0]"), 1, "length");
        refused(
            &one("U8", "[1]", "[0,18446744073709551615]"),
            1,
            "cut short",
        );
        refused(
            &one("U8", &format!("[{}1]", "1,".repeat(64)), "[0,1]"),
            1,
            "64 dimensions",
        );
        refused(r#"{"w":{"shape":[1],"data_offsets":[0,1]}}"#, 1, "dtype");
    }

    #[test]
    fn overlaps_and_holes_name_both_sides() {
        let two = |first: &str, second: &str| {
            format!(
                r#"{{"a":{{"dtype":"Q","shape":[1],"data_offsets":{first}}},"b":{{"dtype":"Q","shape":[1],"data_offsets":{second}}}}}"#
            )
        };
        refused(&two("[0,4]", "[2,6]"), 6, "inside tensor \"a\"");
        refused(&two("[0,4]", "[0,4]"), 4, "inside tensor \"a\"");
        refused(&two("[0,2]", "[4,6]"), 6, "2 bytes before");
        assert!(parse(&two("[4,6]", "[0,4]"), 6).is_ok());
        assert!(parse(&two("[0,0]", "[0,4]"), 4).is_ok());
    }

    #[test]
    fn sub_byte_and_unknown_dtypes() {
        let one = |dtype: &str, n: u32, bytes: u32| {
            let json = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":[{n}],"data_offsets":[0,{bytes}]}}}}"#
            );
            parse(&json, bytes as usize)
        };
        assert!(one("F4", 6, 3).is_ok());
        assert!(
            one("F4", 5, 3)
                .unwrap_err()
                .to_string()
                .contains("whole bytes")
        );
        assert!(one("F6_E2M3", 4, 3).is_ok());
        assert!(one("F6_E3M2", 3, 3).is_err());
        // Unknown: any size, as long as the ranges cover the file.
        assert!(one("F5_E9M9", 3, 100).is_ok());
    }

    /// What the reference library accepts must be accepted and read the same; what it refuses, refused.
    fn agrees_with_the_library(bytes: &[u8]) {
        let ours = Header::parse("x", bytes, bytes.len() as u64);
        let theirs = safetensors::SafeTensors::deserialize(bytes);
        match (&ours, &theirs) {
            (Ok(header), Ok(theirs)) => {
                assert_eq!(header.entries.len(), theirs.len());
                for entry in &header.entries {
                    let view = theirs.tensor(&entry.name).unwrap();
                    assert_eq!(
                        view.data(),
                        &bytes[entry.range.start as usize..entry.range.end as usize]
                    );
                    assert!(
                        view.shape()
                            .iter()
                            .map(|&n| n as u64)
                            .eq(entry.shape.iter().copied())
                    );
                }
            }
            // Stricter than the library: duplicates (it keeps the last), long shapes, products beside a zero.
            // Looser: unknown dtypes.
            (Err(_), Ok(_)) | (Ok(_), Err(_)) | (Err(_), Err(_)) => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn mutated_headers_never_panic(
            flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
            cut in any::<prop::sample::Index>(),
            cut_it in any::<bool>(),
        ) {
            let json = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F4","shape":[4],"data_offsets":[12,14]},"c":{"dtype":"U8","shape":[0],"data_offsets":[14,14]}}"#;
            let mut bytes = file(json, 14);
            for (index, value) in flips {
                let at = index.index(bytes.len());
                bytes[at] = value;
            }
            if cut_it {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            agrees_with_the_library(&bytes);
        }

        #[test]
        fn digits_and_punctuation_swapped(
            swaps in proptest::collection::vec((any::<prop::sample::Index>(), "[0-9,\\[\\]{}\":-]"), 1..5),
        ) {
            let json = r#"{"a":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]},"b":{"dtype":"F32","shape":[1,1],"data_offsets":[12,16]}}"#;
            let mut bytes = file(json, 16);
            for (index, text) in swaps {
                let at = 8 + index.index(json.len());
                bytes[at] = text.as_bytes()[0];
            }
            agrees_with_the_library(&bytes);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), len in any::<u64>()) {
            let _ = Header::parse("x", &bytes, bytes.len() as u64);
            let _ = Header::parse("x", &bytes, len);
        }

        #[test]
        fn written_by_the_library_read_by_us(shapes in proptest::collection::vec(proptest::collection::vec(0_usize..5, 0..4), 0..6)) {
            let data = [9_u8; 4 * 125];
            let views: Vec<_> = shapes.iter().enumerate().map(|(i, shape)| {
                let bytes = 4 * shape.iter().product::<usize>();
                let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &data[..bytes]).unwrap();
                (format!("t{i}"), view)
            }).collect();
            let bytes = safetensors::serialize(views, None).unwrap();
            prop_assert!(Header::parse("x", &bytes, bytes.len() as u64).is_ok());
            agrees_with_the_library(&bytes);
        }
    }
}
