//! Manifests as they are stored: JSON that counts its own bytes and is sealed against damage.

use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::DeltaError;

/// A manifest that says how large its artifact is and what its content hashes to.
pub trait Sealed: Serialize {
    /// Told the bytes of the artifact, this manifest included.
    fn count(&mut self, bytes: u64);

    /// BLAKE3 (first 16 bytes) of the manifest without this field, as compact JSON.
    fn seal(&mut self) -> &mut String;
}

/// The manifest as stored: JSON with one space of indentation. `others` are the bytes of all other files.
///
/// # Errors
/// A manifest that is no JSON.
pub fn settle<M: Sealed>(manifest: &mut M, others: u64) -> Result<Vec<u8>, DeltaError> {
    let mut length = 0_u64;
    // The length changes the digits of the sizes, which change the length: a few rounds settle it, or lead in a circle.
    for round in 0..9 {
        manifest.count(others + length);
        let seal = seal_of(&to_value(manifest)?)?;
        *manifest.seal() = seal;
        let mut bytes = pretty(manifest)?;
        let found = bytes.len() as u64;
        if found == length {
            return Ok(bytes);
        }
        if round == 8 && found < length {
            // Out of the circle: space at the end makes up for the digits that are not there.
            bytes.resize(usize::try_from(length).unwrap_or(bytes.len()), b' ');
            return Ok(bytes);
        }
        // The last round has room for all the digits there can be.
        length = if round == 7 { found + 32 } else { found };
    }
    Err(DeltaError::internal(
        "the manifest's length does not settle",
    ))
}

/// The JSON of a manifest.
///
/// # Errors
/// Bytes that are no JSON.
pub fn value(path: &Path, bytes: &[u8]) -> Result<Value, DeltaError> {
    serde_json::from_slice(bytes)
        .map_err(|error| DeltaError::corrupt(path, format!("it is not JSON ({error})")))
}

/// A manifest whose version is one of ours and whose seal holds.
///
/// # Errors
/// A version that is missing or newer, a missing or wrong field, a seal that does not hold.
pub fn open<M: Sealed + DeserializeOwned>(
    path: &Path,
    value: Value,
    supported: u32,
) -> Result<M, DeltaError> {
    let corrupt = |problem: String| DeltaError::corrupt(path, problem);
    let Some(version) = value.get("format_version").and_then(Value::as_u64) else {
        return Err(corrupt(
            "it has no format_version, so it is not the manifest of a delta".into(),
        ));
    };
    if version > u64::from(supported) {
        return Err(DeltaError::Version {
            path: path.into(),
            found: u32::try_from(version).unwrap_or(u32::MAX),
            supported,
        });
    }
    let expected = seal_of(&value)?;
    let mut manifest: M = serde_json::from_value(value)
        .map_err(|error| corrupt(format!("a field is missing or wrong ({error})")))?;
    if *manifest.seal() != expected {
        return Err(corrupt(
            "its content does not match its seal: it was damaged or changed by hand".into(),
        ));
    }
    Ok(manifest)
}

fn to_value(manifest: &impl Serialize) -> Result<Value, DeltaError> {
    // Through text, so that numbers look the way a reader of the file sees them.
    let text =
        serde_json::to_vec(manifest).map_err(|error| DeltaError::internal(error.to_string()))?;
    serde_json::from_slice(&text).map_err(|error| DeltaError::internal(error.to_string()))
}

fn seal_of(value: &Value) -> Result<String, DeltaError> {
    let mut value = value.clone();
    if let Some(object) = value.as_object_mut() {
        object.shift_remove("seal");
    }
    let text =
        serde_json::to_vec(&value).map_err(|error| DeltaError::internal(error.to_string()))?;
    let hash = blake3::hash(&text).to_hex();
    Ok(hash[..32].to_owned())
}

fn pretty(manifest: &impl Serialize) -> Result<Vec<u8>, DeltaError> {
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    manifest
        .serialize(&mut serializer)
        .map_err(|error| DeltaError::internal(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}
