//! The page of inspected requests.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    task::{Context, Poll},
};

use axum_core::response::{IntoResponse, Response};
use flipswitch::{FlipswitchProvider, integration::InspectionPage};
use http::{HeaderName, HeaderValue, Request, StatusCode};
use tower_service::Service;

/// Creates a service that responds with a page of the latest 100 requests that were
/// [inspected](crate::FlipswitchLayer::with_inspection).
///
/// The page lists the flags that each request has read, with the value, variant, reason, source and age, the default if it is
/// a plain value, and the number of reads. It shows only the names of the attributes of a context. The service must be inside the
/// layer. Only requests that are themselves inspected get the page; others get 404.
///
/// ```
/// use axum::Router;
/// use flipswitch_axum::FlipswitchLayer;
/// # use flipswitch_axum::{FlipswitchProvider, flipswitch::serde_json::json};
///
/// #[derive(Clone)]
/// struct Staff;
///
/// # let provider = FlipswitchProvider::in_memory(json!({}));
/// let app: Router = Router::new()
///     .route_service("/flags/requests", flipswitch_axum::inspection(provider.clone()))
///     .layer(FlipswitchLayer::new(provider).with_inspection(|parts| parts.extensions.get::<Staff>().is_some()));
/// ```
#[must_use]
pub fn inspection(provider: FlipswitchProvider) -> InspectionService {
    InspectionService(provider)
}

/// Service of [`inspection`].
#[derive(Clone, Debug)]
pub struct InspectionService(FlipswitchProvider);

impl<B> Service<Request<B>> for InspectionService {
    type Response = Response;
    type Error = Infallible;
    type Future = Ready<Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Some(page) = InspectionPage::new(request.extensions().get(), &self.0) else {
            return ready(Ok(StatusCode::NOT_FOUND.into_response()));
        };
        let mut response = page.html().to_owned().into_response();
        for (name, value) in page.headers() {
            if let Ok(value) = HeaderValue::try_from(value) {
                response.headers_mut().insert(HeaderName::from_static(name), value);
            }
        }
        ready(Ok(response))
    }
}
