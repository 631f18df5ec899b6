//! YAML as a tree that remembers its lines, read key by key: what is not understood is named with file, line, stage, key and
//! remedy, and a key nobody asked for is refused.

use std::fmt;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::SpecError;

/// A value and the line it is in.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: u64,
    pub(crate) value: Value,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(serde_json::Number),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, u64, Node)>),
}

impl Value {
    fn what(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "keys and values",
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Tree)
    }
}

struct Tree;

impl<'de> Visitor<'de> for Tree {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("YAML")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(serde_json::Number::from_f64(value)
            .map_or_else(|| Value::Text(value.to_string()), Value::Number))
    }
    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }
    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(node) = seq.next_element()? {
            all.push(node);
        }
        Ok(Value::List(all))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            all.push((key.value, key.referenced.line(), map.next_value()?));
        }
        Ok(Value::Map(all))
    }
}

/// Reads a document.
pub(crate) fn parse(file: &Path, text: &str) -> Result<Node, SpecError> {
    serde_saphyr::from_str(text).map_err(|error| SpecError {
        file: file.to_owned(),
        line: error.location().map_or(0, |at| at.line()),
        place: String::new(),
        problem: format!(
            "this is not YAML: {}",
            error
                .without_snippet()
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
        ),
        remedy: "check indentation, colons and quotes there".to_owned(),
    })
}

/// The keys of a map, taken one after another.
pub(crate) struct Keys<'a> {
    file: &'a Path,
    /// Such as `stage "compress"`; empty at the top.
    place: String,
    line: u64,
    map: Vec<(String, u64, Node)>,
    known: Vec<&'static str>,
}

impl<'a> Keys<'a> {
    pub(crate) fn of(
        file: &'a Path,
        place: impl Into<String>,
        node: Node,
    ) -> Result<Self, SpecError> {
        let place = place.into();
        let line = node.line;
        let Value::Map(map) = node.value else {
            return Err(SpecError::new(
                file,
                line,
                &place,
                format!(
                    "here is {}, where keys and values belong",
                    node.value.what()
                ),
                "write `key: value` lines",
            ));
        };
        Ok(Self {
            file,
            place,
            line,
            map,
            known: Vec::new(),
        })
    }

    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    /// From now on errors name this place.
    pub(crate) fn within(&mut self, place: String) {
        self.place = place;
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn error(
        &self,
        line: u64,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> SpecError {
        SpecError::new(self.file, line, &self.place, problem, remedy)
    }

    /// The value of a key; `None` where it is absent or null.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Node> {
        self.known.push(key);
        let at = self.map.iter().position(|(name, ..)| name == key)?;
        let (_, _, node) = self.map.remove(at);
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    pub(crate) fn text(&mut self, key: &'static str) -> Result<Option<String>, SpecError> {
        let Some(node) = self.take(key) else {
            return Ok(None);
        };
        self.as_text(key, node).map(Some)
    }

    pub(crate) fn as_text(&self, key: &str, node: Node) -> Result<String, SpecError> {
        match node.value {
            Value::Text(text) => Ok(text),
            Value::Number(number) => Ok(number.to_string()),
            Value::Bool(value) => Ok(value.to_string()),
            other => Err(self.error(
                node.line,
                format!("{key} is {}, not text", other.what()),
                format!("write `{key}: text`"),
            )),
        }
    }

    pub(crate) fn required(&mut self, key: &'static str) -> Result<String, SpecError> {
        self.text(key)?.ok_or_else(|| {
            self.error(
                self.line,
                format!("{key} is missing"),
                format!("add `{key}: ...`"),
            )
        })
    }

    pub(crate) fn flag(&mut self, key: &'static str) -> Result<bool, SpecError> {
        match self.take(key) {
            None => Ok(false),
            Some(Node {
                value: Value::Bool(value),
                ..
            }) => Ok(value),
            Some(node) => Err(self.error(
                node.line,
                format!("{key} is {}", node.value.what()),
                format!("write `{key}: true` or `{key}: false`"),
            )),
        }
    }

    pub(crate) fn count(&mut self, key: &'static str) -> Result<Option<u32>, SpecError> {
        let Some(node) = self.take(key) else {
            return Ok(None);
        };
        let number = match &node.value {
            Value::Number(number) => number.as_u64().and_then(|n| u32::try_from(n).ok()),
            _ => None,
        };
        number.map(Some).ok_or_else(|| {
            self.error(
                node.line,
                format!("{key} is no whole number"),
                format!("write `{key}: 2`"),
            )
        })
    }

    /// A value that is parsed from text; `wanted` is an example of it.
    pub(crate) fn parsed<T>(
        &mut self,
        key: &'static str,
        wanted: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, SpecError> {
        let Some(node) = self.take(key) else {
            return Ok(None);
        };
        let line = node.line;
        let text = self.as_text(key, node)?;
        parse(&text).map(Some).ok_or_else(|| {
            self.error(
                line,
                format!("{key}: {text:?} is not understood"),
                format!("write {wanted}"),
            )
        })
    }

    /// A list of texts; one text is a list of one.
    pub(crate) fn texts(&mut self, key: &'static str) -> Result<Vec<String>, SpecError> {
        match self.take(key) {
            None => Ok(Vec::new()),
            Some(Node {
                value: Value::List(all),
                ..
            }) => all
                .into_iter()
                .map(|node| self.as_text(key, node))
                .collect(),
            Some(node) => Ok(vec![self.as_text(key, node)?]),
        }
    }

    /// A list of nodes; one node is a list of one.
    pub(crate) fn nodes(&mut self, key: &'static str) -> Vec<Node> {
        match self.take(key) {
            None => Vec::new(),
            Some(Node {
                value: Value::List(all),
                ..
            }) => all,
            Some(node) => vec![node],
        }
    }

    /// Refuses what was not taken.
    pub(crate) fn end(self) -> Result<(), SpecError> {
        let Some((key, line, _)) = self.map.first() else {
            return Ok(());
        };
        let remedy = match closest(key, self.known.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("known here: {}", self.known.join(", ")),
        };
        Err(self.error(*line, format!("the key {key} is unknown"), remedy))
    }
}

/// The name most like `given`, if one is like it at all.
pub(crate) fn closest<'n>(
    given: &str,
    names: impl IntoIterator<Item = &'n str>,
) -> Option<&'n str> {
    names
        .into_iter()
        .map(|name| (distance(given, name), name))
        .filter(|(distance, name)| *distance <= name.chars().count().max(3) / 2)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut above_left = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above_left + usize::from(x != *y))
                .min(above + 1)
                .min(row[j] + 1);
            above_left = above;
        }
    }
    row[b.len()]
}
