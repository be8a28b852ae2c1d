//! The flags, the rule and the contexts that all benchmarks share.

use std::time::Duration;

use flipswitch::{
    Context,
    open_feature::{EvaluationContext, EvaluationResult, provider::ResolutionDetails},
    serde_json::{Map, Value, json},
};
use flipswitch_local::LocalServer;
use launchdarkly_server_sdk::{ContextBuilder, FlagBuilder};

/// The number of flags.
pub(crate) const FLAGS: usize = 100;

/// The key of the flag that is read.
pub(crate) const KEY: &str = "flag-50";

/// The user of the benchmarks that have one.
pub(crate) const USER: &str = "user-123456";

/// The attributes of every user.
pub(crate) const ATTRIBUTES: [(&str, &str); 3] =
    [("attribute-0", "value-0"), (ATTRIBUTE, VALUE), ("attribute-2", "value-2")];

/// The attribute that a rule checks, and the value that the rule requires. All users have this value.
pub(crate) const ATTRIBUTE: &str = "attribute-1";
pub(crate) const VALUE: &str = "value-1";

/// The default of every read. All flags are `true` for all users, so a failing read is noticed.
pub(crate) const DEFAULT: bool = false;

/// The interval of the heartbeats of the flag service.
pub(crate) const HEARTBEAT: Duration = Duration::from_secs(1);

/// Returns the keys of all flags.
pub(crate) fn keys() -> impl Iterator<Item = String> {
    (0..FLAGS).map(|number| format!("flag-{number}"))
}

/// Returns all flags in flagd's format, which `flipswitch-local` also reads, with or without the rule.
pub(crate) fn flagd_flags(rule: bool) -> Value {
    let flag = if rule {
        json!({
            "state": "ENABLED",
            "variants": {"on": true, "off": false},
            "defaultVariant": "off",
            "targeting": {"if": [{"==": [{"var": ATTRIBUTE}, VALUE]}, "on", "off"]},
        })
    } else {
        json!({"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "on"})
    };
    let flags: Map<_, _> = keys().map(|key| (key, flag.clone())).collect();
    json!({"flags": flags})
}

/// Returns all flags in Unleash's format, with or without the rule.
pub(crate) fn unleash_features(rule: bool) -> Value {
    let rule = rule.then(|| json!({"contextName": ATTRIBUTE, "operator": "IN", "values": [VALUE]}));
    let strategy = json!({"name": "default", "constraints": Vec::from_iter(rule)});
    let features: Vec<_> = keys().map(|key| json!({"name": key, "enabled": true, "strategies": [strategy]})).collect();
    json!({"version": 2, "features": features})
}

/// Returns a flag of LaunchDarkly, with or without the rule.
pub(crate) fn launchdarkly_flag(key: &str, rule: bool) -> FlagBuilder {
    let flag = FlagBuilder::new(key);
    if rule {
        flag.fallthrough_variation(false).if_match(ATTRIBUTE, vec![VALUE.into()]).then_return(true)
    } else {
        flag.variation_for_all(true)
    }
}

/// Starts a local flag service, with or without the rule. Flags are requested once more after the first heartbeat of a
/// stream. Heartbeats are frequent, so a benchmark does not wait long for the first one.
pub(crate) async fn service(rule: bool) -> LocalServer {
    LocalServer::builder().flags(flagd_flags(rule)).heartbeat(HEARTBEAT).start().await.unwrap()
}

/// Builds a context of OpenFeature.
pub(crate) fn evaluation_context(user: &str) -> EvaluationContext {
    let mut context = EvaluationContext::default().with_targeting_key(user);
    for (name, value) in ATTRIBUTES {
        context.add_custom_field(name, value);
    }
    context
}

/// Builds a context of Flipswitch.
pub(crate) fn flipswitch_context(user: &str) -> Context {
    let [first, second, third] = ATTRIBUTES;
    Context::user(user).with(first.0, first.1).with(second.0, second.1).with(third.0, third.1)
}

/// Builds a context of LaunchDarkly.
pub(crate) fn launchdarkly_context(user: &str) -> launchdarkly_server_sdk::Context {
    let mut context = ContextBuilder::new(user);
    for (name, value) in ATTRIBUTES {
        context.set_value(name, value.into());
    }
    context.build().unwrap()
}

/// Returns the value that a caller of OpenFeature uses: the resolved value, or the default after an error.
pub(crate) fn value(resolved: EvaluationResult<ResolutionDetails<bool>>) -> bool {
    resolved.map_or(DEFAULT, |details| details.value)
}
