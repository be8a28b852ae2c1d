//! OpenFeature's values as JSON.

use flipswitch::{
    open_feature::{self, StructValue},
    serde_json::{Map, Value, json},
};

pub(crate) fn fields(value: &StructValue) -> Map<String, Value> {
    value.fields.iter().map(|(name, value)| (name.clone(), to_json(value))).collect()
}

fn to_json(value: &open_feature::Value) -> Value {
    match value {
        open_feature::Value::Bool(value) => json!(value),
        open_feature::Value::Int(value) => json!(value),
        open_feature::Value::Float(value) => json!(value),
        open_feature::Value::String(value) => json!(value),
        open_feature::Value::Array(values) => values.iter().map(to_json).collect(),
        open_feature::Value::Struct(value) => Value::Object(fields(value)),
    }
}
