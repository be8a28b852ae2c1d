// The correct counterparts of the other files.

use std::sync::Arc;

use actix_web::HttpResponse;
use flipswitch::{Flags, FlipswitchProvider, open_feature::EvaluationContext};

flipswitch::flags! {
    pub NewCheckout: bool = "new-checkout", default false;
    pub MaxItems: i64 = "max-items", default 10;
    pub Theme: String = "theme", default "light";
    pub Percentage: u8 = "percentage", default 50;
}

/// Does not implement `Clone`, so it can only be in the extensions as an `Arc`.
pub struct Account(String);

fn context(account: &Account) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(&account.0)
}

pub fn read(flags: &Flags) -> (bool, bool, i64, String) {
    (flags.get(NewCheckout), flags.bool("new-checkout", false), flags.get(MaxItems), flags.get(Theme))
}

pub fn with_axum(provider: FlipswitchProvider) -> axum::Router {
    use axum::{Router, http::StatusCode, routing::get};
    use flipswitch_axum::{Flag, FlagGate, FlipswitchLayer};

    async fn handler(Flag(new): Flag<NewCheckout>, Flag(items): Flag<MaxItems>) -> String {
        if new { items.to_string() } else { String::new() }
    }
    let gate = FlagGate::enabled(NewCheckout).fallback(StatusCode::FORBIDDEN);
    let variant = FlagGate::variant(Theme, "dark");
    let predicate = FlagGate::when(|flags| flags.get(NewCheckout) && !flags.bool("beta", false));
    let layer = FlipswitchLayer::new(provider)
        .with_user(|account: &Arc<Account>| context(account))
        .with_context(|_| None::<EvaluationContext>);
    Router::new().route("/", get(handler)).layer(gate).layer(variant).layer(predicate).layer(layer)
}

pub fn with_actix(provider: FlipswitchProvider, settings: &mut actix_web::web::ServiceConfig) {
    use actix_web::web;
    use flipswitch_actix::{Flag, FlagGate, FlipswitchMiddleware, flag_on};

    async fn handler(Flag(new): Flag<NewCheckout>, Flag(items): Flag<MaxItems>) -> String {
        if new { items.to_string() } else { String::new() }
    }
    let text: Arc<str> = "gone".into();
    let gate = FlagGate::enabled(NewCheckout).fallback(|| HttpResponse::Gone());
    let variant = FlagGate::variant("theme", "dark").fallback(move || text.to_string());
    let middleware = FlipswitchMiddleware::new(provider).with_user(context).with_context(|_| Some(EvaluationContext::default()));
    let resource = web::resource("/").guard(flag_on(NewCheckout)).guard(flag_on("beta")).get(handler);
    settings.service(web::scope("/of").service(resource).wrap(gate).wrap(variant).wrap(middleware));
}
