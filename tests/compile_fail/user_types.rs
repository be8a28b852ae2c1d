// User types that the extensions of a request cannot hold.

use std::{cell::Cell, rc::Rc};

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext};
use flipswitch_axum::FlipswitchLayer;

#[derive(Clone)]
pub struct User;

/// Is in the extensions as an `Arc`, because it cannot be there directly.
pub struct Account;

#[derive(Clone)]
pub struct Session(Cell<bool>);

pub fn of_one_thread(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ `Rc<User>` cannot be in the extensions of a request
    //~ not `Clone + Send + Sync + 'static`, as extensions must be
    FlipswitchLayer::new(provider).with_user(|_: &Rc<User>| EvaluationContext::default())
}

pub fn that_is_not_shared(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ `Session` cannot be in the extensions of a request
    FlipswitchLayer::new(provider).with_user(|_: &Session| EvaluationContext::default())
}

pub fn that_is_no_clone(provider: FlipswitchProvider) -> FlipswitchLayer {
    //~ `Account` cannot be in the extensions of a request
    //~ take the type that authentication puts there, such as `|user: &Arc<User>|` for an `Arc<User>`
    FlipswitchLayer::new(provider).with_user(|_: &Account| EvaluationContext::default())
}
