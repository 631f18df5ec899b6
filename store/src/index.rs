//! `*.safetensors.index.json`: which shard holds which tensor, read as if it were written by an enemy.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::StoreError;
use crate::header::Header;
use crate::path::{check_relative, has_suffix};

/// The ending of a shard index's name.
pub const INDEX_SUFFIX: &str = ".safetensors.index.json";
/// The largest index accepted: as large as the largest header.
pub(crate) const MAX_INDEX: u64 = crate::header::MAX_HEADER;

/// A shard index, its paths checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardIndex {
    /// Tensor and shard, in the index's order.
    pub weight_map: Vec<(String, String)>,
}

impl ShardIndex {
    /// Reads the index called `file` (a name for messages).
    pub fn parse(file: &str, json: &[u8]) -> Result<Self, StoreError> {
        let bad = |problem: String| error(file, problem);
        let raw: RawIndex =
            serde_json::from_slice(json).map_err(|problem| bad(problem.to_string()))?;
        let mut checked: HashSet<&str> = HashSet::new();
        for (tensor, shard) in &raw.weight_map.0 {
            if !checked.insert(shard) {
                continue;
            }
            if let Err(StoreError::UnsafePath { problem, .. }) = check_relative(shard) {
                return Err(bad(format!(
                    "it puts tensor {tensor:?} into {shard:?}: {problem}"
                )));
            }
            if !has_suffix(shard, ".safetensors") {
                return Err(bad(format!(
                    "it puts tensor {tensor:?} into {shard:?}, which is no safetensors file"
                )));
            }
        }
        Ok(Self {
            weight_map: raw.weight_map.0,
        })
    }

    /// The shards named, sorted, each once.
    #[must_use]
    pub fn shards(&self) -> BTreeSet<&str> {
        self.weight_map
            .iter()
            .map(|(_, shard)| shard.as_str())
            .collect()
    }

    /// Checks the index against the headers of its shards: every tensor it names is where it says, and nowhere else.
    ///
    /// A tensor that the index does not name is no error (loaders read it, and it is kept like any other).
    pub fn check(&self, file: &str, headers: &HashMap<&str, &Header>) -> Result<(), StoreError> {
        let mut held: HashMap<&str, HashSet<&str>> = HashMap::new();
        let mut first: HashMap<&str, &str> = HashMap::new();
        for shard in self.shards() {
            let Some(header) = headers.get(shard) else {
                return Err(error(file, format!("shard {shard:?} is missing")));
            };
            for entry in &header.entries {
                held.entry(shard).or_default().insert(&entry.name);
                if let Some(other) = first.insert(&entry.name, shard) {
                    return Err(error(
                        file,
                        format!(
                            "tensor {:?} is in two shards, {other:?} and {shard:?}",
                            entry.name
                        ),
                    ));
                }
            }
        }
        for (tensor, shard) in &self.weight_map {
            if !held
                .get(shard.as_str())
                .is_some_and(|names| names.contains(tensor.as_str()))
            {
                let elsewhere = match first.get(tensor.as_str()) {
                    Some(other) => format!("it is in {other:?}"),
                    None => "no shard holds it".to_owned(),
                };
                return Err(error(
                    file,
                    format!("it puts tensor {tensor:?} into {shard:?}, but {elsewhere}"),
                ));
            }
        }
        let named: HashSet<&str> = self
            .weight_map
            .iter()
            .map(|(tensor, _)| tensor.as_str())
            .collect();
        let extra = first.keys().filter(|name| !named.contains(*name)).count();
        if extra > 0 {
            tracing::warn!(
                index = file,
                tensors = extra,
                "the shards hold tensors that the index does not name"
            );
        }
        Ok(())
    }
}

fn error(file: &str, problem: String) -> StoreError {
    StoreError::Index {
        file: file.to_owned(),
        problem,
        remedy: "download or export the checkpoint again, with all its shards".to_owned(),
    }
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: UniqueMap,
}

struct UniqueMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for UniqueMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MapVisitor;
        impl<'de> Visitor<'de> for MapVisitor {
            type Value = UniqueMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`weight_map` as an object of shard names")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueMap, A::Error> {
                let mut seen = HashSet::new();
                let mut pairs = Vec::new();
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    if !seen.insert(tensor.clone()) {
                        return Err(A::Error::custom(format_args!(
                            "tensor {tensor:?} is mapped twice"
                        )));
                    }
                    pairs.push((tensor, shard));
                }
                Ok(UniqueMap(pairs))
            }
        }
        deserializer.deserialize_map(MapVisitor)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;
    use crate::header::TensorEntry;

    fn header(names: &[&str]) -> Header {
        let entries = names
            .iter()
            .map(|name| TensorEntry {
                name: (*name).to_owned(),
                dtype: "U8".into(),
                shape: vec![0],
                range: 8..8,
            })
            .collect();
        Header {
            entries,
            metadata: Vec::new(),
            data_start: 8,
        }
    }

    fn check(json: &str, shards: &[(&str, &[&str])]) -> Result<(), StoreError> {
        let headers: Vec<_> = shards
            .iter()
            .map(|(name, tensors)| (*name, header(tensors)))
            .collect();
        let index = ShardIndex::parse("i.json", json.as_bytes())?;
        index.check(
            "i.json",
            &headers
                .iter()
                .map(|(name, header)| (*name, header))
                .collect(),
        )
    }

    #[test]
    fn a_good_index() {
        let json = r#"{"metadata":{"total_size":1},"weight_map":{"x":"a.safetensors","y":"sub/b.safetensors"}}"#;
        check(
            json,
            &[
                ("a.safetensors", &["x"]),
                ("sub/b.safetensors", &["y", "extra"]),
            ],
        )
        .unwrap();
        assert_eq!(
            ShardIndex::parse("i", json.as_bytes())
                .unwrap()
                .shards()
                .len(),
            2
        );
    }

    #[test]
    fn faults_are_named() {
        let json = r#"{"weight_map":{"x":"a.safetensors","y":"b.safetensors"}}"#;
        let message = |shards: &[(&str, &[&str])]| check(json, shards).unwrap_err().to_string();
        let missing = message(&[("a.safetensors", &["x"])]);
        assert!(
            missing.contains("i.json") && missing.contains("\"b.safetensors\" is missing"),
            "{missing}"
        );
        let swapped = message(&[("a.safetensors", &["y"]), ("b.safetensors", &["x"])]);
        assert!(
            swapped.contains("but it is in \"b.safetensors\""),
            "{swapped}"
        );
        let absent = message(&[("a.safetensors", &["x"]), ("b.safetensors", &[])]);
        assert!(
            absent.contains("\"y\"") && absent.contains("no shard holds it"),
            "{absent}"
        );
        let twice = message(&[("a.safetensors", &["x"]), ("b.safetensors", &["x", "y"])]);
        assert!(twice.contains("two shards"), "{twice}");
    }

    #[test]
    fn hostile_indexes() {
        for (json, expected) in [
            ("", "EOF"),
            ("[]", "RawIndex"),
            ("{}", "weight_map"),
            (r#"{"weight_map":[]}"#, "object of shard names"),
            (r#"{"weight_map":{"x":1}}"#, "string"),
            (r#"{"weight_map":{"x":"../a.safetensors"}}"#, "could leave"),
            (r#"{"weight_map":{"x":"/a.safetensors"}}"#, "absolute"),
            (r#"{"weight_map":{"x":"a.bin"}}"#, "no safetensors"),
            (
                r#"{"weight_map":{"x":"a.safetensors","x":"b.safetensors"}}"#,
                "mapped twice",
            ),
        ] {
            let error = ShardIndex::parse("i.json", json.as_bytes())
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("i.json") && error.contains(expected),
                "{expected:?} in {error:?}"
            );
        }
    }
}
