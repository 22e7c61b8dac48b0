//! A JSON object whose fields are taken one by one, so that every refusal names its field.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::error::{ApiError, shorten};

/// The fields of a request's body, still as text.
///
/// Nothing is built from a field before its type is known: a body of the largest permitted size
/// costs little more than itself. A field that is `null` counts as absent.
#[derive(Debug)]
pub(super) struct Object<'a> {
    fields: BTreeMap<Cow<'a, str>, &'a RawValue>,
    /// Prefix of the names in errors, for an object inside another.
    within: &'a str,
}

impl<'a> Object<'a> {
    /// Reads the outer layer of a body.
    ///
    /// # Errors
    /// 400 if the body is not a JSON object; the field at which it breaks off is named.
    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ApiError> {
        let text = std::str::from_utf8(body).map_err(|error| {
            ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                format!("the body is not UTF-8: {error}"),
            )
        })?;
        Self::parse_text(text, "")
    }

    /// Reads an object that is the value of the field `within`.
    ///
    /// # Errors
    /// 400 naming `within` or one of its fields.
    pub(super) fn parse_text(text: &'a str, within: &'a str) -> Result<Self, ApiError> {
        let last_key = RefCell::new(None);
        let mut json = serde_json::Deserializer::from_str(text);
        let fields = FieldsVisitor {
            last_key: &last_key,
        }
        .deserialize(&mut json)
        .and_then(|fields| json.end().map(|()| fields));
        match fields {
            Ok(fields) => Ok(Object { fields, within }),
            Err(error) => {
                let what = if within.is_empty() {
                    "the body"
                } else {
                    within
                };
                let param = match (last_key.into_inner(), within) {
                    (None, "") => None,
                    (None, within) => Some(within.to_owned()),
                    (Some(key), "") => Some(shorten(&key)),
                    (Some(key), within) => Some(format!("{within}.{}", shorten(&key))),
                };
                let near = match &param {
                    Some(param) if param != within => format!(", in the field {param}"),
                    _ => String::new(),
                };
                Err(ApiError {
                    param,
                    ..ApiError::new(
                        axum::http::StatusCode::BAD_REQUEST,
                        format!("{what} is not a valid JSON object{near}: {error}"),
                    )
                })
            }
        }
    }

    /// The name of a field as errors spell it.
    pub(super) fn path(&self, name: &str) -> String {
        if self.within.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.within)
        }
    }

    /// Takes a field's text; `None` if it is absent or `null`.
    pub(super) fn take_raw(&mut self, name: &str) -> Option<&'a RawValue> {
        self.fields
            .remove(name)
            .filter(|value| value.get() != "null")
    }

    /// Whether a field is present and not `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.fields
            .get(name)
            .is_some_and(|value| value.get() != "null")
    }

    /// Takes a field of a type.
    ///
    /// # Errors
    /// 400 naming the field if it has another type.
    pub(super) fn take<T: Deserialize<'a>>(&mut self, name: &str) -> Result<Option<T>, ApiError> {
        self.take_raw(name)
            .map(|value| read(value, &self.path(name)))
            .transpose()
    }

    /// Takes a list of at most `max` entries.
    ///
    /// # Errors
    /// 400 naming the field if it is no such list or longer.
    pub(super) fn take_list<T: Deserialize<'a>>(
        &mut self,
        name: &str,
        max: usize,
    ) -> Result<Option<Vec<T>>, ApiError> {
        self.take_raw(name)
            .map(|value| read_list(value, &self.path(name), max))
            .transpose()
    }

    /// Takes a field that may only have the values `accept` admits, which change nothing.
    ///
    /// # Errors
    /// 400 saying that the field is not supported.
    pub(super) fn take_inert(
        &mut self,
        name: &str,
        hint: &str,
        accept: impl Fn(&str) -> bool,
    ) -> Result<(), ApiError> {
        match self.take_raw(name) {
            Some(value) if !accept(value.get()) => {
                Err(ApiError::unsupported(&self.path(name), hint))
            }
            _ => Ok(()),
        }
    }

    /// All fields, for an object that is a map.
    pub(super) fn into_entries(self) -> Vec<(Cow<'a, str>, &'a RawValue)> {
        self.fields.into_iter().collect()
    }

    /// Refuses whatever was not taken.
    ///
    /// # Errors
    /// 400 naming the first field left.
    pub(super) fn finish(self) -> Result<(), ApiError> {
        let left = self.fields.iter().find(|(_, value)| value.get() != "null");
        match left {
            Some((name, _)) => Err(ApiError::unsupported(
                &self.path(name),
                "this server knows no such field",
            )),
            None => Ok(()),
        }
    }
}

/// Reads a value of a type.
///
/// # Errors
/// 400 naming `param`.
pub(super) fn read<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    param: &str,
) -> Result<T, ApiError> {
    serde_json::from_str(value.get()).map_err(|error| type_error(param, &error))
}

/// Reads a list of at most `max` entries.
///
/// # Errors
/// 400 naming `param`.
pub(super) fn read_list<'a, T: Deserialize<'a>>(
    value: &'a RawValue,
    param: &str,
    max: usize,
) -> Result<Vec<T>, ApiError> {
    let mut json = serde_json::Deserializer::from_str(value.get());
    ListVisitor {
        max,
        entry: std::marker::PhantomData,
    }
    .deserialize(&mut json)
    .map_err(|error| type_error(param, &error))
}

fn type_error(param: &str, error: &serde_json::Error) -> ApiError {
    let message = error.to_string();
    // The position is one inside the field, which helps nobody.
    let message = message
        .rsplit_once(" at line ")
        .map_or(message.as_str(), |(head, _)| head);
    ApiError::invalid(param, format!("{param}: {}", shorten(message)))
}

struct FieldsVisitor<'k> {
    last_key: &'k RefCell<Option<String>>,
}

impl<'de> DeserializeSeed<'de> for FieldsVisitor<'_> {
    type Value = BTreeMap<Cow<'de, str>, &'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldsVisitor<'_> {
    type Value = BTreeMap<Cow<'de, str>, &'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(Key(key)) = map.next_key()? {
            *self.last_key.borrow_mut() = Some(key.clone().into_owned());
            let value: &'de RawValue = map.next_value()?;
            *self.last_key.borrow_mut() = None;
            // The last of several fields with one name holds, as in other JSON readers.
            fields.insert(key, value);
        }
        Ok(fields)
    }
}

/// A key borrowed from the text unless it contains escapes.
#[derive(Deserialize)]
#[serde(transparent)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct ListVisitor<T> {
    max: usize,
    entry: std::marker::PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for ListVisitor<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "a list of at most {} entries", self.max)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut list = Vec::new();
        while let Some(entry) = seq.next_element()? {
            if list.len() == self.max {
                return Err(serde::de::Error::custom(format!(
                    "the list is longer than {} entries",
                    self.max
                )));
            }
            list.push(entry);
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_no_json_names_its_field() {
        let error = Object::parse(br#"{"n": 1, "temperature": NaN}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("temperature"));
        let error = Object::parse(br#"{"n": 1"#).unwrap_err();
        assert_eq!(error.param, None);
        assert!(Object::parse(b"[1]").is_err());
        assert!(Object::parse(b"{} trailing").is_err());
        assert!(Object::parse(b"\xff").is_err());
    }

    #[test]
    fn fields_are_typed_and_leftovers_refused() {
        let mut object =
            Object::parse(br#"{"n": 1.5, "stop": ["a", "b"], "x": null, "ok": true, "zz": 0}"#)
                .unwrap();
        let error = object.take::<u32>("n").unwrap_err();
        assert_eq!(error.param.as_deref(), Some("n"));
        assert!(error.message.contains("1.5"), "{}", error.message);
        assert!(object.take_list::<String>("stop", 1).is_err());
        assert_eq!(object.take::<u32>("x").unwrap(), None);
        assert_eq!(object.take::<bool>("ok").unwrap(), Some(true));
        assert_eq!(object.finish().unwrap_err().param.as_deref(), Some("zz"));
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_an_overflow() {
        let body = format!("{{\"messages\": {}", "[".repeat(1_000_000));
        let error = Object::parse(body.as_bytes()).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("messages"));
    }
}
