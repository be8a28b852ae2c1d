//! Checks entity tags and conditional requests.

use reqwest::{
    StatusCode,
    header::{ETAG, IF_NONE_MATCH, TRANSFER_ENCODING},
};
use serde_json::{Value, json};

use super::{
    client::{Finding, Miss, Reply, fails, not_applicable},
    conformance::{Run, ask, body},
};

/// Two contexts whose responses differ.
pub(crate) struct Contexts {
    other: Value,
    /// The response for the other context. The first response of the run is for the usual context.
    response: Reply,
}

impl Run {
    pub(super) fn tag_syntax(&self) -> Finding {
        let tag = self.tag()?;
        let opaque = tag.strip_prefix("W/").unwrap_or(tag);
        match opaque.strip_prefix('"').and_then(|tag| tag.strip_suffix('"')) {
            Some(inner) if inner.bytes().all(|byte| byte > b' ' && byte != b'"' && byte != 0x7f) => Ok(()),
            Some(_) => fails("a tag with characters that are not allowed"),
            None => fails("a tag without quotes"),
        }
    }

    pub(super) async fn tag_stable(&self) -> Finding {
        let tag = self.tag()?;
        let again = self.again().await?;
        if again.header(ETAG) == Some(tag) { Ok(()) } else { fails("an equal response with a different tag or no tag") }
    }

    /// Sends the usual request again. The requirement does not apply if the responses differ.
    async fn again(&self) -> Finding<Reply> {
        let again = ask(self.bulk().json(&body())).await?;
        again.has_status(StatusCode::OK)?;
        if again.json() == self.first.json() {
            Ok(again)
        } else {
            not_applicable("equal requests have different responses")
        }
    }

    pub(super) async fn not_modified(&self) -> Finding<Reply> {
        let response = self.bulk_unless(self.tag()?).await?;
        response.has_status(StatusCode::NOT_MODIFIED)?;
        Ok(response)
    }

    /// Returns a response with status 304. The requirement does not apply if there is none.
    async fn a_not_modified(&self) -> Finding<Reply> {
        match self.not_modified().await {
            Err(Miss::Fails(_)) => not_applicable("no response has status 304"),
            other => other,
        }
    }

    pub(super) async fn not_modified_body(&self) -> Finding {
        let response = self.a_not_modified().await?;
        if !response.body.is_empty() || response.headers.contains_key(TRANSFER_ENCODING) {
            return fails("status 304 with a body");
        }
        // A client would read the bytes of a body as the next response on the connection.
        self.again().await.map(drop)
    }

    pub(super) async fn not_modified_tag(&self) -> Finding {
        let response = self.a_not_modified().await?;
        let opaque = |tag: &str| tag.trim_start_matches("W/").to_owned();
        match response.header(ETAG) {
            Some(tag) if opaque(tag) == opaque(self.tag()?) => Ok(()),
            Some(_) => fails("status 304 with a different tag"),
            None => fails("status 304 without a tag"),
        }
    }

    pub(super) async fn other_tag(&self) -> Finding {
        self.bulk_unless("\"conformance\"").await?.has_status(StatusCode::OK)
    }

    /// Checks that another form of the tag is recognised. Does not apply if the tag itself is not recognised.
    pub(super) async fn tag_as(&self, form: impl Fn(&str) -> String) -> Finding {
        self.a_not_modified().await?;
        self.bulk_unless(&form(self.tag()?)).await?.has_status(StatusCode::NOT_MODIFIED)
    }

    pub(super) async fn tag_differs(&self) -> Finding {
        let tag = self.tag()?;
        match self.contexts().await?.response.header(ETAG) {
            Some(other) if other == tag => fails("two different responses have the same tag"),
            _ => Ok(()),
        }
    }

    pub(super) async fn tag_of_other_context(&self) -> Finding {
        let tag = self.tag()?;
        let other = &self.contexts().await?.other;
        ask(self.bulk().json(other).header(IF_NONE_MATCH, tag)).await?.has_status(StatusCode::OK)
    }

    /// Searches once for a context whose flags differ from the flags of the usual context.
    async fn contexts(&self) -> Finding<&Contexts> {
        let found = self.contexts.get_or_init(|| self.find_contexts()).await;
        found.as_ref().map_err(Miss::clone)
    }

    async fn find_contexts(&self) -> Finding<Contexts> {
        let flags = |response: &Reply| response.json().map(|body| body["flags"].clone());
        let usual = flags(&self.again().await?);
        for other in candidates() {
            let response = ask(self.bulk().json(&other)).await?;
            if response.status == StatusCode::OK && flags(&response) != usual {
                return Ok(Contexts { other, response });
            }
        }
        not_applicable("all contexts that were tried have the same flags")
    }
}

/// Returns requests with contexts that are likely to have different flags, because they have attributes that rules often use, or
/// by chance.
fn candidates() -> impl Iterator<Item = Value> {
    let targeted = [
        json!({"plan": "premium"}),
        json!({"plan": "enterprise", "tier": "enterprise", "premium": true}),
        json!({"email": "user@example.com", "role": "admin", "admin": true, "beta": true, "internal": true}),
        json!({"country": "DE", "region": "eu", "language": "de", "locale": "de-DE"}),
        json!({"version": "99.0.0", "environment": "production", "platform": "web", "os": "linux", "device": "mobile"}),
    ];
    let targeted = targeted.into_iter().map(|mut context| {
        context["targetingKey"] = json!("conformance");
        json!({ "context": context })
    });
    targeted.chain((1..=11).map(|number| json!({"context": {"targetingKey": format!("conformance-{number}")}})))
}
