//! Users, and the form that they log in with.

use serde::Deserialize;

/// A user of the shop.
#[derive(Debug, PartialEq, Eq)]
pub struct User {
    /// Identifies the user in sessions and at the flag service. Unlike the name, it never changes.
    pub id: &'static str,
    /// The name that the user logs in with.
    pub name: &'static str,
    /// The plan of the user, which rules of flags use.
    pub plan: &'static str,
}

/// Stands for a table in a database.
static USERS: [User; 3] = [
    User { id: "user-1", name: "alice", plan: "premium" },
    User { id: "user-2", name: "bob", plan: "free" },
    User { id: "user-3", name: "tester", plan: "free" },
];

impl User {
    /// Finds a user by name. A real shop would check a password as well.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        USERS.iter().find(|user| user.name == name)
    }

    /// Finds a user by id.
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
