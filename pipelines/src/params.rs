//! Parameters of a script: `$key` in a statement becomes one literal token.

use std::collections::BTreeMap;

use datafusion::sql::sqlparser::tokenizer::Token;

use crate::PipelineError;

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub enum ParamValue {
    /// A string literal.
    Text(String),
    /// A number, as written.
    Number(String),
    /// `true` or `false`.
    Boolean(bool),
    /// `NULL`.
    Null,
}

impl ParamValue {
    /// The one token that stands for the value. Being a token already, it is not scanned for quotes or comments.
    pub(crate) fn token(&self) -> Token {
        match self {
            Self::Text(text) => Token::SingleQuotedString(text.clone()),
            Self::Number(number) => Token::Number(number.clone(), false),
            Self::Boolean(true) => Token::make_keyword("TRUE"),
            Self::Boolean(false) => Token::make_keyword("FALSE"),
            Self::Null => Token::make_keyword("NULL"),
        }
    }
}

/// Named parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params(BTreeMap<String, ParamValue>);

impl Params {
    /// Reads parameters: `key=text` is text whatever it looks like, `key:=value` is a JSON number, boolean, null or string.
    pub fn parse<S: AsRef<str>>(given: impl IntoIterator<Item = S>) -> Result<Self, PipelineError> {
        let mut params = BTreeMap::new();
        for item in given {
            let item = item.as_ref();
            let wrong = |problem: &str| PipelineError::Param {
                given: item.to_owned(),
                problem: problem.to_owned(),
            };
            let (key, value) = item.split_once('=').ok_or_else(|| {
                wrong("write key=text, or key:=value for a number, boolean or null")
            })?;
            let (key, value) = match key.strip_suffix(':') {
                Some(key) => (
                    key,
                    typed(value).ok_or_else(|| {
                        wrong("after := write a JSON number, true, false, null or \"string\"")
                    })?,
                ),
                None => (key, ParamValue::Text(value.to_owned())),
            };
            if !is_name(key) {
                return Err(wrong("a name is a letter or _, then letters, digits or _"));
            }
            if params.insert(key.to_owned(), value).is_some() {
                return Err(wrong("it is given twice"));
            }
        }
        Ok(Self(params))
    }

    /// Sets one parameter.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: ParamValue) -> Self {
        self.0.insert(key.into(), value);
        self
    }

    /// The value of `key`.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&ParamValue> {
        self.0.get(key)
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn is_name(key: &str) -> bool {
    let mut chars = key.chars();
    chars
        .next()
        .is_some_and(|c| c.is_ascii_alphabetic() || c == '_')
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn typed(value: &str) -> Option<ParamValue> {
    match serde_json::from_str(value).ok()? {
        serde_json::Value::Null => Some(ParamValue::Null),
        serde_json::Value::Bool(value) => Some(ParamValue::Boolean(value)),
        // As written, so that no digit is lost.
        serde_json::Value::Number(_) => Some(ParamValue::Number(value.trim().to_owned())),
        serde_json::Value::String(text) => Some(ParamValue::Text(text)),
        _ => None,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed step is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn text_and_typed() {
        let params = Params::parse([
            "a=16",
            "b:=16",
            "c:=-1.5e3",
            "d:=true",
            "e:=null",
            "f=x=y",
            "g=",
        ])
        .unwrap();
        assert_eq!(params.get("a"), Some(&ParamValue::Text("16".into())));
        assert_eq!(params.get("b"), Some(&ParamValue::Number("16".into())));
        assert_eq!(params.get("c"), Some(&ParamValue::Number("-1.5e3".into())));
        assert_eq!(params.get("d"), Some(&ParamValue::Boolean(true)));
        assert_eq!(params.get("e"), Some(&ParamValue::Null));
        assert_eq!(params.get("f"), Some(&ParamValue::Text("x=y".into())));
        assert_eq!(params.get("g"), Some(&ParamValue::Text(String::new())));
        assert_eq!(params.names().count(), 7);
    }

    #[test]
    fn mistakes_are_named() {
        for wrong in ["a", "=x", "1a=x", "a b=x", "a:=x", "a:=[1]", "a:=1 2"] {
            assert!(Params::parse([wrong]).is_err(), "{wrong}");
        }
        assert!(
            Params::parse(["a=1", "a=2"])
                .unwrap_err()
                .to_string()
                .contains("twice")
        );
    }
}
