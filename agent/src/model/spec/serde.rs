//! A policy as a JSON or TOML map: each value is a string, true or false, or a list of strings or of tables of strings.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
    ser::SerializeMap as _,
};

use super::{KEYS, Key, PolicySpec, key};

impl Serialize for PolicySpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, texts) in self.entries() {
            match (key.is_list, texts.first()) {
                (true, _) if !key.fields.is_empty() => {
                    let tables: Vec<Table<'_>> = texts.iter().map(|text| Table(key.split(text).collect())).collect();
                    map.serialize_entry(key.name, &tables)?;
                }
                (true, _) => map.serialize_entry(key.name, &texts)?,
                (false, Some(text)) if key.is_bool() => map.serialize_entry(key.name, &(text == "true"))?,
                (false, Some(text)) => map.serialize_entry(key.name, text)?,
                (false, None) => {}
            }
        }
        map.end()
    }
}

/// An item of a list as a table, in the order of its fields.
struct Table<'t>(Vec<(&'static str, &'t str)>);

impl Serialize for Table<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
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
            if let Some(key) = key(&name) {
                map.next_value_seed(Of { spec: &mut spec, key })?;
            } else {
                let known = KEYS.iter().map(|key| key.name).collect();
                map.next_value_seed(Unknown { name: &name, known })?;
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
        match (self.key.is_list, self.key.is_bool()) {
            (true, _) => deserializer.deserialize_seq(self),
            (false, true) => deserializer.deserialize_bool(self),
            (false, false) => deserializer.deserialize_str(self),
        }
    }
}

impl<'de> Visitor<'de> for Of<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match (self.key.is_list, self.key.fields) {
            (false, _) if self.key.is_bool() => "true or false",
            (false, _) => "a string",
            (true, []) => "a list of strings",
            (true, _) => "a list of tables",
        })
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        self.spec.add(self.key.name, if value { "true" } else { "false" }).map_err(E::custom)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.spec.add(self.key.name, text).map_err(E::custom)
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
        if self.0.key.fields.is_empty() {
            deserializer.deserialize_str(self)
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

impl<'de> Visitor<'de> for Item<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.0.key.fields.iter().map(|(field, _)| *field).collect();
        if fields.is_empty() {
            formatter.write_str("a string")
        } else {
            write!(formatter, "a table of {}", fields.join(" and "))
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.0.visit_str(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Of { spec, key } = self.0;
        let mut texts = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some((field, _)) = key.fields.iter().find(|(field, _)| *field == name) else {
                let known = key.fields.iter().map(|(field, _)| *field).collect();
                return map.next_value_seed(Unknown { name: &name, known });
            };
            let text = map.next_value_seed(Field { spec, key, name: field })?;
            if texts.insert(*field, text).is_some() {
                return Err(A::Error::duplicate_field(field));
            }
        }
        let mut text = Vec::new();
        for (field, _) in key.fields {
            text.push(texts.remove(field).ok_or_else(|| A::Error::missing_field(field))?);
        }
        spec.add(key.name, &text.join("=")).map_err(A::Error::custom)
    }
}

/// One field of an item that is a table. It is checked on its own, so that an error has its path.
struct Field<'a> {
    spec: &'a PolicySpec,
    key: &'static Key,
    name: &'static str,
}

impl<'de> DeserializeSeed<'de> for Field<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        let text = String::deserialize(deserializer)?;
        self.spec.check(self.key.name, self.name, &text).map_err(D::Error::custom)?;
        Ok(text)
    }
}

/// An unknown key, or field of an item.
struct Unknown<'a> {
    name: &'a str,
    known: Vec<&'static str>,
}

impl<'de> DeserializeSeed<'de> for Unknown<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(D::Error::custom(format!("unknown field `{}`, expected one of {}", self.name, self.known.join(", "))))
    }
}
