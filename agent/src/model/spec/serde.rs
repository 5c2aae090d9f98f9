//! A policy as a JSON or TOML map: each value is a string, or a list of strings.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap as _,
};

use super::{KEYS, Key, PolicySpec, Rejected, key};

impl Serialize for PolicySpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, texts) in self.entries() {
            match (key.is_list, texts.first()) {
                (true, _) => map.serialize_entry(key.name, &texts)?,
                (false, Some(text)) => map.serialize_entry(key.name, text)?,
                (false, None) => {}
            }
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for PolicySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Map)
    }
}

struct Map;

impl<'de> Visitor<'de> for Map {
    type Value = PolicySpec;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a policy")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PolicySpec, A::Error> {
        let mut spec = PolicySpec::default();
        while let Some(name) = map.next_key::<String>()? {
            match key(&name) {
                Some(key) => map.next_value_seed(Of { spec: &mut spec, key })?,
                None => map.next_value_seed(Unknown(&name))?,
            }
        }
        Ok(spec)
    }
}

/// The value of one key.
struct Of<'a> {
    spec: &'a mut PolicySpec,
    key: &'static Key,
}

impl<'de> DeserializeSeed<'de> for Of<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.key.is_list { deserializer.deserialize_seq(self) } else { deserializer.deserialize_str(self) }
    }
}

impl<'de> Visitor<'de> for Of<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.key.is_list { "a list of strings" } else { "a string" })
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.spec.add(self.key.name, text).map_err(|rejected| match rejected {
            Rejected::Value(problem) => E::custom(problem),
            Rejected::Key => E::custom("unknown key"),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        self.spec.set_empty(self.key.name);
        while items.next_element_seed(Item(Of { spec: &mut *self.spec, key: self.key }))?.is_some() {}
        Ok(())
    }
}

/// One item of a list.
struct Item<'a>(Of<'a>);

impl<'de> DeserializeSeed<'de> for Item<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(Text(self.0))
    }
}

struct Text<'a>(Of<'a>);

impl Visitor<'_> for Text<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.visit_str(text)
    }
}

/// An unknown key.
struct Unknown<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Unknown<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        let known: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        Err(D::Error::custom(format!("unknown field `{}`, expected one of {}", self.0, known.join(", "))))
    }
}
