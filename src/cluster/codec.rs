//! Encoding of keys and values in the store: paths below a prefix, and JSON, so that people can read them with `etcdctl`.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::state::{Member, NodeId};
use super::store::{Key, Value, Write};
use crate::error::{Error, Result};

/// Path of a key below the prefix.
pub fn path(key: Key) -> String {
    match key {
        Key::Member(NodeId(node)) => format!("members/{node}"),
        Key::Alive(NodeId(node)) => format!("alive/{node}"),
        Key::Upgrade => "upgrade".to_owned(),
        Key::Outcome(upgrade, NodeId(node)) => format!("result/{upgrade}/{node}"),
        Key::Reboot => "reboot".to_owned(),
        Key::Leader => "leader".to_owned(),
        Key::Restart(NodeId(node)) => format!("restart/{node}"),
    }
}

/// Key of a path; `None`: the path is not used by this program.
pub fn key(path: &str) -> Option<Key> {
    let node = |text: &str| text.parse().ok().map(NodeId);
    let key = match path.split('/').collect::<Vec<_>>()[..] {
        ["members", id] => Key::Member(node(id)?),
        ["alive", id] => Key::Alive(node(id)?),
        ["upgrade"] => Key::Upgrade,
        ["result", upgrade, id] => Key::Outcome(upgrade.parse().ok()?, node(id)?),
        ["reboot"] => Key::Reboot,
        ["leader"] => Key::Leader,
        ["restart", id] => Key::Restart(node(id)?),
        _ => return None,
    };
    // "01" would be a second name for node 1.
    (self::path(key) == path).then_some(key)
}

/// JSON text of a value.
///
/// # Errors
/// [`Error::Internal`]: JSON cannot represent the value.
pub fn encode(value: &Value) -> Result<String> {
    fn json(value: &impl Serialize) -> Result<String> {
        serde_json::to_string(value).map_err(|problem| Error::Internal { what: format!("JSON: {problem}") })
    }
    match value {
        Value::Member(value) => json(value),
        Value::Alive(value) => json(value),
        Value::Upgrade(value) => json(value),
        Value::Outcome(value) => json(value),
        Value::Reboot(value) => json(value),
        Value::Leader(value) => json(value),
        Value::Restart(value) => json(value),
    }
}

/// A change in words, for a dry run. The certificate of a member, which is long, is not in it.
///
/// # Errors
/// As [`encode`].
pub fn shown(write: &Write) -> Result<String> {
    Ok(match write {
        Write::Put(key, Value::Member(member), _) => {
            let member = Member { certificate: String::new(), ..member.clone() };
            format!("write {}: {}", path(*key), encode(&Value::Member(member))?)
        }
        Write::Put(key, value, _) => format!("write {}: {}", path(*key), encode(value)?),
        Write::Delete(key) => format!("delete {}", path(*key)),
    })
}

/// Value of a text that is stored at `key`.
///
/// # Errors
/// [`Error::ClusterData`]: the text is garbage, or a value of another version of this program.
pub fn decode(key: Key, text: &[u8]) -> Result<Value> {
    fn json<T: DeserializeOwned>(key: Key, text: &[u8]) -> Result<T> {
        serde_json::from_slice(text)
            .map_err(|problem| Error::ClusterData { key: path(key), problem: problem.to_string() })
    }
    Ok(match key {
        Key::Member(_) => Value::Member(json(key, text)?),
        Key::Alive(_) => Value::Alive(json(key, text)?),
        Key::Upgrade => Value::Upgrade(json(key, text)?),
        Key::Outcome(..) => Value::Outcome(json(key, text)?),
        Key::Reboot => Value::Reboot(json(key, text)?),
        Key::Leader => Value::Leader(json(key, text)?),
        Key::Restart(_) => Value::Restart(json(key, text)?),
    })
}

#[cfg(test)]
mod tests {
    use super::super::state::{
        Alive, BootId, PROTOCOL, Protection, Reboot, Restart, Staging, Standing, Upgrade,
    };
    use super::*;
    use crate::units::Blake3;

    #[test]
    fn keys_and_values_come_back() {
        let alive = Alive {
            boot: BootId(u128::MAX),
            runs: Blake3([7; 32]),
            platform: Some(Blake3([8; 32])),
            version: "1.0".into(),
            product: "Demo".into(),
            protocol: PROTOCOL,
            standing: Standing::FellBack("it did not \"boot\"".into()),
            protection: Protection { remaining: 1, maximum: 2, rebuilding: true },
            progress: 99,
            blocked: None,
            leaving: true,
            drained: true,
            unknown: Some("x".into()),
            failed_in: Some(3),
            staging: Some(Staging { percent: 40, stalled: Some("x".into()) }),
        };
        for (key, value) in [
            (Key::Alive(NodeId(3)), Value::Alive(alive)),
            (Key::Upgrade, Value::Upgrade(Upgrade::default())),
            (Key::Reboot, Value::Reboot(Reboot::default())),
            (Key::Leader, Value::Leader(NodeId(2))),
            (Key::Restart(NodeId(2)), Value::Restart(Restart { by: NodeId(1), failed: Some("x".into()) })),
        ] {
            assert_eq!(super::key(&path(key)), Some(key));
            assert_eq!(decode(key, encode(&value).unwrap().as_bytes()).unwrap(), value);
        }
        assert_eq!(super::key("result/7/2"), Some(Key::Outcome(7, NodeId(2))));
        for stray in ["", "members", "members/01", "members/x", "alive/1/2", "leader/1", "results/1/2"] {
            assert_eq!(super::key(stray), None, "{stray}");
        }
        // An older qstage writes no starting version, and does not read one.
        let older = r#"{"id":7,"stage":"preparing","order":null,"error":null,"progress":5,"kept":false}"#;
        let Value::Upgrade(upgrade) = decode(Key::Upgrade, older.as_bytes()).unwrap() else { panic!() };
        assert_eq!((upgrade.id, upgrade.starting_version.as_str()), (7, ""));
        let error = decode(Key::Upgrade, b"{\"id\":-1}").unwrap_err();
        assert!(
            error.code() == "UPGRADE_ERROR_CLUSTER_DATA" && error.to_string().contains("upgrade"),
            "{error}"
        );
    }
}
