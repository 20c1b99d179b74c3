//! Field tables and JSON headers, typed as py-amqp types them (`amqp/serialization.py`, and `header_types` in
//! golden/01_amqp_task_messages).

use lapin::types::{AMQPValue, DecimalValue, FieldArray, FieldTable, LongString, ShortString};
use rtask_protocol::Headers;
use serde_json::{Map, Value};

use crate::BrokerError;

/// Headers from the wire are read this deep, and null below. Celery's own go no deeper than a signature in a stamp.
const MAX_DEPTH: usize = 32;
/// All headers travel in one frame, and RabbitMQ's frames have at most 131,072 bytes (`frame_max`).
const MAX_BYTES: usize = 120_000;

/// # Errors
/// When the headers are too deep or too large for AMQP, or a name is longer than 255 bytes.
pub(super) fn to_amqp(headers: &Headers) -> Result<FieldTable, BrokerError> {
    let mut budget = MAX_BYTES;
    table(headers, 0, &mut budget).map_err(|reason| BrokerError::unsendable(format!("headers: {reason}")))
}

fn table(map: &Map<String, Value>, depth: usize, budget: &mut usize) -> Result<FieldTable, String> {
    let mut table = FieldTable::default();
    for (name, field) in map {
        spend(budget, name.len() + 1)?;
        let key = ShortString::try_new(name.as_str()).map_err(|_| format!("a name has {} bytes", name.len()))?;
        table.insert(key, value(field, depth + 1, budget)?);
    }
    Ok(table)
}

fn value(json: &Value, depth: usize, budget: &mut usize) -> Result<AMQPValue, String> {
    if depth > MAX_DEPTH {
        return Err(format!("nested deeper than {MAX_DEPTH}"));
    }
    // A tag and the widest of the fixed sizes.
    spend(budget, 9)?;
    Ok(match json {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => i32::try_from(whole).map_or(AMQPValue::LongLongInt(whole), AMQPValue::LongInt),
            // Fractions, and whole numbers from 2^63 up, which py-amqp cannot send at all.
            None => AMQPValue::Double(number.as_f64().ok_or("a number is out of range")?),
        },
        Value::String(text) => {
            spend(budget, text.len())?;
            AMQPValue::LongString(text.as_str().into())
        }
        Value::Array(items) => {
            let mut array = FieldArray::default();
            for item in items {
                array.push(value(item, depth + 1, budget)?);
            }
            AMQPValue::FieldArray(array)
        }
        Value::Object(map) => AMQPValue::FieldTable(table(map, depth, budget)?),
    })
}

fn spend(budget: &mut usize, bytes: usize) -> Result<(), String> {
    *budget = budget.checked_sub(bytes).ok_or_else(|| format!("more than {MAX_BYTES} bytes"))?;
    Ok(())
}

/// Read what any client may have sent. Timestamps become seconds, byte arrays text, decimals and floats numbers,
/// and what JSON has no number for becomes null.
pub(super) fn from_amqp(table: &FieldTable) -> Headers {
    object(table, 0)
}

fn object(table: &FieldTable, depth: usize) -> Map<String, Value> {
    table.into_iter().map(|(name, field)| (name.as_str().to_owned(), json(field, depth + 1))).collect()
}

fn json(field: &AMQPValue, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::Null;
    }
    match field {
        AMQPValue::Void => Value::Null,
        AMQPValue::Boolean(flag) => (*flag).into(),
        AMQPValue::ShortShortInt(whole) => (*whole).into(),
        AMQPValue::ShortShortUInt(whole) => (*whole).into(),
        AMQPValue::ShortInt(whole) => (*whole).into(),
        AMQPValue::ShortUInt(whole) => (*whole).into(),
        AMQPValue::LongInt(whole) => (*whole).into(),
        AMQPValue::LongUInt(whole) => (*whole).into(),
        AMQPValue::LongLongInt(whole) => (*whole).into(),
        AMQPValue::Timestamp(seconds) => (*seconds).into(),
        AMQPValue::Float(number) => f64::from(*number).into(),
        AMQPValue::Double(number) => (*number).into(),
        AMQPValue::DecimalValue(decimal) => number(*decimal).into(),
        AMQPValue::ShortString(text) => text.as_str().into(),
        AMQPValue::LongString(bytes) => text(bytes).into(),
        AMQPValue::ByteArray(bytes) => String::from_utf8_lossy(bytes.as_slice()).into(),
        AMQPValue::FieldArray(array) => array.as_slice().iter().map(|item| json(item, depth + 1)).collect(),
        AMQPValue::FieldTable(table) => object(table, depth).into(),
    }
}

fn text(bytes: &LongString) -> String {
    String::from_utf8_lossy(bytes.as_bytes()).into_owned()
}

/// lapin reads the value as unsigned, clients write it signed.
fn number(decimal: DecimalValue) -> f64 {
    f64::from(decimal.value.cast_signed()) / 10_f64.powi(i32::from(decimal.scale))
}

#[cfg(test)]
mod tests {
    use lapin::types::AMQPType;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What JSON can hold and AMQP too: whole numbers of 64 bits with a sign.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        leaf.prop_recursive(6, 64, 8, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
                prop::collection::btree_map(".{0,20}", inner, 0..8)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    /// Whatever the wire can carry.
    fn any_amqp() -> impl Strategy<Value = AMQPValue> {
        let leaf = prop_oneof![
            Just(AMQPValue::Void),
            any::<bool>().prop_map(AMQPValue::Boolean),
            any::<u8>().prop_map(AMQPValue::ShortShortUInt),
            any::<i16>().prop_map(AMQPValue::ShortInt),
            any::<u32>().prop_map(AMQPValue::LongUInt),
            any::<i64>().prop_map(AMQPValue::LongLongInt),
            any::<u64>().prop_map(AMQPValue::Timestamp),
            any::<u32>().prop_map(f32::from_bits).prop_map(AMQPValue::Float),
            any::<u64>().prop_map(f64::from_bits).prop_map(AMQPValue::Double),
            any::<(u8, u32)>().prop_map(|(scale, value)| AMQPValue::DecimalValue(DecimalValue { scale, value })),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::LongString(bytes.into())),
            any::<Vec<u8>>().prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        ];
        leaf.prop_recursive(50, 100, 2, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..2).prop_map(|items| AMQPValue::FieldArray(items.into())),
                inner.prop_map(|field| AMQPValue::FieldTable(table_of("key", field))),
            ]
        })
    }

    fn table_of(name: &str, field: AMQPValue) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(name.into(), field);
        table
    }

    proptest! {
        #[test]
        fn json_headers_survive(value in any_json()) {
            let headers = Headers::from_iter([("header".to_owned(), value)]);
            prop_assert_eq!(from_amqp(&to_amqp(&headers).unwrap()), headers);
        }

        #[test]
        fn nothing_on_the_wire_is_too_much(field in any_amqp()) {
            let headers = from_amqp(&table_of("header", field));
            prop_assert!(serde_json::to_string(&headers).is_ok());
            prop_assert!(to_amqp(&headers).is_ok());
        }
    }

    #[test]
    fn types_are_those_of_py_amqp() {
        let rows = [
            (json!("s"), AMQPType::LongString),
            (json!(null), AMQPType::Void),
            (json!(2_147_483_647), AMQPType::LongInt),
            (json!(2_147_483_648_i64), AMQPType::LongLongInt),
            (json!(-2_147_483_649_i64), AMQPType::LongLongInt),
            (json!(true), AMQPType::Boolean),
            (json!(1.5), AMQPType::Double),
            (json!([1]), AMQPType::FieldArray),
            (json!({"a": 1}), AMQPType::FieldTable),
        ];
        for (json, expected) in rows {
            let table = to_amqp(&Headers::from_iter([("h".to_owned(), json)])).unwrap();
            assert_eq!(table.inner()["h"].get_type(), expected);
        }
    }

    #[test]
    fn what_json_lacks_becomes_what_is_nearest() {
        let rows = [
            (AMQPValue::Timestamp(1_795_510_242), json!(1_795_510_242)),
            (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 275 }), json!(2.75)),
            (AMQPValue::DecimalValue(DecimalValue { scale: 1, value: (-15_i32).cast_unsigned() }), json!(-1.5)),
            (AMQPValue::ByteArray(b"ab\xff".to_vec().into()), json!("ab\u{fffd}")),
            (AMQPValue::Double(f64::NAN), json!(null)),
        ];
        for (field, expected) in rows {
            assert_eq!(from_amqp(&table_of("h", field))["h"], expected);
        }
    }

    #[test]
    fn what_amqp_cannot_carry_is_refused() {
        let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        let rows = [json!("x".repeat(MAX_BYTES)), deep, json!({"k".repeat(256): 1})];
        for row in rows {
            let refused = to_amqp(&Headers::from_iter([("h".to_owned(), row)]));
            assert!(matches!(refused, Err(BrokerError::Unsendable { .. })));
        }
    }
}
