//! Who can log in.

use flipswitch::open_feature::EvaluationContext;
use serde::Deserialize;

/// A user of the shop.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// What sessions and the flag service know the user by. It never changes, other than a name.
    pub id: &'static str,
    /// What the user logs in with.
    pub name: &'static str,
    /// What the user pays for.
    pub plan: &'static str,
}

/// Stands for a table of the shop's database.
static USERS: [User; 3] = [
    User { id: "user-1", name: "alice", plan: "premium" },
    User { id: "user-2", name: "bob", plan: "free" },
    User { id: "user-3", name: "tester", plan: "free" },
];

impl User {
    /// Finds the user who logs in. A real shop would ask for a password, too.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        USERS.iter().find(|user| user.name == name)
    }

    /// Finds the user of a session.
    #[must_use]
    pub fn with_id(id: &str) -> Option<&'static Self> {
        USERS.iter().find(|user| user.id == id)
    }
}

/// The form that users log in with.
#[derive(Clone, Debug, Deserialize)]
pub struct Login {
    /// Name of the user.
    pub name: String,
}

/// Tells the flag service what its rules decide on, and no more: each further field that differs would make another
/// context, and so another evaluation.
#[must_use]
pub fn context(user: &User) -> EvaluationContext {
    EvaluationContext::default().with_targeting_key(user.id).with_custom_field("plan", user.plan)
}
