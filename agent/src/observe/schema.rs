//! The schemas of options for the `OpenAPI` document.

use std::borrow::Cow;

use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ArrayBuilder, ObjectBuilder, RefOr, Schema, Type},
};

use crate::model::spec::{Enforce, Existing, Ingress, KEYS, Key, Near, OtherNetns, PolicySpec, Word};

/// A string with a fixed set of values.
fn words(words: &[(&'static str, &'static str)]) -> ObjectBuilder {
    let values: Vec<_> = words.iter().map(|(word, _)| *word).collect();
    let meanings: Vec<_> = words.iter().map(|(word, meaning)| format!("`{word}`: {}", meaning.trim())).collect();
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(values)).description(Some(meanings.join("\n")))
}

macro_rules! word_schemas {
    ($($word:ident),+) => { $(
        impl PartialSchema for $word {
            fn schema() -> RefOr<Schema> {
                words(&$word::all()).into()
            }
        }

        impl ToSchema for $word {
            fn name() -> Cow<'static, str> {
                stringify!($word).into()
            }
        }
    )+ };
}

word_schemas!(Enforce, Ingress, OtherNetns, Existing, Near);

/// An item of a list that is a table of texts.
fn table(key: &Key) -> ObjectBuilder {
    let text = |meaning: &str| ObjectBuilder::new().schema_type(Type::String).description(Some(meaning.to_owned()));
    key.fields
        .iter()
        .fold(ObjectBuilder::new(), |object, (field, meaning)| object.property(*field, text(meaning)).required(*field))
}

impl PartialSchema for PolicySpec {
    fn schema() -> RefOr<Schema> {
        let keys = KEYS.iter().fold(ObjectBuilder::new(), |object, key| {
            let text = match (key.words)() {
                _ if !key.fields.is_empty() => table(key),
                none if none.is_empty() => ObjectBuilder::new().schema_type(Type::String),
                _ if key.is_bool() => ObjectBuilder::new().schema_type(Type::Boolean),
                known => words(&known),
            };
            let help = Some(key.description.trim());
            let schema: Schema = if key.is_list {
                ArrayBuilder::new().items(text).description(help).into()
            } else {
                text.description(help).into()
            };
            object.property(key.name, schema)
        });
        keys.into()
    }
}

impl ToSchema for PolicySpec {
    fn name() -> Cow<'static, str> {
        "PolicySpec".into()
    }
}
