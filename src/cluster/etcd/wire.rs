//! Answers of the gateway with keys: JSON in which bytes are base64, 64-bit numbers are strings, and zeros are omitted.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};
use serde_json::Value as Json;

/// Answer to a request for keys.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Range {
    pub(super) header: AnswerHeader,
    pub(super) kvs: Vec<KeyValue>,
}

/// Line of a watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Line {
    pub(super) result: Changes,
    pub(super) error: Json,
}

/// Changes of a line; none in the line that confirms the watch.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Changes {
    pub(super) header: AnswerHeader,
    pub(super) canceled: bool,
    pub(super) events: Vec<KeyEvent>,
}

/// Change of a key.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyEvent {
    /// `DELETE`, or empty for a put.
    #[serde(rename = "type")]
    pub(super) what: String,
    pub(super) kv: KeyValue,
}

/// Origin of an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AnswerHeader {
    #[serde(deserialize_with = "int64")]
    pub(super) revision: i64,
}

/// Key with its value and history.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) value: String,
    #[serde(deserialize_with = "int64")]
    pub(super) create_revision: i64,
    #[serde(deserialize_with = "int64")]
    pub(super) mod_revision: i64,
    #[serde(deserialize_with = "int64")]
    pub(super) lease: i64,
}

/// A 64-bit number, as a string or as a number.
fn int64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    struct Int64;
    impl Visitor<'_> for Int64 {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a 64-bit number")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<i64, E> {
            text.parse().map_err(E::custom)
        }

        fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }

        fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
            i64::try_from(number).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(Int64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_watch() {
        let line = |text: &str| serde_json::from_str::<Line>(text);
        let begun = line(r#"{"result":{"header":{"revision":"7"},"created":true}}"#).unwrap();
        assert_eq!((begun.result.header.revision, begun.result.events.len()), (7, 0));
        let put = r#"{"result":{"header":{"revision":"8"},"events":[
            {"kv":{"key":"YQ==","create_revision":"3","mod_revision":"8","version":"2","value":"e30=","lease":"-5"}},
            {"type":"DELETE","kv":{"key":"YQ==","mod_revision":8}}]}}"#;
        let [first, second] = &line(put).unwrap().result.events[..] else { panic!() };
        let KeyValue { create_revision, mod_revision, lease, .. } = first.kv;
        assert_eq!((first.what.as_str(), create_revision, mod_revision, lease), ("", 3, 8, -5));
        assert_eq!(
            (second.what.as_str(), second.kv.create_revision, second.kv.mod_revision),
            ("DELETE", 0, 8)
        );
        assert!(line(r#"{"result":{"canceled":true,"compact_revision":"9"}}"#).unwrap().result.canceled);
        assert!(line(r#"{"error":{"grpc_code":14}}"#).unwrap().error.is_object());
        for garbage in
            ["", "[", "3", r#"{"result":{"header":{"revision":"x"}}}"#, r#"{"result":{"events":3}}"#]
        {
            assert!(line(garbage).is_err(), "{garbage}");
        }
    }
}
