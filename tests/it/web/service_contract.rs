//! The contract of `tower::Service`, which the layer and the gates must keep.

use std::sync::Arc;

use flipswitch::{FlipswitchProvider, open_feature::EvaluationContext, serde_json::json};
use flipswitch_axum::{FlagGate, FlipswitchLayer, RequestScope};
use http::{Request, Response};
use tokio::sync::Semaphore;
use tower_test::mock;

use crate::support::{
    PATIENCE, in_time,
    scripted::{Reply, Scripted},
    unattended,
};

fn layer() -> FlipswitchLayer {
    FlipswitchLayer::new(FlipswitchProvider::in_memory(json!({})))
}

#[tokio::test]
async fn the_layer_is_ready_when_the_inner_service_is() {
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<&'static str>, _>(layer());
    handle.allow(0);
    tokio_test::assert_pending!(service.poll_ready());
    handle.allow(1);
    tokio_test::assert_ready_ok!(service.poll_ready());
    let answer = service.call(Request::new("ping"));
    let ((), response) = tokio::join!(
        async {
            let (request, respond) = handle.next_request().await.unwrap();
            assert_eq!(*request.body(), "ping");
            assert!(request.extensions().get::<RequestScope>().is_some());
            respond.send_response(Response::new("pong"));
        },
        answer,
    );
    assert_eq!(*response.unwrap().body(), "pong");
    // A permit allows one call. The next call must wait again.
    tokio_test::assert_pending!(service.poll_ready());
}

#[tokio::test]
async fn errors_of_the_inner_service_pass_through() {
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<&'static str>, _>(layer());
    tokio_test::assert_ready_ok!(service.poll_ready());
    let answer = service.call(Request::new("ping"));
    let (_, respond) = handle.next_request().await.unwrap();
    respond.send_error("broken on purpose");
    assert_eq!(answer.await.unwrap_err().to_string(), "broken on purpose");

    handle.send_error("not ready on purpose");
    let error = tokio_test::assert_ready_err!(service.poll_ready());
    assert_eq!(error.to_string(), "not ready on purpose");
}

#[tokio::test]
async fn a_clone_does_not_take_the_ready_service() {
    // A service may be called only after *it* was ready. A layer that calls a clone of its inner service breaks this rule,
    // and the mock panics.
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<&'static str>, _>(layer());
    tokio_test::assert_ready_ok!(service.poll_ready());
    let _clone = service.clone();
    let _answer = service.call(Request::new("from the ready one"));
    let (request, _) = handle.next_request().await.unwrap();
    assert_eq!(*request.body(), "from the ready one");
}

#[tokio::test]
async fn every_request_has_its_own_scope() {
    let (mut service, mut handle) = mock::spawn_layer::<Request<&'static str>, Response<&'static str>, _>(layer());
    let mut scopes = Vec::new();
    for body in ["one", "two"] {
        tokio_test::assert_ready_ok!(service.poll_ready());
        let _answer = service.call(Request::new(body));
        let (request, _) = handle.next_request().await.unwrap();
        scopes.push(request.extensions().get::<RequestScope>().unwrap().clone());
    }
    scopes[0].flags().await;
    assert!(scopes[0].was_read() && !scopes[1].was_read());
}

#[tokio::test]
async fn bodies_of_any_type_pass_unchanged() {
    let (mut service, mut handle) = mock::spawn_layer(layer());
    tokio_test::assert_ready_ok!(service.poll_ready());
    let answer = service.call(Request::post("/path?query").header("x-any", "thing").body(vec![1_u8]).unwrap());
    let (request, respond) = handle.next_request().await.unwrap();
    assert_eq!((request.method().as_str(), request.uri().to_string().as_str()), ("POST", "/path?query"));
    assert_eq!((request.headers()["x-any"].as_bytes(), request.body()), (&b"thing"[..], &vec![1]));
    respond.send_response(Response::builder().status(418).body("teapot").unwrap());
    let response = answer.await.unwrap();
    assert_eq!((response.status().as_u16(), *response.body()), (418, "teapot"));
}

/// Returns a request with flags, in the form in which the layer passes it on.
fn request(provider: &FlipswitchProvider) -> Request<&'static str> {
    let mut request = Request::new("ping");
    request.extensions_mut().insert(RequestScope::new(provider.clone(), EvaluationContext::default()));
    request
}

#[tokio::test]
async fn a_gate_passes_on_readiness_and_errors_of_the_inner_service() {
    let provider = FlipswitchProvider::in_memory(json!({"on": true}));
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<String>, _>(FlagGate::enabled("on"));
    handle.allow(0);
    tokio_test::assert_pending!(service.poll_ready());
    handle.allow(1);
    tokio_test::assert_ready_ok!(service.poll_ready());
    let answer = service.call(request(&provider));
    let (request, respond) = handle.next_request().await.unwrap();
    assert_eq!(*request.body(), "ping");
    respond.send_error("broken on purpose");
    assert_eq!(answer.await.unwrap_err().to_string(), "broken on purpose");
    tokio_test::assert_pending!(service.poll_ready());
    handle.send_error("not ready on purpose");
    assert_eq!(tokio_test::assert_ready_err!(service.poll_ready()).to_string(), "not ready on purpose");
}

#[tokio::test]
async fn a_closed_gate_does_not_call_the_inner_service() {
    let provider = FlipswitchProvider::in_memory(json!({"on": false}));
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<String>, _>(FlagGate::enabled("on"));
    tokio_test::assert_ready_ok!(service.poll_ready());
    assert_eq!(service.call(request(&provider)).await.unwrap().status(), 404);
    assert_eq!(service.call(Request::new("without flags")).await.unwrap().status(), 500);
    drop(service);
    assert!(handle.next_request().await.is_none());
}

#[tokio::test]
async fn a_gate_that_waits_for_flags_calls_the_service_that_was_ready() {
    let release = Arc::new(Semaphore::new(0));
    let answer = Reply::json(json!({"flags": [{"key": "on", "value": true}]}));
    let source = Scripted::answering(Reply::Held(Arc::clone(&release), Box::new(answer))).await;
    let provider = unattended(source.url(), PATIENCE * 100).build().unwrap();
    let (mut service, mut handle) = mock::spawn_layer::<_, Response<String>, _>(FlagGate::enabled("on"));
    tokio_test::assert_ready_ok!(service.poll_ready());
    let mut waiting = tokio_test::task::spawn(service.call(request(&provider)));
    tokio_test::assert_pending!(waiting.poll());
    // The clone that remains was not ready. The mock panics if it is called.
    release.add_permits(100);
    let (outcome, ()) = in_time(async {
        tokio::join!(waiting.into_inner(), async {
            let (_, respond) = handle.next_request().await.unwrap();
            respond.send_response(Response::new("pong".to_owned()));
        })
    })
    .await;
    assert_eq!(outcome.unwrap().status(), 200);
    provider.shutdown().await;
}

#[actix_web::test]
async fn on_actix_the_middleware_is_ready_when_the_inner_service_is() {
    use std::{
        future::{Ready, ready},
        task::{Context, Poll, Waker},
    };

    use actix_web::{
        Error, HttpResponse,
        dev::{Service, ServiceRequest, ServiceResponse, Transform},
    };

    /// Becomes ready on request.
    #[derive(Clone)]
    struct Inner(std::rc::Rc<std::cell::Cell<bool>>);

    impl Service<ServiceRequest> for Inner {
        type Response = ServiceResponse;
        type Error = Error;
        type Future = Ready<Result<ServiceResponse, Error>>;

        fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
            if self.0.get() { Poll::Ready(Ok(())) } else { Poll::Pending }
        }

        fn call(&self, request: ServiceRequest) -> Self::Future {
            ready(Ok(request.into_response(HttpResponse::Ok().finish())))
        }
    }

    let inner = Inner(std::rc::Rc::default());
    let provider = FlipswitchProvider::in_memory(json!({}));
    let middleware = flipswitch_actix::FlipswitchMiddleware::new(provider).new_transform(inner.clone()).await.unwrap();
    let gate = flipswitch_actix::FlagGate::enabled("on").new_transform(inner.clone()).await.unwrap();
    let mut context = Context::from_waker(Waker::noop());
    for is_ready in [false, true] {
        inner.0.set(is_ready);
        assert_eq!(middleware.poll_ready(&mut context).is_ready(), is_ready);
        assert_eq!(gate.poll_ready(&mut context).is_ready(), is_ready);
    }
}
