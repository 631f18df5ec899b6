//! What a model's README says in its front matter: `base_model` and `base_model_relation`, as the Hub reads them.

use serde::Deserialize;
use serde_json::Value;

/// Bytes of a README that are looked at.
pub(crate) const MAX_CARD: u64 = 1 << 20;

/// The base a card names.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Card {
    pub(crate) base: Option<String>,
    pub(crate) relation: Option<String>,
}

#[derive(Deserialize)]
struct FrontMatter {
    base_model: Option<Value>,
    base_model_relation: Option<String>,
    #[serde(default)]
    tags: Value,
}

/// Reads the front matter of a README. What is not valid says nothing: a catalog does not fail over a README.
///
/// Where several bases are named (a merge), they are joined by commas.
pub(crate) fn parse(readme: &str) -> Card {
    let Some(yaml) = front_matter(readme) else {
        return Card::default();
    };
    let matter: FrontMatter = match serde_saphyr::from_str(yaml) {
        Ok(matter) => matter,
        Err(error) => {
            tracing::debug!(%error, "a README's front matter is not valid");
            return Card::default();
        }
    };
    let names: Vec<String> = match matter.base_model {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names
            .into_iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect(),
        _ => Vec::new(),
    };
    let names: Vec<String> = names
        .into_iter()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    // The Hub writes the relation as a tag too: base_model:adapter:org/name.
    let tagged = || {
        let tags = matter.tags.as_array()?;
        tags.iter()
            .filter_map(Value::as_str)
            .find_map(relation_of_tag)
    };
    let relation = match (matter.base_model_relation, names.len()) {
        (Some(relation), 1..) => Some(relation),
        (None, 1) => tagged(),
        (None, 2..) => Some("merge".to_owned()),
        _ => None,
    };
    Card {
        base: (!names.is_empty()).then(|| names.join(",")),
        relation,
    }
}

/// `adapter` of `base_model:adapter:org/name`.
pub(crate) fn relation_of_tag(tag: &str) -> Option<String> {
    let (relation, _) = tag.strip_prefix("base_model:")?.split_once(':')?;
    Some(relation.to_owned())
}

/// What is between the first line `---` and the next.
fn front_matter(readme: &str) -> Option<&str> {
    let text = readme.strip_prefix('\u{feff}').unwrap_or(readme);
    let rest = text
        .strip_prefix("---\n")
        .or_else(|| text.strip_prefix("---\r\n"))?;
    let mut end = 0;
    for line in rest.split_inclusive('\n') {
        if line.trim_end() == "---" {
            return rest.get(..end);
        }
        end += line.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(base: &str, relation: Option<&str>) -> Card {
        Card {
            base: Some(base.to_owned()),
            relation: relation.map(str::to_owned),
        }
    }

    #[test]
    fn names_as_the_hub_writes_them() {
        assert_eq!(
            parse(
                "---\nlicense: mit\nbase_model: org/base\nbase_model_relation: finetune\n---\ntext"
            ),
            card("org/base", Some("finetune"))
        );
        assert_eq!(
            parse(
                "---\r\nbase_model:\r\n- org/base\r\ntags:\r\n- base_model:adapter:org/base\r\n---\r\n"
            ),
            card("org/base", Some("adapter"))
        );
        assert_eq!(
            parse("---\nbase_model: [a/b, c/d]\n---\n"),
            card("a/b,c/d", Some("merge"))
        );
        assert_eq!(parse("---\nbase_model: base\n---\n"), card("base", None));
    }

    #[test]
    fn what_is_no_front_matter_says_nothing() {
        for text in [
            "",
            "# title",
            "---\nbase_model: x",
            "---\n: [\n---\n",
            "---\nbase_model: 3\n---\n",
            "---\n- a\n---\n",
        ] {
            assert_eq!(parse(text), Card::default(), "{text}");
        }
        // Aliases that would unfold without end are refused by the parser.
        let bomb = "---\na: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\ntags: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\nbase_model: org/base\n---\n";
        assert_eq!(parse(bomb), Card::default());
    }
}
