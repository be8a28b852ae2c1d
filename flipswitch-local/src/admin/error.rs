//! Error responses of the admin endpoints: a status and `{"error": ".."}`.

use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde_json::json;

use crate::{
    faults::error::FaultError,
    flags::{error::DefinitionError, evaluate::ContextError},
};

/// An error response.
#[derive(Debug)]
pub(crate) struct AdminError {
    pub(crate) status: StatusCode,
    message: String,
}

impl AdminError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }
}

impl From<DefinitionError> for AdminError {
    fn from(error: DefinitionError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<FaultError> for AdminError {
    fn from(error: FaultError) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<ContextError> for AdminError {
    fn from(error: ContextError) -> Self {
        Self::bad_request(error.details)
    }
}

impl IntoResponse for AdminError {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}
