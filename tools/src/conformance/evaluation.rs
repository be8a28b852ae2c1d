//! Checks evaluations of all flags and of one flag, and credentials.

use reqwest::{
    Method, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use serde_json::{Value, json};

use super::{
    client::{Finding, Reply, fails, not_applicable, printable},
    conformance::{Run, ask, body, raw},
};

/// The number of flags whose individual evaluation is compared with the evaluation of all flags.
const COMPARED: usize = 8;

/// A key that no flag has.
const UNKNOWN: &str = "conformance-no-such-flag";

impl Run {
    pub(super) fn bulk_response(&self) -> Finding {
        let body = self.first.json_with(StatusCode::OK)?;
        match &body["flags"] {
            Value::Array(_) => Ok(()),
            Value::Null => fails("status 200 with JSON without `flags`"),
            _ => fails("status 200 with `flags` that is not an array"),
        }
    }

    pub(super) fn bulk_content_type(&self) -> Finding {
        self.first.has_status(StatusCode::OK)?;
        self.first.has_json_content_type()
    }

    pub(super) fn bulk_items(&self) -> Finding {
        for (index, flag) in self.some_flags()?.iter().enumerate() {
            check_item(flag).or_else(|seen| fails(format!("flag {index}: {seen}")))?;
        }
        Ok(())
    }

    pub(super) fn reasons(&self) -> Finding {
        let without = self.some_flags()?.iter().find(|flag| !flag["value"].is_null() && !flag["reason"].is_string());
        match without {
            None => Ok(()),
            Some(flag) => fails(format!("{} has a value, but no reason", name(flag))),
        }
    }

    fn some_flags(&self) -> Finding<&[Value]> {
        if self.flags.is_empty() { not_applicable("there are no flags") } else { Ok(&self.flags) }
    }

    pub(super) async fn attributes(&self) -> Finding {
        let context = json!({
            "targetingKey": "conformance", "text": "é", "yes": true, "integer": 9_007_199_254_740_993_i64,
            "number": 0.5, "list": [1, "two", null], "object": {"nested": {"deep": 1}}, "nothing": null, "": "",
        });
        ask(self.bulk().json(&json!({"context": context}))).await?.has_status(StatusCode::OK)
    }

    pub(super) async fn unknown_fields(&self) -> Finding {
        let body = json!({"context": {"targetingKey": "conformance"}, "conformance": {"unknown": true}});
        ask(self.bulk().json(&body)).await?.has_status(StatusCode::OK)
    }

    pub(super) async fn request_charset(&self) -> Finding {
        let request = self.bulk().header(CONTENT_TYPE, "application/json; charset=utf-8").body(body().to_string());
        ask(request).await?.has_status(StatusCode::OK)
    }

    /// Checks that a body is evaluated, or rejected with a reason.
    pub(super) async fn is_evaluated_or_rejected(&self, body: &[u8]) -> Finding {
        let response = ask(raw(self.bulk(), body)).await?;
        if response.status == StatusCode::OK { Ok(()) } else { is_rejection(&response) }
    }

    pub(super) async fn is_rejected(&self, body: &[u8]) -> Finding {
        is_rejection(&ask(raw(self.bulk(), body)).await?)
    }

    pub(super) async fn large_context(&self) -> Finding {
        let body = json!({"context": {"targetingKey": "conformance", "text": "x".repeat(60 << 10)}});
        let response = ask(self.bulk().json(&body)).await?;
        if response.status == StatusCode::PAYLOAD_TOO_LARGE { Ok(()) } else { response.has_status(StatusCode::OK) }
    }

    pub(super) async fn single_response(&self) -> Finding {
        let key = self.flag()?;
        let response = ask(self.single(key).json(&body())).await?;
        let flag = response.json_with(StatusCode::OK)?;
        response.has_json_content_type()?;
        if flag["key"] != key {
            return fails("status 200 with the key of another flag, or without a key");
        }
        check_item(&flag).or_else(fails)
    }

    pub(super) async fn single_agrees(&self) -> Finding {
        let with_key = || self.flags.iter().filter(|flag| flag["key"].is_string());
        // Compares failing flags first, because there are only a few.
        let (failing, others): (Vec<_>, Vec<_>) = with_key().partition(|flag| flag.get("errorCode").is_some());
        let compared: Vec<_> = failing.into_iter().take(COMPARED / 2).chain(others).take(COMPARED).collect();
        if compared.is_empty() {
            return not_applicable("there are no flags");
        }
        for flag in compared {
            let key = flag["key"].as_str().unwrap_or_default();
            let response = ask(self.single(key).json(&body())).await?;
            let alone = response.json().unwrap_or_default();
            let is_error = flag.get("errorCode").is_some();
            if is_error == response.status.is_success() {
                return fails(format!("{}, evaluated individually: {}", name(flag), response.seen()));
            }
            for field in ["value", "variant", "reason", "errorCode"] {
                if alone[field] != flag[field] {
                    return fails(format!("{}, evaluated individually, has a different {field}", name(flag)));
                }
            }
        }
        Ok(())
    }

    pub(super) async fn unknown_flag(&self) -> Finding {
        is_not_found(&ask(self.single(UNKNOWN).json(&body())).await?)
    }

    pub(super) async fn unknown_flag_key(&self) -> Finding {
        let response = ask(self.single(UNKNOWN).json(&body())).await?;
        match response.json() {
            Some(Value::Object(fields)) if fields.get("key").is_some_and(|key| key == UNKNOWN) => Ok(()),
            Some(Value::Object(fields)) if fields.contains_key("key") => {
                fails(format!("{} with another key", response.seen()))
            }
            _ => fails(format!("{} without a key", response.seen())),
        }
    }

    pub(super) async fn encoded_key(&self) -> Finding {
        let key = self.flag()?;
        let encoded: String = key.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let url = self.requests.url(Some(&encoded));
        let response = ask(self.requests.request(Method::POST, url).json(&body())).await?;
        let flag = response.json_with(StatusCode::OK)?;
        if flag["key"] == key { Ok(()) } else { fails("status 200 with the key of another flag, or without a key") }
    }

    /// Checks that there is no flag with this key, and that the service decoded the key correctly.
    pub(super) async fn is_unknown(&self, key: &str) -> Finding {
        let response = ask(self.single(key).json(&body())).await?;
        is_not_found(&response)?;
        match response.json().unwrap_or_default()["key"].as_str() {
            Some(other) if other != key => fails(format!("{} with another key", response.seen())),
            _ => Ok(()),
        }
    }

    pub(super) async fn error_bodies(&self) -> Finding {
        let responses =
            [ask(raw(self.bulk(), b"{\"context\":")).await?, ask(self.single(UNKNOWN).json(&body())).await?];
        let mut errors = responses
            .iter()
            .filter(|response| matches!(response.status, StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND))
            .peekable();
        if errors.peek().is_none() {
            return not_applicable("no response has status 400 or 404");
        }
        errors.try_for_each(Reply::has_json_content_type)
    }

    pub(super) async fn other_methods(&self) -> Finding {
        for response in self.responses_to_other_methods().await? {
            response.has_status(StatusCode::METHOD_NOT_ALLOWED)?;
        }
        Ok(())
    }

    pub(super) async fn allow(&self) -> Finding {
        let responses = self.responses_to_other_methods().await?;
        let Some(response) = responses.iter().find(|response| response.status == StatusCode::METHOD_NOT_ALLOWED) else {
            return not_applicable("no response has status 405");
        };
        let allowed = response.header(ALLOW).unwrap_or_default();
        let allows_post = allowed.split(',').any(|method| method.trim() == "POST");
        if allows_post { Ok(()) } else { fails("status 405 without Allow: POST") }
    }

    async fn responses_to_other_methods(&self) -> Finding<[Reply; 2]> {
        let request = |method| self.requests.request(method, self.requests.url(None));
        Ok([ask(request(Method::GET)).await?, ask(request(Method::PUT).json(&body())).await?])
    }

    pub(super) async fn credentials(&self) -> Finding {
        let response = self.without_credentials().await?;
        if is_refusal(&response) { Ok(()) } else { fails(response.seen()) }
    }

    pub(super) async fn credentials_body(&self) -> Finding {
        let response = self.without_credentials().await?;
        if !is_refusal(&response) {
            return not_applicable("no response has status 401 or 403");
        }
        if response.body.is_empty() || response.json().is_some() {
            return Ok(());
        }
        fails(format!("{} with a body that is not JSON", response.seen()))
    }

    async fn without_credentials(&self) -> Finding<Reply> {
        if !self.requests.has_credentials() {
            return not_applicable("no credentials were given");
        }
        ask(self.requests.anonymous(Method::POST, self.requests.url(None)).json(&body())).await
    }
}

/// Checks a flag. Returns a description of the problem, if there is one.
fn check_item(flag: &Value) -> Result<(), String> {
    let Value::Object(fields) = flag else { return Err("not an object".to_owned()) };
    match fields.get("key") {
        Some(Value::String(_)) => {}
        Some(_) => return Err("a key that is not a string".to_owned()),
        None => return Err("no key".to_owned()),
    }
    let name = name(flag);
    match (fields.get("errorCode"), fields.get("value"), fields.get("reason")) {
        (Some(Value::String(_)), None | Some(Value::Null), _) => Ok(()),
        (Some(Value::String(_)), Some(_), _) => Err(format!("{name} has an errorCode and a value")),
        (Some(_), ..) => Err(format!("{name} has an errorCode that is not a string")),
        (None, Some(Value::Null) | None, Some(Value::String(_))) => Ok(()),
        (None, Some(Value::Null) | None, _) => Err(format!("{name} has no value, no errorCode and no reason")),
        (None, Some(_), _) => Ok(()),
    }
}

fn name(flag: &Value) -> String {
    format!("the flag {:?}", printable(flag["key"].as_str().unwrap_or_default()))
}

/// Checks that a response has status 400 and an error code.
fn is_rejection(response: &Reply) -> Finding {
    let body = response.json_with(StatusCode::BAD_REQUEST)?;
    if body["errorCode"].is_string() { Ok(()) } else { fails("status 400 without an errorCode") }
}

fn is_not_found(response: &Reply) -> Finding {
    let body = response.json_with(StatusCode::NOT_FOUND)?;
    if body["errorCode"] == "FLAG_NOT_FOUND" {
        Ok(())
    } else {
        fails(format!("{} without FLAG_NOT_FOUND", response.seen()))
    }
}

fn is_refusal(response: &Reply) -> bool {
    matches!(response.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}
