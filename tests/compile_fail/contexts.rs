// Functions that must return a context but return something else.

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext};
use flipswitch_actix::FlipswitchMiddleware;
use flipswitch_axum::FlipswitchLayer;

#[derive(Clone)]
pub struct User(String);

pub fn axum_user(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ String` is not a context
    //~ expected a `Context`, a `PreparedContext`, an `EvaluationContext`, or an `Option` of one
    FlipswitchLayer::new(provider).with_user(|user: &User| user.0.clone())
}

pub fn axum_request(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ `()` is not a context
    FlipswitchLayer::new(provider).with_context(|_| {})
}

pub fn axum_user_that_may_fail(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ is not a context
    FlipswitchLayer::new(provider).with_user(|_: &User| Ok::<_, String>(EvaluationContext::default()))
}

pub fn actix_user(provider: FlipswitchProvider) -> FlipswitchMiddleware {
    //~ String` is not a context
    //~ expected a `Context`, a `PreparedContext`, an `EvaluationContext`, or an `Option` of one
    FlipswitchMiddleware::new(provider).with_user(|user: &User| user.0.clone())
}

pub fn actix_request(provider: FlipswitchProvider) -> FlipswitchMiddleware {
    //~ `u8` is not a context
    FlipswitchMiddleware::new(provider).with_context(|_| 1_u8)
}
